//! What the registry counts and measures. docs/metrics.md says what to do about each; a test compares the two.

use bulkhead_bus::payload::MemberState;
use bulkhead_directory::{Answers, Failure, PoolState};
use bulkhead_runtime::{Counter, Durations, Gauge, Histogram, Labelled};

use crate::trust::{Doubt, Standing};
use crate::view::View;

bulkhead_runtime::label! {
    /// What was granted.
    pub enum Granted("verb") {
        Register = "register",
        Renew = "renew",
        Deregister = "deregister",
    }
}

bulkhead_runtime::label! {
    /// Why a request for a lease was refused.
    pub enum RefusedFor("reason") {
        /// `TenantGuard` refused: an unknown or closed account, or a body that names somebody else.
        Guard = "guard",
        Malformed = "malformed",
        Unsigned = "unsigned",
        BadSignature = "bad_signature",
        /// The key is not the one of that poller, or of no poller of that site.
        ForeignKey = "foreign_key",
        Revoked = "revoked",
        Replayed = "replayed",
        Fenced = "fenced",
        NoLease = "no_lease",
    }
}

bulkhead_runtime::label! {
    /// What connections to the hub are for.
    pub enum Connection("connection") {
        Rpc = "rpc",
        Keep = "keep",
    }
}

bulkhead_runtime::label! {
    /// States of members, as others see them.
    pub enum Seen("state") {
        Joining = "joining",
        Ready = "ready",
        Degraded = "degraded",
        Draining = "draining",
        Quarantined = "quarantined",
        Gone = "gone",
        Lost = "lost",
        Unknown = "unknown",
    }
}

impl Seen {
    fn of(state: MemberState) -> Option<Self> {
        match state {
            MemberState::Joining => Some(Self::Joining),
            MemberState::Ready => Some(Self::Ready),
            MemberState::Degraded => Some(Self::Degraded),
            MemberState::Draining => Some(Self::Draining),
            MemberState::Quarantined => Some(Self::Quarantined),
            MemberState::Gone => Some(Self::Gone),
            MemberState::Lost => Some(Self::Lost),
            MemberState::Unknown => Some(Self::Unknown),
            // Of those the buckets know nothing.
            MemberState::Never => None,
        }
    }
}

bulkhead_runtime::metrics! {
    /// Since the start of this process.
    pub struct Metrics("registry") {
        /// Requests of members that were granted.
        requests_granted: Labelled<Granted, Counter>,
        /// Requests of members that were delivered twice and changed nothing.
        requests_repeated: Counter,
        /// Requests of members that were refused.
        requests_refused: Labelled<RefusedFor, Counter>,
        /// Requests that could not be decided because the hub or the database did not answer.
        requests_undecided: Counter,
        /// Requests whose reply subject was not made by the server.
        requests_unanswerable: Counter,
        /// How long it took to decide about a request of a member and to keep it.
        request_seconds: Histogram<Durations>,
        /// Writes that others came before, and that were decided about again.
        writes_contended: Counter,
        /// Leases that expired while this replica watched.
        leases_expired: Counter,
        /// How often nothing was believed for a while.
        doubts: Labelled<Doubt, Counter>,
        /// Whether who has no lease is taken for lost: 1 or 0.
        view_known: Gauge,
        /// Members, by state.
        members: Labelled<Seen, Gauge>,
        /// Questions of people and services that were answered.
        questions_answered: Counter,
        /// Answers that had more rows than one message holds.
        answers_cut: Counter,
        /// Questions that the guard refused.
        guard_refusals: Counter,
        /// Questions that wait for a change.
        questions_waiting: Gauge,
        /// Questions that were not let wait, because too many do.
        waits_refused: Counter,
        /// How often services were told of changed members.
        changes_told: Counter,
        /// Events of members written into the database.
        events_written: Counter,
        /// Events of members that were not written: the queue was full, the tenant is gone, or the database refuses them.
        events_dropped: Counter,
        /// Connections to the hub that are up.
        hub_connections: Labelled<Connection, Gauge>,
        /// What the database did not do.
        database_errors: Labelled<Failure, Counter>,
        /// Whether the database answered the last time: 1 or 0.
        database_reached: Gauge,
        /// Connections to the database.
        database_connections: Labelled<PoolState, Gauge>,
        /// When the registry last knew that its list of tenants is that of the database, in unix time.
        tenants_seen_timestamp_seconds: Gauge,
    }
}

impl Metrics {
    /// What the database says, shown on this page.
    #[must_use]
    pub fn answers(&self) -> Answers {
        Answers::new(&self.page, self.database_reached.clone(), self.database_errors.clone())
    }

    /// Shows whom the view knows whenever the page is rendered.
    pub fn show_members(&self, view: View) {
        let (known, members) = (self.view_known.clone(), self.members.clone());
        self.page.before_rendering(move || {
            let mut counts = [0_i64; Seen::ALL.len()];
            let standing = view.look(|members, standing, _| {
                for seen in members.all().filter_map(|member| Seen::of(member.state(standing).0)) {
                    counts[seen as usize] += 1;
                }
                standing
            });
            known.set(i64::from(standing == Standing::Known));
            for &seen in Seen::ALL {
                members.of(seen).set(counts[seen as usize]);
            }
        });
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
        assert_eq!(differences(page, &shown, "registry_"), Vec::<String>::new());
        let page = page.replace("`registry_members`", "`registry_members_x`");
        assert_eq!(differences(&page, &shown, "registry_").len(), 2, "a difference goes unseen");
    }
}
