//! What poller-dispatch counts and measures. docs/metrics.md says what to do about each; a test compares the two.

use bulkhead_directory::{Answers, Failure, PoolState};
use bulkhead_runtime::{Counter, Durations, Gauge, Histogram, Labelled};

bulkhead_runtime::label! {
    /// How a plan ended.
    pub enum Planned("planned") {
        /// Nothing had to change.
        Unchanged = "unchanged",
        /// A new generation is in force.
        Changed = "changed",
        /// Somebody else plans now.
        StaleLeader = "stale_leader",
        /// The view of leases was older than that of the plan before.
        OlderLeases = "older_leases",
        /// The database did not do what was asked.
        Failed = "failed",
    }
}

bulkhead_runtime::label! {
    /// Why a request of a poller was refused.
    pub enum RequestRefusal("refusal") {
        Unreadable = "unreadable",
        Guard = "guard",
        NotSigned = "not_signed",
        ForeignKey = "foreign_key",
        Revoked = "revoked",
        Replayed = "replayed",
        Fenced = "fenced",
    }
}

bulkhead_runtime::label! {
    /// How a run on demand ended at one vantage.
    pub enum RunEnd("ended") {
        Reported = "reported",
        Missed = "missed",
    }
}

bulkhead_runtime::label! {
    /// What connections to the hub are for.
    pub enum HubConnection("connection") {
        DispatchRpc = "dispatch_rpc",
        DispatchPush = "dispatch_push",
    }
}

bulkhead_runtime::metrics! {
    /// Since the start of this process.
    pub struct Metrics("dispatch") {
        /// Whether this replica plans: 1 or 0.
        is_leader: Gauge,
        /// How often this replica began to plan.
        elections: Counter,
        /// Plans by how they ended.
        plans: Labelled<Planned, Counter>,
        /// How long a plan took, its question to the registry and its transaction included.
        plan_seconds: Histogram<Durations>,
        /// Tenants that wait to be planned.
        tenants_waiting: Gauge,
        /// Tenants of which nobody is taken for lost now, because the registry cannot tell.
        tenants_held: Gauge,
        /// Assignments that began, first ones included.
        assignments_begun: Counter,
        /// Assignments that ended because their poller was lost.
        assignments_lost: Counter,
        /// Checks at a vantage that nobody can run, as this replica last planned.
        assignments_without_poller: Gauge,
        /// Wake-ups sent to pollers.
        wake_ups: Counter,
        /// Requests of pollers answered.
        requests_answered: Counter,
        /// Requests of pollers refused.
        requests_refused: Labelled<RequestRefusal, Counter>,
        /// Questions and orders of people answered, refused ones included.
        orders_answered: Counter,
        /// Messages of people that the guard refused.
        guard_refusals: Counter,
        /// Requests whose reply subject was not made by the server.
        requests_unanswerable: Counter,
        /// Checks that people added, changed or removed.
        checks_changed: Counter,
        /// Runs on demand by how they ended.
        runs: Labelled<RunEnd, Counter>,
        /// Connections to the hub that are up.
        hub_connections: Labelled<HubConnection, Gauge>,
        /// What the database did not do.
        database_errors: Labelled<Failure, Counter>,
        /// Whether the database answered the last time: 1 or 0.
        database_reached: Gauge,
        /// Connections to the database.
        database_connections: Labelled<PoolState, Gauge>,
        /// When it was last known that the list of tenants is that of the database, in unix time.
        tenants_seen_timestamp_seconds: Gauge,
    }
}

impl Metrics {
    /// What the database says, shown on this page.
    #[must_use]
    pub fn answers(&self) -> Answers {
        Answers::new(&self.page, self.database_reached.clone(), self.database_errors.clone())
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
        assert_eq!(differences(page, &shown, "dispatch_"), Vec::<String>::new());
        let page = page.replace("`dispatch_is_leader`", "`dispatch_is_leader_x`");
        assert_eq!(differences(&page, &shown, "dispatch_").len(), 2, "a difference goes unseen");
    }
}
