//! Four layers of one account compared: as it should be, in the store, on each server's disk, in each server's memory.
//!
//! Tokens are compared by what they say, with signer and time of issue, and never by their text. Which server a disk's
//! token is of is not known: those answers carry no name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bulkhead_claims::decode_json;
use serde::Serialize;
use serde_json::{Value, json};

use super::difference::{FieldDifference, field_differences};

/// All that is known of one account.
#[derive(Debug, Clone, Default)]
pub struct AccountLayers {
    pub name: String,
    /// The rendered body; `None` where nobody wants the account.
    pub desired: Option<Value>,
    /// The token in the store.
    pub store: Option<String>,
    /// Tokens on servers' disks, and how many servers have each.
    pub disks: BTreeMap<String, usize>,
    /// The token in each server's memory; `None` where it is not loaded, which is no difference.
    pub memories: BTreeMap<String, Option<String>>,
}

/// Where something else was found than in the layer before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The store, against what is rendered.
    Store,
    /// The disks of so many servers, against the store.
    Disks(usize),
    /// The memory of a server, against the store.
    Memory(String),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("store"),
            Self::Disks(1) => f.write_str("the disk of one server"),
            Self::Disks(servers) => write!(f, "the disks of {servers} servers"),
            Self::Memory(server) => write!(f, "memory of {server}"),
        }
    }
}

/// One field that is not as it is in the layer before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub account: String,
    pub layer: Layer,
    #[serde(flatten)]
    pub field: FieldDifference,
}

/// An account that only one side has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "presence")]
pub enum Presence {
    /// On servers and not in the store.
    Foreign { account: String, servers: Vec<String> },
    /// In the store and not on these servers.
    Missing { account: String, servers: Vec<String> },
}

/// The part of a token that counts: its body below `nats`, and around it who signed, when, and until when.
fn said(token: &str) -> Result<Value, String> {
    let claims = decode_json(token).map_err(|error| error.to_string())?;
    Ok(json!({
        "signed": {"iss": claims.iss, "iat": claims.iat},
        "exp": claims.exp, "nbf": claims.nbf, "name": claims.name, "sub": claims.sub, "nats": claims.nats,
    }))
}

fn unreadable(side: &str, why: &str) -> FieldDifference {
    let why = Some(Value::String(format!("not readable: {why}")));
    let (ours, theirs) = if side == "ours" { (why, None) } else { (None, why) };
    FieldDifference { field: "token".to_owned(), ours, theirs }
}

fn token_differences(ours: &str, theirs: &str) -> Vec<FieldDifference> {
    if ours == theirs {
        return vec![];
    }
    match (said(ours), said(theirs)) {
        (Ok(ours), Ok(theirs)) => {
            let found = field_differences(&ours, &theirs);
            // The same said again by the same signer in the same second: the id alone differs.
            if found.is_empty() { vec![unreadable("theirs", "another token that says the same")] } else { found }
        }
        (Err(why), _) => vec![unreadable("ours", &why)],
        (Ok(_), Err(why)) => vec![unreadable("theirs", &why)],
    }
}

/// Every field of an account that is not as it should be, layer by layer.
#[must_use]
pub fn compare(account: &AccountLayers) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut add = |layer: &Layer, found: Vec<FieldDifference>| {
        let name = || account.name.clone();
        differences.extend(found.into_iter().map(|field| Difference { account: name(), layer: layer.clone(), field }));
    };
    if let (Some(desired), Some(store)) = (&account.desired, &account.store) {
        let found = match decode_json(store) {
            Ok(claims) => field_differences(desired, &claims.nats),
            Err(error) => vec![unreadable("theirs", &error.to_string())],
        };
        add(&Layer::Store, found);
    }
    let Some(store) = &account.store else { return differences };
    for (token, servers) in &account.disks {
        add(&Layer::Disks(*servers), token_differences(store, token));
    }
    for (server, token) in &account.memories {
        let Some(token) = token else { continue };
        add(&Layer::Memory(server.clone()), token_differences(store, token));
    }
    differences
}

/// Accounts, by key, that the store has and servers do not, and the other way round.
#[must_use]
pub fn compare_presence(store: &BTreeSet<String>, listed: &BTreeMap<String, BTreeSet<String>>) -> Vec<Presence> {
    let all: BTreeSet<&String> = listed.values().flatten().chain(store).collect();
    let presence = |account: &String| {
        let (have, have_not): (Vec<_>, Vec<_>) = listed.iter().partition(|(_, keys)| keys.contains(account));
        let names =
            |servers: Vec<(&String, &BTreeSet<String>)>| servers.into_iter().map(|(name, _)| name.clone()).collect();
        match store.contains(account) {
            false => Some(Presence::Foreign { account: account.clone(), servers: names(have) }),
            true if have_not.is_empty() => None,
            true => Some(Presence::Missing { account: account.clone(), servers: names(have_not) }),
        }
    };
    all.into_iter().filter_map(presence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_claims::{AccountBody, Body, Claims, KeyKind, SigningKey, encode};

    /// The same account, whoever signs.
    const ACCOUNT: &str = "ACWBJDIX7BVVNS7LSSPRE32BD2WH24QCVBTB5MAYIEOK2F5IZBBKLKBH";

    fn signed(key: &SigningKey, iat: i64, conn: i64) -> String {
        let body: AccountBody = serde_json::from_value(json!({"limits": {"conn": conn}})).unwrap();
        encode(&mut Claims::new(ACCOUNT.to_owned(), "acme".to_owned(), iat, body), key).unwrap()
    }

    /// As it is rendered, with this many connections.
    fn desired(conn: i64) -> Value {
        let mut body: AccountBody = serde_json::from_value(json!({"limits": {"conn": conn}})).unwrap();
        body.prepare();
        serde_json::to_value(body).unwrap()
    }

    fn fields(account: &AccountLayers) -> Vec<String> {
        compare(account).iter().map(|found| format!("{}: {}", found.layer, found.field.field)).collect()
    }

    #[test]
    fn each_layer_is_compared_with_the_one_that_it_is_made_from() {
        let key = SigningKey::generate(KeyKind::Operator);
        let store = signed(&key, 5, 10);
        let same = AccountLayers {
            name: "acme".to_owned(),
            desired: Some(desired(10)),
            disks: BTreeMap::from([(store.clone(), 3)]),
            memories: BTreeMap::from([("hub-1".to_owned(), Some(store.clone())), ("hub-2".to_owned(), None)]),
            store: Some(store),
        };
        assert!(compare(&same).is_empty(), "{:?}", compare(&same));

        let mut other = same.clone();
        other.desired = Some(desired(11));
        other.disks.insert(signed(&key, 4, 9), 1);
        let rogue = SigningKey::generate(KeyKind::Operator);
        other.memories.insert("hub-2".to_owned(), Some(signed(&rogue, 5, 10)));
        let expected = [
            "store: limits.conn",
            "the disk of one server: nats.limits.conn",
            "the disk of one server: signed.iat",
            "memory of hub-2: signed.iss",
        ];
        assert_eq!(fields(&other), expected);
        other.memories.insert("hub-2".to_owned(), Some("garbage".to_owned()));
        assert!(fields(&other).contains(&"memory of hub-2: token".to_owned()));
    }

    #[test]
    fn accounts_of_one_side_only_are_named_with_their_servers() {
        let keys = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<BTreeSet<String>>();
        let listed = BTreeMap::from([
            ("hub-1".to_owned(), keys(&["A1", "A2"])),
            ("hub-2".to_owned(), keys(&["A1", "A2", "A9"])),
        ]);
        let found = compare_presence(&keys(&["A1", "A3"]), &listed);
        let both = vec!["hub-1".to_owned(), "hub-2".to_owned()];
        let expected = [
            Presence::Foreign { account: "A2".to_owned(), servers: both.clone() },
            Presence::Missing { account: "A3".to_owned(), servers: both.clone() },
            Presence::Foreign { account: "A9".to_owned(), servers: both[1..].to_vec() },
        ];
        assert_eq!(found, expected);
        assert!(
            compare_presence(&keys(&["A1", "A2"]), &BTreeMap::from([("h".to_owned(), keys(&["A1", "A2"]))])).is_empty()
        );
    }
}
