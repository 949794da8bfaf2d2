//! Removing an account: everything of it is moved aside at once, because nsc fails on a folder without a token.

use std::path::{Path, PathBuf};

use bulkhead_claims::{AccountBody, UserBody, decode};

use super::nsc_layout::files_in;
use super::{OperatorError, OperatorStore, SYSTEM};
use crate::files::{make_folder, remove_whole};

/// Where what is left of a removed account lies.
#[derive(Debug, Clone)]
pub struct RemovedAccount {
    pub name: String,
    /// Token, users, credentials, book and seeds.
    pub folder: PathBuf,
    /// How many seeds were moved.
    pub seeds: usize,
}

impl OperatorStore {
    /// Moves an account's token, users, credentials, book and seeds out of the store into a folder beside it. A removal
    /// that was cut short is finished by the next one.
    ///
    /// # Errors
    /// When it is the system account, was never there, or cannot be moved.
    pub fn remove_account(&self, name: &str, now: i64) -> Result<RemovedAccount, OperatorError> {
        if name == SYSTEM {
            return Err(OperatorError::System);
        }
        let _lock = self.lock()?;
        let (folder, book) = (self.paths.account(name)?, self.paths.book(name)?);
        let credentials = self.paths.credentials(name)?;
        if !folder.exists() && !book.exists() {
            return Err(OperatorError::NoAccount(name.to_owned()));
        }
        let known = self.read_book(name).ok().flatten().map(|book| book.key);
        let key = known.or_else(|| self.account_subject(name)).unwrap_or_default();
        let short: String = key.chars().take(8).collect();
        let aside = self.paths.removed().join(format!("{name}-{short}-{now}"));
        make_folder(&aside.join("keys")).map_err(OperatorError::File)?;
        // The book names the keys, so it goes last: until then a second try finds them.
        let seeds = self.move_seeds(name, &aside.join("keys"))?;
        move_aside(&folder, &aside.join("account"))?;
        move_aside(&credentials, &aside.join("creds"))?;
        move_aside(&book, &aside.join("book.json"))?;
        remove_whole(&book).map_err(OperatorError::File)?;
        Ok(RemovedAccount { name: name.to_owned(), folder: aside, seeds })
    }

    fn move_seeds(&self, name: &str, aside: &Path) -> Result<usize, OperatorError> {
        let mut keys: Vec<String> = Vec::new();
        if let Ok(Some(book)) = self.read_book(name) {
            keys.push(book.key);
            keys.extend(book.retired);
            let roles = book.roles.into_values();
            keys.extend(roles.flat_map(|role| [Some(role.current), role.previous]).flatten().map(|key| key.public));
        }
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let claims = read(&self.paths.account_token(name)?).and_then(|token| decode::<AccountBody>(&token).ok());
        if let Some(claims) = claims {
            keys.push(claims.sub);
            keys.extend(claims.nats.signing_keys.iter().map(|key| key.key().to_owned()));
        }
        for user in files_in(&self.paths.account(name)?.join("users"), "jwt") {
            keys.extend(read(&user).and_then(|token| decode::<UserBody>(&token).ok()).map(|claims| claims.sub));
        }
        keys.sort();
        keys.dedup();
        let mut seeds = 0;
        for key in keys {
            let Ok(path) = self.keys.path(&key) else { continue };
            if path.exists() {
                move_aside(&path, &aside.join(format!("{key}.nk")))?;
                seeds += 1;
            }
        }
        Ok(seeds)
    }
}

fn move_aside(from: &Path, to: &Path) -> Result<(), OperatorError> {
    if !from.exists() {
        return Ok(());
    }
    std::fs::rename(from, to).map_err(|source| OperatorError::Move { path: from.display().to_string(), source })
}
