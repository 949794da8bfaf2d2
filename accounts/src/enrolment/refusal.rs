//! Why a device gets no certificates. What it is told and what is recorded are the same.

use bulkhead_identity::{DeviceEnd, EnrolmentRefusal};

use super::{BadRequest, BadToken};

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not a token of this platform, or changed.
    TokenForeign,
    TokenExpired,
    /// Used by a device with other keys.
    TokenUsed,
    /// Another one took its place, its poller is gone, or nobody knows of it.
    TokenWithdrawn,
    /// The slug belongs to another account than it did.
    OtherAccount,
    TenantClosed,
    PollerClosed,
    /// A certificate request for another name.
    OtherName,
    /// Keys of the wrong kind, or without their private halves.
    Keys,
    /// A key of which a certificate was revoked.
    KeyRevoked,
    /// A renewal of what was not issued, is revoked, or has ended.
    NotCurrent,
    /// A renewal before two thirds of a life are over.
    NotDue,
    /// A renewal of what was renewed several times today.
    TooOften,
    /// Nothing that a device of this release says.
    Unreadable,
}

impl Refusal {
    /// All of them, for the documentation's test.
    pub const ALL: [Self; 14] = [
        Self::TokenForeign,
        Self::TokenExpired,
        Self::TokenUsed,
        Self::TokenWithdrawn,
        Self::OtherAccount,
        Self::TenantClosed,
        Self::PollerClosed,
        Self::OtherName,
        Self::Keys,
        Self::KeyRevoked,
        Self::NotCurrent,
        Self::NotDue,
        Self::TooOften,
        Self::Unreadable,
    ];

    /// The code in answers and decisions.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::TokenForeign => "token_foreign",
            Self::TokenExpired => "token_expired",
            Self::TokenUsed => "token_used",
            Self::TokenWithdrawn => "token_withdrawn",
            Self::OtherAccount => "token_other_account",
            Self::TenantClosed => "token_tenant_closed",
            Self::PollerClosed => "token_poller_closed",
            Self::OtherName => "csr_other_name",
            Self::Keys => "csr_keys",
            Self::KeyRevoked => "csr_key_revoked",
            Self::NotCurrent => "renewal_not_current",
            Self::NotDue => "renewal_not_due",
            Self::TooOften => "renewal_too_often",
            Self::Unreadable => "request_unreadable",
        }
    }
}

/// A refusal with what is recorded of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    /// In a sentence, with the way out.
    pub problem: String,
    /// What is recorded instead, when whoever asks is to learn less.
    pub detail: Option<String>,
    /// The tenant that was asked for, when that is not the token's.
    pub actual: Option<String>,
}

impl Refused {
    #[must_use]
    pub fn new(refusal: Refusal, problem: impl Into<String>) -> Self {
        Self { refusal, problem: problem.into(), detail: None, actual: None }
    }

    #[must_use]
    pub fn told(&self) -> EnrolmentRefusal {
        EnrolmentRefusal { refused: self.refusal.code().to_owned(), problem: self.problem.clone() }
    }
}

const ASK: &str = "ask your operator for a new one (`bulkhead poller add`)";

impl From<BadToken> for Refused {
    fn from(bad: BadToken) -> Self {
        match bad {
            BadToken::Foreign => Self::new(
                Refusal::TokenForeign,
                "this is no token of this platform, or it was changed: copy all of it, with nothing between",
            ),
            BadToken::Expired => Self::new(Refusal::TokenExpired, format!("the token has expired: {ASK}")),
        }
    }
}

fn end_name(end: DeviceEnd) -> &'static str {
    match end {
        DeviceEnd::Leaf => "leaf",
        DeviceEnd::Forwarder => "forwarder",
        DeviceEnd::Poller => "poller",
    }
}

impl From<BadRequest> for Refused {
    fn from(bad: BadRequest) -> Self {
        match bad {
            BadRequest::Csr { end, problem } => {
                let end = end_name(end);
                Self::new(Refusal::Keys, format!("the certificate request of the {end} cannot be used: {problem}"))
            }
            BadRequest::Name { expected, found, tenant } => Self {
                actual: tenant,
                ..Self::new(
                    Refusal::OtherName,
                    format!("a certificate for {found:?} is asked for, and the token is for {expected}"),
                )
            },
            BadRequest::Key(rule) => Self::new(Refusal::Keys, rule),
            BadRequest::Proof => {
                Self::new(Refusal::Keys, "the batch key has not signed the token, so that it may be somebody else's")
            }
        }
    }
}

impl Refused {
    #[must_use]
    pub fn used() -> Self {
        Self::new(
            Refusal::TokenUsed,
            format!(
                "the token was used already, by a device with other keys: if that was not you, tell your operator at once; \
                 otherwise {ASK}"
            ),
        )
    }

    #[must_use]
    pub fn used_up(answers: usize) -> Self {
        let problem =
            format!("the token was answered {answers} times, and the machine does not keep what it gets: {ASK}");
        Self::new(Refusal::TokenUsed, problem)
    }

    #[must_use]
    pub fn key_revoked(end: DeviceEnd) -> Self {
        let problem = format!(
            "the key of the {} was revoked, or was of a poller or site that was removed: say `bulkhead-poller enroll` with \
             --new-keys and a token that nobody has used",
            end_name(end)
        );
        Self::new(Refusal::KeyRevoked, problem)
    }

    #[must_use]
    pub fn withdrawn(why: &str) -> Self {
        Self::new(Refusal::TokenWithdrawn, format!("the token is not good any more ({why}): {ASK}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_every_code_and_no_other() {
        let page = include_str!("../../../docs/wire.md");
        let section = page.split("\n## ").find(|section| section.starts_with("Decisions about enrolment")).unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let documented: Vec<&str> = rows.filter(|code| !["enrolled", "renewed"].contains(code)).collect();
        assert_eq!(documented, Refusal::ALL.map(Refusal::code));
    }
}
