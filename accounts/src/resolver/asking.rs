//! One question to every server, and each answer with the name of who gave it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use bulkhead_bus::question::ServerQuestion;
use bulkhead_runtime::{Backoff, Bus, SurveyError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::hub_size::HubSize;

/// How long a server may take to answer; one that is up needs milliseconds.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How long to wait for servers to say that they are there.
const PRESENCE_LIMIT: Duration = Duration::from_secs(1);
/// No account is called so: a server that is asked about it says who it is, and that it has none. A plain `PING` has it count
/// the subscriptions of all its accounts first, 30 ms at 10,000 of them (measured: docs/measurements.md, who-is-there).
const NOBODY: &str = "nobody";
const LOOK_FIRST: Duration = Duration::from_millis(50);
/// How long our own connection may take to find another server after the loss of one.
pub(super) const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// The connection in the system account cannot ask.
#[derive(Debug, thiserror::Error)]
#[error("ask the servers of the hub")]
pub struct NotAsked(#[source] pub SurveyError);

/// A server that answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerFacts {
    /// Such as `hub-1`.
    pub name: String,
    /// New at each start.
    pub id: String,
    #[serde(rename = "ver", default)]
    pub version: String,
}

impl fmt::Display for ServerFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

/// The servers that a hub has, by name, whether they answer or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownServers(BTreeSet<String>);

impl KnownServers {
    /// The servers of a hub of ours: `hub-1` and so on.
    #[must_use]
    pub fn of(hub: HubSize) -> Self {
        Self::named(hub.numbers().map(HubSize::server_name))
    }

    #[must_use]
    pub fn named(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.iter()
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Who is not among those that answered.
    #[must_use]
    pub fn absent<'a>(&self, answered: impl IntoIterator<Item = &'a ServerFacts>) -> Vec<String> {
        let there: BTreeSet<&str> = answered.into_iter().map(|server| server.name.as_str()).collect();
        self.0.iter().filter(|name| !there.contains(name.as_str())).cloned().collect()
    }
}

/// What one server said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) server: ServerFacts,
    pub(super) data: Value,
    /// What it says that it cannot do.
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    server: ServerFacts,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    error: Value,
}

/// Resolvers say why in `description`, everybody else in `description` or as a text.
fn read(answer: &[u8]) -> Option<Said> {
    let envelope: Envelope = serde_json::from_slice(answer).ok()?;
    let error = match &envelope.error {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other @ (Value::Object(_) | Value::Array(_) | Value::Bool(_) | Value::Number(_)) => {
            Some(other["description"].as_str().map_or_else(|| other.to_string(), str::to_owned))
        }
    };
    Some(Said { server: envelope.server, data: envelope.data, error })
}

/// Asks every server and waits for `enough` of them. Whatever is not a server's answer is left out.
pub(super) async fn ask(
    system: &Bus,
    subject: &str,
    body: impl Into<bytes::Bytes>,
    enough: usize,
) -> Result<Vec<Said>, NotAsked> {
    let answers = system.poll(subject, body.into(), enough, ANSWER_LIMIT).await.map_err(NotAsked)?;
    Ok(answers.iter().filter_map(|answer| read(answer)).collect())
}

/// The servers that answer, by name; waits a second for `expected` of them.
///
/// # Errors
/// When the connection cannot ask.
pub async fn servers(system: &Bus, expected: usize) -> Result<Vec<ServerFacts>, NotAsked> {
    let question = json!({"account": NOBODY}).to_string();
    let asked = system.poll(ServerQuestion::Accounts.subject(), question.into(), expected, PRESENCE_LIMIT);
    let answers = asked.await.map_err(NotAsked)?;
    let there: BTreeSet<ServerFacts> =
        answers.iter().filter_map(|answer| read(answer)).map(|said| said.server).collect();
    Ok(there.into_iter().collect())
}

/// The same, and again for a while when nobody answers: then it is our own connection that is being made anew, and not the
/// hub that is gone.
pub(super) async fn some_servers(system: &Bus, expected: usize) -> Result<Vec<ServerFacts>, NotAsked> {
    let started = Instant::now();
    let mut pace = Backoff::new(LOOK_FIRST, PRESENCE_LIMIT);
    loop {
        let there = servers(system, expected).await?;
        if !there.is_empty() || started.elapsed() >= CONNECTION_LIMIT {
            return Ok(there);
        }
        pace.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_server_and_its_refusal_and_rubbish_is_left_out() {
        let said = |text: &str| read(text.as_bytes());
        let refused =
            said(r#"{"server":{"name":"hub-1","id":"N1","ver":"2.15.1"},"error":{"code":500,"description":"no"}}"#);
        assert_eq!(refused.unwrap().error.as_deref(), Some("no"));
        let plain = said(r#"{"server":{"name":"hub-1","id":"N1"},"data":["A"]}"#).unwrap();
        assert_eq!((plain.server.name.as_str(), plain.data[0].as_str(), plain.error), ("hub-1", Some("A"), None));
        for rubbish in ["", "{}", "[]", r#"{"server":"hub-1"}"#, "\u{0}"] {
            assert!(said(rubbish).is_none(), "{rubbish:?}");
        }
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let known = KnownServers::of(HubSize::Three);
        let server = |name: &str| ServerFacts { name: name.to_owned(), id: String::new(), version: String::new() };
        assert_eq!(known.absent(&[server("hub-3"), server("hub-1"), server("stranger")]), ["hub-2"]);
    }
}
