//! A tenant whose results keep arriving and are read, beside another one's.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bulkhead_bus::{AccountKey, Tenant};
use bulkhead_core::commit::{Seen, Shares, Writer};
use bulkhead_core::precedence::Candidate;
use bulkhead_runtime::now_ms;
use bulkhead_store::{Provisioning, Store, StoreError};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{onboard, tenant};
use bulkhead_testkit::sql::{insert_checks, run};
use tokio::task::JoinHandle;

use crate::rows::row;

pub(crate) const ROWS_A_BATCH: i64 = 40;
const HISTORY_DAYS: i64 = 3;
const DAY_MS: i64 = 86_400_000;

pub(crate) struct World {
    pub(crate) database: TestDatabase,
    pub(crate) provisioning: Provisioning,
    pub(crate) store: Store,
    pub(crate) key: AccountKey,
    pub(crate) acme: Tenant,
    pub(crate) xyz: Tenant,
}

/// The first tenant has a row in each table of checks and members.
pub(crate) async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (acme, xyz) = (Tenant { plan: "pro".to_owned(), ..tenant("acme-corp") }, tenant("xyz-inc"));
    let key = onboard(&provisioning, &acme).await.unwrap();
    onboard(&provisioning, &xyz).await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, &insert_checks(&acme, "shared", "web")).await.unwrap();
    let store = database.store().await.unwrap();
    World { database, provisioning, store, key, acme, xyz }
}

/// Batch `number`: rows that no other batch has, of several days.
fn rows(number: i64) -> impl Iterator<Item = Candidate> {
    let start = (now_ms() / DAY_MS - HISTORY_DAYS) * DAY_MS;
    (0..ROWS_A_BATCH).map(move |row_number| {
        let slot_ms = start + (row_number % HISTORY_DAYS) * DAY_MS + number * 10_000;
        row(&format!("web-{row_number}"), slot_ms)
    })
}

/// Stores batches for tenants until it is told to stop; whoever is moved is tried again.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// Rows of the first tenant that were confirmed.
    pub(crate) stored: Arc<AtomicI64>,
    writing: JoinHandle<()>,
    reading: Option<JoinHandle<u64>>,
}

pub(crate) fn share(shares: &mut Shares, tenant: &Tenant, number: i64) {
    let share = shares.of(tenant);
    share.rows.extend(rows(number));
    share.seen.push(Seen { site: "oslo".parse().unwrap(), poller: "p1".parse().unwrap(), sequence: None });
}

impl Load {
    /// Batches for both tenants in one transaction where that is possible; somebody reads who must never see less than was
    /// confirmed, or other than was counted.
    pub(crate) fn begin(world: &World, first: i64) -> Self {
        let mut load = Self::unread(world, first);
        load.reading = Some(load.read(world));
        load
    }

    /// Without anybody who reads.
    pub(crate) fn unread(world: &World, first: i64) -> Self {
        let (stop, stored) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(first * ROWS_A_BATCH)));
        let (acme, xyz, store) = (world.acme.clone(), world.xyz.clone(), world.store.clone());
        let (ended, confirmed) = (Arc::clone(&stop), Arc::clone(&stored));
        let writing = tokio::spawn(async move {
            let mut writer = Writer::new(store);
            let mut number = first;
            while !ended.load(Ordering::SeqCst) {
                let mut both = Shares::default();
                share(&mut both, &acme, number);
                share(&mut both, &xyz, number);
                let together = writer.write(&both.ready()).await;
                if let Err(error) = together {
                    assert!(error.is_transient() || matches!(error, StoreError::Moved { .. }), "{error:?}");
                    for tenant in [&xyz, &acme] {
                        store_alone(&mut writer, tenant, number).await;
                    }
                }
                number += 1;
                confirmed.store(number * ROWS_A_BATCH, Ordering::SeqCst);
            }
        });
        Self { stop, stored, writing, reading: None }
    }

    fn read(&self, world: &World) -> JoinHandle<u64> {
        let (acme, store) = (world.acme.clone(), world.store.clone());
        let (ended, confirmed) = (Arc::clone(&self.stop), Arc::clone(&self.stored));
        tokio::spawn(async move {
            let mut looks = 0;
            while !ended.load(Ordering::SeqCst) {
                let least = confirmed.load(Ordering::SeqCst);
                let mut tx = store.begin(&acme).await.unwrap();
                let sql = "select count(*), (select coalesce(sum(results), 0)::int8 from ingest_count) from result";
                let seen: (i64, i64) = sqlx::query_as(sql).fetch_one(tx.connection()).await.unwrap();
                assert!(seen.0 >= least, "{least} are stored, and {} are seen in {:?}", seen.0, tx.isolation());
                assert_eq!(seen.0, seen.1, "rows and counts of one place");
                looks += 1;
            }
            looks
        })
    }

    /// Waits for so many batches more.
    pub(crate) async fn more(&self, batches: i64) {
        let enough = self.stored.load(Ordering::SeqCst) + batches * ROWS_A_BATCH;
        while self.stored.load(Ordering::SeqCst) < enough {
            tokio::task::yield_now().await;
        }
    }

    /// How many batches were stored.
    pub(crate) async fn end(self) -> i64 {
        self.stop.store(true, Ordering::SeqCst);
        self.writing.await.unwrap();
        if let Some(reading) = self.reading {
            assert!(reading.await.unwrap() > 0);
        }
        self.stored.load(Ordering::SeqCst) / ROWS_A_BATCH
    }
}

/// As core does with a delivery that waits.
pub(crate) async fn store_alone(writer: &mut Writer, tenant: &Tenant, number: i64) {
    loop {
        let mut shares = Shares::default();
        share(&mut shares, tenant, number);
        match writer.write(&shares.ready()).await {
            Ok(_) => return,
            Err(StoreError::Moved { .. }) => tokio::task::yield_now().await,
            Err(error) if error.is_transient() => tokio::task::yield_now().await,
            // The days were made in the place where the rows were.
            Err(error) if error.to_string().contains("write results") => writer.forget_days(),
            Err(error) => panic!("{error:?}"),
        }
    }
}

impl World {
    pub(crate) async fn plan(&mut self, plan: &str) {
        let planned = Tenant { plan: plan.to_owned(), ..self.acme.clone() };
        self.provisioning.put_tenant(&self.key, &planned).await.unwrap();
    }

    pub(crate) fn planned(&self, plan: &str) -> Tenant {
        Tenant { plan: plan.to_owned(), ..self.acme.clone() }
    }
}
