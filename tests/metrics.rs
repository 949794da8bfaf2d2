//! What an operator sees from outside: the pages of core and of the pollers in a whole deployment, while things go well and
//! while parts of it are away.

use std::time::Duration;

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::scrape::{differences, unused_label_values};
use bulkhead_testkit::{Exposition, LIMIT, RawLeaf, TestDeployment};

const CORE: &str = "core";
const OSLO: &str = "acme-corp/oslo/p1";
const REGISTRY: &str = "registry-1";
const DISPATCH: &str = "poller-dispatch-1";
const LIMA: &str = "xyz-inc/lima/p1";
/// What the hub keeps of one site and lane.
const QUOTA: usize = 32;

/// The value of one sample of `who`'s page.
async fn value(deployment: &TestDeployment, who: &str, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    let found = deployment.metrics(who).await?.value(name, labels);
    found.with_context(|| format!("{name} {labels:?} is not on the page of {who}"))
}

/// Waits until one sample of `who`'s page is as it should be.
async fn wait_for_value(
    deployment: &TestDeployment,
    (who, name, labels): (&str, &str, &[(&str, &str)]),
    is_good: impl Fn(f64) -> bool,
) -> anyhow::Result<()> {
    let waited = eventually("a value", LIMIT, || async {
        let found = value(deployment, who, name, labels).await.map_err(|error| format!("{error:#}"))?;
        if is_good(found) { Ok(()) } else { Err(format!("{name} {labels:?} is {found}")) }
    });
    waited.await.with_context(|| format!("{name} of {who}"))
}

/// Waits until /readyz of `who` answers so, and checks that it is alive meanwhile.
async fn wait_for_readiness(deployment: &TestDeployment, who: &str, status: u16, said: &str) -> anyhow::Result<()> {
    let waited = eventually("an answer of /readyz", LIMIT, || async {
        let found = deployment.health(who, "/readyz").await.map_err(|error| format!("{error:#}"))?;
        if found.0 == status && found.1.contains(said) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    waited.await.with_context(|| format!("{who} says {status} {said:?}"))?;
    let alive = deployment.health(who, "/livez").await?;
    anyhow::ensure!(alive == (200, "alive\n".to_owned()), "{who}: {alive:?}");
    Ok(())
}

/// Which of `names` are in `text`.
fn names_in<'a>(text: &str, names: &[&'a str]) -> Vec<&'a str> {
    names.iter().copied().filter(|name| text.contains(name)).collect()
}

#[tokio::test]
async fn the_pages_show_what_flows_and_name_nobody() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    let committed = (CORE, "core_results_committed_total", [].as_slice());
    deployment.wait_for_results(&witness).await?;
    let before = value(&deployment, committed.0, committed.1, committed.2).await?;
    let stored = deployment.stored(&witness, "acme-corp").await? + deployment.stored(&witness, "xyz-inc").await?;
    assert!(before <= stored as f64, "{before} is more than the {stored} rows that there are");
    wait_for_value(&deployment, committed, |found| found > before).await?;
    for (name, labels) in [
        ("core_commit_lag_seconds_count", [("lane", "results")].as_slice()),
        ("core_slot_age_seconds_count", &[("lane", "results")]),
        ("core_transaction_rows_sum", &[("lane", "results")]),
        ("core_transactions_total", &[("lane", "results")]),
        ("core_live_received_total", &[]),
        ("core_tenants", &[("class", "enterprise")]),
        ("core_stream_limit_bytes", &[("lane", "backfill")]),
        ("core_hub_connections", &[("connection", "live")]),
        ("core_database_bytes", &[]),
    ] {
        wait_for_value(&deployment, (CORE, name, labels), |found| found > 0.0).await?;
    }
    for (name, labels) in [
        ("poller_forwarded_total", [("lane", "results")].as_slice()),
        ("poller_check_seconds_count", &[("kind", "tcp")]),
        ("poller_leaf_limit_bytes", &[("lane", "backfill")]),
        ("poller_leaf_connections", &[("connection", "forwarder")]),
        ("poller_state_free_bytes", &[]),
        ("poller_hub_open", &[("lane", "results")]),
    ] {
        wait_for_value(&deployment, (OSLO, name, labels), |found| found > 0.0).await?;
    }
    check_documented(&deployment).await?;
    check_names_nobody(&deployment).await?;
    deployment.stop().await
}

/// What is shown while everything runs is what the documentation says, label by label.
async fn check_documented(deployment: &TestDeployment) -> anyhow::Result<()> {
    let page = include_str!("../docs/metrics.md");
    let (core, poller) = (deployment.metrics(CORE).await?, deployment.metrics(LIMA).await?);
    let (registry, dispatch) = (deployment.metrics(REGISTRY).await?, deployment.metrics(DISPATCH).await?);
    assert_eq!(differences(page, &core, "core_"), Vec::<String>::new());
    assert_eq!(differences(page, &poller, "poller_"), Vec::<String>::new());
    assert_eq!(differences(page, &registry, "registry_"), Vec::<String>::new());
    assert_eq!(differences(page, &dispatch, "dispatch_"), Vec::<String>::new());
    // What a page shows from the start is all that it ever shows.
    let gatekeeper = Exposition::parse(&bulkhead_gatekeeper::metrics::Metrics::default().page.to_text())?;
    let pages = [&core, &poller, &gatekeeper, &registry, &dispatch];
    assert_eq!(unused_label_values(page, &pages), Vec::<String>::new());
    // Control: one page alone does not use all labels.
    assert!(!unused_label_values(page, &[&core]).is_empty());
    Ok(())
}

async fn check_names_nobody(deployment: &TestDeployment) -> anyhow::Result<()> {
    let keys = [deployment.key_of("acme-corp")?, deployment.key_of("xyz-inc")?];
    let names = ["acme", "xyz-inc", "oslo", "lima", "p1\"", "core-ready", "127.0.0.1", &keys[0], &keys[1]];
    for who in [CORE, OSLO, LIMA, REGISTRY, DISPATCH] {
        for path in ["/metrics", "/readyz", "/livez"] {
            let (status, body) = deployment.health(who, path).await?;
            assert_eq!((status, names_in(&body, &names)), (200, vec![]), "{path} of {who}");
        }
    }
    // Control: a name would be found.
    let (_, body) = deployment.health(CORE, "/metrics").await?;
    let leaky = body.replacen("class=\"free\"", &format!("tenant=\"{}\"", keys[0]), 1);
    assert_eq!(names_in(&leaky, &names), [keys[0].as_str()]);
    Ok(())
}

#[tokio::test]
async fn a_lost_database_and_a_full_quota_are_seen_from_both_ends_and_pass() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    wait_for_readiness(&deployment, CORE, 200, "ready").await?;

    deployment.up.postgres.child.kill()?;
    wait_for_readiness(&deployment, CORE, 503, "away now: database").await?;
    assert_eq!(value(&deployment, CORE, "core_database_reached", &[]).await?, 0.0);
    fill_quota(&deployment).await?;
    // The site whose quota is full is refused, and the other tenant's is not.
    let full = [("cause", "full")];
    wait_for_value(&deployment, (OSLO, "poller_forward_retried_total", &full), |found| found > 0.0).await?;
    assert_eq!(value(&deployment, LIMA, "poller_forward_retried_total", &full).await?, 0.0);
    let backlog = |lane, class| [("lane", lane), ("class", class)];
    for class in ["enterprise", "free"] {
        let least = if class == "enterprise" { QUOTA as f64 } else { 1.0 };
        let sample = (CORE, "core_backlog_batches", backlog("results", class).to_vec());
        wait_for_value(&deployment, (sample.0, sample.1, &sample.2), |found| found >= least).await?;
    }
    assert_eq!(value(&deployment, CORE, "core_backlog_batches", &backlog("results", "pro")).await?, 0.0);
    wait_for_value(&deployment, (CORE, "core_stream_oldest_age_seconds", &[("lane", "results")]), |age| age > 5.0)
        .await?;
    // What stays full is said, and its results wait at the leaf.
    wait_for_value(&deployment, (OSLO, "poller_hub_open", &[("lane", "results")]), |found| found == 0.0).await?;
    wait_for_value(&deployment, (OSLO, "poller_leaf_batches", &[("lane", "results")]), |found| found > 0.0).await?;

    deployment.up.postgres.restart().await?;
    wait_for_readiness(&deployment, CORE, 200, "ready").await?;
    for class in ["enterprise", "free"] {
        let sample = backlog("results", class);
        wait_for_value(&deployment, (CORE, "core_backlog_batches", &sample), |found| found == 0.0).await?;
    }
    wait_for_value(&deployment, (OSLO, "poller_hub_open", &[("lane", "results")]), |found| found == 1.0).await?;
    wait_for_value(&deployment, (OSLO, "poller_leaf_batches", &[("lane", "results")]), |found| found == 0.0).await?;
    let page = deployment.metrics(CORE).await?;
    let count = |name, labels: &[(&str, &str)]| page.value(name, labels).unwrap_or(-1.0);
    assert!(count("core_database_errors_total", &[("failure", "transient")]) > 0.0);
    assert!(count("core_deliveries_retried_total", &[]) > 0.0);
    assert!(count("core_batches_redelivered_total", &[("lane", "results")]) > 0.0);
    check_dead_letters(&deployment, &page).await?;
    deployment.stop().await
}

/// Fills what the hub keeps of acme's site oslo with messages that are no batches.
async fn fill_quota(deployment: &TestDeployment) -> anyhow::Result<()> {
    let identity = deployment.leaf_identity("acme-corp", "oslo")?;
    let leaf = RawLeaf::connect(&deployment.hub_for_leaves(), &identity, "leaf-acme-corp-oslo.filler").await?;
    for number in 0..QUOTA {
        leaf.lmsg("up.oslo.fwd.results", None, format!("garbage {number}").as_bytes()).await?;
    }
    leaf.flush().await?;
    Ok(())
}

/// Every kept dead letter was counted under its reason, however often it was delivered.
async fn check_dead_letters(deployment: &TestDeployment, page: &Exposition) -> anyhow::Result<()> {
    let witness = deployment.witness().await?;
    let kept: i64 = sqlx::query_scalar("select count(*) from everywhere.dead_letter where reason = 'not_decodable'")
        .fetch_one(&witness)
        .await
        .context("count dead letters")?;
    let counted = page.value("core_dead_letters_total", &[("reason", "not_decodable")]);
    assert!(kept > 0);
    assert_eq!(counted, Some(kept as f64));
    assert_eq!(page.value("core_dead_letters_total", &[("reason", "foreign_key")]), Some(0.0));
    Ok(())
}

#[tokio::test]
async fn a_lost_hub_or_leaf_is_named_by_whoever_needs_it_and_restarts_nothing() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;

    deployment.up.hub().kill()?;
    wait_for_readiness(&deployment, CORE, 503, "hub (core-live), hub (core-rpc), hub (core-stream)").await?;
    let stream = [("connection", "stream")];
    assert_eq!(value(&deployment, CORE, "core_hub_connections", &stream).await?, 0.0);
    // A poller goes on without the hub, and says that nothing passes.
    wait_for_value(&deployment, (OSLO, "poller_hub_open", &[("lane", "results")]), |found| found == 0.0).await?;
    wait_for_value(&deployment, (OSLO, "poller_leaf_batches", &[("lane", "results")]), |found| found > 0.0).await?;
    wait_for_readiness(&deployment, OSLO, 200, "ready").await?;
    deployment.up.hub().restart()?;
    wait_for_readiness(&deployment, CORE, 200, "ready").await?;
    wait_for_value(&deployment, (OSLO, "poller_leaf_batches", &[("lane", "results")]), |found| found == 0.0).await?;

    let oslo = deployment.up.leaves.iter().position(|(site, _)| site.site.as_str() == "oslo").context("no oslo")?;
    deployment.up.leaves[oslo].1.kill()?;
    wait_for_readiness(&deployment, OSLO, 503, "away now: leaf, leaf (forwarder)").await?;
    wait_for_readiness(&deployment, LIMA, 200, "ready").await?;
    wait_for_readiness(&deployment, CORE, 200, "ready").await?;
    wait_for_value(&deployment, (OSLO, "poller_spool_results", &[]), |found| found > 0.0).await?;
    let retried = (OSLO, "poller_batches_retried_total", [("cause", "leaf_away")].as_slice());
    wait_for_value(&deployment, retried, |found| found > 0.0).await?;
    deployment.up.leaves[oslo].1.restart()?;
    wait_for_readiness(&deployment, OSLO, 200, "ready").await?;
    wait_for_value(&deployment, (OSLO, "poller_spool_results", &[]), |found| found == 0.0).await?;
    wait_for_value(&deployment, (OSLO, "poller_spool_dropped_total", &[]), |found| found == 0.0).await?;
    deployment.stop().await
}

/// Whoever asks again and again takes little from those who work.
#[tokio::test]
async fn asking_all_the_time_slows_nobody() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    let asked = tokio::time::timeout(Duration::from_secs(30), async {
        for _ in 0..300 {
            deployment.metrics(CORE).await?;
            deployment.metrics(OSLO).await?;
        }
        anyhow::Ok(())
    });
    asked.await.context("600 pages took longer than 30 s")??;
    let page = deployment.metrics(CORE).await?;
    let count = |name, labels: &[(&str, &str)]| page.value(name, labels).unwrap_or(-1.0);
    let lane = ("lane", "results");
    let late = count("core_commit_lag_seconds_count", &[lane])
        - count("core_commit_lag_seconds_bucket", &[lane, ("le", "2.5")]);
    assert_eq!(late, 0.0, "batches waited while the pages were read");
    deployment.stop().await
}
