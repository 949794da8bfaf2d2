//! Seeds that leave the store or come into it, as plain files: the same that `nsc export keys` and `nsc import keys` know.

use std::path::Path;

use bulkhead_claims::{KeyKind, SigningKey};
use zeroize::Zeroizing;

use super::nsc_layout::files_in;
use super::{OperatorError, OperatorStore};
use crate::files::{make_folder, read_text, write_secret};
use crate::keys::KeyError;

impl OperatorStore {
    /// Copies seeds as `<PUBLIC>.nk` into one folder for its owner only, as `nsc export keys` does: all of them, or those
    /// that are named. Says which.
    ///
    /// # Errors
    /// When a named seed is not here, or a file cannot be read or written.
    pub fn export_keys(&self, to: &Path, only: &[String]) -> Result<Vec<String>, OperatorError> {
        let publics = if only.is_empty() { self.keys.seeds() } else { only.to_vec() };
        let mut seeds = Vec::new();
        for public in publics {
            let path = self.keys.path(&public).map_err(OperatorError::Key)?;
            let text = Zeroizing::new(read_text(&path).map_err(OperatorError::File)?);
            seeds.push((public, text));
        }
        make_folder(to).map_err(OperatorError::File)?;
        for (public, text) in &seeds {
            let path = to.join(format!("{public}.nk"));
            write_secret(&path, text.trim().as_bytes()).map_err(OperatorError::File)?;
        }
        Ok(seeds.into_iter().map(|(public, _)| public).collect())
    }

    /// Takes seeds in: a file, or all `.nk` files of a folder. Every one is checked before the first is written. Says which
    /// are new.
    ///
    /// # Errors
    /// When a file holds no seed, or its name says another key than it holds.
    pub fn import_keys(&self, from: &Path) -> Result<Vec<String>, OperatorError> {
        let _lock = self.lock()?;
        let new = self.read_new_keys(from)?;
        new.iter().try_for_each(|key| self.keys.put(key)).map_err(OperatorError::Key)?;
        Ok(new.iter().map(|key| key.public().to_owned()).collect())
    }

    /// What [`OperatorStore::import_keys`] would take.
    ///
    /// # Errors
    /// As that.
    pub fn new_keys_in(&self, from: &Path) -> Result<Vec<String>, OperatorError> {
        Ok(self.read_new_keys(from)?.iter().map(|key| key.public().to_owned()).collect())
    }

    fn read_new_keys(&self, from: &Path) -> Result<Vec<SigningKey>, OperatorError> {
        let files = if from.is_dir() { files_in(from, "nk") } else { vec![from.to_owned()] };
        let keys = files.iter().map(|path| read_seed(path)).collect::<Result<Vec<_>, _>>();
        let known = self.keys.seeds();
        let is_new = |key: &SigningKey| !known.iter().any(|public| public == key.public());
        Ok(keys.map_err(OperatorError::Key)?.into_iter().filter(is_new).collect())
    }
}

/// A seed of any kind; a file that is named by a key must hold that key's.
fn read_seed(path: &Path) -> Result<SigningKey, KeyError> {
    let text = Zeroizing::new(read_text(path).map_err(KeyError::File)?);
    let kinds = [KeyKind::Operator, KeyKind::Account, KeyKind::User];
    let shown = || path.display().to_string();
    let key = kinds.into_iter().find_map(|kind| SigningKey::from_seed(&text, kind).ok());
    let key = key.ok_or_else(|| KeyError::NoSeed { path: shown() })?;
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    if KeyKind::of_public(name).is_some() && name != key.public() {
        return Err(KeyError::Name { path: shown(), found: key.public().to_owned() });
    }
    Ok(key)
}
