//! Which live connections a change of an account closes, before it is made.
//!
//! Pure: what is predicted from claims and connections is compared with what really happens in tests/resolver.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::connections::{ConnectionFacts, ConnectionKind};

/// An account's claims before and after.
#[derive(Debug, Clone, Copy)]
pub struct AccountChange<'a> {
    /// Bodies: what is below `nats`.
    pub old: &'a Value,
    pub new: &'a Value,
    /// When the new token expires, in unix seconds. One that is expired already does nothing to a server that has the
    /// account in memory.
    pub expires: Option<i64>,
    pub now: i64,
}

/// Why a connection closes. Only the first reason of each is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Reason {
    /// No connections are allowed at all.
    Suspended,
    /// Its user is revoked, or all users that were issued until then.
    Revoked { until: i64 },
    /// The key that signed its user is no more.
    KeyRemoved { key: String },
    /// What its role may do changes: everybody of the role connects anew.
    ScopeChanged { role: String },
    /// It is among the newest, and there are more than are allowed.
    TooMany { allowed: usize },
    /// It is among the newest links, and there are more than are allowed.
    TooManyLeaves { allowed: usize },
    /// Bearer tokens are no longer admitted.
    Bearer,
    /// Later, when the account's token expires.
    Expires { at: i64 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suspended => f.write_str("the account is suspended"),
            Self::Revoked { until } => write!(f, "users issued until {until} are revoked"),
            Self::KeyRemoved { key } => write!(f, "signing key {key} is removed"),
            Self::ScopeChanged { role } => write!(f, "what role {role} may do changes"),
            Self::TooMany { allowed } => write!(f, "only {allowed} connections are allowed"),
            Self::TooManyLeaves { allowed } => write!(f, "only {allowed} leaf links are allowed"),
            Self::Bearer => f.write_str("bearer tokens are not admitted"),
            Self::Expires { at } => write!(f, "the account expires at {at}"),
        }
    }
}

/// A limit; `None` is unlimited. What is left out is 0.
fn limit(body: &Value, name: &str) -> Option<usize> {
    let limit = body["limits"][name].as_i64().unwrap_or(0);
    (limit >= 0).then(|| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Without what is the same to a server whether it is there or not.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let is_said = |value: &Value| match value {
                Value::Null => false,
                Value::Bool(is_set) => *is_set,
                Value::String(text) => !text.is_empty(),
                Value::Array(entries) => !entries.is_empty(),
                Value::Object(map) => !map.is_empty(),
                Value::Number(_) => true,
            };
            let entries = map.iter().map(|(name, value)| (name.clone(), normal(value)));
            Value::Object(entries.filter(|(_, value)| is_said(value)).collect())
        }
        Value::Array(entries) => Value::Array(entries.iter().map(normal).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Signing keys with their scopes; a plain key's scope is null.
fn scopes(body: &Value) -> BTreeMap<&str, Value> {
    let keys = body["signing_keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    let scope = |key: &'_ Value| if key.is_string() { Value::Null } else { normal(key) };
    keys.iter().filter_map(|key| Some((key.as_str().or_else(|| key["key"].as_str())?, scope(key)))).collect()
}

fn key_reason(change: &AccountChange<'_>, connection: &ConnectionFacts) -> Option<Reason> {
    let key = connection.issuer_key.as_str();
    // The account's own key signs where it may, and nothing of it changes.
    if key.is_empty() || key == connection.account {
        return None;
    }
    let (old, new) = (scopes(change.old), scopes(change.new));
    match (old.get(key), new.get(key)) {
        (_, None) => Some(Reason::KeyRemoved { key: key.to_owned() }),
        (Some(old), Some(new)) if old != new => {
            let role = new["role"].as_str().or(old["role"].as_str()).unwrap_or_default();
            Some(Reason::ScopeChanged { role: role.to_owned() })
        }
        (_, Some(_)) => None,
    }
}

fn revocation(change: &AccountChange<'_>, connection: &ConnectionFacts) -> Option<Reason> {
    let revoked = |user: &str| change.new["revocations"][user].as_i64();
    // When a bearer was issued is not known: better told in vain than not told.
    let is_before = |until: i64| connection.issued_at.is_none_or(|at| at <= until);
    let times = [revoked("*"), revoked(&connection.user)];
    let until = times.into_iter().flatten().find(|&until| is_before(until))?;
    Some(Reason::Revoked { until })
}

fn own_reason(change: &AccountChange<'_>, connection: &ConnectionFacts) -> Option<Reason> {
    if limit(change.new, "conn") == Some(0) {
        return Some(Reason::Suspended);
    }
    if let Some(reason) = revocation(change, connection).or_else(|| key_reason(change, connection)) {
        return Some(reason);
    }
    let no_bearers = change.new["limits"]["disallow_bearer"] == true;
    if no_bearers && connection.is_bearer {
        return Some(Reason::Bearer);
    }
    let at = change.expires.filter(|&at| at > change.now)?;
    Some(Reason::Expires { at })
}

/// Which of `connections`, all of the changed account, will be closed, and why. Servers count separately and close their
/// newest, so on a hub of several servers this is the least that closes: a few more may have to come back.
#[must_use]
pub fn blast_radius<'a>(
    change: &AccountChange<'_>,
    connections: &'a [ConnectionFacts],
) -> Vec<(&'a ConnectionFacts, Reason)> {
    let mut oldest_first: Vec<&ConnectionFacts> = connections.iter().collect();
    oldest_first.sort_by(|a, b| (a.since_ns, &a.server.name, a.cid).cmp(&(b.since_ns, &b.server.name, b.cid)));
    let (most, most_leaves) = (limit(change.new, "conn"), limit(change.new, "leaf"));
    // A server looks at this limit when another one tells it how many links that has, and at no other time.
    let is_spread = oldest_first.iter().any(|one| one.server.name != oldest_first[0].server.name);
    let most_leaves = most_leaves.filter(|_| is_spread);
    let mut leaves = 0;
    let mut closing = Vec::new();
    for (index, connection) in oldest_first.into_iter().enumerate() {
        let is_leaf = connection.kind == ConnectionKind::Leaf;
        leaves += usize::from(is_leaf);
        let too_many = most.filter(|&most| index >= most).map(|allowed| Reason::TooMany { allowed });
        let too_many_leaves =
            most_leaves.filter(|&most| is_leaf && leaves > most).map(|allowed| Reason::TooManyLeaves { allowed });
        let own = own_reason(change, connection);
        let (later, now) = match own {
            Some(Reason::Expires { .. }) => (own, None),
            other => (None, other),
        };
        if let Some(reason) = now.or(too_many).or(too_many_leaves).or(later) {
            closing.push((connection, reason));
        }
    }
    closing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::ServerFacts;
    use serde_json::json;

    fn connection(cid: u64, kind: ConnectionKind) -> ConnectionFacts {
        ConnectionFacts {
            server: ServerFacts { name: "hub-1".to_owned(), id: "N".to_owned(), version: String::new() },
            cid,
            kind,
            name: String::new(),
            user: format!("U{cid}"),
            user_name: String::new(),
            account: "A".to_owned(),
            issuer_key: "AK".to_owned(),
            role: None,
            issued_at: Some(10),
            is_bearer: cid == 3,
            host: String::new(),
            certificate: crate::resolver::ShownCertificate::default(),
            since_ns: i128::from(cid),
        }
    }

    fn body() -> Value {
        json!({
            "limits": {"conn": 10, "leaf": 2},
            "signing_keys": [{"key": "AK", "role": "viewer", "template": {"pub": {"allow": ["a"]}, "subs": -1}}, "AP"],
        })
    }

    fn check(edit: impl FnOnce(&mut Value), expected: &[(u64, Reason)]) {
        let (old, mut new) = (body(), body());
        edit(&mut new);
        let mut all: Vec<_> = [3, 1, 2].map(|cid| connection(cid, ConnectionKind::Client)).into();
        all.extend([4, 5].map(|cid| connection(cid, ConnectionKind::Leaf)));
        let change = AccountChange { old: &old, new: &new, expires: None, now: 100 };
        let found = blast_radius(&change, &all).into_iter().map(|(one, reason)| (one.cid, reason));
        assert_eq!(found.collect::<Vec<_>>(), expected, "{new}");
    }

    #[test]
    fn each_kind_of_change_closes_whom_it_closes() {
        let all = |reason: Reason| [1, 2, 3, 4, 5].map(|cid| (cid, reason.clone()));
        check(|_| {}, &[]);
        check(|new| new["limits"]["payload"] = 5.into(), &[]);
        check(|new| new["signing_keys"][0]["template"]["sub"] = json!({}), &[]);
        check(|new| new["limits"]["conn"] = 0.into(), &all(Reason::Suspended));
        let two = Reason::TooMany { allowed: 3 };
        check(|new| new["limits"]["conn"] = 3.into(), &[(4, two.clone()), (5, two)]);
        check(|new| new["limits"]["conn"] = (-1).into(), &[]);
        check(|new| new["limits"]["leaf"] = 1.into(), &[]);
        check(|new| new["revocations"] = json!({"U2": 10, "U1": 9}), &[(2, Reason::Revoked { until: 10 })]);
        check(|new| new["revocations"] = json!({"*": 10}), &all(Reason::Revoked { until: 10 }));
        let changed = Reason::ScopeChanged { role: "viewer".to_owned() };
        check(|new| new["signing_keys"][0]["template"]["pub"]["allow"] = json!(["a", "b"]), &all(changed));
        check(|new| new["signing_keys"] = json!(["AP"]), &all(Reason::KeyRemoved { key: "AK".to_owned() }));
        check(|new| new["limits"]["disallow_bearer"] = true.into(), &[(3, Reason::Bearer)]);
    }

    #[test]
    fn fewer_leaves_close_the_newest_where_servers_tell_each_other() {
        let (old, mut new) = (body(), body());
        new["limits"]["leaf"] = 1.into();
        let mut all = [4, 5].map(|cid| connection(cid, ConnectionKind::Leaf));
        all[0].server.name = "hub-2".to_owned();
        let change = AccountChange { old: &old, new: &new, expires: None, now: 100 };
        let found = blast_radius(&change, &all);
        assert_eq!((found.len(), found[0].0.cid, &found[0].1), (1, 5, &Reason::TooManyLeaves { allowed: 1 }));
    }

    #[test]
    fn an_expiry_closes_later_and_one_that_has_passed_closes_nobody() {
        let body = body();
        let all = [connection(1, ConnectionKind::Client)];
        let at = |expires| AccountChange { old: &body, new: &body, expires: Some(expires), now: 100 };
        assert_eq!(blast_radius(&at(101), &all)[0].1, Reason::Expires { at: 101 });
        assert!(blast_radius(&at(99), &all).is_empty());
    }
}
