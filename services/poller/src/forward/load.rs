//! What one publication upstream carries: a batch as it is, or as many as fit into one message (docs/adr/0007).

use bulkhead_bus::bundle::{self, BYTES_MAX, PARTS_MAX, Part};
use bulkhead_runtime::{Delivery, Headers};
use bytes::Bytes;

/// Room for the header of a bundle with its framing, and for what cannot be packed: LZ4 adds a byte to each 255 of it.
const SPARE_BYTES: usize = 1024;
const BUNDLE_BYTES_MOST: usize = BYTES_MAX - SPARE_BYTES;

/// A batch of the leaf, and its headers as they travel.
pub(super) struct Load {
    pub(super) delivery: Delivery,
    headers: Headers,
    header_text: String,
}

impl Load {
    pub(super) fn new(delivery: Delivery) -> Self {
        let headers = delivery.headers.without_server_headers();
        let header_text = headers.to_text();
        Self { delivery, headers, header_text }
    }

    fn part(&self) -> Part<'_> {
        Part { headers: &self.header_text, body: &self.delivery.body }
    }

    fn is_bundle(&self) -> bool {
        self.headers.get(bundle::HEADER).is_some()
    }

    fn bytes(&self) -> usize {
        self.part().encoded_bytes()
    }
}

/// Puts batches together, in order, as many as fit. What says that it is a bundle already travels as it came: bundles are
/// not nested.
pub(super) fn bundled(loads: Vec<Load>) -> Vec<Vec<Load>> {
    let mut groups: Vec<Vec<Load>> = Vec::new();
    let mut room = 0;
    for load in loads {
        let bytes = load.bytes();
        match groups.last_mut() {
            Some(group) if bytes <= room && group.len() < PARTS_MAX && !load.is_bundle() => {
                room -= bytes;
                group.push(load);
            }
            Some(_) | None => {
                room = if load.is_bundle() { 0 } else { BUNDLE_BYTES_MOST.saturating_sub(bytes) };
                groups.push(vec![load]);
            }
        }
    }
    groups
}

/// What is published for a group: one batch travels as it came.
pub(super) fn message(group: &[&Load]) -> (Headers, Bytes) {
    if let [alone] = group {
        return (alone.headers.clone(), alone.delivery.body.clone());
    }
    let mut headers = Headers::default();
    headers.set(bundle::HEADER, bundle::VERSION);
    let parts: Vec<Part<'_>> = group.iter().map(|load| load.part()).collect();
    (headers, bundle::pack(&bundle::encode(&parts)).into())
}
