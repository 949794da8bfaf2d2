//! Whatever somebody sends as a token is read or refused, never a panic; what we write is read back as it was.

use bulkhead_claims::validate::{Profile, validate_any};
use bulkhead_claims::{
    AccountBody, AccountLimits, AnyClaims, ClaimKind, Claims, KeyKind, OperatorBody, PermissionSet, Signer, SigningKey,
    UserBody, WeightedMapping, decode, decode_any, decode_json, encode, parse_credentials,
};
use data_encoding::BASE64URL_NOPAD;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Signs whatever body, as an issuer that keeps no rule could.
fn signed(body: &Value, key: &SigningKey) -> String {
    let part = |json: &Value| BASE64URL_NOPAD.encode(json.to_string().as_bytes());
    let text = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(body));
    let signature = key.sign(text.as_bytes()).expect("a new key signs");
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}

/// Reads it in every way that there is, and validates what was readable.
fn read_every_way(token: &str) -> Option<AnyClaims> {
    decode::<AccountBody>(token).ok();
    decode::<UserBody>(token).ok();
    decode::<OperatorBody>(token).ok();
    decode_json(token).ok();
    parse_credentials(token).ok();
    let claims = decode_any(token).ok()?;
    for profile in [Profile::Library, Profile::Ours] {
        let _: Vec<String> = validate_any(&claims, 7, profile).iter().map(ToString::to_string).collect();
    }
    Some(claims)
}

fn account_token() -> String {
    let key = SigningKey::generate(KeyKind::Operator);
    let account = SigningKey::generate(KeyKind::Account);
    let body = AccountBody::new(AccountLimits { subs: 5, ..AccountLimits::default() }, vec![], vec![], vec![]);
    encode(&mut Claims::new(account.public().to_owned(), "acme".to_owned(), 7, body), &key)
        .expect("claims of ours are signed")
}

/// Members that claims of some kind have, with values that they may not have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Halves only: serde_json reads long fractions of unknown fields back with another last digit.
        any::<i32>().prop_map(|number| json!(f64::from(number) / 2.0)),
        ".{0,12}".prop_map(Value::from),
        "[a-z*>.${}() ]{0,12}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        "[a-z_]{0,6}",
        prop::sample::select(vec![
            "imports",
            "exports",
            "limits",
            "signing_keys",
            "revocations",
            "mappings",
            "default_permissions",
            "pub",
            "sub",
            "allow",
            "src",
            "times",
            "start",
            "type",
            "kind",
            "subject",
            "local_subject",
            "weight",
            "template",
            "service_latency",
            "sampling",
            "tiered_limits",
            "tags",
            "trace",
            "data",
            "version",
            "authorization",
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_subjects() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-z*>]{1,5}(\\.[a-z*>]{1,5}){0,3}", 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn any_text_is_refused_without_panic(text in any::<String>(), parts in prop::collection::vec("[A-Za-z0-9_-]{0,40}", 0..5)) {
        prop_assert!(read_every_way(&text).is_none());
        prop_assert!(read_every_way(&parts.join(".")).is_none());
    }

    #[test]
    fn any_bytes_in_the_parts_are_refused_without_panic(
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 3),
    ) {
        let parts: Vec<String> = parts.iter().map(|part| BASE64URL_NOPAD.encode(part)).collect();
        prop_assert!(read_every_way(&parts.join(".")).is_none());
        let header = BASE64URL_NOPAD.encode(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
        let unsigned = [header.as_str(), &parts[1], &parts[2]].join(".");
        prop_assert!(read_every_way(&unsigned).is_none());
    }

    #[test]
    fn a_token_with_one_other_byte_or_cut_short_is_refused(at in any::<prop::sample::Index>(), byte in 0_u8..128) {
        let token = account_token();
        let at = at.index(token.len());
        prop_assert!(read_every_way(&token[..at]).is_none(), "cut at {}", at);
        let mut bytes = token.clone().into_bytes();
        bytes[at] = byte;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert_eq!(read_every_way(&changed).is_some(), changed == token, "{} at {}", byte, at);
    }

    #[test]
    fn any_json_in_a_signed_body_is_read_or_refused_without_panic(
        kind in prop::sample::select(ClaimKind::ALL.to_vec()),
        issuer in prop::sample::select(vec![KeyKind::Operator, KeyKind::Account, KeyKind::User, KeyKind::Server]),
        members in prop::collection::vec(("[a-z_]{1,6}", any_json()), 0..4),
        body in any_json(),
    ) {
        let key = SigningKey::generate(issuer);
        let mut nats = body.as_object().cloned().unwrap_or_default();
        nats.insert("type".to_owned(), kind.name().into());
        nats.insert("version".to_owned(), 2.into());
        let mut claims: Map<String, Value> = members.into_iter().collect();
        claims.insert("iss".to_owned(), key.public().into());
        claims.insert("nats".to_owned(), nats.into());
        read_every_way(&signed(&claims.clone().into(), &key));
        claims.insert("nats".to_owned(), body);
        read_every_way(&signed(&claims.into(), &key));
    }

    #[test]
    fn what_we_write_is_read_back_as_it_was(
        name in ".{0,20}",
        iat in 0..i64::MAX,
        limits in prop::array::uniform4(any::<i64>()),
        lists in prop::array::uniform2(any_subjects()),
        mapping in ("[a-z]{1,4}", "[a-z]{1,4}", any::<u8>()),
        unknown in any_json().prop_filter("the library takes null for nothing", |json| !json.to_string().contains("null")),
    ) {
        let key = SigningKey::generate(KeyKind::Account);
        let [subs, payload, conn, streams] = limits;
        let limits = AccountLimits { subs, payload, conn, streams, ..AccountLimits::default() };
        let mut body = AccountBody::new(limits, vec![], vec![], vec![]);
        let [allow, deny] = lists;
        body.default_permissions.publish = PermissionSet { allow, deny, ..PermissionSet::default() };
        let (from, subject, weight) = mapping;
        let target = WeightedMapping { subject, weight, ..WeightedMapping::default() };
        body.mappings.entry(from).or_default().0.push(target);
        body.unknown.insert("newer".to_owned(), unknown);
        let mut claims = Claims::new(key.public().to_owned(), name, iat, body);
        let token = encode(&mut claims, &key).unwrap();
        prop_assert_eq!(&decode::<AccountBody>(&token).unwrap(), &claims);
        prop_assert_eq!(read_every_way(&token), Some(AnyClaims::Account(Box::new(claims))));
    }
}
