//! Asks all servers one question and notes when each answered; and asks JetStream what a stream is like.
//!
//! Looking only: nothing here makes or changes anything.

use std::time::Duration;

use async_nats::StatusCode;
use async_nats::jetstream::stream::Config;
use bulkhead_bus::StreamSpec;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::bus::Bus;
use crate::durable::{consumer_config, stream_config};
use crate::now_ms;

/// How long to listen for more answers than were expected.
const LINGER: Duration = Duration::from_millis(150);

/// One server's answer. What it says of the time was true between `asked_ms` and `received_ms`.
#[derive(Debug, Clone)]
pub struct Answer {
    pub body: Bytes,
    pub asked_ms: i64,
    pub received_ms: i64,
}

/// Why a question was not asked.
#[derive(Debug, thiserror::Error)]
#[error("ask {subject}: the connection is closed")]
pub struct SurveyError {
    subject: String,
}

impl Bus {
    /// Asks everybody on `subject`. Ends at `limit`, or a moment after `expected` answers came: one more would be news.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn survey(
        &self,
        subject: &str,
        body: Bytes,
        expected: usize,
        limit: Duration,
    ) -> Result<Vec<Answer>, SurveyError> {
        let closed = || SurveyError { subject: subject.to_owned() };
        let end = Instant::now() + limit;
        let client = self.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| closed())?;
        let asked_ms = now_ms();
        client.publish_with_reply(subject.to_owned(), inbox, body).await.map_err(|_| closed())?;
        let mut collected: Vec<Answer> = Vec::new();
        loop {
            let until = if collected.len() < expected { end } else { end.min(Instant::now() + LINGER) };
            let Ok(Some(answer)) = timeout_at(until, answers.next()).await else { return Ok(collected) };
            // An empty one is the server's word that nobody listens there.
            if !answer.payload.is_empty() {
                collected.push(Answer { body: answer.payload, asked_ms, received_ms: now_ms() });
            }
        }
    }
}

impl Bus {
    /// Asks everybody on `subject` and ends with the last of `enough` answers, or at `limit`. An empty answer is one:
    /// somebody who has nothing to say. Nobody at all gives none at once.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn poll(
        &self,
        subject: &str,
        body: Bytes,
        enough: usize,
        limit: Duration,
    ) -> Result<Vec<Bytes>, SurveyError> {
        let closed = || SurveyError { subject: subject.to_owned() };
        let end = Instant::now() + limit;
        let client = self.client();
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await.map_err(|_| closed())?;
        client.publish_with_reply(subject.to_owned(), inbox, body).await.map_err(|_| closed())?;
        let mut collected = Vec::new();
        while collected.len() < enough
            && let Ok(Some(answer)) = timeout_at(end, answers.next()).await
            && answer.status != Some(StatusCode::NO_RESPONDERS)
        {
            collected.push(answer.payload);
        }
        Ok(collected)
    }
}

/// A stream's configuration as this release makes it, in the words of the server.
///
/// # Panics
/// Never: a configuration serializes.
#[must_use]
pub fn expected_stream(spec: &StreamSpec, replicas: usize) -> Value {
    let config: Config = stream_config(spec, replicas);
    serde_json::to_value(config).expect("a configuration serializes")
}

/// The same for the stream's consumer.
///
/// # Panics
/// Never: a configuration serializes.
#[must_use]
pub fn expected_consumer(spec: &StreamSpec) -> Value {
    serde_json::to_value(consumer_config(spec.consumer)).expect("a configuration serializes")
}
#[cfg(test)]
mod tests {
    use bulkhead_bus::StreamName;

    use super::*;

    #[test]
    fn expectations_are_what_the_table_says_in_the_servers_words() {
        let spec = StreamName::Results.spec();
        let stream = expected_stream(&spec, 3);
        assert_eq!(stream["subjects"], serde_json::json!(spec.subjects));
        assert_eq!((&stream["max_bytes"], &stream["num_replicas"]), (&spec.max_bytes.into(), &3.into()));
        assert_eq!((&stream["retention"], &stream["discard"]), (&"workqueue".into(), &"new".into()));
        let consumer = expected_consumer(&spec);
        assert_eq!((&consumer["durable_name"], &consumer["ack_policy"]), (&"core".into(), &"explicit".into()));
        assert_eq!(consumer["ack_wait"], 30_000_000_000_u64);
    }
}
