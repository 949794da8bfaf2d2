//! Encoding, signing and decoding of tokens.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha512_256};

use crate::signer::{SignError, Signer};

/// The server and the Go library refuse larger tokens.
const TOKEN_BYTES_MAX: usize = 1024 * 1024;
const ALGORITHM: &str = "ed25519-nkey";
pub(crate) const VERSION: u32 = 2;

/// The standard part of a token around a body. Times are unix seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claims<B> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aud: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(default)]
    pub iat: i64,
    #[serde(default)]
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    #[serde(default)]
    pub sub: String,
    pub nats: B,
}

impl<B> Claims<B> {
    /// Claims about `sub`, not yet signed.
    #[must_use]
    pub fn new(sub: String, name: String, iat: i64, body: B) -> Self {
        Self { aud: None, exp: None, jti: String::new(), iat, iss: String::new(), name, nbf: None, sub, nats: body }
    }
}

/// What an operator says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperatorBody {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_account: Option<String>,
    /// Identity keys sign nothing but themselves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict_signing_key_usage: bool,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl OperatorBody {
    #[must_use]
    pub fn new(signing_keys: Vec<String>, system_account: String) -> Self {
        Self {
            signing_keys,
            system_account: Some(system_account),
            strict_signing_key_usage: true,
            kind: "operator".to_owned(),
            version: VERSION,
            unknown: Map::new(),
        }
    }
}

/// Why a token cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("token has {0} bytes: at most {TOKEN_BYTES_MAX} are allowed")]
    TooLarge(usize),
    #[error("token has no three parts separated by dots")]
    Parts,
    #[error("token {0} is not base64url")]
    Encoding(&'static str),
    #[error("token header says {0:?}: only {ALGORITHM} is read")]
    Algorithm(String),
    #[error("token body is not readable")]
    Body(#[source] serde_json::Error),
    #[error("token issuer {0:?} is not a key")]
    Issuer(String),
    #[error("the signature is not the issuer's")]
    Signature,
}

#[derive(Serialize, Deserialize)]
struct Header {
    typ: String,
    alg: String,
}

/// Signs claims: sets `iss` and `jti`.
///
/// # Errors
/// When the key cannot sign.
///
/// # Panics
/// Never: our own claims always serialize.
pub fn encode<B: Serialize>(claims: &mut Claims<B>, signer: &dyn Signer) -> Result<String, SignError> {
    signer.public().clone_into(&mut claims.iss);
    claims.jti.clear();
    let unnamed = serde_json::to_vec(&claims).expect("claims serialize");
    claims.jti = BASE32_NOPAD.encode(&Sha512_256::digest(&unnamed));
    let header = Header { typ: "JWT".to_owned(), alg: ALGORITHM.to_owned() };
    let part = |json: Vec<u8>| BASE64URL_NOPAD.encode(&json);
    let header = part(serde_json::to_vec(&header).expect("a header serializes"));
    let body = part(serde_json::to_vec(&claims).expect("claims serialize"));
    let signature = signer.sign(format!("{header}.{body}").as_bytes())?;
    Ok(format!("{header}.{body}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// Reads a token and verifies that its own issuer signed it. Whether that issuer is trusted is the caller's to say.
///
/// # Errors
/// When the token is malformed or the signature is not the issuer's.
pub fn decode<B: DeserializeOwned>(token: &str) -> Result<Claims<B>, DecodeError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(DecodeError::TooLarge(token.len()));
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, body, signature] = parts.as_slice() else { return Err(DecodeError::Parts) };
    let bytes = |part: &str, name| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| DecodeError::Encoding(name));
    let head: Header = serde_json::from_slice(&bytes(header, "header")?).map_err(DecodeError::Body)?;
    if head.alg != ALGORITHM || !head.typ.eq_ignore_ascii_case("jwt") {
        return Err(DecodeError::Algorithm(head.alg));
    }
    let claims: Claims<B> = serde_json::from_slice(&bytes(body, "body")?).map_err(DecodeError::Body)?;
    let signature = bytes(signature, "signature")?;
    let is_key = claims.iss.len() == 56 && claims.iss.is_ascii();
    let issuer = is_key.then(|| KeyPair::from_public_key(&claims.iss).ok()).flatten();
    let issuer = issuer.ok_or_else(|| DecodeError::Issuer(claims.iss.chars().take(64).collect()))?;
    let signed = format!("{header}.{body}");
    issuer.verify(signed.as_bytes(), &signature).map_err(|_| DecodeError::Signature)?;
    Ok(claims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyKind, SigningKey};
    use proptest::prelude::*;

    fn token() -> (String, Claims<OperatorBody>) {
        let key = SigningKey::generate(KeyKind::Operator);
        let body = OperatorBody::new(vec![], SigningKey::generate(KeyKind::Account).public().to_owned());
        let mut claims = Claims::new(key.public().to_owned(), "bulkhead".to_owned(), 7, body);
        (encode(&mut claims, &key).unwrap(), claims)
    }

    #[test]
    fn a_token_round_trips_with_fields_that_we_do_not_know() {
        let (_, mut claims) = token();
        claims.nats.unknown.insert("newer".to_owned(), Value::from(3));
        let key = SigningKey::generate(KeyKind::Operator);
        let token = encode(&mut claims, &key).unwrap();
        assert_eq!(decode::<OperatorBody>(&token).unwrap(), claims);
    }

    #[test]
    fn any_change_of_the_body_changes_jti_and_breaks_the_signature() {
        let key = SigningKey::generate(KeyKind::Operator);
        let (_, mut claims) = token();
        let first = encode(&mut claims, &key).unwrap();
        let jti = claims.jti.clone();
        claims.nats.system_account = None;
        let second = encode(&mut claims, &key).unwrap();
        assert_ne!(claims.jti, jti);
        let (head, tail) = (first.rsplit_once('.').unwrap().0, second.rsplit_once('.').unwrap().1);
        assert!(matches!(decode::<OperatorBody>(&format!("{head}.{tail}")), Err(DecodeError::Signature)));
    }

    proptest! {
        #[test]
        fn decoding_any_text_never_panics(text in any::<String>(), cut in 0_usize..200) {
            let _ = decode::<OperatorBody>(&text);
            let (token, _) = token();
            let _ = decode::<OperatorBody>(&token[..cut.min(token.len())]);
        }
    }
}
