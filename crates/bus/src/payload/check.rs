//! Checks as a tenant's configuration, what pollers are given of them, runs on demand, and secrets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::result::{Measured, Outcome, Reason};
use crate::{CheckName, PollerName, SiteName, TenantSlug};

/// Changes in one request at most.
pub const CHANGES_MOST: usize = 5_000;
/// A run on demand ends within this.
pub const RUN_DEADLINE_MS_MOST: u64 = 60_000;
/// Checks in one page of an assignment at most, and their bytes as JSON.
pub const PAGE_CHECKS_MOST: usize = 500;
pub const PAGE_BYTES_MOST: usize = 512 * 1024;

/// What is run, without where. Judged by `crates/checks`; on the wire its type is text, so that a page with a type that a
/// poller does not know is still a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub name: CheckName,
    #[serde(rename = "type")]
    pub kind: String,
    pub target: String,
    pub interval_s: u64,
    pub timeout_ms: u64,
    /// How often a run that failed is tried again within its slot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u8,
    /// Of its type, such as `expect_status`. A value `{"secret": "name"}` is put in by the poller.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u8) -> bool {
    *number == 0
}

/// One check as people wrote it, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckDefinition {
    #[serde(flatten)]
    pub probe: Probe,
    /// Where it is run: at these sites, or where pollers have these labels. One of the two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteName>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// At how many sites; all of `sites` when absent, one for `labels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vantages: Option<u16>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// One change of a tenant's checks. A definition is as people wrote it: poller-dispatch judges it, and says all that is wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckChange {
    /// A new one; a name that is taken is a conflict.
    Add {
        definition: Value,
    },
    /// Whatever was there before.
    Put {
        definition: Value,
    },
    /// Only these fields, of a check that is there; `null` takes a field back to its default.
    Edit {
        name: String,
        fields: BTreeMap<String, Value>,
    },
    Remove {
        name: String,
    },
    Pause {
        name: String,
    },
    Resume {
        name: String,
    },
}

/// All of it or nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeChecks {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    pub changes: Vec<CheckChange>,
    /// Checks that are not named by any change are removed: what is wanted is all there is.
    #[serde(default)]
    pub removes_others: bool,
    /// Says what would change, and changes nothing.
    #[serde(default)]
    pub is_rehearsal: bool,
}

/// What became, or would become, of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedCheck {
    pub tenant: TenantSlug,
    pub check: CheckName,
    /// `added`, `changed`, `removed`, `paused`, `resumed`, `unchanged`.
    pub act: String,
    /// 0 of one that was removed.
    pub revision: i64,
}

/// `list_checks` of core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRow {
    pub tenant: TenantSlug,
    pub definition: CheckDefinition,
    pub revision: i64,
    pub changed_ms: i64,
    /// At how many vantages it is run now.
    pub vantages_assigned: u32,
}

/// `list_assignments` of core: who runs a check at a vantage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub check: CheckName,
    /// Absent when nobody can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poller: Option<PollerName>,
    pub generation: i64,
    pub revision: i64,
    pub from_ms: i64,
}

/// Why a slot has no measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapKind {
    /// Whoever ran the check says so, with a reason.
    Missed,
    /// Nobody could run it.
    NoPoller,
    /// It is not old enough to be missed, or its site is away and may still deliver it.
    Pending,
    /// It was measured, ended as those beside it, and gave way while too many results waited.
    Thinned,
    /// Nobody knows: this is what must never be.
    Silent,
}

impl GapKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::NoPoller => "no_poller",
            Self::Pending => "pending",
            Self::Thinned => "thinned",
            Self::Silent => "silent",
        }
    }
}

/// `list_gaps` of core: slots in a row without a measurement, of one check at one vantage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub check: CheckName,
    pub kind: GapKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Who was to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poller: Option<PollerName>,
    pub first_slot_ms: i64,
    pub last_slot_ms: i64,
    pub slots: u64,
}

/// `up.<site>.<poller>.rpc.dispatch.fetch_assignment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchAssignment {
    pub version: u16,
    pub boot: u64,
    /// The generation that it has applied; 0 asks for everything.
    pub have: i64,
    /// Of a page that goes on: which generation is being read, and after which check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<CheckName>,
}

/// One check that a poller runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedCheck {
    pub probe: Probe,
    /// Its results say this.
    pub generation: i64,
    /// Slots that begin at or after it are this poller's.
    pub from_ms: i64,
    /// Slots that begin at or after it are somebody else's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// Slots from here to `from_ms` may have been lost with another poller: say `missed` for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed_from_ms: Option<i64>,
    /// By name, sealed for this poller's sealing key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// A check that is not this poller's any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedCheck {
    pub check: CheckName,
    /// Of the assignment that ends; one that is newer goes on.
    pub generation: i64,
    /// Slots that begin before it are still this poller's.
    pub until_ms: i64,
}

/// What changed of a poller's checks since the generation that it has; the one row of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentPage {
    pub generation: i64,
    /// Whoever is not named in it or a page before is not this poller's.
    pub is_whole: bool,
    pub checks: Vec<AssignedCheck>,
    pub ended: Vec<EndedCheck>,
    pub has_more: bool,
}

/// `up.<site>.<poller>.rpc.dispatch.fetch_runs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRuns {
    pub version: u16,
    pub boot: u64,
}

/// One run on demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOrder {
    pub id: uuid::Uuid,
    pub probe: Probe,
    /// How long it may still take: clocks differ.
    pub left_ms: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// `up.<site>.<poller>.rpc.dispatch.report_run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportRun {
    pub version: u16,
    pub id: uuid::Uuid,
    pub measured: Measured,
}

/// A run on demand, of a check that is there or of one that is written for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunCheck {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<Value>,
    /// Only at these sites.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteName>,
    pub deadline_ms: u64,
}

/// How a run on demand ended at one vantage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poller: Option<PollerName>,
    pub check: CheckName,
    /// `missed` when nothing came until the deadline.
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, Value>,
}

/// About secrets of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// For whom a secret is sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingKeyRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub poller: PollerName,
    pub sealing_key: String,
}

/// One poller's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFor {
    pub site: SiteName,
    pub poller: PollerName,
    pub sealing_key: String,
    /// base64url of what only that key opens.
    pub sealed: String,
}

/// Keeps a secret in place of what was there; without copies it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSecret {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    pub name: CheckName,
    pub copies: Vec<SealedFor>,
}

/// A secret, and for whom it is sealed; never what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRow {
    pub tenant: TenantSlug,
    pub name: CheckName,
    pub set_by: String,
    pub set_ms: i64,
    /// `site/poller` of each that can open it.
    pub pollers: Vec<String>,
}

claims_nothing!(FetchAssignment, FetchRuns, ReportRun);
claims_tenant!(ChangeChecks, RunCheck, SecretQuery, SetSecret);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_is_flat_and_reads_back() {
        let value = json!({"name": "web", "type": "http", "target": "https://h/", "interval_s": 30, "timeout_ms": 5000,
            "sites": ["oslo"], "vantages": 1, "options": {"expect_status": [200]}});
        let definition: CheckDefinition = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(definition.probe.kind, "http");
        assert_eq!(serde_json::to_value(&definition).unwrap(), value);
    }

    #[test]
    fn a_type_that_is_not_known_is_still_a_page() {
        let value = json!({"generation": 3, "is_whole": true, "ended": [], "has_more": false, "new": 1, "checks": [
            {"probe": {"name": "x", "type": "quic", "target": "h", "interval_s": 1, "timeout_ms": 1}, "generation": 3, "from_ms": 0}]});
        let page: AssignmentPage = serde_json::from_value(value).unwrap();
        assert_eq!(page.checks[0].probe.kind, "quic");
    }
}
