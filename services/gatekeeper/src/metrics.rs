//! What the gatekeeper counts and measures. docs/metrics.md says what to do about each; a test compares the two.

use bulkhead_runtime::{Counter, Durations, Gauge, Histogram, Labelled};

bulkhead_runtime::label! {
    /// How a connection's question ended. docs/wire.md says what each means.
    pub enum Outcome("decision") {
        Admitted = "admitted",
        NoCertificate = "no_certificate",
        Expired = "expired",
        NotYetGood = "not_yet_good",
        NoIdentity = "no_identity",
        Untrusted = "untrusted",
        UnknownAuthority = "unknown_authority",
        OtherTenant = "other_tenant",
        Revoked = "revoked",
        Closed = "closed",
        Kind = "kind",
        UnknownSite = "unknown_site",
        LeafName = "leaf_name",
        UnknownPerson = "unknown_person",
        UnknownRole = "unknown_role",
        Source = "source",
        /// The server that asks is none of ours, or SYS cannot be asked.
        UnknownServer = "unknown_server",
        /// The account's key for the role is not here.
        NoKey = "no_key",
        /// Neither stream nor spool took the decision.
        NotRecorded = "not_recorded",
        /// It took longer than a server may wait.
        TooSlow = "too_slow",
        /// The question is more than a minute old or young, by this machine's clock.
        Clock = "clock",
        /// The account's record has changed while it was decided.
        Changed = "changed",
        /// The certificate was found where it does not belong, within a day.
        Barred = "barred",
    }
}

bulkhead_runtime::label! {
    /// What the detective found about somebody who is in.
    pub enum Finding("finding") {
        /// In the account where everybody knocks and nobody stays.
        InSentinel = "in_sentinel",
        /// With a certificate that is not the account's.
        ForeignCertificate = "foreign_certificate",
        /// By a token that no gatekeeper has signed.
        ForeignIssuer = "foreign_issuer",
        /// Let in by a decision, and would not be let in now: the record has changed since.
        Withdrawn = "withdrawn",
        /// With a certificate that was found where it does not belong, within a day.
        Barred = "barred",
        /// In an account that the gate does not know.
        UnknownAccount = "unknown_account",
    }
}

impl Outcome {
    /// The label of a code; every code has one.
    #[must_use]
    pub fn of(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|outcome| outcome.as_str() == code)
    }
}

bulkhead_runtime::metrics! {
    /// Everything on the gatekeeper's page.
    pub struct Metrics("gatekeeper") {
        /// Questions of servers, by how they ended.
        decisions: Labelled<Outcome, Counter>,
        /// From a question to its answer.
        decision_seconds: Histogram<Durations>,
        /// Questions that no server of ours can have asked, or that cannot be read; nobody is answered.
        requests_unreadable: Counter,
        /// Decisions that went to the spool because their stream did not take them.
        decisions_spooled: Counter,
        /// Refusals that were not written down, because many like them were.
        decisions_left_out: Counter,
        /// Sweeps of the detective that are over.
        sweeps: Counter,
        /// Sweeps of the detective that saw not everybody.
        sweeps_cut: Counter,
        /// Records and keys that were not taken, because they are not good or older than what was seen.
        records_refused: Counter,
        /// Connections that do not belong where they are, by what is wrong with them; all but those of unknown accounts are
        /// closed.
        detective_findings: Labelled<Finding, Counter>,
        /// Accounts that may be entered.
        accounts: Gauge,
        /// Whether the bucket with the records is watched: 1 or 0. Without it the last known records count.
        bucket_watched: Gauge,
    }
}

/// Adds to a counter.
pub fn add(counter: &Counter, count: u64) {
    counter.inc_by(count);
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
        assert_eq!(differences(page, &shown, "gatekeeper_"), Vec::<String>::new());
        let page = page.replace("`gatekeeper_accounts`", "`gatekeeper_accounts_x`");
        assert_eq!(differences(&page, &shown, "gatekeeper_").len(), 2, "a difference goes unseen");
    }
}
