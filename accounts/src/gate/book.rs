//! What was told of each account, `<home>/gate/<account>.json`: an epoch is never used twice, and what has not changed is
//! not said again.
//!
//! Epochs are milliseconds: a home that was restored from a backup goes on behind everything that it said since.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bulkhead_claims::{Body, Claims, decode};
use bulkhead_identity::GateBody;
use serde::{Deserialize, Serialize};

use super::{GateError, keys_of, sign_record};
use crate::files::{read_state, remove_whole, write_secret};
use crate::operator::{AccountRecord, OperatorStore};
use crate::up::Layout;

/// What was told last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The signed record.
    pub record: String,
    /// Public keys by role whose private halves the gatekeepers have, and the key that they were sealed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<SealedFor>,
    /// The gatekeepers were told to forget it: it comes back under a new epoch only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_gone: bool,
}

/// Keys that were sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedFor {
    pub xkey: String,
    pub keys: BTreeMap<String, String>,
}

impl SealedFor {
    #[must_use]
    pub fn new(account: &AccountRecord, xkey: &str) -> Self {
        Self { xkey: xkey.to_owned(), keys: keys_of(account) }
    }
}

/// The books of a home.
#[derive(Debug, Clone)]
pub struct GateBook {
    folder: PathBuf,
}

/// Whether a signed record says this of this account, whatever its epoch.
fn says(claims: &Claims<GateBody>, account: &AccountRecord, body: &GateBody, operator: &OperatorStore) -> bool {
    let mut wanted = GateBody { epoch: claims.nats.epoch, ..body.clone() };
    wanted.prepare();
    claims.nats == wanted
        && claims.sub == account.key.as_str()
        && claims.name == account.name
        && operator.claims().nats.signing_keys.contains(&claims.iss)
}

impl GateBook {
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self { folder: layout.gate() }
    }

    fn path(&self, account: &str) -> PathBuf {
        self.folder.join(format!("{account}.json"))
    }

    /// # Errors
    /// When the file is damaged.
    pub fn read(&self, account: &str) -> Result<Option<Told>, GateError> {
        let path = self.path(account);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_state(&path).map_err(GateError::File)?;
        let damaged = |source| GateError::Book { path: path.display().to_string(), source };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }

    /// # Errors
    /// When it cannot be written.
    ///
    /// # Panics
    /// Never: it is made of text.
    pub fn write(&self, account: &str, told: &Told) -> Result<(), GateError> {
        let text = serde_json::to_vec(told).expect("what was told serializes");
        write_secret(&self.path(account), &text).map_err(GateError::File)
    }

    /// The gatekeepers were told to forget the account.
    ///
    /// # Errors
    /// When the book is damaged or cannot be written.
    pub fn end(&self, account: &str) -> Result<(), GateError> {
        match self.read(account)? {
            Some(known) => self.write(account, &Told { keys: None, is_gone: true, ..known }),
            None => Ok(()),
        }
    }

    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self, account: &str) -> Result<(), GateError> {
        remove_whole(&self.path(account)).map_err(GateError::File)
    }

    /// What is to be told: the record that is in the book when it says the same, or else one with a new epoch, which is in
    /// the book when this returns.
    ///
    /// # Errors
    /// When the book is damaged or cannot be written, or nobody here can sign for the operator.
    pub fn record(
        &self,
        operator: &OperatorStore,
        account: &AccountRecord,
        body: &GateBody,
        now_ms: i64,
    ) -> Result<Told, GateError> {
        let known = self.read(&account.name)?;
        let claims: Option<Claims<GateBody>> = known.as_ref().and_then(|known| decode(&known.record).ok());
        match (known, claims) {
            (Some(known), Some(claims)) if !known.is_gone && says(&claims, account, body, operator) => Ok(known),
            (known, claims) => {
                let last = claims.map_or(0, |claims| claims.nats.epoch);
                let epoch = u64::try_from(now_ms).unwrap_or(0).max(last + 1);
                let record = sign_record(operator, account, GateBody { epoch, ..body.clone() }, now_ms / 1_000)?;
                let told = Told { record, keys: known.and_then(|known| known.keys), is_gone: false };
                self.write(&account.name, &told)?;
                Ok(told)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::make_folder;
    use crate::gate::{AUTH, render_auth};
    use crate::hub_size::HubSize;

    fn epoch(told: &Told) -> u64 {
        decode::<GateBody>(&told.record).unwrap().nats.epoch
    }

    #[test]
    fn an_epoch_is_one_record_and_grows_whatever_the_clock_does() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        make_folder(&layout.gate()).unwrap();
        let operator = OperatorStore::open(layout.operator(), 1_000).unwrap();
        let account = render_auth(&operator, HubSize::One, 1_000).unwrap();
        let book = GateBook::new(&layout);
        let body = GateBody { is_open: true, ..GateBody::default() };
        let first = book.record(&operator, &account, &body, 5_000).unwrap();
        assert_eq!(epoch(&first), 5_000);
        assert_eq!(book.record(&operator, &account, &body, 9_000).unwrap(), first, "the same is not signed again");
        let closed = GateBody::default();
        let second = book.record(&operator, &account, &closed, 1_000).unwrap();
        assert_eq!(epoch(&second), 5_001, "a clock that went back");
        // What was signed by a key that is the operator's no more is signed again.
        // What was taken back comes back under another epoch, and with its keys.
        book.write(&account.name, &Told { keys: Some(SealedFor::new(&account, "X")), ..second.clone() }).unwrap();
        book.end(&account.name).unwrap();
        let again = book.record(&operator, &account, &closed, 8_000).unwrap();
        assert_eq!((epoch(&again), again.keys.is_none(), again.is_gone), (8_000, true, false));
        book.record(&operator, &account, &body, 8_500).unwrap();
        let other = OperatorStore::open(folder.path().join("other"), 1_000).unwrap();
        assert_eq!(epoch(&book.record(&other, &account, &body, 8_000).unwrap()), 8_501);
        std::fs::write(folder.path().join("gate").join(format!("{AUTH}.json")), "{}").unwrap();
        assert!(matches!(book.record(&operator, &account, &body, 1), Err(GateError::Book { .. })));
    }
}
