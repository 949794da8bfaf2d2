//! Makes the partitions of coming days, and removes what tenants' plans keep no longer: a whole partition where nobody keeps
//! anything of it, and single rows of tenants that keep less than others in the same tables.

use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::Tenant;
use bulkhead_directory::{Answers, Directory};
use bulkhead_runtime::{Chain, Heart, Stop, now_ms};
use bulkhead_store::{Isolation, READ_LIMIT, Store, StoreError, within};
use time::Date;
use tracing::{info, warn};

use crate::metrics::{Metrics, add};
use crate::store::{ensure_partition, utc};

/// How many days ahead there is a partition: a core that is away for a week finds its days made by the first batch instead.
const DAYS_AHEAD: i64 = 7;
/// Rows that one transaction removes, so that nobody waits for it.
const ROWS_AT_ONCE: i32 = 5_000;
const DAY_MS: i64 = 86_400_000;

/// What has become of what was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Where the tenant's rows are.
    pub place: Isolation,
    pub partitions: u64,
    /// Of partitions that stay.
    pub rows: u64,
}

/// What removing works with.
pub struct Retention {
    pub store: Store,
    pub directory: Directory,
    pub metrics: Arc<Metrics>,
    pub answers: Answers,
    pub heart: Heart,
}

impl Retention {
    /// Sees to every tenant, then waits for `every`, until `stop`.
    ///
    /// # Errors
    /// Never: what fails is tried the next time.
    pub async fn run(self, every: Duration, stop: Stop) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            self.heart.while_waiting(self.see_to_all(&stop)).await;
            let waiting = self.heart.while_waiting(tokio::time::timeout(every, stop.cancelled()));
            // Running into the limit is the wait.
            let _ = waiting.await;
        }
        Ok(())
    }

    async fn see_to_all(&self, stop: &Stop) {
        let snapshot = self.directory.snapshot();
        let mut is_shared_seen = false;
        for (_, tenant) in snapshot.tenants() {
            if stop.is_cancelled() {
                return;
            }
            let seen = see_to(&self.store, tenant, is_shared_seen, now_ms()).await;
            self.answers.note(&seen);
            match seen {
                Ok(removed) => {
                    is_shared_seen |= removed.place == Isolation::Shared;
                    add(&self.metrics.results_expired, removed.rows);
                    add(&self.metrics.partitions_dropped, removed.partitions);
                    if removed.partitions > 0 {
                        info!(tenant = %tenant.slug, count = removed.partitions, "partitions that nobody keeps are dropped");
                    }
                }
                Err(error) => {
                    warn!(tenant = %tenant.slug, error = %Chain(&error), "what is kept no longer stays for now");
                }
            }
        }
    }
}

/// Makes coming partitions and removes old ones where the tenant's rows are, the shared tables once a round; then its own old
/// rows.
///
/// # Errors
/// When the database refuses.
pub async fn see_to(store: &Store, tenant: &Tenant, is_shared_seen: bool, now_ms: i64) -> Result<Removed, StoreError> {
    let place = within("look where rows are", READ_LIMIT, async { Ok(store.begin(tenant).await?.isolation()) }).await?;
    let mut removed = Removed { place, partitions: 0, rows: 0 };
    if !(place == Isolation::Shared && is_shared_seen) {
        let ahead = (0..=DAYS_AHEAD).map(|day| utc(now_ms + day * DAY_MS).date());
        within("make partitions ahead", READ_LIMIT, make_ahead(store, tenant, ahead)).await?;
        removed.partitions = within("drop old partitions", READ_LIMIT, drop_old(store, tenant)).await?;
    }
    loop {
        let gone = within("remove old results", READ_LIMIT, remove_some(store, tenant)).await?;
        removed.rows += gone;
        if gone < u64::from(ROWS_AT_ONCE.unsigned_abs()) {
            return Ok(removed);
        }
    }
}

/// Each in a transaction of its own, as a day that is first written.
async fn make_ahead(store: &Store, tenant: &Tenant, days: impl Iterator<Item = Date>) -> Result<(), StoreError> {
    for day in days {
        let mut tx = store.begin(tenant).await?;
        ensure_partition(&mut tx, day).await?;
        tx.commit().await?;
    }
    Ok(())
}

async fn drop_old(store: &Store, tenant: &Tenant) -> Result<u64, StoreError> {
    let mut tx = store.begin(tenant).await?;
    let dropped = tx.drop_old_partitions().await?;
    tx.commit().await?;
    Ok(dropped)
}

async fn remove_some(store: &Store, tenant: &Tenant) -> Result<u64, StoreError> {
    let mut tx = store.begin(tenant).await?;
    let gone = tx.remove_old_rows(ROWS_AT_ONCE).await?;
    tx.commit().await?;
    Ok(gone)
}
