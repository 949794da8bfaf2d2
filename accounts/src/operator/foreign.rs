//! What to do about an account that another tool changed: take the change over, or take it back.

use bulkhead_claims::{AccountBody, Claims, DecodeError, decode};

use super::{AccountRecord, Book, OperatorError, OperatorStore};

impl OperatorStore {
    /// Takes an account as it lies there: its keys and revocations last, the rest until it is rendered again.
    ///
    /// # Errors
    /// When there is no such account, or its token is damaged or of another operator.
    pub fn accept_account(&self, name: &str) -> Result<Book, OperatorError> {
        self.take(name, |_| ())
    }

    /// Takes an account that another tool made as one that we render from now on.
    ///
    /// # Errors
    /// As [`OperatorStore::accept_account`].
    pub fn adopt_account(&self, name: &str) -> Result<Book, OperatorError> {
        self.take(name, |book| book.managed = true)
    }

    fn take(&self, name: &str, finish: impl FnOnce(&mut Book)) -> Result<Book, OperatorError> {
        let _lock = self.lock()?;
        let record = self.account(name)?.ok_or_else(|| OperatorError::NoAccount(name.to_owned()))?;
        let mut book = Book::derive(name, &record.token, &record.claims);
        if let Some(known) = self.read_book(name)? {
            book.keep_times_of(&known);
        }
        finish(&mut book);
        self.stage_book(&book)?.put().map_err(OperatorError::File)?;
        Ok(book)
    }

    /// Signs what we wrote last once more, newer than whatever lies there, so that servers take it.
    ///
    /// # Errors
    /// When we never wrote that account, or the store cannot be written.
    pub fn restore_account(&self, name: &str, now: i64) -> Result<AccountRecord, OperatorError> {
        let _lock = self.lock()?;
        let mut book = self.read_book(name)?.ok_or_else(|| OperatorError::NoAccount(name.to_owned()))?;
        let path = self.paths.book(name)?.display().to_string();
        let damaged = |source| OperatorError::Token { name: name.to_owned(), path, source };
        let mut claims: Claims<AccountBody> = decode(&book.token).map_err(damaged)?;
        let found = std::fs::read_to_string(self.paths.account_token(name)?).ok();
        // One that is cut short has no time, but still is what is there.
        let known = |token: &String| decode::<AccountBody>(token).map_or(0, |claims| claims.iat);
        let before = found.as_ref().map(|token| (token.as_str(), known(token)));
        self.write_claims(&mut book, before, &mut claims, now)?;
        let missing = || OperatorError::NoAccount(name.to_owned());
        self.account(name)?.ok_or_else(missing)
    }

    /// What another tool changed in an account; `None` when it is as we wrote it, or when nothing was written by us.
    ///
    /// # Errors
    /// When the account is damaged.
    pub fn foreign_edit(&self, name: &str) -> Result<Option<Vec<String>>, OperatorError> {
        match self.hold(name) {
            Ok(_) => Ok(None),
            Err(OperatorError::ForeignEdit { differences, .. }) => Ok(Some(differences)),
            Err(other) => Err(other),
        }
    }
}

/// Whether an error says that a token is there and cannot be believed.
pub(super) fn is_untrusted(error: &OperatorError) -> bool {
    matches!(error, OperatorError::Token { source: DecodeError::Issuer(_) | DecodeError::Signature, .. })
}
