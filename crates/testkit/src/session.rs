//! A live connection of an attacker: a reader that keeps everything the server says, and a writer that says anything.
//!
//! What was seen is one state that can be waited for; nothing is lost between a look and a wait.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::dial::{CONNECT_LIMIT, ConnectError, Opened, Stream, broken_off};
use crate::wire::{Decoder, Frame, RawMessage};

/// A server that does not take bytes for so long is stuck.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
const FLUSH_LIMIT: Duration = Duration::from_secs(10);
/// Of everything received; then the connection is given up, so that a flood cannot eat the machine.
const KEPT_BYTES_MOST: usize = 256 * 1024 * 1024;
/// What a kept message costs beside its bytes, roughly.
const KEPT_MESSAGE_COST: usize = 128;

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// The other side ended it.
    Ended,
    TlsAlert(String),
    /// What came was not the protocol.
    Unreadable(String),
    /// More came than is kept.
    Flooded,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("closed by the server"),
            Self::TlsAlert(alert) => write!(f, "closed by TLS alert {alert}"),
            Self::Unreadable(why) => write!(f, "given up: {why}"),
            Self::Flooded => write!(f, "given up: more than {KEPT_BYTES_MOST} bytes were received"),
        }
    }
}

/// What became of the commands before a flush.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flushed {
    /// All were read by the server; what it had to say to them has arrived.
    Answered,
    /// The connection is over; what came before it ended has been kept.
    Closed(Closed),
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) messages: Vec<RawMessage>,
    pub(crate) errors: Vec<String>,
    pub(crate) infos: Vec<Value>,
    /// Subjects that the other side wants, as it wrote them.
    pub(crate) interest: Vec<String>,
    pub(crate) closed: Option<Closed>,
    pongs: u64,
    kept_bytes: usize,
}

pub(crate) struct Session {
    seen: watch::Receiver<Seen>,
    writer: Writer,
    pings: AtomicU64,
    reader: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Clone)]
struct Writer(Arc<Mutex<WriteHalf<Box<dyn Stream>>>>);

impl Writer {
    async fn send(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let sending = async {
            let mut half = self.0.lock().await;
            half.write_all(bytes).await?;
            half.flush().await
        };
        tokio::time::timeout(WRITE_LIMIT, sending).await.context("send: the server takes no bytes")?.context("send")
    }
}

impl Session {
    pub(crate) fn start(opened: Opened) -> Self {
        let (read_half, write_half) = tokio::io::split(opened.stream);
        let writer = Writer(Arc::new(Mutex::new(write_half)));
        let (noting, seen) = watch::channel(Seen { infos: vec![opened.info], ..Seen::default() });
        let reader = tokio::spawn(read_all(read_half, opened.decoder, noting, writer.clone()));
        Self { seen, writer, pings: AtomicU64::new(0), reader }
    }

    /// Says `opening` and waits until the server has answered the PING behind it, or has refused.
    pub(crate) async fn admit(&self, opening: &str) -> Result<(), ConnectError> {
        self.pings.fetch_add(1, Ordering::SeqCst);
        // A failed write is no reason in itself: the server's reason is what the reader finds.
        let _ = self.writer.send(format!("{opening}PING\r\n").as_bytes()).await;
        let mut seen = self.seen.clone();
        let answered = seen.wait_for(|seen| seen.pongs > 0 || seen.closed.is_some());
        let in_time = tokio::time::timeout(CONNECT_LIMIT, answered).await.is_ok();
        let seen = self.seen.borrow();
        if in_time && seen.pongs > 0 {
            return Ok(());
        }
        if !seen.errors.is_empty() {
            return Err(ConnectError::Refused(seen.errors.join("; ")));
        }
        match &seen.closed {
            Some(Closed::TlsAlert(alert)) => Err(ConnectError::RefusedTls(alert.clone())),
            Some(Closed::Ended | Closed::Flooded) => Err(ConnectError::Closed),
            Some(Closed::Unreadable(why)) => Err(ConnectError::Unreadable(why.clone())),
            None => Err(ConnectError::Timeout(CONNECT_LIMIT)),
        }
    }

    pub(crate) async fn send(&self, bytes: &[u8]) -> anyhow::Result<()> {
        // A PING in raw bytes is answered too, and must not pass for the answer to a later flush.
        let pings = bytes.split(|byte| *byte == b'\n').filter(|line| line.trim_ascii().eq_ignore_ascii_case(b"PING"));
        self.pings.fetch_add(pings.count() as u64, Ordering::SeqCst);
        self.writer.send(bytes).await
    }

    pub(crate) async fn flush(&self) -> anyhow::Result<Flushed> {
        let ping = self.pings.fetch_add(1, Ordering::SeqCst) + 1;
        // As in admit: a connection that is over is told below.
        let sent = self.writer.send(b"PING\r\n").await;
        let mut seen = self.seen.clone();
        let answered = seen.wait_for(|seen| seen.pongs >= ping || seen.closed.is_some());
        match tokio::time::timeout(FLUSH_LIMIT, answered).await {
            Ok(Ok(seen)) => Ok(seen.closed.clone().map_or(Flushed::Answered, Flushed::Closed)),
            Ok(Err(_)) => bail!("flush: the reader stopped"),
            Err(_) => sent.and_then(|()| bail!("flush: no PONG within {FLUSH_LIMIT:?}")),
        }
    }

    pub(crate) fn look<T>(&self, at: impl FnOnce(&Seen) -> T) -> T {
        at(&self.seen.borrow())
    }

    pub(crate) async fn wait_closed(&self, limit: Duration) -> anyhow::Result<Closed> {
        let mut seen = self.seen.clone();
        let over = seen.wait_for(|seen| seen.closed.is_some());
        match tokio::time::timeout(limit, over).await {
            Ok(Ok(seen)) => Ok(seen.closed.clone().unwrap_or(Closed::Ended)),
            Ok(Err(_)) => bail!("wait for the end: the reader stopped"),
            Err(_) => bail!("the server did not close the connection within {limit:?}"),
        }
    }

    /// The first message that `is_wanted`, among those that have come and those that will.
    pub(crate) async fn wait_for(
        &self,
        limit: Duration,
        is_wanted: impl Fn(&RawMessage) -> bool,
    ) -> anyhow::Result<RawMessage> {
        let wanted = |seen: &Seen| seen.messages.iter().find(|message| is_wanted(message)).cloned();
        let mut changes = self.seen.clone();
        let come = changes.wait_for(|seen| seen.closed.is_some() || wanted(seen).is_some());
        let in_time = tokio::time::timeout(limit, come).await.is_ok();
        let seen = self.seen.borrow();
        if let Some(message) = wanted(&seen) {
            return Ok(message);
        }
        let subjects: Vec<&str> = seen.messages.iter().map(|message| message.subject.as_str()).take(20).collect();
        let why = match &seen.closed {
            Some(closed) if in_time => closed.to_string(),
            Some(_) | None => format!("limit of {limit:?} reached"),
        };
        bail!("no such message: {why}; received {}: {subjects:?}; errors: {:?}", seen.messages.len(), seen.errors)
    }
}

async fn read_all(
    mut half: ReadHalf<Box<dyn Stream>>,
    mut decoder: Decoder,
    noting: watch::Sender<Seen>,
    writer: Writer,
) {
    let closed = loop {
        match decoder.next_frame() {
            Ok(Some(Frame::Ping)) => {
                // When this fails the connection is over, and the next read says so.
                let _ = writer.send(b"PONG\r\n").await;
            }
            Ok(Some(frame)) => {
                noting.send_modify(|seen| note(seen, frame));
                if noting.borrow().kept_bytes > KEPT_BYTES_MOST {
                    break Closed::Flooded;
                }
            }
            Ok(None) => match half.read_buf(decoder.buffer()).await {
                Ok(0) => break Closed::Ended,
                Ok(_) => {}
                Err(error) => break closed_by(&error),
            },
            Err(error) => break Closed::Unreadable(error.to_string()),
        }
    };
    let _ = tokio::time::timeout(WRITE_LIMIT, async { writer.0.lock().await.shutdown().await }).await;
    noting.send_modify(|seen| seen.closed = Some(closed));
}

fn closed_by(error: &std::io::Error) -> Closed {
    match broken_off(error) {
        ConnectError::RefusedTls(alert) => Closed::TlsAlert(alert),
        ConnectError::Untrusted(why) => Closed::Unreadable(why),
        ConnectError::Identity(_)
        | ConnectError::Unreachable { .. }
        | ConnectError::Refused(_)
        | ConnectError::Closed
        | ConnectError::Unreadable(_)
        | ConnectError::Timeout(_) => Closed::Ended,
    }
}

fn note(seen: &mut Seen, frame: Frame) {
    seen.kept_bytes += KEPT_MESSAGE_COST;
    match frame {
        Frame::Message(message) => {
            seen.kept_bytes += message.subject.len() + message.headers.as_ref().map_or(0, String::len);
            seen.kept_bytes += message.body.len();
            seen.messages.push(message);
        }
        Frame::Error(text) => seen.errors.push(text),
        Frame::Info(info) => seen.infos.push(info),
        Frame::Interest(subject) => seen.interest.push(subject),
        Frame::NoInterest(subject) => seen.interest.retain(|wanted| *wanted != subject),
        Frame::Pong => seen.pongs += 1,
        Frame::Ping | Frame::Ok | Frame::Connect(_) => {}
    }
}
