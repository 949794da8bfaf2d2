//! From the spool to the leaf: one batch at a time, in order, the same bytes until the leaf's stream has them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead_bus::{EdgeSubject, Lane};
use bulkhead_runtime::{Backoff, Bus, BusSettings, Chain, Heart, Readiness, Stop, StoreError, Trouble};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::batch::{BatchBuilder, Identity, SignedBatch};
use crate::condition::Condition;
use crate::live::{LiveBoard, show_live};
use crate::metrics::{Cause, Connection, Metrics, count};
use crate::observe::show_connection;
use crate::spool::SpoolReader;

/// How long the leaf may take to acknowledge a batch.
const STORE_LIMIT: Duration = Duration::from_secs(5);
/// After a stop, how long what waits may still be written. Shorter than what the process is given to end.
const FLUSH_LIMIT: Duration = Duration::from_secs(8);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// Connects, and goes on trying for as long as it is awaited.
pub(crate) async fn connect_patiently(settings: &BusSettings, name: &str) -> Bus {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let mut trouble = Trouble::new(format!("connect {name} to the leaf"));
    loop {
        match Bus::connect(settings, name).await {
            Ok(bus) => {
                trouble.end();
                return bus;
            }
            Err(error) => trouble.begin(Chain(&error).to_string()),
        };
        backoff.pause().await;
    }
}

/// The poller's own connection to the leaf, for those who need it beside the results.
#[derive(Debug, Clone)]
pub(crate) struct LeafBus(watch::Receiver<Option<Bus>>);

impl LeafBus {
    /// Waits for it; `None` when it will never be.
    pub(crate) async fn get(&mut self) -> Option<Bus> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|bus| bus.clone())
    }
}

/// Where the connection is shown once it is made.
pub(crate) fn leaf_bus() -> (watch::Sender<Option<Bus>>, LeafBus) {
    let (sender, receiver) = watch::channel(None);
    (sender, LeafBus(receiver))
}

/// Writes batches to the leaf.
pub(crate) struct Edge {
    pub(crate) connected: watch::Sender<Option<Bus>>,
    pub(crate) condition: Arc<Condition>,
    pub(crate) settings: BusSettings,
    pub(crate) identity: Identity,
    pub(crate) spool: SpoolReader,
    pub(crate) linger: Duration,
    pub(crate) results_most: usize,
    pub(crate) board: Arc<LiveBoard>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) heart: Heart,
}

impl Edge {
    /// Runs until the spool is closed and empty, or until a while after `stop`.
    ///
    /// # Errors
    /// When a batch cannot be made, which is a broken promise of our own.
    pub(crate) async fn run(self, mut batches: BatchBuilder, readiness: Readiness, stop: Stop) -> anyhow::Result<()> {
        let name = format!("{}.{}", self.identity.site, self.identity.poller);
        // Results that are in hand, beside those in the spool.
        let in_hand = AtomicUsize::new(0);
        let write = async {
            let bus = self.heart.while_waiting(connect_patiently(&self.settings, &name)).await;
            readiness.mark("leaf");
            readiness.require_connection("leaf", &bus);
            show_connection(&self.metrics, Connection::Poller, &bus);
            self.connected.send_replace(Some(bus.clone()));
            info!(server.version = bus.server_version(), "writing results to the leaf");
            tokio::select! {
                ended = self.write_all(&bus, &mut batches, &in_hand) => ended,
                () = show_live(&bus, &self.identity, Arc::clone(&self.board), &self.metrics) => Ok(()),
            }
        };
        let give_up = async {
            stop.cancelled().await;
            // Nothing ends this but the limit.
            let _ = tokio::time::timeout(FLUSH_LIMIT, std::future::pending::<()>()).await;
        };
        tokio::select! {
            ended = write => ended?,
            () = give_up => {
                let lost = self.spool.waiting() + in_hand.load(Ordering::Relaxed);
                count(&self.metrics.stop_dropped, lost);
                warn!(lost, "the leaf did not take the last {lost} results in time");
            }
        }
        Ok(())
    }

    async fn write_all(&self, bus: &Bus, batches: &mut BatchBuilder, in_hand: &AtomicUsize) -> anyhow::Result<()> {
        let subject = EdgeSubject { lane: Lane::Results, poller: self.identity.poller.clone() }.to_string();
        while let Some(results) = self.heart.while_waiting(self.spool.take(self.results_most, self.linger)).await {
            in_hand.store(results.len(), Ordering::Relaxed);
            for batch in batches.build(results)? {
                self.store_batch(bus, &subject, &batch).await;
                in_hand.fetch_sub(batch.results, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Returns when the leaf has the batch, or never will.
    async fn store_batch(&self, bus: &Bus, subject: &str, batch: &SignedBatch) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let mut trouble = Trouble::new("store a batch at the leaf".to_owned());
        loop {
            self.heart.beat();
            // A client that is not connected queues requests, and the batch would be stored twice.
            let stored = if bus.is_connected() {
                bus.store(subject, batch.headers.clone(), batch.body.clone(), STORE_LIMIT).await
            } else {
                Err(StoreError::NoStream(subject.to_owned()))
            };
            let Err(error) = stored else {
                count(&self.metrics.batches_stored, 1);
                trouble.end();
                self.condition.is_leaf_shut.store(false, Ordering::Relaxed);
                return;
            };
            let Some(cause) = Cause::of(&error) else {
                count(&self.metrics.batches_refused, 1);
                error!(
                    error = %Chain(&error), batch.sequence = %batch.sequence, batch.results = batch.results,
                    "the leaf can never store batch {}: dropped", batch.sequence
                );
                return;
            };
            let cause = if bus.is_connected() { cause } else { Cause::LeafAway };
            count(self.metrics.batches_retried.of(cause), 1);
            self.condition.is_leaf_shut.store(true, Ordering::Relaxed);
            trouble.begin(Chain(&error).to_string());
            backoff.pause().await;
        }
    }
}
