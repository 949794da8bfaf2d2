//! Looks at the hub's streams and at the database now and then, for the gauges of the page. It changes nothing, and
//! whatever it cannot see keeps its last value, with the time when it was seen beside it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_bus::{Lane, StreamName, TenantSnapshot};
use bulkhead_runtime::{Bus, Chain, Counter, Heart, Labelled, LookError, Reached, Stop, age_seconds, now_ms};
use bulkhead_store::{Store, StoreError};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::backlog::by_class;
use crate::directory::Directory;
use crate::metrics::{Connection, Failure, Metrics, PlanClass, PoolState, add, level};
use crate::said::Said;
use crate::store::within;

const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The database's size is the sum over its files: not asked at each look.
const MEASURE_EVERY: Duration = Duration::from_secs(60);
/// How long the database may take to answer the shortest question there is.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// What the database said the last time that anybody asked it. Clones share it.
#[derive(Clone)]
pub struct Answers {
    pub reached: Reached,
    /// Whether it has taken whatever was good lately: its rights and its schemas are what core needs.
    pub usable: Reached,
    /// Whether the last transaction that was to store something did not fail for want of the database: one that answers
    /// questions may still store nothing, behind a lock or a dead disk.
    pub writable: Reached,
    pub said: Said,
    errors: Labelled<Failure, Counter>,
}

impl Answers {
    /// Shows it on the page.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let (reached, usable, writable) = (Reached::default(), Reached::default(), Reached::default());
        usable.set(true);
        writable.set(true);
        let (shown, gauge) = (reached.clone(), metrics.database_reached.clone());
        metrics.page.before_rendering(move || {
            gauge.set(i64::from(shown.get()));
        });
        Self { reached, usable, writable, said: Said::default(), errors: metrics.database_errors.clone() }
    }

    /// How often the database has refused what is good.
    fn misconfigured(&self) -> u64 {
        self.errors.of(Failure::Misconfigured).get()
    }

    /// A database that refuses something is there. One that refuses what is good stays unusable until the observer has
    /// seen that it does so no more: what it refuses is tried again more often than that.
    pub fn note<T>(&self, answered: &Result<T, StoreError>) {
        let failure = answered.as_ref().err().and_then(Failure::of);
        self.reached.set(failure != Some(Failure::Transient));
        if failure == Some(Failure::Misconfigured) {
            self.usable.set(false);
        }
        if let Some(failure) = failure {
            add(self.errors.of(failure), 1);
        }
    }

    /// As [`Self::note`], of a transaction that was to store something.
    pub fn note_write<T>(&self, written: &Result<T, StoreError>) {
        self.note(written);
        match written.as_ref().err().and_then(Failure::of) {
            None => self.writable.set(true),
            Some(Failure::Transient) => self.writable.set(false),
            // It was there to refuse.
            Some(Failure::Refused | Failure::Misconfigured) => {}
        }
    }
}

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

/// Shows the pool as it is whenever the page is rendered.
pub fn show_connections(metrics: &Metrics, store: Store) {
    let connections = metrics.database_connections.clone();
    metrics.page.before_rendering(move || {
        let (used, idle) = store.connections();
        connections.of(PoolState::Used).set(level(used));
        connections.of(PoolState::Idle).set(level(idle));
    });
}

/// Shows how many of these connections are up whenever the page is rendered.
pub fn show_hub(metrics: &Metrics, connection: Connection, buses: impl Fn() -> Vec<Bus> + Send + Sync + 'static) {
    let gauge = metrics.hub_connections.of(connection).clone();
    metrics.page.before_rendering(move || {
        gauge.set(level(buses().iter().filter(|bus| bus.is_connected()).count()));
    });
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
