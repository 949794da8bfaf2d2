//! How evenly a running poller starts its checks, by what its own results say.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_bus::payload::{Measured, Outcome, ResultBatch};
use bulkhead_runtime::now_ms;

use super::ours::Ours;
use super::target::Target;
use super::{ProbeKind, TIMEOUT_MS, WARM_UP, Work, pause};

const INTERVAL_S: u64 = 10;
/// Whole intervals, so that each check has the same share.
const LASTS: Duration = Duration::from_secs(30);
/// A batch waits a second for more, and what began last has to end.
const REST: Duration = Duration::from_secs(3);
const BUCKET_MS: i64 = 100;

/// Starts of checks by tenth of a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub checks: usize,
    pub started: usize,
    pub most: usize,
    pub most_to_mean: f64,
    /// From a slot's begin to its check's start.
    pub late_p99_ms: i64,
}

fn spread_of(checks: usize, from_ms: i64, results: &[Measured]) -> anyhow::Result<Spread> {
    let lasts_ms = i64::try_from(LASTS.as_millis())?;
    let within: Vec<&Measured> =
        results.iter().filter(|result| (from_ms..from_ms + lasts_ms).contains(&result.started_ms)).collect();
    let failed = within.iter().filter(|result| result.outcome != Outcome::Ok).count();
    ensure!(failed * 100 <= within.len(), "{failed} of {} failed", within.len());
    let wanted = checks * usize::try_from(LASTS.as_secs() / INTERVAL_S)?;
    ensure!(within.len() * 100 >= wanted * 99, "{} of {wanted} started", within.len());
    let mut buckets: BTreeMap<i64, usize> = BTreeMap::new();
    for result in &within {
        *buckets.entry((result.started_ms - from_ms) / BUCKET_MS).or_default() += 1;
    }
    let most = buckets.values().copied().max().unwrap_or(0);
    let mean = within.len() as f64 * BUCKET_MS as f64 / lasts_ms as f64;
    let mut late: Vec<i64> = within.iter().map(|result| result.started_ms - result.slot_ms).collect();
    late.sort_unstable();
    let late_p99_ms = late.get(late.len() * 99 / 100).copied().context("a check that started")?;
    Ok(Spread { checks, started: within.len(), most, most_to_mean: most as f64 / mean, late_p99_ms })
}

pub(super) async fn measure_spread(checks: usize, target: &Target) -> anyhow::Result<Spread> {
    let work = Work { kind: ProbeKind::Tcp, checks, interval_s: INTERVAL_S, timeout_ms: TIMEOUT_MS, target };
    let ours = Ours::start(&work).await?;
    pause(WARM_UP).await;
    let heard = ours.listen().await?;
    // What began before is still on its way.
    let from_ms = now_ms() + i64::try_from(REST.as_millis())?;
    pause(REST + LASTS + REST).await;
    let mut results = Vec::new();
    for message in heard.received() {
        let batch: ResultBatch = serde_json::from_slice(&message.body).context("read a batch")?;
        results.extend(batch.results);
    }
    ours.stop().await?;
    spread_of(checks, from_ms, &results)
}
