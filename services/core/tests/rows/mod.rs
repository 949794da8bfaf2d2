//! A result as tests store it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use bulkhead_bus::payload::{CheckKind, Measured, Outcome};
use bulkhead_core::precedence::Candidate;

/// One that is well, of `p1` at `oslo`.
pub(crate) fn row(check: &str, slot_ms: i64) -> Candidate {
    let measured = Measured {
        check: check.parse().unwrap(),
        kind: CheckKind::Http,
        slot_ms,
        started_ms: slot_ms,
        outcome: Outcome::Ok,
        reason: None,
        latency_us: Some(7),
        generation: 0,
        island: false,
        detail: BTreeMap::new(),
    };
    Candidate { measured, vantage: "oslo".to_owned(), poller: "p1".to_owned(), attested: true }
}
