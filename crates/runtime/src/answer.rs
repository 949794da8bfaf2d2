//! Answering requests: only on reply subjects that the server made.

use async_nats::Client;
use async_nats::client::PublishErrorKind;
use bytes::Bytes;
use futures_util::StreamExt;

use crate::bus::PublishError;

/// Requests as they come in.
pub struct Answerer {
    pub(crate) requests: async_nats::Subscriber,
    pub(crate) client: Client,
}

/// A request, and the one way to answer it.
pub struct Responder {
    pub subject: String,
    pub body: Bytes,
    reply: Option<String>,
    client: Client,
}

impl Answerer {
    /// The next request; `None` when the connection is closed for good.
    pub async fn next(&mut self) -> Option<Responder> {
        let request = self.requests.next().await?;
        Some(Responder {
            subject: request.subject.to_string(),
            body: request.payload,
            reply: request.reply.map(|reply| reply.to_string()),
            client: self.client.clone(),
        })
    }
}

impl Responder {
    /// Whether the server made the reply subject. A raw leaf can name `$JS.ACK...`, which must never be answered
    /// (facts: nats-imports, D).
    #[must_use]
    pub fn is_answerable(&self) -> bool {
        self.reply.as_deref().is_some_and(|reply| reply.starts_with("_R_."))
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
