//! How far each server is with an account: what it says that it stored, and what it has in memory.

use std::collections::BTreeMap;
use std::fmt;

use bulkhead_bus::question::{ClaimsRequest, ServerQuestion};
use bulkhead_claims::decode_json;
use bulkhead_runtime::Bus;
use serde::Serialize;
use serde_json::json;

use super::asking::{KnownServers, NotAsked, Said, ServerFacts, ask};
use super::refusal::Refusal;

/// Why an account is not in force on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Missing {
    /// It does not answer: it is down, or cut off.
    Silent,
    /// It has not said that it stored the token.
    NotStored,
    /// It goes on with another token.
    OtherToken { issued_at: i64 },
    /// It has the token and does not load the account: the signer is none of its operator's keys, or the token is expired.
    NotLoaded,
    /// It has the token in memory and admits nobody: the account was deleted there, or is expired.
    Disabled,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => f.write_str("does not answer"),
            Self::NotStored => f.write_str("has not stored it"),
            Self::OtherToken { issued_at } => write!(f, "goes on with the token issued at {issued_at}"),
            Self::NotLoaded => f.write_str("does not take it: is its signer one of the operator's keys?"),
            Self::Disabled => f.write_str("admits nobody with it: a deleted account has to be signed anew"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Memory {
    InForce { is_complete: bool },
    Other { token: String },
    Disabled,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) is_stored: bool,
    pub(super) memory: Option<Memory>,
}

/// Every server that said something.
#[derive(Debug, Default)]
pub(super) struct Standing(pub(super) BTreeMap<String, Place>);

impl Standing {
    /// What is still missing, by server.
    pub(super) fn missing(&self, known: &KnownServers) -> Vec<(String, Missing)> {
        let silent =
            known.names().filter(|name| !self.0.contains_key(*name)).map(|name| (name.clone(), Missing::Silent));
        let behind = self.0.iter().filter_map(|(name, place)| Some((name.clone(), place.missing()?)));
        silent.chain(behind).collect()
    }

    /// Adds one server's answer to what was asked of its memory.
    pub(super) fn remember(&mut self, said: &Said, token: &str) {
        let detail = &said.data["account_detail"];
        let place = self.0.entry(said.server.name.clone()).or_default();
        place.memory = match detail["jwt"].as_str() {
            Some(held) if held != token => Some(Memory::Other { token: held.to_owned() }),
            Some(_) if detail["expired"] == true => Some(Memory::Disabled),
            Some(_) => Some(Memory::InForce { is_complete: detail["complete"] == true }),
            None => None,
        };
    }

    /// Which servers have not loaded the account.
    fn is_unloaded(&self) -> bool {
        self.0.values().any(|place| place.memory.is_none())
    }
}

impl Place {
    fn missing(&self) -> Option<Missing> {
        match &self.memory {
            // What is in memory came from the disk, whether its answer to the push arrived or not.
            Some(Memory::InForce { .. }) => None,
            Some(Memory::Disabled) => Some(Missing::Disabled),
            None | Some(Memory::Other { .. }) if !self.is_stored => Some(Missing::NotStored),
            Some(Memory::Other { token }) => Some(Missing::OtherToken { issued_at: issued_at(token) }),
            None => Some(Missing::NotLoaded),
        }
    }
}

/// When a token was issued; 0 for what is not readable.
pub(super) fn issued_at(token: &str) -> i64 {
    decode_json(token).map_or(0, |claims| claims.iat)
}

/// What every server has in memory of `account`.
pub(super) async fn ask_memory(system: &Bus, account: &str, enough: usize) -> Result<Vec<Said>, NotAsked> {
    let question = json!({"account": account}).to_string();
    ask(system, ServerQuestion::Accounts.subject(), question, enough).await
}

/// Sends the token to every server.
pub(super) async fn store(
    system: &Bus,
    token: &str,
    alive: &[ServerFacts],
) -> Result<Result<Standing, Refusal>, NotAsked> {
    let answers = ask(system, ClaimsRequest::Update.subject(), token.to_owned(), alive.len()).await?;
    let mut standing = Standing(alive.iter().map(|server| (server.name.clone(), Place::default())).collect());
    for said in answers {
        if let Some(error) = &said.error {
            return Ok(Err(Refusal::new(&said.server.name, error)));
        }
        let place = standing.0.entry(said.server.name).or_default();
        place.is_stored = said.data["code"] == 200;
    }
    Ok(Ok(standing))
}

/// Asks what is in memory. A server that has not loaded the account is made to: only then is its token known to be one
/// that it takes.
pub(super) async fn look(system: &Bus, account: &str, token: &str, standing: &mut Standing) -> Result<(), NotAsked> {
    let enough = standing.0.len();
    for said in ask_memory(system, account, enough).await? {
        standing.remember(&said, token);
    }
    if standing.is_unloaded() {
        // Whoever is asked for an account's connections looks the account up.
        let question = json!({"acc": account, "limit": 1}).to_string();
        ask(system, ServerQuestion::Connections.subject(), question, enough).await?;
        for said in ask_memory(system, account, enough).await? {
            standing.remember(&said, token);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub_size::HubSize;
    use serde_json::Value;

    fn said(server: &str, detail: Value) -> Said {
        let server = ServerFacts { name: server.to_owned(), id: String::new(), version: String::new() };
        Said { server, data: json!({"account_detail": detail}), error: None }
    }

    #[test]
    fn only_the_same_token_in_the_memory_of_every_known_server_is_in_force() {
        let known = KnownServers::of(HubSize::Three);
        let mut standing = Standing::default();
        let in_force = json!({"jwt": "new", "expired": false, "complete": true});
        for server in ["hub-1", "hub-2", "hub-3"] {
            standing.remember(&said(server, in_force.clone()), "new");
        }
        assert!(standing.missing(&known).is_empty());

        standing.remember(&said("hub-2", json!({"jwt": "new", "expired": true})), "new");
        assert_eq!(standing.missing(&known), [("hub-2".to_owned(), Missing::Disabled)]);
        standing.0.get_mut("hub-2").unwrap().is_stored = true;
        standing.remember(&said("hub-2", json!({"jwt": "old"})), "new");
        assert_eq!(standing.missing(&known), [("hub-2".to_owned(), Missing::OtherToken { issued_at: 0 })]);
        standing.remember(&said("hub-2", Value::Null), "new");
        assert_eq!(standing.missing(&known), [("hub-2".to_owned(), Missing::NotLoaded)]);
        standing.0.get_mut("hub-2").unwrap().is_stored = false;
        assert_eq!(standing.missing(&known), [("hub-2".to_owned(), Missing::NotStored)]);
        standing.0.remove("hub-2");
        assert_eq!(standing.missing(&known), [("hub-2".to_owned(), Missing::Silent)]);
    }
}
