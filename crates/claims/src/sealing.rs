//! X25519 keys: what is sealed for one is opened by it alone, and only as coming from who sealed it. A small key of the
//! sender's own is no signature to others.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use nkeys::XKey;
use zeroize::Zeroizing;

/// Why nothing was sealed or opened. Never shows what was in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealingError {
    #[error("{0:?} is no public X25519 key: such a key begins with X")]
    Public(String),
    #[error("the text is no X25519 seed: such a seed begins with SX")]
    Seed,
    #[error("it was not sealed for this key by that one, or was changed")]
    Open,
    #[error("it cannot be sealed")]
    Seal,
}

/// A key pair that seals and opens. Debug shows the public key only.
pub struct SealingKey {
    key: XKey,
    public: String,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({})", self.public)
    }
}

fn of_public(text: &str) -> Result<XKey, SealingError> {
    XKey::from_public_key(text).map_err(|_| SealingError::Public(text.chars().take(60).collect()))
}

impl SealingKey {
    #[must_use]
    pub fn generate() -> Self {
        Self::of(XKey::new())
    }

    fn of(key: XKey) -> Self {
        Self { public: key.public_key(), key }
    }

    /// Reads a seed; white space around it does no harm.
    ///
    /// # Errors
    /// When it is no X25519 seed.
    pub fn from_seed(text: &str) -> Result<Self, SealingError> {
        XKey::from_seed(text.trim()).map(Self::of).map_err(|_| SealingError::Seed)
    }

    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// # Errors
    /// When the pair holds no private half.
    pub fn seed(&self) -> Result<Zeroizing<String>, SealingError> {
        self.key.seed().map(Zeroizing::new).map_err(|_| SealingError::Seed)
    }

    /// # Errors
    /// When `to` is no public X25519 key.
    pub fn seal(&self, text: &[u8], to: &str) -> Result<Vec<u8>, SealingError> {
        self.key.seal(text, &of_public(to)?).map_err(|_| SealingError::Seal)
    }

    /// Seals with a key of the moment, whose public half goes with it: nobody has to know who sealed it, and nobody can open
    /// it but `to`, the one who sealed it included. Text: that key, a dot, and base64url.
    ///
    /// # Errors
    /// When `to` is no public X25519 key.
    pub fn seal_once(text: &[u8], to: &str) -> Result<String, SealingError> {
        let moment = Self::generate();
        let sealed = moment.seal(text, to)?;
        Ok(format!("{}.{}", moment.public, BASE64URL_NOPAD.encode(&sealed)))
    }

    /// Opens what [`Self::seal_once`] sealed for this key.
    ///
    /// # Errors
    /// When it is nothing of the kind, or was sealed for another.
    pub fn open_once(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let (from, sealed) = sealed.split_once('.').ok_or(SealingError::Open)?;
        let sealed = BASE64URL_NOPAD.decode(sealed.as_bytes()).map_err(|_| SealingError::Open)?;
        self.open(&sealed, from)
    }

    /// # Errors
    /// When `from` is no public X25519 key, or has not sealed this for us.
    pub fn open(&self, sealed: &[u8], from: &str) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        self.key.open(sealed, &of_public(from)?).map(Zeroizing::new).map_err(|_| SealingError::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_by_whom_it_was_sealed_for_and_as_from_its_sender() {
        let (one, two, other) = (SealingKey::generate(), SealingKey::generate(), SealingKey::generate());
        let sealed = one.seal(b"text", two.public()).unwrap();
        assert_eq!(two.open(&sealed, one.public()).unwrap().as_slice(), b"text");
        assert_eq!(other.open(&sealed, one.public()), Err(SealingError::Open));
        assert_eq!(two.open(&sealed, other.public()), Err(SealingError::Open));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(two.open(&changed, one.public()), Err(SealingError::Open), "byte {at}");
        }
        for short in 0..sealed.len() {
            assert!(two.open(&sealed[..short], one.public()).is_err());
        }
    }

    #[test]
    fn what_is_sealed_once_is_opened_by_one() {
        let (one, other) = (SealingKey::generate(), SealingKey::generate());
        let sealed = SealingKey::seal_once(b"text", one.public()).unwrap();
        assert_eq!(one.open_once(&sealed).unwrap().as_slice(), b"text");
        assert_eq!(other.open_once(&sealed), Err(SealingError::Open));
        assert_ne!(sealed, SealingKey::seal_once(b"text", one.public()).unwrap());
        for wrong in ["", ".", "X.", &sealed[1..], &sealed[..sealed.len() - 1]] {
            assert!(one.open_once(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_x25519_keys_are_keys() {
        let key = SealingKey::generate();
        let again = SealingKey::from_seed(&format!(" {}\n", key.seed().unwrap().as_str())).unwrap();
        assert_eq!(again.public(), key.public());
        let account = crate::SigningKey::generate(crate::KeyKind::Account);
        assert_eq!(SealingKey::from_seed(&account.seed().unwrap()).unwrap_err(), SealingError::Seed);
        for wrong in ["", "X", account.public(), key.public().to_lowercase().as_str()] {
            assert!(matches!(key.seal(b"", wrong), Err(SealingError::Public(_))), "{wrong}");
        }
    }
}
