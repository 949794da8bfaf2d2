//! What is written down of a message or row that is not stored.

use bulkhead_bus::{StreamName, header};
use bulkhead_runtime::{Delivery, Headers, Unreadable};
use sha2::{Digest, Sha256};

use super::part::Part;
use crate::admission::{Dead, DeadRow};
use crate::store::DeadLetter;

/// The whole message, where a dead letter is not about one row.
const WHOLE: i32 = -1;
/// The longest header that signs has 86 bytes; a number may have been written longer than it is.
const SIGNING_BYTES_MAX: usize = 128;

/// Identifies a message by what it is, not by where it was stored or on which lane it came: the same batch sent ten times
/// is one dead letter.
fn digest(subject: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let sender = subject.rsplit_once('.').map_or(subject, |(sender, _lane)| sender);
    let mut hash = Sha256::new();
    for part in [sender.as_bytes(), headers.as_bytes(), body] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

/// What all letters about one batch have in common; worked out once, however many rows are bad.
struct Origin<'a> {
    stream: StreamName,
    subject: &'a str,
    delivered: i64,
    digest: Vec<u8>,
    headers: String,
}

impl<'a> Origin<'a> {
    fn new(stream: StreamName, (subject, delivered): (&'a str, i64), part: &Part) -> Self {
        let headers = part.headers.to_text();
        Self { stream, subject, delivered, digest: digest(subject, &headers, &part.body), headers }
    }

    fn letter(&self, row_index: i32, dead: &Dead, payload: Vec<u8>) -> DeadLetter {
        DeadLetter {
            digest: self.digest.clone(),
            row_index,
            reason: dead.reason,
            detail: dead.detail.clone(),
            stream: self.stream.as_str(),
            subject: self.subject.to_owned(),
            headers: self.headers.clone(),
            payload,
            delivered: self.delivered,
        }
    }

    /// A letter about one row keeps that row and the headers that sign its batch, and nothing else: a thousand bad rows
    /// must not keep their batch, or whatever came in its headers, a thousand times.
    fn row_letters(mut self, part: &Part, rows: &[DeadRow]) -> Vec<DeadLetter> {
        self.headers = signing(&part.headers).to_text();
        let letter = |dead_row: &DeadRow| {
            let row_index = i32::try_from(dead_row.index).unwrap_or(i32::MAX);
            let payload = serde_json::to_vec(&dead_row.row).expect("what was decoded serializes");
            self.letter(row_index, &dead_row.dead, payload)
        };
        rows.iter().map(letter).collect()
    }
}

/// The headers that sign a batch, as far as they are no longer than such headers are.
fn signing(headers: &Headers) -> Headers {
    let mut kept = Headers::default();
    for name in [header::SIGNATURE, header::KEY, header::SEQUENCE] {
        if let Some(value) = headers.get(name).filter(|value| value.len() <= SIGNING_BYTES_MAX) {
            kept.set(name, value);
        }
    }
    kept
}

/// The letter about a whole batch.
pub(super) fn letter(stream: StreamName, (delivery, part): (&Delivery, &Part), dead: &Dead) -> DeadLetter {
    Origin::new(stream, (&delivery.subject, delivery.delivered), part).letter(WHOLE, dead, part.body.to_vec())
}

/// The letters about single rows of a batch.
pub(super) fn row_letters(
    stream: StreamName,
    (delivery, part): (&Delivery, &Part),
    rows: &[DeadRow],
) -> Vec<DeadLetter> {
    if rows.is_empty() {
        return vec![];
    }
    Origin::new(stream, (&delivery.subject, delivery.delivered), part).row_letters(part, rows)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_batch_on_two_lanes_is_one_letter_and_two_senders_are_two() {
        let of = |subject| digest(subject, "", b"{");
        assert_eq!(of("t.A.up.oslo.fwd.results"), of("t.A.up.oslo.fwd.backfill"));
        assert_ne!(of("t.A.up.oslo.fwd.results"), of("t.A.up.bergen.fwd.results"));
        assert_ne!(of("t.A.up.oslo.fwd.results"), of("t.B.up.oslo.fwd.results"));
    }
    use crate::admission::DeadReason;
    use bulkhead_bus::payload::{CheckKind, Measured, Outcome};
    use std::collections::BTreeMap;

    #[test]
    fn a_letter_about_a_row_keeps_that_row_and_what_signs_its_batch() {
        let row = Measured {
            check: "web".parse().unwrap(),
            kind: CheckKind::Http,
            slot_ms: 0,
            started_ms: 0,
            outcome: Outcome::Ok,
            reason: None,
            latency_us: None,
            generation: 0,
            island: false,
            detail: BTreeMap::new(),
        };
        let mut headers = Headers::default();
        headers.set(header::KEY, "UABC");
        headers.set(header::SEQUENCE, &format!("{}1.2", "0".repeat(SIGNING_BYTES_MAX)));
        headers.set("Luggage", &"x".repeat(30_000));
        let part = Part { headers, body: vec![b' '; 30_000].into() };
        let origin = || Origin::new(StreamName::Results, ("t.A.up.oslo.fwd.results", 3), &part);
        let dead = Dead { reason: DeadReason::SlotTooOld, detail: "old".to_owned() };
        let rows: Vec<DeadRow> =
            [1, 4].map(|index| DeadRow { index, row: row.clone(), dead: dead.clone() }).into_iter().collect();
        let whole = origin().letter(WHOLE, &dead, part.body.to_vec());
        let letters = origin().row_letters(&part, &rows);
        assert_eq!(letters.iter().map(|letter| letter.row_index).collect::<Vec<_>>(), [1, 4]);
        for letter in letters {
            assert_eq!((letter.digest, letter.delivered), (whole.digest.clone(), 3), "its batch can be recognised");
            assert_eq!(letter.headers, "Bulkhead-Key: UABC");
            assert_eq!(letter.payload, serde_json::to_vec(&row).unwrap());
        }
    }
}
