//! What waits in the streams, asked of the servers themselves.

use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::{Role, StreamName};
use bulkhead_runtime::{Bus, BusSettings};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// One look at a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub stream: &'static str,
    pub messages: u64,
    /// When the oldest that is there was stored, unix milliseconds.
    pub oldest_ms: Option<i64>,
    /// Of the last message that was ever stored.
    pub last_sequence: u64,
    /// What the consumer says of itself: delivered, acknowledged up to, pending, unacknowledged.
    pub consumer: (u64, u64, u64, u64),
    /// Somebody asks for the next messages, so many times at once.
    pub pulls: u64,
}

impl Waiting {
    /// Whether everything from before `since_ms` is gone.
    #[must_use]
    pub fn is_drained(&self, since_ms: i64) -> bool {
        self.messages == 0 || self.oldest_ms.is_some_and(|oldest| oldest > since_ms)
    }
}

async fn look(bus: &Bus, stream: StreamName) -> anyhow::Result<Waiting> {
    let name = stream.as_str();
    let answer = bus.request(&format!("$JS.API.STREAM.INFO.{name}"), Vec::new().into(), ANSWER_LIMIT).await?;
    let answer: Value = serde_json::from_slice(&answer).context("read a stream's state")?;
    anyhow::ensure!(answer["error"].is_null(), "{name}: {}", answer["error"]);
    let state = &answer["state"];
    let messages = state["messages"].as_u64().context("messages")?;
    let oldest = state["first_ts"].as_str().filter(|_| messages > 0);
    let oldest = oldest.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let oldest_ms = oldest.and_then(|time| i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok());
    let last_sequence = state["last_seq"].as_u64().context("last_seq")?;
    let subject = format!("$JS.API.CONSUMER.INFO.{name}.{}", stream.consumer().name);
    let answer = bus.request(&subject, Vec::new().into(), ANSWER_LIMIT).await?;
    let answer: Value = serde_json::from_slice(&answer).context("read a consumer's state")?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let consumer = (
        number(&answer["delivered"]["stream_seq"]),
        number(&answer["ack_floor"]["stream_seq"]),
        number(&answer["num_pending"]),
        number(&answer["num_ack_pending"]),
    );
    Ok(Waiting { stream: name, messages, oldest_ms, last_sequence, consumer, pulls: number(&answer["num_waiting"]) })
}

/// Connects anew for each look, to a leaf or as the provisioner to the hub: what is looked at may have been killed since the last one.
///
/// # Errors
/// When the server does not answer.
pub async fn look_at(settings: &BusSettings, streams: &[StreamName]) -> anyhow::Result<Vec<Waiting>> {
    let bus = Bus::connect(settings, Role::Provisioner.name()).await.context("connect to look at streams")?;
    let mut all = Vec::new();
    for stream in streams {
        all.push(look(&bus, *stream).await?);
    }
    Ok(all)
}
