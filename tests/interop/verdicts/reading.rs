//! Tokens that are cut, corrupt, old, of another time or of another issuer.

use bulkhead_claims::{KeyKind, Signer, SigningKey};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::odd_keys::{identity, weak_key};
use super::{Case, Keys, header};
use crate::tool::sign;

pub(super) fn cases(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let mut cases = whole(keys)?;
    cases.extend(texts(keys)?);
    cases.extend(headers(keys)?);
    cases.extend(bodies(keys)?);
    cases.extend(standard(keys)?);
    cases.extend(issuers(keys)?);
    Ok(cases)
}

/// The controls: nothing is wrong.
fn whole(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let kinds = [
        ("a good operator", "operator"),
        ("a good account", "account"),
        ("a good user", "user"),
        ("a good activation", "activation"),
        ("a good request", "authorization_request"),
        ("a good response", "authorization_response"),
        ("a good request to delete accounts", "generic"),
    ];
    kinds.into_iter().map(|(name, kind)| keys.case(name, kind, &json!({}))).collect()
}

/// What happens to the text of a token.
fn texts(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let token = keys.token("user", &json!({}))?;
    let parts: Vec<&str> = token.split('.').collect();
    let [head, body, signature] = parts[..] else { anyhow::bail!("three parts") };
    let cut = |count: usize| token[..token.len() - count].to_owned();
    let other_end = |text: &str| format!("{}{}", &text[..text.len() - 1], other_last(text));
    let texts = [
        ("empty", String::new()),
        ("without its last character", cut(1)),
        ("without its last nine characters", cut(9)),
        ("without a signature", format!("{head}.{body}.")),
        ("of two parts", format!("{head}.{body}")),
        ("of four parts", format!("{token}.x")),
        ("with a character that is not base64", format!("{head}.{body}!.{signature}")),
        ("with padding", format!("{token}==")),
        ("with a space before it", format!(" {token}")),
        ("with a line break behind it", format!("{token}\n")),
        ("with bits behind the signature", format!("{head}.{body}.{}", other_end(signature))),
        ("with a body that is cut", format!("{head}.{}.{signature}", &body[..body.len() - 8])),
        ("with another header", format!("{}.{body}.{signature}", BASE64URL_NOPAD.encode(b"{}"))),
    ];
    Ok(texts.into_iter().map(|(name, token)| Case { name, kind: "user", token }).collect())
}

/// 64 bytes are 85 characters and four bits, so that the last character has two bits that stand for nothing.
fn other_last(text: &str) -> char {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = text.bytes().last().and_then(|last| ALPHABET.iter().position(|own| *own == last)).unwrap_or(0);
    char::from(ALPHABET[last ^ 1])
}

fn headers(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let body = keys.good("user");
    let headers = [
        ("with algorithm none", json!({"typ": "JWT", "alg": "none"})),
        ("with algorithm HS256", json!({"typ": "JWT", "alg": "HS256"})),
        ("with the algorithm of version 1 only", json!({"typ": "JWT", "alg": "ed25519"})),
        ("with a header in other letters", json!({"typ": "jwt", "alg": "ED25519-NKEY", "kid": 1})),
        ("without a type in its header", json!({"alg": "ed25519-nkey"})),
        ("of type JWS", json!({"typ": "JWS", "alg": "ed25519-nkey"})),
        ("with header members in other letters", json!({"Typ": "JWT", "ALG": "ed25519-nkey"})),
    ];
    let mut cases = Vec::new();
    for (name, header) in headers {
        cases.push(Case { name, kind: "user", token: sign(&header, &body, &keys.account)? });
    }
    // Version 1 said its kind beside the body, and signed the body alone.
    let old = json!({"iss": keys.account.public(), "sub": keys.user.public(), "iat": 1, "type": "user", "nats": {}});
    let part = BASE64URL_NOPAD.encode(old.to_string().as_bytes());
    let signature = BASE64URL_NOPAD.encode(&keys.account.sign(part.as_bytes())?);
    let head = BASE64URL_NOPAD.encode(br#"{"typ":"jwt","alg":"ed25519"}"#);
    cases.push(Case { name: "of version 1 as it was", kind: "user", token: format!("{head}.{part}.{signature}") });
    Ok(cases)
}

/// Signs text that need not be JSON.
fn signed(text: &[u8], key: &SigningKey) -> anyhow::Result<String> {
    let head = BASE64URL_NOPAD.encode(header().to_string().as_bytes());
    let payload = format!("{head}.{}", BASE64URL_NOPAD.encode(text));
    Ok(format!("{payload}.{}", BASE64URL_NOPAD.encode(&key.sign(payload.as_bytes())?)))
}

fn bodies(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let good = keys.good("user").to_string();
    let with = |from: &str, to: &str| good.replacen(from, to, 1).into_bytes();
    let nested = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let mut invalid = with("\"name\":\"x\"", "\"name\":\"?\"");
    invalid.iter_mut().filter(|byte| **byte == b'?').for_each(|byte| *byte = 0xff);
    let texts = [
        ("with a body that is no JSON", b"x".to_vec()),
        ("with a body that is a list", b"[]".to_vec()),
        ("with more behind the body", format!("{good}x").into_bytes()),
        ("with nats as a list", with("\"nats\":{", "\"nats\":[],\"x\":{")),
        ("with nats as null", with("\"nats\":{", "\"nats\":null,\"x\":{")),
        ("with a member twice", with("\"iat\":1", "\"iat\":1,\"iat\":2")),
        ("with a member twice and a null", with("\"iat\":1", "\"iat\":null,\"iat\":2")),
        ("with two bodies that Go mixes", with("\"iat\":1", "\"iat\":1,\"nats\":{\"src\":[\"10.0.0.0/8\"]}")),
        ("with a key twice in a map", with("\"iat\":1", "\"iat\":1,\"newer\":{\"A\":1,\"A\":2}")),
        ("with a number in place of a text", with("\"name\":\"x\"", "\"name\":1")),
        ("with null in place of a text", with("\"name\":\"x\"", "\"name\":null")),
        ("with a fraction in place of a number", with("\"iat\":1", "\"iat\":1.0")),
        ("with an exponent in place of a number", with("\"iat\":1", "\"iat\":1e3")),
        ("with a number beyond 64 bits", with("\"iat\":1", "\"iat\":9223372036854775808")),
        ("with a member of a newer release", with("\"iat\":1", "\"iat\":1,\"newer\":{\"a\":[1.5,null]}")),
        ("with an unknown number beyond all", with("\"iat\":1", "\"iat\":1,\"newer\":1e999")),
        ("with an unknown member nested deeply", with("\"iat\":1", &format!("\"iat\":1,\"newer\":{nested}"))),
        ("with half a character", with("\"name\":\"x\"", "\"name\":\"\\ud800\"")),
        ("with bytes that are no UTF-8", invalid),
        ("with members in other letters", with("\"iat\":1", "\"iat\":1,\"EXP\":1")),
        ("with deep members in other letters", with("\"subs\":-1", "\"subs\":-1,\"Src\":[\"x\"]")),
        ("with a long s in a member", with("\"subs\":-1", "\"subs\":-1,\"ſrc\":[\"x\"]")),
    ];
    let mut cases = Vec::new();
    for (name, text) in texts {
        cases.push(Case { name, kind: "user", token: signed(&text, &keys.account)? });
    }
    let long = json!({"name": "x".repeat(800_000)});
    cases.push(keys.case("of more than a mebibyte", "user", &long)?);
    Ok(cases)
}

/// The members that all claims have, and what claims say of their own kind.
fn standard(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let rows = [
        ("expired", "user", json!({"exp": 1})),
        ("expired and wrong", "user", json!({"exp": 1, "nats": {"src": ["x"]}})),
        ("with a negative end", "user", json!({"exp": -1})),
        ("that has not begun", "account", json!({"nbf": 1_u64 << 40})),
        ("issued in the future", "account", json!({"iat": 1_u64 << 40})),
        ("without iat and jti", "account", json!({"iat": 0, "jti": ""})),
        ("about nobody", "user", json!({"sub": ""})),
        ("operator about an account", "operator", json!({"sub": keys.account.public()})),
        ("account about a user", "account", json!({"sub": keys.user.public()})),
        ("user about an account", "user", json!({"sub": keys.account.public()})),
        ("activation for a user", "activation", json!({"sub": keys.user.public()})),
        ("of version 0", "account", json!({"nats": {"version": 0}})),
        ("of version 1", "account", json!({"nats": {"version": 1}})),
        ("of version 3", "account", json!({"nats": {"version": 3}})),
        ("of version 2.0", "account", json!({"nats": {"version": 2.0}})),
        ("request without a version", "authorization_request", json!({"nats": {"version": 0}})),
        ("without a kind", "account", json!({"nats": {"type": ""}})),
        ("of kind cluster", "account", json!({"nats": {"type": "cluster"}})),
        ("of kind Account", "account", json!({"nats": {"type": "Account"}})),
        ("of a kind that is a number", "account", json!({"nats": {"type": 1}})),
        ("of two kinds", "account", json!({"type": "account"})),
        ("of another kind", "account", json!({"nats": {"type": "user"}, "iss": keys.account.public()})),
    ];
    rows.into_iter().map(|(name, kind, changes)| keys.case(name, kind, &changes)).collect()
}

fn issuers(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let by = |name, kind: &'static str, key: &SigningKey| {
        let claims = keys.changed(kind, &json!({"iss": key.public()}));
        Ok::<_, anyhow::Error>(Case { name, kind, token: sign(&header(), &claims, key)? })
    };
    let other = SigningKey::generate(KeyKind::Operator);
    let mut cases = vec![
        by("operator by another one", "operator", &other)?,
        by("operator by an account", "operator", &keys.account)?,
        by("account by itself", "account", &keys.account)?,
        by("account by a user", "account", &keys.user)?,
        by("user by an operator", "user", &keys.operator)?,
        by("user by itself", "user", &keys.user)?,
        by("activation by an operator", "activation", &keys.operator)?,
        by("activation by a server", "activation", &keys.server)?,
        by("request by an account", "authorization_request", &keys.account)?,
        by("response by a server", "authorization_response", &keys.server)?,
    ];
    let signed_by_other = |name, iss: &str| {
        let claims = keys.changed("account", &json!({"iss": iss}));
        Ok::<_, anyhow::Error>(Case { name, kind: "account", token: sign(&header(), &claims, &other)? })
    };
    cases.push(signed_by_other("account of a wrong issuer", keys.operator.public())?);
    cases.push(signed_by_other("account of no issuer", "")?);
    cases.push(signed_by_other("account of an issuer that is no key", "OABC")?);
    cases.push(signed_by_other("account of an issuer with a line break", &format!("{}\n", other.public()))?);
    cases.push(forged(keys)?);
    Ok(cases)
}

/// Signed by nobody: under the identity as key, this holds for every text.
fn forged(keys: &Keys) -> anyhow::Result<Case> {
    let claims: Value = keys.changed("account", &json!({"iss": weak_key(KeyKind::Operator)}));
    let part = |json: &Value| BASE64URL_NOPAD.encode(json.to_string().as_bytes());
    let mut signature = identity().to_vec();
    signature.extend([0; 32]);
    let token = format!("{}.{}.{}", part(&header()), part(&claims), BASE64URL_NOPAD.encode(&signature));
    Ok(Case { name: "account forged under a weak key", kind: "account", token })
}
