//! The files that seeds live in: mode 0600, no newline, laid out as nsc does.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bulkhead_claims::{KeyKind, SeedError, SignError, SigningKey};
use zeroize::Zeroizing;

use crate::files::{FileError, read_state, write_secret};

/// Why a key cannot be used. Never shows a seed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("read seed")]
    File(#[source] FileError),
    #[error("seed file {path} has mode {mode:03o}: secrets are 600; run chmod 600 {path}")]
    Mode { path: String, mode: u32 },
    #[error("what seed file {path} holds is {source}")]
    Kind { path: String, source: SeedError },
    #[error("sign")]
    Sign(#[source] SignError),
}

/// Writes the seed, readable by its owner only and without a newline (facts: accounts-and-nsc, StoreKey).
///
/// # Errors
/// When the file cannot be written.
pub fn write_key(path: &Path, key: &SigningKey) -> Result<(), KeyError> {
    write_secret(path, key.seed().map_err(KeyError::Sign)?.as_bytes()).map_err(KeyError::File)
}

/// # Errors
/// When the file cannot be read, is readable by others, or holds no seed of this kind.
pub fn read_key(path: &Path, kind: KeyKind) -> Result<SigningKey, KeyError> {
    let shown = path.display().to_string();
    let text = Zeroizing::new(read_state(path).map_err(KeyError::File)?);
    let mode = std::fs::metadata(path).map(|data| data.permissions().mode() & 0o777).unwrap_or(0);
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode { path: shown, mode });
    }
    SigningKey::from_seed(&text, kind).map_err(|source| KeyError::Kind { path: shown, source })
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
        write_key(&self.path(key.public()), &key)?;
        Ok(key)
    }

    /// # Errors
    /// When the seed is not in this store.
    pub fn read(&self, public: &str, kind: KeyKind) -> Result<SigningKey, KeyError> {
        read_key(&self.path(public), kind)
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
        let path = store.path(key.public());
        assert_eq!(store.read(key.public(), KeyKind::Account).unwrap().public(), key.public());
        assert!(!std::fs::read_to_string(&path).unwrap().ends_with('\n'));
        let error = store.read(key.public(), KeyKind::Operator).unwrap_err().to_string();
        assert!(error.contains("not an operator seed"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = store.read(key.public(), KeyKind::Account).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "SAgarbage").unwrap();
        assert!(store.read(key.public(), KeyKind::Account).is_err());
    }
}
