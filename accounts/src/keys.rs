//! Key pairs of operators, accounts and users, and the files that their seeds live in: mode 0600, no newline, zeroized.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType};
use zeroize::Zeroizing;

use crate::files::{FileError, read_state, write_secret};

/// Whose key it is; the first letter of the public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    Operator,
    Account,
    User,
}

impl KeyKind {
    #[must_use]
    pub fn prefix(self) -> char {
        match self {
            Self::Operator => 'O',
            Self::Account => 'A',
            Self::User => 'U',
        }
    }

    fn pair_type(self) -> KeyPairType {
        match self {
            Self::Operator => KeyPairType::Operator,
            Self::Account => KeyPairType::Account,
            Self::User => KeyPairType::User,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Account => "account",
            Self::User => "user",
        }
    }
}

/// Why a key cannot be used. Never shows a seed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("read seed")]
    File(#[source] FileError),
    #[error("seed file {path} has mode {mode:03o}: secrets are 600; run chmod 600 {path}")]
    Mode { path: String, mode: u32 },
    #[error("seed file {path} does not hold {} seed", article(.expected))]
    Kind { path: String, expected: KeyKind },
    #[error("sign")]
    Sign(#[source] nkeys::error::Error),
}

fn article(kind: &KeyKind) -> String {
    let name = kind.name();
    let article = if name.starts_with(['a', 'o']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// A key pair that can sign. Debug shows the public key only.
pub struct SigningKey {
    pair: KeyPair,
    kind: KeyKind,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.pair.public_key())
    }
}

impl SigningKey {
    #[must_use]
    pub fn generate(kind: KeyKind) -> Self {
        Self { pair: KeyPair::new(kind.pair_type()), kind }
    }

    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    #[must_use]
    pub fn public(&self) -> String {
        self.pair.public_key()
    }

    /// # Errors
    /// When the pair holds no private half.
    pub fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.pair.sign(bytes).map_err(KeyError::Sign)
    }

    /// # Errors
    /// When the pair holds no private half.
    pub fn seed(&self) -> Result<Zeroizing<String>, KeyError> {
        self.pair.seed().map(Zeroizing::new).map_err(KeyError::Sign)
    }

    /// Writes the seed, readable by its owner only and without a newline (facts: accounts-and-nsc, StoreKey).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        write_secret(path, self.seed()?.as_bytes()).map_err(KeyError::File)
    }

    /// # Errors
    /// When the file cannot be read, is readable by others, or holds no seed of this kind.
    pub fn read(path: &Path, kind: KeyKind) -> Result<Self, KeyError> {
        let shown = path.display().to_string();
        let text = Zeroizing::new(read_state(path).map_err(KeyError::File)?);
        let mode = std::fs::metadata(path).map(|data| data.permissions().mode() & 0o777).unwrap_or(0);
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode { path: shown, mode });
        }
        let wrong = || KeyError::Kind { path: shown.clone(), expected: kind };
        let pair = KeyPair::from_seed(text.trim()).map_err(|_| wrong())?;
        // nkeys maps unknown prefixes to Operator, so the text's own prefix is compared as well.
        let has_prefix = text.starts_with('S') && text.chars().nth(1) == Some(kind.prefix());
        if pair.key_pair_type() != kind.pair_type() || !has_prefix {
            return Err(wrong());
        }
        Ok(Self { pair, kind })
    }
}

/// Seeds by public key, laid out as nsc does: `keys/<K>/<SH>/<PUBLIC>.nk`.
#[derive(Debug, Clone)]
pub struct KeyStore {
    folder: PathBuf,
}

impl KeyStore {
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, public: &str) -> PathBuf {
        self.folder.join("keys").join(&public[..1]).join(&public[1..3]).join(format!("{public}.nk"))
    }

    /// # Errors
    /// When the seed cannot be written.
    pub fn generate(&self, kind: KeyKind) -> Result<SigningKey, KeyError> {
        let key = SigningKey::generate(kind);
        key.write(&self.path(&key.public()))?;
        Ok(key)
    }

    /// # Errors
    /// When the seed is not in this store.
    pub fn read(&self, public: &str, kind: KeyKind) -> Result<SigningKey, KeyError> {
        SigningKey::read(&self.path(public), kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_of_the_wrong_kind_or_mode_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().to_owned());
        let key = store.generate(KeyKind::Account).unwrap();
        let path = store.path(&key.public());
        assert_eq!(store.read(&key.public(), KeyKind::Account).unwrap().public(), key.public());
        assert!(!std::fs::read_to_string(&path).unwrap().ends_with('\n'));
        let error = store.read(&key.public(), KeyKind::Operator).unwrap_err().to_string();
        assert!(error.contains("does not hold an operator seed"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = store.read(&key.public(), KeyKind::Account).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "SAgarbage").unwrap();
        assert!(store.read(&key.public(), KeyKind::Account).is_err());
    }
}
