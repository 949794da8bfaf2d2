//! Exports and imports.

use serde_json::{Value, json};

use super::{Case, Keys, merge, table};

pub(super) fn cases(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let mut rows = exports();
    rows.extend(several_exports());
    rows.extend(imports(keys));
    rows.extend(local_subjects(keys));
    rows.extend(tokens(keys)?);
    rows.extend(several_imports(keys));
    table(keys, "account", &rows)
}

fn exported(kind: &str, changes: Value) -> Value {
    let mut export = json!({"name": "x", "subject": "a.*.b", "type": kind});
    merge(&mut export, &changes);
    json!({"exports": [export]})
}

fn exports() -> Vec<(&'static str, Value)> {
    let stream = |changes| exported("stream", changes);
    let service = |changes| exported("service", changes);
    let latency = |sampling: Value, results: &str| {
        exported("service", json!({"service_latency": {"sampling": sampling, "results": results}}))
    };
    vec![
        ("export of a stream", stream(json!({"account_token_position": 2, "token_req": true}))),
        ("export of a service", service(json!({"response_type": "Chunked", "allow_trace": true}))),
        ("export of no type", stream(json!({"type": null}))),
        ("export of an unknown type", stream(json!({"type": "other"}))),
        ("export of type Stream", stream(json!({"type": "Stream"}))),
        ("export of nothing", stream(json!({"subject": null}))),
        ("export of half a wildcard", stream(json!({"subject": "a.>.b"}))),
        ("export that is null", json!({"exports": [null]})),
        ("export of a stream that responds", stream(json!({"response_type": "Stream"}))),
        ("export of an unknown response", service(json!({"response_type": "other"}))),
        ("export of an empty response", service(json!({"response_type": ""}))),
        ("export of a stream with traces", stream(json!({"allow_trace": true}))),
        ("export of a stream with latency", stream(json!({"service_latency": {"sampling": 1, "results": "r"}}))),
        ("export with latency", latency(json!("HEADERS"), "r")),
        ("export with latency of 0", latency(json!(0), "r")),
        ("export with latency of 100", latency(json!(100), "r")),
        ("export with latency of 101", latency(json!(101), "r")),
        ("export with latency of -1", latency(json!(-1), "r")),
        ("export with latency of other", latency(json!("other"), "r")),
        ("export with latency to a wildcard", latency(json!(1), "r.>")),
        ("export with latency to nowhere", latency(json!(1), "")),
        ("export with a negative threshold", service(json!({"response_threshold": -1}))),
        ("export of a stream with a threshold", stream(json!({"response_threshold": 1}))),
        ("export of a service with a threshold", service(json!({"response_threshold": 1}))),
        ("export with the account at a word", stream(json!({"account_token_position": 1}))),
        ("export with the account behind the end", stream(json!({"account_token_position": 4}))),
        ("export with the account at -1", stream(json!({"account_token_position": -1}))),
        ("export with the account in no wildcard", stream(json!({"subject": "a", "account_token_position": 1}))),
        ("export with the account at an open end", stream(json!({"subject": "a.>", "account_token_position": 2}))),
        ("export with a page of no host", stream(json!({"info_url": "x"}))),
        ("export with revocations", stream(json!({"revocations": {"*": 1}}))),
    ]
}

fn several_exports() -> Vec<(&'static str, Value)> {
    let both = |first: (&str, &str), second: (&str, &str)| {
        let export = |(kind, subject): (&str, &str)| json!({"type": kind, "subject": subject});
        json!({"exports": [export(first), export(second)]})
    };
    vec![
        ("exports within each other", both(("stream", "a.>"), ("stream", "a.b"))),
        ("exports that are the same", both(("service", "a"), ("service", "a"))),
        ("exports of two types", both(("service", "a"), ("stream", "a"))),
        ("exports that cross", both(("service", "a.*"), ("service", "*.b"))),
        ("exports beside each other", both(("stream", "a.>"), ("stream", "a"))),
        ("exports with an open end in a star", both(("stream", "a.>"), ("stream", "a.*"))),
    ]
}

fn imported(keys: &Keys, kind: &str, changes: &Value) -> Value {
    let mut import = json!({"subject": "a.*.b", "account": keys.exporter.public(), "type": kind});
    merge(&mut import, changes);
    json!({"imports": [import]})
}

fn imports(keys: &Keys) -> Vec<(&'static str, Value)> {
    let stream = |changes| imported(keys, "stream", &changes);
    let service = |changes| imported(keys, "service", &changes);
    vec![
        ("import of a stream", stream(json!({"allow_trace": true}))),
        ("import of a service", service(json!({"share": true}))),
        ("import of no type", stream(json!({"type": null}))),
        ("import of an unknown type", stream(json!({"type": "other"}))),
        ("import of nothing", stream(json!({"subject": null}))),
        ("import from nobody", stream(json!({"account": null}))),
        ("import from what is no key", stream(json!({"account": "x"}))),
        ("import that is null", json!({"imports": [null]})),
        ("import of a stream that is shared", stream(json!({"share": true}))),
        ("import of a service with traces", service(json!({"allow_trace": true}))),
        ("import with to", stream(json!({"to": "x"}))),
        ("import with to and local_subject", stream(json!({"to": "x", "local_subject": "x.*"}))),
    ]
}

fn local_subjects(keys: &Keys) -> Vec<(&'static str, Value)> {
    let local = |from: &str, to: &str| imported(keys, "stream", &json!({"subject": from, "local_subject": to}));
    vec![
        ("local subject with a star", local("a.*", "x.*")),
        ("local subject with $1", local("a.*", "x.$1")),
        ("local subject with $+1", local("a.*", "x.$+1")),
        ("local subject with $-1", local("a.*", "x.$-1")),
        ("local subject with $0", local("a.*", "x.$0")),
        ("local subject with $01", local("a.*", "x.$01")),
        ("local subject with $2 of one", local("a.*", "x.$2")),
        ("local subject with $1 twice", local("a.*.*", "x.$1.$1")),
        ("local subject with a star and $1", local("a.*.*", "x.*.$1")),
        ("local subject with too few stars", local("a.*.*", "x.*")),
        ("local subject with $ alone", local("a", "x.$")),
        ("local subject with $x", local("a", "x.$x")),
        ("local subject with a number beyond 64 bits", local("a", "x.$99999999999999999999")),
        ("local subject with an underscore", local("a.*", "x.$1_0")),
        ("local subject with another end", local("a.>", "x")),
        ("local subject with the same end", local("a.>", "x.>")),
        ("local subject with a space", local("a", "x y")),
        ("local subject with two dots", local("a", "x..y")),
        ("local subject of nothing", local("", "x")),
        ("local subject that is a star", local("*", "$1")),
    ]
}

fn tokens(keys: &Keys) -> anyhow::Result<Vec<(&'static str, Value)>> {
    let token = |changes: Value| keys.token("activation", &changes);
    let with = |token: String| imported(keys, "stream", &json!({"subject": "a.b", "token": token}));
    let other = keys.user.public();
    let user = keys.token("user", &json!({}))?;
    let of_service = token(json!({"nats": {"kind": "service"}}))?;
    let renamed = json!({"subject": "a.b", "to": "x", "token": of_service});
    Ok(vec![
        ("import with a token", with(token(json!({}))?)),
        ("import with an expired token", with(token(json!({"exp": 1}))?)),
        ("import with a token for another", with(token(json!({"sub": other}))?)),
        ("import with a token of an account's key", with(token(json!({"nats": {"issuer_account": other}}))?)),
        ("import with a token for another subject", with(token(json!({"nats": {"subject": "b"}}))?)),
        ("import with a token for a service", with(of_service.clone())),
        ("import with a token of no kind", with(token(json!({"nats": {"kind": null}}))?)),
        ("import with a token that is none", with("x".to_owned())),
        ("import with a user's token", with(user)),
        (
            "import with another's token",
            imported(keys, "stream", &json!({"subject": "a.b", "account": other, "token": token(json!({}))?})),
        ),
        ("import of a service with a token and to", imported(keys, "service", &renamed)),
    ])
}

fn several_imports(keys: &Keys) -> Vec<(&'static str, Value)> {
    let (one, other) = (keys.exporter.public(), keys.user.public());
    let both = |kind: &str, first: (&str, &str, &str), second: (&str, &str, &str)| {
        let import = |(account, subject, local): (&str, &str, &str)| json!({"type": kind, "account": account, "subject": subject, "local_subject": local});
        json!({"imports": [import(first), import(second)]})
    };
    vec![
        ("services under one subject", both("service", (one, "a", ""), (one, "a", ""))),
        ("services within each other", both("service", (one, "a.>", ""), (one, "a.b", ""))),
        ("services of two accounts", both("service", (one, "a", ""), (other, "a", ""))),
        ("services under two subjects", both("service", (one, "a", "x"), (one, "a", "y"))),
        ("services under one local subject", both("service", (one, "a", "x"), (one, "b", "x"))),
        ("services under references", both("service", (one, "a.*", "x.$1"), (one, "b.*", "x.$+1"))),
        ("streams under one subject", both("stream", (one, "a", ""), (one, "a", ""))),
    ]
}
