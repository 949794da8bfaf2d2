//! Payloads: JSON, versioned, unknown fields ignored by readers. A breaking change is a new version, never a new meaning.

mod decision;
mod query;
mod result;

pub use decision::{ADMITTED, Decision, DecisionConnection, DecisionServer};
pub use query::{
    ErrorCode, HistoryRow, LIST_LIMIT_MAX, Latencies, LiveRow, PollerHistoryRow, PollerRow, Query, Reply, ReplyError,
    ResultRow, StateRow, StatusRow, TenantRow, UptimeRow,
};
pub use result::{
    BATCH_VERSION, CheckKind, DETAIL_BYTES_MAX, LiveResults, Measured, Outcome, RESULTS_PER_BATCH_MAX, Reason,
    ResultBatch,
};
