//! The keys that we sign with: seed files of mode 0600 without a newline, laid out as nsc does, or external commands.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bulkhead_claims::{KeyKind, SeedError, SignError, Signer, SigningKey};
use zeroize::Zeroizing;

use crate::files::{FileError, read_state, write_secret};
use crate::signers::{CommandSigner, SignersError, read_signers};

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
    #[error("external signers")]
    Signers(#[source] SignersError),
    #[error("{0:?} is not a public key")]
    NoKey(String),
    #[error(
        "nobody can sign with {kind} key {public}: restore its seed as {path}, or name a command for it in {signers}"
    )]
    Absent { public: String, kind: KeyKind, path: String, signers: String },
    #[error("{path} holds no seed of an operator, account or user")]
    NoSeed { path: String },
    #[error("seed file {path} holds the seed of {found}: a seed file is named by its public key")]
    Name { path: String, found: String },
}

/// Where the private half of a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    SeedFile(PathBuf),
    /// The program that signs with it.
    Command(String),
    Absent,
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

/// Seeds by public key, laid out as nsc does: `keys/<K>/<SH>/<PUBLIC>.nk`; and a table of commands for other keys.
#[derive(Debug, Clone)]
pub struct KeyStore {
    folder: PathBuf,
    signers: PathBuf,
}

impl KeyStore {
    /// `folder` is the keystore; the table of external signers is `signers.toml` beside it.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        let signers = folder.with_file_name("signers.toml");
        Self { folder, signers }
    }

    /// Where the seed of a public key belongs.
    ///
    /// # Errors
    /// When the text is no public key, so that it cannot lead elsewhere.
    pub fn path(&self, public: &str) -> Result<PathBuf, KeyError> {
        let is_key = KeyKind::of_public(public).is_some();
        let is_curve =
            public.len() == 56 && public.starts_with('X') && public.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_key && !is_curve {
            return Err(KeyError::NoKey(public.chars().take(64).collect()));
        }
        let file = format!("{public}.nk");
        Ok(self.folder.join("keys").join(&public[..1]).join(&public[1..3]).join(file))
    }

    /// # Errors
    /// When the seed cannot be written.
    pub fn generate(&self, kind: KeyKind) -> Result<SigningKey, KeyError> {
        let key = SigningKey::generate(kind);
        self.put(&key)?;
        Ok(key)
    }

    /// # Errors
    /// When the seed cannot be written.
    pub fn put(&self, key: &SigningKey) -> Result<(), KeyError> {
        let path = self.path(key.public())?;
        let written = write_key(&path, key);
        if written.is_err() {
            // A folder that was made for it is not wanted either; one that holds others stays.
            let _ = path.parent().map(std::fs::remove_dir);
        }
        written
    }

    /// Takes back a seed that turned out not to be needed.
    pub(crate) fn forget(&self, public: &str) {
        if let Ok(path) = self.path(public) {
            // An orphan seed does no harm, and `bulkhead keys list` shows it.
            let _ = std::fs::remove_file(&path);
            let _ = path.parent().map(std::fs::remove_dir);
        }
    }

    /// # Errors
    /// When the seed is not in this store, or the file holds another one.
    pub fn read(&self, public: &str, kind: KeyKind) -> Result<SigningKey, KeyError> {
        let path = self.path(public)?;
        let key = read_key(&path, kind)?;
        if key.public() == public {
            return Ok(key);
        }
        Err(KeyError::Name { path: path.display().to_string(), found: key.public().to_owned() })
    }

    fn command(&self, public: &str) -> Result<Option<CommandSigner>, KeyError> {
        let signers = read_signers(&self.signers).map_err(KeyError::Signers)?;
        Ok(signers.into_iter().find(|signer| signer.public() == public))
    }

    /// Whoever signs with this key: its seed file, else an external command.
    ///
    /// # Errors
    /// When neither is there, or what is there cannot be used; names the key and both ways out.
    pub fn signer(&self, public: &str, kind: KeyKind) -> Result<Box<dyn Signer>, KeyError> {
        let path = self.path(public)?;
        if path.exists() {
            return Ok(Box::new(self.read(public, kind)?));
        }
        match self.command(public)? {
            Some(command) => Ok(Box::new(command)),
            None => Err(KeyError::Absent {
                public: public.to_owned(),
                kind,
                path: path.display().to_string(),
                signers: self.signers.display().to_string(),
            }),
        }
    }

    /// # Errors
    /// When the table of external signers is damaged.
    pub fn place(&self, public: &str) -> Result<KeyPlace, KeyError> {
        let path = self.path(public)?;
        if path.exists() {
            return Ok(KeyPlace::SeedFile(path));
        }
        Ok(self.command(public)?.map_or(KeyPlace::Absent, |command| KeyPlace::Command(command.shown())))
    }

    /// The public keys of all seed files, sorted.
    #[must_use]
    pub fn seeds(&self) -> Vec<String> {
        let below = |folder: &Path| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let files =
            below(&self.folder.join("keys")).into_iter().flat_map(|kind| below(&kind)).flat_map(|shard| below(&shard));
        let name = |path: PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".nk")?.to_owned());
        let mut names: Vec<String> = files.filter_map(name).collect();
        names.sort();
        names
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
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
        let path = store.path(key.public()).unwrap();
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

    #[test]
    fn a_key_signs_by_its_seed_else_by_a_command_else_both_ways_out_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().join("keys"));
        let key = SigningKey::generate(KeyKind::Operator);
        let error = store.signer(key.public(), KeyKind::Operator).err().unwrap().to_string();
        for part in [key.public(), ".nk", "signers.toml", "operator"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(store.place(key.public()).unwrap(), KeyPlace::Absent);
        let answer = folder.path().join("answer");
        std::fs::write(&answer, key.sign(b"payload").unwrap()).unwrap();
        let table = format!("[[signer]]\npublic = {:?}\ncommand = [\"/bin/cat\", {answer:?}]\n", key.public());
        write_secret(&folder.path().join("signers.toml"), table.as_bytes()).unwrap();
        let signer = store.signer(key.public(), KeyKind::Operator).unwrap();
        assert_eq!(signer.sign(b"payload").unwrap(), key.sign(b"payload").unwrap());
        assert!(signer.sign(b"another").is_err(), "verified before it is used");
        store.put(&key).unwrap();
        assert!(store.signer(key.public(), KeyKind::Operator).unwrap().sign(b"another").is_ok());
        assert_eq!(store.seeds(), [key.public()]);
    }

    #[test]
    fn what_is_no_key_or_another_key_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let store = KeyStore::new(folder.path().join("keys"));
        for bad in ["", "O", "../../../etc/passwd", "OÄÖ", &"O".repeat(56)] {
            assert!(store.signer(bad, KeyKind::Operator).is_err(), "{bad:?}");
        }
        let (one, two) = (SigningKey::generate(KeyKind::Account), SigningKey::generate(KeyKind::Account));
        write_key(&store.path(one.public()).unwrap(), &two).unwrap();
        let error = store.signer(one.public(), KeyKind::Account).err().unwrap().to_string();
        assert!(error.contains(two.public()), "{error}");
    }
}
