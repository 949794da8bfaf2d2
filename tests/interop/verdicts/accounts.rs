//! Accounts but for what they share: limits, keys, mappings, who decides about connections.

use bulkhead_claims::KeyKind;
use serde_json::{Value, json};

use super::odd_keys::{curve_key, no_point, weak_key};
use super::{Case, Keys, table};

pub(super) fn cases(keys: &Keys) -> anyhow::Result<Vec<Case>> {
    let mut rows = limits();
    rows.extend(signing_keys(keys));
    rows.extend(mappings());
    rows.extend(authorization(keys));
    rows.extend(rest(keys));
    table(keys, "account", &rows)
}

fn limits() -> Vec<(&'static str, Value)> {
    let import = json!([{"subject": "a", "account": "A", "type": "stream"}]);
    let export = json!([{"subject": "a.*", "type": "stream"}]);
    vec![
        ("account without limits", json!({"limits": null})),
        ("account with an import and no limits", json!({"limits": null, "imports": import})),
        ("account with an import too many", json!({"limits": {"imports": 0}, "imports": import})),
        ("account with as many imports as allowed", json!({"limits": {"imports": 1}, "imports": import})),
        ("account with an export too many", json!({"limits": {"exports": 0}, "exports": export})),
        ("account with a limit below -1", json!({"limits": {"imports": -5}})),
        ("account with a forbidden wildcard", json!({"limits": {"exports": 9, "wildcards": false}, "exports": export})),
        ("account with unlimited wildcards", json!({"limits": {"wildcards": false}, "exports": export})),
        ("account with tiers", json!({"limits": {"tiered_limits": {"R1": {"disk_storage": 1}}}})),
        ("account with tiers and flat limits", json!({"limits": {"disk_storage": 1, "tiered_limits": {"R1": {}}}})),
        ("account with a tier without a name", json!({"limits": {"tiered_limits": {"": {}}}})),
        ("account with a limit in a text", json!({"limits": {"conn": "1"}})),
    ]
}

fn signing_keys(keys: &Keys) -> Vec<(&'static str, Value)> {
    let (account, other, user) = (keys.account.public(), keys.exporter.public(), keys.user.public());
    let scope = |kind: &str, key: &str| json!({"kind": kind, "key": key, "role": "x", "template": {}});
    let list = |list: Value| json!({"signing_keys": list});
    let template = json!({"pub": {"allow": ["a..b", "{{Name()}}"]}, "src": ["x"], "times": [{}]});
    vec![
        ("account with keys in any order", list(json!([scope("user_scope", other), account]))),
        ("account with keys in the other order", list(json!([account, scope("user_scope", other)]))),
        ("account with a key twice", list(json!([scope("user_scope", other), other]))),
        ("account with a user's signing key", list(json!([user]))),
        ("account with a user's scoped key", list(json!([scope("user_scope", user)]))),
        ("account with a scope of another kind", list(json!([scope("other_scope", other)]))),
        ("account with a scope of no kind", list(json!([{"key": other}]))),
        ("account with a scope without a key", list(json!([{"kind": "user_scope"}]))),
        ("account with a number as signing key", list(json!([7]))),
        ("account with a null as signing key", list(json!([null]))),
        ("account with a weak signing key", list(json!([weak_key(KeyKind::Account)]))),
        ("account with a signing key that is no point", list(json!([no_point()]))),
        (
            "account with a template that is wrong",
            list(json!([{"kind": "user_scope", "key": other, "role": "", "template": template}])),
        ),
        (
            "account with limits of a template",
            list(json!([{"kind": "user_scope", "key": other, "template": {"subs": 0, "resp": {"max": 1}}}])),
        ),
    ]
}

fn mappings() -> Vec<(&'static str, Value)> {
    let to = |targets: Value| json!({"mappings": {"a": targets}});
    vec![
        ("account with a mapping", to(json!([{"subject": "b", "weight": 100}]))),
        ("account with a mapping to nowhere", json!({"mappings": {"a": []}})),
        ("account with a weight of 101", to(json!([{"subject": "b", "weight": 101}]))),
        ("account with a weight of 256", to(json!([{"subject": "b", "weight": 256}]))),
        (
            "account with weights beyond 100",
            to(json!([{"subject": "b", "weight": 60}, {"subject": "c", "weight": 41}])),
        ),
        ("account with two full weights", to(json!([{"subject": "b"}, {"subject": "c"}]))),
        ("account with a full weight by cluster", to(json!([{"subject": "b"}, {"subject": "c", "cluster": "x"}]))),
        ("account with a mapping from two dots", json!({"mappings": {"a..b": [{"subject": "b"}]}})),
        ("account with a mapping to nothing", to(json!([{"weight": 1}]))),
    ]
}

fn authorization(keys: &Keys) -> Vec<(&'static str, Value)> {
    let (account, user) = (keys.account.public(), keys.user.public());
    let who =
        |users: Value, accounts: Value| json!({"authorization": {"auth_users": users, "allowed_accounts": accounts}});
    let curve = |key: &str| json!({"authorization": {"xkey": key}});
    vec![
        ("account with who decides", who(json!([user]), json!([account]))),
        ("account with accounts and nobody who decides", who(json!([]), json!([account]))),
        ("account with an account that decides", who(json!([account]), json!([]))),
        ("account with a user as account", who(json!([user]), json!([user]))),
        ("account with every account", who(json!([user]), json!(["*"]))),
        ("account with every account and one more", who(json!([user]), json!(["*", account]))),
        ("account with a curve key", curve(&curve_key())),
        ("account with an account as curve key", curve(account)),
    ]
}

fn rest(keys: &Keys) -> Vec<(&'static str, Value)> {
    let trace = |destination: &str, sampling: i64| json!({"trace": {"dest": destination, "sampling": sampling}});
    let traffic = |whose: &str| json!({"cluster_traffic": whose});
    let page = |url: &str| json!({"info_url": url});
    let user = keys.user.public();
    vec![
        ("account with a trace", trace("a.b", 0)),
        ("account with a trace to a wildcard", trace("a.*", 1)),
        ("account with a trace to nowhere", trace("", 1)),
        ("account with a trace of 101 percent", trace("a", 101)),
        ("account with traffic of its own", traffic("owner")),
        ("account with unknown traffic", traffic("other")),
        ("account with traffic of nobody", traffic("")),
        ("account with revocations", json!({"revocations": {"*": 5, "x": -1, user: 9}})),
        ("account with a revocation in a text", json!({"revocations": {user: "9"}})),
        ("account with default permissions", json!({"default_permissions": {"sub": {"allow": ["a q"]}}})),
        ("account with wrong defaults", json!({"default_permissions": {"pub": {"deny": ["a q"]}}})),
        ("account with a long description", json!({"description": "x".repeat(8 * 1024 + 1)})),
        ("account with the longest description", json!({"description": "x".repeat(8 * 1024)})),
        ("account with a page", page("https://host:80/x?y#z")),
        ("account with a page of no host", page("https:///x")),
        ("account with a page by mail", page("mailto:x@host")),
        ("account with a page without protocol", page("host/x")),
        ("account with a page of no port", page("https://host:x")),
        ("account with half an escape", page("https://host/%z")),
        ("account with a page and a space", page("https://host/a b")),
        ("account with a page at six", page("https://[::1]:80/x")),
        ("account with a tab in its page", page("https://host/\t")),
        ("account with unknown members", json!({"newer": [1], "limits": {"newer": -1}})),
    ]
}
