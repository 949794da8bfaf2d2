//! Buckets, where the newest value of each key is kept and watched, and logs, where everything is kept for a while.

use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use bulkhead_bus::members;
use bytes::Bytes;
use futures_util::StreamExt;

use crate::bus::{Bus, StoreError, Stored};
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

/// The newest of one key; without a value when it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketEntry {
    pub key: String,
    pub value: Option<Bytes>,
    pub revision: u64,
}

/// What changes in a bucket, each key's newest value at least once.
pub struct BucketWatch(kv::Watch);

impl From<kv::Entry> for BucketEntry {
    fn from(entry: kv::Entry) -> Self {
        let is_there = entry.operation == Operation::Put;
        Self { value: is_there.then_some(entry.value), key: entry.key, revision: entry.revision }
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
}
