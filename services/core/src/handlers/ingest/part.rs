//! The batches of one message: the message itself, or those that a forwarder has put together (docs/adr/0007).

use bulkhead_bus::bundle::{self, BundleError};
use bulkhead_runtime::{Delivery, Headers};
use bytes::Bytes;

/// One batch as its poller signed it.
pub(super) struct Part {
    pub(super) headers: Headers,
    pub(super) body: Bytes,
}

impl Part {
    /// The message as it came.
    pub(super) fn whole(delivery: &Delivery) -> Self {
        Self { headers: delivery.headers.clone(), body: delivery.body.clone() }
    }
}

/// # Errors
/// When the message says that it is a bundle, and is none or one of another version.
pub(super) fn parts_of(delivery: &Delivery) -> Result<Vec<Part>, BundleError> {
    let Some(version) = delivery.headers.get(bundle::HEADER) else {
        return Ok(vec![Part::whole(delivery)]);
    };
    bundle::check_version(version)?;
    let bytes = Bytes::from(bundle::unpack(&delivery.body)?);
    let parts = bundle::decode(&bytes)?.into_iter();
    let part =
        |part: bundle::Part<'_>| Part { headers: Headers::from_text(part.headers), body: bytes.slice_ref(part.body) };
    Ok(parts.map(part).collect())
}
