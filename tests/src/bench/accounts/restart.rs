//! The hub is killed with everything loaded, and started again: when results flow, and when live streams are imported.

use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_runtime::{Chain, eventually, now_ms};

use super::town::{FIRST, Town};

const LIMIT: Duration = Duration::from_secs(300);
/// The number of its only server.
const HUB: usize = 1;

/// One restart of the hub.
#[derive(Debug, Clone, Copy)]
pub struct Restart {
    pub tenants: usize,
    pub shards: usize,
    /// Until a result is committed that was measured after the hub was killed. One site is linked, as before.
    pub results: Duration,
    /// Until core is connected to every INTAKE account again.
    pub live: Duration,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// Kills the hub and starts it again.
pub(super) async fn measure(town: &mut Town) -> anyhow::Result<Restart> {
    let bytes_before = town.hub_bytes()?;
    town.deployment.wait_for_results(&town.witness).await.context("results flow before the hub is killed")?;
    let (began, since_ms) = (Instant::now(), now_ms());
    town.deployment.up.restart_hub_server(HUB).context("start the hub again")?;
    let town: &Town = town;
    let results = async {
        let flowing = eventually("a result that was measured since", LIMIT, || stored_since(town, since_ms));
        flowing.await.map(|()| began.elapsed())
    };
    let live = async { wait_until_live(town).await.map(|shards| (shards, began.elapsed())) };
    let (results, live) = tokio::join!(results, live);
    let ((shards, live), results) = (live?, results?);
    let bytes_after = super::town::resident_bytes(town.deployment.up.hub_servers[0].child.pid())?;
    Ok(Restart { tenants: town.tenants(), shards, results, live, bytes_before, bytes_after })
}

async fn stored_since(town: &Town, since_ms: i64) -> Result<(), String> {
    let sql = "select count(*) from shared.check_state s join platform.tenant t using (tenant_id)
               where t.slug = $1 and extract(epoch from slot) * 1000 >= $2::float8";
    let count = sqlx::query_scalar(sql).bind(FIRST).bind(since_ms as f64).fetch_one(&town.witness).await;
    let count: i64 = count.map_err(|error| error.to_string())?;
    if count > 0 { Ok(()) } else { Err("none yet".to_owned()) }
}

/// Every shard has core's connection, which imports the live streams of its tenants.
async fn wait_until_live(town: &Town) -> anyhow::Result<usize> {
    let shards = town.tenancy.intake.shards().context("read shards")?;
    for &number in shards.keys() {
        let name = bulkhead_accounts::tenancy::intake_name(number);
        let account = town.tenancy.platform.operator.account(&name)?.context("a shard has an account")?;
        let connected = eventually("core in an INTAKE account", LIMIT, || async {
            match town.links.connections(account.key.as_str()).await {
                Ok(open) if open.is_empty() => Err("nobody is connected".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(Chain(&error).to_string()),
            }
        });
        connected.await.with_context(|| format!("shard {number}"))?;
    }
    Ok(shards.len())
}
