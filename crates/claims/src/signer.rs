//! The only way to sign. A seed in memory is one signer; a key that nobody may see is behind another.

use crate::body::ClaimKind;

/// Why nothing was signed. Never shows a seed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("sign")]
    Key(#[source] nkeys::error::Error),
    #[error("signer for {public}: {problem}")]
    Elsewhere { public: String, problem: String },
    #[error("claims of kind {kind} cannot be about {subject:?}: the subject is a public key of their kind")]
    Subject { kind: ClaimKind, subject: String },
    #[error("claims of kind {kind} cannot be issued by {issuer:?}: sign with a key of the kind that issues them")]
    Issuer { kind: ClaimKind, issuer: String },
    #[error("the token would have {bytes} bytes, servers take {allowed}: split what it says over more accounts")]
    TooLarge { bytes: usize, allowed: usize },
}

/// Who signs, by an Ed25519 key that may be anywhere.
pub trait Signer {
    /// The public key that the signature is verified with.
    fn public(&self) -> &str;

    /// The 64 bytes of the signature of `payload`.
    ///
    /// # Errors
    /// When the key's holder does not sign.
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignError>;
}
