//! Carries batches: to the hub, or aside into the leaf's backfill stream when they have waited too long.
//!
//! It holds each batch until one of them has acknowledged it; only then does the stream that it came from forget it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_bus::{EdgeSubject, Lane, SiteName, TenantSubject};
use bulkhead_runtime::{
    Backoff, Bus, Chain, Delivery, Gauge, Headers, Readable, RequestError, Stop, StoreError, Trouble, Unreadable,
    now_ms,
};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::load::{Load, message};
use super::{edge_stream, hub_stream};
use crate::metrics::{Cause, Metrics, count};

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
    /// Places in the leaf's stream of batches that no client can take, and that are on their way.
    unreadable: Mutex<HashSet<u64>>,
    pub(super) metrics: Arc<Metrics>,
}

/// Whether a batch that the leaf stored at `stored_ms` has waited for too long to be live.
fn is_late(stored_ms: i64, now_ms: i64, backfill_after: Duration) -> bool {
    let waited = now_ms.saturating_sub(stored_ms).max(0).unsigned_abs();
    Duration::from_millis(waited) > backfill_after
}

/// What is not settled is handed out again after its acknowledgement wait.
fn log_unsettled(settled: anyhow::Result<()>) {
    if let Err(error) = settled {
        debug!(error = %Chain(error.as_ref()), "batch not settled at the leaf");
    }
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
        Self { bus, lane, stop, site, backfill_after, pace, unreadable: Mutex::default(), metrics }
    }

    /// Carries batches to their end and keeps the leaf from handing them out again meanwhile.
    pub(super) async fn carry(&self, group: Vec<Load>) {
        let again = group.iter().filter(|load| load.delivery.delivered > 1).count();
        count(self.metrics.forward_redelivered.of(self.lane), again);
        let hold = async {
            let mut ticks = tokio::time::interval(EXTEND_EVERY);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                // The leaf ignores it for those that are settled.
                for load in &group {
                    log_unsettled(load.delivery.extend().await);
                }
            }
        };
        let give_up = async {
            self.stop.cancelled().await;
            let _ = tokio::time::timeout(FINISH_LIMIT, std::future::pending::<()>()).await;
        };
        tokio::select! {
            () = self.forward(&group) => {}
            () = hold => {}
            () = give_up => {
                for load in &group {
                    log_unsettled(load.delivery.retry_after(Duration::ZERO).await);
                }
            }
        }
    }

    /// Batches that were handed out and that no client can take, but for those that are on their way already.
    pub(super) async fn find_unreadable(&self) -> Result<Vec<Unreadable>, RequestError> {
        let mut found = self.bus.find_unreadable(edge_stream(self.lane), Readable::Leave).await?;
        let mut carried = self.unreadable.lock().expect("no holder panics");
        found.retain(|message| carried.insert(message.sequence));
        Ok(found)
    }

    /// Carries one upstream with those of its headers that are text: core stores it if its signature is among them and
    /// keeps it as a dead letter if not. Holds it at the leaf meanwhile.
    pub(super) async fn carry_unreadable(&self, message: Unreadable) {
        count(&self.metrics.forward_unreadable, 1);
        warn!(stream.sequence = message.sequence, "a batch of the leaf has headers that are no text");
        let hold = async {
            let mut ticks = tokio::time::interval(EXTEND_EVERY);
            loop {
                ticks.tick().await;
                log_unsettled(message.extend().await.map_err(anyhow::Error::from));
            }
        };
        tokio::select! {
            () = self.forward_unreadable(&message) => {}
            () = hold => {}
            () = self.stop.cancelled() => {}
        }
        self.unreadable.lock().expect("no holder panics").remove(&message.sequence);
    }

    async fn forward_unreadable(&self, message: &Unreadable) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let mut trouble = Trouble::new("forward a batch with headers that are no text".to_owned());
        let subject = TenantSubject::Forwarded { site: self.site.clone(), lane: self.lane }.to_string();
        let headers = Headers::from_text(&message.headers).without_server_headers();
        loop {
            match self.store(&subject, hub_stream(self.lane).as_str(), (headers.clone(), message.body.clone())).await {
                Attempt::Stored => break,
                Attempt::Refused(refusal) => trouble.begin(Chain(&refusal).to_string()),
                Attempt::Later { cause, said } => {
                    count(self.metrics.forward_retried.of(cause), 1);
                    trouble.begin(said)
                }
            };
            backoff.pause().await;
        }
        log_unsettled(message.ack().await.map_err(anyhow::Error::from));
    }

    /// Tries until somebody has every batch or the hub refuses it.
    async fn forward(&self, group: &[Load]) {
        let mut left: Vec<&Load> = group.iter().collect();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let began = Instant::now();
        loop {
            let has_late = self.set_late_aside(&mut left).await;
            if left.is_empty() {
                return;
            }
            // A full backfill stream at the leaf must not stop what could pass.
            let lane = if has_late { Lane::Backfill } else { self.lane };
            match self.attempt(&left, lane).await {
                Attempt::Stored => return self.settle(&left, lane).await,
                Attempt::Refused(refusal) => match left.as_slice() {
                    [alone] => return self.leave(&alone.delivery, &refusal).await,
                    // One of them may be to blame, or their number.
                    several => {
                        for load in several {
                            Box::pin(self.forward(std::slice::from_ref(*load))).await;
                        }
                        return;
                    }
                },
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

    async fn settle(&self, stored: &[&Load], lane: Lane) {
        self.pace.passed();
        let now = now_ms();
        for load in stored {
            self.metrics.count_forwarded(lane);
            self.metrics.forward_lag_seconds.of(lane).observe_since(load.delivery.stored_ms, now);
            // Ack late: a crash before this line must forward the batch again.
            log_unsettled(load.delivery.ack().await);
        }
    }

    /// Moves what has waited too long into the leaf's backfill stream. Says whether some that has is left.
    async fn set_late_aside(&self, left: &mut Vec<&Load>) -> bool {
        if self.lane == Lane::Backfill {
            return false;
        }
        let mut has_late = false;
        let mut kept = Vec::with_capacity(left.len());
        for load in left.drain(..) {
            let is_late = is_late(load.delivery.stored_ms, now_ms(), self.backfill_after);
            // When one finds no place there, the next would not either.
            if is_late && !has_late && self.set_aside(&load.delivery).await {
                count(&self.metrics.set_aside, 1);
                log_unsettled(load.delivery.ack().await);
                continue;
            }
            has_late |= is_late;
            kept.push(load);
        }
        *left = kept;
        has_late
    }

    async fn leave(&self, delivery: &Delivery, refusal: &StoreError) {
        self.pace.passed();
        count(&self.metrics.forward_refused, 1);
        error!(
            error = %Chain(refusal), stream.sequence = delivery.stream_sequence,
            "the hub refuses batch {} of the leaf: it stays there", delivery.stream_sequence
        );
        log_unsettled(delivery.retry_after(REFUSED_PAUSE).await);
    }

    async fn attempt(&self, group: &[&Load], lane: Lane) -> Attempt {
        let subject = TenantSubject::Forwarded { site: self.site.clone(), lane }.to_string();
        self.store(&subject, hub_stream(lane).as_str(), message(group)).await
    }

    /// Whether the leaf's backfill stream has it now. It can be there twice, after a crash between the two streams.
    async fn set_aside(&self, delivery: &Delivery) -> bool {
        let Ok(EdgeSubject { poller, .. }) = delivery.subject.parse() else { return false };
        let subject = EdgeSubject { lane: Lane::Backfill, poller }.to_string();
        let message = (delivery.headers.without_server_headers(), delivery.body.clone());
        match self.store(&subject, edge_stream(Lane::Backfill).as_str(), message).await {
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

    async fn store(&self, subject: &str, stream: &str, (headers, body): (Headers, Bytes)) -> Attempt {
        // A client that is not connected queues requests, and the batch would be stored twice.
        if !self.bus.is_connected() {
            return later(Cause::LeafAway, "the leaf is away");
        }
        match self.bus.store(subject, headers, body, STORE_LIMIT).await {
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
