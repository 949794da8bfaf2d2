//! The only way to sign. A seed in memory is one signer; a key that nobody may see is behind another.

/// Why nothing was signed. Never shows a seed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("sign")]
    Key(#[source] nkeys::error::Error),
    #[error("signer for {public}: {problem}")]
    Elsewhere { public: String, problem: String },
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
