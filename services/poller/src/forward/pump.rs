//! Takes batches of one lane from the leaf, never more than there is room to carry: what would wait here unbegun would
//! come again when its acknowledgement wait ends.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_runtime::{Backoff, Chain, Fetched, Heart, PullError, Readiness, Trouble};
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tracing::{error, info, warn};

use super::carry::{Carrier, RETRY_FIRST, RETRY_MOST};
use super::edge_stream;
use super::load::{Load, bundled};

/// How long the leaf keeps one question for batches open.
const FETCH_WAIT: Duration = Duration::from_secs(5);
/// A question is worth asking when so much of the window is free.
const FREE_SHARE: usize = 4;

pub(super) struct Pump {
    carrier: Arc<Carrier>,
    slots: Arc<Semaphore>,
    free_least: u32,
    on_their_way: JoinSet<()>,
    heart: Heart,
}

impl Pump {
    pub(super) fn new(carrier: Carrier, window: usize, heart: Heart) -> Self {
        Self {
            carrier: Arc::new(carrier),
            slots: Arc::new(Semaphore::new(window)),
            free_least: u32::try_from(window / FREE_SHARE).unwrap_or(1).max(1),
            on_their_way: JoinSet::new(),
            heart,
        }
    }

    /// Runs until the carrier is asked to stop, then finishes what is on its way.
    pub(super) async fn run(mut self, readiness: Readiness) {
        let stop = self.carrier.stop.clone();
        let spec = edge_stream(self.carrier.lane).spec();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        let mut trouble = Trouble::new(format!("pull {} from the leaf", self.carrier.lane));
        while !stop.is_cancelled() {
            self.heart.beat();
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.heart.while_waiting(self.carrier.bus.until_connected()) => {}
            }
            let carrier = Arc::clone(&self.carrier);
            let pumped = tokio::select! {
                () = stop.cancelled() => break,
                ensured = carrier.bus.ensure_stream(&spec, 1) => match ensured {
                    Ok(_) => {
                        readiness.mark(carrier.lane.token());
                        trouble.end();
                        self.pass_on_unreadable().await;
                        self.pump().await.map_err(|error| Chain(&error).to_string())
                    }
                    Err(error) => Err(Chain(&error).to_string()),
                },
            };
            match pumped {
                Ok(()) => backoff.reset(),
                Err(cause) => {
                    trouble.begin(cause);
                    tokio::select! { () = stop.cancelled() => break, () = backoff.pause() => {} }
                }
            }
        }
        info!(on_their_way = self.on_their_way.len(), "forwarder of {} is finishing", self.carrier.lane);
        while let Some(ended) = self.on_their_way.join_next().await {
            log_panic(ended);
        }
    }

    /// A batch that no client can be handed costs the connection at each delivery.
    async fn pass_on_unreadable(&mut self) {
        let found = self.carrier.find_unreadable();
        let found = match self.heart.while_waiting(found).await {
            Ok(found) => found,
            Err(error) => return warn!(error = %Chain(&error), "what the leaf handed out was not looked through"),
        };
        for message in found {
            let carrier = Arc::clone(&self.carrier);
            self.on_their_way.spawn(async move { carrier.carry_unreadable(message).await });
        }
    }

    /// Returns at a stop, and when the connection was lost: the stream may be another one afterwards.
    async fn pump(&mut self) -> Result<(), PullError> {
        let stop = self.carrier.stop.clone();
        let fetcher = self.carrier.bus.fetcher(edge_stream(self.carrier.lane)).await?;
        loop {
            while let Some(ended) = self.on_their_way.try_join_next() {
                log_panic(ended);
            }
            // While the hub takes nothing there is no room, for however long that is.
            let room = self.heart.while_waiting(Arc::clone(&self.slots).acquire_many_owned(self.free_least));
            let permits = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                permits = room => permits,
            };
            let Ok(mut permits) = permits else { return Ok(()) };
            let rest = u32::try_from(self.slots.available_permits()).unwrap_or(0);
            if let Ok(more) = Arc::clone(&self.slots).try_acquire_many_owned(rest) {
                permits.merge(more);
            }
            let mut fetched = fetcher.fetch(permits.num_permits(), FETCH_WAIT).await?;
            loop {
                let mut loads = Vec::new();
                let mut next =
                    tokio::select! { () = stop.cancelled() => return Ok(()), next = fetched.next() => next? };
                // What has come by now goes together; nothing is waited for.
                let mut failure = None;
                let ended = loop {
                    match next {
                        Fetched::Delivery(delivery) => loads.push(Load::new(*delivery)),
                        ended @ (Fetched::End | Fetched::Lost) => break Some(ended),
                    }
                    match fetched.next().now_or_never() {
                        Some(Ok(come)) => next = come,
                        Some(Err(error)) => {
                            failure = Some(error);
                            break None;
                        }
                        None => break None,
                    }
                };
                for group in bundled(loads) {
                    let permit = permits.split(group.len());
                    self.carry(group, permit);
                }
                if let Some(error) = failure {
                    return Err(error);
                }
                match ended {
                    None => {}
                    Some(Fetched::Lost) => return Ok(()),
                    Some(Fetched::End | Fetched::Delivery(_)) => break,
                }
            }
        }
    }

    fn carry(&mut self, group: Vec<Load>, permit: Option<OwnedSemaphorePermit>) {
        let carrier = Arc::clone(&self.carrier);
        self.on_their_way.spawn(async move {
            carrier.carry(group).await;
            drop(permit);
        });
    }
}

/// A batch whose task panicked is not acknowledged, so the leaf hands it out again.
fn log_panic(ended: Result<(), JoinError>) {
    if let Err(panic) = ended {
        error!(error = %Chain(&panic), "forwarding a batch panicked");
    }
}
