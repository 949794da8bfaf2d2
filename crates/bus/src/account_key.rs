//! Public keys that appear on the wire: the account key of a tenant and the key that signs a poller's batches.

use std::fmt;
use std::str::FromStr;

use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};

/// Why a text is not an account key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("account key {0:?} is not valid: it has 56 base32 characters, begins with A and carries a checksum")]
pub struct AccountKeyError(String);

/// Why a text is not a batch signing key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("batch key {0:?} is not valid: it has 56 base32 characters, begins with U and carries a checksum")]
pub struct BatchKeyError(String);

fn parsed_key(value: &str, kind: KeyPairType) -> Option<KeyPair> {
    // from_public_key accepts other prefixes and panics on none of them, but only 56 characters can be a key.
    let is_shaped = value.len() == 56 && value.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b));
    let key = is_shaped.then(|| KeyPair::from_public_key(value).ok()).flatten()?;
    (key.key_pair_type() == kind && key.public_key() == value).then_some(key)
}

/// Whether it is the public key of a user, with its checksum.
pub(crate) fn is_user_key(value: &str) -> bool {
    parsed_key(value, KeyPairType::User).is_some()
}

fn head(value: &str) -> String {
    value.chars().take(64).collect()
}

/// The public key of a NATS account: token 2 of every subject in CORE that concerns the tenant, written by the server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountKey(String);

impl AccountKey {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountKey {
    type Err = AccountKeyError;

    fn from_str(value: &str) -> Result<Self, AccountKeyError> {
        match parsed_key(value, KeyPairType::Account) {
            Some(_) => Ok(Self(value.to_owned())),
            None => Err(AccountKeyError(head(value))),
        }
    }
}

impl TryFrom<String> for AccountKey {
    type Error = AccountKeyError;

    fn try_from(value: String) -> Result<Self, AccountKeyError> {
        value.parse()
    }
}

impl From<AccountKey> for String {
    fn from(key: AccountKey) -> Self {
        key.0
    }
}

impl fmt::Display for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The Ed25519 public key (nkey, prefix `U`) with which a poller signs its batches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BatchKey(String);

impl BatchKey {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `signature` (64 bytes) is this key's over `message`.
    #[must_use]
    pub fn is_signer_of(&self, message: &[u8], signature: &[u8]) -> bool {
        KeyPair::from_public_key(&self.0).is_ok_and(|key| key.verify(message, signature).is_ok())
    }
}

impl FromStr for BatchKey {
    type Err = BatchKeyError;

    fn from_str(value: &str) -> Result<Self, BatchKeyError> {
        match parsed_key(value, KeyPairType::User) {
            Some(_) => Ok(Self(value.to_owned())),
            None => Err(BatchKeyError(head(value))),
        }
    }
}

impl TryFrom<String> for BatchKey {
    type Error = BatchKeyError;

    fn try_from(value: String) -> Result<Self, BatchKeyError> {
        value.parse()
    }
}

impl From<BatchKey> for String {
    fn from(key: BatchKey) -> Self {
        key.0
    }
}

impl fmt::Display for BatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_another_kind_or_with_a_wrong_checksum_are_refused() {
        let account = KeyPair::new_account().public_key();
        let user = KeyPair::new_user().public_key();
        assert!(account.parse::<AccountKey>().is_ok());
        assert!(user.parse::<AccountKey>().is_err());
        assert!(user.parse::<BatchKey>().is_ok());
        assert!(account.parse::<BatchKey>().is_err());
        let mut bent = account.clone().into_bytes();
        bent[20] = if bent[20] == b'A' { b'B' } else { b'A' };
        assert!(String::from_utf8(bent).unwrap().parse::<AccountKey>().is_err());
        for bad in ["", "A", "*", ">", &account[..55], &format!("{account}A"), &account.to_lowercase()] {
            assert!(bad.parse::<AccountKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_signed_bytes_verify() {
        let pair = KeyPair::new_user();
        let key: BatchKey = pair.public_key().parse().unwrap();
        let signature = pair.sign(b"batch").unwrap();
        assert!(key.is_signer_of(b"batch", &signature));
        assert!(!key.is_signer_of(b"batcH", &signature));
        assert!(!key.is_signer_of(b"batch", &signature[..63]));
        assert!(!key.is_signer_of(b"batch", b""));
    }
}
