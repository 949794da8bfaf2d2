//! A copy of the store that nsc works with as it is: its tokens and seeds, and the users that we issued.

use std::path::{Path, PathBuf};

use bulkhead_claims::{Credentials, SigningKey, parse_credentials};
use serde_json::json;
use zeroize::Zeroizing;

use super::nsc_layout::folders_in;
use super::{OperatorError, OperatorStore};
use crate::files::{make_folder, read_text, write_secret};
use crate::keys::KeyStore;

/// How deep below the home credentials lie: `sites/<tenant>/<site>/leaf.creds`.
const DEPTH_MOST: usize = 6;
/// Folders of a home in which no credentials are, and much else.
const SKIPPED: [&str; 6] = ["postgres", "nsc", "tools", "logs", "core", "run"];

/// What was copied, and how nsc is told where it is.
#[derive(Debug, Clone)]
pub struct NscCopy {
    pub accounts: usize,
    pub users: usize,
    pub seeds: usize,
    /// Users that have the name of another one in their account: their credentials are copied, their tokens are not.
    pub same_name: Vec<String>,
    /// The variables that nsc needs, with their values.
    pub environment: Vec<(String, PathBuf)>,
}

/// A user as credentials hold it.
struct FoundUser {
    account_key: String,
    name: String,
    public: String,
    iat: i64,
    token: String,
    text: Zeroizing<String>,
    seed: SigningKey,
}

impl OperatorStore {
    /// Copies the store to `to`, which must not be there yet, with all users whose credentials lie below `home`.
    ///
    /// # Errors
    /// When something is there already, or a file cannot be read or written.
    pub fn export_to(&self, to: &Path, home: &Path) -> Result<NscCopy, OperatorError> {
        let _lock = self.lock()?;
        make_folder(to).map_err(OperatorError::File)?;
        let (config, data) = (to.join("config"), to.join("data"));
        let root = data.join("nats").join("nsc");
        let stores = root.join("stores");
        let store = stores.join(self.name());
        copy_tree(&self.paths.store(), &store, &|path| is_of_nsc(path))?;
        make_folder(&store.join("accounts")).map_err(OperatorError::File)?;
        let keys = root.join("keys");
        for kind in ["keys", "creds"] {
            copy_tree(&self.paths.keys().join(kind), &keys.join(kind), &|path| is_of_nsc(path))?;
            make_folder(&keys.join(kind)).map_err(OperatorError::File)?;
        }
        let mut users = find_users(home);
        // The newest of a name is the one that nsc shows.
        users.sort_by(|a, b| (&a.account_key, &a.name, b.iat).cmp(&(&b.account_key, &b.name, a.iat)));
        let mut copy = NscCopy { accounts: 0, users: 0, seeds: 0, same_name: vec![], environment: vec![] };
        let target = KeyStore::new(keys.clone());
        for folder in folders_in(&store.join("accounts")) {
            copy.accounts += 1;
            let Some(key) = self.account_subject(self.paths.account_name(&folder)) else { continue };
            for user in users.iter().filter(|user| user.account_key == key) {
                write_user(
                    &store.join("accounts").join(&folder),
                    &keys.join("creds").join(self.name()).join(&folder),
                    user,
                    &mut copy,
                )?;
                target.put(&user.seed).map_err(OperatorError::Key)?;
            }
        }
        copy.seeds = target.seeds().len();
        let settings = json!({
            "store_root": stores, "operator": self.name(), "account": self.paths.folder_name(super::SYSTEM),
            "github_updates": "nats-io/nsc", "last_update": 0,
        });
        let settings_file = config.join("nats").join("nsc").join("nsc.json");
        write_secret(&settings_file, settings.to_string().as_bytes()).map_err(OperatorError::File)?;
        copy.environment = vec![("XDG_CONFIG_HOME".to_owned(), config), ("XDG_DATA_HOME".to_owned(), data)];
        Ok(copy)
    }
}

fn write_user(account: &Path, credentials: &Path, user: &FoundUser, copy: &mut NscCopy) -> Result<(), OperatorError> {
    let token = account.join("users").join(format!("{}.jwt", user.name));
    let file = if token.exists() {
        copy.same_name.push(format!("{} ({})", user.name, user.public));
        format!("{}-{}.creds", user.name, user.public)
    } else {
        write_secret(&token, user.token.as_bytes()).map_err(OperatorError::File)?;
        format!("{}.creds", user.name)
    };
    copy.users += 1;
    write_secret(&credentials.join(file), user.text.as_bytes()).map_err(OperatorError::File)
}

/// What nsc wrote or would have written: nothing hidden but its own `.nsc`.
fn is_of_nsc(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    name == ".nsc" || (!name.starts_with('.') && ["jwt", "nk", "creds"].contains(&ending))
}

/// Copies the files that are wanted, for their owner only. Links are not followed.
pub(super) fn copy_tree(from: &Path, to: &Path, is_wanted: &dyn Fn(&Path) -> bool) -> Result<(), OperatorError> {
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            copy_tree(&path, &target, is_wanted)?;
        } else if kind.is_file() && is_wanted(&path) {
            let text = Zeroizing::new(read_text(&path).map_err(OperatorError::File)?);
            // nsc compares seeds byte by byte, and trims everything else.
            write_secret(&target, text.trim_end().as_bytes()).map_err(OperatorError::File)?;
        }
    }
    Ok(())
}

fn find_users(home: &Path) -> Vec<FoundUser> {
    let mut found = Vec::new();
    look_for_users(home, DEPTH_MOST, &mut found);
    found
}

fn look_for_users(folder: &Path, depth: usize, found: &mut Vec<FoundUser>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        let is_skipped = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| SKIPPED.contains(&name));
        if kind.is_dir() && depth > 0 && !is_skipped {
            look_for_users(&path, depth - 1, found);
        } else if kind.is_file() && path.extension().is_some_and(|ending| ending == "creds") {
            found.extend(read_user(&path));
        }
    }
}

fn read_user(path: &Path) -> Option<FoundUser> {
    let text = Zeroizing::new(std::fs::read_to_string(path).ok()?);
    let Credentials { token, claims, key } = parse_credentials(&text).ok()?;
    let name = claims.name.clone();
    super::nsc_layout::check_name(&name).ok()?;
    let account_key = if claims.nats.issuer_account.is_empty() { claims.iss } else { claims.nats.issuer_account };
    Some(FoundUser { account_key, name, public: claims.sub, iat: claims.iat, token, text, seed: key })
}
