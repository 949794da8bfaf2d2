//! Each member of each kind of claims by itself: the library's are ours, ours are the library's, and each is read.
//!
//! Members that we do not know are carried along when claims are signed again, so a comparison of whole claims would
//! not miss one that we forgot.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use bulkhead_claims::{
    AccountBody, ActivationBody, AuthorizationRequestBody, AuthorizationResponseBody, ClaimKind, DecodeError,
    GenericBody, OperatorBody, UserBody, decode,
};
use serde_json::{Value, json};

use crate::full::full_claims;
use crate::tool::{ClaimCheck, body_of, with_body};

/// The places of a member in a body, as JSON pointers.
fn places(body: &Value, member: &str) -> Vec<String> {
    let steps = member.replace("[]", ".[]").replace("{}", ".{}");
    let mut found = vec![(String::new(), body)];
    for step in steps.split('.') {
        found = found.into_iter().flat_map(|(place, value)| below(&place, value, step)).collect();
    }
    found.into_iter().map(|(place, _)| place).collect()
}

fn below<'a>(place: &str, value: &'a Value, step: &str) -> Vec<(String, &'a Value)> {
    let escaped = |name: &str| format!("{place}/{}", name.replace('~', "~0").replace('/', "~1"));
    match (step, value) {
        ("[]", Value::Array(items)) => {
            items.iter().enumerate().map(|(index, item)| (format!("{place}/{index}"), item)).collect()
        }
        ("{}", Value::Object(map)) => map.iter().map(|(name, value)| (escaped(name), value)).collect(),
        (name, Value::Object(map)) => map.get(name).map(|value| (escaped(name), value)).into_iter().collect(),
        _ => vec![],
    }
}

fn read_as(kind: &str, token: &str) -> Result<(), DecodeError> {
    match ClaimKind::of_name(kind) {
        ClaimKind::Operator => decode::<OperatorBody>(token).map(drop),
        ClaimKind::Account => decode::<AccountBody>(token).map(drop),
        ClaimKind::User => decode::<UserBody>(token).map(drop),
        ClaimKind::Activation => decode::<ActivationBody>(token).map(drop),
        ClaimKind::AuthorizationRequest => decode::<AuthorizationRequestBody>(token).map(drop),
        ClaimKind::AuthorizationResponse => decode::<AuthorizationResponseBody>(token).map(drop),
        ClaimKind::Generic => decode::<GenericBody>(token).map(drop),
    }
}

/// Whether whoever reads the token looks at this member: a value of another type is refused before the signature.
fn is_read(kind: &str, token: &str, body: &Value, place: &str) -> anyhow::Result<bool> {
    let mut changed = body.clone();
    let value = changed.pointer_mut(place).context("the place of a member")?;
    *value = if value.is_array() || value.is_object() { json!(7) } else { json!({"other": 7}) };
    match read_as(kind, &with_body(token, &changed)?) {
        Err(DecodeError::Body(..) | DecodeError::Kind { .. }) => Ok(true),
        Err(DecodeError::Signature) => Ok(false),
        other => anyhow::bail!("{place} of another type: {other:?}"),
    }
}

#[test]
fn every_member_of_the_library_is_generated_and_read() -> anyhow::Result<()> {
    let Some(go) = ClaimCheck::find()? else { return Ok(()) };
    let mut tokens: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
    for seed in ["1", "2", "3"] {
        for line in go.generate(seed)? {
            let (kind, token) = (line["kind"].as_str().context("kind")?, line["token"].as_str().context("token")?);
            tokens.entry(kind.to_owned()).or_default().push((token.to_owned(), body_of(token)?));
        }
    }
    let mut missed = Vec::new();
    for (kind, members) in go.members()? {
        let tokens = tokens.get(&kind).with_context(|| format!("no {kind} is generated"))?;
        for member in members {
            let place =
                tokens.iter().find_map(|(token, body)| Some((token, body, places(body, &member).into_iter().next()?)));
            match place {
                None => missed.push(format!("{kind}: {member} is never generated")),
                Some((token, body, place)) if !is_read(&kind, token, body, &place)? => {
                    missed.push(format!("{kind}: {member} is not read"));
                }
                Some(_) => {}
            }
        }
        // The control: a member that nobody knows is not read.
        let (token, body) = &tokens[0];
        let mut body = body.clone();
        body["nats"]["newer"] = json!(1);
        ensure!(!is_read(&kind, token, &body, "/nats/newer")?, "{kind}: a member that nobody knows is read");
    }
    ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}

/// Every member in a body; in `maps` are those whose own members are free.
fn members_of(value: &Value, at: &str, maps: &BTreeSet<&str>, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => {
            let at = format!("{at}[]");
            for item in items {
                members_of(item, &at, maps, found);
                found.insert(at.clone());
            }
        }
        Value::Object(members) => {
            let map = format!("{at}{{}}");
            for (name, member) in members {
                let dot = if at.is_empty() { "" } else { "." };
                let at = if maps.contains(map.as_str()) { map.clone() } else { format!("{at}{dot}{name}") };
                members_of(member, &at, maps, found);
                found.insert(at);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn our_members_are_those_of_the_library() -> anyhow::Result<()> {
    let Some(go) = ClaimCheck::find()? else { return Ok(()) };
    let mut theirs = go.members()?;
    for (kind, claims) in full_claims()? {
        let theirs: BTreeSet<String> =
            theirs.remove(kind).with_context(|| format!("{kind} in Go"))?.into_iter().collect();
        let maps = theirs.iter().filter(|member| member.ends_with("{}")).map(String::as_str).collect();
        let mut ours = BTreeSet::new();
        members_of(&claims, "", &maps, &mut ours);
        let only_theirs: Vec<_> = theirs.difference(&ours).collect();
        let only_ours: Vec<_> = ours.difference(&theirs).collect();
        ensure!(only_theirs.is_empty() && only_ours.is_empty(), "{kind}: theirs {only_theirs:?}, ours {only_ours:?}");
    }
    ensure!(theirs.is_empty(), "kinds that we do not have: {:?}", theirs.keys());
    Ok(())
}
