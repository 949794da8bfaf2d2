//! What the fuzz targets do, and what a test of `crates/claims` does with seeded mutations of the same inputs.

use std::sync::LazyLock;

use bulkhead_claims::validate::{Profile, is_blocking, validate_any};
use bulkhead_claims::{
    AccountBody, ActivationBody, AnyClaims, AuthorizationRequestBody, AuthorizationResponseBody, GenericBody, KeyKind,
    OperatorBody, Signer, SigningKey, UserBody, decode, decode_any, decode_json, encode_any, parse_credentials,
};
use data_encoding::BASE64URL_NOPAD;

const NOW: i64 = 1_800_000_000;
const HEADER: &[u8] = br#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// Who signs what a target is given, made anew for each run, as no finding depends on the keys.
static KEYS: LazyLock<[SigningKey; 4]> =
    LazyLock::new(|| [KeyKind::Operator, KeyKind::Account, KeyKind::User, KeyKind::Server].map(SigningKey::generate));

/// Reads bytes in every way that there is. The only finding is a panic.
pub(crate) fn read_text(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    decode::<OperatorBody>(&text).ok();
    decode::<AccountBody>(&text).ok();
    decode::<UserBody>(&text).ok();
    decode::<ActivationBody>(&text).ok();
    decode::<AuthorizationRequestBody>(&text).ok();
    decode::<AuthorizationResponseBody>(&text).ok();
    decode::<GenericBody>(&text).ok();
    decode_json(&text).ok();
    parse_credentials(&text).ok();
    if let Ok(claims) = decode_any(&text) {
        verdicts(&claims);
    }
}

/// Signs bytes as the members of a token beside `iss`, with a key of the kind that the first byte names, and says whether
/// the token was read. One that was is validated, signed again and read again: it is what it was, with the same verdict,
/// and signing once more changes nothing.
///
/// # Panics
/// When it is not: that is a finding.
pub(crate) fn sign_again(input: &[u8]) -> bool {
    let Some((&first, members)) = input.split_first() else { return false };
    let key = KEYS.iter().find(|key| key.public().as_bytes()[0] == first).unwrap_or(&KEYS[0]);
    let Ok(mut claims) = decode_any(&signed(members, key)) else { return false };
    let before = verdicts(&claims);
    let Ok(token) = encode_any(&mut claims, key) else { return true };
    let again = decode_any(&token);
    assert_eq!(again.as_ref().ok(), Some(&claims), "what we signed is read as something else: {again:?}");
    assert_eq!(verdicts(&claims), before, "signing changes the verdict");
    assert_eq!(encode_any(&mut claims, key).ok(), Some(token), "signing twice makes two tokens");
    true
}

fn signed(members: &[u8], key: &SigningKey) -> String {
    let mut body = format!("{{\"iss\":\"{}\",", key.public()).into_bytes();
    body.extend(members);
    let text = format!("{}.{}", BASE64URL_NOPAD.encode(HEADER), BASE64URL_NOPAD.encode(&body));
    let signature = key.sign(text.as_bytes()).expect("a key pair signs");
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn verdicts(claims: &AnyClaims) -> [bool; 2] {
    [Profile::Library, Profile::Ours].map(|profile| {
        let issues = validate_any(claims, NOW, profile);
        issues.iter().for_each(|issue| drop(issue.to_string()));
        is_blocking(&issues)
    })
}
