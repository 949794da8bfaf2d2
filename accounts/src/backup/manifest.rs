//! What a backup says of itself: the last thing in it, so that it can be counted while it is written.

use std::collections::BTreeMap;

use bulkhead_runtime::StreamSnapshot;
use serde::{Deserialize, Serialize};

use crate::hub_size::HubSize;

/// The form of backups of this release. A reader refuses a higher one.
pub const FORMAT: u32 = 1;

/// The first thing in a backup: whose it is, and who can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) bulkhead_backup: u32,
    pub(super) release: String,
}

impl Head {
    pub(super) fn of_this_release() -> Self {
        Self { bulkhead_backup: FORMAT, release: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// One file, stream or database of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartState {
    pub name: String,
    pub bytes: u64,
    /// Of the content, in hexadecimal.
    pub sha256: String,
}

/// A stream of the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    pub name: String,
    pub messages: u64,
    pub snapshot: StreamSnapshot,
}

/// An account of the operator store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountState {
    pub name: String,
    pub key: String,
}

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// When it was begun, unix milliseconds.
    pub taken_ms: i64,
    pub release: String,
    pub hub_servers: HubSize,
    pub accounts: Vec<AccountState>,
    pub streams: Vec<StreamState>,
    /// Rows by table.
    pub rows: BTreeMap<String, i64>,
    /// Stored results by tenant.
    pub results: BTreeMap<String, i64>,
    pub parts: Vec<PartState>,
}

impl Manifest {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Batches in all streams.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.streams.iter().map(|stream| stream.messages).sum()
    }
}
