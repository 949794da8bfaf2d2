//! Encoding, signing and decoding of tokens.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha512_256};

use crate::body::{Body, ClaimKind};
use crate::key::KeyKind;
use crate::omit::{is_none_or_zero, is_zero, read, unknown_members, zero_is_none};
use crate::signer::{SignError, Signer};

/// The server and the Go library refuse larger tokens.
const TOKEN_BYTES_MAX: usize = 1024 * 1024;
const ALGORITHM: &str = "ed25519-nkey";
pub(crate) const VERSION: u32 = 2;

/// The standard part of a token around a body. Times are unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "B: Serialize", deserialize = "B: DeserializeOwned + Default"))]
pub struct Claims<B> {
    #[serde(default, deserialize_with = "zero_is_none", skip_serializing_if = "is_none_or_zero")]
    pub aud: Option<String>,
    #[serde(default, deserialize_with = "zero_is_none", skip_serializing_if = "is_none_or_zero")]
    pub exp: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub iat: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub iss: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, deserialize_with = "zero_is_none", skip_serializing_if = "is_none_or_zero")]
    pub nbf: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sub: String,
    #[serde(default)]
    pub nats: B,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

impl<B: Body> Claims<B> {
    /// Claims about `sub`, not yet signed.
    #[must_use]
    pub fn new(sub: String, name: String, iat: i64, body: B) -> Self {
        Self { iat, name, sub, nats: body, ..Self::default() }
    }

    #[must_use]
    pub fn is_self_signed(&self) -> bool {
        self.iss == self.sub
    }
}

/// When to say that new claims were issued: servers keep what is newer by a whole second, and nothing that is not.
#[must_use]
pub fn next_iat(now: i64, last: Option<i64>) -> i64 {
    last.map_or(now, |last| now.max(last.saturating_add(1)))
}

/// Why a token cannot be read. Shows no more of it than the value that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("token has {0} bytes: at most {TOKEN_BYTES_MAX} are allowed")]
    TooLarge(usize),
    #[error("token has no three parts separated by dots")]
    Parts,
    #[error("token {0} is not base64url")]
    Encoding(&'static str),
    #[error("token header says {0:?}: only a JWT with {ALGORITHM} is read")]
    Algorithm(String),
    #[error("token {0} is not readable")]
    Body(&'static str, #[source] serde_json::Error),
    #[error("token is of kind {found:?}, a token of kind {expected} is needed: give that one")]
    Kind { expected: ClaimKind, found: String },
    #[error("token is of version 1, which is not read any more: issue it again, or upgrade it with nsc upgrade-jwt")]
    Old,
    #[error("token is of version {0}, only {VERSION} is read: upgrade this program if that is newer")]
    Version(u64),
    #[error("token issuer {0:?} is not a key")]
    Issuer(String),
    #[error("token of kind {kind} is issued by {issuer}, which may not issue it")]
    Foreign { kind: ClaimKind, issuer: String },
    #[error("the signature is not the issuer's")]
    Signature,
}

#[derive(Serialize, Deserialize)]
struct Header {
    typ: String,
    alg: String,
}

/// Signs claims: sets `iss`, `jti`, kind and version.
///
/// # Errors
/// When claims of this kind are not about such a subject or not issued by such a key, or when the key cannot sign.
///
/// # Panics
/// Never: our own claims always serialize.
pub fn encode<B: Body>(claims: &mut Claims<B>, signer: &dyn Signer) -> Result<String, SignError> {
    check_keys(B::KIND, &claims.sub, signer.public())?;
    claims.nats.prepare();
    signer.public().clone_into(&mut claims.iss);
    claims.jti.clear();
    let unnamed = serde_json::to_vec(&claims).expect("claims serialize");
    claims.jti = BASE32_NOPAD.encode(&Sha512_256::digest(&unnamed));
    let header = Header { typ: "JWT".to_owned(), alg: ALGORITHM.to_owned() };
    let part = |json: Vec<u8>| BASE64URL_NOPAD.encode(&json);
    let header = part(serde_json::to_vec(&header).expect("a header serializes"));
    let body = part(serde_json::to_vec(&claims).expect("claims serialize"));
    let signature = signer.sign(format!("{header}.{body}").as_bytes())?;
    let token = format!("{header}.{body}.{}", BASE64URL_NOPAD.encode(&signature));
    if token.len() > TOKEN_BYTES_MAX {
        return Err(SignError::TooLarge { bytes: token.len(), allowed: TOKEN_BYTES_MAX });
    }
    Ok(token)
}

fn check_keys(kind: ClaimKind, subject: &str, issuer: &str) -> Result<(), SignError> {
    let is_subject = kind.subject().map_or(!subject.is_empty(), |key| KeyKind::of_public(subject) == Some(key));
    if !is_subject {
        return Err(SignError::Subject { kind, subject: shortened(subject) });
    }
    if !may_issue(kind, issuer) {
        return Err(SignError::Issuer { kind, issuer: shortened(issuer) });
    }
    Ok(())
}

fn may_issue(kind: ClaimKind, issuer: &str) -> bool {
    let of_key = KeyKind::of_public(issuer);
    kind.issuers().is_none_or(|issuers| of_key.is_some_and(|key| issuers.contains(&key)))
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The parts of a token, decoded; not yet verified.
pub(crate) struct Parts<'a> {
    signed: &'a str,
    pub(crate) body: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    pub(crate) fn split(token: &'a str) -> Result<Self, DecodeError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(DecodeError::TooLarge(token.len()));
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(DecodeError::Parts)?;
        let (header, body) = signed.split_once('.').ok_or(DecodeError::Parts)?;
        if body.contains('.') {
            return Err(DecodeError::Parts);
        }
        let bytes = |part: &str, name| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| DecodeError::Encoding(name));
        let head = bytes(header, "header")?;
        let head: Header = serde_json::from_slice(&head).map_err(|error| DecodeError::Body("header", error))?;
        if !head.alg.eq_ignore_ascii_case(ALGORITHM) || !head.typ.eq_ignore_ascii_case("jwt") {
            return Err(DecodeError::Algorithm(shortened(&format!("{} {}", head.typ, head.alg))));
        }
        Ok(Self { signed, body: bytes(body, "body")?, signature: bytes(signature, "signature")? })
    }

    fn verify(&self, issuer: &str) -> Result<(), DecodeError> {
        let not_a_key = || DecodeError::Issuer(shortened(issuer));
        if !KeyKind::is_public(issuer) {
            return Err(not_a_key());
        }
        let key = KeyPair::from_public_key(issuer).map_err(|_| not_a_key())?;
        key.verify(self.signed.as_bytes(), &self.signature).map_err(|_| DecodeError::Signature)
    }

    pub(crate) fn read<B: Body>(&self) -> Result<Claims<B>, DecodeError> {
        let mut claims = read::<Claims<B>>(&self.body).map_err(|error| self.unreadable(B::KIND, error))?;
        // Version 1 said its kind beside the body, not in it.
        if claims.unknown.contains_key("type") {
            return Err(DecodeError::Old);
        }
        let (kind, version) = claims.nats.said();
        check_said(B::KIND, kind, version)?;
        self.verify(&claims.iss)?;
        if !may_issue(B::KIND, &claims.iss) {
            return Err(DecodeError::Foreign { kind: B::KIND, issuer: claims.iss });
        }
        claims.nats.settle();
        Ok(claims)
    }

    /// What was wrong is said by kind and version first: those explain fields that are not understood.
    fn unreadable(&self, expected: ClaimKind, error: serde_json::Error) -> DecodeError {
        let said = Said::of(&self.body);
        match said.check(expected) {
            Err(known) => known,
            Ok(()) => DecodeError::Body("body", error),
        }
    }
}

fn check_said(expected: ClaimKind, kind: &str, version: u64) -> Result<(), DecodeError> {
    let is_reserved = matches!(kind, "cluster" | "server");
    if ClaimKind::of_name(kind) != expected || is_reserved {
        return Err(DecodeError::Kind { expected, found: shortened(kind) });
    }
    match version {
        1 => Err(DecodeError::Old),
        version if version == u64::from(VERSION) => Ok(()),
        version => Err(DecodeError::Version(version)),
    }
}

/// What a body says of itself, read without understanding the rest.
#[derive(Default)]
pub(crate) struct Said {
    is_old: bool,
    kind: String,
    version: Option<u64>,
}

impl Said {
    pub(crate) fn of(body: &[u8]) -> Self {
        let Ok(json) = serde_json::from_slice::<Value>(body) else { return Self::default() };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            is_old: json.get("type").is_some(),
            kind: text(&json["nats"]["type"]),
            version: json["nats"]["version"].as_u64(),
        }
    }

    pub(crate) fn kind(&self) -> ClaimKind {
        ClaimKind::of_name(&self.kind)
    }

    fn check(&self, expected: ClaimKind) -> Result<(), DecodeError> {
        if self.is_old {
            return Err(DecodeError::Old);
        }
        let Some(version) = self.version else { return Ok(()) };
        check_said(expected, &self.kind, version)
    }
}

/// Reads a token of any kind as JSON, to compare it with another or to show it; the signature is its issuer's.
///
/// # Errors
/// When the token is malformed or the signature is not the issuer's.
pub fn decode_json(token: &str) -> Result<Claims<Value>, DecodeError> {
    let parts = Parts::split(token)?;
    let claims = read::<Claims<Value>>(&parts.body).map_err(|error| DecodeError::Body("body", error))?;
    parts.verify(&claims.iss)?;
    Ok(claims)
}

/// Reads a token and verifies that its own issuer signed it. Whether that issuer is trusted is the caller's to say,
/// and whether the claims are valid is [`crate::validate`]'s.
///
/// # Errors
/// When the token is malformed, of another kind or version, or the signature is not the issuer's.
pub fn decode<B: Body>(token: &str) -> Result<Claims<B>, DecodeError> {
    Parts::split(token)?.read()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;
    use crate::{OperatorBody, UserBody};

    fn token() -> (String, Claims<OperatorBody>, SigningKey) {
        let key = SigningKey::generate(KeyKind::Operator);
        let body = OperatorBody::new(vec![], SigningKey::generate(KeyKind::Account).public().to_owned());
        let mut claims = Claims::new(key.public().to_owned(), "bulkhead".to_owned(), 7, body);
        (encode(&mut claims, &key).unwrap(), claims, key)
    }

    /// Signs whatever body, as an issuer that keeps no rule could.
    fn signed(json: &str, key: &SigningKey) -> String {
        let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
        let text = format!("{header}.{}", BASE64URL_NOPAD.encode(json.replace("ISS", key.public()).as_bytes()));
        let signature = key.sign(text.as_bytes()).unwrap();
        format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    #[test]
    fn a_token_round_trips_with_fields_that_we_do_not_know() {
        let (_, mut claims, key) = token();
        claims.nats.unknown.insert("newer".to_owned(), Value::from(3));
        claims.unknown.insert("beside".to_owned(), Value::from("x"));
        let token = encode(&mut claims, &key).unwrap();
        assert_eq!(decode::<OperatorBody>(&token).unwrap(), claims);
    }

    #[test]
    fn any_change_of_the_body_changes_jti_and_breaks_the_signature() {
        let (first, mut claims, key) = token();
        let jti = claims.jti.clone();
        claims.nats.system_account = None;
        let second = encode(&mut claims, &key).unwrap();
        assert_ne!(claims.jti, jti);
        let (head, tail) = (first.rsplit_once('.').unwrap().0, second.rsplit_once('.').unwrap().1);
        assert!(matches!(decode::<OperatorBody>(&format!("{head}.{tail}")), Err(DecodeError::Signature)));
    }

    #[test]
    fn iat_grows_by_a_second_at_least() {
        for (now, last, expected) in [(10, None, 10), (10, Some(9), 10), (10, Some(10), 11), (10, Some(50), 51)] {
            assert_eq!(next_iat(now, last), expected, "{now} after {last:?}");
        }
        assert_eq!(next_iat(0, Some(i64::MAX)), i64::MAX);
    }

    #[test]
    fn kinds_and_versions_that_are_not_asked_for_are_named() {
        let (token, ..) = token();
        let error = decode::<UserBody>(&token).unwrap_err().to_string();
        assert_eq!(error, "token is of kind \"operator\", a token of kind user is needed: give that one");
        let key = SigningKey::generate(KeyKind::Account);
        let check = |json: &str, expected: &str| {
            let error = decode::<UserBody>(&signed(json, &key)).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        };
        check(r#"{"iss":"ISS","sub":"U","type":"user","nats":{}}"#, "version 1");
        check(r#"{"iss":"ISS","sub":"U","nats":{"type":"user","version":1}}"#, "version 1");
        check(r#"{"iss":"ISS","sub":"U","nats":{"type":"user","version":3,"pub":7}}"#, "version 3");
        check(r#"{"iss":"ISS","sub":"U","nats":{"type":"user"}}"#, "version 0");
        check(r#"{"iss":"ISS","sub":"U"}"#, "kind \"\"");
        check(r#"{"iss":"ISS","sub":"U","nats":{"type":"user","version":2,"pub":7}}"#, "body is not readable");
        check(r#"{"iss":"UNKNOWN","nats":{"type":"user","version":2}}"#, "is not a key");
        let operator = SigningKey::generate(KeyKind::Operator);
        let foreign = signed(r#"{"iss":"ISS","nats":{"type":"user","version":2}}"#, &operator);
        assert!(matches!(decode::<UserBody>(&foreign), Err(DecodeError::Foreign { .. })));
        let null = signed(r#"{"iss":"ISS","exp":null,"nats":{"type":"user","version":2,"tags":null}}"#, &key);
        assert_eq!(decode::<UserBody>(&null).unwrap().exp, None);
    }

    #[test]
    fn what_servers_would_read_otherwise_is_refused() {
        let key = SigningKey::generate(KeyKind::Account);
        let read = |members: &str| {
            let json = format!(r#"{{"iss":"ISS","nats":{{"type":"user","version":2}},{members}}}"#);
            decode::<UserBody>(&signed(&json, &key))
        };
        for members in [
            r#""EXP":1"#,
            r#""exp":1,"exp":2"#,
            r#""aud":null,"exp":1,"exp":2"#,
            r#""nats":{"type":"user","version":2}"#,
            r#""newer":1,"Newer":2"#,
        ] {
            let error = read(members).unwrap_err();
            assert!(matches!(error, DecodeError::Body("body", _)), "{members}: {error}");
        }
        assert!(read(r#""aud":null,"newer":{"Any":1.5,"case":[true,null]}"#).is_ok());
    }

    #[test]
    fn only_keys_of_the_right_kind_are_issued_and_issue() {
        let (_, mut claims, operator) = token();
        let account = SigningKey::generate(KeyKind::Account);
        assert!(matches!(encode(&mut claims, &account), Err(SignError::Issuer { .. })));
        account.public().clone_into(&mut claims.sub);
        assert!(matches!(encode(&mut claims, &operator), Err(SignError::Subject { .. })));
    }
}
