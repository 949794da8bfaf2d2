//! What the poller counts. Labels come from closed sets and never hold a name.

use std::sync::atomic::{AtomicU64, Ordering};

use bulkhead_bus::Lane;
use bulkhead_bus::payload::Outcome;
use tracing::info;

/// Counters since the start of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    /// `poller_results_total{outcome="ok"}`: slots whose target answered as it should.
    pub results_ok: AtomicU64,
    /// `poller_results_total{outcome="fail"}`: slots whose target did not.
    pub results_fail: AtomicU64,
    /// `poller_results_total{outcome="error"}`: slots that the poller could not measure.
    pub results_error: AtomicU64,
    /// `poller_results_total{outcome="missed"}`: slots that passed without a measurement.
    pub results_missed: AtomicU64,
    /// `poller_slots_uncounted_total`: missed slots of long gaps that got no result of their own.
    pub slots_uncounted: AtomicU64,
    /// `poller_spool_dropped_total`: results dropped, oldest first, because the spool was full.
    pub spool_dropped: AtomicU64,
    /// `poller_stop_dropped_total`: results that the leaf did not take before the process had to end.
    pub stop_dropped: AtomicU64,
    /// `poller_batches_stored_total`: batches that the leaf acknowledged.
    pub batches_stored: AtomicU64,
    /// `poller_batches_retried_total`: attempts that the leaf did not acknowledge.
    pub batches_retried: AtomicU64,
    /// `poller_batches_refused_total`: batches dropped because the leaf can never store them.
    pub batches_refused: AtomicU64,
    /// `poller_live_published_total`: display-only messages.
    pub live_published: AtomicU64,
    /// `poller_forwarded_total{lane="results"}`: batches that the hub acknowledged.
    pub forwarded_results: AtomicU64,
    /// `poller_forwarded_total{lane="backfill"}`: the same after an outage.
    pub forwarded_backfill: AtomicU64,
    /// `poller_set_aside_total`: batches that waited too long to be live and were moved into the leaf's backfill stream.
    pub set_aside: AtomicU64,
    /// `poller_stranded_freed_total`: how often a consumer was made anew because a message was stranded in its stream.
    pub stranded_freed: AtomicU64,
    /// `poller_forward_retried_total`: attempts that the hub did not acknowledge.
    pub forward_retried: AtomicU64,
    /// `poller_forward_refused_total`: batches that the hub refused; they stay at the leaf.
    pub forward_refused: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl Metrics {
    pub(crate) fn count_outcome(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Ok => &self.results_ok,
            Outcome::Fail => &self.results_fail,
            Outcome::Error => &self.results_error,
            Outcome::Missed => &self.results_missed,
        };
        count(counter, 1);
    }

    pub(crate) fn count_forwarded(&self, lane: Lane) {
        let counter = match lane {
            Lane::Results => &self.forwarded_results,
            Lane::Backfill => &self.forwarded_backfill,
        };
        count(counter, 1);
    }

    /// One line with every counter.
    pub(crate) fn log(&self) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        info!(
            results.ok = of(&self.results_ok),
            results.fail = of(&self.results_fail),
            results.error = of(&self.results_error),
            results.missed = of(&self.results_missed),
            slots.uncounted = of(&self.slots_uncounted),
            spool.dropped = of(&self.spool_dropped),
            stop.dropped = of(&self.stop_dropped),
            batches.stored = of(&self.batches_stored),
            batches.retried = of(&self.batches_retried),
            batches.refused = of(&self.batches_refused),
            live.published = of(&self.live_published),
            forwarded.results = of(&self.forwarded_results),
            forwarded.backfill = of(&self.forwarded_backfill),
            stranded.freed = of(&self.stranded_freed),
            set_aside = of(&self.set_aside),
            forward.retried = of(&self.forward_retried),
            forward.refused = of(&self.forward_refused),
            "poller stopped"
        );
    }
}
