//! What a process may do on the bus. How it connects is [`Bus::connect`] and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::Client;
use async_nats::client::{PublishErrorKind, RequestErrorKind};
use bulkhead_bus::{StreamName, StreamSpec};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::Instant;

use crate::chain::Chain;
use crate::credentials::{Credentials, CredentialsError};
use crate::headers::Headers;
use crate::link::Link;
use crate::listen::{Answerer, Listener};
use crate::tls::{TlsError, TlsFiles, client_config};
use crate::wait::Backoff;

/// Pauses after a refusal that may be of the moment only.
const REFUSED_FIRST: Duration = Duration::from_millis(25);
const REFUSED_MOST: Duration = Duration::from_millis(500);
pub(crate) const JETSTREAM_LIMIT: Duration = Duration::from_secs(5);

/// Where to connect and as whom.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BusSettings {
    /// Such as `tls://hub-1.example:4222`; all servers that may be used.
    pub urls: Vec<String>,
    pub tls: TlsFiles,
    /// A NATS credentials file; absent where the certificate alone decides, as on a leaf.
    #[serde(default)]
    pub creds_file: Option<PathBuf>,
    /// The user's private inbox prefix, such as `_INBOX_oslo.p1`.
    pub inbox_prefix: String,
}

impl BusSettings {
    /// What is wrong with them for a connection to the hub, one line each, below the name `key`.
    #[must_use]
    pub fn hub_problems(&self, key: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.urls.is_empty() {
            problems.push(format!("  {key}.urls: [] names no server: write for example [\"tls://127.0.0.1:4222\"]"));
        }
        for url in self.urls.iter().filter(|url| !url.starts_with("tls://")) {
            problems.push(format!("  {key}.urls: {url:?} does not begin with tls://: the hub is asked over TLS only"));
        }
        if let Err(error) = client_config(&self.tls) {
            problems.push(format!("  {key}.tls: {}", Chain(&error)));
        }
        if let Some(Err(error)) = self.creds_file.as_deref().map(Credentials::read) {
            problems.push(format!("  {key}.creds_file: {}", Chain(&error)));
        }
        problems
    }
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("server address {0:?} is not valid: write tls://host:port")]
    Address(String),
    #[error("no server address given")]
    NoAddress,
    #[error("load certificates")]
    Tls(#[source] TlsError),
    #[error("load credentials")]
    Credentials(#[source] CredentialsError),
    #[error("connect to {urls}")]
    Connect { urls: String, source: async_nats::ConnectError },
}

impl ConnectError {
    /// Whether a server was there and does not admit this user.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        // What a server says to whom it knows and has no place for; the library has no kind for it.
        const NO_PLACE: &str = "maximum account active connections exceeded";
        let Self::Connect { source, .. } = self else { return false };
        source.kind() == async_nats::ConnectErrorKind::AuthorizationViolation || source.to_string().contains(NO_PLACE)
    }

    /// Whether it may be of the moment. A server that is busy with too many handshakes says so in the place of its own.
    fn may_pass(&self) -> bool {
        let is_cut_short = |source: &async_nats::ConnectError| source.kind() == async_nats::ConnectErrorKind::Tls;
        self.is_refused() || matches!(self, Self::Connect { source, .. } if is_cut_short(source))
    }
}

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
#[error("publish to {subject}")]
pub struct PublishError {
    subject: String,
    source: async_nats::PublishError,
}

impl PublishError {
    pub(crate) fn new(subject: String, source: async_nats::PublishError) -> Self {
        Self { subject, source }
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("nobody answers on {0}")]
    NobodyAnswers(String),
    #[error("this user may not ask on {0}")]
    NotPermitted(String),
    #[error("no answer on {subject} within {limit:?}")]
    Timeout { subject: String, limit: Duration },
    #[error("the answer on {subject} is {code}, {description}")]
    Refused { subject: String, code: u64, description: String },
    #[error("the answer on {0} is not readable")]
    Unreadable(String, #[source] serde_json::Error),
    #[error("request {subject}")]
    Other { subject: String, source: async_nats::RequestError },
}

/// What the server's own interface answers: what was asked for, or an error.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Said<T> {
    Error { error: ApiError },
    Value(T),
}

/// Where a stored message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub stream: String,
    pub sequence: u64,
}

/// Why a message is not (known to be) in a stream.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing listens: the link or the server is down, or the stream is not there.
    #[error("no stream takes {0} now")]
    NoStream(String),
    /// Nobody knows whether it was stored: send it again.
    #[error("no acknowledgement for {0} in time")]
    Unknown(String),
    /// The stream, or this subject's quota in it, is full: keep the message and try later.
    #[error("{subject} is full: {description}")]
    Full { subject: String, description: String },
    /// The message can never be stored.
    #[error("{subject} refuses the message: {description}")]
    Refused { subject: String, description: String },
    #[error("send to {subject}")]
    Send { subject: String, source: async_nats::RequestError },
}

/// What the server said to an attempt to store.
#[derive(Debug, Deserialize)]
struct PubAck {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    error: Option<ApiError>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    pub(crate) code: u64,
    #[serde(default)]
    pub(crate) err_code: u64,
    #[serde(default)]
    pub(crate) description: String,
}

/// JetStream error codes that mean "later", not "never" (server/errors.json): insufficient resources, storage
/// exceeded, JetStream unavailable, the store's own errors (maximum bytes, messages, messages per subject).
const LATER: [u64; 6] = [10_023, 10_047, 10_008, 10_077, 10_076, 10_039];
/// Message size exceeds maximum allowed.
const TOO_LARGE: u64 = 10_054;

/// What has changed of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    Created,
    Updated,
}

/// Why a stream or consumer could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make {what}")]
pub struct EnsureError {
    pub(crate) what: String,
    pub(crate) is_passing: bool,
    pub(crate) source: async_nats::Error,
}

impl EnsureError {
    /// Whether trying again may help: the server cannot yet, as opposed to will not.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.is_passing
    }
}

/// A connection to the bus. Clones share it.
#[derive(Debug, Clone)]
pub struct Bus {
    link: Link,
}

impl Bus {
    /// Connects as the user that the settings describe; afterwards the connection heals itself.
    ///
    /// # Errors
    /// When a file cannot be used or no server admits us now.
    pub async fn connect(settings: &BusSettings, name: &str) -> Result<Self, ConnectError> {
        Ok(Self { link: Link::connect(settings, name).await? })
    }

    /// Connects; a refusal is tried again until `limit`. Servers ask any gatekeeper, also one at a server that hangs, until
    /// that is noticed, gatekeepers hear of what is new in a moment, and of many who come at once some are turned away.
    ///
    /// # Errors
    /// As [`Bus::connect`]; a refusal when it was one at the end, too.
    pub async fn connect_admitted(settings: &BusSettings, name: &str, limit: Duration) -> Result<Self, ConnectError> {
        let end = Instant::now() + limit;
        let mut backoff = Backoff::new(REFUSED_FIRST, REFUSED_MOST);
        loop {
            match Self::connect(settings, name).await {
                Err(error) if error.may_pass() && Instant::now() < end => backoff.pause().await,
                connected => return connected,
            }
        }
    }

    /// The client of now: another one takes its place when its task ends.
    pub(crate) fn client(&self) -> Client {
        self.link.client()
    }

    pub(crate) fn jetstream(&self) -> async_nats::jetstream::Context {
        self.link.jetstream()
    }

    /// The id of the server that we are connected to; it is another one after each of its starts.
    #[must_use]
    pub fn server_id(&self) -> String {
        self.client().server_info().server_id
    }

    /// The version of the server that we are connected to, such as `2.14.4`.
    #[must_use]
    pub fn server_version(&self) -> String {
        self.client().server_info().version
    }

    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }

    /// Waits until there is a connection. What is asked without one is sent late or never, and the answer waited for.
    pub async fn until_connected(&self) {
        let mut made = self.link.made();
        // The sender lives as long as we do.
        while !self.is_connected() && made.changed().await.is_ok() {}
    }

    /// Counts the losses of this connection; changes with each.
    #[must_use]
    pub fn losses(&self) -> tokio::sync::watch::Receiver<u64> {
        self.link.losses()
    }

    /// Publishes at most once: nobody says whether it arrived.
    ///
    /// # Errors
    /// When the message cannot be handed to the connection.
    pub async fn publish(&self, subject: &str, body: Bytes) -> Result<(), PublishError> {
        let sent = self.client().publish(subject.to_owned(), body).await;
        sent.map_err(|source| PublishError { subject: subject.to_owned(), source })
    }

    /// Publishes into whatever stream takes `subject` and waits until it says that it has the message.
    ///
    /// # Errors
    /// [`StoreError`] tells what to do: wait, send again, or give up on this message.
    pub async fn store(
        &self,
        subject: &str,
        headers: Headers,
        body: Bytes,
        limit: Duration,
    ) -> Result<Stored, StoreError> {
        let said = self.offer(subject, headers, body, limit).await?;
        let subject = subject.to_owned();
        said.map_err(|error| match error.err_code {
            TOO_LARGE => StoreError::Refused { subject, description: error.description },
            code if LATER.contains(&code) => StoreError::Full { subject, description: error.description },
            // An error we do not know may pass: treating it as final would lose the message.
            _ => StoreError::Full { subject, description: error.description },
        })
    }

    /// Offers a message to whatever stream takes it; within, what the server has against it.
    pub(crate) async fn offer(
        &self,
        subject: &str,
        headers: Headers,
        body: Bytes,
        limit: Duration,
    ) -> Result<Result<Stored, ApiError>, StoreError> {
        let request = async_nats::Request::new().headers(headers.0).payload(body).timeout(Some(limit));
        let answer = self.client().send_request(subject.to_owned(), request).await.map_err(|source| {
            let subject = subject.to_owned();
            match source.kind() {
                RequestErrorKind::NoResponders => StoreError::NoStream(subject),
                RequestErrorKind::TimedOut => StoreError::Unknown(subject),
                RequestErrorKind::MaxPayloadExceeded => {
                    StoreError::Refused { subject, description: "larger than the server's max_payload".to_owned() }
                }
                RequestErrorKind::InvalidSubject | RequestErrorKind::Other => StoreError::Send { subject, source },
            }
        })?;
        let subject = subject.to_owned();
        let Ok(ack) = serde_json::from_slice::<PubAck>(&answer.payload) else {
            return Err(StoreError::Unknown(subject));
        };
        match ack.error {
            None if !ack.stream.is_empty() => Ok(Ok(Stored { stream: ack.stream, sequence: ack.seq })),
            None => Err(StoreError::Unknown(subject)),
            Some(error) => Ok(Err(error)),
        }
    }

    /// Asks and waits for one answer.
    ///
    /// # Errors
    /// When nobody answers, in time or at all.
    pub async fn request(&self, subject: &str, body: Bytes, limit: Duration) -> Result<Bytes, RequestError> {
        self.request_with(subject, Headers::default(), body, limit).await
    }

    /// As [`Bus::request`], with headers.
    ///
    /// # Errors
    /// As [`Bus::request`].
    pub async fn request_with(
        &self,
        subject: &str,
        headers: Headers,
        body: Bytes,
        limit: Duration,
    ) -> Result<Bytes, RequestError> {
        let request = async_nats::Request::new().payload(body).timeout(Some(limit));
        let request = if headers.is_empty() { request } else { request.headers(headers.0) };
        let mut refusals = self.link.refusals();
        let (client, quoted) = (self.client(), format!("\"{}\"", subject.to_lowercase()));
        // The server says so apart from the request, of which nobody ever hears.
        let refused = refusals.wait_for(|said| said.to_lowercase().contains(&quoted));
        let answer = tokio::select! {
            answer = client.send_request(subject.to_owned(), request) => answer,
            Ok(_) = refused => return Err(RequestError::NotPermitted(subject.to_owned())),
        };
        let answer = answer.map_err(|source| {
            let subject = subject.to_owned();
            match source.kind() {
                RequestErrorKind::NoResponders => RequestError::NobodyAnswers(subject),
                RequestErrorKind::TimedOut => RequestError::Timeout { subject, limit },
                RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
                    RequestError::Other { subject, source }
                }
            }
        })?;
        Ok(answer.payload)
    }

    /// Asks every server or service on `subject` and collects what is answered until `limit`, or until `enough` came.
    ///
    /// # Errors
    /// When the question cannot be sent.
    pub async fn request_all(
        &self,
        subject: &str,
        body: Bytes,
        enough: usize,
        limit: Duration,
    ) -> Result<Vec<Bytes>, PublishError> {
        let failed = |source| PublishError { subject: subject.to_owned(), source };
        let closed = |_| failed(async_nats::PublishError::new(PublishErrorKind::Send));
        let inbox = self.client().new_inbox();
        let mut answers = self.client().subscribe(inbox.clone()).await.map_err(closed)?;
        self.client().publish_with_reply(subject.to_owned(), inbox, body).await.map_err(failed)?;
        let mut collected = Vec::new();
        let collect = async {
            while collected.len() < enough
                && let Some(answer) = answers.next().await
            {
                collected.extend((!answer.payload.is_empty()).then_some(answer.payload));
            }
        };
        // Passing the limit is normal: then there were fewer than enough.
        let _ = tokio::time::timeout(limit, collect).await;
        Ok(collected)
    }

    /// Listens; messages are delivered at most once.
    ///
    /// # Errors
    /// When the connection cannot take the subscription now.
    pub async fn listen(&self, pattern: &str) -> Result<Listener, PublishError> {
        Listener::new(self.clone(), pattern.to_owned(), None).await
    }

    /// Answers requests on `pattern`, sharing them with every other process of the same `queue`.
    ///
    /// # Errors
    /// When the connection cannot take the subscription now.
    pub async fn answer(&self, pattern: &str, queue: &str) -> Result<Answerer, PublishError> {
        Ok(Answerer(Listener::new(self.clone(), pattern.to_owned(), Some(queue.to_owned())).await?))
    }

    /// Makes or updates a stream and its durable pull consumer.
    ///
    /// # Errors
    /// When the server refuses, for example because a limit of the account is reached.
    pub async fn ensure_stream(&self, spec: &StreamSpec, replicas: usize) -> Result<Ensured, EnsureError> {
        crate::durable::ensure_stream(&self.jetstream(), spec, replicas).await
    }

    /// Makes or updates a stream's durable pull consumer.
    ///
    /// # Errors
    /// When the server refuses, or the stream is not there.
    pub(crate) async fn ensure_consumer(&self, stream: StreamName) -> Result<(), EnsureError> {
        crate::durable::ensure_consumer(&self.jetstream(), stream.as_str(), stream.consumer()).await
    }

    /// Asks the server's own interface, which answers in JSON.
    ///
    /// # Errors
    /// When it does not answer, or says that it cannot: an error must never be read as an answer without any of its parts.
    pub(crate) async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        subject: String,
        question: &serde_json::Value,
    ) -> Result<T, RequestError> {
        let answer = self.request(&subject, question.to_string().into(), JETSTREAM_LIMIT).await?;
        match serde_json::from_slice(&answer) {
            Ok(Said::Value(value)) => Ok(value),
            Ok(Said::Error { error: ApiError { code, description, .. } }) => {
                Err(RequestError::Refused { subject, code, description })
            }
            Err(source) => Err(RequestError::Unreadable(subject, source)),
        }
    }

    /// Waits until everything that was published has reached the server.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn flush(&self) -> anyhow::Result<()> {
        Ok(self.client().flush().await?)
    }
}
