//! What servers hold of an account before it is pushed: the base that a change was made from, or somebody else's work.

use std::fmt;

use bulkhead_bus::question::stored_account;
use bulkhead_claims::{AccountBody, Claims, decode};
use bulkhead_runtime::Bus;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::asking::{ANSWER_LIMIT, NotAsked};
use super::difference::{FieldDifference, field_differences};

/// What servers may hold without anybody's change being lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// The account is new: nothing.
    Absent,
    /// The token that was pushed last, by its [`token_hash`] and its `iat`. Whatever was issued before it is an earlier
    /// one that a server was too late to replace.
    Token { hash: String, issued_at: i64 },
    /// Anything: it is overwritten, whosever it is and however new.
    Anything,
}

impl Base {
    /// The base that `token` is; [`Base::Anything`] would be too much for one that is not readable, so it is none.
    #[must_use]
    pub fn of_token(token: &str) -> Option<Self> {
        let claims: Claims<AccountBody> = decode(token).ok()?;
        Some(Self::Token { hash: token_hash(token), issued_at: claims.iat })
    }

    pub(super) fn allows(&self, held: &str, claims: Option<&Claims<AccountBody>>) -> bool {
        match self {
            Self::Anything => true,
            Self::Absent => false,
            Self::Token { hash, issued_at } => {
                *hash == token_hash(held) || claims.is_some_and(|claims| claims.iat < *issued_at)
            }
        }
    }
}

/// The SHA-256 of a token's text, in hexadecimal digits.
#[must_use]
pub fn token_hash(token: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(token.as_bytes()))
}

/// A token on the servers that is not the one that a change was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// How many servers have it on disk.
    pub copies: usize,
    /// Which servers have it in memory.
    pub servers: Vec<String>,
    /// Who signed it, when and under which id; empty for what is not readable.
    pub issuer: String,
    pub issued_at: i64,
    pub id: String,
    /// Ours, as it would be pushed, against theirs.
    pub differences: Vec<FieldDifference>,
}

impl Held {
    pub(super) fn new(token: &str, copies: usize, ours: &Claims<AccountBody>) -> Self {
        let theirs = decode::<AccountBody>(token).ok();
        let body = |claims: &Claims<AccountBody>| serde_json::to_value(&claims.nats).unwrap_or_default();
        let differences =
            theirs.as_ref().map(|theirs| field_differences(&body(ours), &body(theirs))).unwrap_or_default();
        let (issuer, issued_at, id) = theirs.map(|claims| (claims.iss, claims.iat, claims.jti)).unwrap_or_default();
        Self { copies, servers: vec![], issuer, issued_at, id, differences }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.issuer.is_empty() {
            return f.write_str("something that is no token");
        }
        write!(f, "one issued at {} by {}, id {}", self.issued_at, self.issuer, self.id)?;
        let fields: Vec<&str> = self.differences.iter().map(|difference| difference.field.as_str()).take(5).collect();
        match (fields.is_empty(), self.differences.len().saturating_sub(fields.len())) {
            (true, _) => f.write_str(", which says the same"),
            (false, 0) => write!(f, ", which differs in {}", fields.join(", ")),
            (false, more) => write!(f, ", which differs in {} and {more} more", fields.join(", ")),
        }
    }
}

/// What each server has on disk of an account, in no order: these answers do not say whose they are.
pub(super) async fn look_up(system: &Bus, account: &str, enough: usize) -> Result<Vec<Option<String>>, NotAsked> {
    let subject = stored_account(account);
    let answers = system.poll(&subject, bytes::Bytes::new(), enough, ANSWER_LIMIT).await.map_err(NotAsked)?;
    let text = |answer: &bytes::Bytes| String::from_utf8_lossy(answer).into_owned();
    Ok(answers.iter().map(|answer| (!answer.is_empty()).then(|| text(answer))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_claims::{AccountLimits, KeyKind, SigningKey, encode};

    fn token(iat: i64, conn: i64) -> String {
        let key = SigningKey::generate(KeyKind::Operator);
        let limits = AccountLimits { conn, ..AccountLimits::default() };
        let body = AccountBody::new(limits, vec![], vec![], vec![]);
        let account = SigningKey::generate(KeyKind::Account).public().to_owned();
        encode(&mut Claims::new(account, "x".to_owned(), iat, body), &key).unwrap()
    }

    #[test]
    fn only_what_a_change_was_made_from_and_what_is_older_may_be_overwritten() {
        let (old, base, later) = (token(1, 5), token(5, 5), token(6, 5));
        let same_second = token(5, 7);
        let allows = |base: &Base, held: &str| base.allows(held, decode(held).ok().as_ref());
        let known = Base::of_token(&base).unwrap();
        for (held, expected) in [(&old, true), (&base, true), (&same_second, false), (&later, false)] {
            assert_eq!(allows(&known, held), expected);
            assert!(!allows(&Base::Absent, held) && allows(&Base::Anything, held));
        }
        assert!(!known.allows("garbage", None));
        assert!(Base::of_token("garbage").is_none());
    }

    #[test]
    fn somebody_elses_token_is_shown_with_its_signer_and_what_differs() {
        let ours: Claims<AccountBody> = decode(&token(5, 5)).unwrap();
        let theirs = token(6, 7);
        let shown = Held::new(&theirs, 3, &ours).to_string();
        let claims: Claims<AccountBody> = decode(&theirs).unwrap();
        assert!(
            shown.contains("issued at 6") && shown.contains(&claims.iss) && shown.contains("limits.conn"),
            "{shown}"
        );
        assert_eq!(Held::new("garbage", 1, &ours).to_string(), "something that is no token");
    }
}
