//! How evenly running pollers start their checks, by what their own results say.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_bus::payload::{Measured, Outcome, ResultBatch};
use bulkhead_runtime::now_ms;
use bulkhead_testkit::RawClient;

use super::ours::Ours;
use super::target::Target;
use super::{ProbeKind, TIMEOUT_MS, WARM_UP, Work, pause};

const INTERVAL_S: u64 = 10;
/// What a poller takes of checks in its own settings; more of them are several pollers'.
const OWN_CHECKS_MOST: usize = 5_000;
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
    let mut pollers = Vec::new();
    for first in (0..checks).step_by(OWN_CHECKS_MOST) {
        let work = Work {
            kind: ProbeKind::Tcp,
            first,
            checks: OWN_CHECKS_MOST.min(checks - first),
            interval_s: INTERVAL_S,
            timeout_ms: TIMEOUT_MS,
            target,
        };
        pollers.push(Ours::start(&work).await?);
    }
    pause(WARM_UP).await;
    let mut heard = Vec::new();
    for poller in &pollers {
        heard.push(poller.listen().await?);
    }
    // What began before is still on its way.
    let from_ms = now_ms() + i64::try_from(REST.as_millis())?;
    pause(REST + LASTS + REST).await;
    let mut results = Vec::new();
    for message in heard.iter().flat_map(RawClient::received) {
        let batch: ResultBatch = serde_json::from_slice(&message.body).context("read a batch")?;
        results.extend(batch.results);
    }
    for poller in pollers {
        poller.stop().await?;
    }
    spread_of(checks, from_ms, &results)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::CheckKind;

    fn started(from_ms: i64, count: usize) -> impl Iterator<Item = Measured> {
        (0..count).map(move |number| Measured {
            check: format!("check-{number}").parse().unwrap(),
            kind: CheckKind::Tcp,
            slot_ms: from_ms - 2,
            started_ms: from_ms,
            outcome: Outcome::Ok,
            reason: None,
            latency_us: Some(1),
            generation: 0,
            island: false,
            detail: BTreeMap::new(),
        })
    }

    #[test]
    fn the_fullest_tenth_of_a_second_is_held_against_the_mean() {
        let even: Vec<Measured> = (0..300).flat_map(|bucket| started(1_000 + bucket * BUCKET_MS, 1)).collect();
        let spread = spread_of(100, 1_000, &even).unwrap();
        assert_eq!((spread.started, spread.most, spread.most_to_mean, spread.late_p99_ms), (300, 1, 1.0, 2));
        let heaped: Vec<Measured> = even.into_iter().skip(2).chain(started(5_050, 2)).collect();
        assert_eq!(spread_of(100, 1_000, &heaped).unwrap().most, 3);
        assert!(spread_of(200, 1_000, &heaped).is_err(), "half of the checks did not start");
    }
}
