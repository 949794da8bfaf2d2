//! Who is who: tenants and their pollers' batch keys, as the database has them. The database says what changes, and only
//! that is read; everything is read at the start, after a silence of the database, and now and then all the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bulkhead_bus::{AccountKey, Tenant, TenantId, TenantSnapshot};
use bulkhead_runtime::{Backoff, Chain, Gauge, Heart, Stop, now_ms};
use bulkhead_store::{
    BatchKeys, Change, Changes, DamagedPoller, READ_LIMIT, Store, StoreError, read_batch_keys, within,
};
use tracing::{error, info, warn};

use crate::answers::Answers;

/// The least time between two looks for one account: strangers must not make the database busy.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Accounts that were looked for in vain and are remembered.
const MISSED_MAX: usize = 10_000;
/// How long batch keys are believed before they are read again, while nobody says whether they have changed.
const KEYS_LIVE: Duration = Duration::from_secs(1);
/// How long they are believed while the database says what changes.
const KEYS_KEPT: Duration = Duration::from_secs(60);
/// How long the last word of the database holds: a revoked poller is refused within this time, whatever breaks.
const HEARD_LIVE: Duration = Duration::from_secs(1);
/// How long a database that did not answer is not asked by what cannot wait.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const LISTEN_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

#[derive(Clone)]
struct Keys {
    read: Instant,
    keys: Arc<BatchKeys>,
}

/// Shared by everything that handles messages.
#[derive(Clone)]
pub struct Directory {
    store: Store,
    answers: Answers,
    known: Arc<Known>,
}

#[derive(Default)]
struct Known {
    snapshot: RwLock<Arc<TenantSnapshot>>,
    keys: RwLock<HashMap<TenantId, Keys>>,
    /// What was last read of each tenant's keys and not heard to have changed since, however old.
    last_keys: RwLock<HashMap<TenantId, Arc<BatchKeys>>>,
    /// Until when nobody who cannot wait asks a database that did not answer.
    away_until: RwLock<Option<Instant>>,
    /// How often keys were forgotten: what was being read meanwhile may be older than the change.
    forgotten: AtomicU64,
    /// When the database last said what changed, or that nothing did.
    heard: RwLock<Option<Instant>>,
    /// Accounts that were looked for in vain.
    missed: Mutex<HashMap<AccountKey, Instant>>,
    /// Held from reading to writing, so that an older reading never takes the place of a newer one.
    reading: tokio::sync::Mutex<()>,
}

impl Directory {
    /// # Errors
    /// When the database does not answer.
    pub async fn load(store: Store, answers: Answers) -> Result<Self, StoreError> {
        let directory = Self { store, answers, known: Arc::default() };
        directory.refresh().await?;
        Ok(directory)
    }

    /// The tenants as they are known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<TenantSnapshot> {
        Arc::clone(&self.known.snapshot.read().expect("no holder panics"))
    }

    /// Reads every tenant.
    ///
    /// # Errors
    /// When the database does not answer; the old snapshot stays.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let _reading = self.known.reading.lock().await;
        let read = within("read tenants", READ_LIMIT, self.store.tenants()).await;
        self.answers.note(&read);
        *self.known.snapshot.write().expect("no holder panics") = Arc::new(read?.into_snapshot());
        Ok(())
    }

    /// Reads what these accounts are, and nothing of the others.
    async fn read_accounts(&self, accounts: &[AccountKey]) -> Result<(), StoreError> {
        if accounts.is_empty() {
            return Ok(());
        }
        let _reading = self.known.reading.lock().await;
        let read = within("read accounts", READ_LIMIT, self.store.accounts(accounts)).await;
        self.answers.note(&read);
        let mut found: HashMap<_, _> = read?.into_accounts().collect();
        let mut snapshot = TenantSnapshot::clone(&self.snapshot());
        for account in accounts {
            snapshot.set(account.clone(), found.remove(account));
        }
        *self.known.snapshot.write().expect("no holder panics") = Arc::new(snapshot);
        Ok(())
    }

    /// Asks the database for those of `accounts` that are not known, unless it was asked a moment ago: a message of a
    /// tenant that was onboarded just now is no stranger's.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look_for<'a>(&self, accounts: impl Iterator<Item = &'a AccountKey>) -> Result<(), StoreError> {
        let (snapshot, now) = (self.snapshot(), Instant::now());
        let unknown: Vec<AccountKey> = {
            let mut missed = self.known.missed.lock().expect("no holder panics");
            if missed.len() >= MISSED_MAX {
                missed.retain(|_, at| now.duration_since(*at) < LOOK_AGAIN);
            }
            let unknown = accounts.filter(|account| snapshot.account(account).is_none());
            let is_due =
                |account: &&AccountKey| missed.get(account).is_none_or(|at| now.duration_since(*at) >= LOOK_AGAIN);
            let due: Vec<AccountKey> = unknown.filter(is_due).cloned().collect();
            missed.extend(due.iter().map(|account| (account.clone(), now)));
            due
        };
        self.read_accounts(&unknown).await
    }

    fn is_hearing(&self) -> bool {
        let heard = *self.known.heard.read().expect("no holder panics");
        heard.is_some_and(|heard| heard.elapsed() < HEARD_LIVE)
    }

    /// A tenant's batch keys, older by at most a second than what the database has.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn batch_keys(&self, tenant: &Tenant) -> Result<Arc<BatchKeys>, StoreError> {
        self.keys_of_age(tenant, if self.is_hearing() { KEYS_KEPT } else { KEYS_LIVE }).await
    }

    /// As [`Self::batch_keys`], for what was refused before: whatever was heard, they are read again.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn recent_batch_keys(&self, tenant: &Tenant) -> Result<Arc<BatchKeys>, StoreError> {
        self.keys_of_age(tenant, KEYS_LIVE).await
    }

    /// As [`Self::batch_keys`], for what must go on while the database is away: after `patience` it goes by what was last read
    /// and not heard to have changed since.
    ///
    /// # Errors
    /// When nothing was read yet, or the database refuses.
    pub async fn keys_or_last(&self, tenant: &Tenant, patience: Duration) -> Result<Arc<BatchKeys>, StoreError> {
        let last = self.known.last_keys.read().expect("no holder panics").get(&tenant.id).cloned();
        let away_until = *self.known.away_until.read().expect("no holder panics");
        if let Some(last) = last.as_ref().filter(|_| away_until.is_some_and(|until| Instant::now() < until)) {
            return Ok(Arc::clone(last));
        }
        let failure = match within("read batch keys", patience, self.batch_keys(tenant)).await {
            Err(failure) if failure.is_transient() => failure,
            answered => return answered,
        };
        *self.known.away_until.write().expect("no holder panics") = Some(Instant::now() + ASK_AGAIN);
        last.ok_or(failure)
    }

    async fn keys_of_age(&self, tenant: &Tenant, age_max: Duration) -> Result<Arc<BatchKeys>, StoreError> {
        let known = self.known.keys.read().expect("no holder panics").get(&tenant.id).cloned();
        if let Some(known) = known.filter(|known| known.read.elapsed() < age_max) {
            return Ok(known.keys);
        }
        let (read_at, forgotten) = (Instant::now(), self.known.forgotten.load(Ordering::SeqCst));
        let read = within("read batch keys", READ_LIMIT, async {
            let mut tx = self.store.begin(tenant).await?;
            read_batch_keys(&mut tx, tenant).await
        });
        let read = read.await;
        self.answers.note(&read);
        let (keys, damaged) = read?;
        self.report_damaged(tenant, damaged);
        let keys = Arc::new(keys);
        let mut known = self.known.keys.write().expect("no holder panics");
        if self.known.forgotten.load(Ordering::SeqCst) == forgotten {
            known.insert(tenant.id, Keys { read: read_at, keys: Arc::clone(&keys) });
            self.known.last_keys.write().expect("no holder panics").insert(tenant.id, Arc::clone(&keys));
        }
        Ok(keys)
    }

    fn report_damaged(&self, tenant: &Tenant, damaged: Vec<DamagedPoller>) {
        for DamagedPoller { site, name } in damaged {
            let who = format!("{}/{site}/{name}", tenant.slug);
            if self.answers.said.is_news(format!("key of {who}"), Instant::now()) {
                error!(tenant = %tenant.slug, site, poller = name, "batch key of {who} is not readable: its batches wait");
            }
        }
    }

    /// Forgets the keys of one tenant, or of all.
    fn forget_keys(&self, of: Option<TenantId>) {
        let mut keys = self.known.keys.write().expect("no holder panics");
        self.known.forgotten.fetch_add(1, Ordering::SeqCst);
        match of {
            Some(tenant) => {
                keys.remove(&tenant);
                self.known.last_keys.write().expect("no holder panics").remove(&tenant);
            }
            None => keys.clear(),
        }
    }

    /// Goes by what the database says until `stop`, and reads everything after `every` all the same.
    ///
    /// # Errors
    /// Never: a database that is away keeps the old snapshot.
    pub async fn keep_fresh(self, every: Duration, seen: Gauge, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut pace = Backoff::new(LISTEN_AGAIN.0, LISTEN_AGAIN.1);
        let mut is_stale = false;
        loop {
            let listening = async {
                let changes = self.listen().await?;
                if is_stale {
                    info!("tenants are read again");
                    is_stale = false;
                }
                pace.reset();
                self.follow(changes, every, &seen).await
            };
            let ended = tokio::select! {
                Err(error) = heart.while_waiting(listening) => error,
                () = stop.cancelled() => return Ok(()),
            };
            // Once an outage, not once a try.
            if !is_stale {
                warn!(error = %Chain(&ended), "changes of tenants are not heard, the old list stays");
            }
            is_stale = true;
            tokio::select! {
                () = pace.pause() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// What was before is read once every later change is heard.
    async fn listen(&self) -> Result<Changes, StoreError> {
        let changes = within("listen for changes", READ_LIMIT, self.store.listen()).await?;
        self.forget_keys(None);
        self.refresh().await?;
        Ok(changes)
    }

    async fn follow(&self, mut changes: Changes, every: Duration, seen: &Gauge) -> Result<(), StoreError> {
        let mut read_all = Instant::now();
        loop {
            let asked = Instant::now();
            let heard = changes.next().await?;
            self.take_in(&heard).await?;
            if read_all.elapsed() >= every {
                self.refresh().await?;
                read_all = Instant::now();
            }
            // What was changed before this was asked for has been taken in.
            *self.known.heard.write().expect("no holder panics") = Some(asked);
            seen.set(now_ms() / 1_000);
        }
    }

    async fn take_in(&self, changes: &[Change]) -> Result<(), StoreError> {
        let (mut accounts, mut used) = (Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::Account(account) => accounts.push(account.clone()),
                Change::Pollers(tenant) => {
                    let is_used = self.known.last_keys.read().expect("no holder panics").contains_key(tenant);
                    used.extend(is_used.then_some(*tenant));
                    self.forget_keys(Some(*tenant));
                }
                Change::Checks(_) | Change::Runs(_) => {}
            }
        }
        self.read_accounts(&accounts).await?;
        // Whoever goes by the last keys while the database is away has those of after the change.
        let snapshot = self.snapshot();
        for (_, tenant) in snapshot.tenants().filter(|(_, tenant)| used.contains(&tenant.id)) {
            // What is wrong with the rows of one tenant is nobody else's trouble.
            let read = self.batch_keys(tenant).await;
            read.map(drop).or_else(|failure| if failure.is_transient() { Err(failure) } else { Ok(()) })?;
        }
        Ok(())
    }
}
