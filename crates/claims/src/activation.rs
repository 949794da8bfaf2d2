//! Activation claims: an exporter lets one account import what others may not.

use data_encoding::BASE32;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::account::ExportKind;
use crate::body::{Body, ClaimKind, plain_body};
use crate::omit::{is_zero, unknown_members};
use crate::tags::Tags;
use crate::token::Claims;

/// What may be imported; the claims' subject is the account that may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActivationBody {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
    #[serde(rename = "kind", skip_serializing_if = "Option::is_none")]
    pub shared: Option<ExportKind>,
    /// Said when a signing key signed, not the exporting account itself.
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

plain_body!(ActivationBody, ClaimKind::Activation);

impl ActivationBody {
    #[must_use]
    pub fn new(subject: String, shared: ExportKind, issuer_account: String) -> Self {
        let mut body = Self { subject, shared: Some(shared), issuer_account, ..Self::default() };
        body.prepare();
        body
    }
}

impl Claims<ActivationBody> {
    /// Names this activation, by issuer, importer and the subject before its first wildcard. `None` before it is signed.
    #[must_use]
    pub fn hash_id(&self) -> Option<String> {
        if self.iss.is_empty() || self.sub.is_empty() || self.nats.subject.is_empty() {
            return None;
        }
        let text = format!("{}.{}.{}", self.iss, self.sub, before_wildcards(&self.nats.subject));
        Some(BASE32.encode(&Sha256::digest(text.as_bytes())))
    }
}

fn before_wildcards(subject: &str) -> String {
    let literal: Vec<&str> = subject.split('.').take_while(|token| !matches!(*token, "*" | ">")).collect();
    if literal.is_empty() { "_".to_owned() } else { literal.join(".") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_ends_before_the_first_wildcard() {
        for (subject, expected) in [("a.b", "a.b"), ("a.*", "a"), ("a.b.>", "a.b"), ("*.a", "_"), (">", "_")] {
            assert_eq!(before_wildcards(subject), expected, "{subject}");
        }
    }
}
