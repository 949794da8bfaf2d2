//! Account claims: limits, exports, imports, scoped signing keys, revocations and the rest.

mod limits;
mod permission;
mod revocation;
mod scope;
mod sharing;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use limits::{AccountLimits, JetStreamLimits, UNLIMITED};
pub(crate) use permission::list_or_text;
pub use permission::{DefaultPermissions, PermissionSet, PermissionTemplate, ResponsePermission, TimeRange};
pub use revocation::{EVERYONE, Revocations};
pub use scope::{Scope, ScopeKind, ScopedKey};
pub use sharing::{Export, ExportKind, Import, ResponseType, Sampling, ServiceLatency};

use crate::body::{Body, ClaimKind};
use crate::omit::{empty_is_none, is_zero, null_is_empty, unknown_members};
use crate::tags::Tags;
use crate::token::VERSION;

/// One of the subjects that a mapped subject becomes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WeightedMapping {
    pub subject: String,
    /// In percent; 0 stands for 100.
    #[serde(skip_serializing_if = "is_zero")]
    pub weight: u8,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

impl WeightedMapping {
    #[must_use]
    pub fn percent(&self) -> u8 {
        if self.weight == 0 { 100 } else { self.weight }
    }
}

/// The targets of one mapped subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Targets(#[serde(deserialize_with = "null_is_empty")] pub Vec<WeightedMapping>);

/// Who decides about connections in place of the tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalAuthorization {
    /// Users of the service that decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub auth_users: Vec<String>,
    /// Accounts that it may put others into.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_accounts: Vec<String>,
    /// Questions are encrypted for this curve key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub xkey: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// Where traces of messages go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageTrace {
    #[serde(rename = "dest", skip_serializing_if = "String::is_empty")]
    pub destination: String,
    /// In percent; 0 stands for 100.
    #[serde(skip_serializing_if = "is_zero")]
    pub sampling: i64,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// In whose account the servers' own traffic for this account's streams runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterTraffic {
    System,
    Owner,
}

/// What an account is. Rendered whole every time, never patched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountBody {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<Import>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
    pub limits: AccountLimits,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<ScopedKey>,
    /// Of users, by their key.
    #[serde(skip_serializing_if = "is_zero")]
    pub revocations: Revocations,
    pub default_permissions: DefaultPermissions,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mappings: BTreeMap<String, Targets>,
    pub authorization: ExternalAuthorization,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<MessageTrace>,
    #[serde(deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub cluster_traffic: Option<ClusterTraffic>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub info_url: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub tags: Tags,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

impl AccountBody {
    /// Sorted by subject, as the Go library does, so that two renderings compare byte by byte.
    #[must_use]
    pub fn new(
        limits: AccountLimits,
        imports: Vec<Import>,
        exports: Vec<Export>,
        signing_keys: Vec<ScopedKey>,
    ) -> Self {
        let default_permissions = DefaultPermissions {
            publish: PermissionSet::nothing(),
            subscribe: PermissionSet::nothing(),
            ..DefaultPermissions::default()
        };
        let mut body = Self { imports, exports, limits, signing_keys, default_permissions, ..Self::default() };
        body.prepare();
        body
    }

    /// Of a key that is there twice, servers take the last.
    #[must_use]
    pub fn signing_key(&self, public: &str) -> Option<&ScopedKey> {
        self.signing_keys.iter().rfind(|key| key.key() == public)
    }
}

impl Body for AccountBody {
    const KIND: ClaimKind = ClaimKind::Account;

    fn prepare(&mut self) {
        self.imports.sort_by(|a, b| a.subject.cmp(&b.subject));
        self.exports.sort_by(|a, b| a.subject.cmp(&b.subject));
        Self::KIND.name().clone_into(&mut self.kind);
        self.version = VERSION;
    }

    fn settle(&mut self) {
        self.limits.settle();
    }

    fn said(&self) -> (&str, u64) {
        (&self.kind, self.version.into())
    }
}
