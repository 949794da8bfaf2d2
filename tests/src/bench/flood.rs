//! What one tenant's flood costs another: from a result's being measured to its being visible in the database, for a tenant
//! that sends a little all the time, alone and beside one that sends as much as it is paced to.

use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::payload::{CheckKind, Measured, Outcome};
use bulkhead_runtime::now_ms;
use sqlx::PgPool;
use tokio::time::{Instant, interval};

use super::fleet::{Fleet, Station};
use super::load::{Sender, fill_all};

const LASTS: Duration = Duration::from_secs(20);
const VICTIM_EVERY: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(4);
const CHECK: &str = "steady";
/// Batches of the attacker that are sent at once.
const VOLLEY: usize = 10;
const ATTACK_ROWS: usize = 100;
const BEGIN_MS: i64 = 3 * 3_600_000;

/// Milliseconds from sending to visibility.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    pub p50_ms: i64,
    pub p99_ms: i64,
    pub results: usize,
}

/// Alone, and beside the flood.
#[derive(Debug, Clone, Copy)]
pub struct Flooded {
    pub alone: Delays,
    pub beside: Delays,
    pub attack_rows_per_second: f64,
}

fn row(slot_ms: i64) -> anyhow::Result<Measured> {
    Ok(Measured {
        check: CHECK.parse()?,
        kind: CheckKind::Tcp,
        slot_ms,
        started_ms: slot_ms,
        outcome: Outcome::Ok,
        reason: None,
        latency_us: Some(1),
        generation: 0,
        island: false,
        detail: std::collections::BTreeMap::new(),
    })
}

async fn newest(witness: &PgPool) -> anyhow::Result<i64> {
    let sql = "select coalesce(max((extract(epoch from slot) * 1000)::int8), 0) from shared.check_state
               where check_name = $1";
    sqlx::query_scalar(sql).bind(CHECK).fetch_one(witness).await.context("look for the newest result")
}

/// Sends steadily and watches when each result becomes visible.
async fn steady(witness: &PgPool, station: &Station) -> anyhow::Result<Delays> {
    let sender = Sender::connect(station).await?;
    let (mut sends, mut looks) = (interval(VICTIM_EVERY), interval(LOOK_EVERY));
    let end = Instant::now() + LASTS;
    let (mut waiting, mut delays) = (std::collections::VecDeque::new(), Vec::new());
    while Instant::now() < end || (!waiting.is_empty() && Instant::now() < end + LASTS) {
        tokio::select! {
            _ = sends.tick(), if Instant::now() < end => {
                let slot_ms = now_ms();
                sender.send(vec![row(slot_ms)?]).await?;
                waiting.push_back(slot_ms);
            }
            _ = looks.tick() => {
                let newest = newest(witness).await?;
                while let Some(&slot_ms) = waiting.front().filter(|&&slot| slot <= newest) {
                    delays.push(now_ms() - slot_ms);
                    waiting.pop_front();
                }
            }
        }
    }
    anyhow::ensure!(waiting.is_empty(), "{} results did not become visible", waiting.len());
    delays.sort_unstable();
    let at = |share: usize| delays.get((delays.len() * share / 100).min(delays.len().saturating_sub(1))).copied();
    let (p50_ms, p99_ms) = at(50).zip(at(99)).context("nothing was measured")?;
    Ok(Delays { p50_ms, p99_ms, results: delays.len() })
}

/// Sends volleys of batches at the pace until it is dropped.
async fn flood(station: &Station, batches_per_second: u32) -> anyhow::Result<()> {
    let mut ticks = interval(Duration::from_secs(1) * u32::try_from(VOLLEY)? / batches_per_second.max(1));
    let mut from_ms = now_ms() - BEGIN_MS;
    loop {
        ticks.tick().await;
        fill_all(std::slice::from_ref(station), VOLLEY * ATTACK_ROWS, ATTACK_ROWS, from_ms).await?;
        // Other slots than before: a repetition would be cheaper.
        from_ms += 10_000;
    }
}

/// Measures a tenant alone and beside another that floods.
///
/// # Errors
/// When a deployment does not start or results do not arrive.
pub async fn run_flood(batches_per_second: u32) -> anyhow::Result<Flooded> {
    let mut fleet = Fleet::start(2, 1).await.context("start a deployment")?;
    fleet.start_forwarders()?;
    let [victim, attacker] = fleet.stations.as_slice() else { anyhow::bail!("two tenants were asked for") };
    // What starts up is not measured.
    steady(&fleet.witness, victim).await?;
    let alone = steady(&fleet.witness, victim).await?;
    let beside = tokio::select! {
        beside = steady(&fleet.witness, victim) => beside?,
        failed = flood(attacker, batches_per_second) => return Err(failed.err().context("a flood does not end")?),
    };
    fleet.deployment.stop().await?;
    Ok(Flooded { alone, beside, attack_rows_per_second: f64::from(batches_per_second) * ATTACK_ROWS as f64 })
}
