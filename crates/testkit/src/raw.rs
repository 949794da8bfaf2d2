//! A client that says anything: any subject, line ends inside it, wrong lengths, foreign headers.
//!
//! It checks nothing that it sends and obeys nothing that it is told; what the server says is kept in full.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::dial::{ConnectError, dial};
use crate::identity::{Endpoint, Identity};
use crate::session::{Closed, Flushed, Session};
use crate::wire::{Dialect, RawMessage};

/// A connected hostile client.
pub struct RawClient {
    session: Session,
    last_sid: AtomicU64,
}

impl RawClient {
    /// Connects and returns once the server has answered a PING after CONNECT.
    ///
    /// # Errors
    /// [`ConnectError`] tells a refusal, with the server's words, from a server that is not there.
    pub async fn connect(endpoint: &Endpoint, identity: &Identity) -> Result<Self, ConnectError> {
        let tls = identity.client_config().map_err(ConnectError::Identity)?;
        let opened = dial(endpoint, tls, Dialect::Client).await?;
        let said = json!({
            "verbose": false, "pedantic": false, "echo": true, "headers": true, "no_responders": true, "protocol": 1,
            "lang": "raw", "version": env!("CARGO_PKG_VERSION"), "name": "raw-client",
        });
        let connect = identity.sign_connect(said, &opened.info).map_err(ConnectError::Identity)?;
        let session = Session::start(opened);
        session.admit(&format!("CONNECT {connect}\r\n")).await?;
        Ok(Self { session, last_sid: AtomicU64::new(0) })
    }

    /// `headers` is a whole block, as [`header_block`] makes one; nothing is escaped.
    ///
    /// # Errors
    /// When the bytes cannot be written, as after the server closed the connection.
    pub async fn publish(
        &self,
        subject: &str,
        reply: Option<&str>,
        headers: Option<&str>,
        body: &[u8],
    ) -> anyhow::Result<()> {
        self.session.send(&message_bytes(["PUB", "HPUB"], (subject, reply), headers, body)).await
    }

    /// Returns the subscription's id. `pattern` may carry a queue group behind a space.
    ///
    /// # Errors
    /// As [`RawClient::publish`]; the server's refusal is in [`RawClient::errors`] after a flush.
    pub async fn subscribe(&self, pattern: &str) -> anyhow::Result<u64> {
        let sid = self.last_sid.fetch_add(1, Ordering::SeqCst) + 1;
        self.session.send(format!("SUB {pattern} {sid}\r\n").as_bytes()).await?;
        Ok(sid)
    }

    /// # Errors
    /// As [`RawClient::publish`].
    pub async fn send_raw(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.session.send(bytes).await
    }

    /// Waits until the server has read everything sent so far and what it had to say to it has come.
    ///
    /// # Errors
    /// When the server neither answers nor ends the connection in time.
    pub async fn flush(&self) -> anyhow::Result<Flushed> {
        self.session.flush().await
    }

    #[must_use]
    pub fn received(&self) -> Vec<RawMessage> {
        self.session.look(|seen| seen.messages.clone())
    }

    /// The texts of all `-ERR` so far.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.session.look(|seen| seen.errors.clone())
    }

    /// The server's INFO, the newest.
    #[must_use]
    pub fn info(&self) -> Value {
        self.session.look(|seen| seen.infos.last().cloned().unwrap_or_default())
    }

    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.session.look(|seen| seen.closed.is_some())
    }

    /// # Errors
    /// When the connection is still open after `limit`.
    pub async fn wait_closed(&self, limit: Duration) -> anyhow::Result<Closed> {
        self.session.wait_closed(limit).await
    }

    /// The first received message that `is_wanted`, whether it came already or comes within `limit`.
    ///
    /// # Errors
    /// When none came; the error shows what did.
    pub async fn wait_for(
        &self,
        limit: Duration,
        is_wanted: impl Fn(&RawMessage) -> bool,
    ) -> anyhow::Result<RawMessage> {
        self.session.wait_for(limit, is_wanted).await
    }
}

/// A header block as an honest client writes it.
#[must_use]
pub fn header_block(headers: &[(&str, &str)]) -> String {
    let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("NATS/1.0\r\n{}\r\n", lines.concat())
}

/// `verbs` are those without and with headers.
pub(crate) fn message_bytes(
    verbs: [&str; 2],
    (subject, reply): (&str, Option<&str>),
    headers: Option<&str>,
    body: &[u8],
) -> Vec<u8> {
    let reply = reply.map_or_else(String::new, |reply| format!(" {reply}"));
    let block = headers.unwrap_or_default();
    let total = block.len() + body.len();
    let line = match headers {
        Some(_) => format!("{} {subject}{reply} {} {total}\r\n", verbs[1], block.len()),
        None => format!("{} {subject}{reply} {total}\r\n", verbs[0]),
    };
    [line.as_bytes(), block.as_bytes(), body, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &[u8], expected: &str) {
        assert_eq!(String::from_utf8_lossy(written), expected);
    }

    #[test]
    fn messages_are_written_as_the_protocol_wants_and_nothing_is_escaped() {
        let verbs = ["PUB", "HPUB"];
        check(&message_bytes(verbs, ("a", None), None, b"hi"), "PUB a 2\r\nhi\r\n");
        check(&message_bytes(verbs, ("a", Some("r")), None, b""), "PUB a r 0\r\n\r\n");
        let block = header_block(&[("K", "v")]);
        check(
            &message_bytes(verbs, ("a", None), Some(&block), b"hi"),
            "HPUB a 18 20\r\nNATS/1.0\r\nK: v\r\n\r\nhi\r\n",
        );
        check(&message_bytes(verbs, ("a 0\r\n\r\nPUB b", None), None, b""), "PUB a 0\r\n\r\nPUB b 0\r\n\r\n");
    }
}
