//! The life of a tenant, by the commands that operators use, beside a platform that runs.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context;
use bulkhead_testkit::deployment::{LIMIT, program};
use bulkhead_testkit::{RawClient, TestDeployment};
use bulkhead_tests::operator::Operator;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

async fn people_come_and_go(operator: &Operator<'_>, folder: &Path) -> anyhow::Result<()> {
    for name in ["alice", "bob"] {
        let to = folder.join(name).display().to_string();
        operator.expect(0, &["tenant", "user", "add", "north-bank", name, "--to", &to]).await?;
    }
    let profile = |name: &str| folder.join(name).join("profile.toml").display().to_string();
    let (alice, bob) = (profile("alice"), profile("bob"));
    operator.expect(0, &["results", "list", "--profile", &alice]).await?;
    let revoke = ["tenant", "user", "revoke", "north-bank", "alice"];
    let (preview, _) = operator.expect(0, &[&revoke[..], &["--dry-run"]].concat()).await?;
    anyhow::ensure!(preview[0]["fields"].to_string().contains("gate.people.alice"), "{preview:?}");
    operator.expect(0, &["results", "list", "--profile", &alice]).await?;
    operator.expect(0, &revoke).await?;
    operator.expect(7, &["results", "list", "--profile", &alice]).await?;
    // The control: somebody else of the same tenant is let in as before.
    operator.expect(0, &["results", "list", "--profile", &bob]).await?;
    for dry in [&[][..], &["--dry-run"]] {
        let nobody = [&["tenant", "user", "revoke", "north-bank", "nobody"][..], dry].concat();
        operator.expect(4, &nobody).await?;
    }
    Ok(())
}

/// Whoever `up` lets in is listed like all others, and can be put out.
async fn those_of_the_start_are_known(operator: &Operator<'_>) -> anyhow::Result<()> {
    let (people, _) = operator.expect(0, &["operator", "user", "list"]).await?;
    anyhow::ensure!(people.len() == 1 && people[0]["user"] == "admin", "{people:?}");
    let (people, _) = operator.expect(0, &["tenant", "user", "list", "xyz-inc"]).await?;
    anyhow::ensure!(people.len() == 1 && people[0]["role"] == "admin", "{people:?}");
    let profile = operator.home.join("profiles/xyz-inc-admin.toml").display().to_string();
    operator.expect(0, &["results", "list", "--profile", &profile]).await?;
    let mut tail = Command::new(program("bulkhead")?);
    tail.arg("--home").arg(operator.home).args(["--json", "results", "tail", "--profile", &profile]);
    let mut tail = tail.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let mut shown = BufReader::new(tail.stdout.take().context("what the tail prints")?).lines();
    let first = tokio::time::timeout(LIMIT, shown.next_line()).await.context("a tail shows nothing")??;
    anyhow::ensure!(first.is_some_and(|line| line.contains("xyz-inc")), "the tail ended");
    operator.expect(0, &["tenant", "user", "revoke", "xyz-inc", "admin"]).await?;
    let rest = async { while let Ok(Some(_)) = shown.next_line().await {} };
    tokio::time::timeout(LIMIT, rest).await.context("the tail of somebody who was put out goes on")?;
    let ended = tail.wait().await?;
    anyhow::ensure!(ended.code() == Some(7), "a tail of somebody who was put out ends with {ended:?}");
    operator.expect(7, &["results", "list", "--profile", &profile]).await.map(drop)
}

async fn a_plan_is_changed(operator: &Operator<'_>) -> anyhow::Result<()> {
    let (preview, _) = operator.expect(0, &["tenant", "plan", "north-bank", "pro", "--dry-run"]).await?;
    let fields = preview[0]["fields"].to_string();
    anyhow::ensure!(fields.contains("limits.conn"), "{fields}");
    let (rows, _) = operator.expect(0, &["tenant", "list", "--tenant", "north-bank"]).await?;
    anyhow::ensure!(rows[0]["plan"] == "free", "a dry run has changed it: {rows:?}");
    let (rows, _) = operator.expect(0, &["tenant", "plan", "north-bank", "pro"]).await?;
    anyhow::ensure!(rows[0]["plan"] == "pro", "{rows:?}");
    operator.expect(4, &["tenant", "plan", "north-bank", "gold"]).await.map(drop)
}

/// Suspending one tenant closes its leaf and stops its results; the other's go on. Resuming brings all of them.
async fn one_tenant_is_suspended(operator: &Operator<'_>, deployment: &TestDeployment) -> anyhow::Result<()> {
    let witness = deployment.witness().await?;
    let count = async |tenant: &str| -> anyhow::Result<i64> {
        let sql = "select count(*) from everywhere.result r join platform.tenant t using (tenant_id) where t.slug = $1";
        Ok(sqlx::query_scalar(sql).bind(tenant).fetch_one(&witness).await?)
    };
    let (preview, _) = operator.expect(0, &["tenant", "suspend", "acme-corp", "--dry-run"]).await?;
    anyhow::ensure!(preview[0]["closing"][0]["kind"] == "leaf", "{preview:?}");
    operator.expect(0, &["tenant", "suspend", "acme-corp"]).await?;
    let (still, others) = (count("acme-corp").await?, count("xyz-inc").await?);
    bulkhead_runtime::eventually("results of the other tenant", LIMIT, async || match count("xyz-inc").await {
        Ok(now) if now > others + 5 => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await?;
    let after = count("acme-corp").await?;
    // What the hub had taken in before is stored, and nothing else.
    anyhow::ensure!(after <= still + 10, "a suspended tenant went on: {still} and then {after}");
    operator.expect(0, &["tenant", "resume", "acme-corp"]).await?;
    bulkhead_runtime::eventually("results of the resumed tenant", LIMIT, async || match count("acme-corp").await {
        Ok(now) if now > after + 5 => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await?;
    Ok(())
}

async fn a_tenant_ends(operator: &Operator<'_>, folder: &Path) -> anyhow::Result<()> {
    let bob = folder.join("bob").join("profile.toml").display().to_string();
    let before = operator.state_of("north-bank").await?.context("it is there")?;
    let bundles = folder.join("bundles").display().to_string();
    let add = ["poller", "add", "north-bank/oslo/p1", "--to", &bundles];
    operator.expect(0, &add).await?;
    let batch_key = async || -> anyhow::Result<Value> {
        let (shown, _) = operator.expect(0, &["poller", "show", "north-bank/oslo/p1"]).await?;
        Ok(shown[0]["record"]["batch_key"].clone())
    };
    let old_key = batch_key().await?;
    operator.expect(0, &["tenant", "offboard", "north-bank"]).await?;
    operator.expect(7, &["results", "list", "--profile", &bob]).await?;
    operator.expect(4, &["tenant", "add", "north-bank"]).await?;
    operator.expect(0, &["tenant", "restore", "north-bank"]).await?;
    operator.expect(0, &["results", "list", "--profile", &bob]).await?;
    // Nobody is there to be asked, so nothing is destroyed.
    operator.expect(4, &["tenant", "offboard", "north-bank", "--purge", "--no-export"]).await?;
    let (ended, _) =
        operator.expect(0, &["tenant", "offboard", "north-bank", "--purge", "--no-export", "--yes"]).await?;
    let file = ended[0]["file"].as_str().context("evidence")?;
    let evidence = bulkhead_claims::decode_json(&std::fs::read_to_string(file)?)?;
    anyhow::ensure!(evidence.sub == before.1, "{evidence:?}");
    anyhow::ensure!(operator.state_of("north-bank").await?.is_none(), "it is still there");
    // The same slug again is somebody else.
    operator.expect(0, &["tenant", "add", "north-bank"]).await?;
    let again = operator.state_of("north-bank").await?.context("it is there again")?;
    anyhow::ensure!(again.1 != before.1, "the account of the old one");
    let keys = private_keys_of(operator.home, "north-bank")?;
    anyhow::ensure!(keys.is_empty(), "private keys of the old one are there: {keys:?}");
    operator.expect(0, &add).await?;
    anyhow::ensure!(batch_key().await? != old_key, "the poller's key of the old one");
    operator.expect(7, &["results", "list", "--profile", &bob]).await?;
    // The old one is still in the hub's memory, and the operator has signed why.
    operator.expect(0, &["doctor", "--area", "drift"]).await.map(drop)
}

/// What somebody else puts on the servers is named, is not overwritten unless that is asked for, and is mended.
async fn drift_is_named(operator: &Operator<'_>, deployment: &TestDeployment) -> anyhow::Result<()> {
    operator.expect(0, &["diff"]).await?;
    let account = deployment.account("xyz-inc")?;
    let path = operator.home.join("nsc/stores/bulkhead/accounts/xyz-inc/xyz-inc.jwt");
    let book = operator.home.join("nsc/books/xyz-inc.json");
    let ours = (std::fs::read(&path)?, std::fs::read(&book)?);
    deployment.change_account("xyz-inc", |body| body.limits.conn = 7).await?;
    // The store is as it was: only the servers have the change.
    std::fs::write(&path, &ours.0)?;
    std::fs::write(&book, &ours.1)?;
    let (differences, _) = operator.expect(2, &["diff"]).await?;
    anyhow::ensure!(differences.iter().any(|one| one.to_string().contains("limits.conn")), "{differences:?}");
    let (_, said) = operator.expect(3, &["push"]).await?;
    anyhow::ensure!(said.contains("changed by somebody else"), "{said}");
    operator.expect(2, &["diff"]).await?;
    let plan = if account.claims.nats.limits.conn == 20 { "pro" } else { "free" };
    // A change that is made from what was there is refused as well, and is in force when it is forced.
    for _ in 0..2 {
        operator.expect(1, &["tenant", "plan", "xyz-inc", plan]).await?;
    }
    operator.expect(0, &["push", "--force"]).await?;
    operator.expect(0, &["diff"]).await.map(drop)
}

#[tokio::test]
async fn a_tenant_is_added_changed_suspended_and_ended_beside_a_running_platform() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let operator = Operator { home: deployment.home() };
    let folder = tempfile::tempdir()?;
    operator.expect(0, &["tenant", "add", "north-bank", "--name", "North \"Bank\" {{name()}}"]).await?;
    operator.expect(4, &["tenant", "add", "north-bank"]).await?;
    operator.expect(0, &["tenant", "add", "north-bank", "--if-absent"]).await?;
    for bad in ["core", "a.b", "*", "{{name()}}", "../x", ""] {
        operator.expect(4, &["tenant", "add", bad]).await?;
    }
    people_come_and_go(&operator, folder.path()).await?;
    those_of_the_start_are_known(&operator).await?;
    operator.expect(0, &["validate"]).await?;
    operator.expect(0, &["expirations", "--within-days", "1"]).await?;
    let (ends, _) = operator.expect(2, &["expirations", "--within-days", "400"]).await?;
    anyhow::ensure!(
        ends.iter().any(|end| end["whose"] == "spiffe://serviceradar/tenant/north-bank/user/bob"),
        "{ends:?}"
    );
    anyhow::ensure!(
        !ends.iter().any(|end| end["whose"] == "spiffe://serviceradar/tenant/north-bank/user/alice"),
        "she was put out: {ends:?}"
    );
    a_plan_is_changed(&operator).await?;
    one_tenant_is_suspended(&operator, &deployment).await?;
    a_tenant_ends(&operator, folder.path()).await?;
    drift_is_named(&operator, &deployment).await?;
    deployment.stop().await
}

/// Without a gatekeeper nobody closes who is in: the command says so, and does it once they are back.
#[tokio::test]
async fn who_is_put_out_while_no_gatekeeper_runs_is_said_to_be_in_and_goes_when_one_does() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let admin = RawClient::connect(&deployment.hub(), &deployment.person_identity("xyz-inc-admin")?).await?;
    admin.flush().await?;
    for gatekeeper in &mut deployment.up.gatekeepers {
        gatekeeper.child.kill()?;
    }
    let revoke = ["tenant", "user", "revoke", "xyz-inc", "admin"];
    let (_, said) = Operator { home: deployment.home() }.expect(5, &revoke).await?;
    anyhow::ensure!(said.contains("still connected") && said.contains("admin on hub-1"), "{said}");
    admin.flush().await?;
    anyhow::ensure!(!admin.is_closed(), "somebody else has closed it");
    let notes = deployment.up.look_after()?;
    anyhow::ensure!(notes.len() == 2 && notes.iter().all(|note| note.contains("gatekeeper-")), "{notes:?}");
    admin.wait_closed(LIMIT).await.context("a gatekeeper that starts looks at who is in")?;
    Operator { home: deployment.home() }.expect(0, &revoke).await?;
    deployment.stop().await
}

/// What is taken away is written down whoever is away, and in force once they are back.
#[tokio::test]
async fn what_is_taken_away_while_hub_or_database_are_away_is_written_down() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let home = deployment.home().to_owned();
    let operator = Operator { home: &home };
    let bundles = home.join("bundles").display().to_string();
    operator.expect(0, &["tenant", "plan", "xyz-inc", "enterprise"]).await?;
    operator.expect(0, &["poller", "add", "xyz-inc/rome/p1", "--to", &bundles]).await?;
    operator.expect(0, &["site", "add", "xyz-inc/cuzco"]).await?;
    deployment.up.postgres.child.kill()?;
    let admin = RawClient::connect(&deployment.hub(), &deployment.person_identity("acme-corp-admin")?).await?;
    operator.expect(0, &["tenant", "user", "revoke", "acme-corp", "admin"]).await?;
    admin.wait_closed(LIMIT).await.context("the database was needed to put a person out")?;
    let (_, said) = operator.expect(5, &["tenant", "suspend", "acme-corp"]).await?;
    anyhow::ensure!(said.contains("written down here"), "{said}");
    operator.expect(5, &["push"]).await?;
    deployment.up.postgres.restart().await?;
    operator.expect(0, &["push"]).await?;
    expect_nothing_open(&operator).await?;
    let state = operator.state_of("acme-corp").await?.context("it is there")?.0;
    anyhow::ensure!(state == "suspended", "{state}");

    deployment.up.hub_servers[0].child.kill()?;
    let lines = [
        &["tenant", "user", "revoke", "xyz-inc", "admin"][..],
        &["poller", "revoke", "xyz-inc/lima/p1"],
        &["poller", "remove", "xyz-inc/rome/p1"],
        &["site", "remove", "xyz-inc/cuzco"],
    ];
    for line in lines {
        let (_, said) = operator.expect(5, line).await?;
        anyhow::ensure!(said.contains("written down here") && said.contains("the hub cannot be reached"), "{said}");
    }
    let (people, said) = operator.expect(0, &["tenant", "user", "list", "xyz-inc"]).await?;
    anyhow::ensure!(people[0]["state"] == "revoked", "{people:?}");
    anyhow::ensure!(said.contains("revoke-person of xyz-inc/admin was begun and is not done"), "{said}");
    let (sites, _) = operator.expect(0, &["site", "list", "--tenant", "xyz-inc"]).await?;
    anyhow::ensure!(
        sites.len() == 2 && sites.iter().all(|site| site["site"] != "cuzco"),
        "it is there still: {sites:?}"
    );
    deployment.up.restart_hub_server(1)?;
    // Completing the removal would take the new one away.
    let (_, said) = operator.expect(4, &["site", "add", "xyz-inc/cuzco"]).await?;
    anyhow::ensure!(said.contains("has begun and is not done"), "{said}");
    operator.expect(0, &["push"]).await?;
    expect_nothing_open(&operator).await?;
    let (sites, _) = operator.expect(0, &["site", "list", "--tenant", "xyz-inc"]).await?;
    let pollers: Vec<_> = sites.iter().map(|site| (site["site"].clone(), site["pollers"].clone())).collect();
    anyhow::ensure!(sites.len() == 2, "{pollers:?}");
    let (shown, _) = operator.expect(0, &["poller", "show", "xyz-inc/lima/p1"]).await?;
    anyhow::ensure!(shown[0]["record"]["standing"] == "revoked", "{shown:?}");
    operator.expect(4, &["poller", "show", "xyz-inc/rome/p1"]).await?;
    let profile = home.join("profiles/xyz-inc-admin.toml").display().to_string();
    operator.expect(7, &["results", "list", "--profile", &profile]).await.map(drop)
}

/// Every command names acts that were begun and are not done.
async fn expect_nothing_open(operator: &Operator<'_>) -> anyhow::Result<()> {
    let (_, said) = operator.expect(0, &["site", "list"]).await?;
    anyhow::ensure!(said.is_empty(), "{said}");
    Ok(())
}

/// Killed at any step, an onboarding is completed by the same command, or undone without a trace.
#[tokio::test]
async fn an_onboarding_that_is_killed_is_completed_or_undone() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let home = deployment.home();
    let operator = Operator { home };
    for (number, step) in ["begun", "account", "rows", "in-force"].iter().enumerate() {
        for way in ["complete", "undo"] {
            let slug = format!("killed-{number}-{way}");
            kill_at(home, &slug, step).await?;
            match way {
                "complete" => {
                    operator.expect(0, &["tenant", "add", &slug, "--if-absent"]).await?;
                    let state = operator.state_of(&slug).await?.context("it is there")?;
                    anyhow::ensure!(state.0 == "active", "{slug} is {}", state.0);
                }
                _undo => {
                    // It may have been done before it was killed: then there is nothing to undo.
                    let output = operator.run(&["tenant", "add", &slug, "--undo"]).await?;
                    let is_done = operator.state_of(&slug).await?.is_some_and(|(state, _)| state == "active");
                    anyhow::ensure!(output.status.code() == Some(if is_done { 4 } else { 0 }), "{slug}: {output:?}");
                    let traces = traces_of(home, &slug)?;
                    anyhow::ensure!(is_done || traces.is_empty(), "{slug} has left {traces:?}");
                }
            }
        }
    }
    anyhow::ensure!(std::fs::read_dir(home.join("journal/open"))?.next().is_none(), "an act is still open");
    deployment.stop().await
}

/// What a purge leaves of private keys: sites', people's, and those of intermediates out of use.
fn private_keys_of(home: &Path, slug: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open = ["sites", "sites-issued", "profiles", "pki/retired"].map(|name| home.join(name)).to_vec();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry?.path();
            let is_key = path.extension().is_some_and(|end| end == "key" || end == "nk" || end == "creds");
            if path.is_dir() {
                open.push(path);
            } else if is_key && path.display().to_string().contains(slug) {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(found)
}

/// Killed at any step, an offboarding goes on as a purge or is taken back, and a restoration that is killed goes on.
#[tokio::test]
async fn an_end_that_is_killed_is_completed_or_taken_back() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let (home, operator) = (deployment.home(), Operator { home: deployment.home() });
    for step in ["begun", "closed"] {
        for way in ["purge", "restore"] {
            let slug = format!("ended-{step}-{way}");
            operator.expect(0, &["tenant", "add", &slug]).await?;
            kill_command(home, &["tenant", "offboard", &slug], ("offboard-tenant", &slug), step).await?;
            if way == "purge" {
                operator.expect(0, &["tenant", "offboard", &slug, "--purge", "--no-export", "--yes"]).await?;
            } else {
                kill_command(home, &["tenant", "restore", &slug], ("restore-tenant", &slug), "begun").await?;
                let output = operator.run(&["tenant", "restore", &slug]).await?;
                // Killed too late it is done, and killed before it was begun it never was offboarded: it goes on.
                if !output.status.success() {
                    operator.expect(0, &["tenant", "resume", &slug]).await?;
                }
                let state = operator.state_of(&slug).await?.context("it is there")?;
                anyhow::ensure!(state.0 == "active", "{slug} is {}: {output:?}", state.0);
            }
            operator.expect(0, &["diff"]).await?;
        }
    }
    let open: Vec<_> = std::fs::read_dir(home.join("journal/open"))?.flatten().map(|entry| entry.file_name()).collect();
    anyhow::ensure!(open.is_empty(), "still open: {open:?}");
    deployment.stop().await
}

/// Starts an onboarding and kills it as soon as the journal has the step.
async fn kill_at(home: &Path, slug: &str, step: &str) -> anyhow::Result<()> {
    kill_command(home, &["tenant", "add", slug, "--defer-live"], ("add-tenant", slug), step).await
}

/// Starts a command and kills it as soon as the journal of the act has the step.
async fn kill_command(home: &Path, line: &[&str], (act, slug): (&str, &str), step: &str) -> anyhow::Result<()> {
    let mut command = Command::new(program("bulkhead")?);
    command.arg("--home").arg(home).args(line);
    let mut child = command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn()?;
    let journal = home.join("journal/open").join(format!("{act}.{slug}.jsonl"));
    let wanted = format!("\"step\":\"{step}\"");
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(1));
    loop {
        looks.tick().await;
        let is_there = std::fs::read_to_string(&journal).is_ok_and(|text| text.contains(&wanted));
        if is_there || child.try_wait()?.is_some() {
            break;
        }
    }
    child.kill().await.context("kill an onboarding")
}

/// Every file below the home that is named after a tenant, but for what is kept on purpose.
fn traces_of(home: &Path, slug: &str) -> anyhow::Result<Vec<String>> {
    let mut traces = Vec::new();
    let mut open =
        ["nsc/stores", "nsc/books", "tenants", "journal/open", "intake", "pushed"].map(|name| home.join(name)).to_vec();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(slug)) {
                traces.push(path.display().to_string());
            } else if path.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(traces)
}

/// The next start of the platform changes nothing about who was suspended or ended, and the doctor takes it as it is.
#[tokio::test]
async fn a_start_leaves_the_suspended_and_the_ended_as_they_are() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let operator = Operator { home: deployment.home() };
    operator.expect(0, &["tenant", "suspend", "acme-corp"]).await?;
    operator.expect(0, &["tenant", "offboard", "xyz-inc", "--purge", "--no-export", "--yes"]).await?;
    let deployment = deployment.pause().await?.start().await?;
    let operator = Operator { home: deployment.home() };
    anyhow::ensure!(deployment.up.checks == 0, "{} checks are waited for in vain", deployment.up.checks);
    anyhow::ensure!(operator.state_of("xyz-inc").await?.is_none(), "who was purged is there again");
    let (state, _) = operator.state_of("acme-corp").await?.context("a suspended tenant")?;
    anyhow::ensure!(state == "suspended", "{state}");
    for area in ["links", "streams", "lag", "drift"] {
        operator.expect(0, &["doctor", "--area", area]).await?;
    }
    operator.expect(0, &["tenant", "resume", "acme-corp"]).await?;
    let witness = deployment.witness().await?;
    let before = deployment.stored(&witness, "acme-corp").await?;
    let went_on = async || match deployment.stored(&witness, "acme-corp").await {
        Ok(now) if now > before + 5 => Ok(()),
        seen => Err(format!("{seen:?}")),
    };
    bulkhead_runtime::eventually("results of the resumed tenant", LIMIT, went_on).await?;
    deployment.stop().await
}

/// A poller that `up` runs has one key, whoever asks for it: a rotation outlives the next start, and so does a removal.
#[tokio::test]
async fn what_an_operator_changes_of_a_running_site_outlives_the_next_start() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&["acme-corp pro oslo/p1", "xyz-inc pro lima/p1 lima/p2"], &[]).await?;
    let operator = Operator { home: deployment.home() };
    let folder = tempfile::tempdir()?;
    let to = folder.path().display().to_string();
    let key = async |operator: &Operator<'_>| -> anyhow::Result<Value> {
        let (shown, _) = operator.expect(0, &["poller", "show", "acme-corp/oslo/p1"]).await?;
        Ok(shown[0]["record"]["batch_key"].clone())
    };
    let first = key(&operator).await?;
    operator.expect(0, &["poller", "add", "acme-corp/oslo/p1", "--to", &to]).await?;
    anyhow::ensure!(key(&operator).await? == first, "a bundle has changed the key of a poller that runs");
    operator.expect(0, &["poller", "rotate", "acme-corp/oslo/p1", "--to", &to]).await?;
    let second = key(&operator).await?;
    anyhow::ensure!(second != first, "it was not rotated");
    operator.expect(0, &["poller", "revoke", "xyz-inc/lima/p2"]).await?;
    operator.expect(4, &["poller", "rotate", "xyz-inc/lima/p2", "--to", &to]).await?;
    operator.expect(0, &["tenant", "user", "revoke", "acme-corp", "admin"]).await?;

    let deployment = deployment.pause().await?.start().await?;
    let operator = Operator { home: deployment.home() };
    anyhow::ensure!(key(&operator).await? == second, "the key that was rotated out is back");
    let pollers: Vec<&str> = deployment.up.pollers.iter().map(|(_, poller, _)| poller.as_str()).collect();
    anyhow::ensure!(pollers == ["p1", "p1"], "who was revoked was started: {pollers:?}");
    let (people, _) = operator.expect(0, &["tenant", "user", "list", "acme-corp"]).await?;
    anyhow::ensure!(people[0]["state"] == "revoked", "{people:?}");
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;

    operator.expect(0, &["site", "remove", "xyz-inc/lima", "--with-pollers"]).await?;
    // Twice is once.
    for _ in 0..2 {
        operator.expect(0, &["tenant", "add", "north-bank", "--if-absent"]).await?;
    }
    for _ in 0..2 {
        operator.expect(0, &["tenant", "offboard", "north-bank"]).await?;
    }
    operator.expect(0, &["diff"]).await?;
    // Another tool's change of one tenant keeps nobody else from starting, and is not overwritten.
    let path = operator.home.join("nsc/stores/bulkhead/accounts/xyz-inc/xyz-inc.jwt");
    let book = operator.home.join("nsc/books/xyz-inc.json");
    let ours = std::fs::read(&book)?;
    deployment.change_account("xyz-inc", |body| body.limits.conn = 7).await?;
    std::fs::write(&book, ours)?;
    let theirs = std::fs::read(&path)?;
    let deployment = deployment.pause().await?.start().await?;
    let notes = deployment.up.notes.join("; ");
    anyhow::ensure!(
        notes.contains("nsc restore xyz-inc") && notes.contains("site xyz-inc/lima was removed"),
        "{notes}"
    );
    anyhow::ensure!(std::fs::read(&path)? == theirs, "another tool's change is overwritten");
    // Its own people go on as before.
    let operator = Operator { home: deployment.home() };
    let profile = operator.home.join("profiles/xyz-inc-admin.toml").display().to_string();
    operator.expect(0, &["results", "list", "--profile", &profile]).await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    deployment.stop().await
}
