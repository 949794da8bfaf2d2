//! What servers refuse, in words that say what to do.

use std::fmt;

/// A server's refusal of something about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub server: String,
    /// The server's own words.
    pub said: String,
}

/// The server's words (nats-server 2.15.1, accounts.go), and what they mean here.
const MEANINGS: [(&str, &str); 9] = [
    ("issuer to be a signing key", "it is signed by the operator's identity key: sign it with an operator signing key"),
    ("jwt store is full", "the resolver's `limit` is reached: raise it in the server's configuration"),
    ("no space left", "its disk is full: make room and push again"),
    ("jwt validation failed", "the claims are not valid: run `bulkhead validate`"),
    (
        "delete must be enabled",
        "its resolver has no `allow_delete: true`: render its configuration anew and restart it",
    ),
    ("not trusted", "the signer is none of its operator's keys: use an operator signing key that it was started with"),
    ("not self signed", "the request is not signed by the key that it names"),
    ("not allowed to delete system account", "the system account cannot be deleted"),
    ("malformed request", "the request is not one that this server reads: is it another version?"),
];

impl Refusal {
    pub(super) fn new(server: &str, said: &str) -> Self {
        Self { server: server.to_owned(), said: said.to_owned() }
    }

    /// What it means; `None` for words that we do not know.
    #[must_use]
    pub fn meaning(&self) -> Option<&'static str> {
        MEANINGS.iter().find(|(words, _)| self.said.contains(words)).map(|(_, meaning)| *meaning)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => write!(f, "{} refuses: {meaning} (it says: {})", self.server, self.said),
            None => write!(f, "{} refuses: {}", self.server, self.said),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_are_explained_and_unknown_ones_are_kept() {
        let full = Refusal::new("hub-2", "jwt update resulted in error - jwt store is full").to_string();
        assert!(
            full.starts_with("hub-2 refuses: the resolver's `limit`") && full.contains("jwt store is full"),
            "{full}"
        );
        assert_eq!(Refusal::new("hub-2", "new words").to_string(), "hub-2 refuses: new words");
    }
}
