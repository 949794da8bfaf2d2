//! User claims.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::account::{PermissionSet, ResponsePermission, TimeRange, UNLIMITED, list_or_text};
use crate::body::{Body, ClaimKind, plain_body};
use crate::omit::{is_zero, unknown_members};
use crate::tags::Tags;

/// A user of an account. Under a scoped key every limit stays at Go's zero: the template decides
/// (facts: accounts-and-nsc section 2, a scoped user that carries `subs: -1` is refused).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserBody {
    #[serde(rename = "pub")]
    pub publish: PermissionSet,
    #[serde(rename = "sub")]
    pub subscribe: PermissionSet,
    #[serde(rename = "resp", skip_serializing_if = "Option::is_none")]
    pub respond: Option<ResponsePermission>,
    /// Networks that the user may come from.
    #[serde(deserialize_with = "list_or_text", skip_serializing_if = "Vec::is_empty")]
    pub src: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<TimeRange>,
    /// The time zone of `times`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub times_location: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub subs: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub data: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub payload: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub bearer_token: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub proxy_required: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_connection_types: Vec<String>,
    /// Said when a signing key signed, not the account itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub issuer_account: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub tags: Tags,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

plain_body!(UserBody, ClaimKind::User);

impl UserBody {
    /// A user whose rights come from the scoped key that signs it.
    #[must_use]
    pub fn scoped(issuer_account: String, tags: Vec<String>) -> Self {
        let mut body = Self { issuer_account, tags: tags.into_iter().collect(), ..Self::default() };
        body.prepare();
        body
    }

    /// A user that brings its own rights, without limits.
    #[must_use]
    pub fn unscoped(issuer_account: String, publish: PermissionSet, subscribe: PermissionSet) -> Self {
        let (subs, data, payload) = (UNLIMITED, UNLIMITED, UNLIMITED);
        let mut body = Self { issuer_account, publish, subscribe, subs, data, payload, ..Self::default() };
        body.prepare();
        body
    }

    /// It brings no right and no limit of its own, as a scoped key demands.
    #[must_use]
    pub fn is_scoped(&self) -> bool {
        let own = Self {
            issuer_account: String::new(),
            tags: Tags::default(),
            kind: String::new(),
            version: 0,
            unknown: Map::new(),
            ..self.clone()
        };
        own == Self::default()
    }
}
