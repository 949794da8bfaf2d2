//! Key pairs of operators, accounts, users and servers. Seeds are zeroized and never shown.

use std::fmt;

use ed25519_dalek::VerifyingKey;
use nkeys::{KeyPair, KeyPairType};
use zeroize::Zeroizing;

use crate::signer::{SignError, Signer};

/// Whose key it is; the first letter of the public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    Operator,
    Account,
    User,
    Server,
}

impl KeyKind {
    #[must_use]
    pub fn prefix(self) -> char {
        match self {
            Self::Operator => 'O',
            Self::Account => 'A',
            Self::User => 'U',
            Self::Server => 'N',
        }
    }

    /// Of a public key, by its first letter and its checksum; `None` for what is no key of ours.
    #[must_use]
    pub fn of_public(text: &str) -> Option<Self> {
        let kind = match text.chars().next()? {
            'O' => Self::Operator,
            'A' => Self::Account,
            'U' => Self::User,
            'N' => Self::Server,
            _ => return None,
        };
        Self::is_public(text).then_some(kind)
    }

    /// Whether it is a public key that signatures can be verified with. Keys of small order verify forged ones.
    pub(crate) fn is_public(text: &str) -> bool {
        let Some((_, bytes)) = decode_public(text) else { return false };
        VerifyingKey::from_bytes(&bytes).is_ok_and(|key| !key.is_weak())
    }

    fn pair_type(self) -> KeyPairType {
        match self {
            Self::Operator => KeyPairType::Operator,
            Self::Account => KeyPairType::Account,
            Self::User => KeyPairType::User,
            Self::Server => KeyPairType::Server,
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Account => "account",
            Self::User => "user",
            Self::Server => "server",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A public curve key, with which text is encrypted.
pub(crate) fn is_public_curve_key(text: &str) -> bool {
    text.starts_with('X') && decode_public(text).is_some()
}

fn decode_public(text: &str) -> Option<(u8, [u8; 32])> {
    let is_shaped = text.len() == 56 && text.is_ascii();
    is_shaped.then(|| nkeys::from_public_key(text).ok()).flatten()
}

/// Why a text is not the seed that is asked for. Never shows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {} {kind} seed", article(.kind))]
pub struct SeedError {
    pub kind: KeyKind,
}

fn article(kind: &KeyKind) -> &'static str {
    if kind.name().starts_with(['a', 'o']) { "an" } else { "a" }
}

/// A key pair that can sign. Debug shows the public key only.
pub struct SigningKey {
    pair: KeyPair,
    public: String,
    kind: KeyKind,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

impl SigningKey {
    #[must_use]
    pub fn generate(kind: KeyKind) -> Self {
        let pair = KeyPair::new(kind.pair_type());
        Self { public: pair.public_key(), pair, kind }
    }

    /// Reads a seed; white space around it does no harm.
    ///
    /// # Errors
    /// When it is no seed of this kind.
    pub fn from_seed(text: &str, kind: KeyKind) -> Result<Self, SeedError> {
        let text = text.trim();
        let pair = KeyPair::from_seed(text).map_err(|_| SeedError { kind })?;
        // nkeys maps unknown prefixes to Operator, so the text's own prefix is compared as well.
        let has_prefix = text.starts_with('S') && text.chars().nth(1) == Some(kind.prefix());
        if pair.key_pair_type() != kind.pair_type() || !has_prefix {
            return Err(SeedError { kind });
        }
        Ok(Self { public: pair.public_key(), pair, kind })
    }

    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// # Errors
    /// When the pair holds no private half.
    pub fn seed(&self) -> Result<Zeroizing<String>, SignError> {
        self.pair.seed().map(Zeroizing::new).map_err(SignError::Key)
    }
}

impl Signer for SigningKey {
    fn public(&self) -> &str {
        &self.public
    }

    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignError> {
        self.pair.sign(payload).map_err(SignError::Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_only_read_as_what_it_is() {
        let key = SigningKey::generate(KeyKind::Account);
        let seed = key.seed().unwrap();
        let padded = format!("{}\n", seed.as_str());
        assert_eq!(SigningKey::from_seed(&padded, KeyKind::Account).unwrap().public(), key.public());
        for kind in [KeyKind::Operator, KeyKind::User, KeyKind::Server] {
            assert_eq!(SigningKey::from_seed(&seed, kind).unwrap_err(), SeedError { kind });
        }
        for text in ["", "S", "SA", "SAgarbage", "ÄÖ", key.public()] {
            assert!(SigningKey::from_seed(text, KeyKind::Account).is_err(), "{text:?}");
        }
        assert_eq!(KeyKind::of_public(key.public()), Some(KeyKind::Account));
        assert_eq!(KeyKind::of_public(&seed), None);
    }
}
