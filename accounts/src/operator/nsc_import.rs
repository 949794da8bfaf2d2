//! A store that nsc made becomes ours: a new home takes all of it, and a home of the same operator takes single accounts.
//!
//! Nothing that is there is signed anew or changed. Accounts that carry no role of ours are kept, listed and not touched.

use std::path::{Path, PathBuf};

use bulkhead_claims::{AccountBody, Body, Claims, OperatorBody, decode};
use serde::Serialize;

use super::accounts::{differences, edits, may_sign};
use super::lock::StoreLock;
use super::nsc_export::copy_tree;
use super::nsc_layout::{find_operators, folders_in};
use super::{Book, OperatorError, OperatorStore, SYSTEM};
use crate::files::{Staged, make_folder, read_text};

/// Where a store of nsc lies: below any of the folders that nsc uses.
const PLACES: [&str; 5] = ["", "stores", "nats/nsc/stores", "data/nats/nsc/stores", ".local/share/nats/nsc/stores"];

/// Why a store is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum NscImportError {
    #[error(
        "{0} holds no store of nsc: give its data folder, its `stores` folder, or a folder with `stores` and `keys`"
    )]
    None(String),
    #[error("{folder} holds several operators ({}): name one with --operator", .names.join(", "))]
    Several { folder: String, names: Vec<String> },
    #[error("{found} is another operator than the one of this home ({ours}): take it into a home of its own")]
    Another { found: String, ours: String },
    #[error("{path} is not to be believed: {problem}; nothing was taken in")]
    Damaged { path: String, problem: String },
    #[error("operator store")]
    Store(#[source] OperatorError),
    #[error("put the new store in its place")]
    Place(#[source] std::io::Error),
}

/// A store of nsc that was found.
#[derive(Debug, Clone)]
pub struct NscSource {
    /// The operator's folder.
    store: PathBuf,
    keys: PathBuf,
    operator: String,
}

/// What was done with an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    pub account: String,
    pub key: String,
    /// `taken`, `same`, `differs` or `new`; the last two are not taken until they are accepted.
    pub state: &'static str,
    /// Whether we render it.
    pub managed: bool,
    pub differences: Vec<String>,
}

impl NscSource {
    /// Looks for a store of nsc in `folder`.
    ///
    /// # Errors
    /// When there is none, or several and none is named.
    pub fn find(folder: &Path, operator: Option<&str>) -> Result<Self, NscImportError> {
        let shown = folder.display().to_string();
        for place in PLACES {
            let stores = folder.join(place);
            let names = match operator {
                Some(name) => find_operators(&stores, name).into_iter().filter(|found| found == name).collect(),
                None => find_operators(&stores, ""),
            };
            match names.as_slice() {
                [] => {}
                [name] => {
                    let keys = stores.parent().unwrap_or(&stores).join("keys");
                    return Ok(Self { store: stores.join(name), keys, operator: name.clone() });
                }
                _ => return Err(NscImportError::Several { folder: shown, names }),
            }
        }
        Err(NscImportError::None(shown))
    }

    /// Names another keystore than the one beside the store.
    #[must_use]
    pub fn with_keys(self, keys: PathBuf) -> Self {
        Self { keys, ..self }
    }

    fn operator_claims(&self) -> Result<Claims<OperatorBody>, NscImportError> {
        let path = self.store.join(format!("{}.jwt", self.operator));
        let claims: Claims<OperatorBody> = read_token(&path)?;
        if claims.iss == claims.sub {
            return Ok(claims);
        }
        Err(damaged(&path, "an operator signs its own token"))
    }

    fn account_path(&self, name: &str) -> PathBuf {
        self.store.join("accounts").join(name).join(format!("{name}.jwt"))
    }

    fn account_names(&self) -> Vec<String> {
        let names = folders_in(&self.store.join("accounts"));
        names.into_iter().filter(|name| self.account_path(name).exists()).collect()
    }

    /// Every account must be one that the operator signed and that we can read.
    fn read_accounts(&self) -> Result<Vec<(String, String, Claims<AccountBody>)>, NscImportError> {
        let operator = self.operator_claims()?;
        let mut accounts = Vec::new();
        for name in self.account_names() {
            let path = self.account_path(&name);
            let claims: Claims<AccountBody> = read_token(&path)?;
            if !may_sign(&operator, &claims.iss) {
                return Err(damaged(&path, &format!("{} is no key of the operator", claims.iss)));
            }
            let token = read_text(&path).map_err(|error| NscImportError::Store(OperatorError::File(error)))?;
            accounts.push((name, token.trim().to_owned(), claims));
        }
        Ok(accounts)
    }
}

fn damaged(path: &Path, problem: &str) -> NscImportError {
    NscImportError::Damaged { path: path.display().to_string(), problem: problem.to_owned() }
}

fn read_token<B: Body>(path: &Path) -> Result<Claims<B>, NscImportError> {
    let text = read_text(path).map_err(|error| NscImportError::Store(OperatorError::File(error)))?;
    decode(text.trim()).map_err(|error| damaged(path, &crate::reason::reason(&error)))
}

impl OperatorStore {
    /// Makes a store of nsc the store in `folder`, which has none yet: all of it or nothing.
    ///
    /// # Errors
    /// When a token in it is damaged or of another operator, or the disk is full.
    pub fn import_new(folder: &Path, source: &NscSource) -> Result<(Self, Vec<Imported>), NscImportError> {
        let store = NscImportError::Store;
        let accounts = source.read_accounts()?;
        let _lock = StoreLock::take(folder).map_err(store)?;
        if let Some(existing) = Self::read(folder.to_owned()).map_err(store)? {
            let found = source.operator_claims()?.sub;
            return Err(NscImportError::Another { found, ours: existing.claims.sub });
        }
        let staging = folder.join("staging").join("import");
        let copied = source.copy_to(&staging, accounts);
        let placed = copied.and_then(|imported| place(&staging, folder).map(|()| imported));
        // Either it is in its place, or it is not wanted.
        let _ = std::fs::remove_dir_all(&staging);
        let imported = placed?;
        let missing = || NscImportError::None(folder.display().to_string());
        let opened = Self::read(folder.to_owned()).map_err(store)?.ok_or_else(missing)?;
        Ok((opened, imported))
    }

    /// Compares a store of nsc, of the same operator, with ours, account by account; with no `source`, ours with what we
    /// wrote. Takes those that are accepted, with the seeds that came with them.
    ///
    /// # Errors
    /// When it is another operator's, or an accepted account is not there or damaged.
    pub fn import_accounts(
        &self,
        source: Option<&NscSource>,
        accept: &[String],
    ) -> Result<Vec<Imported>, NscImportError> {
        let Some(source) = source else { return self.accept_in_place(accept) };
        let found = source.operator_claims()?.sub;
        if found != self.claims.sub {
            return Err(NscImportError::Another { found, ours: self.claims.sub.clone() });
        }
        let mut rows = Vec::new();
        for (folder, token, claims) in source.read_accounts()? {
            let name = if Some(&claims.sub) == self.claims.nats.system_account.as_ref() { SYSTEM } else { &folder };
            let row = self.import_account(source, (name, &folder), &token, &claims, accept.iter().any(|a| a == name));
            rows.push(row?);
        }
        if let Some(missing) = accept.iter().find(|name| !rows.iter().any(|row| row.account == **name)) {
            return Err(NscImportError::Store(OperatorError::NoAccount(missing.clone())));
        }
        Ok(rows)
    }

    fn import_account(
        &self,
        source: &NscSource,
        (name, folder): (&str, &str),
        token: &str,
        claims: &Claims<AccountBody>,
        is_accepted: bool,
    ) -> Result<Imported, NscImportError> {
        let ours = self.account(name).ok().flatten();
        let known = self.read_book(name).ok().flatten();
        let differences = match &ours {
            Some(record) if record.token == token => vec![],
            Some(record) => changes(&record.claims, claims),
            None => vec![],
        };
        let managed = known.is_some_and(|book| book.managed);
        let mut row =
            Imported { account: name.to_owned(), key: claims.sub.clone(), state: "same", managed, differences };
        if ours.is_some_and(|record| record.token == token) {
            if is_accepted {
                row.managed = self.accept_account(name).map_err(NscImportError::Store)?.managed;
                row.state = "taken";
            }
            return Ok(row);
        }
        if !is_accepted {
            row.state = if row.differences.is_empty() { "new" } else { "differs" };
            return Ok(row);
        }
        self.take_account(source, (name, folder), token).map_err(NscImportError::Store)?;
        row.managed = self.accept_account(name).map_err(NscImportError::Store)?.managed;
        row.state = "taken";
        Ok(row)
    }

    fn take_account(&self, source: &NscSource, (name, folder): (&str, &str), token: &str) -> Result<(), OperatorError> {
        let _lock = self.lock()?;
        let is_new = |keys: &PathBuf| {
            let target = keys.clone();
            let from = source.keys.join("keys");
            move |path: &Path| path.strip_prefix(&from).is_ok_and(|path| !target.join(path).exists())
        };
        let keys = self.paths.keys().join("keys");
        copy_tree(&source.keys.join("keys"), &keys, &is_new(&keys))?;
        let credentials = source.keys.join("creds").join(&source.operator).join(folder);
        copy_tree(&credentials, &self.paths.credentials(name)?, &|_| true)?;
        let users = source.store.join("accounts").join(folder).join("users");
        let path = self.paths.account_token(name)?;
        let staged = Staged::secret(&self.paths.staging(), &path, token.as_bytes()).map_err(OperatorError::File)?;
        staged.put().map_err(OperatorError::File)?;
        copy_tree(&users, &self.paths.account(name)?.join("users"), &|_| true)
    }

    fn accept_in_place(&self, accept: &[String]) -> Result<Vec<Imported>, NscImportError> {
        let mut rows = Vec::new();
        for name in accept {
            let record = self.account(name).map_err(NscImportError::Store)?;
            let record = record.ok_or_else(|| NscImportError::Store(OperatorError::NoAccount(name.clone())))?;
            let known = self.read_book(name).map_err(NscImportError::Store)?;
            let differences = known.map(|book| edits(&book, &record.token)).unwrap_or_default();
            let book = self.accept_account(name).map_err(NscImportError::Store)?;
            let key = record.key.to_string();
            rows.push(Imported { account: name.clone(), key, state: "taken", managed: book.managed, differences });
        }
        Ok(rows)
    }
}

/// What differs between two tokens; the same content signed anew differs as well.
fn changes(ours: &Claims<AccountBody>, theirs: &Claims<AccountBody>) -> Vec<String> {
    let mut differences = differences(ours, theirs);
    if differences.is_empty() {
        differences.push(format!("iat is {}, was {}", theirs.iat, ours.iat));
    }
    differences
}

impl NscSource {
    /// What a home without a store would take.
    ///
    /// # Errors
    /// When a token is damaged or of another operator.
    pub fn preview(&self) -> Result<Vec<Imported>, NscImportError> {
        let row = |(account, token, claims): (String, String, Claims<AccountBody>)| {
            let managed = Book::derive(&account, &token, &claims).managed;
            Imported { account, key: claims.sub, state: "would be taken", managed, differences: vec![] }
        };
        Ok(self.read_accounts()?.into_iter().map(row).collect())
    }

    fn copy_to(
        &self,
        staging: &Path,
        accounts: Vec<(String, String, Claims<AccountBody>)>,
    ) -> Result<Vec<Imported>, NscImportError> {
        let store = NscImportError::Store;
        // What an import that was killed has left.
        let _ = std::fs::remove_dir_all(staging);
        let wanted = |path: &Path| !path.to_string_lossy().ends_with(".new");
        copy_tree(&self.store, &staging.join("stores").join(&self.operator), &wanted).map_err(store)?;
        for kind in ["keys", "creds"] {
            copy_tree(&self.keys.join(kind), &staging.join("keys").join(kind), &wanted).map_err(store)?;
            make_folder(&staging.join("keys").join(kind)).map_err(|error| store(OperatorError::File(error)))?;
        }
        let system = self.operator_claims()?.nats.system_account;
        let mut rows = Vec::new();
        for (folder, token, claims) in accounts {
            let is_system = Some(&claims.sub) == system.as_ref();
            let name = if is_system { SYSTEM.to_owned() } else { folder };
            let mut book = Book::derive(&name, &token, &claims);
            // Pushing needs a role of ours in it; its other keys stay.
            book.managed |= is_system;
            let text = serde_json::to_vec_pretty(&book).map_err(|error| damaged(staging, &error.to_string()))?;
            let path = staging.join("books").join(format!("{name}.json"));
            crate::files::write_secret(&path, &text).map_err(|error| store(OperatorError::File(error)))?;
            rows.push(Imported {
                account: name,
                key: claims.sub,
                state: "taken",
                managed: book.managed,
                differences: vec![],
            });
        }
        Ok(rows)
    }
}

/// The operator's token is what makes a store, so it comes last.
fn place(staging: &Path, folder: &Path) -> Result<(), NscImportError> {
    for part in ["keys", "books", "stores"] {
        let (from, to) = (staging.join(part), folder.join(part));
        // Left by a start that was cut short before there was an operator.
        if to.exists() {
            let aside = folder.join("staging").join(format!("before-{part}"));
            let _ = std::fs::remove_dir_all(&aside);
            std::fs::rename(&to, &aside).map_err(NscImportError::Place)?;
        }
        if from.exists() {
            std::fs::rename(&from, &to).map_err(NscImportError::Place)?;
        }
    }
    Ok(())
}
