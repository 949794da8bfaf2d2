//! The private halves of an account's signing keys on their way to the gatekeeper, and where it keeps them: sealed.

use std::collections::BTreeMap;

use bulkhead_bus::Role;
use bulkhead_claims::{KeyKind, SealingError, SealingKey, SigningKey};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Why something holds no keys for this gatekeeper. Never shows a key.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Without the reader's words, which may show what was opened.
    #[error("they are not readable")]
    Unreadable,
    #[error("they are not base64")]
    Encoding,
    #[error("they were not sealed for this gatekeeper")]
    Sealed(#[source] SealingError),
    #[error("the key of role {0:?} is no seed of an account's key")]
    Seed(String),
}

/// Sealed by `sender`; inside is an object of seeds by role.
#[derive(Serialize, Deserialize)]
struct SealedKeys {
    sender: String,
    sealed: String,
}

/// Opens keys that were sealed for `own`. Roles of a later release are left out: nobody can ask for them.
///
/// # Errors
/// When they were sealed for somebody else, or are no keys.
pub fn open_keys(value: &[u8], own: &SealingKey) -> Result<BTreeMap<Role, SigningKey>, KeysError> {
    let keys: SealedKeys = serde_json::from_slice(value).map_err(|_| KeysError::Unreadable)?;
    let bytes = BASE64.decode(keys.sealed.as_bytes()).map_err(|_| KeysError::Encoding)?;
    let text = own.open(&bytes, &keys.sender).map_err(KeysError::Sealed)?;
    let seeds: BTreeMap<String, Zeroizing<String>> =
        serde_json::from_slice(&text).map_err(|_| KeysError::Unreadable)?;
    let mut opened = BTreeMap::new();
    for (name, seed) in &seeds {
        let Some(role) = Role::ALL.into_iter().find(|role| role.name() == name) else { continue };
        let key = SigningKey::from_seed(seed, KeyKind::Account);
        opened.insert(role, key.map_err(|_| KeysError::Seed(name.chars().take(60).collect()))?);
    }
    Ok(opened)
}

/// Seals seeds by role for a gatekeeper, whose public key is `gatekeeper`.
///
/// # Errors
/// When that is no public X25519 key.
pub fn seal_keys(
    seeds: &BTreeMap<String, Zeroizing<String>>,
    sender: &SealingKey,
    gatekeeper: &str,
) -> Result<Vec<u8>, SealingError> {
    let text = Zeroizing::new(serde_json::to_vec(seeds).map_err(|_| SealingError::Seal)?);
    let sealed = BASE64.encode(&sender.seal(&text, gatekeeper)?);
    serde_json::to_vec(&SealedKeys { sender: sender.public().to_owned(), sealed }).map_err(|_| SealingError::Seal)
}
