//! Payloads: JSON, versioned, unknown fields ignored by readers. A breaking change is a new version, never a new meaning.

/// Payloads that say nothing of their sender.
macro_rules! claims_nothing {
    ($($name:ident),+) => {
        $(impl crate::guard::Claim for $name {
            fn claimed(&self) -> crate::guard::Claimed<'_> {
                crate::guard::Claimed::default()
            }
        })+
    };
}

/// Payloads that may name a tenant: the platform's target, or the sender itself. A site or poller in them is whom they are about.
macro_rules! claims_tenant {
    ($($name:ident),+) => {
        $(impl crate::guard::Claim for $name {
            fn claimed(&self) -> crate::guard::Claimed<'_> {
                crate::guard::Claimed { tenant: self.tenant.as_deref(), site: None, poller: None }
            }
        })+
    };
}

mod check;
mod decision;
mod member;
mod query;
mod result;

pub use check::{
    AssignedCheck, AssignmentPage, AssignmentRow, CHANGES_MOST, ChangeChecks, ChangedCheck, CheckChange,
    CheckDefinition, CheckRow, EndedCheck, FetchAssignment, FetchRuns, GapKind, GapRow, PAGE_BYTES_MOST,
    PAGE_CHECKS_MOST, Probe, RUN_DEADLINE_MS_MOST, ReportRun, RunCheck, RunOrder, RunRow, SealedFor, SealingKeyRow,
    SecretQuery, SecretRow, SetSecret,
};
pub use decision::{ADMITTED, Decision, DecisionConnection, DecisionServer};
pub use member::{
    Capability, DegradedBecause, Deregister, LABEL_BYTES_MOST, LABELS_MOST, LEASE_VERSION, LeaseGrant, Load,
    MemberEventRow, MemberHold, MemberInfo, MemberPage, MemberPageQuery, MemberQuery, MemberRow, MemberState, Pick,
    Register, Renew, ReportedState, known_of_list,
};
pub use query::{
    ErrorCode, HistoryRow, LIST_LIMIT_MAX, Latencies, LiveRow, PollerHistoryRow, PollerRow, Query, Reply, ReplyError,
    ResultRow, StateRow, StatusRow, TenantRow, UptimeRow,
};
pub use result::{
    BATCH_VERSION, CheckKind, DETAIL_BYTES_MAX, LiveResults, Measured, Outcome, RESULTS_PER_BATCH_MAX, Reason,
    ResultBatch,
};
