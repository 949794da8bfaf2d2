//! The benchmark of the main path: leaves are filled while nothing is forwarded, then the forwarders are let go.

use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_runtime::{eventually, now_ms};
use sqlx::PgPool;

use super::baseline;
use super::cpu::{self, Used};
use super::fleet::Fleet;
use super::load::fill_all;

const DRAIN_LIMIT: Duration = Duration::from_secs(300);
/// How far back slots begin: well within what every plan keeps.
const BEGIN_MS: i64 = 6 * 3_600_000;

/// What to measure: every combination.
#[derive(Debug, Clone)]
pub struct Grid {
    pub batches: Vec<usize>,
    pub tenants: Vec<usize>,
    pub hub_servers: Vec<usize>,
}

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub batch: usize,
    pub tenants: usize,
    pub hub_servers: usize,
}

/// What was measured of it.
#[derive(Debug, Clone)]
pub struct Measured {
    pub cell: Cell,
    pub rows: usize,
    pub rows_per_second: f64,
    /// Microseconds of CPU a row, by part of the deployment.
    pub cpu_us: Vec<(&'static str, f64)>,
    /// The leaves' streams alone: batches a second that were published and acknowledged.
    pub publish_per_second: f64,
    pub unnest_per_second: f64,
    pub body_bytes: usize,
}

impl Cell {
    /// Enough to last for seconds, and no more than a small quota holds in time.
    fn rows(self) -> usize {
        match self.batch {
            0..10 => 6_000,
            10..100 => 40_000,
            _ => 200_000,
        }
    }
}

async fn committed(witness: &PgPool) -> anyhow::Result<i64> {
    let sql = "select coalesce(sum(results), 0)::int8 from shared.ingest_count";
    sqlx::query_scalar(sql).fetch_one(witness).await.context("count what is committed")
}

async fn wait_for(witness: &PgPool, rows: i64) -> anyhow::Result<i64> {
    let waited = eventually("rows committed", DRAIN_LIMIT, || async {
        let seen = committed(witness).await.map_err(|error| format!("{error:#}"))?;
        if seen >= rows { Ok(seen) } else { Err(format!("{seen} of {rows}")) }
    });
    waited.await.context("wait for rows")
}

async fn measure(fleet: &mut Fleet, cell: Cell, from_ms: i64) -> anyhow::Result<Measured> {
    let unnest_per_second = baseline::unnest(&fleet.witness, from_ms).await?;
    let rows_each = (cell.rows() / cell.tenants).div_ceil(cell.batch) * cell.batch;
    let loaded = fill_all(&fleet.stations, rows_each, cell.batch, from_ms).await.context("fill the leaves")?;
    let before = committed(&fleet.witness).await?;
    fleet.start_forwarders()?;
    let first = wait_for(&fleet.witness, before + 1).await?;
    let processes = fleet.processes();
    let (began, used) = (Instant::now(), cpu::used(&processes));
    let all = before + i64::try_from(loaded.rows)?;
    wait_for(&fleet.witness, all).await?;
    let (took, used) = (began.elapsed(), cpu::difference(&used, &cpu::used(&processes)));
    fleet.stop_forwarders()?;
    // What was committed before the clock started is not counted.
    let rows = (all - first).max(1) as f64;
    Ok(Measured {
        cell,
        rows: loaded.rows,
        rows_per_second: rows / took.as_secs_f64(),
        cpu_us: shares(&used, rows),
        publish_per_second: loaded.batches as f64 / loaded.took.as_secs_f64(),
        unnest_per_second,
        body_bytes: loaded.body_bytes / loaded.batches.max(1),
    })
}

fn shares(used: &Used, rows: f64) -> Vec<(&'static str, f64)> {
    used.iter().map(|(part, time)| (*part, time.as_secs_f64() * 1e6 / rows)).collect()
}

/// Measures every cell; `announce` hears of each as it is done.
///
/// # Errors
/// When a deployment does not start or rows do not arrive.
pub async fn run_ingest(grid: &Grid, announce: impl Fn(&Measured)) -> anyhow::Result<Vec<Measured>> {
    let mut all = Vec::new();
    for &hub_servers in &grid.hub_servers {
        for &tenants in &grid.tenants {
            let mut fleet = Fleet::start(tenants, hub_servers).await.context("start a deployment")?;
            let mut from_ms = now_ms() - BEGIN_MS;
            for &batch in &grid.batches {
                let cell = Cell { batch, tenants, hub_servers };
                let measured = measure(&mut fleet, cell, from_ms).await.with_context(|| format!("{cell:?}"))?;
                announce(&measured);
                all.push(measured);
                // The next cell's slots lie behind this one's.
                from_ms += 3_600_000;
            }
            fleet.deployment.stop().await?;
        }
    }
    Ok(all)
}
