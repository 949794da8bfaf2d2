//! Carries one batch: to the hub, or aside into the leaf's backfill stream when it has waited too long.
//!
//! It holds the batch until one of them has acknowledged it; only then does the stream that it came from forget it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_bus::{EdgeSubject, Lane, SiteName, TenantSubject};
use bulkhead_runtime::{Backoff, Bus, Chain, Delivery, Gauge, Stop, StoreError, now_ms};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, error};

use super::{edge_stream, hub_stream};
use crate::metrics::{Cause, Metrics, count};
use crate::trouble::Trouble;

pub(super) const RETRY_FIRST: Duration = Duration::from_millis(20);
pub(super) const RETRY_MOST: Duration = Duration::from_secs(2);
/// How long the hub or the leaf may take to acknowledge a batch.
const STORE_LIMIT: Duration = Duration::from_secs(5);
/// Well inside the consumer's acknowledgement wait of 30 s.
const EXTEND_EVERY: Duration = Duration::from_secs(10);
/// A batch that the hub refuses stays at the leaf and is tried again this late: the refusal may have been a mistake.
const REFUSED_PAUSE: Duration = Duration::from_secs(600);
/// A full quota is the hub's normal way of saying "not so fast"; it is news when it stays full for so long.
const FULL_SAID_AFTER: Duration = Duration::from_secs(10);
/// After a stop, how long what is in hand may take.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

/// What became of one attempt.
enum Attempt {
    Stored,
    /// It can never be stored.
    Refused(StoreError),
    Later {
        cause: Cause,
        said: String,
    },
}

fn later(cause: Cause, said: impl Into<String>) -> Attempt {
    Attempt::Later { cause, said: said.into() }
}

/// How the batches of a lane share what they learn: where one has passed there is room for two more, so a lane that was
/// closed is at full speed again after a few round trips, and one that is closed is asked only now and then.
struct Pace {
    room: Notify,
    trouble: Mutex<Trouble>,
    open: Gauge,
}

impl Pace {
    fn passed(&self) {
        self.open.set(1);
        self.room.notify_one();
        self.room.notify_one();
        self.trouble.lock().expect("no holder panics").end();
    }

    fn refused(&self, cause: String) {
        self.open.set(0);
        self.trouble.lock().expect("no holder panics").begin(cause);
    }
}

/// What all batches of one lane share.
pub(super) struct Carrier {
    pub(super) bus: Bus,
    pub(super) lane: Lane,
    pub(super) stop: Stop,
    site: SiteName,
    backfill_after: Duration,
    pace: Pace,
    pub(super) metrics: Arc<Metrics>,
}

/// Whether a batch that the leaf stored at `stored_ms` has waited for too long to be live.
fn is_late(stored_ms: i64, now_ms: i64, backfill_after: Duration) -> bool {
    let waited = now_ms.saturating_sub(stored_ms).max(0).unsigned_abs();
    Duration::from_millis(waited) > backfill_after
}

impl Carrier {
    pub(super) fn new(
        bus: Bus,
        site: SiteName,
        lane: Lane,
        backfill_after: Duration,
        metrics: Arc<Metrics>,
        stop: Stop,
    ) -> Self {
        let trouble = Mutex::new(Trouble::new(format!("forward {lane} to the hub")));
        let open = metrics.hub_open.of(lane).clone();
        // Nobody has found it closed yet.
        open.set(1);
        let pace = Pace { room: Notify::new(), trouble, open };
        Self { bus, lane, stop, site, backfill_after, pace, metrics }
    }

    /// Carries one batch to its end and keeps the leaf from handing it out again meanwhile.
    pub(super) async fn carry(&self, delivery: Delivery) {
        count(self.metrics.forward_redelivered.of(self.lane), usize::from(delivery.delivered > 1));
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

    /// Tries until somebody has the batch or the hub refuses it.
    async fn forward(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let began = Instant::now();
        loop {
            let is_late = self.lane == Lane::Results && is_late(delivery.stored_ms, now_ms(), self.backfill_after);
            if is_late && self.set_aside(delivery).await {
                count(&self.metrics.set_aside, 1);
                return delivery.ack().await;
            }
            // A full backfill stream at the leaf must not stop what could pass.
            let lane = if is_late { Lane::Backfill } else { self.lane };
            match self.attempt(delivery, lane).await {
                Attempt::Stored => {
                    self.pace.passed();
                    self.metrics.count_forwarded(lane);
                    self.metrics.forward_lag_seconds.of(lane).observe_since(delivery.stored_ms, now_ms());
                    // Ack late: a crash before this line must forward the batch again.
                    return delivery.ack().await;
                }
                Attempt::Refused(refusal) => return self.leave(delivery, &refusal).await,
                Attempt::Later { cause, said } => {
                    count(self.metrics.forward_retried.of(cause), 1);
                    if cause != Cause::Full || began.elapsed() >= FULL_SAID_AFTER {
                        self.pace.refused(said);
                    }
                }
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = self.pace.room.notified() => {}
            }
        }
    }

    async fn leave(&self, delivery: &Delivery, refusal: &StoreError) -> anyhow::Result<()> {
        self.pace.passed();
        count(&self.metrics.forward_refused, 1);
        error!(
            error = %Chain(refusal), stream.sequence = delivery.stream_sequence,
            "the hub refuses batch {} of the leaf: it stays there", delivery.stream_sequence
        );
        delivery.retry_after(REFUSED_PAUSE).await
    }

    async fn attempt(&self, delivery: &Delivery, lane: Lane) -> Attempt {
        let subject = TenantSubject::Forwarded { site: self.site.clone(), lane }.to_string();
        self.store(&subject, hub_stream(lane).as_str(), delivery).await
    }

    /// Whether the leaf's backfill stream has it now. It can be there twice, after a crash between the two streams.
    async fn set_aside(&self, delivery: &Delivery) -> bool {
        let Ok(EdgeSubject { poller, .. }) = delivery.subject.parse() else { return false };
        let subject = EdgeSubject { lane: Lane::Backfill, poller }.to_string();
        match self.store(&subject, edge_stream(Lane::Backfill).as_str(), delivery).await {
            Attempt::Stored => true,
            Attempt::Refused(error) => {
                self.pace.refused(Chain(&error).to_string());
                false
            }
            Attempt::Later { cause, said } => {
                count(self.metrics.forward_retried.of(cause), 1);
                self.pace.refused(said);
                false
            }
        }
    }

    async fn store(&self, subject: &str, stream: &str, delivery: &Delivery) -> Attempt {
        // A client that is not connected queues requests, and the batch would be stored twice.
        if !self.bus.is_connected() {
            return later(Cause::LeafAway, "the leaf is away");
        }
        let headers = delivery.headers.without_server_headers();
        match self.bus.store(subject, headers, delivery.body.clone(), STORE_LIMIT).await {
            Ok(stored) if stored.stream == stream => Attempt::Stored,
            // A stream on the leaf that takes `up.>` would swallow everything that is meant for the hub.
            Ok(stored) => {
                let said = format!("stream {} answers on {subject}, which only {stream} may", stored.stream);
                later(Cause::WrongStream, said)
            }
            Err(error) => match Cause::of(&error) {
                Some(cause) => later(cause, Chain(&error).to_string()),
                None => Attempt::Refused(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waited_longer_is_late() {
        let minute = Duration::from_secs(60);
        for (stored_ms, now_ms, expected) in
            [(0, 60_000, false), (0, 60_001, true), (60_000, 0, false), (i64::MIN, i64::MAX, true)]
        {
            assert_eq!(is_late(stored_ms, now_ms, minute), expected, "{stored_ms} {now_ms}");
        }
    }
}
