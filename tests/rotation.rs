//! Keys are rotated with overlap: whoever has moved on is not disconnected, whoever has nothing else is named, and nobody
//! is locked out unasked.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, ensure};
use bulkhead_accounts::profile::Profile;
use bulkhead_accounts::tenancy::Tenancy;
use bulkhead_testkit::{Identity, RawClient, TestDeployment};
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
    let identity = Identity::trusting(profile.ca_file)
        .with_certificate(profile.cert_file, profile.key_file)
        .with_creds(profile.creds_file);
    let client = RawClient::connect(&deployment.hub(), &identity).await?;
    client.flush().await?;
    Ok(client)
}

fn row<'a>(rows: &'a [Value], field: &str, value: &str) -> anyhow::Result<&'a Value> {
    rows.iter().find(|row| row[field] == value).with_context(|| format!("no {field} {value} in {rows:?}"))
}

/// People: one who is connected, one who is away.
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
    let finish = [&rotate[..], &["--finish", "--wait-s", "1"]].concat();
    operator.expect(0, &rotate).await?;
    ensure!(cids(operator.home, "acme-corp").await? == before, "a new key has disconnected somebody");
    let (roles, _) = operator.expect(0, &["role", "list", "acme-corp"]).await?;
    ensure!(row(&roles, "role", "viewer")?["connections"] == serde_json::json!([0, 1]), "{roles:?}");

    // She is connected by the old key, and he has nothing else.
    let (_, said) = operator.expect(5, &finish).await?;
    ensure!(said.contains("still use signing key") && said.contains("alice"), "{said}");
    drop(alice);
    let (_, said) = operator.expect(5, &finish).await?;
    ensure!(said.contains("person alice") && said.contains("bulkhead tenant user add acme-corp bob"), "{said}");
    let (would, _) = operator.expect(0, &[&rotate[..], &["--finish", "--dry-run"]].concat()).await?;
    ensure!(would.len() == 3 && would[2]["locked_out"]["who"] == "person bob", "{would:?}");
    add("alice").await?;
    let alice = enter(deployment, &folder.path().join("alice")).await?;
    let (_, said) = operator.expect(5, &finish).await?;
    ensure!(!said.contains("alice") && said.contains("person bob"), "{said}");

    operator.expect(0, &[&finish[..], &["--force"]].concat()).await?;
    let (people, _) = operator.expect(0, &["tenant", "user", "list", "acme-corp"]).await?;
    for (name, state) in [("alice", "active"), ("bob", "needs-new-file"), ("admin", "active")] {
        ensure!(row(&people, "user", name)?["state"] == state, "{people:?}");
    }
    ensure!(enter(deployment, &folder.path().join("bob")).await.is_err(), "the old key still lets somebody in");
    ensure!(!alice.is_closed() && !admin.is_closed(), "somebody was disconnected who had moved, or is of another role");
    add("bob").await?;
    enter(deployment, &folder.path().join("bob")).await.map(drop)
}

/// Sites: one that runs, and one that was given a bundle and has not come yet.
async fn a_role_of_sites_is_rotated(deployment: TestDeployment) -> anyhow::Result<TestDeployment> {
    let bundles = tempfile::tempdir()?;
    let to = bundles.path().display().to_string();
    let add = ["poller", "add", "acme-corp/bergen/p1", "--to", &to];
    let rotate = ["role", "rotate", "acme-corp", "leaf"];
    let finish = [&rotate[..], &["--finish", "--wait-s", "1"]].concat();
    let operator = Operator { home: deployment.home() };
    operator.expect(0, &add).await?;
    operator.expect(0, &rotate).await?;
    let (_, said) = operator.expect(5, &finish).await?;
    ensure!(said.contains("leaf on hub-1"), "{said}");
    // What runs here is issued anew by a new start.
    let deployment = deployment.pause().await?.start().await?;
    let operator = Operator { home: deployment.home() };
    let (_, said) = operator.expect(5, &finish).await?;
    ensure!(said.contains("site acme-corp/bergen has no other file") && !said.contains("/oslo"), "{said}");
    operator.expect(0, &add).await?;
    let (_, said) = operator.expect(5, &finish).await?;
    ensure!(said.contains("site acme-corp/bergen has a new file and is not connected"), "{said}");
    operator.expect(0, &[&finish[..], &["--force"]].concat()).await?;
    let (sites, _) = operator.expect(0, &["site", "list", "--tenant", "acme-corp"]).await?;
    ensure!(sites.iter().all(|site| site["leaf"] == "active"), "{sites:?}");
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    Ok(deployment)
}

#[tokio::test]
async fn the_key_of_a_role_goes_when_nobody_depends_on_it() -> anyhow::Result<()> {
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
