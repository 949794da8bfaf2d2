//! Where everything of a store is. What nsc knows lies below `stores` and `keys` exactly as it wants it; everything of
//! ours lies beside those, because nsc and its library stumble over folders that they do not know.

use std::path::{Path, PathBuf};

use super::SYSTEM;
use super::error::OperatorError;

/// The paths of one operator's store.
#[derive(Debug, Clone)]
pub(super) struct StorePaths {
    folder: PathBuf,
    operator: String,
    /// The system account's folder: another tool may have named it.
    system: String,
}

impl StorePaths {
    pub(super) fn new(folder: PathBuf, operator: String) -> Self {
        Self { folder, operator, system: SYSTEM.to_owned() }
    }

    /// Looks for the folder of the system account: under our name, under nsc's, then everywhere.
    pub(super) fn find_system(&mut self, key: Option<&str>) {
        if self.token_at(SYSTEM).exists() {
            return;
        }
        let Some(key) = key else { return };
        let is_system = |name: &String| subject_of(&self.token_at(name)).is_some_and(|sub| sub == key);
        let first = Some("SYS".to_owned()).filter(is_system);
        if let Some(name) = first.or_else(|| folders_in(&self.accounts()).into_iter().find(is_system)) {
            self.system = name;
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn operator(&self) -> &str {
        &self.operator
    }

    pub(super) fn store(&self) -> PathBuf {
        self.folder.join("stores").join(&self.operator)
    }

    pub(super) fn about(&self) -> PathBuf {
        self.store().join(".nsc")
    }

    pub(super) fn operator_token(&self) -> PathBuf {
        self.store().join(format!("{}.jwt", self.operator))
    }

    pub(super) fn accounts(&self) -> PathBuf {
        self.store().join("accounts")
    }

    /// The folder's name of an account, which is also the name in its token.
    pub(super) fn folder_name<'a>(&'a self, account: &'a str) -> &'a str {
        if account == SYSTEM { &self.system } else { account }
    }

    /// What we call the account of a folder.
    pub(super) fn account_name<'a>(&self, folder: &'a str) -> &'a str {
        if folder == self.system { SYSTEM } else { folder }
    }

    pub(super) fn account(&self, account: &str) -> Result<PathBuf, OperatorError> {
        check_name(account)?;
        Ok(self.accounts().join(self.folder_name(account)))
    }

    pub(super) fn account_token(&self, account: &str) -> Result<PathBuf, OperatorError> {
        check_name(account)?;
        Ok(self.token_at(self.folder_name(account)))
    }

    fn token_at(&self, folder: &str) -> PathBuf {
        self.accounts().join(folder).join(format!("{folder}.jwt"))
    }

    pub(super) fn books(&self) -> PathBuf {
        self.folder.join("books")
    }

    pub(super) fn book(&self, account: &str) -> Result<PathBuf, OperatorError> {
        check_name(account)?;
        Ok(self.books().join(format!("{account}.json")))
    }

    pub(super) fn keys(&self) -> PathBuf {
        self.folder.join("keys")
    }

    pub(super) fn credentials(&self, account: &str) -> Result<PathBuf, OperatorError> {
        check_name(account)?;
        Ok(self.keys().join("creds").join(&self.operator).join(self.folder_name(account)))
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.folder.join("staging")
    }

    pub(super) fn removed(&self) -> PathBuf {
        self.folder.join("removed")
    }

    /// Which signing key of the operator is in use.
    pub(super) fn in_use(&self) -> PathBuf {
        self.folder.join("operator.json")
    }
}

/// A name becomes a folder: it may be whatever nsc takes, but never lead elsewhere.
pub(super) fn check_name(name: &str) -> Result<(), OperatorError> {
    let is_bad = name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', '\0']) || name.trim() != name;
    if is_bad { Err(OperatorError::Name(name.chars().take(64).collect())) } else { Ok(()) }
}

/// The names of all folders in a folder, sorted.
pub(super) fn folders_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The files of an ending in a folder, sorted.
pub(super) fn files_in(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == ending) && path.is_file());
    files.sort();
    files
}

/// The operators that have a token below a `stores` folder; `first` alone when it is there.
pub(super) fn find_operators(stores: &Path, first: &str) -> Vec<String> {
    let has_token = |name: &String| stores.join(name).join(format!("{name}.jwt")).exists();
    if has_token(&first.to_owned()) {
        return vec![first.to_owned()];
    }
    folders_in(stores).into_iter().filter(has_token).collect()
}

/// Whom a token is about; `None` when it cannot be read.
pub(super) fn subject_of(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let claims = bulkhead_claims::decode::<bulkhead_claims::AccountBody>(text.trim()).ok()?;
    Some(claims.sub)
}
