//! The streams that follow from the table, with finite limits everywhere. Sources: design section 2, facts
//! (topology-proved section 4, nats-imports B and C): no `max_deliver`, no message-id deduplication, quota by subject.

use crate::table::{SUBJECTS, Way};

/// The largest batch that travels, headers included, in bytes. The leaf refuses what the hub would.
pub const MAX_BATCH_BYTES: i32 = 64 * 1024;

/// Batches of one tenant, site and lane that the hub keeps; what is beyond stays at the leaf.
const QUOTA_BATCHES: i64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamName {
    Results,
    Backfill,
    ResultsEdge,
    BackfillEdge,
}

/// A durable pull consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerSpec {
    pub name: &'static str,
    pub ack_wait_s: u64,
    pub max_ack_pending: i64,
}

/// A work-queue stream on file storage that refuses what is new when it is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    pub name: &'static str,
    pub subjects: Vec<String>,
    pub max_bytes: i64,
    /// Quota by subject; `None` where one owner fills the whole stream.
    pub max_messages_per_subject: Option<i64>,
    pub max_message_bytes: i32,
    pub consumer: ConsumerSpec,
}

impl StreamName {
    /// The streams in CORE.
    pub const HUB: [Self; 2] = [Self::Results, Self::Backfill];
    /// The streams of a site's leaf.
    pub const EDGE: [Self; 2] = [Self::ResultsEdge, Self::BackfillEdge];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Results => "RESULTS",
            Self::Backfill => "BACKFILL",
            Self::ResultsEdge => "RESULTS_EDGE",
            Self::BackfillEdge => "BACKFILL_EDGE",
        }
    }

    #[must_use]
    pub fn consumer(self) -> ConsumerSpec {
        match self {
            // A batch in one transaction takes milliseconds; 30 s outlasts a paused database without redelivery.
            Self::Results | Self::Backfill => ConsumerSpec { name: "core", ack_wait_s: 30, max_ack_pending: 5_000 },
            Self::ResultsEdge | Self::BackfillEdge => {
                ConsumerSpec { name: "fwd", ack_wait_s: 30, max_ack_pending: 1_000 }
            }
        }
    }

    #[must_use]
    pub fn spec(self) -> StreamSpec {
        let subjects = SUBJECTS.iter().filter_map(|row| match row.way {
            Way::Durable(stream) if stream == self => row.core_pattern(),
            Way::Edge(stream) if stream == self => Some(row.pattern.to_owned()),
            Way::Durable(_) | Way::Edge(_) | Way::Request | Way::Live | Way::WakeUp | Way::Service | Way::Event => None,
        });
        let (max_bytes, max_messages_per_subject) = match self {
            Self::Results | Self::Backfill => (768 << 20, Some(QUOTA_BATCHES)),
            Self::ResultsEdge | Self::BackfillEdge => (512 << 20, None),
        };
        StreamSpec {
            name: self.as_str(),
            subjects: subjects.map(|pattern| crate::permission::wildcards(&pattern)).collect(),
            max_bytes,
            max_messages_per_subject,
            max_message_bytes: MAX_BATCH_BYTES,
            consumer: self.consumer(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_follow_from_the_table() {
        assert_eq!(StreamName::Results.spec().subjects, ["t.*.up.*.fwd.results"]);
        assert_eq!(StreamName::Backfill.spec().subjects, ["t.*.up.*.fwd.backfill"]);
        assert_eq!(StreamName::ResultsEdge.spec().subjects, ["results.*"]);
        assert_eq!(StreamName::BackfillEdge.spec().subjects, ["backfill.*"]);
    }
}
