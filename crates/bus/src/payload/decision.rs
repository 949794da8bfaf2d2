//! What the gatekeeper decided about a connection, as audit reads it. It holds no secret and no certificate, only the
//! fingerprint of one.

use serde::{Deserialize, Serialize};

/// One decision. A field is absent where it was not found out before the decision fell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Decision {
    /// Unique: the same decision may come twice.
    pub id: String,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Which replica decided.
    pub gatekeeper: String,
    /// `admitted`, or a code of the closed list in docs/wire.md.
    pub outcome: String,
    /// In a sentence; empty when admitted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Whose the authority is that vouches for the certificate: a tenant, or `platform`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// Whom the certificate names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<String>,
    /// The URI of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// SHA-256 of the certificate, lower-case hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// The account that was entered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The key that the server made for this connection, which the account may revoke.
    pub user_key: String,
    /// Unix seconds until which the connection was admitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// Like ones of the last seconds that were not written down, so that nobody fills the stream.
    #[serde(skip_serializing_if = "is_none")]
    pub repeats: u64,
    pub server: DecisionServer,
    pub connection: DecisionConnection,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// The server that asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecisionServer {
    pub id: String,
    pub name: String,
}

/// The connection as the server sees it. All of it but `host` and `id` is the other side's own word.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecisionConnection {
    /// The server's number for it.
    pub id: u64,
    pub host: String,
    /// `Client` or `Leafnode`.
    pub kind: String,
    pub name: String,
}

/// What an admitted connection's outcome is called.
pub const ADMITTED: &str = "admitted";
