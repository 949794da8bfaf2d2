//! After a long outage what is new is current at once, and what waited passes at its own pace; who floods meets a limit of
//! its own, and what does not pass stays at the leaf.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{LIMIT, Link, TcpProxy, TestDeployment};
use bulkhead_tests::bench::{Station, fill_all};
use bulkhead_tests::streams::look_at;
use sqlx::PgPool;

const TENANT: &str = "acme-corp";
/// Half an hour of a hundred checks every five seconds.
const OUTAGE_ROWS: usize = 36_000;
const OUTAGE_MS: i64 = 30 * 60_000;
/// So slow that the backlog outlasts what is proved about the live results.
const BACKFILL_ROWS_PER_SECOND: i64 = 2_000;
/// Instead of a minute, so that the test need not wait for one.
const BACKFILL_AFTER_S: i64 = 2;
const CURRENT_WITHIN: Duration = Duration::from_secs(10);

/// Changes one value of a settings file.
fn set(file: &Path, section: &str, key: &str, value: i64) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let mut settings: toml::Table = toml::from_str(&text).context("read settings")?;
    let section = settings.entry(section).or_insert_with(|| toml::Table::new().into());
    section.as_table_mut().context("a section is a table")?.insert(key.to_owned(), value.into());
    std::fs::write(file, toml::to_string(&settings)?).with_context(|| format!("write {}", file.display()))
}

async fn backlog_stored(witness: &PgPool) -> anyhow::Result<i64> {
    let sql = "select count(*) from everywhere.result r join platform.tenant t using (tenant_id)
               where t.slug = $1 and r.check_name like 'check-%'";
    sqlx::query_scalar(sql).bind(TENANT).fetch_one(witness).await.context("count the backlog")
}

/// How old the newest stored result of the oldest of the real poller's checks is.
async fn oldest_live_ms(witness: &PgPool) -> anyhow::Result<i64> {
    let sql = "select coalesce(min((extract(epoch from slot) * 1000)::int8), 0) from everywhere.check_state s
               join platform.tenant t using (tenant_id) where t.slug = $1 and s.check_name not like 'check-%'";
    let slot_ms: i64 = sqlx::query_scalar(sql).bind(TENANT).fetch_one(witness).await.context("look at live results")?;
    Ok(now_ms() - slot_ms)
}

#[tokio::test]
async fn after_half_an_hour_without_a_hub_live_results_are_current_while_the_backlog_drains() -> anyhow::Result<()> {
    let [port] = bulkhead_testkit::free_ports()?;
    let link = TcpProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let home = TestDeployment::home_folder()?;
    std::fs::write(home.path().join("ports.json"), format!("{{\"hub-leaf\": {port}}}"))?;
    let url = format!("tls://{}", link.addr);
    let lines = ["acme-corp enterprise oslo/p1 oslo/p2"];
    let mut deployment = TestDeployment::start_in(home, &lines, |options| {
        options.leaf_urls = options.tenants.iter().map(|tenant| (tenant.slug.clone(), vec![url.clone()])).collect();
    })
    .await?;
    let witness = deployment.witness().await?;
    let core_file = deployment.home().join("core").join("core.toml");
    set(&core_file, "ingest", "backfill_rows_per_second", BACKFILL_ROWS_PER_SECOND)?;
    deployment.up.core.restart()?;
    let station = Station::of(&deployment, TENANT, "oslo", "p2")?;
    // p2 only fills the leaf, by our hand; p1 is the real one and the forwarder.
    deployment.up.pollers.retain(|(_, poller, _)| poller.as_str() != "p2");
    let poller_file = deployment.up.layout.poller(&station.tenant, &station.site, &"p1".parse()?).join("poller.toml");
    set(&poller_file, "forwarder", "backfill_after_s", BACKFILL_AFTER_S)?;
    deployment.up.pollers[0].2.restart()?;
    deployment.wait_for_results(&witness).await?;

    link.set(Link::Cut);
    let loaded = fill_all(&[station], OUTAGE_ROWS, 100, now_ms() - OUTAGE_MS).await?;
    let leaf = forwarder_settings(&poller_file)?;
    let aside = eventually("the backlog set aside", LIMIT, || async {
        let waiting = look_at(&leaf, &bulkhead_bus::StreamName::EDGE).await.map_err(|error| format!("{error:#}"))?;
        let is_aside = waiting[1].messages >= u64::try_from(loaded.batches).unwrap_or(u64::MAX);
        if is_aside { Ok(()) } else { Err(format!("{waiting:?}")) }
    });
    aside.await.context("what waited stays in the way of what is new")?;
    assert_eq!(backlog_stored(&witness).await?, 0, "the link was not cut");

    link.set(Link::Up);
    let within_ms = i64::try_from(CURRENT_WITHIN.as_millis())?;
    let current = eventually("live results that are current", LIMIT, || async {
        let age_ms = oldest_live_ms(&witness).await.map_err(|error| format!("{error:#}"))?;
        if age_ms <= within_ms { Ok(()) } else { Err(format!("{age_ms} ms old")) }
    });
    current.await?;
    let total = i64::try_from(loaded.rows)?;
    let stored = backlog_stored(&witness).await?;
    assert!(stored < total, "live results were current only when all {total} that waited were stored");

    let drained = eventually("the backlog stored", LIMIT, || async {
        let stored = backlog_stored(&witness).await.map_err(|error| format!("{error:#}"))?;
        if stored == total { Ok(()) } else { Err(format!("{stored} of {total}")) }
    });
    drained.await?;
    assert!(oldest_live_ms(&witness).await? <= within_ms, "live results fell behind while the backlog drained");
    deployment.stop().await
}

fn forwarder_settings(poller_file: &Path) -> anyhow::Result<bulkhead_runtime::BusSettings> {
    let settings: toml::Table = toml::from_str(&std::fs::read_to_string(poller_file)?)?;
    let leaf = settings.get("forwarder").and_then(|forwarder| forwarder.get("leaf")).cloned();
    leaf.context("a forwarder's settings name its leaf")?.try_into().context("read bus settings")
}

/// While core is away a tenant fills its own place at the hub and no more; the other tenant's place is empty.
#[tokio::test]
async fn who_floods_meets_a_limit_of_its_own_and_the_rest_stays_at_the_leaf() -> anyhow::Result<()> {
    let lines = ["acme-corp enterprise oslo/p1 oslo/p2", "xyz-inc free lima/p1"];
    let mut deployment = TestDeployment::start_in(TestDeployment::home_folder()?, &lines, |_| {}).await?;
    let witness = deployment.witness().await?;
    let station = Station::of(&deployment, TENANT, "oslo", "p2")?;
    deployment.up.pollers.retain(|(site, poller, _)| site.tenant.as_str() != TENANT || poller.as_str() != "p2");
    deployment.wait_for_results(&witness).await?;
    deployment.up.core.kill()?;

    // Far more than a tenant's place at the hub holds, however much of it travels together.
    let loaded = fill_all(std::slice::from_ref(&station), 40_000, 100, now_ms() - OUTAGE_MS).await?;
    let poller_file = deployment.up.layout.poller(&station.tenant, &station.site, &"p1".parse()?).join("poller.toml");
    let leaf = forwarder_settings(&poller_file)?;
    let place = bulkhead_bus::StreamName::Results.spec().max_messages_per_subject.context("there is a quota")?;
    let full = eventually("a full place at the hub", LIMIT, || async {
        let own = hub_messages(&deployment, TENANT).await.map_err(|error| format!("{error:#}"))?;
        if own == place { Ok(()) } else { Err(format!("{own} of {place}")) }
    });
    full.await?;
    let waiting = look_at(&leaf, &bulkhead_bus::StreamName::EDGE).await?;
    assert!(waiting.iter().map(|stream| stream.messages).sum::<u64>() > 0, "nothing stays at the leaf: {waiting:?}");
    let before = hub_messages(&deployment, "xyz-inc").await?;
    let other = eventually("the other tenant's results at the hub", LIMIT, || async {
        let now = hub_messages(&deployment, "xyz-inc").await.map_err(|error| format!("{error:#}"))?;
        if now > before { Ok(()) } else { Err(format!("{now}, as before")) }
    });
    other.await.context("one tenant's flood stops the other")?;

    deployment.up.core.restart()?;
    let total = i64::try_from(loaded.rows)?;
    let stored = eventually("everything stored", LIMIT, || async {
        let stored = backlog_stored(&witness).await.map_err(|error| format!("{error:#}"))?;
        if stored == total { Ok(()) } else { Err(format!("{stored} of {total}")) }
    });
    stored.await.context("results of the flood are stranded")?;
    deployment.wait_for_results(&witness).await?;
    deployment.stop().await
}

/// Messages of one tenant in both of the hub's streams of results.
async fn hub_messages(deployment: &TestDeployment, tenant: &str) -> anyhow::Result<i64> {
    use bulkhead_accounts::up::CORE;
    use bulkhead_bus::{Role, StreamName};
    let folder = deployment.up.layout.provisioning();
    let settings = deployment.up.platform.issue_service(CORE, Role::Provisioner, "provisioning", &folder)?;
    let bus = bulkhead_runtime::Bus::connect(&settings, Role::Provisioner.name()).await?;
    let filter = format!("{{\"subjects_filter\":\"t.{}.>\"}}", deployment.key_of(tenant)?);
    let subject = format!("$JS.API.STREAM.INFO.{}", StreamName::Results.as_str());
    let answer = bus.request(&subject, filter.into_bytes().into(), Duration::from_secs(5)).await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    let counts =
        answer["state"]["subjects"].as_object().map(|subjects| subjects.values().filter_map(|n| n.as_i64()).sum());
    Ok(counts.unwrap_or(0))
}
