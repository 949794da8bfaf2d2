//! What a stream and its consumer look like now: how much waits there, for how long, and how full it is. Reads only.

use bulkhead_bus::StreamName;
use bulkhead_bus::question::{consumer_info, stream_info};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use time::OffsetDateTime;

use crate::bus::{Bus, RequestError};

/// Pages of subjects that are read at most; the server puts 100,000 on one.
const PAGES_MOST: usize = 100;

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
#[error("look at stream {stream}")]
pub struct LookError {
    stream: &'static str,
    source: RequestError,
}

/// A stream as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLook {
    pub messages: u64,
    pub bytes: u64,
    /// Beyond it the stream takes nothing.
    pub limit_bytes: u64,
    /// When the oldest message was stored, unix milliseconds; `None` when it is empty.
    pub oldest_ms: Option<i64>,
}

/// A stream's consumer as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct ConsumerLook {
    /// Not delivered yet.
    #[serde(rename = "num_pending")]
    pub waiting: u64,
    /// Delivered and not acknowledged.
    #[serde(rename = "num_ack_pending")]
    pub unacknowledged: u64,
    /// Of these, delivered more than once.
    #[serde(rename = "num_redelivered")]
    pub redelivered: u64,
}

#[derive(Deserialize)]
struct Info {
    config: Limits,
    state: State,
    /// How many subjects there are on all pages.
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct Limits {
    max_bytes: i64,
}

#[derive(Deserialize)]
struct State {
    messages: u64,
    bytes: u64,
    #[serde(with = "time::serde::rfc3339")]
    first_ts: OffsetDateTime,
    #[serde(default)]
    subjects: Option<serde_json::Map<String, serde_json::Value>>,
}

async fn ask<T: DeserializeOwned>(
    bus: &Bus,
    stream: StreamName,
    subject: String,
    question: &serde_json::Value,
) -> Result<T, LookError> {
    bus.ask(subject, question).await.map_err(|source| LookError { stream: stream.as_str(), source })
}

impl Bus {
    /// # Errors
    /// When the server does not answer, or there is no such stream.
    pub async fn look_at_stream(&self, stream: StreamName) -> Result<StreamLook, LookError> {
        let info: Info = ask(self, stream, stream_info(stream), &json!({})).await?;
        let State { messages, bytes, first_ts, .. } = info.state;
        let oldest_ms = i64::try_from(first_ts.unix_timestamp_nanos() / 1_000_000).ok();
        Ok(StreamLook {
            messages,
            bytes,
            limit_bytes: u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX),
            oldest_ms: oldest_ms.filter(|_| messages > 0),
        })
    }

    /// # Errors
    /// When the server does not answer, or there is no such consumer.
    pub async fn look_at_consumer(&self, stream: StreamName) -> Result<ConsumerLook, LookError> {
        ask(self, stream, consumer_info(stream), &json!({})).await
    }

    /// How many messages each subject has, for every subject of the stream.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn count_by_subject(&self, stream: StreamName) -> Result<Vec<(String, u64)>, LookError> {
        let filter = stream.spec().subjects.join(" ");
        let mut counted = Vec::new();
        for _ in 0..PAGES_MOST {
            let question = json!({"subjects_filter": filter, "offset": counted.len()});
            let info: Info = ask(self, stream, stream_info(stream), &question).await?;
            let page = info.state.subjects.unwrap_or_default();
            let is_last = page.is_empty();
            counted.extend(page.into_iter().map(|(subject, count)| (subject, count.as_u64().unwrap_or(0))));
            if is_last || counted.len() >= info.total {
                break;
            }
        }
        Ok(counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Said;

    #[test]
    fn an_answer_is_what_was_asked_for_or_an_error() {
        let read = |text: &str| serde_json::from_str::<Said<Info>>(text);
        let info = r#"{"config":{"max_bytes":9},"state":{"messages":2,"bytes":7,"first_ts":"2026-01-02T03:04:05.5Z",
            "subjects":{"t.A.x":2}},"total":1,"offset":0,"limit":100000}"#;
        let Ok(Said::Value(info)) = read(info) else { panic!("not read") };
        assert_eq!((info.state.messages, info.config.max_bytes, info.total), (2, 9, 1));
        let error = r#"{"type":"x","error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        assert!(matches!(read(error), Ok(Said::Error { error }) if error.code == 404));
        assert!(read("{}").is_err());
        // What the server writes for a stream that never had a message.
        let empty = r#"{"config":{"max_bytes":-1},"state":{"messages":0,"bytes":0,"first_ts":"0001-01-01T00:00:00Z"}}"#;
        assert!(matches!(read(empty), Ok(Said::Value(_))));
    }
}
