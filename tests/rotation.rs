//! Keys are rotated with overlap: whoever is in by an old key is moved to the new one, whoever has moved on is not
//! disconnected, and nobody needs a new file.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use bulkhead_accounts::profile::Profile;
use bulkhead_accounts::tenancy::Tenancy;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{Identity, LIMIT, RawClient, TestDeployment};
use bulkhead_tests::operator::Operator;
use serde_json::Value;

/// Everybody who is connected to an account: who stays has the same number.
async fn cids(home: &Path, account: &str) -> anyhow::Result<BTreeSet<u64>> {
    let tenancy = Tenancy::open(home.to_owned())?;
    let links = tenancy.connect().await?;
    let key = tenancy.platform.operator.account(account)?.context("account")?.key;
    Ok(links.connections(key.as_str()).await?.iter().map(|one| one.cid).collect())
}

async fn enter(deployment: &TestDeployment, folder: &Path) -> anyhow::Result<RawClient> {
    let profile = Profile::read(&folder.join("profile.toml"))?;
    let identity = Identity::trusting(profile.ca_file).with_certificate(profile.cert_file, profile.key_file);
    let client = RawClient::connect(&deployment.hub(), &identity).await?;
    client.flush().await?;
    Ok(client)
}

fn row<'a>(rows: &'a [Value], field: &str, value: &str) -> anyhow::Result<&'a Value> {
    rows.iter().find(|row| row[field] == value).with_context(|| format!("no {field} {value} in {rows:?}"))
}

/// Who is connected to `account`, with the key by which each came in.
async fn issuers(home: &Path, account: &str) -> anyhow::Result<BTreeSet<(String, String)>> {
    let tenancy = Tenancy::open(home.to_owned())?;
    let links = tenancy.connect().await?;
    let key = tenancy.platform.operator.account(account)?.context("account")?.key;
    let open = links.connections(key.as_str()).await?;
    Ok(open.into_iter().map(|one| (one.user_name, one.issuer_key)).collect())
}

/// People: one who is connected, one who is away. Nobody needs a new file.
async fn a_role_of_people_is_rotated(deployment: &TestDeployment) -> anyhow::Result<()> {
    let operator = Operator { home: deployment.home() };
    let folder = tempfile::tempdir()?;
    let to = |name: &str| folder.path().join(name).display().to_string();
    let add = async |name: &str| {
        let line = ["tenant", "user", "add", "acme-corp", name, "--role", "viewer", "--to", &to(name)];
        operator.expect(0, &line).await.map(drop)
    };
    add("alice").await?;
    add("bob").await?;
    let alice = enter(deployment, &folder.path().join("alice")).await?;
    let admin = RawClient::connect(&deployment.hub(), &deployment.person_identity("acme-corp-admin")?).await?;
    admin.flush().await?;
    let before = cids(operator.home, "acme-corp").await?;
    let rotate = ["role", "rotate", "acme-corp", "viewer"];
    let finish = [&rotate[..], &["--finish", "--wait-s", "20"]].concat();
    operator.expect(0, &rotate).await?;
    ensure!(cids(operator.home, "acme-corp").await? == before, "a new key has disconnected somebody");
    let (roles, _) = operator.expect(0, &["role", "list", "acme-corp"]).await?;
    let viewer = row(&roles, "role", "viewer")?;
    ensure!(viewer["connections"] == serde_json::json!([0, 1]), "{roles:?}");
    let (old, new) = (viewer["previous"].as_str().context("old")?, viewer["key"].as_str().context("new")?);
    // Whoever comes now comes by the new key.
    let bob = enter(deployment, &folder.path().join("bob")).await?;
    let by = |name: &str, key: &str| (name.to_owned(), key.to_owned());
    let who = issuers(operator.home, "acme-corp").await?;
    ensure!(who.contains(&by("alice", old)) && who.contains(&by("bob", new)), "{who:?}");

    let (would, _) = operator.expect(0, &[&finish[..], &["--dry-run"]].concat()).await?;
    ensure!(would[0]["closing"].as_array().is_some_and(|closing| closing.len() == 1), "{would:?}");
    operator.expect(0, &finish).await?;
    alice.wait_closed(LIMIT).await.context("the old key is out, and somebody is in by it")?;
    ensure!(!bob.is_closed() && !admin.is_closed(), "somebody was disconnected who had moved, or is of another role");
    enter(deployment, &folder.path().join("alice")).await.context("the same file opens by the new key")?;
    let (people, _) = operator.expect(0, &["tenant", "user", "list", "acme-corp"]).await?;
    ensure!(people.iter().all(|person| person["state"] == "active"), "{people:?}");
    Ok(())
}

/// The site that runs is closed once, and is back by the new key without anybody's doing.
async fn a_role_of_sites_is_rotated(deployment: TestDeployment) -> anyhow::Result<TestDeployment> {
    let rotate = ["role", "rotate", "acme-corp", "leaf"];
    let operator = Operator { home: deployment.home() };
    operator.expect(0, &rotate).await?;
    operator.expect(0, &[&rotate[..], &["--finish"]].concat()).await?;
    let (roles, _) = operator.expect(0, &["role", "list", "acme-corp"]).await?;
    let new = row(&roles, "role", "leaf")?["key"].as_str().context("new")?.to_owned();
    let expected = ("leaf".to_owned(), new);
    let back = eventually("the leaf at the hub again", LIMIT, || async {
        let who = issuers(deployment.home(), "acme-corp").await.map_err(|error| format!("{error:#}"))?;
        if who.contains(&expected) { Ok(()) } else { Err(format!("{who:?}")) }
    });
    back.await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    Ok(deployment)
}

async fn serial_of(operator: &Operator<'_>, person: &str) -> anyhow::Result<String> {
    let (issued, _) = operator.expect(0, &["ca", "show", "tenant/acme-corp"]).await?;
    let is_theirs = |row: &&Value| row["identity"].as_str().is_some_and(|identity| identity.ends_with(person));
    Ok(issued.iter().find(is_theirs).with_context(|| format!("{issued:?}"))?["serial"]
        .as_str()
        .context("serial")?
        .to_owned())
}

#[tokio::test]
async fn a_certificate_that_is_revoked_opens_nothing_from_then_on() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&["acme-corp enterprise oslo/p1"], &[]).await?;
    let operator = Operator { home: deployment.home() };
    let folder = tempfile::tempdir()?;
    let of = |name: &str| folder.path().join(name);
    for name in ["alice", "bob"] {
        let to = of(name).display().to_string();
        operator.expect(0, &["tenant", "user", "add", "acme-corp", name, "--to", &to]).await?;
    }
    let (alice, bob) = (enter(&deployment, &of("alice")).await?, enter(&deployment, &of("bob")).await?);
    let revoke = async |operator: &Operator<'_>, code: i32, serial: &str, more: &[&str]| {
        operator.expect(code, &[&["ca", "revoke", serial, "--reason", "key-compromise"], more].concat()).await
    };
    let serial = serial_of(&operator, "/alice").await?;
    for only in ["--dry-run", "--offline"] {
        revoke(&operator, 0, &serial, &[only]).await?;
        enter(&deployment, &of("alice")).await.with_context(|| format!("the gatekeepers know of it after {only}"))?;
    }
    revoke(&operator, 0, &serial, &[]).await?;
    alice.wait_closed(LIMIT).await?;
    ensure!(enter(&deployment, &of("alice")).await.is_err(), "she comes back");
    bob.flush().await.context("the control: nobody else is concerned")?;

    // Nobody can be told, and what is written down is not lost.
    let serial = serial_of(&operator, "/bob").await?;
    let stopped = deployment.pause().await?;
    let (_, said) = revoke(&Operator { home: stopped.home() }, 5, &serial, &[]).await?;
    ensure!(said.contains("written down here") && said.contains("`bulkhead push`"), "{said}");
    let deployment = stopped.start().await?;
    let operator = Operator { home: deployment.home() };
    operator.expect(0, &["push", "acme-corp"]).await?;
    ensure!(enter(&deployment, &of("bob")).await.is_err(), "he comes back");
    enter(&deployment, &of("alice")).await.map(drop).err().context("she comes back after a start")?;
    deployment.stop().await
}

#[tokio::test]
async fn the_key_of_a_role_is_replaced_and_everybody_moves_to_the_new_one() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&["acme-corp enterprise oslo/p1"], &[]).await?;
    a_role_of_people_is_rotated(&deployment).await?;
    a_role_of_sites_is_rotated(deployment).await?.stop().await
}

#[tokio::test]
async fn the_key_of_the_operator_goes_when_no_server_depends_on_it() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&["acme-corp pro oslo/p1"], &[]).await?;
    let operator = Operator { home: deployment.home() };
    let (keys, _) = operator.expect(0, &["operator", "show"]).await?;
    let signs = |key: &&Value| key["accounts_signed"].as_u64().is_some_and(|signed| signed > 0);
    let old = keys.iter().find(signs).context("a key that signs")?["public"].as_str().context("key")?.to_owned();
    let (added, _) = operator.expect(0, &["operator", "rotate-key", "add"]).await?;
    let new = added[0]["key"].as_str().context("key")?.to_owned();
    let to_use = ["operator", "rotate-key", "use", &new];
    let to_drop = ["operator", "rotate-key", "drop", &old];
    // A server reads the operator's token when it starts: until then it takes nothing that the new key signs.
    for dry in [&["--dry-run"][..], &[]] {
        let (_, said) = operator.expect(5, &[&to_use[..], dry].concat()).await?;
        ensure!(said.contains("is not known to hub-1"), "{said}");
    }
    operator.expect(4, &to_drop).await?;

    let deployment = deployment.pause().await?.start().await?;
    let operator = Operator { home: deployment.home() };
    operator.expect(0, &to_use).await?;
    let admin = RawClient::connect(&deployment.hub(), &deployment.person_identity("acme-corp-admin")?).await?;
    admin.flush().await?;
    let before = cids(operator.home, "acme-corp").await?;
    operator.expect(4, &to_drop).await?;
    operator.expect(0, &["operator", "rotate-key", "resign"]).await?;
    // Signed here, and not on the servers yet.
    let (_, said) = operator.expect(5, &to_drop).await?;
    ensure!(said.contains("acme-corp") && said.contains("`bulkhead push`"), "{said}");
    operator.expect(0, &["push"]).await?;
    for dry in [&["--dry-run"][..], &[]] {
        operator.expect(0, &[&to_drop[..], dry].concat()).await?;
    }
    ensure!(cids(operator.home, "acme-corp").await? == before && !admin.is_closed(), "somebody was disconnected");
    operator.expect(0, &["diff"]).await?;
    operator.expect(0, &["tenant", "add", "north-bank"]).await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    deployment.stop().await
}
