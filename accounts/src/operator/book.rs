//! What we know of an account beyond its token: which key of a role is new and which is old, who is revoked, and what we
//! wrote last. Books lie outside `stores/`, where other tools look; a lost one is derived again from the token.

use std::collections::BTreeMap;

use bulkhead_bus::Role;
use bulkhead_claims::{AccountBody, Claims, Revocations, ScopedKey};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A signing key of a role and since when it is the account's, in unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldKey {
    pub public: String,
    pub since: i64,
}

/// The keys of a role: a second one only while they are rotated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    pub current: HeldKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<HeldKey>,
}

/// One account's book.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Book {
    pub account: String,
    pub key: String,
    /// Whether we render it. What another tool made is listed and never touched.
    pub managed: bool,
    pub roles: BTreeMap<String, RoleKeys>,
    /// Public keys of roles that were taken out: their seeds go with the account.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<String>,
    /// Signing keys that another tool added and an operator accepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_keys: Vec<ScopedKey>,
    /// User key, or `*` for all, to the unix second up to which issued tokens are void.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revocations: BTreeMap<String, i64>,
    pub iat: i64,
    pub token: String,
    pub token_sha256: String,
    /// Of the token before: a crash between the two files of one change leaves that one in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_sha256: Option<String>,
}

pub(super) fn sha256(token: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(token.as_bytes()))
}

/// Whether a name is one of our roles.
fn is_role(name: &str) -> bool {
    Role::ALL.iter().any(|role| role.name() == name)
}

impl Book {
    pub(super) fn new(account: String, key: String) -> Self {
        Self {
            account,
            key,
            managed: true,
            roles: BTreeMap::new(),
            retired: vec![],
            kept_keys: vec![],
            revocations: BTreeMap::new(),
            iat: 0,
            token: String::new(),
            token_sha256: String::new(),
            before_sha256: None,
        }
    }

    /// What can be known from a token: a role's first key is its current one. An account with a role of ours is ours.
    pub(super) fn derive(account: &str, token: &str, claims: &Claims<AccountBody>) -> Self {
        let mut book = Self::new(account.to_owned(), claims.sub.clone());
        let held = |key: &ScopedKey| HeldKey { public: key.key().to_owned(), since: claims.iat };
        for key in &claims.nats.signing_keys {
            let role = key.role().filter(|role| is_role(role)).map(str::to_owned);
            let Some(role) = role else {
                book.kept_keys.push(key.clone());
                continue;
            };
            match book.roles.get_mut(&role) {
                None => {
                    book.roles.insert(role, RoleKeys { current: held(key), previous: None });
                }
                Some(keys) if keys.previous.is_none() => keys.previous = Some(held(key)),
                Some(_) => book.kept_keys.push(key.clone()),
            }
        }
        book.managed = !book.roles.is_empty();
        book.revocations = BTreeMap::clone(&claims.nats.revocations);
        book.remember(token, claims.iat, None);
        book
    }

    /// Takes what another book knows of the same keys: since when they are there.
    pub(super) fn keep_times_of(&mut self, known: &Self) {
        for (role, keys) in &mut self.roles {
            let Some(old) = known.roles.get(role) else { continue };
            let since = |key: &HeldKey| {
                let old = [Some(&old.current), old.previous.as_ref()];
                old.into_iter().flatten().find(|held| held.public == key.public).map(|held| held.since)
            };
            keys.current.since = since(&keys.current).unwrap_or(keys.current.since);
            if let Some(previous) = &mut keys.previous {
                previous.since = since(previous).unwrap_or(previous.since);
            }
        }
        self.managed |= known.managed;
        self.retired.clone_from(&known.retired);
        // What we sign next must be newer than all that servers may have seen.
        self.iat = self.iat.max(known.iat);
    }

    /// A role's first key.
    pub(super) fn hold(&mut self, role: Role, public: String, since: i64) {
        let keys = RoleKeys { current: HeldKey { public, since }, previous: None };
        self.roles.insert(role.name().to_owned(), keys);
    }

    /// A role's public keys, the current one first.
    pub fn keys_of(&self, role: Role) -> impl Iterator<Item = String> {
        let keys = self.roles.get(role.name());
        let keys = keys.into_iter().flat_map(|keys| [Some(&keys.current), keys.previous.as_ref()]).flatten();
        keys.map(|key| key.public.clone())
    }

    /// Remembers what is about to be written over a token that has the hash `before`.
    pub(super) fn remember(&mut self, token: &str, iat: i64, before: Option<String>) {
        self.iat = iat;
        token.clone_into(&mut self.token);
        self.token_sha256 = sha256(token);
        self.before_sha256 = before;
    }

    pub(super) fn is_ours(&self, token: &str) -> bool {
        let hash = sha256(token);
        hash == self.token_sha256 || Some(hash) == self.before_sha256
    }

    /// Puts into a rendered body what rendering does not know.
    pub(super) fn complete(&self, mut body: AccountBody) -> AccountBody {
        for kept in &self.kept_keys {
            if !body.signing_keys.iter().any(|key| key.key() == kept.key()) {
                body.signing_keys.push(kept.clone());
            }
        }
        put_revocations(&mut body, &self.revocations);
        body
    }
}

fn put_revocations(body: &mut AccountBody, revocations: &BTreeMap<String, i64>) {
    body.revocations = Revocations::default();
    for (user, at) in revocations {
        body.revocations.revoke(user, *at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_book_knows_what_we_wrote_and_what_a_crash_may_have_left() {
        let mut book = Book::new("acme-corp".to_owned(), "AKEY".to_owned());
        book.remember("one", 1, None);
        book.remember("two", 2, Some(sha256("one")));
        assert_eq!([book.is_ours("one"), book.is_ours("two"), book.is_ours("three")], [true, true, false]);
        book.remember("three", 3, Some(sha256("two")));
        assert!(!book.is_ours("one"), "a token from before is a foreign edit");
        let text = serde_json::to_string(&book).unwrap();
        assert_eq!(serde_json::from_str::<Book>(&text).unwrap(), book);
    }
}
