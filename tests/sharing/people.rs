//! Checks as people work with them: written, judged, run, held back from a poller, with secrets, each tenant its own.

use anyhow::Context;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::LIMIT;

use crate::world::World;

fn is_text(value: &serde_json::Value, field: &str, text: &str) -> bool {
    value[field] == text
}

#[tokio::test]
async fn people_write_checks_and_everything_that_is_wrong_is_said_at_once() -> anyhow::Result<()> {
    let world = World::start().await?;
    let operator = world.operator();
    let port = world.target.address.port();
    let target = format!("127.0.0.1:{port}");
    let profile = |name: &str| world.deployment.home().join(format!("profiles/{name}.toml")).display().to_string();
    let (acme, xyz) = (profile("acme-corp-admin"), profile("xyz-inc-admin"));

    // A tenant's own person needs to name no tenant.
    let line = ["check", "add", "c1", "--profile", &acme, "--type", "tcp", "--target", &target, "--interval", "1s"];
    let rows = world.rows(&[&line[..], &["--timeout", "500ms", "--site", "oslo"]].concat()).await?;
    anyhow::ensure!(is_text(&rows[0], "act", "added") && is_text(&rows[0], "check", "c1"), "{rows:?}");
    world.wait_for_slots(1, &["oslo"], world.began_ms).await?;
    let shown = world.rows(&["check", "show", "c1", "--profile", &acme]).await?;
    anyhow::ensure!(shown[0]["assignments"][0]["site"] == "oslo", "{shown:?}");
    let by = "select changed_by from tenant_acme_corp.config_change where table_name = 'check_definition'";
    let by: Vec<String> = sqlx::query_scalar(by).fetch_all(&world.witness).await?;
    anyhow::ensure!(by.iter().all(|who| who.contains("admin")), "{by:?}");

    // The other tenant sees nothing of it, and cannot name the first one.
    anyhow::ensure!(world.rows(&["check", "list", "--profile", &xyz]).await?.is_empty());
    let (_, said) = operator.expect(7, &["check", "remove", "c1", "--profile", &xyz, "--tenant", "acme-corp"]).await?;
    anyhow::ensure!(said.contains("acme-corp"), "{said}");

    // Whoever may only look is told so, and not of an outage.
    let vic = world.deployment.home().join("vic");
    let folder = vic.display().to_string();
    world.rows(&["tenant", "user", "add", "acme-corp", "vic", "--role", "viewer", "--to", &folder]).await?;
    let vic = vic.join("profile.toml").display().to_string();
    world.rows(&["check", "list", "--profile", &vic]).await?;
    let (_, said) = operator.expect(7, &["check", "remove", "c1", "--profile", &vic]).await?;
    anyhow::ensure!(said.contains("may not ask"), "{said}");

    // Everything that is wrong, in one answer, and nothing is kept of it.
    let bad = ["check", "add", "Bad.Name", "--profile", &acme, "--type", "http", "--target", "nonsense"];
    let more = ["--interval", "0s", "--timeout", "soon", "--retries", "99", "--site", "NO", "--vantages", "0"];
    let options = ["--option", "expect_status=[99]", "--option", "tagret=x"];
    let (_, said) = operator.expect(4, &[&bad[..], &more[..], &options[..]].concat()).await?;
    for part in ["Bad.Name", "nonsense", "interval", "timeout", "retries", "NO", "vantages", "99", "tagret"] {
        anyhow::ensure!(said.contains(part), "{part} is not named in {said}");
    }

    // The plan's numbers are in the message.
    let line = ["check", "add", "fast", "--profile", &xyz, "--type", "tcp", "--target", &target];
    let (_, said) = operator.expect(7, &[&line[..], &["--interval", "1s", "--site", "lima"]].concat()).await?;
    anyhow::ensure!(said.contains("30"), "{said}");

    // A rehearsal changes nothing; a check that is paused is not run, and one that is edited goes on.
    world.rows(&["check", "remove", "c1", "--profile", &acme, "--dry-run"]).await?;
    assert_eq!(world.rows(&["check", "list", "--profile", &acme]).await?.len(), 1);
    world.rows(&["check", "pause", "c1", "--profile", &acme]).await?;
    eventually("nobody runs it", LIMIT, || async {
        let owners = world.owners("oslo").await.map_err(|error| format!("{error:#}"))?;
        if owners.is_empty() { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await?;
    world.rows(&["check", "resume", "c1", "--profile", &acme]).await?;
    world.rows(&["check", "edit", "c1", "--profile", &acme, "--interval", "2s"]).await?;
    world.wait_for_slots(1, &["oslo"], now_ms()).await?;
    world.deployment.stop().await
}

#[tokio::test]
async fn a_check_is_run_on_demand_and_a_poller_is_held() -> anyhow::Result<()> {
    let world = World::start().await?;
    let target = world.target.address.to_string();
    world.add_checks(6, &["oslo", "bergen"]).await?;
    let rows = world.rows(&["check", "run", "c0", "--tenant", "acme-corp"]).await?;
    anyhow::ensure!(rows.len() == 2 && rows.iter().all(|row| row["outcome"] == "ok"), "{rows:?}");
    let line = ["check", "run", "--tenant", "acme-corp", "--type", "tcp", "--target", &target, "--site", "oslo"];
    let rows = world.rows(&line).await?;
    anyhow::ensure!(rows.len() == 1 && rows[0]["site"] == "oslo" && rows[0]["outcome"] == "ok", "{rows:?}");
    // What denies itself by the site's own rules ends in error, whoever asks.
    let metadata = [
        "check",
        "run",
        "--tenant",
        "acme-corp",
        "--type",
        "http",
        "--target",
        "http://169.254.169.254/",
        "--site",
        "oslo",
    ];
    let (rows, _) = world.operator().expect(2, &metadata).await?;
    anyhow::ensure!(rows[0]["outcome"] == "error" && rows[0]["reason"] == "not_permitted", "{rows:?}");

    world.rows(&["poller", "hold", "acme-corp/oslo/p1", "--reason", "being mended"]).await?;
    eventually("the other one has all of its checks", LIMIT, || async {
        let owners = world.owners("oslo").await.map_err(|error| format!("{error:#}"))?;
        if owners.len() == 1 && owners.contains_key("p2") { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await?;
    let states = world.rows(&["poller", "status", "--tenant", "acme-corp", "--name", "p1", "--site", "oslo"]).await?;
    let why = states[0]["because"].as_str().unwrap_or_default();
    anyhow::ensure!(states[0]["state"] == "quarantined" && why.contains("being mended"), "{states:?}");
    world.rows(&["poller", "release", "acme-corp/oslo/p1"]).await?;
    world.wait_for_states("acme-corp", &[("oslo", "p1")], "ready").await?;
    let events = world.rows(&["poller", "events", "--tenant", "acme-corp", "--site", "oslo", "--name", "p1"]).await?;
    let has = |event: &str| events.iter().any(|row| row["event"] == event);
    anyhow::ensure!(has("joined") && has("quarantined") && has("released"), "{events:?}");

    // A secret is opened by pollers, and by nobody on the way.
    let file = world.deployment.home().join("token.txt");
    std::fs::write(&file, "s3cret-of-acme\n").context("write the secret")?;
    let from = file.display().to_string();
    world.rows(&["secret", "set", "api-token", "--tenant", "acme-corp", "--from", &from]).await?;
    let kept: Vec<String> =
        sqlx::query_scalar("select sealed from tenant_acme_corp.sealed_secret").fetch_all(&world.witness).await?;
    anyhow::ensure!(kept.len() == 3 && kept.iter().all(|sealed| !sealed.contains("s3cret")), "{kept:?}");
    world.deployment.stop().await
}
