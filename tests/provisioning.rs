//! What provisioning writes has an effect at once, in a whole deployment and without a restart of anything.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::render::intake_account;
use bulkhead_accounts::tenancy::{Tenancy, TenantRecord, TenantRecords, TenantStage};
use bulkhead_bus::{AccountKey, PollerName, Role, SiteName, Tenant, TenantId, TenantState};
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_store::{PollerRecord, PollerState, Provisioning, read_database_url};
use bulkhead_testkit::{LIMIT, TestDeployment};
use sqlx::PgPool;

/// Design section 9: revocation to refusal.
const REVOKED_WITHIN_MS: i64 = 1_000;

/// What a command beside a running `up` does: the address is where `up` has left it.
async fn provisioning(deployment: &TestDeployment) -> anyhow::Result<Provisioning> {
    let url = read_database_url(&deployment.up.layout.database_url_file())?;
    Ok(Provisioning::connect(&url).await?)
}

async fn tenant(provisioning: &Provisioning, slug: &str) -> anyhow::Result<Tenant> {
    provisioning.tenant_by_slug(&slug.parse()?).await?.with_context(|| format!("there is no tenant {slug}"))
}

async fn count(witness: &PgPool, sql: &'static str, of: &str) -> anyhow::Result<i64> {
    sqlx::query_scalar(sql).bind(of).fetch_one(witness).await.context(sql)
}

/// Waits until a count is beyond `before`.
async fn wait_for_more(
    witness: &PgPool,
    (sql, of): (&'static str, &str),
    before: i64,
    what: &'static str,
) -> anyhow::Result<i64> {
    let more = eventually(what, LIMIT, || async {
        let now = count(witness, sql, of).await.map_err(|error| format!("{error:#}"))?;
        if now > before { Ok(now) } else { Err(format!("{now}, as before")) }
    });
    Ok(more.await?)
}

const STORED: &str =
    "select count(*) from everywhere.result r join platform.tenant t using (tenant_id) where t.slug = $1";
const REVOKED: &str = "select count(*) from everywhere.dead_letter d join platform.tenant t using (tenant_id)
                       where t.slug = $1 and d.reason = 'poller_revoked'";
const SUSPENDED: &str = "select count(*) from everywhere.dead_letter d join platform.tenant t using (tenant_id)
                         where t.slug = $1 and d.reason = 'tenant_suspended'";
const UNCLAIMED: &str = "select count(*) from platform.unclaimed_dead_letter where account_key = $1";

#[tokio::test]
async fn a_revoked_pollers_batches_are_refused_within_a_second() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    let provisioning = provisioning(&deployment).await?;
    let acme = tenant(&provisioning, "acme-corp").await?;
    let (oslo, p1): (SiteName, PollerName) = ("oslo".parse()?, "p1".parse()?);
    assert_eq!(count(&witness, REVOKED, "acme-corp").await?, 0);

    provisioning.set_poller_state(&acme, (&oslo, &p1), PollerState::Revoked).await?;
    let revoked_ms: i64 =
        sqlx::query_scalar("select (extract(epoch from clock_timestamp()) * 1000)::int8").fetch_one(&witness).await?;
    wait_for_more(&witness, (REVOKED, "acme-corp"), 2, "refused batches of a revoked poller").await?;
    // Control: the other tenant's go on.
    let other = count(&witness, STORED, "xyz-inc").await?;
    wait_for_more(&witness, (STORED, "xyz-inc"), other, "results of the other tenant").await?;
    let sql = "select coalesce(max((extract(epoch from received_at) * 1000)::int8), 0) from everywhere.result r
               join platform.tenant t using (tenant_id) where t.slug = $1";
    let late_ms = count(&witness, sql, "acme-corp").await? - revoked_ms;
    assert!(late_ms <= REVOKED_WITHIN_MS, "a result was stored {late_ms} ms after its poller was revoked");

    provisioning.set_poller_state(&acme, (&oslo, &p1), PollerState::Active).await?;
    let before = count(&witness, STORED, "acme-corp").await?;
    wait_for_more(&witness, (STORED, "acme-corp"), before, "results after the end of a revocation").await?;
    deployment.stop().await
}

#[tokio::test]
async fn a_suspension_loses_nothing_that_was_accepted_and_an_end_leaves_nothing() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    let provisioning = provisioning(&deployment).await?;
    let acme = tenant(&provisioning, "acme-corp").await?;
    let account: AccountKey = deployment.key_of("acme-corp")?.parse()?;
    let pollers = provisioning.pollers(&acme).await?;

    // While core is away the hub accepts some, then comes the suspension, then it accepts more.
    deployment.up.core.kill()?;
    let away_ms = now_ms();
    let wait_ms = 6_000;
    wait_until(away_ms + wait_ms).await?;
    let suspended = provisioning.set_tenant_state(&acme, TenantState::Suspended).await?;
    let stored = count(&witness, STORED, "acme-corp").await?;
    wait_until(now_ms() + wait_ms).await?;
    deployment.up.core.restart()?;
    wait_for_more(&witness, (SUSPENDED, "acme-corp"), 0, "refused batches of a suspended tenant").await?;
    wait_for_more(&witness, (STORED, "acme-corp"), stored, "results that the hub had accepted before").await?;
    let sql = "select coalesce(max((extract(epoch from slot) * 1000)::int8), 0) from everywhere.result r
               join platform.tenant t using (tenant_id) where t.slug = $1";
    let newest_ms = count(&witness, sql, "acme-corp").await?;
    assert!(newest_ms < suspended.state_since_ms, "a slot after the suspension is stored");
    provisioning.set_tenant_state(&acme, TenantState::Active).await?;
    let before = count(&witness, STORED, "acme-corp").await?;
    wait_for_more(&witness, (STORED, "acme-corp"), before, "results after the suspension").await?;

    // The end: what still comes is nobody's.
    provisioning.set_tenant_state(&acme, TenantState::Offboarding).await?;
    let removed = provisioning.purge_tenant(&acme).await?;
    assert!(removed["result"] > 0 && removed["poller"] == 1, "{removed:?}");
    let key = account.as_str();
    wait_for_more(&witness, (UNCLAIMED, key), 0, "messages of a tenant that leaves").await?;
    let mut left = provisioning.row_counts(&acme).await?;
    left.remove("unclaimed_dead_letter");
    assert_eq!(left.values().sum::<u64>(), 0, "{left:?}");
    provisioning.set_tenant_state(&acme, TenantState::Offboarded).await?;
    provisioning.forget_tenant(&acme).await?;

    // The same account comes back as somebody new, and its messages, which core has called a stranger's, are stored.
    let again = Tenant { id: TenantId::new(uuid::Uuid::new_v4()), ..acme };
    provisioning.put_tenant(&account, &again).await?;
    for PollerRecord { site, poller, batch_key, .. } in pollers {
        provisioning.put_site(&again, &site).await?;
        provisioning.put_poller(&again, &site, &poller, &batch_key).await?;
    }
    wait_for_more(&witness, (STORED, "acme-corp"), 0, "results of an account that came back").await?;
    deployment.stop().await
}

async fn wait_until(time_ms: i64) -> anyhow::Result<()> {
    let reached = eventually("a moment", LIMIT, || async {
        if now_ms() >= time_ms { Ok(()) } else { Err("not yet".to_owned()) }
    });
    Ok(reached.await?)
}

async fn live_ms(deployment: &TestDeployment, tenant: &str) -> Result<Option<i64>, String> {
    let rows = deployment.rows(&["status", "--tenant", tenant]).await.map_err(|error| format!("{error:#}"))?;
    Ok(rows.first().ok_or("no row")?["live_ms"].as_i64())
}

async fn wait_for_live(deployment: &TestDeployment, tenant: &str, is_lit: bool) -> anyhow::Result<()> {
    let waited = eventually("the live view to change", LIMIT, || async {
        let live = live_ms(deployment, tenant).await?;
        if live.is_some() == is_lit { Ok(()) } else { Err(format!("live view of {tenant}: {live:?}")) }
    });
    waited.await.with_context(|| format!("live streams of {tenant}"))
}

/// Waits until so many connections for live streams are up, and /readyz answers `status`.
async fn wait_for_shards(deployment: &TestDeployment, shards: f64, status: u16) -> anyhow::Result<()> {
    let waited = eventually("shards to be joined or left", LIMIT, || async {
        let metrics = deployment.metrics("core").await.map_err(|error| format!("{error:#}"))?;
        let found = metrics.value("core_hub_connections", &[("connection", "live")]);
        let ready = deployment.health("core", "/readyz").await.map_err(|error| format!("{error:#}"))?;
        let is_named = status == 200 || ready.1.contains("hub (core-live)");
        if found == Some(shards) && ready.0 == status && is_named {
            Ok(())
        } else {
            Err(format!("{found:?} {ready:?}"))
        }
    });
    Ok(waited.await?)
}

/// The settings of the first shard, with the certificate of another one.
fn write_shard(deployment: &TestDeployment, intake: &str) -> anyhow::Result<()> {
    let layout = &deployment.up.layout;
    let folder = layout.core().join(intake);
    let settings = deployment.up.platform.issue_service(intake, Role::CoreLive, "core", &folder)?;
    let mut table: toml::Table = toml::from_str(&std::fs::read_to_string(layout.live_bus("intake-1"))?)?;
    let path = |path: &Path| toml::Value::from(path.display().to_string());
    let tls = table.get_mut("tls").and_then(toml::Value::as_table_mut).context("a shard has TLS")?;
    tls.insert("cert_file".to_owned(), path(&settings.tls.cert_file));
    tls.insert("key_file".to_owned(), path(&settings.tls.key_file));
    std::fs::write(layout.live_bus(intake), toml::to_string(&table)?).context("write a shard")
}

#[tokio::test]
async fn a_shard_of_live_streams_comes_and_goes_without_a_restart() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let core = deployment.up.core.pid();
    for tenant in ["acme-corp", "xyz-inc"] {
        wait_for_live(&deployment, tenant, true).await?;
    }
    wait_for_shards(&deployment, 1.0, 200).await?;
    // The second shard takes a tenant over.
    let xyz = deployment.key_of("xyz-inc")?;
    deployment.change_account("intake-1", |body| body.imports.retain(|import| import.account != xyz)).await?;
    wait_for_live(&deployment, "xyz-inc", false).await.context("control: no shard shows it")?;
    let imported = [("xyz-inc".to_owned(), xyz)];
    let render = |_: &str, keys: &[_]| intake_account(keys, &imported);
    let operator = &deployment.up.platform.operator;
    let intake = operator.ensure_account("intake-2", &[Role::CoreLive], now_ms() / 1_000, render)?;
    let tenancy = Tenancy::open(deployment.home().to_owned())?;
    tenancy.put_in_force(&tenancy.connect().await?, &intake).await?;
    write_shard(&deployment, "intake-2")?;
    wait_for_live(&deployment, "xyz-inc", true).await?;
    wait_for_shards(&deployment, 2.0, 200).await?;

    // One that cannot be read is named and disturbs no other.
    let bad = deployment.up.layout.live_bus("intake-3");
    std::fs::write(&bad, "urls = []")?;
    wait_for_shards(&deployment, 2.0, 503).await?;
    std::fs::remove_file(&bad)?;
    wait_for_shards(&deployment, 2.0, 200).await?;

    std::fs::remove_file(deployment.up.layout.live_bus("intake-2"))?;
    wait_for_shards(&deployment, 1.0, 200).await?;
    wait_for_live(&deployment, "xyz-inc", false).await?;
    wait_for_live(&deployment, "acme-corp", true).await?;
    deployment.up.check_running()?;
    assert_eq!(deployment.up.core.pid(), core, "core was started again");
    deployment.stop().await
}

#[tokio::test]
async fn the_database_is_open_to_commands_beside_a_running_deployment() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let deployment = TestDeployment::start_with(&["acme-corp free oslo/p1"], &[]).await?;
    let file = deployment.up.layout.database_url_file();
    assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let began = std::time::Instant::now();
    let provisioning = provisioning(&deployment).await?;
    assert_eq!(provisioning.tenant_count().await?, 1);
    assert!(began.elapsed() < Duration::from_secs(10));
    // Who is suspended stays so when everything is started again.
    let acme = tenant(&provisioning, "acme-corp").await?;
    let suspended = provisioning.set_tenant_state(&acme, TenantState::Suspended).await?;
    drop(provisioning);
    let records = TenantRecords::new(&deployment.up.layout);
    let record = records.get(&acme.slug)?;
    records.write(&TenantRecord { stage: TenantStage::Suspended, ..record })?;
    let deployment = deployment.pause().await?.start().await?;
    let found = tenant(&self::provisioning(&deployment).await?, "acme-corp").await?;
    assert_eq!(found, suspended);
    deployment.stop().await
}
