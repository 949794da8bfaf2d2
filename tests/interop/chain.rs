//! Who may be trusted because of the claims above: the same verdict as the Go library's, or a listed difference.

use std::collections::BTreeMap;

use anyhow::ensure;
use bulkhead_claims::validate::{check_account, check_user, is_blocking};
use bulkhead_claims::{AccountBody, KeyKind, OperatorBody, SigningKey, UserBody, decode};
use serde_json::{Value, json};

use crate::tool::{ClaimCheck, sign};
use crate::verdicts::{Keys, header};

/// Changes to a chain with which nothing is wrong.
struct Chain<'a> {
    name: &'static str,
    /// Members of each `nats`.
    operator: Value,
    account: Value,
    user: Value,
    account_signer: &'a SigningKey,
    user_signer: &'a SigningKey,
    iat: i64,
}

impl<'a> Chain<'a> {
    fn good(name: &'static str, keys: &'a Keys) -> Self {
        let (operator, account, user) = (json!({}), json!({}), json!({}));
        let (account_signer, user_signer) = (&keys.operator, &keys.account);
        Self { name, operator, account, user, account_signer, user_signer, iat: 10 }
    }

    fn tokens(&self, keys: &Keys) -> anyhow::Result<Value> {
        let token = |kind: &str, nats: &Value, signer: &SigningKey| {
            let claims = json!({"iss": signer.public(), "iat": self.iat, "nats": nats});
            sign(&header(), &keys.changed(kind, &claims), signer)
        };
        Ok(json!({
            "operator": token("operator", &self.operator, &keys.operator)?,
            "account": token("account", &self.account, self.account_signer)?,
            "user": token("user", &self.user, self.user_signer)?,
        }))
    }
}

/// Members without limits, as a scoped key wants them.
fn scoped(keys: &Keys, own: &Value) -> Value {
    let mut user = json!({"subs": null, "data": null, "payload": null, "issuer_account": keys.account.public()});
    if let (Some(user), Some(own)) = (user.as_object_mut(), own.as_object()) {
        user.extend(own.clone());
    }
    user
}

fn scope(keys: &Keys, subject: &str) -> Value {
    let template = json!({"pub": {"allow": [subject]}});
    json!({"kind": "user_scope", "key": keys.exporter.public(), "role": "x", "template": template})
}

fn accounts<'a>(keys: &'a Keys, other: &'a SigningKey) -> Vec<Chain<'a>> {
    let good = |name| Chain::good(name, keys);
    let strict = |signing: &[&str]| json!({"signing_keys": signing, "strict_signing_key_usage": true});
    let (own, second) = (keys.operator.public(), other.public());
    vec![
        good("by the operator and the account"),
        Chain { operator: strict(&[second]), ..good("by a strict operator") },
        Chain { operator: strict(&[second]), account_signer: other, ..good("by a strict operator's key") },
        Chain { operator: strict(&[own]), ..good("by a strict operator that is its own key") },
        Chain { account_signer: other, ..good("by another operator") },
        Chain {
            operator: json!({"system_account": keys.account.public()}),
            account: json!({"limits": {"disk_storage": 1}}),
            ..good("of a system account with JetStream")
        },
    ]
}

fn users(keys: &Keys) -> Vec<Chain<'_>> {
    let good = |name| Chain::good(name, keys);
    let (account, key) = (keys.account.public(), keys.exporter.public());
    let by_key = |name, signing_keys: Value, user: Value| Chain {
        account: json!({"signing_keys": signing_keys}),
        user,
        user_signer: &keys.exporter,
        ..good(name)
    };
    let plain = json!([key]);
    let one = json!([scope(keys, "a")]);
    let own = |own: Value| scoped(keys, &own);
    vec![
        Chain { user: json!({"issuer_account": account}), ..good("by the account, which is named") },
        Chain { user: json!({"issuer_account": key}), ..good("by the account, another is named") },
        by_key("by a key", plain.clone(), json!({"issuer_account": account})),
        by_key("by a key, no account is named", plain.clone(), json!({})),
        by_key("by a key, another account is named", plain, json!({"issuer_account": key})),
        by_key("by a key that is none of the account's", json!([]), json!({"issuer_account": account})),
        by_key("by a scoped key", one.clone(), own(json!({}))),
        by_key("by a scoped key with permissions", one.clone(), own(json!({"pub": {"allow": ["a"]}}))),
        by_key("by a scoped key with limits", one.clone(), own(json!({"subs": -1}))),
        by_key("by a scoped key as a bearer", one.clone(), own(json!({"bearer_token": true}))),
        by_key("by a scoped key with an empty answer", one.clone(), own(json!({"resp": {}}))),
        by_key("by a scoped key with an empty list", one.clone(), own(json!({"src": []}))),
        by_key("by a scoped key with tags", one, own(json!({"tags": ["a:b"]}))),
        by_key("by a key that is scoped last", json!([key, scope(keys, "a")]), json!({"issuer_account": account})),
        by_key("by a key that is plain last", json!([scope(keys, "a"), key]), json!({"issuer_account": account})),
        by_key("by a scoped key whose tag is missing", json!([scope(keys, "{{tag(site)}}.x")]), own(json!({}))),
        by_key(
            "by a scoped key whose tag is a wildcard",
            json!([scope(keys, "{{tag(site)}}.x")]),
            own(json!({"tags": ["site:*"]})),
        ),
    ]
}

fn revoked(keys: &Keys) -> Vec<Chain<'_>> {
    let good = |name| Chain::good(name, keys);
    let at = |key: &str, until: i64| json!({"revocations": {key: until}});
    let user = keys.user.public();
    vec![
        Chain { account: at(user, 9), ..good("revoked a second before") },
        Chain { account: at(user, 10), ..good("revoked in the same second") },
        Chain { account: at("*", 10), ..good("revoked with everybody") },
        Chain { account: at(keys.account.public(), 10), ..good("beside somebody who is revoked") },
        Chain { iat: 0, ..good("without a time of issue") },
    ]
}

/// Chains that we judge otherwise, and why; account first, then user: ours, and the library's.
const DIFFERENCES: [(&str, [bool; 2], [bool; 2], &str); 9] = [
    ("by a strict operator", [false, false], [false, true], "nsc wants a signing key of the account as well"),
    ("by a strict operator's key", [true, false], [true, true], "as before"),
    ("by a strict operator that is its own key", [true, false], [false, true], "servers trust every listed key"),
    ("of a system account with JetStream", [false, true], [true, true], "servers and nsc refuse it"),
    ("by the account, another is named", [true, false], [true, true], "servers look for the user there"),
    ("by a scoped key with an empty list", [true, true], [true, false], "an empty list says as much as none"),
    ("by a scoped key whose tag is missing", [true, false], [true, true], "servers drop the right"),
    ("by a scoped key whose tag is a wildcard", [true, false], [true, true], "servers fill it in as it is"),
    ("without a time of issue", [true, true], [true, false], "servers compare it as zero"),
];

fn ours(tokens: &Value) -> anyhow::Result<([bool; 2], String)> {
    let token = |name: &str| tokens[name].as_str().unwrap_or_default();
    let operator = decode::<OperatorBody>(token("operator"))?;
    let account = decode::<AccountBody>(token("account"))?;
    let user = decode::<UserBody>(token("user"))?;
    let issues = [check_account(&operator, &account), check_user(&operator, &account, &user)];
    let told = issues.iter().flatten().map(|issue| format!("{issue}; ")).collect();
    Ok((issues.map(|issues| !is_blocking(&issues)), told))
}

#[test]
fn the_go_library_and_we_trust_the_same_chains() -> anyhow::Result<()> {
    let Some(go) = ClaimCheck::find()? else { return Ok(()) };
    let keys = Keys::generate();
    let other = SigningKey::generate(KeyKind::Operator);
    let chains: Vec<Chain<'_>> =
        accounts(&keys, &other).into_iter().chain(users(&keys)).chain(revoked(&keys)).collect();
    let tokens = chains.iter().map(|chain| chain.tokens(&keys)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut listed: BTreeMap<&str, _> = DIFFERENCES.iter().map(|one| (one.0, (one.1, one.2))).collect();
    let mut wrong = Vec::new();
    let mut refused = 0;
    for ((chain, tokens), seen) in chains.iter().zip(&tokens).zip(go.judge(&tokens)?) {
        let (ours, told) = ours(tokens)?;
        let theirs = ["account", "user"].map(|link| seen[link] == true);
        let is_expected = match listed.remove(chain.name) {
            Some(expected) => expected == (ours, theirs) && ours != theirs,
            None => ours == theirs,
        };
        if !is_expected {
            wrong.push(format!("{}: ours {ours:?} {told} Go {theirs:?} {}", chain.name, seen["reason"]));
        }
        refused += usize::from(theirs != [true, true]);
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), chains.len(), wrong.join("\n"));
    ensure!(listed.is_empty(), "differences of no chain: {:?}", listed.keys());
    ensure!(refused > 9 && refused + 9 < chains.len(), "{refused} of {} are refused", chains.len());
    Ok(())
}
