//! The operator and its accounts on disk, laid out as nsc does (facts: accounts-and-nsc section 1).
//!
//! Accounts are rendered whole. A token is signed anew only when its body changed, and then its `iat` grows by at least
//! a second, because servers synchronise by it. What another tool wrote is noticed and never overwritten. The operator's
//! identity key signs nothing but the operator itself, and may be somewhere else.

mod accounts;
mod book;
mod compare;
mod error;
mod foreign;
mod inventory;
mod key_files;
mod lock;
mod nsc_check;
mod nsc_export;
mod nsc_import;
mod nsc_layout;
mod removal;
mod rotation;
mod signing;
mod users;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use bulkhead_bus::Role;
use bulkhead_claims::{Claims, KeyKind, OperatorBody, SigningKey, decode, encode};
use serde_json::json;

pub use accounts::AccountRecord;
pub use book::{Book, HeldKey, RoleKeys};
pub use compare::compare;
pub use error::OperatorError;
pub(crate) use error::some;
pub use inventory::{KeyOwner, KeyRow};
pub use nsc_check::{Drift, DriftKind};
pub use nsc_export::NscCopy;
pub use nsc_import::{Imported, NscImportError, NscSource};
pub use removal::RemovedAccount;
pub use signing::Resigned;
pub use users::{IssuedUser, UserRequest};

use self::book::sha256;
use self::error::not_signed;
use self::lock::StoreLock;
use self::nsc_layout::{StorePaths, find_operators};
use crate::files::{read_state, write_secret};
use crate::keys::KeyStore;
use crate::render::{RoleKey, system_account};

const OPERATOR: &str = "bulkhead";
/// What we call the system account, whatever its folder is called.
pub const SYSTEM: &str = "sys";

/// The operator's store.
#[derive(Debug)]
pub struct OperatorStore {
    paths: StorePaths,
    keys: KeyStore,
    pub token: String,
    claims: Claims<OperatorBody>,
}

impl OperatorStore {
    /// Opens the store in `folder`, or makes an operator with two signing keys and its system account.
    ///
    /// # Errors
    /// When the store is damaged or cannot be written. `now` is unix seconds.
    pub fn open(folder: PathBuf, now: i64) -> Result<Self, OperatorError> {
        if let Some(store) = Self::read(folder.clone())? {
            return Ok(store);
        }
        let _lock = StoreLock::take(&folder)?;
        // Whoever held the lock before us may have made it.
        match Self::read(folder.clone())? {
            Some(store) => Ok(store),
            None => Self::create(&folder, now),
        }
    }

    /// Opens the store in `folder` as it is; `None` when there is none.
    ///
    /// # Errors
    /// When the store is damaged.
    pub fn read(folder: PathBuf) -> Result<Option<Self>, OperatorError> {
        let names = find_operators(&folder.join("stores"), OPERATOR);
        let name = match names.as_slice() {
            [] => return Ok(None),
            [name] => name,
            _ => return Err(OperatorError::Several { folder: folder.join("stores").display().to_string(), names }),
        };
        let mut paths = StorePaths::new(folder, name.clone());
        let (token, claims) = read_operator(&paths)?;
        paths.find_system(claims.nats.system_account.as_deref());
        let keys = KeyStore::new(paths.keys());
        Ok(Some(Self { paths, keys, token, claims }))
    }

    fn create(folder: &Path, now: i64) -> Result<Self, OperatorError> {
        let paths = StorePaths::new(folder.to_owned(), OPERATOR.to_owned());
        let keys = KeyStore::new(paths.keys());
        let generate = |kind| keys.generate(kind).map_err(OperatorError::Key);
        let identity = generate(KeyKind::Operator)?;
        // An active and a standby key: servers cannot learn a new one without a restart (finding 8).
        let signing = [generate(KeyKind::Operator)?, generate(KeyKind::Operator)?];
        let system = generate(KeyKind::Account)?;
        let body = OperatorBody::new(
            signing.iter().map(|key: &SigningKey| key.public().to_owned()).collect(),
            system.public().to_owned(),
        );
        let mut claims = Claims::new(identity.public().to_owned(), OPERATOR.to_owned(), now, body);
        let token = encode(&mut claims, &identity).map_err(not_signed)?;
        let store = Self { paths, keys, token, claims };
        let mut book = Book::new(SYSTEM.to_owned(), system.public().to_owned());
        let mut role_keys = Vec::new();
        for role in Role::SYSTEM {
            let public = store.keys.generate(KeyKind::Account).map_err(OperatorError::Key)?.public().to_owned();
            book.hold(role, public.clone(), now);
            role_keys.push(RoleKey { role, public });
        }
        let body = system_account(&role_keys);
        store.write_account(&mut book, None, body, now)?;
        let about = json!({"managed": false, "name": OPERATOR, "kind": "operator", "version": "1"});
        write_secret(&store.paths.about(), about.to_string().as_bytes()).map_err(OperatorError::File)?;
        // The operator's own token comes last: until it is there, the next open starts over.
        write_secret(&store.paths.operator_token(), store.token.as_bytes()).map_err(OperatorError::File)?;
        Ok(store)
    }

    /// Takes the lock for a change.
    fn lock(&self) -> Result<StoreLock, OperatorError> {
        StoreLock::take(self.paths.folder())
    }

    /// The operator's claims as this store has read them.
    #[must_use]
    pub fn claims(&self) -> &Claims<OperatorBody> {
        &self.claims
    }

    /// The operator's name, which is also its folder's below `stores`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.paths.operator()
    }

    /// Where the operator's token is.
    #[must_use]
    pub fn token_file(&self) -> PathBuf {
        self.paths.operator_token()
    }

    #[must_use]
    pub fn keys(&self) -> &KeyStore {
        &self.keys
    }
}

fn read_operator(paths: &StorePaths) -> Result<(String, Claims<OperatorBody>), OperatorError> {
    let path = paths.operator_token();
    let token = read_state(&path).map_err(OperatorError::File)?;
    let damaged =
        |source| OperatorError::Token { name: paths.operator().to_owned(), path: path.display().to_string(), source };
    let claims = decode::<OperatorBody>(&token).map_err(damaged)?;
    if claims.iss != claims.sub {
        return Err(damaged(bulkhead_claims::DecodeError::Issuer(claims.iss)));
    }
    Ok((token, claims))
}
