//! The benchmark of the main path: forwarders that are connected and at work are held, leaves are filled, and the forwarders
//! are let go. So no start-up is measured, however many there are.

use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_runtime::{eventually, now_ms};
use sqlx::PgPool;

use super::baseline;
use super::cpu::{self, Machine, Spent, Used};
use super::fleet::Fleet;
use super::load::fill_all;

const DRAIN_LIMIT: Duration = Duration::from_secs(300);
/// How long a cell is to last, by what the warm-up reached while it shared the machine with the filling: some seconds more
/// than are wanted.
const CELL_LASTS: Duration = Duration::from_secs(15);
/// Filling takes no longer, however fast the rest is: batches of one are published one by one.
const FILLING_MOST: Duration = Duration::from_secs(40);
/// So that a tenant's slots stay within [`PASS_MS`]; twenty checks have one each 100 ms.
const ROWS_EACH_MOST: usize = 1_400_000;
/// How far back slots begin: well within what every plan keeps.
const BEGIN_MS: i64 = 18 * 3_600_000;
/// From a filling's first slot to the next one's.
const PASS_MS: i64 = 2 * 3_600_000;

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
    pub lasted: Duration,
    /// Microseconds of CPU a row, by part of the deployment; what is nobody's of it comes last.
    pub cpu_us: Vec<(&'static str, f64)>,
    /// What the machine did meanwhile.
    pub machine: Spent,
    /// The leaves' streams alone: batches a second that were published and acknowledged.
    pub publish_per_second: f64,
    pub unnest_per_second: f64,
    pub body_bytes: usize,
}

impl Cell {
    /// Enough to warm up and to see how fast it goes.
    fn warming_rows(self) -> usize {
        match self.batch {
            0..10 => 4_000,
            10..100 => 30_000,
            _ => 100_000,
        }
    }

    /// The share of each tenant, in whole batches.
    fn rows_each(self, rows: usize) -> usize {
        (rows / self.tenants).min(ROWS_EACH_MOST).div_ceil(self.batch).max(1) * self.batch
    }
}

async fn committed(witness: &PgPool) -> anyhow::Result<i64> {
    let sql = "select coalesce(sum(results), 0)::int8 from everywhere.ingest_count";
    sqlx::query_scalar(sql).fetch_one(witness).await.context("count what is committed")
}

async fn wait_for(witness: &PgPool, rows: i64) -> anyhow::Result<i64> {
    let waited = eventually("rows committed", DRAIN_LIMIT, || async {
        let seen = committed(witness).await.map_err(|error| format!("{error:#}"))?;
        if seen >= rows { Ok(seen) } else { Err(format!("{seen} of {rows}")) }
    });
    waited.await.context("wait for rows")
}

/// Rows a second, warm, and those that could be published meanwhile.
struct Warm {
    stored_per_second: f64,
    published_per_second: f64,
}

/// Every forwarder carries some batches, while it is let.
async fn warm_up(fleet: &Fleet, cell: Cell, from_ms: i64) -> anyhow::Result<Warm> {
    let before = committed(&fleet.witness).await?;
    let rows_each = cell.rows_each(cell.warming_rows());
    let loaded = fill_all(&fleet.stations, rows_each, cell.batch, from_ms).await.context("warm up")?;
    let filled = Instant::now();
    wait_for(&fleet.witness, before + i64::try_from(loaded.rows)?).await?;
    let rows = loaded.rows as f64;
    Ok(Warm {
        stored_per_second: rows / (loaded.took + filled.elapsed()).as_secs_f64(),
        published_per_second: rows / loaded.took.as_secs_f64(),
    })
}

async fn measure(
    fleet: &mut Fleet,
    cell: Cell,
    from_ms: i64,
    announce: &impl Fn(Progress<'_>),
) -> anyhow::Result<Measured> {
    announce(Progress::Step(cell, "UNNEST alone"));
    let unnest_per_second = baseline::unnest(&fleet.witness, from_ms).await?;
    announce(Progress::Step(cell, "warming up"));
    let warm = warm_up(fleet, cell, from_ms).await?;
    announce(Progress::Step(cell, "holding the forwarders"));
    fleet.hold_forwarders().await?;
    let rows = (warm.stored_per_second * CELL_LASTS.as_secs_f64())
        .min(warm.published_per_second * FILLING_MOST.as_secs_f64()) as usize;
    let rows_each = cell.rows_each(rows);
    announce(Progress::Step(cell, &format!("filling leaves with {} results", rows_each * cell.tenants)));
    let loaded =
        fill_all(&fleet.stations, rows_each, cell.batch, from_ms + PASS_MS).await.context("fill the leaves")?;
    let before = committed(&fleet.witness).await?;
    announce(Progress::Step(cell, "measuring"));
    let processes = fleet.processes();
    let (began, used, machine) = (Instant::now(), cpu::used(&processes), Machine::now());
    fleet.release_forwarders()?;
    wait_for(&fleet.witness, before + i64::try_from(loaded.rows)?).await?;
    let (lasted, used) = (began.elapsed(), cpu::difference(&used, &cpu::used(&processes)));
    let machine = machine.until(Machine::now());
    let rows = loaded.rows as f64;
    Ok(Measured {
        cell,
        rows: loaded.rows,
        rows_per_second: rows / lasted.as_secs_f64(),
        lasted,
        cpu_us: shares(&used, machine.busy, rows),
        machine,
        publish_per_second: loaded.batches as f64 / loaded.took.as_secs_f64(),
        unnest_per_second,
        body_bytes: loaded.body_bytes / loaded.batches.max(1),
    })
}

fn shares(used: &Used, busy: Duration, rows: f64) -> Vec<(&'static str, f64)> {
    let others = busy.saturating_sub(used.values().sum());
    let parts = used.iter().map(|(part, time)| (*part, *time)).chain([("others", others)]);
    parts.map(|(part, time)| (part, time.as_secs_f64() * 1e6 / rows)).collect()
}

/// What is heard of a run while it goes on.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    Starting { tenants: usize, hub_servers: usize },
    Step(Cell, &'a str),
    Done(&'a Measured),
}

/// Measures every cell; `announce` hears of each step.
///
/// # Errors
/// When a deployment does not start or rows do not arrive.
pub async fn run_ingest(grid: &Grid, announce: impl Fn(Progress<'_>)) -> anyhow::Result<Vec<Measured>> {
    let mut all = Vec::new();
    for &hub_servers in &grid.hub_servers {
        for &tenants in &grid.tenants {
            announce(Progress::Starting { tenants, hub_servers });
            let mut fleet = Fleet::start(tenants, hub_servers).await.context("start a deployment")?;
            fleet.start_forwarders()?;
            let mut from_ms = now_ms() - BEGIN_MS;
            for &batch in &grid.batches {
                let cell = Cell { batch, tenants, hub_servers };
                let measured = measure(&mut fleet, cell, from_ms, &announce).await;
                let measured = measured.with_context(|| format!("{cell:?}"))?;
                announce(Progress::Done(&measured));
                all.push(measured);
                // The next cell's slots lie behind both of this one's fillings.
                from_ms += 2 * PASS_MS;
            }
            fleet.deployment.stop().await?;
        }
    }
    Ok(all)
}
