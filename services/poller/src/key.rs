//! The key that signs batches: an nkey user seed in a file that nobody else can read. Never shown, never logged.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nkeys::{KeyPair, KeyPairType};
use zeroize::Zeroizing;

/// Why a batch key file cannot be used. Never shows what is in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("read batch key file {path}")]
    Read { path: String, source: std::io::Error },
    #[error("batch key file {path} has mode {mode:04o}, so others can read it: run chmod 600 {path}")]
    Open { path: String, mode: u32 },
    #[error("batch key file {path} holds no nkey user seed: it begins with SU and carries a checksum")]
    Seed { path: String },
}

/// The signature could not be made.
#[derive(Debug, thiserror::Error)]
#[error("sign with the batch key")]
pub(crate) struct SignError(#[source] nkeys::error::Error);

/// Signs batches. Debug shows the public key only.
pub(crate) struct BatchSigner {
    pair: KeyPair,
    public_key: String,
}

impl fmt::Debug for BatchSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchSigner({})", self.public_key)
    }
}

impl BatchSigner {
    pub(crate) fn from_key(pair: KeyPair) -> Self {
        Self { public_key: pair.public_key(), pair }
    }

    /// # Errors
    /// When the file is missing, can be read by others, or holds something else.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyError> {
        let shown = path.display().to_string();
        let failed = |source| KeyError::Read { path: shown.clone(), source };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path: shown, mode });
        }
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
        let pair = KeyPair::from_seed(text.trim()).map_err(|_| KeyError::Seed { path: shown.clone() })?;
        // nkeys maps an unknown prefix to Operator, so the kind is checked here.
        if pair.key_pair_type() != KeyPairType::User {
            return Err(KeyError::Seed { path: shown });
        }
        Ok(Self::from_key(pair))
    }

    pub(crate) fn public_key(&self) -> &str {
        &self.public_key
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, SignError> {
        self.pair.sign(bytes).map_err(SignError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, mode: u32, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("batch.key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        match BatchSigner::read(&path) {
            Ok(signer) => assert_eq!(signer.public_key(), expected),
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(expected), "{said}");
                assert!(!said.contains(text.trim()) || text.is_empty(), "{said}");
            }
        }
    }

    #[test]
    fn only_a_private_user_seed_is_a_batch_key() {
        let user = KeyPair::new_user();
        let seed = user.seed().unwrap();
        check(&seed, 0o600, &user.public_key());
        check(&format!("{seed}\n"), 0o400, &user.public_key());
        check(&seed, 0o644, "run chmod 600");
        check(&seed, 0o640, "has mode 0640");
        check(&KeyPair::new_account().seed().unwrap(), 0o600, "holds no nkey user seed");
        check(&seed[..30], 0o600, "holds no nkey user seed");
        check("", 0o600, "holds no nkey user seed");
        let missing = BatchSigner::read(Path::new("no-such-key")).unwrap_err();
        assert!(missing.to_string().contains("no-such-key"), "{missing}");
    }
}
