//! Account claims: limits, exports, imports and scoped signing keys.

use bulkhead_bus::Permissions;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::token::VERSION;

/// Every limit of an account. Zero means none allowed, -1 unlimited; ours are finite.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountLimits {
    pub subs: i64,
    /// Not enforced by the server, so never sold as a quota (facts: accounts-and-nsc section 2).
    pub data: i64,
    pub payload: i64,
    pub imports: i64,
    pub exports: i64,
    pub wildcards: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disallow_bearer: bool,
    pub conn: i64,
    pub leaf: i64,
    pub mem_storage: i64,
    pub disk_storage: i64,
    pub streams: i64,
    pub consumer: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_ack_pending: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_max_stream_bytes: i64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub max_bytes_required: bool,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionSet {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl PermissionSet {
    #[must_use]
    pub fn nothing() -> Self {
        Self { allow: vec![], deny: vec![">".to_owned()] }
    }

    /// An empty list must be a denial: without one the account's default permissions would apply.
    fn only(allow: Vec<String>) -> Self {
        if allow.is_empty() { Self::nothing() } else { Self { allow, deny: vec![] } }
    }
}

/// Permissions for users that bring none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultPermissions {
    #[serde(default, rename = "pub")]
    pub publish: PermissionSet,
    #[serde(default, rename = "sub")]
    pub subscribe: PermissionSet,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionTemplate {
    #[serde(default, rename = "pub")]
    pub publish: PermissionSet,
    #[serde(default, rename = "sub")]
    pub subscribe: PermissionSet,
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_connection_types: Vec<String>,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl PermissionTemplate {
    #[must_use]
    pub fn new(permissions: Permissions, connection_types: &[&str]) -> Self {
        Self {
            publish: PermissionSet::only(permissions.publish),
            subscribe: PermissionSet::only(permissions.subscribe),
            subs: -1,
            data: -1,
            payload: -1,
            allowed_connection_types: connection_types.iter().map(|&kind| kind.to_owned()).collect(),
            unknown: Map::new(),
        }
    }
}

/// A signing key that can only sign users of one role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub kind: String,
    pub key: String,
    pub role: String,
    pub template: PermissionTemplate,
    #[serde(default)]
    pub description: String,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// An entry of `signing_keys`: scoped, or a plain key that may sign anything. We issue scoped ones only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ScopedKey {
    Scoped(Box<Scope>),
    Plain(String),
}

impl ScopedKey {
    #[must_use]
    pub fn new(key: String, role: &str, template: PermissionTemplate) -> Self {
        Self::Scoped(Box::new(Scope {
            kind: "user_scope".to_owned(),
            key,
            role: role.to_owned(),
            template,
            description: String::new(),
            unknown: Map::new(),
        }))
    }

    #[must_use]
    pub fn role(&self) -> Option<&str> {
        match self {
            Self::Scoped(scope) => Some(&scope.role),
            Self::Plain(_) => None,
        }
    }

    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Scoped(scope) => &scope.key,
            Self::Plain(key) => key,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    Stream,
    Service,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResponseType {
    Singleton,
    Stream,
    Chunked,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub name: String,
    pub subject: String,
    #[serde(rename = "type")]
    pub kind: ExportKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_type: Option<ResponseType>,
    /// Which token must be the importing account's key; the server refuses every other import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_token_position: Option<u32>,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub name: String,
    /// As the exporter calls it.
    pub subject: String,
    pub local_subject: String,
    pub account: String,
    #[serde(rename = "type")]
    pub kind: ExportKind,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// What an account is. Rendered whole every time, never patched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountBody {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<Import>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
    pub limits: AccountLimits,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<ScopedKey>,
    pub default_permissions: DefaultPermissions,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl AccountBody {
    /// Sorted by subject, as the Go library does, so that two renderings compare byte by byte.
    #[must_use]
    pub fn new(
        limits: AccountLimits,
        mut imports: Vec<Import>,
        mut exports: Vec<Export>,
        signing_keys: Vec<ScopedKey>,
    ) -> Self {
        imports.sort_by(|a, b| a.subject.cmp(&b.subject));
        exports.sort_by(|a, b| a.subject.cmp(&b.subject));
        let nothing = DefaultPermissions {
            publish: PermissionSet::nothing(),
            subscribe: PermissionSet::nothing(),
            unknown: Map::new(),
        };
        Self {
            imports,
            exports,
            limits,
            signing_keys,
            default_permissions: nothing,
            kind: "account".to_owned(),
            version: VERSION,
            unknown: Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_permissions_become_a_denial() {
        let template = PermissionTemplate::new(Permissions::default(), &[]);
        let json = serde_json::to_value(&template).unwrap();
        assert_eq!(json["pub"], serde_json::json!({"deny": [">"]}));
        assert_eq!(json["sub"], serde_json::json!({"deny": [">"]}));
    }

    #[test]
    fn plain_and_scoped_keys_are_told_apart() {
        let keys: Vec<ScopedKey> = serde_json::from_value(serde_json::json!([
            "APLAIN",
            {"kind": "user_scope", "key": "ASCOPED", "role": "leaf", "new": 1,
             "template": {"pub": {"allow": ["x"]}, "subs": -1, "data": -1, "payload": -1}}
        ]))
        .unwrap();
        assert_eq!(keys.iter().map(ScopedKey::role).collect::<Vec<_>>(), [None, Some("leaf")]);
        assert_eq!(serde_json::to_value(&keys).unwrap()[1]["new"], 1);
    }
}
