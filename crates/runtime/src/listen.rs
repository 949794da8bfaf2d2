//! Subscriptions: messages that are delivered at most once, and requests, which are answered only on reply subjects that
//! the server made.

use std::time::Duration;

use async_nats::Client;
use async_nats::client::PublishErrorKind;
use bulkhead_bus::table::ASKER_INBOX;
use bulkhead_bus::{CoreSubject, TenantSubject};
use bytes::Bytes;
use futures_util::StreamExt;

use crate::Backoff;
use crate::bus::{Bus, PublishError};
use crate::headers::Headers;

const AGAIN_FIRST: Duration = Duration::from_millis(20);
const AGAIN_MOST: Duration = Duration::from_secs(1);

/// A message that was delivered at most once.
#[derive(Debug, Clone)]
pub struct Message {
    pub subject: String,
    pub headers: Headers,
    pub body: Bytes,
}

/// A subscription that is made again where its client has ended.
pub struct Listener {
    bus: Bus,
    pattern: String,
    queue: Option<String>,
    messages: async_nats::Subscriber,
}

async fn subscribe(
    client: &Client,
    pattern: &str,
    queue: Option<&str>,
) -> Result<async_nats::Subscriber, PublishError> {
    let subscribed = match queue {
        Some(queue) => client.queue_subscribe(pattern.to_owned(), queue.to_owned()).await,
        None => client.subscribe(pattern.to_owned()).await,
    };
    subscribed.map_err(|_| PublishError::new(pattern.to_owned(), async_nats::PublishError::new(PublishErrorKind::Send)))
}

impl Listener {
    pub(crate) async fn new(bus: Bus, pattern: String, queue: Option<String>) -> Result<Self, PublishError> {
        let messages = subscribe(&bus.client(), &pattern, queue.as_deref()).await?;
        Ok(Self { bus, pattern, queue, messages })
    }

    async fn next_message(&mut self) -> async_nats::Message {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        loop {
            if let Some(message) = self.messages.next().await {
                return message;
            }
            backoff.pause().await;
            self.bus.until_connected().await;
            // It may have ended again already.
            if let Ok(messages) = subscribe(&self.bus.client(), &self.pattern, self.queue.as_deref()).await {
                self.messages = messages;
            }
        }
    }

    /// The next message, for however long that takes.
    pub async fn next(&mut self) -> Message {
        let message = self.next_message().await;
        Message {
            subject: message.subject.to_string(),
            headers: Headers(message.headers.unwrap_or_default()),
            body: message.payload,
        }
    }
}

fn is_of_service(subject: &str) -> bool {
    matches!(subject.parse(), Ok(CoreSubject { subject: TenantSubject::Service { .. }, .. }))
}

fn is_in(inbox: &str, reply: &str) -> bool {
    reply.strip_prefix(inbox).is_some_and(|rest| rest.starts_with('.'))
}

/// Requests as they come in.
pub struct Answerer(pub(crate) Listener);

/// A request, and the one way to answer it.
pub struct Responder {
    pub subject: String,
    pub headers: Headers,
    pub body: Bytes,
    reply: Option<String>,
    client: Client,
}

impl Answerer {
    /// The next request, for however long that takes.
    pub async fn next(&mut self) -> Responder {
        let request = self.0.next_message().await;
        Responder {
            subject: request.subject.to_string(),
            headers: Headers(request.headers.unwrap_or_default()),
            body: request.payload,
            reply: request.reply.map(|reply| reply.to_string()),
            client: self.0.bus.client(),
        }
    }
}

impl Responder {
    /// Whether the server made the reply subject. A raw leaf can name `$JS.ACK...`, which must never be answered
    /// (facts: nats-imports, D). What services ask comes over no import, on subjects that no tenant can reach: there it is
    /// the inbox of the one that asks.
    #[must_use]
    pub fn is_answerable(&self) -> bool {
        let Some(reply) = self.reply.as_deref() else { return false };
        reply.starts_with("_R_.") || is_of_service(&self.subject) && is_in(ASKER_INBOX, reply)
    }

    /// # Errors
    /// When the reply subject is not the server's, or the connection is closed.
    pub async fn answer(self, body: Bytes) -> Result<(), PublishError> {
        let is_answerable = self.is_answerable();
        let Some(reply) = self.reply.filter(|_| is_answerable) else {
            let source = async_nats::PublishError::new(PublishErrorKind::InvalidSubject);
            return Err(PublishError::new(self.subject, source));
        };
        let sent = self.client.publish(reply, body).await;
        sent.map_err(|source| PublishError::new(self.subject, source))
    }
}
