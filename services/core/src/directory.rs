//! Who is who: the snapshot of tenants and their pollers' batch keys, read from the database and kept a while.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bulkhead_bus::{Tenant, TenantId, TenantSnapshot};
use bulkhead_runtime::{Chain, Heart, Stop};
use bulkhead_store::{Store, StoreError};
use tracing::{error, info, warn};

use crate::admission::BatchKeys;
use crate::observe::Answers;
use crate::store::{DamagedPoller, READ_LIMIT, read_batch_keys, within};

/// The least time between two looks that messages cause: strangers must not make the database busy.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long batch keys are believed before they are read again: a revoked poller is refused within this time.
const KEYS_LIVE: Duration = Duration::from_secs(1);

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
    snapshot: Arc<RwLock<(Instant, Arc<TenantSnapshot>)>>,
    keys: Arc<RwLock<HashMap<TenantId, Keys>>>,
}

impl Directory {
    /// # Errors
    /// When the database does not answer.
    pub async fn load(store: Store, answers: Answers) -> Result<Self, StoreError> {
        let snapshot = Arc::new(RwLock::new((Instant::now(), Arc::default())));
        let directory = Self { store, answers, snapshot, keys: Arc::default() };
        directory.refresh().await?;
        Ok(directory)
    }

    /// The tenants as they are known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<TenantSnapshot> {
        Arc::clone(&self.snapshot.read().expect("no holder panics").1)
    }

    /// # Errors
    /// When the database does not answer; the old snapshot stays.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let read = within("read tenants", READ_LIMIT, self.store.tenants()).await;
        self.answers.note(&read);
        let snapshot = Arc::new(read?.into_snapshot());
        *self.snapshot.write().expect("no holder panics") = (Instant::now(), snapshot);
        Ok(())
    }

    /// Looks again because of a stranger, unless that was done a moment ago.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn look_again(&self) -> Result<(), StoreError> {
        let age = self.snapshot.read().expect("no holder panics").0.elapsed();
        if age < LOOK_AGAIN { Ok(()) } else { self.refresh().await }
    }

    /// A tenant's batch keys, at most `KEYS_LIVE` old.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn batch_keys(&self, tenant: &Tenant) -> Result<Arc<BatchKeys>, StoreError> {
        let known = self.keys.read().expect("no holder panics").get(&tenant.id).cloned();
        if let Some(known) = known.filter(|known| known.read.elapsed() < KEYS_LIVE) {
            return Ok(known.keys);
        }
        let read = within("read batch keys", READ_LIMIT, async {
            let mut tx = self.store.begin(tenant).await?;
            read_batch_keys(&mut tx, tenant).await
        });
        let read = read.await;
        self.answers.note(&read);
        let (keys, damaged) = read?;
        for DamagedPoller { site, name } in damaged {
            let who = format!("{}/{site}/{name}", tenant.slug);
            if self.answers.said.is_news(format!("key of {who}"), Instant::now()) {
                error!(tenant = %tenant.slug, site, poller = name, "batch key of {who} is not readable: its batches wait");
            }
        }
        let keys = Arc::new(keys);
        let entry = Keys { read: Instant::now(), keys: Arc::clone(&keys) };
        self.keys.write().expect("no holder panics").insert(tenant.id, entry);
        Ok(keys)
    }

    /// Reads the tenants again and again until `stop`.
    ///
    /// # Errors
    /// Never: a database that is away keeps the old snapshot.
    pub async fn keep_fresh(self, every: Duration, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_stale = false;
        loop {
            tokio::select! {
                _ = heart.while_waiting(ticks.tick()) => {}
                () = stop.cancelled() => return Ok(()),
            }
            let refreshed = self.refresh().await;
            match (&refreshed, is_stale) {
                (Ok(()), true) => info!("tenants are read again"),
                // Once an outage, not once a look.
                (Err(error), false) => warn!(error = %Chain(error), "tenants not read again, the old list stays"),
                (Ok(()), false) | (Err(_), true) => {}
            }
            is_stale = refreshed.is_err();
        }
    }
}
