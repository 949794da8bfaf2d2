//! Our claims beside the Go library's: what we sign it reads without complaint, and what it signs survives our hands.

#[path = "interop/chain.rs"]
mod chain;
#[path = "interop/full.rs"]
mod full;
#[path = "interop/members.rs"]
mod members;
#[path = "../fuzz/mutations.rs"]
mod mutations;
#[path = "interop/tool.rs"]
mod tool;
#[path = "interop/verdicts/mod.rs"]
mod verdicts;

use std::path::Path;

use anyhow::Context;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::operator::{OperatorStore, UserRequest};
use bulkhead_accounts::plan::{Plan, PlanName};
use bulkhead_accounts::render::{core_account, intake_account, tenant_account};
use bulkhead_bus::Role;
use bulkhead_claims::{ClaimKind, KeyKind, SigningKey, decode_any, encode_any};
use serde_json::Value;

use tool::ClaimCheck;

const NOW: i64 = 1_800_000_000;

/// Without what is the same to Go whether it is there or not; lists that have no order in one.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept =
                map.iter().map(|(name, value)| (name.clone(), normal(value))).filter(|(_, value)| is_said(value));
            Value::Object(kept.collect())
        }
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(normal).collect();
            list.sort_by_key(ToString::to_string);
            Value::Array(list)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn is_said(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is_set) => *is_set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Every kind of token that a platform has.
fn our_tokens(folder: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    let store = OperatorStore::open(folder.to_owned(), NOW)?;
    let mut tokens = vec![("operator", store.token.clone()), ("account", store.ensure_system(NOW)?.token)];
    let core = store.ensure_account("core", &Role::CORE, NOW, |_, keys| core_account(keys, HubSize::Three))?;
    let mut imported = Vec::new();
    for name in PlanName::ALL {
        let slug = format!("tenant-{name}");
        let render = |own: &str, keys: &[_]| tenant_account(&Plan::of(name), own, core.key.as_str(), keys);
        let account = store.ensure_account(&slug, &Role::TENANT, NOW, render)?;
        imported.push((slug, account.key.to_string()));
        tokens.push(("account", account.token));
    }
    let intake = store.ensure_account("intake-1", &[Role::CoreLive], NOW, |_, keys| intake_account(keys, &imported))?;
    tokens.extend([("account", core.token), ("account", intake.token)]);
    let site = "oslo".parse()?;
    for role in Role::TENANT {
        let user =
            UserRequest { account: "tenant-pro", role, name: "somebody", site: Some(&site), expires: NOW + 86_400 };
        let text = store.issue_user(&user, NOW)?;
        tokens.push(("user", text.text.lines().nth(1).context("a token")?.to_owned()));
        // Revoked and with two keys for the role.
        tokens.push(("account", store.revoke_user("tenant-pro", &text.public, NOW)?.token));
        tokens.push(("account", store.rotate_role("tenant-pro", role, NOW)?.token));
    }
    Ok(tokens)
}

#[test]
fn the_go_library_reads_every_token_of_a_platform_without_complaint() -> anyhow::Result<()> {
    let Some(go) = ClaimCheck::find()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let tokens = our_tokens(folder.path())?;
    let answers = go.see(&tokens)?;
    for ((kind, token), seen) in tokens.iter().zip(&answers) {
        anyhow::ensure!(!is_said(&seen["error"]), "{kind}: {seen}");
        let is_blocking = |issue: &Value| issue["blocking"] == true;
        let blocking: Vec<&Value> =
            seen["issues"].as_array().into_iter().flatten().filter(|issue| is_blocking(issue)).collect();
        anyhow::ensure!(blocking.is_empty(), "{kind}: {blocking:?}");
        let ours = bulkhead_claims::decode_json(token)?;
        let ours = normal(&serde_json::to_value(&ours)?);
        assert_eq!(ours, normal(&seen["claims"]), "{kind}");
    }
    // The control: a token that says something else is not the same, and one that was cut is refused.
    let (one, other) = (normal(&answers[1]["claims"]), normal(&answers[2]["claims"]));
    assert_ne!(one, other);
    let (kind, token) = &tokens[2];
    let cut = go.see(&[(kind, token[..token.len() - 9].to_owned())])?;
    anyhow::ensure!(is_said(&cut[0]["error"]), "{cut:?}");
    Ok(())
}

/// Who issues claims of a kind, as a rule.
fn issuer(kind: ClaimKind) -> KeyKind {
    kind.issuers().map_or(KeyKind::Account, |issuers| issuers[0])
}

#[test]
fn what_the_go_library_signs_is_the_same_to_it_after_we_have_signed_it_again() -> anyhow::Result<()> {
    let Some(go) = ClaimCheck::find()? else { return Ok(()) };
    let keys = [KeyKind::Operator, KeyKind::Account, KeyKind::Server].map(SigningKey::generate);
    let mut differences = Vec::new();
    for seed in ["1", "2", "3"] {
        let made = go.generate(seed)?;
        let mut again = Vec::new();
        let mut before = Vec::new();
        for line in &made {
            let (kind, token) = (line["kind"].as_str().context("kind")?, line["token"].as_str().context("token")?);
            // The library reads generic claims by another door, which signs as version 1 did.
            if kind == "generic" {
                continue;
            }
            match decode_any(token) {
                Ok(mut claims) => {
                    let issuer = issuer(claims.kind());
                    let key = keys.iter().find(|key| key.kind() == issuer).context("a key of the issuer's kind")?;
                    again.push((kind, encode_any(&mut claims, key).with_context(|| format!("{kind}: {line}"))?));
                    before.push(&line["claims"]);
                }
                Err(error) => differences.push(format!("{kind} is not read: {error}: {line}")),
            }
        }
        for (((kind, _), before), seen) in again.iter().zip(&before).zip(go.see(&again)?) {
            let stripped = |claims: &Value| {
                let mut claims = normal(claims);
                for signed in ["iss", "jti", "iat"] {
                    claims.as_object_mut().map(|claims| claims.remove(signed));
                }
                claims
            };
            if stripped(before) != stripped(&seen["claims"]) {
                differences.push(format!("{kind}:\n  {}\n  {}", stripped(before), stripped(&seen["claims"])));
            }
        }
    }
    let shown: Vec<String> = differences.iter().take(5).map(|text| text.chars().take(1_500).collect()).collect();
    anyhow::ensure!(differences.is_empty(), "{} differ:\n{}", differences.len(), shown.join("\n"));
    Ok(())
}
