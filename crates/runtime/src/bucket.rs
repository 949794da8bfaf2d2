//! Buckets, where the newest value of each key is kept and watched, and logs, where everything is kept for a while.

use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use bulkhead_bus::members;
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::bus::{Bus, RequestError, StoreError, Stored};
use crate::headers::Headers;

/// What the server's clients call a removal.
const OPERATION: (&str, &str) = ("KV-Operation", "DEL");

/// Why a bucket or log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{act} {name}")]
pub struct BucketError {
    act: &'static str,
    name: String,
    source: async_nats::Error,
}

/// A bucket, with its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketSpec {
    pub name: &'static str,
    pub max_bytes: i64,
    pub max_value_bytes: i32,
    /// Whether values may end by themselves, and watchers hear of it.
    pub has_ends: bool,
}

/// What only the registry writes: a thousand bytes a member, for tens of thousands of them.
pub const MEMBER_BUCKETS: [BucketSpec; 2] = [
    BucketSpec { name: members::INFO_BUCKET, max_bytes: 128 << 20, max_value_bytes: 16 << 10, has_ends: false },
    BucketSpec { name: members::LEASE_BUCKET, max_bytes: 128 << 20, max_value_bytes: 4 << 10, has_ends: true },
];

/// How long the word that a value has ended stays there for who was away.
const END_SHOWN: Duration = Duration::from_secs(60);

/// A stream that keeps what it is told until it is too old or too much; then the oldest goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSpec {
    pub name: &'static str,
    pub subject: &'static str,
    pub max_bytes: i64,
    pub max_age: Duration,
    pub max_message_bytes: i32,
}

/// How a value ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueEnd {
    /// It was not written again in time, and the server removed it.
    Expired,
    /// Somebody removed it.
    Removed,
}

/// The newest of one key; without a value when that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketEntry {
    pub key: String,
    pub value: Option<Bytes>,
    /// `None` while there is a value.
    pub end: Option<ValueEnd>,
    pub revision: u64,
    /// When the server took it, in unix milliseconds by its clock.
    pub at_ms: i64,
}

/// Why a value was not written on the condition that the one before is still there.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{key} has another revision than {expected}")]
    Changed { key: String, expected: u64 },
    #[error("write on a condition")]
    Store(#[source] StoreError),
}

/// What is to be written, and on which condition.
#[derive(Debug, Clone)]
pub struct ConditionalWrite<'a> {
    pub bucket: &'a str,
    pub key: &'a str,
    pub value: Bytes,
    /// The revision that the key has; 0 when it never had a value.
    pub expected: u64,
    /// Without another write the server removes the value after this time, in whole seconds, and says so to watchers.
    pub ttl: Option<Duration>,
}

/// A message as the stream's leader keeps it.
#[derive(Deserialize)]
struct Kept {
    message: KeptMessage,
}

#[derive(Deserialize)]
struct KeptMessage {
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
}

#[derive(Deserialize)]
struct BucketState {
    state: LastSequence,
}

#[derive(Deserialize)]
struct LastSequence {
    last_seq: u64,
}

/// What the server answers when the last sequence of a subject is another one than was expected.
const CHANGED: [u64; 2] = [10_071, 10_164];
/// What the server answers for a message that is not there.
const NOT_FOUND: u64 = 404;

fn unix_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn end_of(operation: Operation) -> Option<ValueEnd> {
    match operation {
        Operation::Put => None,
        Operation::Delete => Some(ValueEnd::Removed),
        // Nobody here purges: what the library calls so is the server's word that the time of a value is over.
        Operation::Purge => Some(ValueEnd::Expired),
    }
}

/// How the value of a kept message ended, by its headers.
fn end_in(headers: &str) -> Option<ValueEnd> {
    let value_of =
        |name: &str| headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    match (value_of("Nats-Marker-Reason"), value_of(OPERATION.0)) {
        (Some("MaxAge"), _) => Some(ValueEnd::Expired),
        (Some(_), _) | (None, Some("DEL" | "PURGE")) => Some(ValueEnd::Removed),
        (None, Some(_) | None) => None,
    }
}

/// What changes in a bucket, each key's newest value at least once.
pub struct BucketWatch(kv::Watch);

impl From<kv::Entry> for BucketEntry {
    fn from(entry: kv::Entry) -> Self {
        let end = end_of(entry.operation);
        let value = end.is_none().then_some(entry.value);
        Self { value, end, key: entry.key, revision: entry.revision, at_ms: unix_ms(entry.created) }
    }
}

impl BucketWatch {
    /// The next change, for however long that takes; `None` when watching has ended and is to be begun anew.
    ///
    /// # Errors
    /// When something comes that is no entry.
    pub async fn next(&mut self) -> Result<Option<BucketEntry>, BucketError> {
        let entry = self.0.next().await.transpose();
        let failed =
            |source: kv::WatcherError| BucketError { act: "watch", name: "a bucket".to_owned(), source: source.into() };
        entry.map(|entry| entry.map(BucketEntry::from)).map_err(failed)
    }
}

impl Bus {
    /// Makes or updates a bucket.
    ///
    /// # Errors
    /// When the server refuses, or has no place for it.
    pub async fn ensure_bucket(&self, spec: &BucketSpec, replicas: usize) -> Result<(), BucketError> {
        let config = kv::Config {
            bucket: spec.name.to_owned(),
            max_value_size: spec.max_value_bytes,
            history: 1,
            max_bytes: spec.max_bytes,
            storage: StorageType::File,
            num_replicas: replicas,
            limit_markers: spec.has_ends.then_some(END_SHOWN),
            ..kv::Config::default()
        };
        let made = self.jetstream().create_or_update_key_value(config).await;
        made.map(drop).map_err(|source| BucketError {
            act: "make bucket",
            name: spec.name.to_owned(),
            source: source.into(),
        })
    }

    /// Makes or updates a log.
    ///
    /// # Errors
    /// When the server refuses, or has no place for it.
    pub async fn ensure_log(&self, spec: &LogSpec, replicas: usize) -> Result<(), BucketError> {
        let config = Config {
            name: spec.name.to_owned(),
            subjects: vec![spec.subject.to_owned()],
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_bytes: spec.max_bytes,
            max_age: spec.max_age,
            max_message_size: spec.max_message_bytes,
            num_replicas: replicas,
            ..Config::default()
        };
        let made = self.jetstream().create_or_update_stream(config).await;
        made.map(drop).map_err(|source| BucketError {
            act: "make log",
            name: spec.name.to_owned(),
            source: source.into(),
        })
    }

    /// Everything that is in a bucket now, and what changes from then on.
    ///
    /// # Errors
    /// When it is not there or may not be read, or does not say all within `limit`.
    pub async fn watch_bucket(
        &self,
        name: &str,
        limit: Duration,
    ) -> Result<(Vec<BucketEntry>, BucketWatch), BucketError> {
        let failed = |source: async_nats::Error| BucketError { act: "watch bucket", name: name.to_owned(), source };
        let read = async {
            let bucket = self.jetstream().get_key_value(name).await.map_err(|error| failed(error.into()))?;
            let is_empty = bucket.status().await.map_err(|error| failed(error.into()))?.values() == 0;
            let mut watch = bucket.watch_with_history(">").await.map_err(|error| failed(error.into()))?;
            let mut entries = Vec::new();
            let mut is_read = is_empty;
            while !is_read {
                let Some(entry) = watch.next().await else { return Err(failed("it ended".into())) };
                let entry = entry.map_err(|error| failed(error.into()))?;
                is_read = entry.seen_current;
                entries.push(entry.into());
            }
            Ok((entries, BucketWatch(watch)))
        };
        let read = tokio::time::timeout(limit, read).await;
        read.map_err(|elapsed| failed(elapsed.into()))?
    }

    /// Puts a value into a bucket and waits until it is kept.
    ///
    /// # Errors
    /// As [`Bus::store`].
    pub async fn put(&self, bucket: &str, key: &str, value: Bytes, limit: Duration) -> Result<Stored, StoreError> {
        self.store(&format!("$KV.{bucket}.{key}"), Headers::default(), value, limit).await
    }

    /// Removes a key from a bucket and waits until that is kept.
    ///
    /// # Errors
    /// As [`Bus::store`].
    pub async fn remove(&self, bucket: &str, key: &str, limit: Duration) -> Result<Stored, StoreError> {
        let mut headers = Headers::default();
        headers.set(OPERATION.0, OPERATION.1);
        self.store(&format!("$KV.{bucket}.{key}"), headers, Bytes::new(), limit).await
    }

    /// Writes a value if the key still has the revision that is expected, and waits until it is kept; its own revision.
    ///
    /// # Errors
    /// [`WriteError::Changed`] when it has another one; everything else as [`Bus::store`].
    pub async fn write_if(&self, write: ConditionalWrite<'_>, limit: Duration) -> Result<u64, WriteError> {
        let mut headers = Headers::default();
        headers.set("Nats-Expected-Last-Subject-Sequence", &write.expected.to_string());
        if let Some(ttl) = write.ttl {
            headers.set("Nats-TTL", &ttl.as_secs().max(1).to_string());
        }
        let subject = format!("$KV.{}.{}", write.bucket, write.key);
        match self.offer(&subject, headers, write.value, limit).await.map_err(WriteError::Store)? {
            Ok(stored) => Ok(stored.sequence),
            Err(error) if CHANGED.contains(&error.err_code) => {
                Err(WriteError::Changed { key: write.key.to_owned(), expected: write.expected })
            }
            Err(error) => Err(WriteError::Store(StoreError::Full { subject, description: error.description })),
        }
    }

    /// The newest of one key as whoever decides about writes has it; `None` when it never had a value, or nothing is known
    /// of it any more.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn read_key(&self, bucket: &str, key: &str) -> Result<Option<BucketEntry>, RequestError> {
        let subject = format!("$JS.API.STREAM.MSG.GET.KV_{bucket}");
        let kept: Kept = match self.ask(subject, &json!({"last_by_subj": format!("$KV.{bucket}.{key}")})).await {
            Ok(kept) => kept,
            Err(RequestError::Refused { code: NOT_FOUND, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let decoded = |text: &str| BASE64.decode(text.as_bytes()).unwrap_or_default();
        let message = kept.message;
        let end = end_in(&String::from_utf8_lossy(&decoded(&message.hdrs)));
        let value = end.is_none().then(|| decoded(&message.data).into());
        Ok(Some(BucketEntry { key: key.to_owned(), value, end, revision: message.seq, at_ms: unix_ms(message.time) }))
    }

    /// The revision of what was last written into a bucket: whoever watches it and has not come as far is behind.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn bucket_revision(&self, bucket: &str) -> Result<u64, RequestError> {
        let state: BucketState = self.ask(format!("$JS.API.STREAM.INFO.KV_{bucket}"), &json!({})).await?;
        Ok(state.state.last_seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_from_a_value_by_its_headers() {
        let check = |headers: &str, end| assert_eq!(end_in(headers), end, "{headers}");
        check("", None);
        check("NATS/1.0\r\nNats-TTL: 15\r\n\r\n", None);
        check("NATS/1.0\r\nNats-Marker-Reason: MaxAge\r\nNats-TTL: 60s\r\n\r\n", Some(ValueEnd::Expired));
        check("NATS/1.0\r\nNats-Marker-Reason: Remove\r\n\r\n", Some(ValueEnd::Removed));
        check("NATS/1.0\r\nKV-Operation: DEL\r\n\r\n", Some(ValueEnd::Removed));
        check("NATS/1.0\r\nKV-Operation: PUT\r\n\r\n", None);
    }
}
