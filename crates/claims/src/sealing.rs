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

    /// # Errors
    /// When `from` is no public X25519 key, or has not sealed this for us.
    pub fn open(&self, sealed: &[u8], from: &str) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        self.key.open(sealed, &of_public(from)?).map(Zeroizing::new).map_err(|_| SealingError::Open)
    }

    /// What [`seal_secret`] has sealed under this name.
    ///
    /// # Errors
    /// When it was not sealed for us, was changed, or has another name.
    pub fn open_secret(&self, name: &str, sealed: &str) -> Result<Zeroizing<String>, SealingError> {
        let (from, bytes) = sealed.split_once('.').ok_or(SealingError::Open)?;
        let bytes = BASE64URL_NOPAD.decode(bytes.as_bytes()).map_err(|_| SealingError::Open)?;
        let opened = self.open(&bytes, from)?;
        let text = std::str::from_utf8(&opened).map_err(|_| SealingError::Open)?;
        let value = text.split_once('\n').filter(|(named, _)| *named == name).map(|(_, value)| value);
        value.map(|value| Zeroizing::new(value.to_owned())).ok_or(SealingError::Open)
    }
}

/// A secret of this name for one reader: the sender's public key, a dot, and what only the reader opens. The name is sealed
/// with it, so that whoever keeps it cannot pass it off as another one. The sender is nobody: its key is made for this and
/// forgotten.
///
/// # Errors
/// When `to` is no public X25519 key.
pub fn seal_secret(name: &str, value: &str, to: &str) -> Result<String, SealingError> {
    let sender = SealingKey::generate();
    let text = Zeroizing::new(format!("{name}\n{value}"));
    Ok(format!("{}.{}", sender.public(), BASE64URL_NOPAD.encode(&sender.seal(text.as_bytes(), to)?)))
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
    fn a_secret_is_opened_by_its_reader_under_its_name_only() {
        let (reader, other) = (SealingKey::generate(), SealingKey::generate());
        let sealed = seal_secret("web-token", "line one\nline two", reader.public()).unwrap();
        assert_eq!(reader.open_secret("web-token", &sealed).unwrap().as_str(), "line one\nline two");
        assert_eq!(reader.open_secret("web", &sealed), Err(SealingError::Open), "under another name");
        assert_eq!(other.open_secret("web-token", &sealed), Err(SealingError::Open));
        for bad in ["", ".", "X.", &sealed[..sealed.len() - 2], &sealed.replace('.', "")] {
            assert!(reader.open_secret("web-token", bad).is_err(), "{bad}");
        }
        assert!(!sealed.contains("line"));
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
