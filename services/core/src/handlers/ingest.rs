//! `t.<T>.up.<site>.fwd.<lane>`: batches from the hub's work queues into the database.
//!
//! Acknowledged after the commit and never before. What cannot be stored is dead-lettered in the same transaction; what
//! cannot be stored now is put back. A batch that comes twice changes nothing (docs/adr/0004).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::payload::RESULTS_PER_BATCH_MAX;
use bulkhead_bus::{AccountKey, CoreSubject, StreamName, Tenant, TenantId};
use bulkhead_runtime::{Bus, Chain, Delivery, Readiness, Stop, Unreadable, now_ms};
use bulkhead_store::{Store, StoreError};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{pause, retry_pace};
use crate::admission::{Admitted, BatchKeys, Dead, DeadReason, Incoming, Verdict, admit};
use crate::commit::{Seen, Shares, Writer};
use crate::config::IngestConfig;
use crate::directory::Directory;
use crate::metrics::{Metrics, add};
use crate::precedence::Candidate;
use crate::store::{self, Counts, DeadLetter};

/// How long a delivery waits when its account is not known yet.
const STRANGER_WAIT: Duration = Duration::from_secs(1);
/// How long a delivery waits when the database is away.
const AWAY_WAIT: Duration = Duration::from_secs(2);
/// How many seconds' worth of rows the lane that is held to a rate takes ahead: well within the acknowledgement wait,
/// or the queue would deliver again what still lies here.
const HELD_AHEAD_S: usize = 10;
/// The whole message, where a dead letter is not about one row.
const WHOLE: i32 = -1;

/// What ingesting one stream works with.
pub struct Ingesting {
    pub store: Store,
    pub directory: Directory,
    pub metrics: Arc<Metrics>,
    pub config: IngestConfig,
    pub stream: StreamName,
    /// Rows a second, for the lane that must not be in the way.
    pub rows_per_second: Option<u32>,
}

/// What one transaction is to do, and which deliveries it settles.
#[derive(Default)]
struct Work<'a> {
    shares: Shares,
    rows: usize,
    done: Vec<&'a Delivery>,
}

/// Whether what was asked of the database is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    /// The database is away: what was not stored is back in the queue.
    Away,
}

/// Identifies a message by what it is, not by where it was stored: the same batch sent ten times is one dead letter.
fn digest(delivery: &Delivery, headers: &str) -> Vec<u8> {
    digest_of(&delivery.subject, headers, &delivery.body)
}

fn digest_of(subject: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [subject.as_bytes(), headers.as_bytes(), body] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

fn candidates(admitted: &Admitted) -> impl Iterator<Item = Candidate> {
    admitted.rows.iter().map(|measured| Candidate {
        measured: measured.clone(),
        vantage: admitted.site.to_string(),
        poller: admitted.poller.to_string(),
        attested: admitted.sequence.is_some(),
    })
}

impl Ingesting {
    /// Pulls and stores until `stop`.
    ///
    /// # Errors
    /// Never by itself: whatever fails is tried again.
    pub async fn run(self, bus: Bus, readiness: Readiness, part: &'static str, stop: Stop) -> anyhow::Result<()> {
        let stream = self.stream.as_str();
        let mut pace = retry_pace();
        let mut writer = Writer::new(self.store.clone());
        let mut trouble = None;
        while !stop.is_cancelled() {
            let pulled = tokio::select! {
                pulled = bus.pull(self.stream, self.ahead()) => pulled,
                () = stop.cancelled() => return Ok(()),
            };
            let mut puller = match pulled {
                Ok(puller) => puller,
                Err(error) => {
                    let cause = Some(Chain(&error).to_string());
                    // A hub that is away for an hour is one line, not a thousand.
                    if trouble != cause {
                        warn!(error = %Chain(&error), "not pulling from {stream}: trying again");
                        trouble = cause;
                    }
                    pause(&mut pace, &stop).await;
                    continue;
                }
            };
            trouble = None;
            readiness.mark(part);
            info!(stream, "pulling from {stream}");
            let mut losses = bus.losses();
            loop {
                let batch = tokio::select! {
                    batch = puller.next_batch(self.messages_most(), self.config.linger()) => batch,
                    Ok(()) = losses.changed() => {
                        self.settle_unreadable(&bus, &mut writer).await;
                        continue;
                    }
                    () = stop.cancelled() => return Ok(()),
                };
                let Ok(deliveries) = batch.inspect_err(|error| {
                    warn!(error = %Chain(error), "pulling from {stream} is interrupted");
                }) else {
                    pause(&mut pace, &stop).await;
                    break;
                };
                let (rows, settled) = self.ingest(&deliveries, &mut writer).await;
                match settled {
                    Settled::Yes => pace.reset(),
                    Settled::Away => pause(&mut pace, &stop).await,
                }
                self.hold_rate(rows, &stop).await;
            }
        }
        Ok(())
    }

    fn ahead(&self) -> usize {
        let Some(rate) = self.rows_per_second else { return self.config.ahead };
        let batches = usize::try_from(rate).unwrap_or(usize::MAX).saturating_mul(HELD_AHEAD_S) / RESULTS_PER_BATCH_MAX;
        batches.clamp(1, self.config.ahead)
    }

    fn messages_most(&self) -> usize {
        self.config.messages_most.min(self.ahead())
    }

    async fn hold_rate(&self, rows: usize, stop: &Stop) {
        let Some(rate) = self.rows_per_second else { return };
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        let pause = Duration::from_millis(rows.saturating_mul(1_000) / u64::from(rate));
        // Running into the limit is the pause.
        let _ = tokio::time::timeout(pause, stop.cancelled()).await;
    }

    /// Stores what can be stored and settles every delivery. Returns how many rows there were.
    async fn ingest(&self, deliveries: &[Delivery], writer: &mut Writer) -> (usize, Settled) {
        add(&self.metrics.batches_received, u64::try_from(deliveries.len()).unwrap_or(0));
        let verdicts = match self.decide(deliveries).await {
            Ok(verdicts) => verdicts,
            Err(error) => {
                self.put_back(deliveries, &error).await;
                return (0, Settled::Away);
            }
        };
        let mut works = vec![Work::default()];
        for (delivery, verdict) in deliveries.iter().zip(&verdicts) {
            if let Some(dead) = verdict.dead() {
                self.report(&delivery.subject, dead);
            }
            match verdict {
                Verdict::Unclaimed(account, dead) => self.settle_stranger(delivery, account.as_str(), dead).await,
                Verdict::Foreign(dead) => self.settle_stranger(delivery, "", dead).await,
                Verdict::Admitted(_) | Verdict::Dead(..) => self.plan(&mut works, delivery, verdict),
            }
        }
        let rows = works.iter().map(|work| work.rows).sum();
        let mut settled = Settled::Yes;
        for work in &works {
            settled = match settled {
                Settled::Yes => self.settle(work, writer).await,
                Settled::Away => {
                    // The first work said why.
                    self.retry_all(&work.done).await;
                    Settled::Away
                }
            };
        }
        (rows, settled)
    }

    async fn decide(&self, deliveries: &[Delivery]) -> Result<Vec<Verdict>, StoreError> {
        let mut snapshot = self.directory.snapshot();
        let senders = deliveries.iter().filter_map(|delivery| CoreSubject::account_of(&delivery.subject).ok());
        let accounts: BTreeSet<AccountKey> = senders.collect();
        if accounts.iter().any(|account| snapshot.account(account).is_none()) {
            self.directory.look_again().await?;
            snapshot = self.directory.snapshot();
        }
        let mut keys: HashMap<TenantId, Arc<BatchKeys>> = HashMap::new();
        let senders = snapshot.tenants().filter(|(account, _)| accounts.contains(account));
        for tenant in senders.map(|(_, tenant)| tenant.clone()).collect::<Vec<_>>() {
            keys.insert(tenant.id, self.directory.batch_keys(&tenant).await?);
        }
        let keys_of = |tenant: &Tenant| keys.get(&tenant.id).map(AsRef::as_ref);
        let now = now_ms();
        let verdicts = deliveries.iter().map(|delivery| {
            let incoming = Incoming { subject: &delivery.subject, body: &delivery.body };
            admit(incoming, |name| delivery.headers.get(name), &snapshot, keys_of, now)
        });
        Ok(verdicts.collect())
    }

    /// Puts a verdict where there is room for its rows.
    fn plan<'a>(&self, works: &mut Vec<Work<'a>>, delivery: &'a Delivery, verdict: &Verdict) {
        let rows = match verdict {
            Verdict::Admitted(admitted) => admitted.rows.len(),
            Verdict::Dead(..) | Verdict::Unclaimed(..) | Verdict::Foreign(_) => 0,
        };
        if works.last().is_none_or(|work| work.rows > 0 && work.rows + rows > self.config.rows_most) {
            works.push(Work::default());
        }
        let Some(work) = works.last_mut() else { return };
        match verdict {
            Verdict::Admitted(admitted) => {
                let share = work.shares.of(&admitted.tenant);
                share.rows.extend(candidates(admitted));
                share.dead.extend(self.row_letters(delivery, admitted));
                let (site, poller) = (admitted.site.clone(), admitted.poller.clone());
                share.seen.push(Seen { site, poller, sequence: admitted.sequence });
            }
            Verdict::Dead(tenant, dead) => work.shares.of(tenant).dead.push(self.letter(delivery, dead)),
            Verdict::Unclaimed(..) | Verdict::Foreign(_) => return,
        }
        work.rows += rows;
        work.done.push(delivery);
    }

    /// Stores and acknowledges; what the database refuses is found and dead-lettered, the rest stored.
    async fn settle(&self, work: &Work<'_>, writer: &mut Writer) -> Settled {
        match writer.write(&work.shares).await {
            Ok(counts) => {
                self.count(counts);
                self.acknowledge(&work.done).await;
                return Settled::Yes;
            }
            Err(error) if error.is_transient() => {
                self.put_back(work.done.iter().copied(), &error).await;
                return Settled::Away;
            }
            Err(error) => warn!(
                error = %Chain(&error), count = work.done.len(),
                "batches refused by the database: storing them one by one"
            ),
        }
        // A partition that was taken away is made again; then the refusal was not the messages' fault.
        writer.forget_days();
        let mut settled = Settled::Yes;
        for delivery in work.done.iter().copied() {
            settled = match settled {
                Settled::Yes => self.settle_alone(delivery, writer).await,
                Settled::Away => {
                    self.retry(delivery, AWAY_WAIT).await;
                    Settled::Away
                }
            };
        }
        settled
    }

    /// The one message that the database refuses must not stop the others.
    async fn settle_alone(&self, delivery: &Delivery, writer: &mut Writer) -> Settled {
        let stored = match self.decide(std::slice::from_ref(delivery)).await {
            Ok(verdicts) => {
                let mut works = vec![Work::default()];
                verdicts.iter().for_each(|verdict| self.plan(&mut works, delivery, verdict));
                self.write_or_bury(delivery, &works, writer).await
            }
            Err(error) => Err(error),
        };
        match stored {
            Ok(counts) => {
                self.count(counts);
                self.acknowledge(&[delivery]).await;
                Settled::Yes
            }
            Err(error) => {
                self.put_back([delivery], &error).await;
                Settled::Away
            }
        }
    }

    async fn write_or_bury(
        &self,
        delivery: &Delivery,
        works: &[Work<'_>],
        writer: &mut Writer,
    ) -> Result<Counts, StoreError> {
        let mut total = Counts::default();
        for work in works {
            let error = match writer.write(&work.shares).await {
                Ok(counts) => {
                    total.add(counts);
                    continue;
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => error,
            };
            let dead = Dead { reason: DeadReason::NotStorable, detail: Chain(&error).to_string() };
            self.report(&delivery.subject, &dead);
            let mut poison = Shares::default();
            for tenant in work.shares.tenants() {
                poison.of(tenant).dead.push(self.letter(delivery, &dead));
            }
            total.add(writer.write(&poison).await?);
        }
        Ok(total)
    }

    /// Deliveries of nobody: wait for the account to become known, then keep them apart.
    async fn settle_stranger(&self, delivery: &Delivery, account: &str, dead: &Dead) {
        if dead.reason == DeadReason::UnknownAccount && delivery.delivered < self.config.dead_letter_after {
            return self.retry(delivery, STRANGER_WAIT).await;
        }
        match store::put_unclaimed(&self.store, account, &self.letter(delivery, dead)).await {
            Ok(is_kept) => {
                add(&self.metrics.dead_letters, 1);
                add(&self.metrics.dead_letters_not_kept, u64::from(!is_kept));
                self.acknowledge(&[delivery]).await;
            }
            Err(error) => self.put_back([delivery], &error).await,
        }
    }

    /// A message whose headers are no text costs us the connection each time it is delivered: it is read another way,
    /// dead-lettered and settled, so that one sender cannot stop the queue for all.
    async fn settle_unreadable(&self, bus: &Bus, writer: &mut Writer) {
        let found = match bus.find_unreadable(self.stream).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %Chain(&error), "what is pending was not looked through");
                return;
            }
        };
        for message in found {
            let dead = Dead { reason: DeadReason::BadHeaders, detail: "the headers are not text".to_owned() };
            self.report(&message.subject, &dead);
            let letter = self.unreadable_letter(&message, &dead);
            let account = CoreSubject::account_of(&message.subject).ok();
            let snapshot = self.directory.snapshot();
            let sender = snapshot.tenants().find(|(key, _)| Some(*key) == account.as_ref());
            let kept = match sender {
                Some((_, tenant)) => {
                    let mut shares = Shares::default();
                    shares.of(tenant).dead.push(letter);
                    writer.write(&shares).await.map(|_| ())
                }
                None => {
                    let account = account.as_ref().map_or("", AccountKey::as_str);
                    store::put_unclaimed(&self.store, account, &letter).await.map(|_| ())
                }
            };
            match kept {
                Ok(()) => {
                    add(&self.metrics.dead_letters, 1);
                    if let Err(error) = message.ack().await {
                        warn!(error = %Chain(&error), "an unreadable message was not settled");
                    }
                }
                // It comes again, costs the connection again, and is found again.
                Err(error) => warn!(error = %Chain(&error), "an unreadable message was not kept"),
            }
        }
    }

    fn unreadable_letter(&self, message: &Unreadable, dead: &Dead) -> DeadLetter {
        DeadLetter {
            digest: digest_of(&message.subject, &message.headers, &message.body),
            row_index: WHOLE,
            reason: dead.reason.as_str(),
            detail: dead.detail.clone(),
            stream: self.stream.as_str(),
            subject: message.subject.clone(),
            headers: message.headers.clone(),
            payload: message.body.to_vec(),
            delivered: 1,
        }
    }

    fn letter(&self, delivery: &Delivery, dead: &Dead) -> DeadLetter {
        let headers = delivery.headers.to_text();
        DeadLetter {
            digest: digest(delivery, &headers),
            row_index: WHOLE,
            reason: dead.reason.as_str(),
            detail: dead.detail.clone(),
            stream: self.stream.as_str(),
            subject: delivery.subject.clone(),
            headers,
            payload: delivery.body.to_vec(),
            delivered: delivery.delivered,
        }
    }

    /// A letter about one row keeps that row only: a thousand bad rows must not keep their batch a thousand times.
    fn row_letters(&self, delivery: &Delivery, admitted: &Admitted) -> Vec<DeadLetter> {
        let letters = admitted.dead_rows.iter().map(|dead_row| DeadLetter {
            row_index: i32::try_from(dead_row.index).unwrap_or(i32::MAX),
            payload: serde_json::to_vec(&dead_row.row).expect("what was decoded serializes"),
            ..self.letter(delivery, &dead_row.dead)
        });
        letters.collect()
    }

    fn report(&self, subject: &str, dead: &Dead) {
        add(&self.metrics.guard_refusals, u64::from(dead.reason.is_guards()));
        warn!(reason = dead.reason.as_str(), subject, "batch refused: {}", dead.detail);
    }

    fn count(&self, counts: Counts) {
        add(&self.metrics.results_committed, counts.inserted);
        add(&self.metrics.results_replaced, counts.replaced);
        add(&self.metrics.results_duplicate, counts.duplicates);
        add(&self.metrics.dead_letters, counts.dead_letters);
        add(&self.metrics.dead_letters_not_kept, counts.not_kept);
    }

    async fn acknowledge(&self, deliveries: &[&Delivery]) {
        for delivery in deliveries {
            if let Err(error) = delivery.ack().await {
                // It is stored; it comes again and changes nothing.
                warn!(error = %error, "acknowledgement not sent");
            }
        }
    }

    async fn put_back<'a>(&self, deliveries: impl IntoIterator<Item = &'a Delivery>, error: &StoreError) {
        let deliveries: Vec<&Delivery> = deliveries.into_iter().collect();
        warn!(error = %Chain(error), count = deliveries.len(), "batches not stored, trying again");
        self.retry_all(&deliveries).await;
    }

    async fn retry_all(&self, deliveries: &[&Delivery]) {
        for delivery in deliveries {
            self.retry(delivery, AWAY_WAIT).await;
        }
    }

    async fn retry(&self, delivery: &Delivery, wait: Duration) {
        add(&self.metrics.deliveries_retried, 1);
        if let Err(error) = delivery.retry_after(wait).await {
            // Its acknowledgement wait ends by itself.
            warn!(error = %error, "delivery not put back");
        }
    }
}
