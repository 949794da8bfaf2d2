//! What an account may use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::omit::{is_zero, unknown_members};

/// Stands for no limit; 0 stands for none allowed.
pub const UNLIMITED: i64 = -1;

/// Every limit of an account. Zero means none allowed, -1 unlimited; ours are finite.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountLimits {
    #[serde(skip_serializing_if = "is_zero")]
    pub subs: i64,
    /// Not enforced by the server, so never sold as a quota (facts: accounts-and-nsc section 2).
    #[serde(skip_serializing_if = "is_zero")]
    pub data: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub payload: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub imports: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub exports: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub wildcards: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub disallow_bearer: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub conn: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub leaf: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub mem_storage: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_storage: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub streams: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub consumer: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_ack_pending: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub mem_max_stream_bytes: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_max_stream_bytes: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_bytes_required: bool,
    /// By number of copies, `R1` and `R3`; where there are tiers, the flat limits of JetStream do not count.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tiered_limits: BTreeMap<String, JetStreamLimits>,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// The limits of JetStream in one tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JetStreamLimits {
    #[serde(skip_serializing_if = "is_zero")]
    pub mem_storage: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_storage: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub streams: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub consumer: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_ack_pending: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub mem_max_stream_bytes: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_max_stream_bytes: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max_bytes_required: bool,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

impl AccountLimits {
    #[must_use]
    pub fn has_jetstream(&self) -> bool {
        if self.tiered_limits.is_empty() {
            return self.mem_storage != 0 || self.disk_storage != 0;
        }
        self.tiered_limits.values().any(|tier| tier.mem_storage != 0 || tier.disk_storage != 0)
    }

    /// The limits of JetStream outside tiers.
    #[must_use]
    pub fn flat_jetstream(&self) -> JetStreamLimits {
        JetStreamLimits {
            mem_storage: self.mem_storage,
            disk_storage: self.disk_storage,
            streams: self.streams,
            consumer: self.consumer,
            max_ack_pending: self.max_ack_pending,
            mem_max_stream_bytes: self.mem_max_stream_bytes,
            disk_max_stream_bytes: self.disk_max_stream_bytes,
            max_bytes_required: self.max_bytes_required,
            unknown: Map::new(),
        }
    }

    /// Tiers win over flat limits, as in the Go library and the server.
    pub(crate) fn settle(&mut self) {
        if self.tiered_limits.is_empty() {
            return;
        }
        *self = Self {
            mem_storage: 0,
            disk_storage: 0,
            streams: 0,
            consumer: 0,
            max_ack_pending: 0,
            mem_max_stream_bytes: 0,
            disk_max_stream_bytes: 0,
            max_bytes_required: false,
            ..std::mem::take(self)
        };
    }

    /// No limit was said at all; fields that we do not know do not count.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Self { unknown: Map::new(), ..self.clone() } == Self::default()
    }

    /// Names of what has no limit, but for `data`, which servers ignore.
    #[must_use]
    pub fn unlimited(&self) -> Vec<String> {
        let own = [
            ("subs", self.subs),
            ("payload", self.payload),
            ("imports", self.imports),
            ("exports", self.exports),
            ("conn", self.conn),
            ("leaf", self.leaf),
        ];
        let mut found: Vec<String> = names_of_unlimited(&own).map(str::to_owned).collect();
        found.extend(self.flat_jetstream().unlimited().map(str::to_owned));
        for (tier, limits) in &self.tiered_limits {
            found.extend(limits.unlimited().map(|name| format!("tiered_limits.{tier}.{name}")));
        }
        found
    }
}

impl JetStreamLimits {
    fn unlimited(&self) -> impl Iterator<Item = &'static str> {
        let own = [
            ("mem_storage", self.mem_storage),
            ("disk_storage", self.disk_storage),
            ("streams", self.streams),
            ("consumer", self.consumer),
            ("max_ack_pending", self.max_ack_pending),
        ];
        names_of_unlimited(&own).collect::<Vec<_>>().into_iter()
    }
}

fn names_of_unlimited<'a>(limits: &'a [(&'static str, i64)]) -> impl Iterator<Item = &'static str> + 'a {
    limits.iter().filter(|(_, limit)| *limit < 0).map(|(name, _)| *name)
}
