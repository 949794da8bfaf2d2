//! What a stream and its consumer look like now: how much waits there, for how long, and how full it is. Reads only.

use std::time::Duration;

use bulkhead_bus::StreamName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use time::OffsetDateTime;

use crate::bus::{Bus, RequestError};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Pages of subjects that are read at most; the server puts 100,000 on one.
const PAGES_MOST: usize = 100;

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("look at stream {stream}")]
    Request { stream: &'static str, source: RequestError },
    #[error("look at stream {stream}: the server answers {code}, {description}")]
    Answer { stream: &'static str, code: u64, description: String },
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

/// What the server answers: what was asked for, or an error.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Error { error: Refusal },
    Value(T),
}

#[derive(Deserialize)]
struct Refusal {
    code: u64,
    #[serde(default)]
    description: String,
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
    subject: &str,
    question: &serde_json::Value,
) -> Result<T, LookError> {
    let stream = stream.as_str();
    let failed = |source| LookError::Request { stream, source };
    let answer = bus.request(subject, question.to_string().into(), ANSWER_LIMIT).await.map_err(failed)?;
    let answer: Answer<T> = serde_json::from_slice(&answer)
        .map_err(|source| failed(RequestError::Unreadable(subject.to_owned(), source)))?;
    match answer {
        Answer::Value(value) => Ok(value),
        Answer::Error { error } => Err(LookError::Answer { stream, code: error.code, description: error.description }),
    }
}

impl Bus {
    /// # Errors
    /// When the server does not answer, or there is no such stream.
    pub async fn look_at_stream(&self, stream: StreamName) -> Result<StreamLook, LookError> {
        let info: Info = ask(self, stream, &info_subject(stream), &json!({})).await?;
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
        let subject = format!("$JS.API.CONSUMER.INFO.{}.{}", stream.as_str(), stream.consumer().name);
        ask(self, stream, &subject, &json!({})).await
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
            let info: Info = ask(self, stream, &info_subject(stream), &question).await?;
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

fn info_subject(stream: StreamName) -> String {
    format!("$JS.API.STREAM.INFO.{}", stream.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_was_asked_for_or_an_error() {
        let read = |text: &str| serde_json::from_str::<Answer<Info>>(text);
        let info = r#"{"config":{"max_bytes":9},"state":{"messages":2,"bytes":7,"first_ts":"2026-01-02T03:04:05.5Z",
            "subjects":{"t.A.x":2}},"total":1,"offset":0,"limit":100000}"#;
        let Ok(Answer::Value(info)) = read(info) else { panic!("not read") };
        assert_eq!((info.state.messages, info.config.max_bytes, info.total), (2, 9, 1));
        let error = r#"{"type":"x","error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        assert!(matches!(read(error), Ok(Answer::Error { error }) if error.code == 404));
        assert!(read("{}").is_err());
        // What the server writes for a stream that never had a message.
        let empty = r#"{"config":{"max_bytes":-1},"state":{"messages":0,"bytes":0,"first_ts":"0001-01-01T00:00:00Z"}}"#;
        assert!(matches!(read(empty), Ok(Answer::Value(_))));
    }
}
