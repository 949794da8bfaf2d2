//! One table of good and bad claims, judged by the Go library and by us with the library's rules: the same verdict, or
//! a difference that is listed with its reason.

mod accounts;
mod differences;
mod mutated;
mod odd_keys;
mod others;
mod reading;
mod sharing;

use std::collections::BTreeMap;
use std::error::Error;

use anyhow::{Context, ensure};
use bulkhead_claims::validate::{Level, Profile, validate_any};
use bulkhead_claims::{KeyKind, SigningKey, decode_any};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::tool::{ClaimCheck, sign};
use differences::{DIFFERENCES, Difference};

/// From bad to good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Not decoded.
    Refused,
    /// Decoded, with a blocking issue.
    Invalid,
    /// Nothing is wrong but the time.
    NotNow,
    Valid,
}

struct Case {
    name: &'static str,
    kind: &'static str,
    token: String,
}

/// Whose keys sign, and about whom.
pub(crate) struct Keys {
    pub(crate) operator: SigningKey,
    pub(crate) account: SigningKey,
    pub(crate) exporter: SigningKey,
    pub(crate) user: SigningKey,
    pub(crate) server: SigningKey,
}

impl Keys {
    pub(crate) fn generate() -> Self {
        Self {
            operator: SigningKey::generate(KeyKind::Operator),
            account: SigningKey::generate(KeyKind::Account),
            exporter: SigningKey::generate(KeyKind::Account),
            user: SigningKey::generate(KeyKind::User),
            server: SigningKey::generate(KeyKind::Server),
        }
    }

    /// Who signs claims of a kind as a rule.
    fn issuer(&self, kind: &str) -> &SigningKey {
        match kind {
            "user" | "authorization_response" => &self.account,
            "activation" => &self.exporter,
            "authorization_request" => &self.server,
            _ => &self.operator,
        }
    }

    /// Claims with which nothing is wrong.
    fn good(&self, kind: &str) -> Value {
        let (subject, mut nats) = match kind {
            "operator" => (&self.operator, json!({"system_account": self.account.public()})),
            "account" => {
                let limits = json!({"subs": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1});
                (&self.account, json!({"limits": limits}))
            }
            "user" => (&self.user, json!({"subs": -1, "data": -1, "payload": -1})),
            "activation" => (&self.account, json!({"subject": "a.>", "kind": "stream"})),
            "authorization_request" => {
                let server = json!({"name": "s", "host": "h", "id": self.server.public()});
                (&self.user, json!({"server_id": server, "user_nkey": self.user.public()}))
            }
            "authorization_response" => (&self.user, json!({"jwt": "x"})),
            _ => (&self.operator, json!({"accounts": [self.account.public()]})),
        };
        nats["type"] = kind.into();
        nats["version"] = 2.into();
        let mut claims = json!({"jti": "x", "iat": 1, "iss": self.issuer(kind).public(), "name": "x"});
        claims["sub"] = subject.public().into();
        claims["aud"] = self.server.public().into();
        claims["nats"] = nats;
        claims
    }

    /// Good claims with changes; a change to `null` takes a member away.
    pub(crate) fn changed(&self, kind: &str, changes: &Value) -> Value {
        let mut claims = self.good(kind);
        merge(&mut claims, changes);
        claims
    }

    fn case(&self, name: &'static str, kind: &'static str, changes: &Value) -> anyhow::Result<Case> {
        Ok(Case { name, kind, token: self.token(kind, changes)? })
    }

    fn token(&self, kind: &str, changes: &Value) -> anyhow::Result<String> {
        sign(&header(), &self.changed(kind, changes), self.issuer(kind))
    }
}

pub(crate) fn header() -> Value {
    json!({"typ": "JWT", "alg": "ed25519-nkey"})
}

fn merge(value: &mut Value, changes: &Value) {
    let (Value::Object(members), Value::Object(changes)) = (&mut *value, changes) else {
        changes.clone_into(value);
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name).or_insert(Value::Null), change);
        }
    }
}

/// A table of changes to good claims of one kind.
fn table(keys: &Keys, kind: &'static str, rows: &[(&'static str, Value)]) -> anyhow::Result<Vec<Case>> {
    rows.iter().map(|(name, nats)| keys.case(name, kind, &json!({"nats": nats}))).collect()
}

fn ours(kind: &str, token: &str, now: i64) -> (Verdict, String) {
    let claims = match decode_any(token) {
        Ok(claims) if claims.kind().name() == kind => claims,
        Ok(claims) => return (Verdict::Refused, format!("is {}", claims.kind())),
        Err(error) => return (Verdict::Refused, format!("{error}: {:?}", error.source())),
    };
    let issues = validate_any(&claims, now, Profile::Library);
    let has = |level| issues.iter().any(|issue| issue.level == level);
    let verdict = match (has(Level::Blocking), has(Level::Time)) {
        (true, _) => Verdict::Invalid,
        (false, true) => Verdict::NotNow,
        (false, false) => Verdict::Valid,
    };
    (verdict, issues.iter().map(|issue| format!("{issue}; ")).collect())
}

fn theirs(seen: &Value) -> (Verdict, String) {
    if let Some(error) = seen["error"].as_str().filter(|error| !error.is_empty()) {
        return (Verdict::Refused, error.to_owned());
    }
    let issues: Vec<&Value> = seen["issues"].as_array().into_iter().flatten().collect();
    let has = |what: &str| issues.iter().any(|issue| issue[what] == true);
    let verdict = match (has("blocking"), has("time")) {
        (true, _) => Verdict::Invalid,
        (false, true) => Verdict::NotNow,
        (false, false) => Verdict::Valid,
    };
    (verdict, issues.iter().map(|issue| format!("{}; ", issue["description"])).collect())
}

/// The listed differences by the name of their case.
fn listed_differences() -> BTreeMap<&'static str, &'static Difference> {
    DIFFERENCES.iter().flat_map(|one| one.cases.iter().map(move |case| (*case, one))).collect()
}

#[test]
fn the_go_library_and_we_come_to_the_same_verdict() -> anyhow::Result<()> {
    let Some(go) = ClaimCheck::find()? else { return Ok(()) };
    let keys = Keys::generate();
    let mut cases = reading::cases(&keys)?;
    cases.extend(others::cases(&keys)?);
    cases.extend(accounts::cases(&keys)?);
    cases.extend(sharing::cases(&keys)?);
    let tokens: Vec<(&str, String)> = cases.iter().map(|case| (case.kind, case.token.clone())).collect();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut listed = listed_differences();
    let mut wrong = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (case, seen) in cases.iter().zip(go.see(&tokens)?) {
        let ((ours, why), (theirs, their_why)) = (ours(case.kind, &case.token, now), theirs(&seen));
        let expected = listed.remove(case.name);
        let is_expected = expected.map_or(ours == theirs, |one| (one.ours, one.theirs) == (ours, theirs));
        if !is_expected {
            let listed = expected.map_or("not listed", |one| one.why);
            let told = format!("ours {ours:?}: {why}\n  Go {theirs:?}: {their_why}\n  {listed}");
            wrong.push(format!("{} {}:\n  {told}", case.kind, case.name));
        }
        *counts.entry(case.name).or_default() += 1;
        *counts.entry(if theirs == Verdict::Valid { "good" } else { "bad" }).or_default() += 1;
    }
    ensure!(wrong.is_empty(), "{} verdicts of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    ensure!(listed.is_empty(), "differences of no case: {:?}", listed.keys());
    // The controls: names are told apart, and the table has enough of both.
    let twice = counts.iter().find(|(name, count)| **count > 1 && !matches!(**name, "good" | "bad"));
    ensure!(twice.is_none(), "a case is there twice: {twice:?}");
    let (good, bad) = (counts.get("good").context("good cases")?, counts.get("bad").context("bad cases")?);
    ensure!(*good > 40 && *bad > 40, "{good} good and {bad} bad cases");
    Ok(())
}
