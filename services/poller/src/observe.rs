//! Looks at the leaf's streams and at this machine's disk now and then, for the gauges of the page. It changes nothing,
//! and what it cannot see keeps its last value, with the time when it was seen beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::Lane;
use bulkhead_runtime::{Bus, Chain, LookError, Stop, age_seconds, now_ms};
use rustix::fs::statvfs;
use tokio::time::MissedTickBehavior;
use tracing::debug;

use crate::forward::edge_stream;
use crate::metrics::{Connection, Metrics, level};

const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Shows whether this connection is up whenever the page is rendered.
pub(crate) fn show_connection(metrics: &Metrics, connection: Connection, bus: &Bus) {
    let (gauge, bus) = (metrics.leaf_connections.of(connection).clone(), bus.clone());
    metrics.page.before_rendering(move || {
        gauge.set(i64::from(bus.is_connected()));
    });
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Looks at the leaf's streams until `stop`, with the connection that pulls from them.
pub(crate) async fn watch_leaf(bus: Bus, metrics: Arc<Metrics>, stop: Stop) {
    let mut ticks = ticks();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        // A client that is not connected would ask all of it at once when it is back.
        if !bus.is_connected() {
            continue;
        }
        match look_at_leaf(&bus, &metrics).await {
            Ok(()) => drop(metrics.leaf_seen_timestamp_seconds.set(now_ms() / 1_000)),
            // Pulling from the same streams says what is wrong with them.
            Err(error) => debug!(error = %Chain(&error), "the leaf's streams are not seen"),
        }
    }
}

async fn look_at_leaf(bus: &Bus, metrics: &Metrics) -> Result<(), LookError> {
    for &lane in Lane::ALL {
        let stream = edge_stream(lane);
        let look = bus.look_at_stream(stream).await?;
        metrics.leaf_batches.of(lane).set(level(look.messages));
        metrics.leaf_bytes.of(lane).set(level(look.bytes));
        metrics.leaf_limit_bytes.of(lane).set(level(look.limit_bytes));
        let age = look.oldest_ms.map_or(0.0, |oldest_ms| age_seconds(oldest_ms, now_ms()));
        metrics.leaf_oldest_age_seconds.of(lane).set(age);
        let look = bus.look_at_consumer(stream).await?;
        metrics.leaf_unacknowledged.of(lane).set(level(look.unacknowledged));
    }
    Ok(())
}

/// Looks at the file system of the state folder until `stop`.
///
/// # Errors
/// When looking panicked; a folder that cannot be looked at keeps its last value.
pub(crate) async fn watch_disk(folder: PathBuf, metrics: Arc<Metrics>, stop: Stop) -> anyhow::Result<()> {
    let mut ticks = ticks();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        let looked_at = folder.clone();
        // A file system of another machine may let nobody go on while it is away.
        let looked = tokio::task::spawn_blocking(move || statvfs(&looked_at)).await?;
        match looked {
            Ok(found) => {
                metrics.state_free_bytes.set(level(found.f_bavail.saturating_mul(found.f_frsize)));
                metrics.state_size_bytes.set(level(found.f_blocks.saturating_mul(found.f_frsize)));
            }
            Err(error) => debug!(error = %Chain(&error), "the state folder's file system is not seen"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_runtime::eventually;

    #[tokio::test]
    async fn the_disk_of_the_state_folder_is_seen_and_one_that_is_gone_is_no_failure() {
        let folder = tempfile::tempdir().unwrap();
        for (path, is_seen) in [(folder.path().to_owned(), true), (folder.path().join("none"), false)] {
            let (metrics, stop) = (Arc::new(Metrics::default()), Stop::new());
            let watching = tokio::spawn(watch_disk(path, Arc::clone(&metrics), stop.clone()));
            let seen = eventually("the disk", Duration::from_secs(2), || async {
                let (free, size) = (metrics.state_free_bytes.get(), metrics.state_size_bytes.get());
                if size > 0 && free <= size { Ok(()) } else { Err(format!("{free} of {size}")) }
            });
            assert_eq!(seen.await.is_ok(), is_seen);
            assert!(!watching.is_finished());
            stop.cancel();
            watching.await.unwrap().unwrap();
        }
    }
}
