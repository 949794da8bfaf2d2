//! One module a kind of subject: durable batches, queries, live streams.

pub mod history;
pub mod ingest;
pub mod ledger;
pub mod live;
pub mod query;
pub mod store;

use std::time::Duration;

use bulkhead_runtime::{Backoff, Stop};

/// The pace at which what failed is tried again.
pub(crate) fn retry_pace() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Pauses, unless `stop` comes first.
pub(crate) async fn pause(pace: &mut Backoff, stop: &Stop) {
    tokio::select! {
        () = pace.pause() => {}
        () = stop.cancelled() => {}
    }
}
