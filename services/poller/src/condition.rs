//! How this poller is: what it reports of itself, from what it measures of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use bulkhead_bus::payload::{DegradedBecause, Load, ReportedState};
use bulkhead_runtime::age_seconds;

use crate::metrics::Metrics;

/// A clock that is off by more is worth saying.
const CLOCK_OFF_MS: i64 = 1_000;
/// Below this share of its size, in percent, or below so many bytes, a disk is nearly full.
const FREE_LEAST_PERCENT: i64 = 2;
const FREE_LEAST_BYTES: i64 = 32 * 1024 * 1024;
/// A stream of the leaf that is fuller than this, in percent, is nearly full.
const LEAF_FULL_PERCENT: i64 = 95;

/// What is seen where it happens; the rest is read from the metrics.
pub(crate) struct Condition {
    metrics: Arc<Metrics>,
    /// The first assignment has been applied, or there is none.
    pub(crate) has_joined: AtomicBool,
    pub(crate) is_draining: AtomicBool,
    /// The last batch was not taken by the leaf.
    pub(crate) is_leaf_shut: AtomicBool,
    /// The state folder took no file.
    pub(crate) is_disk_full: AtomicBool,
    /// Checks are to be run that this machine does not permit.
    pub(crate) is_hindered: AtomicBool,
    clock_ahead_ms: AtomicI64,
    /// The generation of the assignment that is applied; 0 is none.
    pub(crate) applied: AtomicI64,
    /// Assigned checks without an end.
    pub(crate) lasting: AtomicUsize,
    /// When the last of the others ends; 0 where there are none.
    pub(crate) ends_ms: AtomicI64,
}

impl Condition {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            has_joined: AtomicBool::default(),
            is_draining: AtomicBool::default(),
            is_leaf_shut: AtomicBool::default(),
            is_disk_full: AtomicBool::default(),
            is_hindered: AtomicBool::default(),
            clock_ahead_ms: AtomicI64::default(),
            applied: AtomicI64::default(),
            lasting: AtomicUsize::default(),
            ends_ms: AtomicI64::default(),
        }
    }

    /// By how much this machine's clock is ahead of the registry's.
    pub(crate) fn see_clock(&self, ahead_ms: i64) {
        self.clock_ahead_ms.store(ahead_ms, Ordering::Relaxed);
        self.metrics.clock_off_seconds.set(age_seconds(0, ahead_ms.saturating_abs()));
    }

    pub(crate) fn reasons(&self) -> Vec<DegradedBecause> {
        let metrics = &self.metrics;
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let is_over =
            |level: i64, most: i64, percent: i64| most > 0 && level.saturating_mul(100) > most.saturating_mul(percent);
        let (free, size) = (metrics.state_free_bytes.get(), metrics.state_size_bytes.get());
        let is_tight =
            size > 0 && (free < FREE_LEAST_BYTES || free.saturating_mul(100) < size.saturating_mul(FREE_LEAST_PERCENT));
        let is_leaf_full = bulkhead_bus::Lane::ALL.iter().any(|lane| {
            is_over(metrics.leaf_bytes.of(*lane).get(), metrics.leaf_limit_bytes.of(*lane).get(), LEAF_FULL_PERCENT)
        });
        let clock_off_ms = self.clock_ahead_ms.load(Ordering::Relaxed).saturating_abs();
        let found = [
            (DegradedBecause::Backlog, is_over(metrics.spool_results.get(), metrics.spool_limit_results.get(), 50)),
            (DegradedBecause::DiskFull, is_tight || is_leaf_full || is_set(&self.is_disk_full)),
            (DegradedBecause::Clock, clock_off_ms > CLOCK_OFF_MS),
            (
                DegradedBecause::Overloaded,
                is_over(metrics.checks_running.get(), metrics.checks_at_once_limit.get(), 100),
            ),
            (DegradedBecause::LeafAway, is_set(&self.is_leaf_shut)),
            (DegradedBecause::NotPermitted, is_set(&self.is_hindered)),
        ];
        found.into_iter().filter(|(_, is_so)| *is_so).map(|(reason, _)| reason).collect()
    }

    pub(crate) fn state(&self) -> (ReportedState, Vec<DegradedBecause>) {
        let reasons = self.reasons();
        let state = if self.is_draining.load(Ordering::Relaxed) {
            ReportedState::Draining
        } else if !self.has_joined.load(Ordering::Relaxed) {
            ReportedState::Joining
        } else if reasons.is_empty() {
            ReportedState::Ready
        } else {
            ReportedState::Degraded
        };
        (state, reasons)
    }

    pub(crate) fn load(&self) -> Load {
        let small = |level: i64| u32::try_from(level).unwrap_or(0);
        Load {
            checks: small(self.metrics.checks_assigned.get()),
            running: small(self.metrics.checks_running.get()),
            waiting: self.metrics.spool_results.get().max(0).unsigned_abs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_what_is_said() {
        let metrics = Arc::new(Metrics::default());
        let condition = Condition::new(Arc::clone(&metrics));
        assert_eq!(condition.state(), (ReportedState::Joining, vec![]));
        condition.has_joined.store(true, Ordering::Relaxed);
        assert_eq!(condition.state(), (ReportedState::Ready, vec![]));
        metrics.spool_limit_results.set(1_000);
        metrics.spool_results.set(501);
        metrics.state_size_bytes.set(1_000_000_000_000);
        metrics.state_free_bytes.set(1_000_000_000);
        metrics.checks_at_once_limit.set(4);
        metrics.checks_running.set(5);
        condition.see_clock(-1_001);
        condition.is_leaf_shut.store(true, Ordering::Relaxed);
        condition.is_hindered.store(true, Ordering::Relaxed);
        use DegradedBecause::{Backlog, Clock, DiskFull, LeafAway, NotPermitted, Overloaded};
        let all = vec![Backlog, DiskFull, Clock, Overloaded, LeafAway, NotPermitted];
        assert_eq!(condition.state(), (ReportedState::Degraded, all));
        condition.is_draining.store(true, Ordering::Relaxed);
        assert_eq!(condition.state().0, ReportedState::Draining);
        metrics.spool_results.set(500);
        condition.see_clock(1_000);
        assert!(!condition.reasons().contains(&Backlog) && !condition.reasons().contains(&Clock));
    }
}
