//! Finds messages of a work queue that no client can be handed, because their headers are not text.
//!
//! The client library closes its connection at such a message, which comes again after every reconnect: one hostile
//! sender would stop everybody's queue. The server's own read (base64 in JSON) shows them, and the queue's
//! acknowledgement subject settles them, so the pulling role needs no right to delete.

use bulkhead_bus::StreamName;
use bulkhead_bus::question::{consumer_info, settlement, stored_message};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::json;

use crate::bus::{Bus, PublishError, RequestError};
use crate::stranded::ConsumerInfo;

/// Messages that are looked at in one search; a consumer has no more on their way.
const SEARCH_MOST: u64 = 5_000;
const NOT_FOUND: u64 = 404;

/// What becomes of messages that were handed out, can be read and are not acknowledged: the lost connection may have taken
/// them along, or somebody may be at work on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readable {
    /// Ask for them at once; what comes twice is harmless.
    AskAgain,
    /// They come by themselves after their acknowledgement wait.
    Leave,
}

/// A message that was delivered and could not be read.
#[derive(Debug)]
pub struct Unreadable {
    pub subject: String,
    /// As they came, with what is no text replaced.
    pub headers: String,
    pub body: Bytes,
    pub sequence: u64,
    stream: StreamName,
    bus: Bus,
}

#[derive(Deserialize)]
struct Got {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    subject: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

/// Whether the client library can take this header block: text, a bare version line, `name: value` lines.
fn is_readable(block: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(block) else { return false };
    let mut lines = text.lines();
    // A status belongs to the server: a client takes a message with one for the server's own word.
    let has_version = lines.next().is_none_or(|line| line.trim_end() == "NATS/1.0");
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| (33..=126).contains(&byte));
    let is_line = |line: &str| {
        // A carriage return within a line ends the client's connection for good (async-nats 0.51).
        let is_whole = !line.contains('\r');
        line.is_empty()
            || is_whole && line.starts_with(char::is_whitespace)
            || is_whole && line.split_once(':').is_some_and(|(name, _)| is_name(name))
    };
    has_version && lines.all(is_line)
}

impl Unreadable {
    /// Done with it: the queue forgets it.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn ack(&self) -> Result<(), PublishError> {
        settle(&self.bus, self.stream, self.sequence, "+ACK").await
    }

    /// Still at it: start the acknowledgement wait anew.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn extend(&self) -> Result<(), PublishError> {
        settle(&self.bus, self.stream, self.sequence, "+WPI").await
    }
}

/// Settles a pending message by its place in the stream; the server looks up the rest itself.
async fn settle(bus: &Bus, stream: StreamName, sequence: u64, word: &'static str) -> Result<(), PublishError> {
    bus.publish(&settlement(stream, sequence), Bytes::from_static(word.as_bytes())).await
}

impl Bus {
    /// Looks through what is pending of the stream's consumer, after a lost connection.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn find_unreadable(
        &self,
        stream: StreamName,
        readable: Readable,
    ) -> Result<Vec<Unreadable>, RequestError> {
        let info: ConsumerInfo = self.ask(consumer_info(stream), &json!({})).await?;
        if info.num_ack_pending == 0 {
            return Ok(vec![]);
        }
        let first = info.ack_floor.stream_seq + 1;
        let last = info.delivered.stream_seq.min(first.saturating_add(SEARCH_MOST));
        let mut found = Vec::new();
        for sequence in first..=last {
            let stored = match self.ask(stored_message(stream), &json!({"seq": sequence})).await {
                Ok(Got { message }) => message,
                // Acknowledged ones are gone from a work queue.
                Err(RequestError::Refused { code: NOT_FOUND, .. }) => continue,
                Err(error) => return Err(error),
            };
            let block = BASE64.decode(stored.hdrs.as_bytes()).unwrap_or_default();
            if block.is_empty() || is_readable(&block) {
                if readable == Readable::AskAgain {
                    // Not sent is as good as left alone.
                    let _ = settle(self, stream, sequence, "-NAK").await;
                }
                continue;
            }
            found.push(Unreadable {
                subject: stored.subject,
                headers: String::from_utf8_lossy(&block).into_owned(),
                body: BASE64.decode(stored.data.as_bytes()).unwrap_or_default().into(),
                stream,
                sequence,
                bus: self.clone(),
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_headers_are_readable() {
        for good in ["NATS/1.0\r\n\r\n", "NATS/1.0\r\nA: b\r\nC: d\r\n e\r\n\r\n", "NATS/1.0 \r\nX:\r\n\r\n", ""] {
            assert!(is_readable(good.as_bytes()), "{good:?}");
        }
        let bad: [&[u8]; 9] = [
            b"NATS/1.0\r\nX: a\rb\r\n\r\n",
            b"NATS/1.0\r\nX: a\r\n b\rc\r\n\r\n",
            b"NATS/1.0\r\nX: \xff\xfe\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\nb d: x\r\n\r\n",
            b"NATS/1.0\r\n: x\r\n\r\n",
            b"NATS/1.0 503\r\n\r\n",
            b"NATS/1.0 xyz\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
        ];
        for block in bad {
            assert!(!is_readable(block), "{:?}", String::from_utf8_lossy(block));
        }
    }
}
