//! From the leaf's streams upstream: the leaf forgets a batch only after the hub's stream has acknowledged it.
//!
//! Two lanes, so that an outage never stands in the way of what is new (docs/adr/0006): what waited for longer than a
//! minute is set aside into a stream of its own on the leaf, and goes upstream beside the live results. A batch may
//! arrive twice, never not at all; core's result key makes the second one harmless.

mod carry;
mod load;
mod pump;

use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::{Lane, SiteName, StreamName};
use bulkhead_runtime::{Bus, BusSettings, Chain, Heart, Loops, Readiness, Stop};
use tokio::task::JoinSet;
use tracing::debug;

use self::carry::Carrier;
use self::pump::Pump;
use crate::edge::connect_patiently;
use crate::lease::LeaseKeeper;
use crate::metrics::{Connection, Metrics, count};
use crate::observe::{show_connection, watch_leaf};

/// After a stop, how long the last acknowledgements may take to reach the leaf.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Settings of the forwarder.
#[derive(Debug, Clone)]
pub(crate) struct ForwarderSettings {
    pub(crate) leaf: BusSettings,
    /// Batches of one lane on their way at the same time.
    pub(crate) window: usize,
    pub(crate) backfill_after: Duration,
}

/// The stream on the leaf that a lane is taken from.
pub(crate) fn edge_stream(lane: Lane) -> StreamName {
    match lane {
        Lane::Results => StreamName::ResultsEdge,
        Lane::Backfill => StreamName::BackfillEdge,
    }
}

/// The stream at the hub that a lane ends in.
fn hub_stream(lane: Lane) -> StreamName {
    match lane {
        Lane::Results => StreamName::Results,
        Lane::Backfill => StreamName::Backfill,
    }
}

/// The loops of one lane: what takes batches, and what looks for stranded ones.
fn loop_names(lane: Lane) -> (&'static str, &'static str) {
    match lane {
        Lane::Results => ("forwarder: results", "forwarder: looking at results"),
        Lane::Backfill => ("forwarder: backfill", "forwarder: looking at backfill"),
    }
}

/// Forwards until `stop`. The leaf, its streams and the hub may come and go.
///
/// # Errors
/// When a lane panicked.
pub(crate) async fn run_forwarder(
    settings: ForwarderSettings,
    (site, lease): (SiteName, LeaseKeeper),
    metrics: Arc<Metrics>,
    (readiness, loops, stop): (Readiness, Loops, Stop),
) -> anyhow::Result<()> {
    let name = format!("{site}.fwd");
    let bus = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        bus = connect_patiently(&settings.leaf, &name) => bus,
    };
    readiness.require_connection("leaf (forwarder)", &bus);
    show_connection(&metrics, Connection::Forwarder, &bus);
    let mut lanes = JoinSet::new();
    for &lane in Lane::ALL {
        let (pumping, looking) = loop_names(lane);
        let (pumping, looking) = (loops.watch(pumping), loops.watch(looking));
        let (site, own_metrics) = (site.clone(), Arc::clone(&metrics));
        let carrier = Carrier::new(bus.clone(), site, lane, settings.backfill_after, own_metrics, stop.clone());
        lanes.spawn(Pump::new(carrier, settings.window, pumping).run(readiness.clone()));
        lanes.spawn(watch_stranded(bus.clone(), lane, looking, (Arc::clone(&metrics), stop.clone())));
    }
    // Whoever forwards has nothing to hand over.
    lanes.spawn(lease.run(bus.clone(), (stop.clone(), stop.clone()), stop.clone()));
    lanes.spawn(watch_leaf(bus.clone(), metrics, stop));
    while let Some(ended) = lanes.join_next().await {
        ended?;
    }
    flush(&bus).await;
    Ok(())
}

/// A leaf whose disk was full can leave a batch behind that it never hands out.
async fn watch_stranded(bus: Bus, lane: Lane, heart: Heart, (metrics, stop): (Arc<Metrics>, Stop)) {
    bus.free_stranded(edge_stream(lane), &heart, &stop, || count(&metrics.stranded_freed, 1)).await;
}

/// Acknowledgements that are still in the client would come again as duplicates.
async fn flush(bus: &Bus) {
    match tokio::time::timeout(FLUSH_LIMIT, bus.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = %Chain(error.as_ref()), "last acknowledgements not flushed"),
        Err(_) => debug!("last acknowledgements not flushed in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::{EdgeSubject, TenantSubject};

    #[test]
    fn lanes_begin_and_end_in_streams_that_take_their_subject() {
        for &lane in Lane::ALL {
            let upstream = TenantSubject::Forwarded { site: "oslo".parse().unwrap(), lane }.to_string();
            let pattern = hub_stream(lane).spec().subjects.join(" ");
            assert!(pattern.ends_with(&format!("fwd.{lane}")) && upstream.ends_with(lane.token()), "{pattern}");
            let edge = EdgeSubject { lane, poller: "p1".parse().unwrap() }.to_string();
            assert_eq!(edge_stream(lane).spec().subjects, [edge.replace("p1", "*")]);
        }
    }
}
