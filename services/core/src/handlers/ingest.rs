//! `t.<T>.up.<site>.fwd.<lane>`: batches from the hub's work queues into the database.
//!
//! Acknowledged after the commit and never before. What cannot be stored is dead-lettered in the same transaction; what
//! cannot be stored now is put back. A batch that comes twice changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::{AccountKey, StreamName, Tenant, TenantId};
use bulkhead_runtime::{Bus, Chain, Delivery, Readiness, Stop, now_ms};
use bulkhead_store::{Store, StoreError, TenantTx};
use sha2::{Digest, Sha256};
use time::Date;
use tracing::{info, warn};

use super::{pause, retry_pace};
use crate::admission::{Admitted, BatchKeys, Dead, DeadReason, Incoming, Verdict, admit};
use crate::config::IngestConfig;
use crate::directory::Directory;
use crate::metrics::{Metrics, add};
use crate::precedence::{Candidate, merged};
use crate::store::{self, Counts, DeadLetter, Kept};

/// How long a delivery waits when its account is not known yet.
const STRANGER_WAIT: Duration = Duration::from_secs(1);
/// How long a delivery waits when the database is away.
const AWAY_WAIT: Duration = Duration::from_secs(2);
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

/// One tenant's part of a transaction.
#[derive(Default)]
struct Share {
    rows: Vec<Candidate>,
    batches: u64,
    seen: Vec<Admitted>,
    dead: Vec<DeadLetter>,
}

/// What one transaction is to do: shares by tenant, and deliveries to settle afterwards.
#[derive(Default)]
struct Work {
    shares: BTreeMap<TenantId, (Option<Tenant>, Share)>,
    done: Vec<usize>,
    strangers: Vec<(usize, AccountKey, Dead)>,
    foreign: Vec<(usize, Dead)>,
}

impl Work {
    fn share(&mut self, tenant: &Tenant) -> &mut Share {
        let (known, share) = self.shares.entry(tenant.id).or_default();
        known.get_or_insert_with(|| tenant.clone());
        share
    }
}

/// Identifies a message by what it is, not by where it was stored: the same batch sent ten times is one dead letter.
fn digest(delivery: &Delivery, headers: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [delivery.subject.as_bytes(), headers.as_bytes(), &delivery.body] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

impl Ingesting {
    fn dead_letter(&self, delivery: &Delivery, row_index: i32, dead: &Dead) -> DeadLetter {
        let headers = delivery.headers.to_text();
        DeadLetter {
            digest: digest(delivery, &headers),
            row_index,
            reason: dead.reason.as_str(),
            detail: dead.detail.clone(),
            stream: self.stream.as_str(),
            subject: delivery.subject.clone(),
            headers,
            payload: delivery.body.to_vec(),
            delivered: delivery.delivered,
        }
    }

    /// Pulls and stores until `stop`.
    ///
    /// # Errors
    /// Never by itself: whatever fails is tried again.
    pub async fn run(self, bus: Bus, readiness: Readiness, part: &'static str, stop: Stop) -> anyhow::Result<()> {
        let mut pace = retry_pace();
        let mut days = BTreeSet::new();
        while !stop.is_cancelled() {
            let mut puller = match bus.pull(self.stream, self.config.ahead).await {
                Ok(puller) => puller,
                Err(error) => {
                    warn!(error = %Chain(&error), "not pulling from {} yet", self.stream.as_str());
                    pause(&mut pace, &stop).await;
                    continue;
                }
            };
            readiness.mark(part);
            info!(stream = self.stream.as_str(), "pulling from {}", self.stream.as_str());
            loop {
                let batch = tokio::select! {
                    batch = puller.next_batch(self.config.messages_most, self.config.linger()) => batch,
                    () = stop.cancelled() => return Ok(()),
                };
                match batch {
                    Ok(deliveries) => {
                        pace.reset();
                        let rows = self.ingest(&deliveries, &mut days).await;
                        self.hold_rate(rows, &stop).await;
                    }
                    Err(error) => {
                        warn!(error = %Chain(&error), "pulling from {} is interrupted", self.stream.as_str());
                        pause(&mut pace, &stop).await;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    async fn hold_rate(&self, rows: u64, stop: &Stop) {
        let Some(rate) = self.rows_per_second else { return };
        let pause = Duration::from_millis(rows.saturating_mul(1_000) / u64::from(rate));
        // Running into the limit is the pause.
        let _ = tokio::time::timeout(pause, stop.cancelled()).await;
    }

    /// Stores what can be stored and settles every delivery. Returns how many rows there were.
    async fn ingest(&self, deliveries: &[Delivery], days: &mut BTreeSet<Date>) -> u64 {
        add(&self.metrics.batches_received, u64::try_from(deliveries.len()).unwrap_or(0));
        let work = match self.decide(deliveries).await {
            Ok(work) => work,
            Err(error) => {
                self.put_back(deliveries, &error).await;
                return 0;
            }
        };
        let rows = work.shares.values().map(|(_, share)| share.rows.len() as u64).sum();
        self.settle_strangers(&work, deliveries).await;
        let done: Vec<&Delivery> = work.done.iter().map(|&index| &deliveries[index]).collect();
        match self.write(&work, days).await {
            Ok(()) => self.acknowledge(&done).await,
            Err(error) if error.is_transient() => self.put_back_all(&done, &error).await,
            Err(error) => {
                warn!(error = %Chain(&error), "a batch was refused by the database: storing its messages one by one");
                for &index in &work.done {
                    self.ingest_alone(&deliveries[index], days).await;
                }
            }
        }
        rows
    }

    /// The one message that the database refuses must not stop the others.
    async fn ingest_alone(&self, delivery: &Delivery, days: &mut BTreeSet<Date>) {
        let work = match self.decide(std::slice::from_ref(delivery)).await {
            Ok(work) => work,
            Err(error) => return self.put_back(std::slice::from_ref(delivery), &error).await,
        };
        let Err(error) = self.write(&work, days).await else { return self.acknowledge(&[delivery]).await };
        if error.is_transient() {
            return self.put_back(std::slice::from_ref(delivery), &error).await;
        }
        let mut poison = Work::default();
        let dead = Dead { reason: DeadReason::NotStorable, detail: Chain(&error).to_string() };
        for (tenant, _) in work.shares.values() {
            let Some(tenant) = tenant else { continue };
            poison.share(tenant).dead.push(self.dead_letter(delivery, WHOLE, &dead));
        }
        match self.write(&poison, days).await {
            Ok(()) => self.acknowledge(&[delivery]).await,
            Err(error) => self.put_back(std::slice::from_ref(delivery), &error).await,
        }
    }

    async fn decide(&self, deliveries: &[Delivery]) -> Result<Work, StoreError> {
        let mut snapshot = self.directory.snapshot();
        let accounts: BTreeSet<AccountKey> = deliveries
            .iter()
            .filter_map(|delivery| bulkhead_bus::CoreSubject::account_of(&delivery.subject).ok())
            .collect();
        if accounts.iter().any(|account| snapshot.account(account).is_none()) {
            self.directory.look_again().await?;
            snapshot = self.directory.snapshot();
        }
        let mut keys: HashMap<TenantId, Arc<BatchKeys>> = HashMap::new();
        let senders = snapshot.tenants().filter(|(account, _)| accounts.contains(account));
        for tenant in senders.map(|(_, tenant)| tenant.clone()).collect::<Vec<_>>() {
            keys.insert(tenant.id, self.directory.batch_keys(&tenant).await?);
        }
        let now = now_ms();
        let mut work = Work::default();
        for (index, delivery) in deliveries.iter().enumerate() {
            let incoming = Incoming { subject: &delivery.subject, body: &delivery.body };
            let keys_of = |tenant: &Tenant| keys.get(&tenant.id).map(AsRef::as_ref);
            let verdict = admit(incoming, |name| delivery.headers.get(name), &snapshot, keys_of, now);
            self.add_verdict(&mut work, index, delivery, verdict);
        }
        Ok(work)
    }

    fn add_verdict(&self, work: &mut Work, index: usize, delivery: &Delivery, verdict: Verdict) {
        match verdict {
            Verdict::Admitted(admitted) => {
                let dead = admitted
                    .dead_rows
                    .iter()
                    .map(|(row, dead)| self.dead_letter(delivery, i32::try_from(*row).unwrap_or(i32::MAX), dead));
                let dead: Vec<DeadLetter> = dead.collect();
                let rows = admitted.rows.iter().map(|measured| Candidate {
                    measured: measured.clone(),
                    vantage: admitted.site.to_string(),
                    poller: admitted.poller.to_string(),
                    attested: admitted.sequence.is_some(),
                });
                let rows: Vec<Candidate> = rows.collect();
                let share = work.share(&admitted.tenant);
                share.batches += 1;
                share.rows.extend(rows);
                share.dead.extend(dead);
                share.seen.push(admitted);
                work.done.push(index);
            }
            Verdict::Dead(tenant, dead) => {
                self.report(&delivery.subject, &dead);
                let letter = self.dead_letter(delivery, WHOLE, &dead);
                work.share(&tenant).dead.push(letter);
                work.done.push(index);
            }
            Verdict::Unclaimed(account, dead) => work.strangers.push((index, account, dead)),
            Verdict::Foreign(dead) => work.foreign.push((index, dead)),
        }
    }

    fn report(&self, subject: &str, dead: &Dead) {
        add(&self.metrics.guard_refusals, 1);
        warn!(reason = dead.reason.as_str(), subject, "batch dead-lettered: {}", dead.detail);
    }

    /// Everything in one transaction, tenant after tenant.
    async fn write(&self, work: &Work, days: &mut BTreeSet<Date>) -> Result<(), StoreError> {
        let mut shares = work.shares.values().filter_map(|(tenant, share)| Some((tenant.as_ref()?, share)));
        let Some((first, share)) = shares.next() else { return Ok(()) };
        let mut tx = self.store.begin(first).await?;
        let mut new_days = BTreeSet::new();
        let mut counted = self.write_share(&mut tx, first, share, days, &mut new_days).await?;
        for (tenant, share) in shares {
            tx.switch_to(tenant).await?;
            let more = self.write_share(&mut tx, tenant, share, days, &mut new_days).await?;
            counted.inserted += more.inserted;
            counted.replaced += more.replaced;
            counted.duplicates += more.duplicates;
            counted.dead_letters += more.dead_letters;
        }
        tx.commit().await?;
        days.append(&mut new_days);
        add(&self.metrics.results_committed, counted.inserted);
        add(&self.metrics.results_replaced, counted.replaced);
        add(&self.metrics.results_duplicate, counted.duplicates);
        add(&self.metrics.dead_letters, counted.dead_letters);
        Ok(())
    }

    async fn write_share(
        &self,
        tx: &mut TenantTx,
        tenant: &Tenant,
        share: &Share,
        days: &BTreeSet<Date>,
        new_days: &mut BTreeSet<Date>,
    ) -> Result<Counts, StoreError> {
        let given = share.rows.len() as u64;
        let rows = merged(share.rows.clone());
        for day in store::days_of(&rows).difference(days) {
            store::ensure_partition(tx, *day).await?;
            new_days.insert(*day);
        }
        let written = store::write_results(tx, tenant, &rows).await?;
        let mut counts = Counts {
            batches: share.batches,
            inserted: written.inserted,
            replaced: written.replaced,
            duplicates: given - written.inserted - written.replaced,
            dead_letters: 0,
        };
        for letter in &share.dead {
            match store::put_dead_letter(tx, tenant, letter).await? {
                Kept::New => counts.dead_letters += 1,
                Kept::Already => counts.duplicates += 1,
                Kept::Counted => {
                    counts.dead_letters += 1;
                    add(&self.metrics.dead_letters_not_kept, 1);
                }
            }
        }
        for seen in &share.seen {
            store::mark_seen(tx, tenant, (&seen.site, &seen.poller), seen.sequence).await?;
        }
        store::add_counts(tx, tenant, counts).await?;
        Ok(counts)
    }

    /// Deliveries that belong to nobody: wait for the account to become known, then keep them apart.
    async fn settle_strangers(&self, work: &Work, deliveries: &[Delivery]) {
        for (index, account, dead) in &work.strangers {
            let delivery = &deliveries[*index];
            if delivery.delivered < self.config.dead_letter_after {
                self.retry(delivery, STRANGER_WAIT).await;
                continue;
            }
            self.keep_unclaimed(delivery, account.as_str(), dead).await;
        }
        for (index, dead) in &work.foreign {
            self.keep_unclaimed(&deliveries[*index], "", dead).await;
        }
    }

    async fn keep_unclaimed(&self, delivery: &Delivery, account: &str, dead: &Dead) {
        self.report(&delivery.subject, dead);
        let letter = self.dead_letter(delivery, WHOLE, dead);
        match store::put_unclaimed(&self.store, account, &letter).await {
            Ok(()) => {
                add(&self.metrics.dead_letters, 1);
                self.acknowledge(&[delivery]).await;
            }
            Err(error) => self.put_back(std::slice::from_ref(delivery), &error).await,
        }
    }

    async fn acknowledge(&self, deliveries: &[&Delivery]) {
        for delivery in deliveries {
            if let Err(error) = delivery.ack().await {
                // It is stored; it comes again and changes nothing.
                warn!(error = %error, "acknowledgement not sent");
            }
        }
    }

    async fn put_back(&self, deliveries: &[Delivery], error: &StoreError) {
        self.put_back_all(&deliveries.iter().collect::<Vec<_>>(), error).await;
    }

    async fn put_back_all(&self, deliveries: &[&Delivery], error: &StoreError) {
        warn!(error = %Chain(error), count = deliveries.len(), "batches not stored, trying again");
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
