//! Whose live stream each INTAKE account imports. Apart from onboarding: a tenant is marked as waiting, and whoever
//! reconciles takes all that wait at once, so that many onboardings cost one change of an INTAKE account.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bulkhead_bus::{AccountKey, TenantSlug};
use serde::{Deserialize, Serialize};

use crate::files::{FileError, make_folder, read_state, remove_whole, write_public};
use crate::render::INTAKE_TENANTS;
use crate::up::Layout;

/// Why shards cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error("INTAKE shard")]
    File(#[source] FileError),
    #[error("{path} is damaged: restore it from a backup, or remove it and run `bulkhead push`")]
    Damaged { path: String, source: serde_json::Error },
    #[error("read {path}")]
    List { path: String, source: std::io::Error },
    #[error("move {path}: free some space on its disk")]
    Take { path: String, source: std::io::Error },
}

/// What one INTAKE account imports: account keys by slug.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    pub tenants: BTreeMap<TenantSlug, AccountKey>,
}

impl Shard {
    /// Slugs and keys of those whose live stream is imported, as the account is rendered from them.
    pub(crate) fn imported(&self) -> Vec<(String, String)> {
        self.tenants.iter().map(|(slug, key)| (slug.to_string(), key.to_string())).collect()
    }
}

/// The name of a shard's account.
#[must_use]
pub fn intake_name(number: u32) -> String {
    format!("intake-{number}")
}

/// The number of the shard that an account is, by its name.
#[must_use]
pub fn intake_number(account: &str) -> Option<u32> {
    account.strip_prefix("intake-").and_then(|number| number.parse().ok())
}

/// Whether an account is a shard.
#[must_use]
pub fn is_intake(account: &str) -> bool {
    intake_number(account).is_some()
}

/// All shards of a home.
#[derive(Debug, Clone)]
pub struct Intake {
    folder: PathBuf,
}

impl Intake {
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self { folder: layout.intake() }
    }

    fn waiting_folder(&self) -> PathBuf {
        self.folder.join("waiting")
    }

    /// The marks that the holder of the lock is seeing to.
    fn taken_folder(&self) -> PathBuf {
        self.folder.join("taken")
    }

    /// The file whose lock the one who reconciles holds.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// # Errors
    /// When the folder cannot be made.
    pub fn make_folders(&self) -> Result<(), IntakeError> {
        make_folder(&self.taken_folder()).map_err(IntakeError::File)?;
        make_folder(&self.waiting_folder()).map_err(IntakeError::File)
    }

    fn path(&self, number: u32) -> PathBuf {
        self.folder.join(format!("{number}.json"))
    }

    /// Marks a tenant whose place has to be looked at. What its record says is to be written by then: a mark that is taken
    /// before is seen to as the record was.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn mark(&self, slug: &TenantSlug) -> Result<(), IntakeError> {
        write_public(&self.waiting_folder().join(slug.as_str()), b"").map_err(IntakeError::File)
    }

    /// Takes every mark, for the holder of the lock: whoever marks from now on is looked at again. What was taken and not
    /// seen to is taken again.
    ///
    /// # Errors
    /// When a mark cannot be moved.
    pub(crate) fn take_marks(&self) -> Result<BTreeSet<TenantSlug>, IntakeError> {
        for slug in self.waiting()? {
            let (from, to) = (self.waiting_folder().join(slug.as_str()), self.taken_folder().join(slug.as_str()));
            std::fs::rename(&from, &to)
                .map_err(|source| IntakeError::Take { path: from.display().to_string(), source })?;
        }
        self.slugs(&self.taken_folder())
    }

    /// Removes the marks of tenants that were seen to.
    pub(crate) fn forget_marks<'a>(&self, slugs: impl IntoIterator<Item = &'a TenantSlug>) {
        for slug in slugs {
            // A mark that stays is looked at once more.
            let _ = remove_whole(&self.taken_folder().join(slug.as_str()));
        }
    }

    /// # Errors
    /// When the folder cannot be read.
    pub fn waiting(&self) -> Result<BTreeSet<TenantSlug>, IntakeError> {
        self.slugs(&self.waiting_folder())
    }

    fn slugs(&self, folder: &std::path::Path) -> Result<BTreeSet<TenantSlug>, IntakeError> {
        Ok(self.names(folder)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn names(&self, folder: &std::path::Path) -> Result<Vec<String>, IntakeError> {
        let failed = |source| IntakeError::List { path: folder.display().to_string(), source };
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    /// Every shard by its number.
    ///
    /// # Errors
    /// When one is damaged.
    pub fn shards(&self) -> Result<BTreeMap<u32, Shard>, IntakeError> {
        let names = self.names(&self.folder)?;
        let numbers = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse::<u32>().ok());
        numbers.map(|number| Ok((number, self.shard(number)?))).collect()
    }

    fn shard(&self, number: u32) -> Result<Shard, IntakeError> {
        let path = self.path(number);
        let text = read_state(&path).map_err(IntakeError::File)?;
        serde_json::from_str(&text).map_err(|source| IntakeError::Damaged { path: path.display().to_string(), source })
    }

    /// # Errors
    /// When it cannot be written.
    ///
    /// # Panics
    /// Never: a shard serializes.
    pub fn write(&self, number: u32, shard: &Shard) -> Result<(), IntakeError> {
        let text = serde_json::to_vec_pretty(shard).expect("a shard serializes");
        write_public(&self.path(number), &text).map_err(IntakeError::File)
    }
}

/// Gives each tenant of `wanted` its place: with its key where its live stream is to be imported, or `None` where it is not
/// any more. Returns the numbers of the shards that changed. The first shard that has room is taken; there is always one shard.
pub fn place(shards: &mut BTreeMap<u32, Shard>, wanted: &BTreeMap<TenantSlug, Option<AccountKey>>) -> BTreeSet<u32> {
    let mut changed = BTreeSet::new();
    if shards.is_empty() {
        shards.insert(1, Shard::default());
        changed.insert(1);
    }
    for (slug, key) in wanted {
        let known = shards.iter().find(|(_, shard)| shard.tenants.contains_key(slug)).map(|(&number, _)| number);
        let number = match (known, key) {
            (None, None) => continue,
            (Some(number), _) => number,
            (None, Some(_)) => {
                let with_room = shards.iter().find(|(_, shard)| shard.tenants.len() < INTAKE_TENANTS);
                with_room.map_or_else(|| shards.keys().max().map_or(1, |last| last + 1), |(&number, _)| number)
            }
        };
        let shard = shards.entry(number).or_default();
        let before = match key {
            Some(key) => shard.tenants.insert(slug.clone(), key.clone()),
            None => shard.tenants.remove(slug),
        };
        if before.as_ref() != key.as_ref() {
            changed.insert(number);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> AccountKey {
        nkeys::KeyPair::new_account().public_key().parse().unwrap()
    }

    fn slug(number: usize) -> TenantSlug {
        format!("t{number}").parse().unwrap()
    }

    #[test]
    fn tenants_fill_the_first_shard_with_room_and_leave_their_place_to_others() {
        let mut shards = BTreeMap::new();
        assert_eq!(place(&mut shards, &BTreeMap::new()), BTreeSet::from([1]), "there is always one shard");
        let all: BTreeMap<TenantSlug, Option<AccountKey>> =
            (0..=INTAKE_TENANTS).map(|number| (slug(number), Some(key()))).collect();
        assert_eq!(place(&mut shards, &all), BTreeSet::from([1, 2]));
        assert_eq!([shards[&1].tenants.len(), shards[&2].tenants.len()], [INTAKE_TENANTS, 1]);
        assert_eq!(place(&mut shards, &all), BTreeSet::new(), "nobody moves");
        assert_eq!(place(&mut shards, &BTreeMap::from([(slug(7), None)])), BTreeSet::from([1]));
        assert_eq!(place(&mut shards, &BTreeMap::from([(slug(7), None)])), BTreeSet::new());
        assert_eq!(place(&mut shards, &BTreeMap::from([(slug(999), Some(key()))])), BTreeSet::from([1]));
        let again = BTreeMap::from([(slug(999), Some(key()))]);
        assert_eq!(place(&mut shards, &again), BTreeSet::from([1]), "a new key for a slug that is given again");
    }

    #[test]
    fn marks_and_shards_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let intake = Intake::new(&Layout::new(folder.path().to_owned()));
        assert!(intake.waiting().unwrap().is_empty() && intake.shards().unwrap().is_empty());
        intake.mark(&slug(1)).unwrap();
        intake.mark(&slug(2)).unwrap();
        intake.mark(&slug(2)).unwrap();
        intake.make_folders().unwrap();
        assert_eq!(intake.take_marks().unwrap(), BTreeSet::from([slug(1), slug(2)]));
        intake.mark(&slug(1)).unwrap();
        intake.forget_marks([&slug(1)]);
        assert_eq!(intake.waiting().unwrap(), BTreeSet::from([slug(1)]), "marked while it was seen to");
        assert_eq!(intake.take_marks().unwrap(), BTreeSet::from([slug(1), slug(2)]), "one was not seen to");
        let shard = Shard { tenants: BTreeMap::from([(slug(1), key())]) };
        intake.write(3, &shard).unwrap();
        assert_eq!(intake.shards().unwrap(), BTreeMap::from([(3, shard)]));
        std::fs::write(intake.path(3), "[]").unwrap();
        assert!(intake.shards().unwrap_err().to_string().contains("3.json is damaged"));
    }
}
