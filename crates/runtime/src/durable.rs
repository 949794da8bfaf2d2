//! Pulling from work queues: nothing is acknowledged by itself, and a message that is dropped unacknowledged comes again.

use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, ConsumerError, ConsumerErrorKind, DiscardPolicy, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, AckKind, ErrorCode};
use bulkhead_bus::{ConsumerSpec, StreamName, StreamSpec};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bus::{Bus, EnsureError, Ensured};
use crate::headers::Headers;

const EXPIRES: Duration = Duration::from_secs(20);
/// Two that are missing end a pull: where the server that held it has died, this is how long nobody notices.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// What JetStream answers as long as it cannot do anything.
const UNAVAILABLE: usize = 503;
/// The smallest that the server takes; work queues here must not drop by message id (facts: nats-imports, obligation 2).
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// Why pulling ended. Pull again after a pause.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("find consumer of {stream}")]
    Find { stream: &'static str, source: async_nats::Error },
    #[error("pull from {stream}")]
    Pull { stream: &'static str, source: async_nats::Error },
    #[error("pulling from {0} ended")]
    Ended(&'static str),
}

/// One message of a work queue.
pub struct Delivery {
    pub subject: String,
    pub headers: Headers,
    pub body: Bytes,
    /// 1 at the first delivery.
    pub delivered: i64,
    pub stream_sequence: u64,
    /// When the stream stored it, unix milliseconds.
    pub stored_ms: i64,
    message: jetstream::Message,
}

impl Delivery {
    fn new(message: jetstream::Message) -> Option<Self> {
        let info = message.info().ok()?;
        let (delivered, stream_sequence) = (info.delivered, info.stream_sequence);
        let stored_ms = i64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).ok()?;
        Some(Self {
            subject: message.subject.to_string(),
            headers: Headers(message.headers.clone().unwrap_or_default()),
            body: message.payload.clone(),
            delivered,
            stream_sequence,
            stored_ms,
            message,
        })
    }

    async fn settle(&self, kind: AckKind) -> anyhow::Result<()> {
        self.message.ack_with(kind).await.map_err(anyhow::Error::from_boxed)
    }

    /// Done: the queue forgets it. An acknowledgement that is lost means one more delivery.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn ack(&self) -> anyhow::Result<()> {
        self.settle(AckKind::Ack).await
    }

    /// Not now: deliver it again after `delay`.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn retry_after(&self, delay: Duration) -> anyhow::Result<()> {
        self.settle(AckKind::Nak(Some(delay))).await
    }

    /// Still at it: start the acknowledgement wait anew.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn extend(&self) -> anyhow::Result<()> {
        self.settle(AckKind::Progress).await
    }
}

/// Asks for messages of a stream's durable consumer, as many at a time as there is room for.
pub struct Fetcher {
    stream: &'static str,
    consumer: consumer::PullConsumer,
    losses: watch::Receiver<u64>,
}

/// What came of a question for messages.
pub enum Fetched {
    Delivery(Box<Delivery>),
    /// As many came as were asked for, or no more in time: ask again.
    End,
    /// The connection was lost; what the server had sent and was not read comes again.
    Lost,
}

/// The answers to one question.
pub struct Fetching {
    stream: &'static str,
    messages: pull::Batch,
    losses: watch::Receiver<u64>,
}

impl Fetcher {
    /// Asks for `most` messages; the server keeps the question open for `wait`.
    ///
    /// # Errors
    /// When the question cannot be asked.
    pub async fn fetch(&self, most: usize, wait: Duration) -> Result<Fetching, PullError> {
        let mut losses = self.losses.clone();
        losses.mark_unchanged();
        let asked = self.consumer.batch().max_messages(most).expires(wait).messages().await;
        let messages = asked.map_err(|source| PullError::Pull { stream: self.stream, source: source.into() })?;
        Ok(Fetching { stream: self.stream, messages, losses })
    }
}

impl Fetching {
    /// The next answer.
    ///
    /// # Errors
    /// When the server ends the question for another reason than that nothing came.
    pub async fn next(&mut self) -> Result<Fetched, PullError> {
        loop {
            let next = tokio::select! {
                biased;
                next = self.messages.next() => next,
                Ok(()) = self.losses.changed() => return Ok(Fetched::Lost),
            };
            match next {
                None => return Ok(Fetched::End),
                Some(Ok(message)) => {
                    // One without the server's own words about it is no message of a consumer.
                    let Some(delivery) = Delivery::new(message) else { continue };
                    return Ok(Fetched::Delivery(Box::new(delivery)));
                }
                Some(Err(source)) => return Err(PullError::Pull { stream: self.stream, source }),
            }
        }
    }
}

/// A running pull on a stream's durable consumer.
pub struct Puller {
    stream: &'static str,
    messages: pull::Stream,
}

impl Bus {
    /// Finds the stream's consumer.
    ///
    /// # Errors
    /// When it is not there or may not be used.
    pub async fn fetcher(&self, stream: StreamName) -> Result<Fetcher, PullError> {
        let name = stream.as_str();
        let found = self.jetstream().get_consumer_from_stream(stream.consumer().name, name).await;
        let consumer = found.map_err(|source| PullError::Find { stream: name, source: source.into() })?;
        Ok(Fetcher { stream: name, consumer, losses: self.losses() })
    }

    /// Pulls from the stream's consumer with at most `ahead` messages held here.
    ///
    /// # Errors
    /// When the consumer is not there or may not be used.
    pub async fn pull(&self, stream: StreamName, ahead: usize) -> Result<Puller, PullError> {
        let name = stream.as_str();
        let mut found = self.jetstream().get_consumer_from_stream(stream.consumer().name, name).await;
        // One that was deleted to be made anew, by somebody who was killed in between, is made here.
        if found.is_err() && self.ensure_consumer(stream).await.is_ok() {
            found = self.jetstream().get_consumer_from_stream(stream.consumer().name, name).await;
        }
        let consumer: consumer::PullConsumer =
            found.map_err(|source| PullError::Find { stream: name, source: source.into() })?;
        let pulling = consumer.stream().max_messages_per_batch(ahead).expires(EXPIRES).heartbeat(HEARTBEAT);
        let messages = pulling.messages().await;
        let messages = messages.map_err(|source| PullError::Pull { stream: name, source: source.into() })?;
        Ok(Puller { stream: name, messages })
    }
}

impl Puller {
    /// Waits for one message, then takes what else comes within `linger`, `most` at most.
    ///
    /// # Errors
    /// When pulling cannot go on; everything taken before is in the result of an earlier call.
    pub async fn next_batch(&mut self, most: usize, linger: Duration) -> Result<Vec<Delivery>, PullError> {
        let mut batch = Vec::new();
        let first = self.messages.next().await.ok_or(PullError::Ended(self.stream))?;
        let first = first.map_err(|source| PullError::Pull { stream: self.stream, source: source.into() })?;
        batch.extend(Delivery::new(first));
        let end = Instant::now() + linger;
        while batch.len() < most {
            match tokio::time::timeout_at(end, self.messages.next()).await {
                Ok(Some(Ok(message))) => batch.extend(Delivery::new(message)),
                // An error after messages is reported by the next call; these messages are not to be lost over it.
                Ok(Some(Err(_)) | None) | Err(_) => break,
            }
        }
        Ok(batch)
    }
}

pub(crate) fn stream_config(spec: &StreamSpec, replicas: usize) -> Config {
    Config {
        name: spec.name.to_owned(),
        subjects: spec.subjects.clone(),
        storage: StorageType::File,
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        max_bytes: spec.max_bytes,
        max_messages_per_subject: spec.max_messages_per_subject.unwrap_or(-1),
        discard_new_per_subject: spec.max_messages_per_subject.is_some(),
        max_message_size: spec.max_message_bytes,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: replicas,
        ..Config::default()
    }
}

pub(crate) fn consumer_config(spec: ConsumerSpec) -> pull::Config {
    pull::Config {
        name: Some(spec.name.to_owned()),
        durable_name: Some(spec.name.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(spec.ack_wait_s),
        max_ack_pending: spec.max_ack_pending,
        ..pull::Config::default()
    }
}

/// Whether the server says "not now": it starts, or the servers of a cluster have no leader yet or do not know each
/// other yet.
fn is_passing(error: &jetstream::Error) -> bool {
    error.code() == UNAVAILABLE || error.error_code() == ErrorCode::CLUSTER_NO_PEERS
}

fn stream_trouble(spec: &StreamSpec, error: CreateStreamError) -> EnsureError {
    let is_passing = match error.kind() {
        CreateStreamErrorKind::JetStreamUnavailable | CreateStreamErrorKind::TimedOut => true,
        CreateStreamErrorKind::JetStream(error) => is_passing(&error),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::ResponseParse => false,
    };
    EnsureError { what: format!("stream {}", spec.name), is_passing, source: error.into() }
}

fn consumer_trouble(stream: &str, error: ConsumerError) -> EnsureError {
    let is_passing = match error.kind() {
        ConsumerErrorKind::TimedOut | ConsumerErrorKind::Request => true,
        ConsumerErrorKind::JetStream(error) => is_passing(&error),
        ConsumerErrorKind::InvalidConsumerType | ConsumerErrorKind::InvalidName | ConsumerErrorKind::Other => false,
    };
    EnsureError { what: format!("consumer of {stream}"), is_passing, source: error.into() }
}

pub(crate) async fn ensure_stream(
    jetstream: &jetstream::Context,
    spec: &StreamSpec,
    replicas: usize,
) -> Result<Ensured, EnsureError> {
    let config = stream_config(spec, replicas);
    let ensured = match jetstream.update_stream(&config).await {
        Ok(_) => Ensured::Updated,
        Err(error) if matches!(error.kind(), CreateStreamErrorKind::NotFound) => {
            jetstream.create_stream(config).await.map_err(|error| stream_trouble(spec, error))?;
            Ensured::Created
        }
        Err(error) => return Err(stream_trouble(spec, error)),
    };
    ensure_consumer(jetstream, spec.name, spec.consumer).await?;
    Ok(ensured)
}

pub(crate) async fn ensure_consumer(
    jetstream: &jetstream::Context,
    stream: &'static str,
    spec: ConsumerSpec,
) -> Result<(), EnsureError> {
    let made = jetstream.create_consumer_on_stream(consumer_config(spec), stream).await;
    made.map(|_| ()).map_err(|error| consumer_trouble(stream, error))
}
