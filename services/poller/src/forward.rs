//! From the leaf's stream upstream: the leaf forgets a batch only after the hub's stream has acknowledged it.
//!
//! While the hub takes nothing, what is in hand is held and tried again, and nothing more is pulled. A batch may arrive
//! twice, never not at all; core's result key makes the second one harmless.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bulkhead_bus::{Lane, SiteName, StreamName, TenantSubject};
use bulkhead_runtime::{
    Backoff, Bus, BusSettings, Chain, Delivery, PullError, Puller, Readiness, Stop, StoreError, now_ms,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info};

use crate::edge::connect_patiently;
use crate::metrics::{Metrics, count};
use crate::trouble::Trouble;

/// How long the hub may take to acknowledge a batch.
const STORE_LIMIT: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// Well inside the consumer's acknowledgement wait of 30 s.
const EXTEND_EVERY: Duration = Duration::from_secs(10);
/// A batch that the hub refuses stays at the leaf and is tried again this late: the refusal may have been a mistake.
const REFUSED_PAUSE: Duration = Duration::from_secs(600);
/// A quota that stays full for so many attempts counts as a hub that takes nothing.
const FULL_ATTEMPTS_MOST: u32 = 5;
/// A batch that was pulled but not begun goes back to the leaf for so long.
const ASIDE_PAUSE: Duration = Duration::from_secs(1);
/// How long to look for what was already pulled, before it is set aside.
const ASIDE_LOOK: Duration = Duration::from_millis(20);
/// Pulling begins again after so long even when nobody said that the hub is back.
const BLOCKED_MOST: Duration = Duration::from_secs(30);
/// After a stop, how long what is in hand may take.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// And how long the last acknowledgements may take to reach the leaf.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Settings of the forwarder.
#[derive(Debug, Clone)]
pub(crate) struct ForwarderSettings {
    pub(crate) leaf: BusSettings,
    /// Batches on their way at the same time.
    pub(crate) window: usize,
    pub(crate) backfill_after: Duration,
}

/// Which way a batch takes that the leaf stored at `stored_ms`.
fn choose_lane(stored_ms: i64, now_ms: i64, backfill_after: Duration) -> Lane {
    let waited = Duration::from_millis(now_ms.saturating_sub(stored_ms).max(0).unsigned_abs());
    if waited > backfill_after { Lane::Backfill } else { Lane::Results }
}

fn stream_of(lane: Lane) -> StreamName {
    match lane {
        Lane::Results => StreamName::Results,
        Lane::Backfill => StreamName::Backfill,
    }
}

/// Whether the hub takes batches, as those on their way have found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upstream {
    Open,
    Blocked,
}

/// What became of one attempt.
enum Attempt {
    Stored,
    /// The hub can never store it.
    Refused(StoreError),
    Later {
        cause: String,
        is_full: bool,
    },
}

/// A lane may be full while the other is not: each has its own.
struct Troubles {
    results: Mutex<Trouble>,
    backfill: Mutex<Trouble>,
}

/// What all batches on their way share.
struct Way {
    bus: Bus,
    site: SiteName,
    backfill_after: Duration,
    upstream: watch::Sender<Upstream>,
    troubles: Troubles,
    metrics: Arc<Metrics>,
    stop: Stop,
}

impl Way {
    async fn attempt(&self, delivery: &Delivery, lane: Lane) -> Attempt {
        let subject = TenantSubject::Forwarded { site: self.site.clone(), lane }.to_string();
        if !self.bus.is_connected() {
            return Attempt::Later { cause: "the leaf is away".to_owned(), is_full: false };
        }
        let headers = delivery.headers.without_server_headers();
        match self.bus.store(&subject, headers, delivery.body.clone(), STORE_LIMIT).await {
            Ok(stored) if stored.stream == stream_of(lane).as_str() => Attempt::Stored,
            // A stream on the leaf that takes `up.>` would swallow everything that is meant for the hub.
            Ok(stored) => {
                let cause = format!("stream {} answers on {subject}, which only the hub may", stored.stream);
                Attempt::Later { cause, is_full: false }
            }
            Err(error @ StoreError::Refused { .. }) => Attempt::Refused(error),
            Err(error @ StoreError::Full { .. }) => Attempt::Later { cause: Chain(&error).to_string(), is_full: true },
            Err(error @ (StoreError::NoStream(_) | StoreError::Unknown(_) | StoreError::Send { .. })) => {
                Attempt::Later { cause: Chain(&error).to_string(), is_full: false }
            }
        }
    }

    fn trouble(&self, lane: Lane) -> MutexGuard<'_, Trouble> {
        let trouble = match lane {
            Lane::Results => &self.troubles.results,
            Lane::Backfill => &self.troubles.backfill,
        };
        trouble.lock().expect("no holder panics")
    }

    /// The hub answered.
    fn open(&self, lane: Lane) {
        self.upstream.send_if_modified(|seen| std::mem::replace(seen, Upstream::Open) != Upstream::Open);
        self.trouble(lane).end();
    }

    fn block(&self, lane: Lane, cause: String) {
        self.upstream.send_if_modified(|seen| std::mem::replace(seen, Upstream::Blocked) != Upstream::Blocked);
        self.trouble(lane).begin(cause);
    }

    /// Tries until the hub has the batch or refuses it.
    async fn forward(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let mut full_attempts = 0;
        loop {
            let lane = choose_lane(delivery.stored_ms, now_ms(), self.backfill_after);
            match self.attempt(delivery, lane).await {
                Attempt::Stored => {
                    self.open(lane);
                    self.metrics.count_forwarded(lane);
                    // Ack late: a crash before this line must forward the batch again.
                    return delivery.ack().await;
                }
                Attempt::Refused(refusal) => {
                    self.open(lane);
                    count(&self.metrics.forward_refused, 1);
                    error!(
                        error = %Chain(&refusal), stream.sequence = delivery.stream_sequence,
                        "the hub refuses batch {} of the leaf: it stays there", delivery.stream_sequence
                    );
                    return delivery.retry_after(REFUSED_PAUSE).await;
                }
                Attempt::Later { cause, is_full } => {
                    count(&self.metrics.forward_retried, 1);
                    full_attempts += u32::from(is_full);
                    if !is_full || full_attempts >= FULL_ATTEMPTS_MOST {
                        self.block(lane, cause);
                    }
                }
            }
            backoff.pause().await;
        }
    }

    /// Forwards one batch and keeps the leaf from handing it out again meanwhile.
    async fn carry(self: Arc<Self>, delivery: Delivery, _permit: OwnedSemaphorePermit) {
        let hold = async {
            let mut ticks = tokio::time::interval(EXTEND_EVERY);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                if let Err(error) = delivery.extend().await {
                    debug!(error = %Chain(error.as_ref()), "batch not held");
                }
            }
        };
        let give_up = async {
            self.stop.cancelled().await;
            let _ = tokio::time::timeout(FINISH_LIMIT, std::future::pending::<()>()).await;
        };
        let ended = tokio::select! {
            ended = self.forward(&delivery) => ended,
            () = hold => Ok(()),
            () = give_up => delivery.retry_after(Duration::ZERO).await,
        };
        if let Err(error) = ended {
            // The leaf hands it out again after its acknowledgement wait.
            debug!(error = %Chain(error.as_ref()), "batch not settled at the leaf");
        }
    }
}

/// Why pulling paused.
enum Paused {
    Stopped,
    Blocked,
}

struct Forwarder {
    way: Arc<Way>,
    window: usize,
    slots: Arc<Semaphore>,
    on_their_way: JoinSet<()>,
}

impl Forwarder {
    /// Pulls and forwards until the hub takes nothing, the leaf is away, or a stop.
    async fn pump(&mut self, trouble: &mut Trouble) -> Result<Paused, PullError> {
        // Few are held here unbegun: their acknowledgement wait runs too.
        let mut puller = self.way.bus.pull(StreamName::ResultsEdge, (self.window / 4).max(1)).await?;
        trouble.end();
        let mut upstream = self.way.upstream.subscribe();
        loop {
            self.reap();
            let permit = tokio::select! {
                biased;
                () = self.way.stop.cancelled() => return Ok(self.pause(puller, Paused::Stopped).await),
                () = wait_for(&mut upstream, Upstream::Blocked) => {
                    return Ok(self.pause(puller, Paused::Blocked).await);
                }
                permit = Arc::clone(&self.slots).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { return Ok(Paused::Stopped) };
            let pulled = tokio::select! {
                biased;
                () = self.way.stop.cancelled() => return Ok(self.pause(puller, Paused::Stopped).await),
                () = wait_for(&mut upstream, Upstream::Blocked) => continue,
                pulled = puller.next_batch(1, Duration::ZERO) => pulled?,
            };
            let Some(delivery) = pulled.into_iter().next() else { continue };
            self.on_their_way.spawn(Arc::clone(&self.way).carry(delivery, permit));
        }
    }

    /// Gives back what was pulled but not begun, so that it does not wait for the end of its acknowledgement wait.
    async fn pause(&self, mut puller: Puller, paused: Paused) -> Paused {
        while let Ok(Ok(batch)) = tokio::time::timeout(ASIDE_LOOK, puller.next_batch(1, Duration::ZERO)).await {
            for delivery in batch {
                if let Err(error) = delivery.retry_after(ASIDE_PAUSE).await {
                    debug!(error = %Chain(error.as_ref()), "batch not given back");
                }
            }
        }
        paused
    }

    /// Waits until the hub is back, but not for ever: then the next batch will tell.
    async fn wait_until_open(&self) {
        let mut upstream = self.way.upstream.subscribe();
        loop {
            tokio::select! {
                () = self.way.stop.cancelled() => return,
                opened = tokio::time::timeout(BLOCKED_MOST, wait_for(&mut upstream, Upstream::Open)) => {
                    if opened.is_ok() {
                        return;
                    }
                }
            }
            // With nothing on its way nobody is left who could find out that the hub is back.
            if self.slots.available_permits() == self.window {
                self.way.upstream.send_replace(Upstream::Open);
            }
        }
    }

    fn reap(&mut self) {
        while let Some(ended) = self.on_their_way.try_join_next() {
            log_panic(ended);
        }
    }
}

/// Returns at once when it is `state` already; never when nobody can change it any more.
async fn wait_for(upstream: &mut watch::Receiver<Upstream>, state: Upstream) {
    if upstream.wait_for(|seen| *seen == state).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A batch whose task panicked is not acknowledged, so the leaf hands it out again.
fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(panic) = ended {
        error!(error = %Chain(&panic), "forwarding a batch panicked");
    }
}

/// Forwards until `stop`. The leaf, its stream and the hub may come and go.
pub(crate) async fn run_forwarder(
    settings: ForwarderSettings,
    site: SiteName,
    metrics: Arc<Metrics>,
    (readiness, stop): (Readiness, Stop),
) -> anyhow::Result<()> {
    let name = format!("{site}.fwd");
    let bus = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        bus = connect_patiently(&settings.leaf, &name) => bus,
    };
    let trouble_on = |lane: Lane| Mutex::new(Trouble::new(format!("forward {lane} to the hub")));
    let troubles = Troubles { results: trouble_on(Lane::Results), backfill: trouble_on(Lane::Backfill) };
    let (upstream, backfill_after) = (watch::Sender::new(Upstream::Open), settings.backfill_after);
    let way = Arc::new(Way { bus, site, backfill_after, upstream, troubles, metrics, stop: stop.clone() });
    let slots = Arc::new(Semaphore::new(settings.window));
    let mut forwarder = Forwarder { way, window: settings.window, slots, on_their_way: JoinSet::new() };
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let mut trouble = Trouble::new("pull from the leaf".to_owned());
    let spec = StreamName::ResultsEdge.spec();
    while !stop.is_cancelled() {
        let pumped = tokio::select! {
            () = stop.cancelled() => break,
            ensured = forwarder.way.bus.ensure_stream(&spec, 1) => match ensured {
                Ok(_) => {
                    readiness.mark("stream");
                    forwarder.pump(&mut trouble).await.map_err(|error| Chain(&error).to_string())
                }
                Err(error) => Err(Chain(&error).to_string()),
            },
        };
        match pumped {
            Ok(Paused::Stopped) => break,
            Ok(Paused::Blocked) => forwarder.wait_until_open().await,
            Err(cause) => {
                trouble.begin(cause);
                tokio::select! { () = stop.cancelled() => break, () = backoff.pause() => continue }
            }
        }
        backoff.reset();
    }
    info!(on_their_way = forwarder.on_their_way.len(), "forwarder is finishing");
    while let Some(ended) = forwarder.on_their_way.join_next().await {
        log_panic(ended);
    }
    // Acknowledgements that are still in the client would come again as duplicates.
    match tokio::time::timeout(FLUSH_LIMIT, forwarder.way.bus.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(error = %Chain(error.as_ref()), "last acknowledgements not flushed"),
        Err(_) => debug!("last acknowledgements not flushed in time"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waited_longer_takes_the_backfill_lane() {
        let minute = Duration::from_secs(60);
        for (stored_ms, now_ms, lane) in [
            (0, 60_000, Lane::Results),
            (0, 60_001, Lane::Backfill),
            (60_000, 0, Lane::Results),
            (i64::MIN, i64::MAX, Lane::Backfill),
        ] {
            assert_eq!(choose_lane(stored_ms, now_ms, minute), lane, "{stored_ms} {now_ms}");
        }
    }

    #[test]
    fn lanes_end_in_streams_that_take_their_subject() {
        for lane in Lane::ALL {
            let subject = TenantSubject::Forwarded { site: "oslo".parse().unwrap(), lane: *lane }.to_string();
            let pattern = stream_of(*lane).spec().subjects.join(" ");
            assert!(
                pattern.ends_with(&format!("fwd.{}", lane.token())) && subject.ends_with(lane.token()),
                "{pattern}"
            );
        }
    }
}
