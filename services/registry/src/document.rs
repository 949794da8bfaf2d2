//! What is kept of a member in the two buckets. Only registries read and write them, of this release and the one before.

use bulkhead_bus::LeaseClass;
use bulkhead_bus::payload::{DegradedBecause, Load, MemberInfo, ReportedState, known_of_list};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What is renewed, and ends by itself when it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDoc {
    pub boot: u64,
    /// Of the newest request that was granted: what was said before it is a replay.
    pub number: u64,
    #[serde(default)]
    pub class: LeaseClass,
    #[serde(default)]
    pub state: ReportedState,
    #[serde(default, deserialize_with = "known_of_list", skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<DegradedBecause>,
    #[serde(default)]
    pub applied_generation: i64,
    #[serde(default)]
    pub load: Load,
    #[serde(default)]
    pub clock_ahead_ms: i64,
    pub renewed_ms: i64,
    /// Since when it is in this state.
    pub since_ms: i64,
    /// It said that it ends, and why. Such a lease does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

impl LeaseDoc {
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.ended.is_none()
    }
}

/// What is known of a member whether it is there or not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InfoDoc {
    /// Of its last registration.
    #[serde(default)]
    pub boot: u64,
    #[serde(default)]
    pub number: u64,
    /// Of the lease that it got.
    #[serde(default)]
    pub revision: u64,
    #[serde(default)]
    pub class: LeaseClass,
    /// `None` while it has never reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<MemberInfo>,
    #[serde(default)]
    pub first_ms: i64,
    #[serde(default)]
    pub registered_ms: i64,
    /// Its last lease expired; until it registers again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<LostDoc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldDoc>,
}

/// The server's word that a lease expired is gone after a while; this stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostDoc {
    pub at_ms: i64,
    pub renewed_ms: i64,
}

/// Who holds a member back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldDoc {
    pub by: String,
    /// The tenant whose person that is, or `platform`.
    pub of: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub since_ms: i64,
}

impl HeldDoc {
    /// For people to read.
    #[must_use]
    pub fn sentence(&self) -> String {
        let reason = self.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("held by {} of {}{reason}", self.by, self.of)
    }
}

/// # Panics
/// Never: a document serializes.
#[must_use]
pub fn encode<T: Serialize>(document: &T) -> Bytes {
    serde_json::to_vec(document).expect("a document serializes").into()
}

/// `None` when it is damaged: then it is as good as missing, and the next one takes its place.
#[must_use]
pub fn decode<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}
