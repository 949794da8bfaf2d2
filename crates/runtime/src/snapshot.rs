//! A stream as one piece of bytes and back: JetStream's own snapshot, with the places of its consumers.
//!
//! What the server sends is passed on as it comes, so that a stream never has to fit into memory.

use std::io::{self, Read};
use std::time::Duration;

use bulkhead_bus::StreamName;
use bulkhead_bus::question::{stream_restore, stream_snapshot};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bus::{ApiError, Bus, RequestError, Said};
use crate::wait::{LimitReached, eventually};

const CHUNK_BYTES: usize = 128 * 1024;
/// The server sends so much without waiting for us.
const WINDOW_BYTES: usize = 4 << 20;
/// A server that says nothing for so long has stopped.
const CHUNK_LIMIT: Duration = Duration::from_secs(20);
/// Servers of a hub of three choose a leader 4 to 9 s after their start, and answer nothing before.
const LEADER_LIMIT: Duration = Duration::from_secs(30);
/// The server reads everything back before it says that a stream is restored.
const RESTORED_LIMIT: Duration = Duration::from_secs(120);

/// What a stream was when its snapshot was taken, in the words of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSnapshot {
    pub config: Value,
    pub state: Value,
}

impl StreamSnapshot {
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.state["messages"].as_u64().unwrap_or(0)
    }
}

/// Why there is no snapshot, or no stream from it.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("ask for a snapshot of stream {stream}")]
    Ask { stream: &'static str, source: RequestError },
    #[error("the snapshot of stream {stream} ended early: {reason}")]
    Ended { stream: &'static str, reason: String },
    #[error("write the snapshot of stream {stream}")]
    Write { stream: &'static str, source: io::Error },
    #[error("read the snapshot of stream {stream}")]
    Read { stream: &'static str, source: io::Error },
    #[error("send the snapshot of stream {stream}")]
    Send { stream: &'static str, source: LimitReached },
    #[error("the server did not restore stream {stream}: {description}")]
    NotRestored { stream: &'static str, description: String },
}

#[derive(Deserialize)]
struct Place {
    deliver_subject: String,
}

#[derive(Deserialize)]
struct Restored {
    state: Value,
}

/// The last token of the subject that a piece is acknowledged on is the piece's number, from 1.
fn number_of(reply: &str) -> Option<u64> {
    reply.rsplit('.').next()?.parse().ok()
}

impl Bus {
    /// Takes a snapshot of `stream`, its consumers' places included, and gives it to `write` piece by piece.
    ///
    /// # Errors
    /// When the server refuses or stops, a piece is missing, or `write` fails.
    pub async fn snapshot_stream(
        &self,
        stream: StreamName,
        write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<StreamSnapshot, SnapshotError> {
        let name = stream.as_str();
        let client = self.client();
        let ended = |reason: String| SnapshotError::Ended { stream: name, reason };
        let inbox = client.new_inbox();
        let mut pieces = client.subscribe(inbox.clone()).await.map_err(|error| ended(error.to_string()))?;
        let question =
            json!({"deliver_subject": inbox, "chunk_size": CHUNK_BYTES, "window_size": WINDOW_BYTES, "jsck": true});
        let asked = self.ask::<StreamSnapshot>(stream_snapshot(stream), &question).await;
        let snapshot = asked.map_err(|source| SnapshotError::Ask { stream: name, source })?;
        let mut received = 0;
        loop {
            let piece = tokio::time::timeout(CHUNK_LIMIT, pieces.next()).await;
            let piece = piece.map_err(|_| ended(format!("nothing came for {CHUNK_LIMIT:?}")))?;
            let piece = piece.ok_or_else(|| ended("the connection was closed".to_owned()))?;
            if piece.payload.is_empty() {
                let status = piece.status.map_or(204, u16::from);
                let reason = || piece.description.as_ref().map(ToString::to_string).unwrap_or_default();
                return if status == 204 { Ok(snapshot) } else { Err(ended(format!("{status} {}", reason()))) };
            }
            write(&piece.payload).map_err(|source| SnapshotError::Write { stream: name, source })?;
            received += 1;
            // The last piece is acknowledged to nobody.
            let Some(reply) = piece.reply else { continue };
            if number_of(&reply) != Some(received) {
                return Err(ended(format!("piece {received} is missing")));
            }
            client.publish(reply, Bytes::new()).await.map_err(|error| ended(error.to_string()))?;
        }
    }

    /// Makes `stream`, which must not be there, from a snapshot; returns how many messages it has then.
    ///
    /// # Errors
    /// When the server refuses, or the snapshot cannot be read or is damaged.
    pub async fn restore_stream(
        &self,
        stream: StreamName,
        snapshot: &StreamSnapshot,
        bytes: &mut dyn Read,
    ) -> Result<u64, SnapshotError> {
        let name = stream.as_str();
        let asked = eventually("a leader of the hub's streams", LEADER_LIMIT, || async {
            match self.ask::<Place>(stream_restore(stream), &json!(snapshot)).await {
                Err(error @ (RequestError::Timeout { .. } | RequestError::NobodyAnswers(_))) => Err(error.to_string()),
                answer => Ok(answer),
            }
        });
        let asked = asked.await.map_err(|source| SnapshotError::Send { stream: name, source })?;
        let place = asked.map_err(|source| SnapshotError::Ask { stream: name, source })?.deliver_subject;
        loop {
            let mut piece = Vec::with_capacity(CHUNK_BYTES);
            let limit = CHUNK_BYTES as u64;
            let read = Read::take(&mut *bytes, limit).read_to_end(&mut piece);
            let read = read.map_err(|source| SnapshotError::Read { stream: name, source })?;
            let answer = self.send_piece(name, &place, piece.into()).await?;
            if read == 0 {
                return match serde_json::from_slice::<Said<Restored>>(&answer) {
                    Ok(Said::Value(restored)) => Ok(restored.state["messages"].as_u64().unwrap_or(0)),
                    Ok(Said::Error { error }) => Err(not_restored(name, error)),
                    Err(error) => Err(SnapshotError::NotRestored { stream: name, description: error.to_string() }),
                };
            }
            if let Ok(Said::Error { error }) = serde_json::from_slice::<Said<Value>>(&answer) {
                return Err(not_restored(name, error));
            }
        }
    }

    /// Sends one piece; again as long as nobody listens yet, because then nobody has it.
    async fn send_piece(&self, stream: &'static str, place: &str, piece: Bytes) -> Result<Bytes, SnapshotError> {
        let limit = if piece.is_empty() { RESTORED_LIMIT } else { CHUNK_LIMIT };
        let sent = eventually("the server taking a piece of a snapshot", limit, || async {
            match self.request(place, piece.clone(), limit).await {
                Err(error @ RequestError::NobodyAnswers(_)) => Err(error.to_string()),
                answer => Ok(answer),
            }
        });
        let answer = sent.await.map_err(|source| SnapshotError::Send { stream, source })?;
        answer.map_err(|source| SnapshotError::Ask { stream, source })
    }
}

fn not_restored(stream: &'static str, error: ApiError) -> SnapshotError {
    SnapshotError::NotRestored { stream, description: format!("{} ({})", error.description, error.code) }
}
