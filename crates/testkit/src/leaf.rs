//! A leaf node that obeys nothing: it sends what its hub did not allow and asks for what is not its own.
//!
//! It speaks the leaf protocol of nats-server (server/leafnode.go) as a soliciting leaf does, without compression. It
//! never forwards, and what the hub says about permissions is only kept for the test to look at.

use std::time::Duration;

use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::dial::{ConnectError, dial};
use crate::identity::{Endpoint, Identity};
use crate::raw::message_bytes;
use crate::session::{Closed, Flushed, Session};
use crate::wire::{Dialect, RawMessage};

/// What the leaf says it runs: the oldest server that the product admits.
pub(crate) const CLAIMED_VERSION: &str = "2.14.4";

/// A connected hostile leaf.
pub struct RawLeaf {
    session: Session,
}

impl RawLeaf {
    /// Connects as the leaf node `name` and returns once the hub has answered a PING after CONNECT.
    ///
    /// # Errors
    /// [`ConnectError`] tells a refusal, with the hub's words, from a hub that is not there.
    pub async fn connect(endpoint: &Endpoint, identity: &Identity, name: &str) -> Result<Self, ConnectError> {
        let tls = identity.client_config().map_err(ConnectError::Identity)?;
        let opened = dial(endpoint, tls, Dialect::Leaf).await?;
        // No `lang`: the hub takes who names one for a client on the wrong port.
        let said = json!({
            "version": CLAIMED_VERSION, "server_id": KeyPair::new_server().public_key(), "name": name, "cluster": "",
            "headers": true, "protocol": 1, "remote_account": "SITE",
        });
        let connect = identity.sign_connect(said, &opened.info).map_err(ConnectError::Identity)?;
        let session = Session::start(opened);
        session.admit(&format!("CONNECT {connect}\r\n")).await?;
        Ok(Self { session })
    }

    /// Sends a message as if a client of this leaf had published it.
    ///
    /// # Errors
    /// When the bytes cannot be written, as after the hub closed the connection.
    pub async fn lmsg(&self, subject: &str, reply: Option<&str>, body: &[u8]) -> anyhow::Result<()> {
        self.lmsg_with_headers(subject, reply, None, body).await
    }

    /// `headers` is a whole block, as [`crate::header_block`] makes one; nothing is escaped.
    ///
    /// # Errors
    /// As [`RawLeaf::lmsg`].
    pub async fn lmsg_with_headers(
        &self,
        subject: &str,
        reply: Option<&str>,
        headers: Option<&str>,
        body: &[u8],
    ) -> anyhow::Result<()> {
        self.session.send(&message_bytes(["LMSG", "HMSG"], (subject, reply), headers, body)).await
    }

    /// Tells the hub that somebody here wants `pattern`; a queue group and its weight may follow behind spaces.
    ///
    /// # Errors
    /// As [`RawLeaf::lmsg`].
    pub async fn subscribe(&self, pattern: &str) -> anyhow::Result<()> {
        self.session.send(format!("LS+ {pattern}\r\n").as_bytes()).await
    }

    /// # Errors
    /// As [`RawLeaf::lmsg`].
    pub async fn unsubscribe(&self, pattern: &str) -> anyhow::Result<()> {
        self.session.send(format!("LS- {pattern}\r\n").as_bytes()).await
    }

    /// # Errors
    /// As [`RawLeaf::lmsg`].
    pub async fn send_raw(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.session.send(bytes).await
    }

    /// Waits until the hub has read everything sent so far and what it had to say to it has come.
    ///
    /// # Errors
    /// When the hub neither answers nor ends the connection in time.
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

    /// Subjects that the hub wants from this leaf, as it wrote them behind `LS+`.
    #[must_use]
    pub fn hub_interest(&self) -> Vec<String> {
        self.session.look(|seen| seen.interest.clone())
    }

    /// Every INFO of the hub, oldest first; those after the first tell permissions and the account.
    #[must_use]
    pub fn infos(&self) -> Vec<Value> {
        self.session.look(|seen| seen.infos.clone())
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
