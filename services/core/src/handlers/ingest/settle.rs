//! Stores what was decided and settles every delivery, one transaction after the other.
//!
//! What the database refuses is found and dead-lettered, and the rest stored; a database that is away loses nothing.

use std::time::Duration;

use bulkhead_bus::{AccountKey, CoreSubject};
use bulkhead_runtime::{Bus, Chain, Delivery, Stop};
use bulkhead_store::StoreError;
use tokio::sync::mpsc;
use tracing::warn;

use super::letters::{letter, unreadable_letter};
use super::{Ingesting, Prepared, Stranger, Work, pause, retry_pace};
use crate::admission::{Dead, DeadReason};
use crate::commit::{Shares, Writer};
use crate::metrics::{Metrics, add};
use crate::store::{self, Counts};

/// How long a delivery waits when its account is not known yet.
const STRANGER_WAIT: Duration = Duration::from_secs(1);
/// How long a delivery waits when the database is away.
const AWAY_WAIT: Duration = Duration::from_secs(2);

/// Whether what was asked of the database is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    /// The database is away: what was not stored is back in the queue.
    Away,
}

/// Writes the transactions of one stream.
pub(super) struct Settler {
    ingesting: Ingesting,
    writer: Writer,
}

impl Settler {
    pub(super) fn new(ingesting: Ingesting) -> Self {
        let writer = Writer::new(ingesting.store.clone());
        Self { ingesting, writer }
    }

    /// Runs until nothing more is prepared.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Prepared>, stop: &Stop) {
        let mut pace = retry_pace();
        while let Some(prepared) = waiting.recv().await {
            match self.settle_all(prepared).await {
                Settled::Yes => pace.reset(),
                Settled::Away => pause(&mut pace, stop).await,
            }
        }
    }

    async fn settle_all(&mut self, prepared: Prepared) -> Settled {
        for stranger in &prepared.strangers {
            self.settle_stranger(stranger).await;
        }
        let mut settled = Settled::Yes;
        for work in prepared.works.iter().filter(|work| !work.done.is_empty()) {
            settled = match settled {
                Settled::Yes => self.settle(work).await,
                Settled::Away => {
                    // The first work said why.
                    retry_all(&self.ingesting.metrics, &work.done).await;
                    Settled::Away
                }
            };
        }
        settled
    }

    /// Stores and acknowledges; what the database refuses is found and dead-lettered, the rest stored.
    async fn settle(&mut self, work: &Work) -> Settled {
        match self.writer.write(&work.shares).await {
            Ok(counts) => {
                self.count(counts);
                acknowledge(&work.done).await;
                return Settled::Yes;
            }
            Err(error) if error.is_transient() => {
                put_back(&self.ingesting.metrics, &work.done, &error).await;
                return Settled::Away;
            }
            Err(error) => warn!(
                error = %Chain(&error), count = work.done.len(),
                "batches refused by the database: storing them one by one"
            ),
        }
        // A partition that was taken away is made again; then the refusal was not the messages' fault.
        self.writer.forget_days();
        let mut settled = Settled::Yes;
        for delivery in &work.done {
            settled = match settled {
                Settled::Yes => self.settle_alone(delivery).await,
                Settled::Away => {
                    retry(&self.ingesting.metrics, delivery, AWAY_WAIT).await;
                    Settled::Away
                }
            };
        }
        settled
    }

    /// The one message that the database refuses must not stop the others.
    async fn settle_alone(&mut self, delivery: &Delivery) -> Settled {
        let stored = match self.ingesting.decide(std::slice::from_ref(delivery)).await {
            Ok(verdicts) => {
                let mut shares = Shares::default();
                verdicts.into_iter().for_each(|verdict| self.ingesting.share_out(&mut shares, delivery, verdict));
                self.write_or_bury(delivery, &shares).await
            }
            Err(error) => Err(error),
        };
        match stored {
            Ok(counts) => {
                self.count(counts);
                acknowledge(std::slice::from_ref(delivery)).await;
                Settled::Yes
            }
            Err(error) => {
                put_back(&self.ingesting.metrics, std::slice::from_ref(delivery), &error).await;
                Settled::Away
            }
        }
    }

    async fn write_or_bury(&mut self, delivery: &Delivery, shares: &Shares) -> Result<Counts, StoreError> {
        let error = match self.writer.write(shares).await {
            Ok(counts) => return Ok(counts),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => error,
        };
        let dead = Dead { reason: DeadReason::NotStorable, detail: Chain(&error).to_string() };
        self.ingesting.report(&delivery.subject, &dead);
        let mut poison = Shares::default();
        for tenant in shares.tenants() {
            poison.of(tenant).dead.push(letter(self.ingesting.stream, delivery, &dead));
        }
        self.writer.write(&poison).await
    }

    /// Deliveries of nobody: wait for the account to become known, then keep them apart.
    async fn settle_stranger(&self, stranger: &Stranger) {
        let Stranger { delivery, account, dead } = stranger;
        let metrics = &self.ingesting.metrics;
        if dead.reason == DeadReason::UnknownAccount && delivery.delivered < self.ingesting.config.dead_letter_after {
            return retry(metrics, delivery, STRANGER_WAIT).await;
        }
        let letter = letter(self.ingesting.stream, delivery, dead);
        match store::put_unclaimed(&self.ingesting.store, account, &letter).await {
            Ok(is_kept) => {
                add(&metrics.dead_letters, 1);
                add(&metrics.dead_letters_not_kept, u64::from(!is_kept));
                acknowledge(std::slice::from_ref(delivery)).await;
            }
            Err(error) => put_back(metrics, std::slice::from_ref(delivery), &error).await,
        }
    }

    /// A message whose headers are no text costs us the connection each time it is delivered: it is read another way,
    /// dead-lettered and settled, so that one sender cannot stop the queue for all.
    pub(super) async fn settle_unreadable(&mut self, bus: &Bus) {
        let found = match bus.find_unreadable(self.ingesting.stream).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %Chain(&error), "what is pending was not looked through");
                return;
            }
        };
        for message in found {
            let dead = Dead { reason: DeadReason::BadHeaders, detail: "the headers are not text".to_owned() };
            self.ingesting.report(&message.subject, &dead);
            let letter = unreadable_letter(self.ingesting.stream, &message, &dead);
            let account = CoreSubject::account_of(&message.subject).ok();
            let snapshot = self.ingesting.directory.snapshot();
            let sender = snapshot.tenants().find(|(key, _)| Some(*key) == account.as_ref());
            let kept = match sender {
                Some((_, tenant)) => {
                    let mut shares = Shares::default();
                    shares.of(tenant).dead.push(letter);
                    self.writer.write(&shares).await.map(|_| ())
                }
                None => {
                    let account = account.as_ref().map_or("", AccountKey::as_str);
                    store::put_unclaimed(&self.ingesting.store, account, &letter).await.map(|_| ())
                }
            };
            match kept {
                Ok(()) => {
                    add(&self.ingesting.metrics.dead_letters, 1);
                    if let Err(error) = message.ack().await {
                        warn!(error = %Chain(&error), "an unreadable message was not settled");
                    }
                }
                // It comes again, costs the connection again, and is found again.
                Err(error) => warn!(error = %Chain(&error), "an unreadable message was not kept"),
            }
        }
    }

    fn count(&self, counts: Counts) {
        let metrics = &self.ingesting.metrics;
        add(&metrics.results_committed, counts.inserted);
        add(&metrics.results_replaced, counts.replaced);
        add(&metrics.results_duplicate, counts.duplicates);
        add(&metrics.dead_letters, counts.dead_letters);
        add(&metrics.dead_letters_not_kept, counts.not_kept);
    }
}

async fn acknowledge(deliveries: &[Delivery]) {
    for delivery in deliveries {
        if let Err(error) = delivery.ack().await {
            // It is stored; it comes again and changes nothing.
            warn!(error = %error, "acknowledgement not sent");
        }
    }
}

/// Back into the queue, because the database is away.
pub(super) async fn put_back(metrics: &Metrics, deliveries: &[Delivery], error: &StoreError) {
    warn!(error = %Chain(error), count = deliveries.len(), "batches not stored, trying again");
    retry_all(metrics, deliveries).await;
}

async fn retry_all(metrics: &Metrics, deliveries: &[Delivery]) {
    for delivery in deliveries {
        retry(metrics, delivery, AWAY_WAIT).await;
    }
}

async fn retry(metrics: &Metrics, delivery: &Delivery, wait: Duration) {
    add(&metrics.deliveries_retried, 1);
    if let Err(error) = delivery.retry_after(wait).await {
        // Its acknowledgement wait ends by itself.
        warn!(error = %error, "delivery not put back");
    }
}
