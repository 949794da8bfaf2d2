//! Tokens of which nobody has said what kind they are.

use crate::body::ClaimKind;
use crate::signer::{SignError, Signer};
use crate::token::{Claims, DecodeError, Parts, Said, encode};
use crate::{
    AccountBody, ActivationBody, AuthorizationRequestBody, AuthorizationResponseBody, GenericBody, OperatorBody,
    UserBody,
};

/// Claims of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnyClaims {
    Operator(Box<Claims<OperatorBody>>),
    Account(Box<Claims<AccountBody>>),
    User(Box<Claims<UserBody>>),
    Activation(Box<Claims<ActivationBody>>),
    AuthorizationRequest(Box<Claims<AuthorizationRequestBody>>),
    AuthorizationResponse(Box<Claims<AuthorizationResponseBody>>),
    Generic(Box<Claims<GenericBody>>),
}

/// Does the same with the claims of whichever kind.
macro_rules! with_claims {
    ($any:expr, $claims:ident => $what:expr) => {
        match $any {
            crate::AnyClaims::Operator($claims) => $what,
            crate::AnyClaims::Account($claims) => $what,
            crate::AnyClaims::User($claims) => $what,
            crate::AnyClaims::Activation($claims) => $what,
            crate::AnyClaims::AuthorizationRequest($claims) => $what,
            crate::AnyClaims::AuthorizationResponse($claims) => $what,
            crate::AnyClaims::Generic($claims) => $what,
        }
    };
}
pub(crate) use with_claims;

impl AnyClaims {
    #[must_use]
    pub fn kind(&self) -> ClaimKind {
        match self {
            Self::Operator(_) => ClaimKind::Operator,
            Self::Account(_) => ClaimKind::Account,
            Self::User(_) => ClaimKind::User,
            Self::Activation(_) => ClaimKind::Activation,
            Self::AuthorizationRequest(_) => ClaimKind::AuthorizationRequest,
            Self::AuthorizationResponse(_) => ClaimKind::AuthorizationResponse,
            Self::Generic(_) => ClaimKind::Generic,
        }
    }

    #[must_use]
    pub fn sub(&self) -> &str {
        with_claims!(self, claims => &claims.sub)
    }

    #[must_use]
    pub fn iss(&self) -> &str {
        with_claims!(self, claims => &claims.iss)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        with_claims!(self, claims => &claims.name)
    }

    #[must_use]
    pub fn iat(&self) -> i64 {
        with_claims!(self, claims => claims.iat)
    }

    #[must_use]
    pub fn exp(&self) -> Option<i64> {
        with_claims!(self, claims => claims.exp)
    }
}

/// Reads a token of whatever kind, as [`crate::decode`] does.
///
/// # Errors
/// When the token is malformed, of another version, or the signature is not the issuer's.
pub fn decode_any(token: &str) -> Result<AnyClaims, DecodeError> {
    let parts = Parts::split(token)?;
    Ok(match Said::of(&parts.body).kind() {
        ClaimKind::Operator => AnyClaims::Operator(Box::new(parts.read()?)),
        ClaimKind::Account => AnyClaims::Account(Box::new(parts.read()?)),
        ClaimKind::User => AnyClaims::User(Box::new(parts.read()?)),
        ClaimKind::Activation => AnyClaims::Activation(Box::new(parts.read()?)),
        ClaimKind::AuthorizationRequest => AnyClaims::AuthorizationRequest(Box::new(parts.read()?)),
        ClaimKind::AuthorizationResponse => AnyClaims::AuthorizationResponse(Box::new(parts.read()?)),
        ClaimKind::Generic => AnyClaims::Generic(Box::new(parts.read()?)),
    })
}

/// Signs claims of whatever kind, as [`crate::encode`] does.
///
/// # Errors
/// When claims of this kind are not about such a subject or not issued by such a key, or when the key cannot sign.
pub fn encode_any(claims: &mut AnyClaims, signer: &dyn Signer) -> Result<String, SignError> {
    with_claims!(claims, claims => encode(claims, signer))
}
