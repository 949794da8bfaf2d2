//! What the poller counts and measures. docs/metrics.md says what to do about each; a test compares the two.

use bulkhead_bus::Lane;
use bulkhead_bus::payload::{CheckKind, Outcome};
use bulkhead_runtime::{Ages, Counter, Durations, Gauge, Histogram, Labelled, SecondsGauge, StoreError};
use tracing::info;

bulkhead_runtime::label! {
    /// Why a batch was not taken this time.
    pub enum Cause("cause") {
        /// This poller's own connection is down.
        LeafAway = "leaf_away",
        /// Nothing takes the subject: for the hub, the leaf's link to it is down.
        NoStream = "no_stream",
        /// Nobody knows whether it was taken.
        NoAnswer = "no_answer",
        /// The stream, or the site's quota in it, is full.
        Full = "full",
        /// A stream answered that is not the one it is for.
        WrongStream = "wrong_stream",
        NotSent = "not_sent",
    }
}

bulkhead_runtime::label! {
    /// What the poller's connections to its leaf are for.
    pub enum Connection("connection") {
        Poller = "poller",
        Forwarder = "forwarder",
    }
}

impl Cause {
    /// `None` when the batch can never be taken.
    pub(crate) fn of(error: &StoreError) -> Option<Self> {
        match error {
            StoreError::NoStream(_) => Some(Self::NoStream),
            StoreError::Unknown(_) => Some(Self::NoAnswer),
            StoreError::Full { .. } => Some(Self::Full),
            StoreError::Send { .. } => Some(Self::NotSent),
            StoreError::Refused { .. } => None,
        }
    }
}

bulkhead_runtime::metrics! {
    /// Since the start of this process.
    pub struct Metrics("poller") {
        /// Slots by how they ended.
        results: Labelled<Outcome, Counter>,
        /// Missed slots of long gaps that got no result of their own.
        slots_uncounted: Counter,
        /// How long a check took.
        check_seconds: Labelled<CheckKind, Histogram<Durations>>,
        /// Checks that are under way, those that wait for their turn included.
        checks_running: Gauge,
        /// Checks that may run at the same time.
        checks_at_once_limit: Gauge,
        /// Checks that the hub has assigned to this poller and that it runs.
        checks_assigned: Gauge,
        /// Assigned checks that this release cannot run.
        checks_refused: Gauge,
        /// The generation of the assignment that is in force; 0 is none.
        assignment_generation: Gauge,
        /// Whether this process has a lease of its name: 1 or 0.
        lease_held: Gauge,
        /// Whether another process has its name: 1 or 0; then nothing that was assigned is run.
        fenced: Gauge,
        /// Leases granted and renewed, the leaf link's included.
        lease_renewals: Counter,
        /// Attempts to get or renew a lease without success.
        lease_failures: Counter,
        /// How far the clock is off, by the registry's; which way is in the registry.
        clock_off_seconds: SecondsGauge,
        /// Runs on demand.
        runs_on_demand: Counter,
        /// Steps back of the clock.
        clock_steps_back: Counter,
        /// How far the clock went back the last time.
        clock_step_back_seconds: SecondsGauge,

        /// Results that wait in memory for the leaf.
        spool_results: Gauge,
        /// Beyond it the oldest results are dropped.
        spool_limit_results: Gauge,
        /// Results that gave way to others of their minute because the spool was half full.
        spool_thinned: Counter,
        /// Results dropped, oldest first, because the spool was full.
        spool_dropped: Counter,
        /// Results that the leaf did not take before the process had to end.
        stop_dropped: Counter,
        /// Batches that the leaf acknowledged.
        batches_stored: Counter,
        /// Attempts that the leaf did not acknowledge.
        batches_retried: Labelled<Cause, Counter>,
        /// Batches dropped because the leaf can never store them.
        batches_refused: Counter,
        /// Display-only messages.
        live_published: Counter,
        /// Times that certificates were renewed.
        renewals: Counter,
        /// Attempts to renew certificates, or to have the leaf read them, that failed.
        renewals_failed: Counter,
        /// When the first of the machine's certificates ends; 0 where it does not renew them.
        certificate_end_timestamp_seconds: Gauge,

        /// Batches that the hub acknowledged.
        forwarded: Labelled<Lane, Counter>,
        /// From a batch's being stored at the leaf to its being acknowledged by the hub.
        forward_lag_seconds: Labelled<Lane, Histogram<Ages>>,
        /// Batches that waited too long to be live and were moved into the leaf's backfill stream.
        set_aside: Counter,
        /// How often a consumer was made anew because a batch was stranded in its stream.
        stranded_freed: Counter,
        /// Attempts that the hub, or the leaf's backfill stream, did not acknowledge.
        forward_retried: Labelled<Cause, Counter>,
        /// Batches with headers that are no text, which cost the connection to the leaf each time it hands them out.
        forward_unreadable: Counter,
        /// Batches that the hub refused; they stay at the leaf.
        forward_refused: Counter,
        /// Batches that the leaf handed out more than once.
        forward_redelivered: Labelled<Lane, Counter>,
        /// Whether the last attempt to forward a batch succeeded: 1 or 0.
        hub_open: Labelled<Lane, Gauge>,

        /// Whether the leaf has its link to the hub: 1 or 0; 0 where nobody looks.
        leaf_linked: Gauge,
        /// Times that the leaf's link to the hub was made anew, because there had been none for long.
        leaf_link_restarts: Counter,

        /// Connections to the leaf that are up.
        leaf_connections: Labelled<Connection, Gauge>,
        /// Batches that wait in the leaf's stream.
        leaf_batches: Labelled<Lane, Gauge>,
        /// What the leaf's stream takes on disk.
        leaf_bytes: Labelled<Lane, Gauge>,
        /// Beyond it the leaf's stream takes nothing.
        leaf_limit_bytes: Labelled<Lane, Gauge>,
        /// How long the oldest batch of the leaf's stream has waited.
        leaf_oldest_age_seconds: Labelled<Lane, SecondsGauge>,
        /// Batches of the leaf's stream that are on their way.
        leaf_unacknowledged: Labelled<Lane, Gauge>,
        /// When the leaf's streams were last seen, in unix time.
        leaf_seen_timestamp_seconds: Gauge,

        /// Whether the settings file is wrong and those before are in force: 1 or 0.
        settings_refused: Gauge,
        /// Settings of the file that wait for the next start.
        settings_waiting: Gauge,

        /// Room on the file system of the state folder.
        state_free_bytes: Gauge,
        /// Size of the file system of the state folder.
        state_size_bytes: Gauge,
    }
}

pub(crate) fn count(counter: &Counter, by: usize) {
    counter.inc_by(u64::try_from(by).unwrap_or(u64::MAX));
}

/// What a gauge shows of a number that is never near its end.
pub(crate) fn level(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
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
        info!(counters = self.page.counters(), "poller stopped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_testkit::Exposition;
    use bulkhead_testkit::scrape::differences;

    #[test]
    fn the_page_of_documentation_says_what_is_shown() {
        let shown = Exposition::parse(&Metrics::default().page.to_text()).unwrap();
        let page = include_str!("../../../docs/metrics.md");
        assert_eq!(differences(page, &shown, "poller_"), Vec::<String>::new());
        let page = page.replace("`poller_set_aside_total`", "`poller_set_aside_total_x`");
        assert_eq!(differences(&page, &shown, "poller_").len(), 2, "a difference goes unseen");
    }
}
