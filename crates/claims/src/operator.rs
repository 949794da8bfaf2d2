//! Operator claims.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::body::{Body, ClaimKind, plain_body};
use crate::omit::{is_none_or_zero, is_zero, unknown_members, zero_is_none};
use crate::tags::Tags;

/// What an operator says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperatorBody {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub account_server_url: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operator_service_urls: Vec<String>,
    #[serde(deserialize_with = "zero_is_none", skip_serializing_if = "is_none_or_zero")]
    pub system_account: Option<String>,
    /// The oldest server that may run these claims, as `major.minor.update`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub assert_server_version: String,
    /// Identity keys sign nothing but themselves.
    #[serde(skip_serializing_if = "is_zero")]
    pub strict_signing_key_usage: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub tags: Tags,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

plain_body!(OperatorBody, ClaimKind::Operator);

impl OperatorBody {
    #[must_use]
    pub fn new(signing_keys: Vec<String>, system_account: String) -> Self {
        let mut body = Self {
            signing_keys,
            system_account: Some(system_account),
            strict_signing_key_usage: true,
            ..Self::default()
        };
        body.prepare();
        body
    }
}
