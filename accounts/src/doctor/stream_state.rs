//! Streams as JetStream shows them, of the hub and of each leaf, asked once for all areas that need them.

use bulkhead_bus::StreamName;
use bulkhead_bus::question::{consumer_info, stream_info};
use bulkhead_runtime::Bus;
use futures_util::StreamExt;
use serde_json::Value;

use super::finding::{Finding, Look};
use super::reach::{QUESTION_LIMIT, Sources, limited};
use super::servers::time_ms;

/// Streams that are asked about at once.
const AT_ONCE: usize = 32;
/// One stream: what was answered about it and about its consumer.
#[derive(Debug, Clone)]
pub(super) struct StreamState {
    pub(super) stream: StreamName,
    /// `hub`, or the leaf's site.
    pub(super) holder: String,
    pub(super) info: Result<Value, String>,
    pub(super) consumer: Result<Value, String>,
}

impl StreamState {
    /// As it is shown: `hub RESULTS`.
    pub(super) fn subject(&self) -> String {
        format!("{} {}", self.holder, self.stream.as_str())
    }

    pub(super) fn is_hub(&self) -> bool {
        self.holder == HUB
    }

    pub(super) fn messages(&self) -> u64 {
        self.info.as_ref().ok().and_then(|info| info["state"]["messages"].as_u64()).unwrap_or(0)
    }

    /// How long the oldest message has waited, by the server's own clock; `None` when none waits.
    pub(super) fn oldest_ms(&self) -> Option<i64> {
        let info = self.info.as_ref().ok().filter(|_| self.messages() > 0)?;
        Some((time_ms(&info["ts"])? - time_ms(&info["state"]["first_ts"])?).max(0))
    }
}

const HUB: &str = "hub";
/// What a server says whose hub cannot decide anything now: too few of its servers are there.
const NO_DECISION: &str = "temporarily unavailable";

/// Whether an answer only says that the hub cannot decide anything now, which is a finding of its own.
pub(super) fn is_undecided(why: &str) -> bool {
    why.contains(NO_DECISION)
}

/// Streams that could not be looked at, since whoever has them did not say anything about them: why is told by
/// `stream-configuration`.
pub(super) fn unseen(look: &'static Look, states: &[StreamState]) -> Vec<Finding> {
    let silent = states.iter().filter_map(|state| Some((state.subject(), state.info.as_ref().err()?)));
    silent.map(|(subject, why)| look.skip(&subject, why)).collect()
}

/// How many messages each subject has, as well.
const SUBJECTS_TOO: &str = r#"{"subjects_filter": ">"}"#;

/// An answer of JetStream, or the words of its error.
fn read(answer: &[u8]) -> Result<Value, String> {
    let answer: Value = serde_json::from_slice(answer).map_err(|error| error.to_string())?;
    match answer["error"]["description"].as_str() {
        Some(description) => Err(description.to_owned()),
        None => Ok(answer),
    }
}

async fn ask(bus: &Bus, subject: &str, body: &str) -> Result<Value, String> {
    let body = body.as_bytes().to_vec();
    read(&limited(bus.request(subject, body.into(), QUESTION_LIMIT)).await?)
}

async fn ask_stream(bus: &Bus, holder: &str, stream: StreamName) -> StreamState {
    let (about_stream, about_consumer) = (stream_info(stream), consumer_info(stream));
    let (info, consumer) = tokio::join!(
        ask(bus, &about_stream, SUBJECTS_TOO),
        // JetStream refuses a body here.
        ask(bus, &about_consumer, ""),
    );
    StreamState { stream, holder: holder.to_owned(), info, consumer }
}

/// Every stream of everybody that could be reached.
pub(super) async fn ask_streams(sources: &Sources) -> Vec<StreamState> {
    let hub = sources.provisioner.get().map(|bus| (bus, HUB, StreamName::HUB.to_vec()));
    let leaves = sources.leaves.iter();
    let leaves = leaves.filter_map(|leaf| Some((leaf.bus.get()?, leaf.name.as_str(), StreamName::EDGE.to_vec())));
    let all = hub.into_iter().chain(leaves);
    let asked =
        all.flat_map(|(bus, holder, streams)| streams.into_iter().map(move |stream| ask_stream(bus, holder, stream)));
    futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A stream of the hub that holds `state`.
    pub(in crate::doctor) fn hub_stream(state: Value, config: Value, consumer: Value) -> StreamState {
        let info =
            json!({"config": config, "state": state, "ts": "2026-01-01T00:10:00Z", "cluster": {"leader": "hub-1"}});
        StreamState { stream: StreamName::Results, holder: HUB.to_owned(), info: Ok(info), consumer: Ok(consumer) }
    }

    #[test]
    fn the_oldest_message_is_as_old_as_the_server_says() {
        let state = |messages: u64| json!({"messages": messages, "first_ts": "2026-01-01T00:09:00Z"});
        assert_eq!(hub_stream(state(3), json!({}), json!({})).oldest_ms(), Some(60_000));
        assert_eq!(hub_stream(state(0), json!({}), json!({})).oldest_ms(), None);
    }

    #[test]
    fn an_error_is_shown_in_the_servers_words() {
        let answer = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        assert_eq!(read(answer).unwrap_err(), "stream not found");
        assert_eq!(read(br#"{"state":{}}"#).unwrap(), json!({"state": {}}));
        assert!(read(b"garbage").is_err());
    }
}
