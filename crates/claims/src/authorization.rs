//! What a server asks whoever decides about connections, and what that answers.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::body::{ClaimKind, plain_body};
use crate::omit::{is_zero, unknown_members};
use crate::tags::Tags;

/// The server that asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerId {
    pub name: String,
    pub host: String,
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub tags: Tags,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub xkey: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// The connection as the server sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub id: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub tags: Tags,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name_tag: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mqtt_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// What the client said. Holds secrets, so Debug shows none of it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectOptions {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jwt: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nkey: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sig: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub auth_token: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pass: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lang: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    pub protocol: i64,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectOptions").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The client's certificates, as PEM: verified chains, or what it showed when nothing was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientTls {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cipher: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verified_chains: Vec<Vec<String>>,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// A server's question. `user_nkey` is a key made for this connection, which the answer is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthorizationRequestBody {
    pub server_id: ServerId,
    pub user_nkey: String,
    pub client_info: ClientInfo,
    pub connect_opts: ConnectOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_tls: Option<ClientTls>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_nonce: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub tags: Tags,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

plain_body!(AuthorizationRequestBody, ClaimKind::AuthorizationRequest);

/// The answer: a user token, or why there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthorizationResponseBody {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jwt: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
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

plain_body!(AuthorizationResponseBody, ClaimKind::AuthorizationResponse);
