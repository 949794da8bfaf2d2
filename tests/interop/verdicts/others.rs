//! Operators, users, activations, requests and responses.

use bulkhead_claims::KeyKind;
use serde_json::json;

use super::odd_keys::weak_key;
use super::{Case, Keys, table};

pub(super) fn cases(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let mut cases = operators(keys)?;
    cases.extend(users(keys)?);
    cases.extend(activations(keys)?);
    cases.extend(authorizations(keys)?);
    Ok(cases)
}

fn operators(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let (operator, account, user) = (keys.operator.public(), keys.account.public(), keys.user.public());
    let url = |url: &str| json!({"operator_service_urls": [url]});
    let rows = [
        ("operator with everything", json!({"signing_keys": [operator], "strict_signing_key_usage": true})),
        ("operator with an account's signing key", json!({"signing_keys": [operator, account]})),
        ("operator with a null as signing key", json!({"signing_keys": [null]})),
        ("operator with a user as system account", json!({"system_account": user})),
        ("operator with an empty system account", json!({"system_account": ""})),
        ("operator with a weak system account", json!({"system_account": weak_key(KeyKind::Account)})),
        ("operator with a line break in a key", json!({"system_account": format!("{account}\n")})),
        ("operator with a server", url("tls://host:4222")),
        ("operator with a server in other letters", url("NATS://host")),
        ("operator with a server over http", url("http://host")),
        ("operator with a server and a path", url("nats://host/x")),
        ("operator with a server and a user", url("nats://user@host")),
        ("operator with a server without protocol", url("host:4222")),
        ("operator with an empty server", url("")),
        ("operator with a server that is no address", url("nats://ho st")),
        ("operator with an account server", json!({"account_server_url": "https://host/jwt/v1"})),
        ("operator with an account server without protocol", json!({"account_server_url": "/jwt/v1"})),
        ("operator with a version", json!({"assert_server_version": "+2.10.0"})),
        ("operator with half a version", json!({"assert_server_version": "2.10"})),
        ("operator with a negative version", json!({"assert_server_version": "2.-1.0"})),
        ("operator with unknown members", json!({"newer": {"a": 1}})),
    ];
    table(keys, "operator", &rows)
}

fn users(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let (account, user) = (keys.account.public(), keys.user.public());
    let publish = |subject: &str| json!({"pub": {"allow": [subject]}});
    let subscribe = |subject: &str| json!({"sub": {"deny": [subject]}});
    let time = |start: &str, end: &str| json!({"times": [{"start": start, "end": end}]});
    let src = |network: &str| json!({"src": [network]});
    let rows = [
        ("scoped user", json!({"subs": 0, "data": 0, "payload": 0, "issuer_account": account})),
        ("scoped user with rights of its own", json!({"issuer_account": account, "pub": {"allow": ["a"]}})),
        ("user with a template's function", publish("up.{{tag(site)}}.x")),
        ("user that publishes nowhere", publish("")),
        ("user that publishes to two dots", publish("a..b")),
        ("user that publishes to a dot", publish(".a")),
        ("user that publishes behind a wildcard", publish("a.>.b")),
        ("user that publishes to half a wildcard", publish("a*.b")),
        ("user that publishes to a tab", publish("a.\tb")),
        ("user that publishes to a queue", publish("a q")),
        ("user that subscribes to a queue", subscribe("a q")),
        ("user that subscribes to two queues", subscribe("a q r")),
        ("user that subscribes to an empty queue", subscribe("a ")),
        ("user that subscribes to a queue with dots", subscribe("a q..r")),
        ("user that answers", json!({"resp": {"max": -1, "ttl": -1}})),
        ("user that answers for a text", json!({"resp": {"max": 1, "ttl": "1s"}})),
        ("user of a network", src("10.0.0.0/8")),
        ("user of networks in a text", json!({"src": "10.0.0.0/8, ::1/128"})),
        ("user of a wrong network in a text", json!({"src": "10.0.0.0/8, x"})),
        ("user of an address", src("10.0.0.1")),
        ("user of too many bits", src("10.0.0.0/33")),
        ("user of a network with zeros before it", src("010.0.0.0/8")),
        ("user of bits with a sign", src("10.0.0.0/+8")),
        ("user of bits with a zero before them", src("10.0.0.0/08")),
        ("user of a network with a zone", src("fe80::1%eth0/64")),
        ("user of a mapped network", src("::ffff:10.0.0.0/104")),
        ("user with times", time("8:00:00", "17:30:00.5")),
        ("user with a time of one digit", time("08:00:00", "8:0:0")),
        ("user with an end too late", time("08:00:00", "24:00:00")),
        ("user with a second too many", time("08:00:00", "09:00:60")),
        ("user without an end", time("08:00:00", "")),
        ("user with a null as time", json!({"times": [null]})),
        ("user in no time zone", json!({"times_location": "Mars/Base"})),
        ("user in a time zone by path", json!({"times_location": "../x"})),
        ("user in universal time", json!({"times_location": "UTC"})),
        ("user of a user", json!({"issuer_account": user})),
        ("user with unknown connections", json!({"allowed_connection_types": ["CARRIER_PIGEON"]})),
        ("user with negative limits", json!({"subs": -7})),
        ("user with tags in a text", json!({"tags": "a"})),
        ("user with a null among its tags", json!({"tags": [null]})),
    ];
    let mut cases = table(keys, "user", &rows)?;
    cases.push(keys.case("user called by a wildcard", "user", &json!({"name": "*"}))?);
    Ok(cases)
}

fn activations(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let rows = [
        ("activation by a signing key", json!({"issuer_account": keys.exporter.public()})),
        ("activation of a user's account", json!({"issuer_account": keys.user.public()})),
        ("activation of no kind", json!({"kind": null})),
        ("activation of another kind", json!({"kind": "other"})),
        ("activation of nothing", json!({"subject": ""})),
        ("activation of a service", json!({"kind": "service", "subject": "a.*"})),
    ];
    table(keys, "activation", &rows)
}

fn authorizations(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let (account, user) = (keys.account.public(), keys.user.public());
    let requests = [
        ("request for nobody", json!({"user_nkey": ""})),
        ("request for an account", json!({"user_nkey": account})),
        ("request with a client", json!({"client_info": {"id": 7}, "connect_opts": {"protocol": 1}})),
        ("request with a client of negative number", json!({"client_info": {"id": -7}})),
    ];
    let mut cases = table(keys, "authorization_request", &requests)?;
    let responses = [
        ("response with an error", json!({"jwt": "", "error": "no"})),
        ("response with both", json!({"error": "no"})),
        ("response with neither", json!({"jwt": ""})),
        ("response of an account", json!({"issuer_account": account})),
        ("response of a user", json!({"issuer_account": user})),
    ];
    cases.extend(table(keys, "authorization_response", &responses)?);
    let kind = "authorization_response";
    cases.push(keys.case("response about an account", kind, &json!({"sub": account}))?);
    cases.push(keys.case("response for nobody", kind, &json!({"aud": ""}))?);
    cases.push(keys.case("response for an account", kind, &json!({"aud": account}))?);
    cases.push(keys.case("response too late", kind, &json!({"exp": 1}))?);
    Ok(cases)
}
