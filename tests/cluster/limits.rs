//! Limits of accounts hold across the three servers: who is refused by one is not let in by another, and what is asked of
//! all three at once is counted once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::StreamName;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{ConnectError, Identity, RawClient, TestDeployment};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::asking::{Everywhere, error_code};
use crate::doors::only_a_server_of_the_hub_joins_it;

const TENANTS: [&str; 2] = ["acme-corp enterprise oslo/p1", "xyz-inc free lima/p1"];
const ACME: &str = "acme-corp";
/// Connections that acme-corp may have in this test.
const CONNECTIONS: usize = 6;
const FULL: &str = "maximum account active connections exceeded";
/// What JetStream says where there is no room on disk, no room for a stream, and no room for a message of a subject.
const NO_DISK: u64 = 10_047;
const NO_STREAM: u64 = 10_027;
const NO_QUOTA: u64 = 10_077;
/// A server that was away asks another one for its accounts every ten seconds.
const FULL_MOST: Duration = Duration::from_secs(30);
const NEWS_MOST: Duration = Duration::from_secs(20);

fn count_codes(answers: &[Value]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(error_code(answer)).or_default() += 1;
    }
    counts
}

/// Questions for streams of `max_bytes` each, with three copies.
fn streams(head: &str, count: usize, max_bytes: u64) -> Vec<(String, Vec<u8>)> {
    let question = |index: usize| {
        let name = format!("{head}{index}");
        let config = json!({"name": name, "subjects": [format!("test.{name}")], "storage": "file",
            "retention": "limits", "discard": "old", "max_bytes": max_bytes, "num_replicas": 3});
        (format!("$JS.API.STREAM.CREATE.{name}"), config.to_string().into_bytes())
    };
    (0..count).map(question).collect()
}

/// Each copy of a stream counts, in whichever order three servers are asked at once.
async fn core_gets_no_more_streams_than_its_account_has_room_for(core: &Everywhere) -> anyhow::Result<()> {
    let answers = core.ask_all(&streams("ROOM", 3, 20 << 20)).await?;
    assert_eq!(count_codes(&answers), BTreeMap::from([(0, 1), (NO_DISK, 2)]), "{answers:?}");
    // Eight streams are allowed: two and two buckets are the hub's own, and one was just made.
    let answers = core.ask_all(&streams("SMALL", 9, 64 << 10)).await?;
    assert_eq!(count_codes(&answers), BTreeMap::from([(0, 3), (NO_STREAM, 6)]), "{answers:?}");
    Ok(())
}

/// One subject's quota is the same whichever server its batches come through.
async fn a_subject_gets_no_more_batches_than_its_quota(core: &Everywhere, acme_key: &str) -> anyhow::Result<()> {
    let quota = StreamName::Results.spec().max_messages_per_subject.context("RESULTS has a quota")?;
    let quota = usize::try_from(quota)?;
    for site in ["full", "beside"] {
        let subject = format!("t.{acme_key}.up.{site}.fwd.results");
        let batches: Vec<(String, Vec<u8>)> = (0..quota * 3).map(|_| (subject.clone(), b"a batch".to_vec())).collect();
        let answers = core.ask_all(&batches).await?;
        assert_eq!(count_codes(&answers), BTreeMap::from([(0, quota), (NO_QUOTA, quota * 2)]), "{site}");
    }
    Ok(())
}

async fn knock(deployment: &TestDeployment, server: usize, identity: &Identity) -> Result<RawClient, ConnectError> {
    RawClient::connect(&deployment.hub_servers()[server % 3], identity).await
}

fn is_full(outcome: &Result<RawClient, ConnectError>) -> bool {
    matches!(outcome, Err(ConnectError::Refused(text)) if text.contains(FULL))
}

/// Everybody who gets in stays; as many as are allowed are inside in the end, and nobody more is let in anywhere.
///
/// Servers tell each other how many they have let in, so for a moment there may be one too many; then each of them puts
/// out its newest, which may be some too many, and those come back.
async fn fill(deployment: &TestDeployment, person: &Identity, first: Vec<RawClient>) -> anyhow::Result<()> {
    let inside = Mutex::new(first);
    let filled = eventually("as many inside as are allowed and everybody else refused", FULL_MOST, || async {
        let mut inside = inside.lock().await;
        let mut refused = 0;
        for server in 0..3 {
            let outcome = knock(deployment, server, person).await;
            refused += usize::from(is_full(&outcome));
            inside.extend(outcome.ok());
        }
        inside.retain(|client| !client.is_closed());
        let seen = (inside.len(), refused);
        if seen == (CONNECTIONS, 3) { Ok(()) } else { Err(format!("inside and refused: {seen:?}")) }
    });
    filled.await.context("fill the account")
}

/// Knocks at all doors at once.
async fn knock_at_once(deployment: &TestDeployment, person: &Identity) -> Vec<RawClient> {
    let mut knocks = JoinSet::new();
    for endpoint in deployment.hub_servers().into_iter().cycle().take(CONNECTIONS * 5) {
        let person = person.clone();
        knocks.spawn(async move { RawClient::connect(&endpoint, &person).await });
    }
    knocks.join_all().await.into_iter().filter_map(Result::ok).collect()
}

async fn connections_count_over_all_servers(deployment: &TestDeployment) -> anyhow::Result<()> {
    let person = deployment.person_identity("acme-corp-admin")?;
    // Control: with its plan's limit all of them may be inside.
    assert_eq!(knock_at_once(deployment, &person).await.len(), CONNECTIONS * 5);
    deployment.change_account(ACME, |body| body.limits.conn = i64::try_from(CONNECTIONS).unwrap_or(0)).await?;
    fill(deployment, &person, vec![]).await.context("one after the other")?;
    let inside = knock_at_once(deployment, &person).await;
    fill(deployment, &person, inside).await.context("all at once")
}

/// A key that is taken away while a server is down is worth nothing there soon after it is back.
async fn a_server_that_was_away_hears_what_it_has_missed(deployment: &mut TestDeployment) -> anyhow::Result<()> {
    let before = deployment.account("xyz-inc")?.claims.nats.signing_keys;
    let known = deployment.unrestricted_identity("xyz-inc").await?;
    for server in 0..3 {
        knock(deployment, server, &known).await.with_context(|| format!("a new key at server {server}"))?;
    }
    deployment.hub_server(3)?.child.kill()?;
    deployment.change_account_on(2, "xyz-inc", |body| body.signing_keys = before).await?;
    for server in 0..2 {
        assert!(knock(deployment, server, &known).await.is_err(), "a removed key opens server {server}");
    }
    deployment.up.restart_hub_server(3)?;
    let refused = eventually("the server that was away refusing the removed key", NEWS_MOST, || {
        let outcome = knock(deployment, 2, &known);
        async move {
            match outcome.await {
                Err(ConnectError::Refused(_)) => Ok(()),
                Ok(_) => Err("it is let in".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        }
    });
    refused.await.context("wait for a server to hear the news")
}

#[tokio::test]
async fn limits_of_accounts_and_the_doors_of_the_hub_hold_on_all_three_servers() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start_cluster(&TENANTS).await?;
    only_a_server_of_the_hub_joins_it(&deployment).await?;
    connections_count_over_all_servers(&deployment).await?;
    a_server_that_was_away_hears_what_it_has_missed(&mut deployment).await?;
    // Nobody takes from the streams what the test puts there.
    deployment.up.core.kill()?;
    let core = Everywhere::connect(&deployment, "core").await?;
    core_gets_no_more_streams_than_its_account_has_room_for(&core).await?;
    a_subject_gets_no_more_batches_than_its_quota(&core, &deployment.key_of(ACME)?).await
}
