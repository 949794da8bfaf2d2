//! Stores what was decided and settles every delivery, one transaction after the other.
//!
//! What the database can never take is found and dead-lettered, and the rest stored. A database that is away, or that
//! refuses what is good because it is not as it should be, loses nothing: that is put back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_bus::{AccountKey, CoreSubject, Tenant, TenantSlug};
use bulkhead_runtime::{Bus, Chain, Delivery, Heart, Readable, Stop, now_ms};
use bulkhead_store::{READ_LIMIT, StoreError, within};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::letters::{letter, unreadable_letter};
use super::part::Part;
use super::{Ingesting, Prepared, Stranger, Work, pause, retry_pace};
use crate::admission::{Dead, DeadReason};
use crate::commit::{Ready, Shares, Writer};
use crate::metrics::add;
use crate::store::{self, Counts};

/// How long a delivery waits when its account is not known yet.
const STRANGER_WAIT: Duration = Duration::from_secs(1);
/// How long a delivery waits when the database is away or refuses what is good, or its sender's key is not known; longer
/// than keys are believed.
const AWAY_WAIT: Duration = Duration::from_secs(2);

/// How long a delivery waits while its tenant's rows are being moved.
const MOVED_WAIT: Duration = Duration::from_millis(500);

/// Whether what was asked of the database is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    /// The database refuses what is good: nothing was stored, and it is back in the queue. Others may be stored.
    Refused,
    /// The database is away: what was not stored is back in the queue.
    Away,
}

/// Writes transactions of one stream.
pub(super) struct Settler {
    ingesting: Ingesting,
    writer: Writer,
    /// Which of the stream's writers it is.
    place: usize,
}

impl Settler {
    pub(super) fn new(ingesting: Ingesting, place: usize) -> Self {
        let writer = Writer::new(ingesting.store.clone());
        Self { ingesting, writer, place }
    }

    fn heart(&self) -> &Heart {
        &self.ingesting.hearts.writing[self.place]
    }

    /// Runs until nothing more is prepared.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Prepared>, stop: &Stop) {
        let mut pace = retry_pace();
        let hearts = Arc::clone(&self.ingesting.hearts);
        while let Some(prepared) = hearts.writing[self.place].while_waiting(waiting.recv()).await {
            match self.settle_all(prepared).await {
                Settled::Yes => pace.reset(),
                Settled::Refused | Settled::Away => pause(&mut pace, stop).await,
            }
        }
    }

    async fn settle_all(&mut self, prepared: Prepared) -> Settled {
        for stranger in &prepared.strangers {
            self.settle_stranger(stranger).await;
        }
        for delivery in &prepared.undecided {
            retry(&self.ingesting, self.heart(), delivery, AWAY_WAIT).await;
        }
        let mut settled = Settled::Yes;
        for work in &prepared.works {
            settled = match settled {
                Settled::Yes | Settled::Refused => self.settle(work).await,
                Settled::Away => {
                    // The first work said why.
                    retry_all(&self.ingesting, self.heart(), &work.done).await;
                    Settled::Away
                }
            };
        }
        settled
    }

    /// Stores and acknowledges; what the database refuses is found, and dead-lettered or put back, and the rest stored.
    async fn settle(&mut self, work: &Work) -> Settled {
        match self.write(&work.ready).await {
            Ok(counts) => {
                self.count(counts);
                acknowledge(&self.ingesting, self.heart(), &work.done).await;
                return Settled::Yes;
            }
            Err(error) if error.is_transient() => {
                put_back(&self.ingesting, self.heart(), &work.done, &error).await;
                return Settled::Away;
            }
            // Each goes where its tenant's rows are when it is stored alone.
            Err(StoreError::Moved { slug }) => info!(tenant = %slug, "the rows of tenant {slug} are being moved"),
            Err(StoreError::TenantClosed { slug }) => {
                info!(tenant = %slug, "tenant {slug} left while its batches were under way");
                // So that they are nobody's when they are decided about again.
                let read = self.heart().while_waiting(self.ingesting.directory.refresh()).await;
                if let Err(error) = read {
                    put_back(&self.ingesting, self.heart(), &work.done, &error).await;
                    return Settled::Away;
                }
            }
            Err(error) => {
                // A partition that was taken away is made again; then the refusal was not the messages' fault.
                self.writer.forget_days();
                let cause = format!("one by one: {}", Chain(&error));
                if self.ingesting.answers.said.is_news(cause, Instant::now()) {
                    let count = work.done.len();
                    warn!(error = %Chain(&error), count, "batches refused by the database: storing them one by one");
                }
            }
        }
        let (mut is_away, mut is_any_stored) = (false, false);
        for delivery in &work.done {
            if is_away {
                retry(&self.ingesting, self.heart(), delivery, AWAY_WAIT).await;
                continue;
            }
            match self.settle_alone(delivery).await {
                Settled::Yes => is_any_stored = true,
                // One tenant's trouble is not the next one's.
                Settled::Refused => {}
                Settled::Away => is_away = true,
            }
        }
        match (is_away, is_any_stored) {
            (true, _) => Settled::Away,
            (false, true) => Settled::Yes,
            (false, false) => Settled::Refused,
        }
    }

    /// The one message that the database refuses must not stop the others.
    async fn settle_alone(&mut self, delivery: &Delivery) -> Settled {
        match self.store_alone(delivery).await {
            Ok(counts) => {
                self.count(counts);
                acknowledge(&self.ingesting, self.heart(), std::slice::from_ref(delivery)).await;
                Settled::Yes
            }
            // Nothing is wrong: its turn comes again, and nobody else waits for it.
            Err(StoreError::Moved { slug }) => {
                self.reopen(&slug).await;
                retry(&self.ingesting, self.heart(), delivery, MOVED_WAIT).await;
                Settled::Yes
            }
            Err(error) => {
                put_back(&self.ingesting, self.heart(), std::slice::from_ref(delivery), &error).await;
                if error.is_transient() { Settled::Away } else { Settled::Refused }
            }
        }
    }

    /// A move that was killed holds nobody's messages for long.
    async fn reopen(&self, slug: &TenantSlug) {
        let snapshot = self.ingesting.directory.snapshot();
        let Some((_, tenant)) = snapshot.tenants().find(|(_, tenant)| tenant.slug == *slug) else { return };
        let opening = async {
            let mut tx = self.ingesting.store.begin(tenant).await?;
            let is_open = tx.reopen_place().await?;
            tx.commit().await.map(|()| is_open)
        };
        match within("open a tenant's place again", READ_LIMIT, opening).await {
            Ok(true) => {
                warn!(tenant = %slug, "a move of the rows of tenant {slug} was cut short: its messages go on meanwhile")
            }
            Ok(false) => {}
            Err(error) => warn!(tenant = %slug, error = %Chain(&error), "whether a move goes on was not looked at"),
        }
    }

    async fn store_alone(&mut self, delivery: &Delivery) -> Result<Counts, StoreError> {
        let mut buried = Vec::new();
        let stored = self.store_parts(delivery, &mut buried).await;
        self.ingesting.report(&delivery.subject, buried.iter());
        stored
    }

    /// Each batch in a transaction of its own.
    async fn store_parts(&mut self, delivery: &Delivery, buried: &mut Vec<Dead>) -> Result<Counts, StoreError> {
        let decided = self.ingesting.decide(std::slice::from_ref(delivery)).await?;
        let mut total = Counts::default();
        for (part, verdict) in decided.into_iter().flatten() {
            // Its tenant or its key went away meanwhile: it comes again, and is decided about then.
            if verdict.stranger().is_some() || verdict.is_undecided() {
                return Err(StoreError::TimedOut { action: "find a batch's sender again", limit: STRANGER_WAIT });
            }
            let mut shares = Shares::default();
            self.ingesting.share_out(&mut shares, (delivery, &part), verdict);
            total.add(self.write_or_bury((delivery, &part), shares, buried).await?);
        }
        Ok(total)
    }

    /// What is buried is acknowledged: only what can never be stored is.
    async fn write_or_bury(
        &mut self,
        from: (&Delivery, &Part),
        shares: Shares,
        buried: &mut Vec<Dead>,
    ) -> Result<Counts, StoreError> {
        let tenants: Vec<Tenant> = shares.tenants().cloned().collect();
        let error = match self.write(&shares.ready()).await {
            Ok(counts) => return Ok(counts),
            Err(error) if error.is_the_datas_fault() => error,
            Err(error) => return Err(error),
        };
        let dead = Dead { reason: DeadReason::NotStorable, detail: Chain(&error).to_string() };
        let mut poison = Shares::default();
        for tenant in &tenants {
            poison.of(tenant).dead.push(letter(self.ingesting.stream, from, &dead));
        }
        buried.push(dead);
        self.write(&poison.ready()).await
    }

    /// One transaction, and what is measured of it.
    async fn write(&mut self, ready: &Ready) -> Result<Counts, StoreError> {
        self.heart().beat();
        let Ingesting { metrics, lane, answers, .. } = &self.ingesting;
        let began = Instant::now();
        let written = self.writer.write(ready).await;
        metrics.transaction_seconds.of(*lane).observe(began.elapsed());
        answers.note_write(&written);
        if written.is_ok() {
            add(metrics.transactions.of(*lane), 1);
            metrics.transaction_rows.of(*lane).observe(ready.rows());
            let now = now_ms();
            ready.oldest_slots_ms().for_each(|slot| metrics.slot_age_seconds.of(*lane).observe_since(slot, now));
        }
        written
    }

    /// Deliveries of nobody: wait for the account to become known, then keep them apart.
    async fn settle_stranger(&self, stranger: &Stranger) {
        let Stranger { delivery, account, dead } = stranger;
        let Ingesting { metrics, answers, .. } = &self.ingesting;
        self.heart().beat();
        if dead.reason == DeadReason::UnknownAccount && delivery.delivered < self.ingesting.config.dead_letter_after {
            return retry(&self.ingesting, self.heart(), delivery, STRANGER_WAIT).await;
        }
        let letter = letter(self.ingesting.stream, (delivery, &Part::whole(delivery)), dead);
        let put = store::put_unclaimed(&self.ingesting.store, account, &letter).await;
        answers.note(&put);
        match put {
            Ok(is_kept) => {
                add(metrics.dead_letters.of(dead.reason), 1);
                add(&metrics.dead_letters_not_kept, u64::from(!is_kept));
                acknowledge(&self.ingesting, self.heart(), std::slice::from_ref(delivery)).await;
            }
            Err(error) => put_back(&self.ingesting, self.heart(), std::slice::from_ref(delivery), &error).await,
        }
    }

    /// A message whose headers are no text costs us the connection each time it is delivered: it is read another way,
    /// dead-lettered and settled, so that one sender cannot stop the queue for all.
    pub(super) async fn settle_unreadable(&mut self, bus: &Bus) {
        let found = match bus.find_unreadable(self.ingesting.stream, Readable::AskAgain).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %Chain(&error), "what is pending was not looked through");
                return;
            }
        };
        for message in found {
            let dead = Dead { reason: DeadReason::BadHeaders, detail: "the headers are not text".to_owned() };
            self.ingesting.report(&message.subject, std::iter::once(&dead));
            let letter = unreadable_letter(self.ingesting.stream, &message, &dead);
            let account = CoreSubject::account_of(&message.subject).ok();
            let snapshot = self.ingesting.directory.snapshot();
            let sender = account.as_ref().and_then(|account| snapshot.open_tenant(account));
            let kept = match sender {
                Some(tenant) => {
                    let mut shares = Shares::default();
                    shares.of(tenant).dead.push(letter);
                    self.write(&shares.ready()).await.map(|_| ())
                }
                None => {
                    let account = account.as_ref().map_or("", AccountKey::as_str);
                    let put = store::put_unclaimed(&self.ingesting.store, account, &letter).await;
                    self.ingesting.answers.note(&put);
                    put.map(|_| ())
                }
            };
            match kept {
                Ok(()) => {
                    add(self.ingesting.metrics.dead_letters.of(dead.reason), 1);
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
        counts.dead_letters.iter().for_each(|(reason, count)| add(metrics.dead_letters.of(reason), count));
        add(&metrics.dead_letters_not_kept, counts.not_kept);
    }
}

/// What is acknowledged is stored.
async fn acknowledge(ingesting: &Ingesting, heart: &Heart, deliveries: &[Delivery]) {
    let lag = ingesting.metrics.commit_lag_seconds.of(ingesting.lane);
    let now = now_ms();
    let acknowledging = async {
        for delivery in deliveries {
            lag.observe_since(delivery.stored_ms, now);
            if let Err(error) = delivery.ack().await {
                // It is stored; it comes again and changes nothing.
                warn!(error = %error, "acknowledgement not sent");
            }
        }
    };
    // A client whose hub is away holds so many and no more.
    heart.while_waiting(acknowledging).await;
}

/// Back into the queue, because the database is away or refuses what is good.
pub(super) async fn put_back(ingesting: &Ingesting, heart: &Heart, deliveries: &[Delivery], error: &StoreError) {
    let count = deliveries.len();
    if error.is_transient() {
        warn!(error = %Chain(error), count, "batches not stored, trying again");
    } else if ingesting.answers.said.is_news(Chain(error).to_string(), Instant::now()) {
        error!(error = %Chain(error), count, "batches not stored: the database refuses what is good, they wait for its repair");
    }
    retry_all(ingesting, heart, deliveries).await;
}

async fn retry_all(ingesting: &Ingesting, heart: &Heart, deliveries: &[Delivery]) {
    for delivery in deliveries {
        retry(ingesting, heart, delivery, AWAY_WAIT).await;
    }
}

async fn retry(ingesting: &Ingesting, heart: &Heart, delivery: &Delivery, wait: Duration) {
    add(&ingesting.metrics.deliveries_retried, 1);
    if let Err(error) = heart.while_waiting(delivery.retry_after(wait)).await {
        // Its acknowledgement wait ends by itself.
        warn!(error = %error, "delivery not put back");
    }
}
