//! Results of two tenants flow through a hub whose servers die one after the other; no slot is missing afterwards.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::hub_state::hub_state;
use bulkhead_bus::StreamName;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{LIMIT, TestDeployment};
use bulkhead_tests::slots::Slots;
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::Mutex;

/// What an election (4 to 9 s) and a puller that hears nothing (10 s) may cost on a busy machine; 6 s were measured.
const PAUSE_MOST: Duration = Duration::from_secs(30);
const SILENT: &str = "it does not answer";
/// Three sites, so that each server of the hub is somebody's first choice.
const TENANTS: [&str; 2] = ["acme-corp enterprise oslo/p1 bergen/p1", "xyz-inc free lima/p1"];

/// The command line shows both tenants' results.
async fn check_shown(deployment: &TestDeployment) -> anyhow::Result<()> {
    for profile in ["acme-corp-admin", "xyz-inc-admin"] {
        let file = deployment.up.layout.profile(profile);
        let rows = deployment.rows(&["results", "list", "--profile", file.to_str().context("path")?]).await?;
        let tenant = profile.trim_end_matches("-admin");
        anyhow::ensure!(!rows.is_empty() && rows.iter().all(|row| row["tenant"] == tenant), "{tenant}: {rows:?}");
    }
    let rows = deployment.rows(&["status"]).await?;
    anyhow::ensure!(rows.len() == 2 && rows.iter().all(|row| row["dead_letters"] == 0), "{rows:?}");
    Ok(())
}

/// How long nothing was stored, looking until every check has a new result.
async fn longest_pause(deployment: &TestDeployment, witness: &PgPool) -> anyhow::Result<Duration> {
    let flowing = deployment.wait_for_results(witness);
    tokio::pin!(flowing);
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    let (mut seen, mut since, mut longest) = (0_i64, Instant::now(), Duration::ZERO);
    loop {
        tokio::select! {
            flows = &mut flowing => return flows.map(|()| longest.max(since.elapsed())),
            _ = looks.tick() => {
                let stored = sqlx::query_scalar("select count(*) from everywhere.result").fetch_one(witness).await?;
                if stored != seen {
                    longest = longest.max(since.elapsed());
                    (seen, since) = (stored, Instant::now());
                }
            }
        }
    }
}

/// What `bulkhead hub status` ends with, and its rows.
async fn hub_status(deployment: &TestDeployment) -> anyhow::Result<(i32, Vec<Value>)> {
    let output = deployment.bulkhead(&["hub", "status", "--json"]).await?;
    let text = String::from_utf8(output.stdout)?;
    let rows = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("read rows")?;
    Ok((output.status.code().context("exit code")?, rows))
}

/// `bulkhead hub status` shows that these servers miss something, and no others: soon, because where the dead one led
/// something the others first have to choose again.
async fn expect_behind(deployment: &TestDeployment, numbers: &[usize]) -> anyhow::Result<()> {
    let expected: Vec<String> = numbers.iter().map(|&number| HubSize::server_name(number)).collect();
    let shown = eventually("the servers that miss something", LIMIT, || async {
        let (code, rows) = hub_status(deployment).await.map_err(|error| format!("{error:#}"))?;
        let is_behind = |row: &&Value| !row["missing"].is_null();
        let behind = rows.iter().filter(is_behind).filter_map(|row| row["server"].as_str());
        let expected_code = [0, 2, 3, 3][expected.len()];
        if rows.len() == 3 && behind.eq(&expected) && code == expected_code { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    shown.await.with_context(|| format!("expected {expected:?}"))
}

/// Kills a server while results flow, and starts it again once they flow without it.
async fn kill_and_go_on(deployment: &mut TestDeployment, witness: &PgPool, number: usize) -> anyhow::Result<Duration> {
    deployment.hub_server(number)?.child.kill()?;
    let pause = longest_pause(deployment, witness).await?;
    check_shown(deployment).await?;
    expect_behind(deployment, &[number]).await?;
    let waited = deployment.bulkhead(&["hub", "wait", "--limit-s", "3"]).await?;
    assert_eq!(waited.status.code(), Some(5), "a dead server is taken for a whole one");
    // What `up` does once a second.
    let notes = deployment.up.look_after()?;
    assert!(matches!(notes.as_slice(), [note] if note.contains("starting it again")), "{notes:?}");
    deployment.rows(&["hub", "wait", "--limit-s", "60"]).await?;
    Ok(pause)
}

/// A server hangs with its connections open: leaves, services and the other servers leave it when it answers no ping.
async fn hang_and_go_on(deployment: &mut TestDeployment, witness: &PgPool) -> anyhow::Result<()> {
    let leader = deployment.stream_leader(StreamName::Results).await?;
    deployment.hub_server(leader)?.child.pause()?;
    deployment.wait_for_results(witness).await?;
    deployment.hub_server(leader)?.child.resume()?;
    deployment.up.wait_until_replicas_current().await.map(drop).context("wait for the server that hung")
}

async fn missing(deployment: &TestDeployment, number: usize) -> Result<Option<String>, String> {
    let states = hub_state(&deployment.up.system, HubSize::Three).await;
    let state = states.into_iter().find(|state| state.server == HubSize::server_name(number));
    Ok(state.ok_or("no such server")?.missing)
}

/// The doctor's level for the copies of each of the hub's streams is soon this one.
async fn doctor_calls_copies(deployment: &TestDeployment, level: &str) -> anyhow::Result<()> {
    let called = eventually("the doctor's word on the copies", LIMIT, || async {
        let output = deployment.bulkhead(&["doctor", "--json", "--area", "streams"]).await;
        let text = String::from_utf8_lossy(&output.map_err(|error| format!("{error:#}"))?.stdout).into_owned();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_of_hub = |line: &Value| line["subject"].as_str().is_some_and(|subject| subject.starts_with("hub "));
        let copies: Vec<_> = lines.filter(|line| line["look"] == "stream-copies" && is_of_hub(line)).collect();
        let is_as_expected = copies.len() == 2 && copies.iter().all(|line| line["level"] == level);
        if is_as_expected { Ok(()) } else { Err(format!("{copies:?}")) }
    });
    called.await.with_context(|| format!("expected {level}"))
}

/// What a server said it misses, from its start until it missed nothing.
async fn said_until_whole(deployment: &TestDeployment, number: usize) -> anyhow::Result<BTreeSet<String>> {
    let said = Mutex::new(BTreeSet::new());
    let whole = eventually("the server having everything", LIMIT, || async {
        let Some(wrong) = missing(deployment, number).await? else { return Ok(()) };
        said.lock().await.insert(wrong.clone());
        Err(wrong)
    });
    whole.await?;
    Ok(said.into_inner())
}

/// A server loses its disk and comes back under its old name; it is no longer in the way of another's death.
async fn replace(deployment: &mut TestDeployment, witness: &PgPool, number: usize) -> anyhow::Result<()> {
    deployment.lose_hub_server(number)?;
    deployment.wait_for_results(witness).await?;
    doctor_calls_copies(deployment, "warn").await?;
    deployment.up.restart_hub_server(number)?;
    let said = said_until_whole(deployment, number).await?;
    assert!(said.iter().any(|said| said != SILENT), "an empty server is taken for a whole one: {said:?}");
    expect_behind(deployment, &[]).await?;
    doctor_calls_copies(deployment, "ok").await?;
    let other = number % 3 + 1;
    kill_and_go_on(deployment, witness, other).await?;
    Ok(())
}

#[tokio::test]
async fn results_go_on_when_a_server_of_the_hub_dies_and_when_one_is_replaced() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start_cluster(&TENANTS).await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    check_shown(&deployment).await?;
    let spread = deployment.leaves_by_server().await?;
    assert!(spread.len() == 3 && spread.values().all(|&leaves| leaves == 1), "{spread:?}");

    let leader = deployment.stream_leader(StreamName::Results).await?;
    let pause = kill_and_go_on(&mut deployment, &witness, leader).await?;
    assert!(pause < PAUSE_MOST, "nothing was stored for {pause:?}");
    hang_and_go_on(&mut deployment, &witness).await?;
    let follower = deployment.stream_leader(StreamName::Results).await? % 3 + 1;
    replace(&mut deployment, &witness, follower).await?;
    let period = (0, now_ms());
    let slots = Slots { period_ms: period, ..Slots::ALL };
    slots.wait_until_gapless(&witness).await?;
    // Control: a slot that is taken away is found missing.
    let middle = "delete from shared.result where slot =
                      (select slot from shared.result order by slot offset (select count(*) / 2 from shared.result) limit 1)";
    sqlx::query(middle).execute(&witness).await?;
    assert!(!slots.gaps(&witness).await?.is_empty(), "a missing slot goes unseen");
    deployment.stop().await
}
