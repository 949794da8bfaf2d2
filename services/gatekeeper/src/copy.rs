//! The copy of the bucket on this machine's disk, for a start without it. What is secret in it is sealed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bulkhead_bus::AccountKey;
use bulkhead_bus::gate::GateKey;
use bytes::Bytes;

/// What the copy of a removed record ends in: its epoch still counts.
const GONE: &str = "gone";

/// The folder of the copy.
#[derive(Debug, Clone)]
pub struct Copy(PathBuf);

/// What was found in it.
#[derive(Debug, Default)]
pub struct Found {
    pub entries: Vec<(GateKey, Vec<u8>)>,
    /// Records that were removed.
    pub gone: Vec<(AccountKey, Vec<u8>)>,
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Copy {
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    /// Reads everything; what is none of ours is left alone.
    ///
    /// # Errors
    /// When the folder or a file of ours cannot be read.
    pub fn read(&self) -> io::Result<Found> {
        let mut values = BTreeMap::new();
        for entry in fs::read_dir(&self.0)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            let is_gone = |(account, end): (&str, &str)| end == GONE && account.parse::<AccountKey>().is_ok();
            if GateKey::parse(name).is_some() || name.split_once('.').is_some_and(is_gone) {
                values.insert(name.to_owned(), fs::read(self.0.join(name))?);
            }
        }
        let mut found = Found::default();
        for (name, value) in values {
            if let Some(key) = GateKey::parse(&name) {
                found.entries.push((key, value));
            } else if let Some(account) = name.split_once('.').and_then(|(account, _)| account.parse().ok()) {
                found.gone.push((account, value));
            }
        }
        Ok(found)
    }

    /// What is kept of one key.
    #[must_use]
    pub fn find(&self, key: &GateKey) -> Option<Bytes> {
        fs::read(self.0.join(key.text())).ok().map(Bytes::from)
    }

    /// Keeps entries; one without a value was removed. What is there already is not written again. Blocks.
    ///
    /// # Errors
    /// When one cannot be kept; then an older one is not kept either.
    pub fn keep(&self, entries: &[(GateKey, Option<Bytes>)]) -> io::Result<()> {
        let mut failed = None;
        let mut has_changed = false;
        for (key, value) in entries {
            match self.keep_one(key, value.as_deref()) {
                Ok(changed) => has_changed |= changed,
                Err(error) => {
                    // A start must not go back to what was before.
                    let _ = remove(&self.0.join(key.text()));
                    failed = Some(error);
                }
            }
        }
        if has_changed {
            File::open(&self.0)?.sync_all()?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Whether something had to be changed.
    fn keep_one(&self, key: &GateKey, value: Option<&[u8]>) -> io::Result<bool> {
        let path = self.0.join(key.text());
        match (key, value) {
            (_, Some(value)) => {
                if fs::read(&path).is_ok_and(|there| there == value) {
                    return Ok(false);
                }
                let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
                file.write_all(value)?;
                file.as_file().sync_all()?;
                file.persist(&path).map_err(|error| error.error)?;
            }
            // Its epoch counts on: a removed record does not come back by being said again.
            (GateKey::Record(account), None) => match fs::rename(&path, self.0.join(format!("{account}.{GONE}"))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                renamed => renamed?,
            },
            (GateKey::Keys(_), None) => remove(&path)?,
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_claims::{KeyKind, SigningKey};

    use super::*;

    #[test]
    fn what_is_kept_is_found_and_what_was_removed_is_gone_and_remembered() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lost+found")).unwrap();
        fs::write(folder.path().join(".tmpabc"), "x").unwrap();
        let copy = Copy::open(folder.path().to_owned()).unwrap();
        let account: AccountKey = SigningKey::generate(KeyKind::Account).public().parse().unwrap();
        let (record, keys) = (GateKey::Record(account.clone()), GateKey::Keys(account.clone()));
        let said = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        copy.keep(&[(record.clone(), said("one")), (keys.clone(), said("sealed"))]).unwrap();
        copy.keep(&[(record.clone(), said("two"))]).unwrap();
        let found = copy.read().unwrap();
        assert_eq!(found.entries, [(keys.clone(), b"sealed".to_vec()), (record.clone(), b"two".to_vec())]);
        copy.keep(&[(record, None), (keys, None)]).unwrap();
        let found = copy.read().unwrap();
        assert_eq!((found.entries.len(), found.gone), (0, vec![(account, b"two".to_vec())]));
    }
}
