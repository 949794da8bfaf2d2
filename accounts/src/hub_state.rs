//! What the servers of a hub say of themselves: who is up, who has all that the others have, what is still to be stored.
//!
//! Each server's word on its own health counts. The list of replicas that a stream's leader gives calls a server with an
//! emptied disk current until it has begun to catch up (measured: docs/measurements.md, hub-of-three).

use std::time::Duration;

use bulkhead_bus::StreamName;
use bulkhead_runtime::{Bus, LimitReached, eventually};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::hub_size::HubSize;

const HEALTH: &str = "$SYS.REQ.SERVER.PING.HEALTHZ";
const STREAMS: &str = "$SYS.REQ.SERVER.PING.JSZ";
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// What one server of a hub says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerState {
    /// Such as `hub-1`.
    pub server: String,
    /// Empty when it does not answer.
    pub version: String,
    /// Why it could not stand in for the others now; `None` when it has everything.
    pub missing: Option<String>,
    /// Whether it decides where streams are.
    pub leads: bool,
    pub streams: u64,
    /// That core has still to store.
    pub messages: u64,
}

#[derive(Deserialize)]
struct Answer<T> {
    server: AnsweringServer,
    data: Option<T>,
}

#[derive(Deserialize)]
struct AnsweringServer {
    name: String,
    #[serde(default)]
    ver: String,
}

#[derive(Deserialize)]
struct Health {
    #[serde(default)]
    status: String,
    #[serde(default)]
    error: String,
}

#[derive(Deserialize)]
struct Streams {
    #[serde(default)]
    streams: u64,
    #[serde(default)]
    account_details: Vec<AccountStreams>,
    meta_cluster: Option<MetaCluster>,
}

#[derive(Deserialize)]
struct AccountStreams {
    #[serde(default)]
    stream_detail: Vec<HeldStream>,
}

#[derive(Deserialize)]
struct HeldStream {
    name: String,
    #[serde(default)]
    state: HeldState,
}

#[derive(Deserialize, Default)]
struct HeldState {
    #[serde(default)]
    messages: u64,
}

impl Streams {
    /// What core has still to store: the gatekeepers' bucket and log stay as they are.
    fn messages(&self) -> u64 {
        let all = self.account_details.iter().flat_map(|account| &account.stream_detail);
        let is_ours = |held: &&HeldStream| StreamName::HUB.iter().any(|stream| stream.as_str() == held.name);
        all.filter(is_ours).map(|held| held.state.messages).sum()
    }
}

#[derive(Deserialize)]
struct MetaCluster {
    #[serde(default)]
    leader: String,
}

/// Asks every server of `hub` over `system`, a connection in SYS. A server that does not answer has a row that says so.
pub async fn hub_state(system: &Bus, hub: HubSize) -> Vec<ServerState> {
    let (health, streams) = tokio::join!(
        ask::<Health>(system, (HEALTH, "{}"), hub),
        ask::<Streams>(system, (STREAMS, r#"{"streams":true}"#), hub)
    );
    put_together(hub, &health, &streams)
}

async fn ask<T: DeserializeOwned>(
    system: &Bus,
    (subject, question): (&str, &'static str),
    hub: HubSize,
) -> Vec<Answer<T>> {
    let question = Bytes::from_static(question.as_bytes());
    let answers = system.request_all(subject, question, hub.servers(), ANSWER_LIMIT).await;
    // No connection, no answers: every server is then reported as silent.
    answers.unwrap_or_default().iter().filter_map(|answer| serde_json::from_slice(answer).ok()).collect()
}

fn put_together(hub: HubSize, health: &[Answer<Health>], streams: &[Answer<Streams>]) -> Vec<ServerState> {
    let most = streams.iter().filter_map(|answer| answer.data.as_ref()).map(|data| data.streams).max().unwrap_or(0);
    let state = |number: usize| {
        let server = HubSize::server_name(number);
        let health = health.iter().find(|answer| answer.server.name == server);
        let held = streams.iter().find(|answer| answer.server.name == server);
        let held = held.and_then(|answer| answer.data.as_ref());
        ServerState {
            version: health.map(|answer| answer.server.ver.clone()).unwrap_or_default(),
            missing: missing(health.and_then(|answer| answer.data.as_ref()), held, most),
            leads: held.and_then(|data| data.meta_cluster.as_ref()).is_some_and(|meta| meta.leader == server),
            streams: held.map_or(0, |data| data.streams),
            messages: held.map_or(0, Streams::messages),
            server,
        }
    };
    hub.numbers().map(state).collect()
}

fn missing(health: Option<&Health>, held: Option<&Streams>, most: u64) -> Option<String> {
    let (Some(health), Some(held)) = (health, held) else { return Some("it does not answer".to_owned()) };
    if health.status != "ok" {
        return Some(if health.error.is_empty() { health.status.clone() } else { health.error.clone() });
    }
    (held.streams < most).then(|| format!("it has {} of {most} streams", held.streams))
}

/// Waits until every server of `hub` has everything: until then no other server may be stopped.
///
/// # Errors
/// When `limit` passes; the error says which server misses what.
pub async fn wait_until_whole(system: &Bus, hub: HubSize, limit: Duration) -> Result<Vec<ServerState>, LimitReached> {
    eventually("every server of the hub having everything", limit, || async {
        let states = hub_state(system, hub).await;
        let behind = |state: &ServerState| state.missing.as_ref().map(|what| format!("{}: {what}", state.server));
        let behind: Vec<String> = states.iter().filter_map(behind).collect();
        if behind.is_empty() { Ok(states) } else { Err(behind.join("; ")) }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers<T: DeserializeOwned>(lines: &[&str]) -> Vec<Answer<T>> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_server_that_is_silent_unwell_or_without_a_stream_misses_something() {
        let health = answers(&[
            r#"{"server":{"name":"hub-3","ver":"2.15.1"},"data":{"status":"ok"}}"#,
            r#"{"server":{"name":"hub-1","ver":"2.15.1"},"data":{"status":"unavailable","error":"stream catching up"}}"#,
        ]);
        let streams = answers(&[
            r#"{"server":{"name":"hub-1"},"data":{"streams":2,"meta_cluster":{"leader":"hub-1"}}}"#,
            r#"{"server":{"name":"hub-3"},"data":{"streams":0,"meta_cluster":{"leader":"hub-1"}}}"#,
        ]);
        let states = put_together(HubSize::Three, &health, &streams);
        let seen: Vec<_> = states.iter().map(|state| (state.server.as_str(), state.missing.as_deref())).collect();
        let expected = [
            ("hub-1", Some("stream catching up")),
            ("hub-2", Some("it does not answer")),
            ("hub-3", Some("it has 0 of 2 streams")),
        ];
        assert_eq!(seen, expected);
        assert_eq!(states.iter().map(|state| state.leads).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn a_hub_of_one_is_whole_when_its_server_is_well() {
        let health = answers(&[r#"{"server":{"name":"hub-1","ver":"2.15.1"},"data":{"status":"ok"}}"#]);
        let streams =
            answers(&[r#"{"server":{"name":"hub-1"},"data":{"streams":2,"account_details":[{"stream_detail":[
            {"name":"RESULTS","state":{"messages":7}},{"name":"KV_GATE","state":{"messages":9}}]}]}}"#]);
        let states = put_together(HubSize::One, &health, &streams);
        assert_eq!((states[0].missing.as_deref(), states[0].messages), (None, 7));
    }
}
