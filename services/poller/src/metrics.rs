//! What the poller counts and measures. docs/metrics.md says what to do about each; a test compares the two.

use bulkhead_bus::Lane;
use bulkhead_bus::payload::Outcome;
use bulkhead_runtime::{Counter, Labelled};
use tracing::info;

bulkhead_runtime::metrics! {
    /// Since the start of this process.
    pub struct Metrics("poller") {
        /// Slots by how they ended.
        results: Labelled<Outcome, Counter>,
        /// Missed slots of long gaps that got no result of their own.
        slots_uncounted: Counter,
        /// Results dropped, oldest first, because the spool was full.
        spool_dropped: Counter,
        /// Results that the leaf did not take before the process had to end.
        stop_dropped: Counter,
        /// Batches that the leaf acknowledged.
        batches_stored: Counter,
        /// Attempts that the leaf did not acknowledge.
        batches_retried: Counter,
        /// Batches dropped because the leaf can never store them.
        batches_refused: Counter,
        /// Display-only messages.
        live_published: Counter,
        /// Batches that the hub acknowledged.
        forwarded: Labelled<Lane, Counter>,
        /// Batches that waited too long to be live and were moved into the leaf's backfill stream.
        set_aside: Counter,
        /// Attempts that the hub did not acknowledge.
        forward_retried: Counter,
        /// Batches that the hub refused; they stay at the leaf.
        forward_refused: Counter,
    }
}

pub(crate) fn count(counter: &Counter, by: usize) {
    counter.inc_by(u64::try_from(by).unwrap_or(u64::MAX));
}

impl Metrics {
    pub(crate) fn count_outcome(&self, outcome: Outcome) {
        count(self.results.of(outcome), 1);
    }

    pub(crate) fn count_forwarded(&self, lane: Lane) {
        count(self.forwarded.of(lane), 1);
    }

    /// One line with every counter.
    pub(crate) fn log(&self) {
        info!("poller stopped: {}", self.page.counters());
    }
}
