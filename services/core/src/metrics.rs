//! What core counts and measures. docs/metrics.md says what to do about each; a test compares the two.

use bulkhead_bus::Lane;
use bulkhead_directory::{Answers, Failure, PoolState};
use bulkhead_runtime::{Ages, Amounts, Counter, Durations, Gauge, Histogram, Labelled, SecondsGauge};

use crate::admission::DeadReason;

bulkhead_runtime::label! {
    /// Plans, as far as a page may tell tenants apart.
    pub enum PlanClass("class") {
        Free = "free",
        Pro = "pro",
        Enterprise = "enterprise",
        /// A plan of a later release, or no tenant's.
        Unknown = "unknown",
    }
}

bulkhead_runtime::label! {
    /// What core's connections to the hub are for.
    pub enum Connection("connection") {
        Stream = "stream",
        Rpc = "rpc",
        Live = "live",
    }
}

impl PlanClass {
    #[must_use]
    pub fn of_plan(plan: &str) -> Self {
        Self::ALL.iter().copied().find(|class| class.as_str() == plan).unwrap_or(Self::Unknown)
    }
}

bulkhead_runtime::metrics! {
    /// Since the start of this process.
    pub struct Metrics("core") {
        /// Batches taken from a stream, redeliveries included.
        batches_received: Counter,
        /// Of these, batches that had been delivered before.
        batches_redelivered: Labelled<Lane, Counter>,
        /// Rows stored for the first time.
        results_committed: Counter,
        /// Rows that took the place of a worse one.
        results_replaced: Counter,
        /// Rows that were there already.
        results_duplicate: Counter,
        /// Rows removed because their tenant's plan keeps them no longer, in partitions that stay.
        results_expired: Counter,
        /// Partitions of results dropped because nobody keeps anything of them.
        partitions_dropped: Counter,
        /// Messages or rows dead-lettered.
        dead_letters: Labelled<DeadReason, Counter>,
        /// Dead letters that were only counted, because the tenant has its fill of them.
        dead_letters_not_kept: Counter,
        /// Deliveries put back because the database was away or misconfigured, or the account or the key not known yet.
        deliveries_retried: Counter,
        /// How often a consumer was made anew because a batch was stranded in its stream.
        stranded_freed: Counter,
        /// Messages and queries that the guard refused.
        guard_refusals: Counter,
        /// Queries answered.
        queries_answered: Counter,
        /// Answers that had more rows than one message holds.
        answers_cut: Counter,
        /// Requests whose reply subject was not made by the server.
        requests_unanswerable: Counter,
        /// Live messages shown.
        live_received: Counter,
        /// Live messages dropped: unreadable, refused, or beyond a tenant's limit.
        live_dropped: Counter,

        /// From a batch's being stored at the hub to its being committed.
        commit_lag_seconds: Labelled<Lane, Histogram<Ages>>,
        /// Age, when it is committed, of the oldest slot of each tenant's part of a transaction.
        slot_age_seconds: Labelled<Lane, Histogram<Ages>>,
        /// Transactions that committed.
        transactions: Labelled<Lane, Counter>,
        /// How long a transaction took, whether it committed or not.
        transaction_seconds: Labelled<Lane, Histogram<Durations>>,
        /// Rows of one transaction.
        transaction_rows: Labelled<Lane, Histogram<Amounts>>,
        /// What the database did not do.
        database_errors: Labelled<Failure, Counter>,

        /// Batches in the hub's stream, by the plan of their tenant.
        backlog_batches: Labelled<(Lane, PlanClass), Gauge>,
        /// What the hub's stream takes on disk.
        stream_bytes: Labelled<Lane, Gauge>,
        /// Beyond it the hub's stream takes nothing.
        stream_limit_bytes: Labelled<Lane, Gauge>,
        /// How long the oldest batch of the hub's stream has waited.
        stream_oldest_age_seconds: Labelled<Lane, SecondsGauge>,
        /// Batches of the hub's stream that were not delivered yet.
        consumer_waiting: Labelled<Lane, Gauge>,
        /// Batches that were delivered and not acknowledged.
        consumer_unacknowledged: Labelled<Lane, Gauge>,
        /// Of these, batches that were delivered more than once.
        consumer_redelivered: Labelled<Lane, Gauge>,
        /// When the hub's streams were last seen, in unix time.
        hub_seen_timestamp_seconds: Gauge,
        /// Connections to the hub that are up.
        hub_connections: Labelled<Connection, Gauge>,

        /// Whether the database answered the last time: 1 or 0.
        database_reached: Gauge,
        /// Connections to the database.
        database_connections: Labelled<PoolState, Gauge>,
        /// What the database takes on its disk.
        database_bytes: Gauge,
        /// When the database was last measured, in unix time.
        database_seen_timestamp_seconds: Gauge,
        /// When core last knew that its list of tenants is that of the database, in unix time.
        tenants_seen_timestamp_seconds: Gauge,
        /// Tenants that core knows, by plan.
        tenants: Labelled<PlanClass, Gauge>,
    }
}

impl Metrics {
    /// What the database says, shown on this page.
    #[must_use]
    pub fn answers(&self) -> Answers {
        Answers::new(&self.page, self.database_reached.clone(), self.database_errors.clone())
    }
}

/// Adds to a counter.
pub fn add(counter: &Counter, count: u64) {
    counter.inc_by(count);
}

/// What a gauge shows of a number that is never near its end.
pub(crate) fn level(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
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
        assert_eq!(differences(page, &shown, "core_"), Vec::<String>::new());
        let page = page.replace("`core_tenants`", "`core_tenants_x`");
        assert_eq!(differences(&page, &shown, "core_").len(), 2, "a difference goes unseen");
    }

    #[test]
    fn plans_are_classes_and_what_is_new_is_unknown() {
        for (plan, class) in [
            ("free", PlanClass::Free),
            ("pro", PlanClass::Pro),
            ("enterprise", PlanClass::Enterprise),
            ("gold", PlanClass::Unknown),
        ] {
            assert_eq!(PlanClass::of_plan(plan), class);
        }
    }
}
