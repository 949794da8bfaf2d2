//! The headers of a batch: signature, key and sequence over the raw bytes (design section 4).
//!
//! The signed text binds the sequence to the body and names its own kind, so that a signature made for anything else
//! is none here. Values are text: base64url without padding, an nkey, and `<boot>.<n>`.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;

use crate::BatchKey;

pub const SIGNATURE: &str = "Bulkhead-Signature";
pub const KEY: &str = "Bulkhead-Key";
pub const SEQUENCE: &str = "Bulkhead-Sequence";

/// Headers that the server acts on. A forwarder strips them: they are never the sender's to set.
pub const SERVER_PREFIX: &str = "Nats-";

/// Which start of the poller, and which batch since. `boot` is unix milliseconds and grows with every start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence {
    pub boot: u64,
    pub number: u64,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.boot, self.number)
    }
}

/// Why headers do not attest a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    #[error("{SEQUENCE} is not <boot>.<number>")]
    Sequence,
    #[error("{KEY} is not a public key")]
    Key,
    #[error("{SIGNATURE} is not base64url of 64 bytes")]
    Encoding,
    #[error("some of {SIGNATURE}, {KEY} and {SEQUENCE} are missing")]
    Incomplete,
    #[error("the signature does not match the bytes")]
    Mismatch,
}

impl FromStr for Sequence {
    type Err = AttestationError;

    fn from_str(text: &str) -> Result<Self, AttestationError> {
        let (boot, number) = text.split_once('.').ok_or(AttestationError::Sequence)?;
        match (boot.parse(), number.parse()) {
            (Ok(boot), Ok(number)) => Ok(Self { boot, number }),
            _ => Err(AttestationError::Sequence),
        }
    }
}

/// The bytes that a batch key signs.
#[must_use]
pub fn signed_bytes(sequence: Sequence, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("bulkhead-batch-1\n{sequence}\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The bytes that a batch key signs for a request: the subject as it is spoken in the tenant's account, so that a request for
/// one thing is none for another.
#[must_use]
pub fn signed_request_bytes(subject: &str, sequence: Sequence, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("bulkhead-request-1\n{subject}\n{sequence}\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

#[must_use]
pub fn encode_signature(signature: &[u8]) -> String {
    BASE64URL_NOPAD.encode(signature)
}

/// Who signed a batch, after the signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    pub key: BatchKey,
    pub sequence: Sequence,
}

/// Reads the three headers through `value_of` and verifies the signature; `None` when the batch carries none of them.
///
/// # Errors
/// When headers are incomplete, malformed, or the signature is not the key's over these bytes.
pub fn verify<'a>(
    value_of: impl Fn(&str) -> Option<&'a str>,
    body: &[u8],
) -> Result<Option<Attestation>, AttestationError> {
    verify_as(value_of, |sequence| signed_bytes(sequence, body))
}

/// As [`verify`], of a request on `subject` (as spoken in the tenant's account).
///
/// # Errors
/// As [`verify`].
pub fn verify_request<'a>(
    value_of: impl Fn(&str) -> Option<&'a str>,
    subject: &str,
    body: &[u8],
) -> Result<Option<Attestation>, AttestationError> {
    verify_as(value_of, |sequence| signed_request_bytes(subject, sequence, body))
}

fn verify_as<'a>(
    value_of: impl Fn(&str) -> Option<&'a str>,
    signed: impl Fn(Sequence) -> Vec<u8>,
) -> Result<Option<Attestation>, AttestationError> {
    let (signature, key, sequence) = match (value_of(SIGNATURE), value_of(KEY), value_of(SEQUENCE)) {
        (None, None, None) => return Ok(None),
        (Some(signature), Some(key), Some(sequence)) => (signature, key, sequence),
        _ => return Err(AttestationError::Incomplete),
    };
    let key: BatchKey = key.parse().map_err(|_| AttestationError::Key)?;
    let sequence: Sequence = sequence.parse()?;
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).map_err(|_| AttestationError::Encoding)?;
    if !key.is_signer_of(&signed(sequence), &signature) {
        return Err(AttestationError::Mismatch);
    }
    Ok(Some(Attestation { key, sequence }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nkeys::KeyPair;

    fn headers<'a>(signature: &'a str, key: &'a str, sequence: &'a str) -> impl Fn(&str) -> Option<&'a str> {
        move |name| match name {
            SIGNATURE => Some(signature),
            KEY => Some(key),
            SEQUENCE => Some(sequence),
            _ => None,
        }
    }

    #[test]
    fn a_signature_binds_body_and_sequence() {
        let pair = KeyPair::new_user();
        let sequence = Sequence { boot: 5, number: 7 };
        let signature = encode_signature(&pair.sign(&signed_bytes(sequence, b"{}")).unwrap());
        let key = pair.public_key();
        let ok = verify(headers(&signature, &key, "5.7"), b"{}").unwrap().unwrap();
        assert_eq!((ok.key.as_str(), ok.sequence), (key.as_str(), sequence));
        assert_eq!(verify(headers(&signature, &key, "5.8"), b"{}"), Err(AttestationError::Mismatch));
        assert_eq!(verify(headers(&signature, &key, "5.7"), b"[]"), Err(AttestationError::Mismatch));
        assert_eq!(verify(headers(&signature, &key, "x"), b"{}"), Err(AttestationError::Sequence));
        assert_eq!(verify(headers("%%", &key, "5.7"), b"{}"), Err(AttestationError::Encoding));
        assert_eq!(verify(headers(&signature, "U", "5.7"), b"{}"), Err(AttestationError::Key));
        assert_eq!(verify(|_| None, b"{}"), Ok(None));
        let request = "up.oslo.p1.rpc.registry.renew";
        assert_eq!(
            verify_request(headers(&signature, &key, "5.7"), request, b"{}"),
            Err(AttestationError::Mismatch),
            "a batch's signature is no request's"
        );
        let signature = encode_signature(&pair.sign(&signed_request_bytes(request, sequence, b"{}")).unwrap());
        assert!(verify_request(headers(&signature, &key, "5.7"), request, b"{}").unwrap().is_some());
        let other = "up.oslo.p1.rpc.registry.register";
        assert!(verify_request(headers(&signature, &key, "5.7"), other, b"{}").is_err());
        assert_eq!(verify(headers(&signature, &key, "5.7"), b"{}"), Err(AttestationError::Mismatch));
        assert_eq!(verify(|name| (name == KEY).then_some("U"), b"{}"), Err(AttestationError::Incomplete));
    }
}
