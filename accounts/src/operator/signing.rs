//! The operator's own keys: which one signs accounts, and how they are rotated with overlap.
//!
//! A new key is added to the operator's token (the identity key signs that, and may be an external command), every server
//! is restarted with that token, because it cannot be reloaded; then the new key is used, all accounts are signed by it,
//! and the old one goes.

use std::collections::BTreeMap;

use bulkhead_claims::{Claims, KeyKind, OperatorBody, Signer, encode};
use serde::{Deserialize, Serialize};

use super::accounts::may_sign;
use super::{OperatorError, OperatorStore, not_signed, read_operator};
use crate::files::{read_state, write_secret};

/// An active and a standby key.
const SIGNING_KEYS_LEAST: usize = 2;

#[derive(Debug, Serialize, Deserialize)]
struct InUse {
    signing_key: String,
}

/// What re-signing all accounts came to.
#[derive(Debug)]
pub struct Resigned {
    pub signed: usize,
    /// Signed by that key already.
    pub unchanged: usize,
    /// Accounts that were left as they are, with why.
    pub failed: Vec<(String, OperatorError)>,
}

impl OperatorStore {
    /// The public key that signs accounts.
    ///
    /// # Errors
    /// When the operator has none, or the record of the choice is damaged.
    pub fn signing_key_in_use(&self) -> Result<String, OperatorError> {
        let (_, operator) = read_operator(&self.paths)?;
        let path = self.paths.in_use();
        if path.exists() {
            let text = read_state(&path).map_err(OperatorError::File)?;
            let damaged = |source| OperatorError::Book { path: path.display().to_string(), source };
            let chosen: InUse = serde_json::from_str(&text).map_err(damaged)?;
            if may_sign(&operator, &chosen.signing_key) {
                return Ok(chosen.signing_key);
            }
        }
        let identity = Some(&operator.sub).filter(|key| may_sign(&operator, key));
        let key = operator.nats.signing_keys.first().or(identity);
        key.cloned().ok_or(OperatorError::NoSigner)
    }

    /// Who signs for the operator now.
    ///
    /// # Errors
    /// When nobody here can sign with that key.
    pub fn signer(&self) -> Result<Box<dyn Signer>, OperatorError> {
        self.signer_in_use()
    }

    pub(super) fn signer_in_use(&self) -> Result<Box<dyn Signer>, OperatorError> {
        // A new store's token is written last.
        let public = if self.paths.operator_token().exists() {
            self.signing_key_in_use()?
        } else {
            self.claims.nats.signing_keys.first().cloned().ok_or(OperatorError::NoSigner)?
        };
        self.keys.signer(&public, KeyKind::Operator).map_err(OperatorError::Key)
    }

    /// Changes the operator's claims as they are on disk and has the identity key sign them.
    fn change_operator(
        &mut self,
        now: i64,
        change: impl FnOnce(&mut Claims<OperatorBody>),
    ) -> Result<(), OperatorError> {
        let (_, mut claims) = read_operator(&self.paths)?;
        change(&mut claims);
        claims.iat = now.max(claims.iat + 1);
        let identity = self.keys.signer(&claims.sub, KeyKind::Operator).map_err(OperatorError::Key)?;
        let token = encode(&mut claims, identity.as_ref()).map_err(not_signed)?;
        write_secret(&self.paths.operator_token(), token.as_bytes()).map_err(OperatorError::File)?;
        (self.token, self.claims) = (token, claims);
        Ok(())
    }

    /// Whether somebody here can sign with the identity key.
    ///
    /// # Errors
    /// When nobody can; says which key it is and both ways out.
    pub fn can_change_operator(&self) -> Result<(), OperatorError> {
        self.keys.signer(&self.claims.sub, KeyKind::Operator).map(|_| ()).map_err(OperatorError::Key)
    }

    /// Adds a signing key to the operator's token: a new one, or with `public` one that an external command signs with.
    /// It may sign once every server was restarted with the new token.
    ///
    /// # Errors
    /// When the identity key cannot sign, nobody can sign with `public`, or the store cannot be written.
    pub fn add_signing_key(&mut self, public: Option<&str>, now: i64) -> Result<String, OperatorError> {
        let _lock = self.lock()?;
        let made = match public {
            Some(public) if KeyKind::of_public(public) != Some(KeyKind::Operator) => {
                return Err(OperatorError::NoOperatorKey(public.chars().take(64).collect()));
            }
            Some(public) => {
                self.keys.signer(public, KeyKind::Operator).map_err(OperatorError::Key)?;
                None
            }
            None => Some(self.keys.generate(KeyKind::Operator).map_err(OperatorError::Key)?),
        };
        let key = made.as_ref().map_or(public.unwrap_or_default(), |key| key.public()).to_owned();
        let added = self.change_operator(now, |claims| {
            if !claims.nats.signing_keys.contains(&key) {
                claims.nats.signing_keys.push(key.clone());
            }
        });
        if let (Err(_), Some(made)) = (&added, &made) {
            self.keys.forget(made.public());
        }
        added.map(|()| key)
    }

    /// Whether accounts may be signed with this key from now on.
    ///
    /// # Errors
    /// What [`OperatorStore::use_signing_key`] would refuse.
    pub fn check_use(&self, public: &str) -> Result<(), OperatorError> {
        let (_, operator) = read_operator(&self.paths)?;
        if !may_sign(&operator, public) {
            return Err(OperatorError::NotSigning(public.chars().take(64).collect()));
        }
        self.keys.signer(public, KeyKind::Operator).map(drop).map_err(OperatorError::Key)
    }

    /// Chooses which signing key signs accounts from now on. Servers must know it already.
    ///
    /// # Errors
    /// When it is not a signing key, nobody can sign with it, or the store cannot be written.
    pub fn use_signing_key(&self, public: &str) -> Result<(), OperatorError> {
        let _lock = self.lock()?;
        self.check_use(public)?;
        let path = self.paths.in_use();
        let chosen = InUse { signing_key: public.to_owned() };
        let unreadable = |source| OperatorError::Book { path: path.display().to_string(), source };
        let text = serde_json::to_vec(&chosen).map_err(unreadable)?;
        write_secret(&path, &text).map_err(OperatorError::File)
    }

    /// Signs every account by the key in use that is signed by another one; nothing else in it changes. Another tool's
    /// accounts are signed too, because their key goes as well; what another tool changed is left, and said.
    ///
    /// # Errors
    /// When nobody can sign. `progress` gets how many are done and how many there are.
    pub fn resign_all(&self, now: i64, mut progress: impl FnMut(usize, usize)) -> Result<Resigned, OperatorError> {
        let key = self.signing_key_in_use()?;
        self.keys.signer(&key, KeyKind::Operator).map_err(OperatorError::Key)?;
        let names = self.account_names();
        let mut outcome = Resigned { signed: 0, unchanged: 0, failed: vec![] };
        for (done, name) in names.iter().enumerate() {
            progress(done, names.len());
            match self.resign(name, &key, now) {
                Ok(true) => outcome.signed += 1,
                Ok(false) => outcome.unchanged += 1,
                Err(error) => outcome.failed.push((name.clone(), error)),
            }
        }
        progress(names.len(), names.len());
        Ok(outcome)
    }

    fn resign(&self, name: &str, key: &str, now: i64) -> Result<bool, OperatorError> {
        let _lock = self.lock()?;
        let held = self.hold(name)?;
        let none = || OperatorError::NoAccount(name.to_owned());
        let (record, mut book) = held.record.zip(held.book).ok_or_else(none)?;
        if record.claims.iss == key {
            return Ok(false);
        }
        let mut claims = record.claims.clone();
        self.write_claims(&mut book, Some((&record.token, record.claims.iat)), &mut claims, now)?;
        Ok(true)
    }

    /// Who signed the accounts: each key with the names of the accounts that it signed.
    ///
    /// # Errors
    /// When an account is damaged.
    pub fn signed_by(&self) -> Result<BTreeMap<String, Vec<String>>, OperatorError> {
        let mut signed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for name in self.account_names() {
            if let Some(record) = self.account(&name)? {
                signed.entry(record.claims.iss).or_default().push(name);
            }
        }
        Ok(signed)
    }

    /// Whether a key may be taken out of the operator's token.
    ///
    /// # Errors
    /// What [`OperatorStore::drop_signing_key`] would refuse.
    pub fn check_drop(&self, public: &str) -> Result<(), OperatorError> {
        let (_, operator) = read_operator(&self.paths)?;
        if !operator.nats.signing_keys.iter().any(|key| key == public) {
            return Err(OperatorError::NotSigning(public.chars().take(64).collect()));
        }
        if self.signing_key_in_use()? == public {
            return Err(OperatorError::InUseKey(public.to_owned()));
        }
        let mut signed = self.signed_by()?;
        let count = signed.values().map(Vec::len).sum();
        if let Some(accounts) = signed.remove(public) {
            return Err(OperatorError::StillSigns { key: public.to_owned(), accounts, count });
        }
        if operator.nats.signing_keys.len() <= SIGNING_KEYS_LEAST {
            return Err(OperatorError::NoStandby(public.to_owned()));
        }
        Ok(())
    }

    /// Takes a signing key out of the operator's token. Its seed stays, as an orphan.
    ///
    /// # Errors
    /// When it is in use, still signs an account, or would leave no standby; or the identity key cannot sign.
    pub fn drop_signing_key(&mut self, public: &str, now: i64) -> Result<(), OperatorError> {
        let _lock = self.lock()?;
        self.check_drop(public)?;
        self.change_operator(now, |claims| claims.nats.signing_keys.retain(|key| key != public))
    }
}
