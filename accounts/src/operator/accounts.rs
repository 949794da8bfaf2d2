//! Accounts: read, rendered whole, signed when they changed, and never written over what another tool wrote.

use bulkhead_bus::{AccountKey, Role};
use bulkhead_claims::{AccountBody, Claims, DecodeError, KeyKind, OperatorBody, ScopedKey, SigningKey, decode, encode};
use serde_json::Value;

use super::nsc_layout::{folders_in, subject_of};
use super::{Book, OperatorError, OperatorStore, SYSTEM, compare, not_signed, read_operator, sha256};
use crate::files::{Staged, read_state};
use crate::keys::KeyStore;
use crate::render::{RoleKey, system_account};

/// One account: its token as last signed, and what is in it.
#[derive(Debug, Clone)]
pub struct AccountRecord {
    pub name: String,
    pub key: AccountKey,
    pub token: String,
    pub claims: Claims<AccountBody>,
}

impl AccountRecord {
    /// The public signing key of a role: the new one while the role's key is being rotated.
    #[must_use]
    pub fn role_key(&self, role: Role) -> Option<&str> {
        let is_role = |key: &&ScopedKey| key.role() == Some(role.name());
        self.claims.nats.signing_keys.iter().find(is_role).map(ScopedKey::key)
    }
}

/// An account as it lies there, and what its book says.
pub(super) struct Held {
    pub(super) record: Option<AccountRecord>,
    pub(super) book: Option<Book>,
    /// Whether the book had to be derived, and is not on disk yet.
    is_derived: bool,
}

/// Keys that a change makes. Unless it is kept, a change that fails leaves no seed behind.
pub(super) struct NewKeys<'a> {
    keys: &'a KeyStore,
    made: Vec<String>,
}

impl<'a> NewKeys<'a> {
    pub(super) fn new(keys: &'a KeyStore) -> Self {
        Self { keys, made: vec![] }
    }

    pub(super) fn generate(&mut self, kind: KeyKind) -> Result<String, OperatorError> {
        let key = self.keys.generate(kind).map_err(OperatorError::Key)?;
        self.made.push(key.public().to_owned());
        Ok(key.public().to_owned())
    }

    /// Many at once, written side by side: the disk makes them safe together and is waited for once.
    fn generate_many(&mut self, kind: KeyKind, count: usize) -> Result<Vec<String>, OperatorError> {
        let fresh: Vec<SigningKey> = (0..count).map(|_| SigningKey::generate(kind)).collect();
        let publics: Vec<String> = fresh.iter().map(|key| key.public().to_owned()).collect();
        self.made.extend(publics.iter().cloned());
        let keys = self.keys;
        let written = std::thread::scope(|scope| {
            let writing: Vec<_> = fresh.iter().map(|key| scope.spawn(move || keys.put(key))).collect();
            // Each is waited for, whether an earlier one was written or not.
            let ends: Vec<_> =
                writing.into_iter().map(|one| one.join().expect("writing a seed does not panic")).collect();
            ends.into_iter().collect::<Result<(), _>>()
        });
        written.map_err(OperatorError::Key)?;
        Ok(publics)
    }

    pub(super) fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for NewKeys<'_> {
    fn drop(&mut self) {
        self.made.iter().for_each(|public| self.keys.forget(public));
    }
}

impl OperatorStore {
    /// The names of all accounts, the system's among them.
    #[must_use]
    pub fn account_names(&self) -> Vec<String> {
        let folders = folders_in(&self.paths.accounts());
        let mut names: Vec<String> = folders.iter().map(|name| self.paths.account_name(name).to_owned()).collect();
        names.sort();
        names
    }

    /// Renders the system account anew, so that a newer release has the rights that it needs.
    ///
    /// # Errors
    /// When the store is damaged or incomplete, or cannot be written.
    pub fn ensure_system(&self, now: i64) -> Result<AccountRecord, OperatorError> {
        // One that is gone cannot be made anew: the operator's token names it by its key.
        self.system()?;
        self.ensure_account(SYSTEM, &Role::SYSTEM, now, |_, keys| system_account(keys))
    }

    /// # Errors
    /// When the system account is damaged or gone.
    pub fn system(&self) -> Result<AccountRecord, OperatorError> {
        self.account(SYSTEM)?.ok_or_else(|| OperatorError::NoAccount(SYSTEM.to_owned()))
    }

    /// The account as it lies on disk, whoever wrote it.
    ///
    /// # Errors
    /// When the account's token is damaged, or no key of this operator has signed it.
    pub fn account(&self, name: &str) -> Result<Option<AccountRecord>, OperatorError> {
        let path = self.paths.account_token(name)?;
        if !path.exists() {
            return Ok(None);
        }
        let token = read_state(&path).map_err(OperatorError::File)?;
        let damaged = |source| OperatorError::Token { name: name.to_owned(), path: path.display().to_string(), source };
        let claims = decode::<AccountBody>(&token).map_err(damaged)?;
        // A store that was opened before a rotation of the operator's keys does not know the newest of them yet.
        if !may_sign(&self.claims, &claims.iss) && !may_sign(&read_operator(&self.paths)?.1, &claims.iss) {
            return Err(damaged(DecodeError::Issuer(claims.iss)));
        }
        let key = claims.sub.parse();
        let key = key.map_err(|source| OperatorError::AccountKey { name: name.to_owned(), source })?;
        Ok(Some(AccountRecord { name: name.to_owned(), key, token, claims }))
    }

    /// The account's book; derived from its token when it is lost or has never been there.
    ///
    /// # Errors
    /// When the account does not exist, is damaged, or was changed by another tool.
    pub fn book(&self, name: &str) -> Result<Book, OperatorError> {
        self.hold(name)?.book.ok_or_else(|| OperatorError::NoAccount(name.to_owned()))
    }

    /// Whose key an account has, even where its token is damaged: by its book, or else by its token.
    #[must_use]
    pub fn key_of(&self, name: &str) -> Option<AccountKey> {
        let book = self.read_book(name).ok().flatten().map(|book| book.key);
        book.or_else(|| self.account_subject(name))?.parse().ok()
    }

    pub(super) fn read_book(&self, name: &str) -> Result<Option<Book>, OperatorError> {
        let path = self.paths.book(name)?;
        if !path.exists() {
            return Ok(None);
        }
        let text = read_state(&path).map_err(OperatorError::File)?;
        let book = serde_json::from_str(&text);
        book.map(Some).map_err(|source| OperatorError::Book { path: path.display().to_string(), source })
    }

    pub(super) fn hold(&self, name: &str) -> Result<Held, OperatorError> {
        let record = self.account(name)?;
        let book = self.read_book(name)?;
        match (record, book) {
            (Some(record), None) => {
                if self.paths.books().exists() {
                    tracing::warn!(account = name, "book of account {name} is lost and derived from its token");
                }
                let book = Book::derive(name, &record.token, &record.claims);
                Ok(Held { record: Some(record), book: Some(book), is_derived: true })
            }
            (Some(record), Some(book)) if !book.is_ours(&record.token) => {
                Err(OperatorError::ForeignEdit { account: name.to_owned(), differences: edits(&book, &record.token) })
            }
            (None, Some(_)) => {
                let differences = vec!["its token is gone".to_owned()];
                Err(OperatorError::ForeignEdit { account: name.to_owned(), differences })
            }
            (record, book) => Ok(Held { record, book, is_derived: false }),
        }
    }

    /// Makes an account, or renders it anew with the keys that it has. `render` gets the account's own key and every role's
    /// key, and of a role that is being rotated the old one behind the new one.
    ///
    /// # Errors
    /// When the store is damaged or cannot be written, or another tool changed or made the account.
    pub fn ensure_account(
        &self,
        name: &str,
        roles: &[Role],
        now: i64,
        render: impl FnOnce(&str, &[RoleKey]) -> AccountBody,
    ) -> Result<AccountRecord, OperatorError> {
        let _lock = self.lock()?;
        let held = self.hold(name)?;
        let known = match &held.book {
            Some(book) if !book.managed => return Err(OperatorError::Unmanaged(name.to_owned())),
            known => known,
        };
        let is_missing = |role: &&Role| known.as_ref().is_none_or(|book| !book.roles.contains_key(role.name()));
        let missing: Vec<Role> = roles.iter().filter(is_missing).copied().collect();
        let mut new_keys = NewKeys::new(&self.keys);
        let fresh = new_keys.generate_many(KeyKind::Account, missing.len() + usize::from(known.is_none()))?;
        let mut fresh = fresh.into_iter();
        let mut book = match known {
            Some(book) => book.clone(),
            None => Book::new(name.to_owned(), fresh.next().expect("a new account gets a key")),
        };
        for (role, public) in missing.into_iter().zip(fresh) {
            book.hold(role, public, now);
        }
        let keys_of = |&role: &Role| book.keys_of(role).map(move |public| RoleKey { role, public }).collect::<Vec<_>>();
        let role_keys: Vec<RoleKey> = roles.iter().flat_map(keys_of).collect();
        let body = book.complete(render(&book.key, &role_keys));
        let record = self.settle(held, book, body, now)?;
        new_keys.keep();
        Ok(record)
    }

    /// What [`OperatorStore::ensure_account`] would make of an account that is there, and what it is now. Writes nothing.
    ///
    /// # Errors
    /// When the account is not there, or the store is damaged or changed by another tool.
    pub fn preview_account(
        &self,
        name: &str,
        roles: &[Role],
        render: impl FnOnce(&str, &[RoleKey]) -> AccountBody,
    ) -> Result<(AccountRecord, AccountBody), OperatorError> {
        let held = self.hold(name)?;
        let missing = || OperatorError::NoAccount(name.to_owned());
        let (record, book) = held.record.zip(held.book).ok_or_else(missing)?;
        let keys = |role: &Role| {
            let role = *role;
            book.keys_of(role).map(move |public| RoleKey { role, public }).collect::<Vec<_>>()
        };
        let role_keys: Vec<RoleKey> = roles.iter().flat_map(keys).collect();
        let body = book.complete(render(&book.key, &role_keys));
        Ok((record, body))
    }

    /// Signs and writes what differs from what is there: the token, or the book alone.
    pub(super) fn settle(
        &self,
        held: Held,
        mut book: Book,
        body: AccountBody,
        now: i64,
    ) -> Result<AccountRecord, OperatorError> {
        match held.record {
            Some(record) if record.claims.nats == body => {
                if held.is_derived || held.book.as_ref() != Some(&book) {
                    self.stage_book(&book)?.put().map_err(OperatorError::File)?;
                }
                Ok(record)
            }
            record => self.write_account(&mut book, record.as_ref(), body, now),
        }
    }

    /// Signs the body and writes token and book, whatever lies there.
    pub(super) fn write_account(
        &self,
        book: &mut Book,
        before: Option<&AccountRecord>,
        body: AccountBody,
        now: i64,
    ) -> Result<AccountRecord, OperatorError> {
        let name = book.account.clone();
        let key = book.key.parse();
        let key = key.map_err(|source| OperatorError::AccountKey { name: name.clone(), source })?;
        let folder = self.paths.folder_name(&name).to_owned();
        let mut claims = Claims::new(book.key.clone(), folder, now, body);
        let before = before.map(|record| (record.token.as_str(), record.claims.iat));
        let token = self.write_claims(book, before, &mut claims, now)?;
        Ok(AccountRecord { name, key, token, claims })
    }

    /// Signs claims and writes them with their book. Both files are whole on the disk before either takes its
    /// place, so a full disk changes nothing; a crash between the two leaves a token that the book knows.
    pub(super) fn write_claims(
        &self,
        book: &mut Book,
        before: Option<(&str, i64)>,
        claims: &mut Claims<AccountBody>,
        now: i64,
    ) -> Result<String, OperatorError> {
        let last = before.map_or(0, |(_, iat)| iat).max(book.iat);
        claims.iat = now.max(last + 1);
        let signer = self.signer_in_use()?;
        let token = encode(claims, signer.as_ref()).map_err(not_signed)?;
        book.remember(&token, claims.iat, before.map(|(token, _)| sha256(token)));
        let path = self.paths.account_token(&book.account)?;
        let staging = self.paths.staging();
        let staged = Staged::secret(&staging, &path, token.as_bytes()).map_err(OperatorError::File)?;
        let staged_book = self.stage_book(book)?;
        let put = match before {
            Some(_) => staged_book.put().and_then(|()| staged.put()),
            // A book without a token means that another tool removed it.
            None => staged.put().and_then(|()| staged_book.put()),
        };
        if put.is_err() {
            // A folder without a token makes nsc fail.
            let _ = path.parent().map(std::fs::remove_dir);
        }
        put.map_err(OperatorError::File)?;
        Ok(token)
    }

    pub(super) fn stage_book(&self, book: &Book) -> Result<Staged, OperatorError> {
        let path = self.paths.book(&book.account)?;
        let unreadable = |source| OperatorError::Book { path: path.display().to_string(), source };
        let mut text = serde_json::to_vec_pretty(book).map_err(unreadable)?;
        text.push(b'\n');
        Staged::secret(&self.paths.staging(), &path, &text).map_err(OperatorError::File)
    }

    /// Changes an account by its book and body, without rendering it.
    pub(super) fn change_account(
        &self,
        name: &str,
        now: i64,
        change: impl FnOnce(&mut Book, &mut AccountBody, &mut NewKeys<'_>) -> Result<(), OperatorError>,
    ) -> Result<AccountRecord, OperatorError> {
        let _lock = self.lock()?;
        let held = self.hold(name)?;
        let none = || OperatorError::NoAccount(name.to_owned());
        let mut book = held.book.clone().ok_or_else(none)?;
        if !book.managed {
            return Err(OperatorError::Unmanaged(name.to_owned()));
        }
        let mut body = held.record.as_ref().ok_or_else(none)?.claims.nats.clone();
        let mut new_keys = NewKeys::new(&self.keys);
        change(&mut book, &mut body, &mut new_keys)?;
        let body = book.complete(body);
        let record = self.settle(held, book, body, now)?;
        new_keys.keep();
        Ok(record)
    }

    /// Signs an account's body as it is given, bypassing the renderer: for tests that weaken a deployment on purpose.
    ///
    /// # Errors
    /// When there is no such account or the store cannot be written.
    pub fn sign_body(&self, name: &str, body: AccountBody, now: i64) -> Result<AccountRecord, OperatorError> {
        let _lock = self.lock()?;
        let held = self.hold(name)?;
        let none = || OperatorError::NoAccount(name.to_owned());
        let mut book = held.book.ok_or_else(none)?;
        self.write_account(&mut book, held.record.as_ref(), body, now)
    }

    /// Whom an account's token is about, without reading more of it.
    pub(super) fn account_subject(&self, name: &str) -> Option<String> {
        subject_of(&self.paths.account_token(name).ok()?)
    }
}

/// Whether this operator lets a key sign accounts.
pub(super) fn may_sign(operator: &Claims<OperatorBody>, key: &str) -> bool {
    let is_identity = key == operator.sub && !operator.nats.strict_signing_key_usage;
    is_identity || operator.nats.signing_keys.iter().any(|known| known == key)
}

/// What differs between the token that we wrote last and the one that is there.
pub(super) fn edits(book: &Book, token: &str) -> Vec<String> {
    let claims = |token: &str| decode::<AccountBody>(token).ok();
    let Some((ours, theirs)) = claims(&book.token).zip(claims(token)) else {
        return vec!["it is not readable".to_owned()];
    };
    differences(&ours, &theirs)
}

/// What differs in content; when and with which id it was signed says nothing.
pub(super) fn differences(ours: &Claims<AccountBody>, theirs: &Claims<AccountBody>) -> Vec<String> {
    let json = |body: &AccountBody| serde_json::to_value(body).unwrap_or(Value::Null);
    let mut differences = compare(&json(&ours.nats), &json(&theirs.nats));
    let standard = [
        ("sub", ours.sub.clone(), theirs.sub.clone()),
        ("name", ours.name.clone(), theirs.name.clone()),
        ("iss", ours.iss.clone(), theirs.iss.clone()),
    ];
    let changed = standard.into_iter().filter(|(_, ours, theirs)| ours != theirs);
    differences.extend(changed.map(|(field, ours, theirs)| format!("{field} is {theirs}, was {ours}")));
    if ours.exp != theirs.exp {
        let shown = |exp: Option<i64>| exp.map_or_else(|| "never".to_owned(), |exp| exp.to_string());
        differences.push(format!("exp is {}, was {}", shown(theirs.exp), shown(ours.exp)));
    }
    differences
}
