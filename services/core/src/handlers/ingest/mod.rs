//! `t.<T>.up.<site>.fwd.<lane>`: batches from the hub's work queues into the database.
//!
//! Acknowledged after the commit and never before. What cannot be stored is dead-lettered in the same transaction; what
//! cannot be stored now is put back. A batch that comes twice changes nothing (docs/adr/0004). While transactions are under
//! way the next ones are decoded and verified. A tenant always has the same writer of a stream, because what its current
//! state is since follows from the state before.

mod letters;
mod part;
mod settle;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::payload::RESULTS_PER_BATCH_MAX;
use bulkhead_bus::{AccountKey, CoreSubject, Lane, StreamName, Tenant, TenantId};
use bulkhead_directory::{Answers, Directory};
use bulkhead_runtime::{Bus, Chain, Delivery, Heart, Loops, Readiness, Stop, Trouble, now_ms};
use bulkhead_store::{BatchKeys, Isolation, Store, StoreError, isolation_of};
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tracing::{info, warn};

use self::letters::{letter, row_letters};
use self::part::{Part, parts_of};
use self::settle::Settler;
use super::{pause, retry_pace};
use crate::admission::{Admitted, Dead, Incoming, Verdict, admit, undecodable};
use crate::commit::{Ready, Seen, Shares};
use crate::config::IngestConfig;
use crate::metrics::{Metrics, add};
use crate::precedence::Candidate;

/// How many seconds' worth of rows the lane that is held to a rate takes ahead: well within the acknowledgement wait,
/// or the queue would deliver again what still lies here.
const HELD_AHEAD_S: usize = 10;

/// What ingesting one stream works with.
#[derive(Clone)]
pub struct Ingesting {
    pub store: Store,
    pub directory: Directory,
    pub metrics: Arc<Metrics>,
    pub config: IngestConfig,
    pub stream: StreamName,
    pub lane: Lane,
    pub answers: Answers,
    pub hearts: Arc<Hearts>,
    /// Rows a second, for the lane that must not be in the way.
    pub rows_per_second: Option<u32>,
}

/// The loops of one lane.
#[derive(Debug)]
pub struct Hearts {
    pub taking: Heart,
    /// One for each writer.
    pub writing: Vec<Heart>,
    /// For what is stranded in the queue.
    pub looking: Heart,
}

impl Hearts {
    /// Begins to watch them.
    #[must_use]
    pub fn of(lane: Lane, writers: usize, loops: &Loops) -> Self {
        let (taking, writing, looking) = match lane {
            Lane::Results => ("results: taking", "results: writing", "results: looking"),
            Lane::Backfill => ("backfill: taking", "backfill: writing", "backfill: looking"),
        };
        Self {
            taking: loops.watch(taking),
            writing: (0..writers).map(|_| loops.watch(writing)).collect(),
            looking: loops.watch(looking),
        }
    }
}

/// What one transaction is to do, and which deliveries it settles.
struct Work {
    /// Who writes it.
    writer: usize,
    ready: Ready,
    /// Rows and dead letters.
    entries: usize,
    done: Vec<Delivery>,
}

/// A transaction as it is put together.
#[derive(Default)]
struct Gathering {
    /// The tenant whose transaction it is alone, because it has a schema of its own.
    apart: Option<TenantId>,
    shares: Shares,
    entries: usize,
    done: Vec<Delivery>,
}

impl Gathering {
    fn ready(self, writer: usize) -> Work {
        Work { writer, ready: self.shares.ready(), entries: self.entries, done: self.done }
    }
}

/// A tenant that shares a transaction with nobody.
fn apart_of(tenant: &Tenant) -> Option<TenantId> {
    match isolation_of(&tenant.plan) {
        Isolation::Shared => None,
        Isolation::Schema => Some(tenant.id),
    }
}

/// Which of so many writers stores what this account sends.
fn writer_of(account: &AccountKey, writers: usize) -> usize {
    let mut hash = DefaultHasher::new();
    account.hash(&mut hash);
    usize::try_from(hash.finish() % u64::try_from(writers.max(1)).unwrap_or(1)).unwrap_or(0)
}

/// The transactions of all writers in turn, so that none waits for another one's.
fn in_turn(gathered: Vec<Vec<Gathering>>) -> Vec<Work> {
    let of_writer = |(writer, all): (usize, Vec<Gathering>)| {
        all.into_iter().enumerate().map(move |(turn, one)| (turn, one.ready(writer)))
    };
    let mut works: Vec<(usize, Work)> = gathered.into_iter().enumerate().flat_map(of_writer).collect();
    works.sort_by_key(|(turn, _)| *turn);
    works.into_iter().map(|(_, work)| work).collect()
}

/// A delivery that is no tenant's.
struct Stranger {
    delivery: Delivery,
    /// Empty when not even an account wrote it.
    account: String,
    dead: Dead,
}

/// What is decided about some deliveries.
#[derive(Default)]
struct Prepared {
    works: Vec<Work>,
    strangers: Vec<Stranger>,
    /// Deliveries with a batch that cannot be decided about now.
    undecided: Vec<Delivery>,
}

impl Prepared {
    /// A transaction at a time, with its writer.
    fn one_by_one(self) -> impl Iterator<Item = (usize, Self)> {
        let others = (0, Self { works: vec![], ..self });
        let works = self.works.into_iter().map(|work| (work.writer, Self { works: vec![work], ..Self::default() }));
        let is_any =
            |(_, one): &(usize, Self)| !(one.works.is_empty() && one.strangers.is_empty() && one.undecided.is_empty());
        works.chain(std::iter::once(others)).filter(is_any)
    }
}

/// The batches of one delivery, each with what becomes of it.
type Decided = Vec<(Part, Verdict)>;

fn candidates(admitted: Admitted) -> impl Iterator<Item = Candidate> {
    let (vantage, poller) = (admitted.site.to_string(), admitted.poller.to_string());
    let attested = admitted.sequence.is_some();
    let rows = admitted.rows.into_iter();
    rows.map(move |measured| Candidate { measured, vantage: vantage.clone(), poller: poller.clone(), attested })
}

impl Ingesting {
    /// Pulls and stores until `stop`, then stores what it has taken.
    ///
    /// # Errors
    /// Never by itself: whatever fails is tried again.
    pub async fn run(self, bus: Bus, readiness: Readiness, part: &'static str, stop: Stop) -> anyhow::Result<()> {
        let (prepared, waiting): (Vec<_>, Vec<_>) = (0..self.config.writers).map(|_| mpsc::channel(1)).unzip();
        let settlers = waiting.into_iter().enumerate();
        let settling = settlers.map(|(place, waiting)| Settler::new(self.clone(), place).run(waiting, &stop));
        let settling: Vec<_> = settling.collect();
        let (stranded, metrics, hearts) = (self.stream, Arc::clone(&self.metrics), Arc::clone(&self.hearts));
        let looking = bus.clone();
        let (taken, _, ()) = tokio::join!(
            self.take(bus, readiness, (part, prepared), &stop),
            join_all(settling),
            looking.free_stranded(stranded, &hearts.looking, &stop, || add(&metrics.stranded_freed, 1)),
        );
        taken
    }

    async fn take(
        self,
        bus: Bus,
        readiness: Readiness,
        (part, prepared): (&'static str, Vec<mpsc::Sender<Prepared>>),
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let stream = self.stream.as_str();
        let mut pace = retry_pace();
        let mut trouble = Trouble::new(format!("pull from {stream}"));
        while !stop.is_cancelled() {
            // What an earlier process was handed and could not read would end this one's connection as well.
            self.hearts.taking.while_waiting(Settler::new(self.clone(), 0).settle_unreadable(&bus)).await;
            let pulled = tokio::select! {
                pulled = bus.pull(self.stream, self.ahead()) => pulled,
                () = stop.cancelled() => return Ok(()),
            };
            let puller = match pulled {
                Ok(puller) => puller,
                Err(error) => {
                    trouble.begin(Chain(&error).to_string());
                    pause(&mut pace, stop).await;
                    continue;
                }
            };
            trouble.end();
            pace.reset();
            readiness.mark(part);
            info!(stream, "pulling from {stream}");
            self.take_from(puller, &bus, &prepared, stop).await;
            pause(&mut pace, stop).await;
        }
        Ok(())
    }

    /// Returns when pulling is interrupted, or at a stop.
    async fn take_from(
        &self,
        mut puller: bulkhead_runtime::Puller,
        bus: &Bus,
        prepared: &[mpsc::Sender<Prepared>],
        stop: &Stop,
    ) {
        let mut losses = bus.losses();
        // What was lost before was looked into before this pull.
        losses.mark_unchanged();
        let mut pace = retry_pace();
        let heart = &self.hearts.taking;
        loop {
            let batch = tokio::select! {
                batch = heart.while_waiting(puller.next_batch(self.messages_most(), self.config.linger())) => batch,
                Ok(()) = losses.changed() => {
                    // Thousands of questions, each with a limit of its own.
                    heart.while_waiting(Settler::new(self.clone(), 0).settle_unreadable(bus)).await;
                    continue;
                }
                () = stop.cancelled() => return,
            };
            let deliveries = match batch {
                Ok(deliveries) => deliveries,
                Err(error) => {
                    warn!(error = %Chain(&error), "pulling from {} is interrupted", self.stream.as_str());
                    return;
                }
            };
            let Some(decided) = self.prepare(deliveries).await else {
                pause(&mut pace, stop).await;
                continue;
            };
            pace.reset();
            let entries = decided.works.iter().map(|work| work.entries).sum();
            for (writer, one) in decided.one_by_one() {
                // The other end waits for this one to be dropped.
                if heart.while_waiting(prepared[writer].send(one)).await.is_err() {
                    return;
                }
            }
            heart.while_waiting(self.hold_rate(entries, stop)).await;
        }
    }

    fn ahead(&self) -> usize {
        let Some(rate) = self.rows_per_second else { return self.config.ahead };
        let batches = usize::try_from(rate).unwrap_or(usize::MAX).saturating_mul(HELD_AHEAD_S) / RESULTS_PER_BATCH_MAX;
        batches.clamp(1, self.config.ahead)
    }

    fn messages_most(&self) -> usize {
        self.config.messages_most.min(self.ahead())
    }

    async fn hold_rate(&self, entries: usize, stop: &Stop) {
        let Some(rate) = self.rows_per_second else { return };
        let entries = u64::try_from(entries).unwrap_or(u64::MAX);
        let pause = Duration::from_millis(entries.saturating_mul(1_000) / u64::from(rate));
        // Running into the limit is the pause.
        let _ = tokio::time::timeout(pause, stop.cancelled()).await;
    }

    /// Decides what becomes of every delivery; `None` when the database is away and they are back in the queue.
    async fn prepare(&self, deliveries: Vec<Delivery>) -> Option<Prepared> {
        let count = |count: usize| u64::try_from(count).unwrap_or(0);
        let again = deliveries.iter().filter(|delivery| delivery.delivered > 1).count();
        add(self.metrics.batches_redelivered.of(self.lane), count(again));
        match self.decide(&deliveries).await {
            Ok(decided) => {
                add(&self.metrics.batches_received, count(decided.iter().map(Vec::len).sum()));
                Some(self.plan(deliveries.into_iter().zip(decided)))
            }
            Err(error) => {
                settle::put_back(self, &self.hearts.taking, &deliveries, &error).await;
                None
            }
        }
    }

    /// What becomes of every batch of every delivery.
    async fn decide(&self, deliveries: &[Delivery]) -> Result<Vec<Decided>, StoreError> {
        let mut snapshot = self.directory.snapshot();
        let senders = deliveries.iter().filter_map(|delivery| CoreSubject::account_of(&delivery.subject).ok());
        let accounts: BTreeSet<AccountKey> = senders.collect();
        if accounts.iter().any(|account| snapshot.account(account).is_none()) {
            self.directory.look_for(accounts.iter()).await?;
            snapshot = self.directory.snapshot();
        }
        let is_again = deliveries.iter().any(|delivery| delivery.delivered > 1);
        let mut keys: HashMap<TenantId, Arc<BatchKeys>> = HashMap::new();
        for tenant in accounts.iter().filter_map(|account| snapshot.open_tenant(account)) {
            self.hearts.taking.beat();
            let own = match is_again {
                true => self.directory.recent_batch_keys(tenant).await?,
                false => self.directory.batch_keys(tenant).await?,
            };
            keys.insert(tenant.id, own);
        }
        let keys_of = |tenant: &Tenant| keys.get(&tenant.id).map(AsRef::as_ref);
        let now = now_ms();
        let decided = deliveries.iter().map(|delivery| {
            let parts = match parts_of(delivery) {
                Ok(parts) => parts,
                Err(error) => return vec![(Part::whole(delivery), undecodable(&delivery.subject, &snapshot, &error))],
            };
            let verdict = |part: Part| {
                let incoming = Incoming { subject: &delivery.subject, body: &part.body, stored_ms: delivery.stored_ms };
                let verdict = admit(incoming, |name| part.headers.get(name), &snapshot, keys_of, now);
                // The keys may be older than the batch; when it comes again they are not.
                let is_early = verdict.is_of_foreign_key() && delivery.delivered == 1;
                (part, if is_early { Verdict::Undecided } else { verdict })
            };
            parts.into_iter().map(verdict).collect()
        });
        Ok(decided.collect())
    }

    /// Puts what is decided into transactions of about `rows_most` rows and letters; a delivery is never in two of them.
    fn plan(&self, decided: impl Iterator<Item = (Delivery, Decided)>) -> Prepared {
        let mut prepared = Prepared::default();
        let mut gathered: Vec<Vec<Gathering>> = (0..self.config.writers).map(|_| vec![]).collect();
        for (delivery, parts) in decided {
            // A bundle waits as a whole, and the other batches of it are stored when it comes for the first time.
            let is_undecided = parts.iter().any(|(_, verdict)| verdict.is_undecided());
            let entries: usize = parts.iter().map(|(_, verdict)| verdict.entries()).sum();
            if is_undecided && (delivery.delivered > 1 || entries == 0) {
                prepared.undecided.push(delivery);
                continue;
            }
            self.report(&delivery.subject, parts.iter().filter_map(|(_, verdict)| verdict.dead()));
            // One delivery is one account's, so its parts are all a tenant's or none is.
            let stranger = parts.iter().find_map(|(_, verdict)| verdict.stranger());
            if let Some((account, dead)) = stranger {
                let (account, dead) = (account.map_or_else(String::new, ToString::to_string), dead.clone());
                prepared.strangers.push(Stranger { delivery, account, dead });
                continue;
            }
            let account = CoreSubject::account_of(&delivery.subject);
            let own = &mut gathered[account.map_or(0, |account| writer_of(&account, self.config.writers))];
            let apart = parts.iter().find_map(|(_, verdict)| verdict.tenant()).and_then(apart_of);
            let place = match own.iter().rposition(|work| work.apart == apart) {
                Some(place) if own[place].entries == 0 || own[place].entries + entries <= self.config.rows_most => {
                    place
                }
                Some(_) | None => {
                    own.push(Gathering { apart, ..Gathering::default() });
                    own.len() - 1
                }
            };
            let Some(work) = own.get_mut(place) else { continue };
            for (part, verdict) in parts {
                self.share_out(&mut work.shares, (&delivery, &part), verdict);
            }
            work.entries += entries;
            if is_undecided { &mut prepared.undecided } else { &mut work.done }.push(delivery);
        }
        prepared.works = in_turn(gathered);
        prepared
    }

    /// Adds what a tenant's batch is worth to that tenant's share.
    fn share_out(&self, shares: &mut Shares, from: (&Delivery, &Part), verdict: Verdict) {
        match verdict {
            Verdict::Admitted(admitted) => {
                let share = shares.of(&admitted.tenant);
                share.dead.extend(row_letters(self.stream, from, &admitted.dead_rows));
                let (site, poller) = (admitted.site.clone(), admitted.poller.clone());
                share.seen.push(Seen { site, poller, sequence: admitted.sequence });
                share.rows.extend(candidates(admitted));
            }
            Verdict::Dead(tenant, dead) => shares.of(&tenant).dead.push(letter(self.stream, from, &dead)),
            Verdict::Undecided | Verdict::Unclaimed(..) | Verdict::Foreign(_) => {}
        }
    }

    /// One line a delivery, which names the first: a bundle has hundreds of batches.
    fn report<'a>(&self, subject: &str, dead: impl Iterator<Item = &'a Dead>) {
        let (mut first, mut count) = (None, 0_usize);
        for dead in dead {
            add(&self.metrics.guard_refusals, u64::from(dead.reason.is_guards()));
            first = first.or(Some(dead));
            count += 1;
        }
        if let Some(first) = first {
            warn!(reason = first.reason.as_str(), subject, count, "batch refused: {}", first.detail);
        }
    }
}
