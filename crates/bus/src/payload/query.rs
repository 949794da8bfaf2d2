//! Questions of people and core's answers: one request shape, one row type for each verb, times in unix milliseconds.

use serde::{Deserialize, Serialize};

use super::result::{CheckKind, Measured, Outcome, Reason};
use crate::{CheckName, PollerName, SiteName, TenantSlug};

/// The most rows in one answer, so that it stays well under the server's payload limit of 1 MiB.
pub const LIST_LIMIT_MAX: u32 = 1_000;

/// What to show. Everything is optional; a field that a verb does not use is ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// From the platform: the tenant asked about, all when absent. From a tenant: nothing, or itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poller: Option<PollerName>,
    /// Only slots that begin at or after this, unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    /// Only slots that begin before this, unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// How long each bucket of a history is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket_s: Option<u32>,
    /// Rows at most, newest first; at most [`LIST_LIMIT_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

claims_tenant!(Query);

/// An answer: rows, or one error from a closed set with a sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<T> {
    Rows(Vec<T>),
    Error(ReplyError),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyError {
    pub code: ErrorCode,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not well formed.
    Invalid,
    /// The sender may not ask this.
    Refused,
    /// There is no such tenant.
    NotFound,
    /// The database cannot be asked now: try again.
    Unavailable,
    /// Another process has this identity, and a newer start: stop.
    Fenced,
    /// Something with this name is there already, or has changed meanwhile.
    Conflict,
    /// The plan does not allow that much.
    OverQuota,
    /// The request is not signed by a key that is known and good.
    NotSigned,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRow {
    pub tenant: TenantSlug,
    pub plan: String,
    pub state: String,
    pub isolation: String,
    pub sites: u32,
    pub pollers: u32,
    pub account: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollerRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
    /// When core last committed a batch of it; absent when it never did.
    pub last_batch_ms: Option<i64>,
    pub batch_key: String,
}

/// One committed slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
    pub check: CheckName,
    pub kind: CheckKind,
    pub slot_ms: i64,
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    pub latency_us: Option<u32>,
    pub attested: bool,
    /// Measured while the poller had no lease.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub island: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

/// The current state of one check at one vantage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
    pub check: CheckName,
    pub kind: CheckKind,
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    pub latency_us: Option<u32>,
    pub slot_ms: i64,
    /// Since when the outcome has been what it is.
    pub since_ms: i64,
}

/// The newest display-only result of one check; never from the database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
    pub received_ms: i64,
    pub measured: Measured,
}

/// One tenant at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRow {
    pub tenant: TenantSlug,
    pub plan: String,
    pub state: String,
    pub checks_ok: u32,
    pub checks_not_ok: u32,
    pub results: u64,
    pub dead_letters: u64,
    /// The newest committed slot.
    pub newest_slot_ms: Option<i64>,
    /// When a display-only result last came in; absent while the live view is dark.
    pub live_ms: Option<i64>,
}

/// One bucket of the history of a check at one vantage. A bucket without results is no row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub check: CheckName,
    pub begins_ms: i64,
    pub bucket_s: u32,
    pub results: u64,
    pub ok: u64,
    pub fail: u64,
    pub error: u64,
    pub missed: u64,
    /// Of the results that have a latency, whatever their outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latencies>,
}

/// Each was measured: nothing between two results is made up. Microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    pub min_us: u32,
    pub p50_us: u32,
    pub p90_us: u32,
    pub p99_us: u32,
    pub max_us: u32,
}

/// How one check did at one vantage over a window. Slots are counted, each as long as any other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UptimeRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub check: CheckName,
    /// Up.
    pub ok: u64,
    /// Down.
    pub fail: u64,
    /// The poller could not measure: neither up nor down.
    pub error: u64,
    /// Nothing was measured: neither up nor down.
    pub missed: u64,
    /// Of the slots that are known to be up or down, how many were up; absent when none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_percent: Option<f64>,
    /// Of the slots that the window has, up to now, how many are known to be up or down; absent without `slot_length_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage_percent: Option<f64>,
    /// From one slot to the next, as most of the window's are apart; absent when there are not two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_length_ms: Option<i64>,
    /// Slots that were down, by the length of a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_ms: Option<i64>,
    /// How often it went down: runs of `fail` that no `ok` interrupts.
    pub outages: u64,
    /// The most slots that were down in one run, by the length of a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_outage_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_slot_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_slot_ms: Option<i64>,
}

/// What one poller delivered, by slots. A bucket without results is no row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollerHistoryRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
    pub begins_ms: i64,
    pub bucket_s: u32,
    /// `missed` and `error` among them.
    pub results: u64,
    pub error: u64,
    pub missed: u64,
    /// Measured without a valid lease.
    pub islands: u64,
    /// In signed batches.
    pub attested: u64,
    pub first_slot_ms: i64,
    pub last_slot_ms: i64,
    /// From the beginning of a slot to when its result was stored.
    pub delay_p50_ms: i64,
    pub delay_p99_ms: i64,
}
