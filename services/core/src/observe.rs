//! Looks at the hub's streams and at the database now and then, for the gauges of the page. It changes nothing, and
//! whatever it cannot see keeps its last value, with the time when it was seen beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_bus::{Lane, StreamName, TenantSnapshot};
use bulkhead_directory::{Answers, Directory};
use bulkhead_runtime::{Bus, Chain, Heart, LookError, Stop, age_seconds, now_ms};
use bulkhead_store::{Store, within};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::backlog::by_class;
use crate::metrics::{Metrics, PlanClass, level};

const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The database's size is the sum over its files: not asked at each look.
const MEASURE_EVERY: Duration = Duration::from_secs(60);
/// How long the database may take to answer the shortest question there is.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// What looking works with.
pub struct Observer {
    pub bus: Bus,
    pub store: Store,
    pub directory: Directory,
    pub metrics: Arc<Metrics>,
    pub answers: Answers,
    pub heart: Heart,
}

/// The stream that a lane ends in.
#[must_use]
pub fn stream_of(lane: Lane) -> StreamName {
    match lane {
        Lane::Results => StreamName::Results,
        Lane::Backfill => StreamName::Backfill,
    }
}

impl Observer {
    /// Looks until `stop`.
    ///
    /// # Errors
    /// Never: what does not answer is looked at again.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_hub_seen, mut measured, mut misconfigured) = (true, None, self.answers.misconfigured());
        loop {
            tokio::select! {
                _ = ticks.tick() => self.heart.beat(),
                () = stop.cancelled() => return Ok(()),
            }
            self.look_at_database(&mut measured).await;
            let before = std::mem::replace(&mut misconfigured, self.answers.misconfigured());
            self.answers.usable.set(before == misconfigured);
            // A client that is not connected would ask all of it at once when it is back.
            if !self.bus.is_connected() {
                continue;
            }
            let seen = self.look_at_hub().await;
            match (&seen, is_hub_seen) {
                (Ok(()), false) => info!("the hub's streams are seen again"),
                (Err(error), true) => warn!(error = %Chain(error), "the hub's streams are not seen"),
                (Ok(()), true) | (Err(_), false) => {}
            }
            is_hub_seen = seen.is_ok();
        }
    }

    async fn look_at_hub(&self) -> Result<(), LookError> {
        let snapshot = self.directory.snapshot();
        for &lane in Lane::ALL {
            self.look_at_lane(lane, &snapshot).await?;
        }
        for &class in PlanClass::ALL {
            let own = snapshot.tenants().filter(|(_, tenant)| PlanClass::of_plan(&tenant.plan) == class);
            self.metrics.tenants.of(class).set(level(own.count()));
        }
        self.metrics.hub_seen_timestamp_seconds.set(now_ms() / 1_000);
        Ok(())
    }

    async fn look_at_lane(&self, lane: Lane, snapshot: &TenantSnapshot) -> Result<(), LookError> {
        let (stream, metrics) = (stream_of(lane), &self.metrics);
        let look = self.bus.look_at_stream(stream).await?;
        metrics.stream_bytes.of(lane).set(level(look.bytes));
        metrics.stream_limit_bytes.of(lane).set(level(look.limit_bytes));
        let age = look.oldest_ms.map_or(0.0, |oldest_ms| age_seconds(oldest_ms, now_ms()));
        metrics.stream_oldest_age_seconds.of(lane).set(age);
        let look = self.bus.look_at_consumer(stream).await?;
        metrics.consumer_waiting.of(lane).set(level(look.waiting));
        metrics.consumer_unacknowledged.of(lane).set(level(look.unacknowledged));
        metrics.consumer_redelivered.of(lane).set(level(look.redelivered));
        for (class, count) in by_class(&self.bus.count_by_subject(stream).await?, snapshot) {
            metrics.backlog_batches.of((lane, class)).set(level(count));
        }
        Ok(())
    }

    async fn look_at_database(&self, measured: &mut Option<Instant>) {
        let answered = within("ask the database", PING_LIMIT, self.store.ping()).await;
        self.answers.note(&answered);
        if answered.is_err() || measured.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
            return;
        }
        // What takes longer is measured another time.
        if let Ok(bytes) = within("measure the database", PING_LIMIT, self.store.database_bytes()).await {
            self.metrics.database_bytes.set(level(bytes));
            self.metrics.database_seen_timestamp_seconds.set(now_ms() / 1_000);
            *measured = Some(Instant::now());
        }
    }
}
