//! Which claims there are, and what is the same for all of them.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::key::KeyKind;

/// The kinds of claims; also how tokens call them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClaimKind {
    Operator,
    Account,
    User,
    Activation,
    AuthorizationRequest,
    AuthorizationResponse,
    /// Everything else, of which we know the request to delete accounts.
    Generic,
}

impl ClaimKind {
    pub const ALL: [Self; 7] = [
        Self::Operator,
        Self::Account,
        Self::User,
        Self::Activation,
        Self::AuthorizationRequest,
        Self::AuthorizationResponse,
        Self::Generic,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Account => "account",
            Self::User => "user",
            Self::Activation => "activation",
            Self::AuthorizationRequest => "authorization_request",
            Self::AuthorizationResponse => "authorization_response",
            Self::Generic => "generic",
        }
    }

    /// What a token calls itself; whatever is not known is generic.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(Self::Generic)
    }

    /// Whose key signs such claims; `None` where any may.
    #[must_use]
    pub fn issuers(self) -> Option<&'static [KeyKind]> {
        match self {
            Self::Operator => Some(&[KeyKind::Operator]),
            Self::Account | Self::Activation => Some(&[KeyKind::Account, KeyKind::Operator]),
            Self::User | Self::AuthorizationResponse => Some(&[KeyKind::Account]),
            Self::AuthorizationRequest => Some(&[KeyKind::Server]),
            Self::Generic => None,
        }
    }

    /// Whose key such claims are about, where it is checked before signing.
    #[must_use]
    pub fn subject(self) -> Option<KeyKind> {
        match self {
            Self::Operator => Some(KeyKind::Operator),
            Self::Account | Self::Activation => Some(KeyKind::Account),
            Self::User => Some(KeyKind::User),
            Self::AuthorizationRequest | Self::AuthorizationResponse | Self::Generic => None,
        }
    }
}

impl fmt::Display for ClaimKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The member `nats` of one kind of claims.
pub trait Body: Serialize + DeserializeOwned + Default {
    const KIND: ClaimKind;

    /// Called before signing: says kind and version, sorts what has no order.
    fn prepare(&mut self);

    /// Called after reading.
    fn settle(&mut self) {}

    /// Kind and version as the token says them.
    fn said(&self) -> (&str, u64);
}

/// The same for every body that has `kind` and `version`.
macro_rules! plain_body {
    ($body:ty, $kind:expr) => {
        impl crate::body::Body for $body {
            const KIND: crate::body::ClaimKind = $kind;

            fn prepare(&mut self) {
                Self::KIND.name().clone_into(&mut self.kind);
                self.version = crate::token::VERSION;
            }

            fn said(&self) -> (&str, u64) {
                (&self.kind, self.version.into())
            }
        }
    };
}
pub(crate) use plain_body;
