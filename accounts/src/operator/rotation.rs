//! Rotation of a role's key with overlap, and revocation of users.

use bulkhead_bus::Role;
use bulkhead_claims::KeyKind;

use super::book::HeldKey;
use super::{AccountRecord, OperatorError, OperatorStore};
use crate::render::scoped_key;

/// Stands for every user of an account.
const EVERYBODY: &str = "*";

impl OperatorStore {
    /// Gives a role a new key, which signs from now on. The old one stays, so that nobody is disconnected.
    ///
    /// # Errors
    /// When the role is being rotated already, or the store cannot be written.
    pub fn rotate_role(&self, account: &str, role: Role, now: i64) -> Result<AccountRecord, OperatorError> {
        self.change_account(account, now, |book, body, new_keys| {
            let no_role = || OperatorError::NoRole(account.to_owned(), role.name().to_owned());
            let keys = book.roles.get_mut(role.name()).ok_or_else(no_role)?;
            if let Some(previous) = &keys.previous {
                let (account, role, previous) = (account.to_owned(), role.name().to_owned(), previous.public.clone());
                return Err(OperatorError::Rotating { account, role, previous });
            }
            let public = new_keys.generate(KeyKind::Account)?;
            let old = std::mem::replace(&mut keys.current, HeldKey { public: public.clone(), since: now });
            let place = body.signing_keys.iter().position(|key| key.key() == old.public).ok_or_else(no_role)?;
            body.signing_keys.insert(place, scoped_key(role, public));
            keys.previous = Some(old);
            Ok(())
        })
    }

    /// Takes a role's old key out. Whoever is still connected by it is disconnected.
    ///
    /// # Errors
    /// When the role is not being rotated, or the store cannot be written.
    pub fn finish_role_rotation(&self, account: &str, role: Role, now: i64) -> Result<AccountRecord, OperatorError> {
        self.change_account(account, now, |book, body, _| {
            let previous = book.roles.get_mut(role.name()).and_then(|keys| keys.previous.take());
            let not_rotating = || OperatorError::NotRotating(account.to_owned(), role.name().to_owned());
            let previous = previous.ok_or_else(not_rotating)?;
            body.signing_keys.retain(|key| key.key() != previous.public);
            book.retired.push(previous.public);
            Ok(())
        })
    }

    /// Voids every token of a user, or with `*` of all users, that was issued at or before `at` (unix seconds).
    ///
    /// # Errors
    /// When that is no user key, or the store cannot be written.
    pub fn revoke_user(&self, account: &str, user_public: &str, at: i64) -> Result<AccountRecord, OperatorError> {
        if user_public != EVERYBODY && KeyKind::of_public(user_public) != Some(KeyKind::User) {
            return Err(OperatorError::NoUser(user_public.chars().take(64).collect()));
        }
        self.change_account(account, at, |book, _, _| {
            let known = book.revocations.entry(user_public.to_owned()).or_insert(at);
            // An earlier moment would let back in whoever was put out.
            *known = (*known).max(at);
            Ok(())
        })
    }

    /// # Errors
    /// When the store cannot be written.
    pub fn unrevoke(&self, account: &str, user_public: &str, now: i64) -> Result<AccountRecord, OperatorError> {
        self.change_account(account, now, |book, _, _| {
            book.revocations.remove(user_public);
            Ok(())
        })
    }

    /// Forgets revocations of tokens that have all expired: those older than the longest life of a token, in seconds.
    /// Says how many.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn compact_revocations(&self, account: &str, now: i64, longest_life_s: i64) -> Result<usize, OperatorError> {
        let mut forgotten = 0;
        self.change_account(account, now, |book, _, _| {
            let before = book.revocations.len();
            book.revocations.retain(|_, at| *at >= now - longest_life_s);
            forgotten = before - book.revocations.len();
            Ok(())
        })?;
        Ok(forgotten)
    }
}
