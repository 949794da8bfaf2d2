//! User claims under a scoped signing key, and the credentials file made of them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::account::PermissionSet;
use crate::key::SigningKey;
use crate::signer::SignError;
use crate::token::VERSION;

/// A user of an account. Under a scoped key every limit stays at Go's zero: the template decides
/// (facts: accounts-and-nsc section 2, a scoped user that carries `subs: -1` is refused).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserBody {
    #[serde(default)]
    pub issuer_account: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    #[serde(default, rename = "pub")]
    pub publish: PermissionSet,
    #[serde(default, rename = "sub")]
    pub subscribe: PermissionSet,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl UserBody {
    /// A user whose rights come from the scoped key that signs it.
    #[must_use]
    pub fn scoped(issuer_account: String, tags: Vec<String>) -> Self {
        Self {
            issuer_account,
            tags,
            publish: PermissionSet::default(),
            subscribe: PermissionSet::default(),
            kind: "user".to_owned(),
            version: VERSION,
            unknown: Map::new(),
        }
    }
}

/// The text of a credentials file, as the Go library writes it.
///
/// # Errors
/// When the key holds no private half.
pub fn credentials_text(token: &str, key: &SigningKey) -> Result<String, SignError> {
    let seed = key.seed()?;
    Ok(format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\
         NKEYs are sensitive and should be treated as secrets.\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n\n\
         *************************************************************\n",
        seed.as_str()
    ))
}
