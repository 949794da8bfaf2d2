//! Leases: what a member says when it comes, while it is there and when it ends, and who is there, for people and services.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::result::CheckKind;
use crate::members::LeaseClass;
use crate::{MemberName, PollerName, SiteName, TenantSlug};

pub const LEASE_VERSION: u16 = 1;
/// Labels of one member, and the bytes of one name or value.
pub const LABELS_MOST: usize = 32;
pub const LABEL_BYTES_MOST: usize = 128;

/// What this release knows of a list; the rest is of newer releases, and left out.
///
/// # Errors
/// When it is no list.
pub fn known_of_list<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

/// What a poller can do, with its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    pub kind: CheckKind,
    /// Of what it understands of this kind; grows when options are added.
    #[serde(default)]
    pub version: u16,
}

/// What is static about one start of a member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// The release that it runs.
    pub release: String,
    #[serde(default, deserialize_with = "known_of_list", skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How much it takes on, compared with others: 1 to 1,024, rounded to a power of two. 0 of a leaf link.
    #[serde(default)]
    pub capacity: u32,
    /// Checks at most, whatever its share.
    #[serde(default)]
    pub checks_most: u32,
    /// X25519 public key (an nkey that begins with `X`) for which secrets are sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<String>,
}

/// What a member says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportedState {
    #[default]
    Joining,
    Ready,
    /// It works, and not as it should: see its reasons.
    Degraded,
    /// It takes nothing new and wants to hand over what it has.
    Draining,
}

impl ReportedState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
        }
    }
}

/// Why a member is degraded. A closed set: it is a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DegradedBecause {
    /// Results wait in memory, more than half of what may.
    Backlog,
    /// The disk is full or nearly so.
    DiskFull,
    /// Its clock differs from the registry's by more than a second.
    Clock,
    /// More checks are due than it can run.
    Overloaded,
    /// The leaf takes nothing.
    LeafAway,
    /// A kind of check that it should be able to run does not work here.
    NotPermitted,
}

/// What a member is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    #[serde(default)]
    pub checks: u32,
    #[serde(default)]
    pub running: u32,
    /// Results that wait in memory; of a leaf link, batches that wait at the leaf.
    #[serde(default)]
    pub waiting: u64,
}

/// `up.<site>.<name>.rpc.registry.register`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    pub version: u16,
    /// Unix milliseconds of this start; of two processes with one identity the greater wins.
    pub boot: u64,
    #[serde(default)]
    pub class: LeaseClass,
    pub info: MemberInfo,
    #[serde(default)]
    pub state: ReportedState,
    /// By the member's clock, so that the registry can say how far off it is.
    pub sent_ms: i64,
}

/// `up.<site>.<name>.rpc.registry.renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    pub version: u16,
    pub boot: u64,
    /// Of the lease, as last granted.
    pub revision: u64,
    pub state: ReportedState,
    #[serde(default, deserialize_with = "known_of_list", skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<DegradedBecause>,
    /// The generation of its assignment that it has applied; 0 is none.
    #[serde(default)]
    pub applied_generation: i64,
    #[serde(default)]
    pub load: Load,
    pub sent_ms: i64,
}

/// `up.<site>.<name>.rpc.registry.deregister`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deregister {
    pub version: u16,
    pub boot: u64,
    pub revision: u64,
    /// For people: `stopped`, `upgrade`.
    pub reason: String,
}

/// The answer to `register` and `renew`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// The fencing token: a later lease has a greater one.
    pub revision: u64,
    pub ttl_ms: u64,
    pub heartbeat_ms: u64,
    /// By the registry's clock.
    pub now_ms: i64,
    /// Somebody has held it: it gets no checks.
    #[serde(default)]
    pub is_held: bool,
}

claims_nothing!(Register, Renew, Deregister);
claims_tenant!(MemberQuery, MemberHold);

/// The state of a member as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    Joining,
    Ready,
    Degraded,
    Draining,
    /// Held by a person.
    Quarantined,
    /// It said that it ends.
    Gone,
    /// It stopped reporting and said nothing.
    Lost,
    /// It has never reported.
    Never,
    /// The registry cannot tell now: its view is not to be trusted.
    Unknown,
}

impl MemberState {
    pub const ALL: [Self; 9] = [
        Self::Joining,
        Self::Ready,
        Self::Degraded,
        Self::Draining,
        Self::Quarantined,
        Self::Gone,
        Self::Lost,
        Self::Never,
        Self::Unknown,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
            Self::Gone => "gone",
            Self::Lost => "lost",
            Self::Never => "never",
            Self::Unknown => "unknown",
        }
    }
}

/// One member, as the registry knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub name: MemberName,
    pub state: MemberState,
    /// Since when it is in this state; absent where nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    #[serde(default, deserialize_with = "known_of_list", skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<DegradedBecause>,
    /// Why it is held, gone or unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<u64>,
    /// Of its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    #[serde(default)]
    pub class: LeaseClass,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<MemberInfo>,
    #[serde(default)]
    pub applied_generation: i64,
    #[serde(default)]
    pub load: Load,
    /// Its clock less the registry's, as last heard.
    #[serde(default)]
    pub clock_ahead_ms: i64,
}

/// How `select_members` chooses among those that a query finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    All,
    /// The first so many by name.
    First(u32),
    /// So many by rendezvous hashing of the key: the same as long as they are there.
    Rendezvous {
        key: String,
        count: u32,
    },
    /// So many, from as many values of this label (or `site`) as there are.
    Spread {
        label: String,
        count: u32,
    },
}

/// Which members. Everything is optional; what is absent excludes nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberQuery {
    /// From the platform: the tenant asked about, all when absent. From a tenant: nothing, or itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<SiteName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<MemberName>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<CheckKind>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<MemberState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pick: Option<Pick>,
    /// `watch_members`: answer when something is newer than this, or after `wait_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// What became of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberEventRow {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub name: MemberName,
    /// `joined`, `renewed_state`, `fenced`, `gone`, `lost`, `quarantined`, `released`.
    pub event: String,
    pub at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Holds a poller back from all checks, or releases it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberHold {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    pub site: SiteName,
    pub poller: PollerName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `svc.registry.list_members`: all of one tenant's, some at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPageQuery {
    /// The last of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<(SiteName, MemberName)>,
}

/// Members of a tenant as services see them; the one row of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPage {
    /// Whether states are to be believed; when not, nobody is taken for lost.
    pub is_known: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Of the bucket of leases, as this replica has seen it.
    pub revision: u64,
    pub members: Vec<MemberRow>,
    pub has_more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_ignore_unknown_fields_and_default_the_optional() {
        let text = r#"{"version":1,"boot":7,"info":{"release":"0.2.0","new":1},"sent_ms":5,"also":"new"}"#;
        let register: Register = serde_json::from_str(text).unwrap();
        assert_eq!((register.class, register.state), (LeaseClass::Normal, ReportedState::Joining));
        let text = r#"{"version":1,"boot":7,"revision":3,"state":"ready","sent_ms":5}"#;
        assert_eq!(serde_json::from_str::<Renew>(text).unwrap().load, Load::default());
    }

    #[test]
    fn states_are_spelled_as_on_the_wire() {
        for state in MemberState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
