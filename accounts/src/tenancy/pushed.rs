//! What was last put in force, by account: the base that a change is made from. Servers that hold anything else were changed
//! by somebody else, and are not overwritten.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::files::{FileError, read_text, remove_whole, write_public};
use crate::resolver::Base;
use crate::up::Layout;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Pushed {
    /// The token that every server had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Token>,
    /// One that was sent and not seen everywhere: some servers may have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    hash: String,
    issued_at: i64,
}

impl Token {
    fn base(&self) -> Base {
        Base::Token { hash: self.hash.clone(), issued_at: self.issued_at }
    }

    fn of(token: &str) -> Option<Self> {
        match Base::of_token(token)? {
            Base::Token { hash, issued_at } => Some(Self { hash, issued_at }),
            Base::Absent | Base::Anything => None,
        }
    }
}

/// A push that was written down, and what was known before it.
#[derive(Debug)]
pub(super) struct Begun {
    known: Pushed,
}

impl Begun {
    /// What servers may hold of the account without anybody's change being lost, best first.
    pub(super) fn bases(&self) -> Vec<Base> {
        let tokens = [&self.known.last, &self.known.attempt];
        let bases: Vec<Base> = tokens.into_iter().flatten().map(Token::base).collect();
        if bases.is_empty() { vec![Base::Absent] } else { bases }
    }
}

/// One file an account.
#[derive(Debug, Clone)]
pub(super) struct PushedTokens {
    folder: PathBuf,
}

impl PushedTokens {
    pub(super) fn new(layout: &Layout) -> Self {
        Self { folder: layout.pushed() }
    }

    fn path(&self, account: &str) -> PathBuf {
        self.folder.join(format!("{account}.json"))
    }

    fn read(&self, account: &str) -> Pushed {
        // A damaged or lost file costs a look by a person, never somebody's change.
        let text = read_text(&self.path(account)).ok();
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn write(&self, account: &str, pushed: &Pushed) -> Result<(), FileError> {
        let text = serde_json::json!(pushed).to_string();
        write_public(&self.path(account), text.as_bytes())
    }

    /// Before it is sent: writes the attempt down.
    pub(super) fn begin(&self, account: &str, token: &str) -> Result<Begun, FileError> {
        let known = self.read(account);
        let attempt = Token::of(token);
        if known.last != attempt {
            self.write(account, &Pushed { last: known.last.clone().or(known.attempt.clone()), attempt })?;
        }
        Ok(Begun { known })
    }

    /// It was not sent, because the servers hold somebody else's: what may be overwritten is what it was before.
    pub(super) fn take_back(&self, account: &str, begun: &Begun) -> Result<(), FileError> {
        if begun.known == Pushed::default() {
            self.forget(account);
            return Ok(());
        }
        if self.read(account) == begun.known { Ok(()) } else { self.write(account, &begun.known) }
    }

    /// Once every server has it.
    pub(super) fn finish(&self, account: &str, token: &str) -> Result<(), FileError> {
        let pushed = Pushed { last: Token::of(token), attempt: None };
        if self.read(account) == pushed { Ok(()) } else { self.write(account, &pushed) }
    }

    /// The account is gone from the servers.
    pub(super) fn forget(&self, account: &str) {
        // What stays is the base of an account that no server has: harmless.
        let _ = remove_whole(&self.path(account));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_claims::{AccountBody, Claims, KeyKind, SigningKey, encode};

    fn token(iat: i64) -> String {
        let key = SigningKey::generate(KeyKind::Operator);
        let account = SigningKey::generate(KeyKind::Account).public().to_owned();
        encode(&mut Claims::new(account, "a".to_owned(), iat, AccountBody::default()), &key).unwrap()
    }

    fn bases(tokens: &[&str]) -> Vec<Base> {
        tokens.iter().map(|token| Base::of_token(token).unwrap()).collect()
    }

    #[test]
    fn a_push_that_was_cut_short_leaves_both_bases() {
        let folder = tempfile::tempdir().unwrap();
        let pushed = PushedTokens::new(&Layout::new(folder.path().to_owned()));
        let (first, second, third) = (token(1), token(2), token(3));
        assert_eq!(pushed.begin("acme-corp", &first).unwrap().bases(), [Base::Absent]);
        assert_eq!(pushed.begin("acme-corp", &first).unwrap().bases(), bases(&[&first]));
        pushed.finish("acme-corp", &first).unwrap();
        assert_eq!(pushed.begin("acme-corp", &second).unwrap().bases(), bases(&[&first]));
        assert_eq!(pushed.begin("acme-corp", &third).unwrap().bases(), bases(&[&first, &second]));
        pushed.finish("acme-corp", &third).unwrap();
        assert_eq!(pushed.begin("acme-corp", &third).unwrap().bases(), bases(&[&third]));
        pushed.forget("acme-corp");
        assert_eq!(pushed.begin("acme-corp", &third).unwrap().bases(), [Base::Absent]);
    }

    #[test]
    fn a_push_that_was_refused_is_no_base_of_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let pushed = PushedTokens::new(&Layout::new(folder.path().to_owned()));
        let (first, refused) = (token(1), token(5));
        for known in [vec![], vec![first.as_str()]] {
            let expected = if known.is_empty() { vec![Base::Absent] } else { bases(&known) };
            known.iter().for_each(|token| pushed.finish("acme-corp", token).unwrap());
            for _ in 0..2 {
                let begun = pushed.begin("acme-corp", &refused).unwrap();
                assert_eq!(begun.bases(), expected);
                pushed.take_back("acme-corp", &begun).unwrap();
            }
        }
    }
}
