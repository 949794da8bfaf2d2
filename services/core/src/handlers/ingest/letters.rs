//! What is written down of a message or row that is not stored.

use bulkhead_bus::StreamName;
use bulkhead_runtime::{Delivery, Unreadable};
use sha2::{Digest, Sha256};

use super::part::Part;
use crate::admission::{Dead, DeadRow};
use crate::store::DeadLetter;

/// The whole message, where a dead letter is not about one row.
const WHOLE: i32 = -1;

/// Identifies a message by what it is, not by where it was stored: the same batch sent ten times is one dead letter.
fn digest(subject: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [subject.as_bytes(), headers.as_bytes(), body] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

/// The letter about a whole batch.
pub(super) fn letter(stream: StreamName, (delivery, part): (&Delivery, &Part), dead: &Dead) -> DeadLetter {
    let headers = part.headers.to_text();
    DeadLetter {
        digest: digest(&delivery.subject, &headers, &part.body),
        row_index: WHOLE,
        reason: dead.reason,
        detail: dead.detail.clone(),
        stream: stream.as_str(),
        subject: delivery.subject.clone(),
        headers,
        payload: part.body.to_vec(),
        delivered: delivery.delivered,
    }
}

/// A letter about one row keeps that row only: a thousand bad rows must not keep their batch a thousand times.
pub(super) fn row_letters(stream: StreamName, from: (&Delivery, &Part), rows: &[DeadRow]) -> Vec<DeadLetter> {
    let letters = rows.iter().map(|dead_row| DeadLetter {
        row_index: i32::try_from(dead_row.index).unwrap_or(i32::MAX),
        payload: serde_json::to_vec(&dead_row.row).expect("what was decoded serializes"),
        ..letter(stream, from, &dead_row.dead)
    });
    letters.collect()
}

pub(super) fn unreadable_letter(stream: StreamName, message: &Unreadable, dead: &Dead) -> DeadLetter {
    DeadLetter {
        digest: digest(&message.subject, &message.headers, &message.body),
        row_index: WHOLE,
        reason: dead.reason,
        detail: dead.detail.clone(),
        stream: stream.as_str(),
        subject: message.subject.clone(),
        headers: message.headers.clone(),
        payload: message.body.to_vec(),
        delivered: 1,
    }
}
