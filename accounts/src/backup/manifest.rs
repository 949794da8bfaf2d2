//! What a backup says of itself: the last thing in it, so that it can be counted while it is written.

use std::collections::BTreeMap;

use bulkhead_bus::TenantSlug;
use bulkhead_runtime::StreamSnapshot;
use bulkhead_store::TableSum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::hub_size::HubSize;

/// The form of backups of a platform of this release. A reader refuses a higher one.
pub const FORMAT: u32 = 1;
/// The same of backups of one tenant.
pub const TENANT_FORMAT: u32 = 1;

/// What an archive is a backup of: it says so at the beginning, and all that is in it at the end.
pub trait Contents: Serialize + DeserializeOwned + PartialEq {
    /// The word of the first line that holds the format.
    const HEAD: &'static str;
    /// As people call it.
    const OF: &'static str;
    const FORMAT: u32;
    /// Whether the manifest is followed by its own checksum: where a seal does not protect it.
    const IS_SUMMED: bool;

    fn parts(&self) -> &[PartState];
    fn set_parts(&mut self, parts: Vec<PartState>);
}

/// The first thing in a backup: whose it is, and who can read it.
pub(super) fn head_of<M: Contents>() -> serde_json::Value {
    serde_json::json!({ M::HEAD: M::FORMAT, "release": env!("CARGO_PKG_VERSION") })
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

impl Contents for Manifest {
    const HEAD: &'static str = "bulkhead_backup";
    const OF: &'static str = "platform";
    const FORMAT: u32 = FORMAT;
    const IS_SUMMED: bool = false;

    fn parts(&self) -> &[PartState] {
        &self.parts
    }

    fn set_parts(&mut self, parts: Vec<PartState>) {
        self.parts = parts;
    }
}

/// What is in the backup of one tenant: its rows, and nobody's keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantManifest {
    /// The moment that all of it is of, unix milliseconds.
    pub taken_ms: i64,
    pub release: String,
    pub tenant: TenantSlug,
    /// Under which its rows were kept.
    pub tenant_id: Uuid,
    pub display_name: String,
    /// Its name, without the version.
    pub plan: String,
    /// Where the rows were: `shared` or `schema`.
    pub isolation: String,
    /// Version of the tables.
    pub schema_version: i64,
    pub sites: Vec<String>,
    /// `site/poller`. Their keys are in no backup of a tenant.
    pub pollers: Vec<String>,
    pub tables: BTreeMap<String, TableSum>,
    pub parts: Vec<PartState>,
}

impl TenantManifest {
    /// Of all tables.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.values().map(|table| table.rows).sum()
    }
}

impl Contents for TenantManifest {
    const HEAD: &'static str = "bulkhead_tenant_backup";
    const OF: &'static str = "tenant";
    const FORMAT: u32 = TENANT_FORMAT;
    const IS_SUMMED: bool = true;

    fn parts(&self) -> &[PartState] {
        &self.parts
    }

    fn set_parts(&mut self, parts: Vec<PartState>) {
        self.parts = parts;
    }
}
