//! How soon core goes by what provisioning has written, with ten thousand tenants, and who is written for no more.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use bulkhead_bus::{Account, AccountKey, Tenant, TenantState};
use bulkhead_core::commit::{Seen, Shares, Writer};
use bulkhead_core::metrics::Metrics;
use bulkhead_directory::Directory;
use bulkhead_runtime::{Loops, Stop, eventually};
use bulkhead_store::{PollerState, Provisioning, Registered, Store, StoreError};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, account_keys, onboard, tenant};
use sqlx::AssertSqlSafe;

const TENANTS: usize = 10_000;
const LIMIT: Duration = Duration::from_secs(30);
/// Design section 9: revocation to refusal.
const GOAL: Duration = Duration::from_secs(1);
const TRIES: usize = 20;
/// So long that only what is heard can be the cause.
const NEVER: Duration = Duration::from_secs(3_600);

struct World {
    database: TestDatabase,
    provisioning: Provisioning,
    store: Store,
    key: AccountKey,
    acme: Tenant,
}

async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let (provisioning, store) = (database.provisioning().await.unwrap(), database.store().await.unwrap());
    let acme = tenant("acme-corp");
    let key = onboard(&provisioning, &acme).await.unwrap();
    World { database, provisioning, store, key, acme }
}

/// Tenants with keys that are ones.
async fn fill(world: &World) {
    let keys: Vec<String> = account_keys(TENANTS).iter().map(ToString::to_string).collect();
    let sql = "insert into platform.tenant (tenant_id, account_key, slug, plan, state, retention_days, allows_unsigned)
               select gen_random_uuid(), key, 'fill-' || n, 'free', 'active', 7, false
               from unnest($1::text[]) with ordinality as k (key, n)";
    sqlx::query(sql).bind(&keys).execute(&mut world.database.superuser().await.unwrap()).await.unwrap();
}

/// A directory that is kept fresh until the guard is dropped.
async fn fresh(world: &World) -> (Directory, tokio_util::sync::DropGuard) {
    let metrics = Metrics::default();
    let directory = Directory::load(world.store.clone(), metrics.answers()).await.unwrap();
    let stop = Stop::new();
    let seen = metrics.tenants_seen_timestamp_seconds.clone();
    tokio::spawn(directory.clone().keep_fresh(NEVER, seen.clone(), Loops::default().watch("tenants"), stop.clone()));
    let hearing = eventually("a directory that hears", LIMIT, || async {
        if seen.get() > 0 { Ok(()) } else { Err("deaf".to_owned()) }
    });
    hearing.await.unwrap();
    (directory, stop.drop_guard())
}

async fn registered(directory: &Directory, world: &World) -> Option<Registered> {
    let keys = directory.batch_keys(&world.acme).await.unwrap();
    keys.get(&("oslo".parse().unwrap(), "p1".parse().unwrap())).cloned()
}

/// How long it takes until the directory shows what was written.
async fn until(what: &str, mut is_seen: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_seen().await {
        assert!(began.elapsed() < LIMIT, "{what} is not seen");
        tokio::task::yield_now().await;
    }
    began.elapsed()
}

#[tokio::test]
async fn what_is_written_is_gone_by_within_a_second_at_ten_thousand_tenants() {
    let world = world().await;
    fill(&world).await;
    let (directory, _running) = fresh(&world).await;
    let (oslo, p1) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    let mut slowest = Duration::ZERO;
    for turn in 0..TRIES {
        assert!(matches!(registered(&directory, &world).await, Some(Registered::Key(_))), "control");
        world.provisioning.set_poller_state(&world.acme, (&oslo, &p1), PollerState::Revoked).await.unwrap();
        let is_revoked = async || registered(&directory, &world).await == Some(Registered::Revoked);
        slowest = slowest.max(until("a revocation", is_revoked).await);
        world.provisioning.set_poller_state(&world.acme, (&oslo, &p1), PollerState::Active).await.unwrap();
        let is_back = async || matches!(registered(&directory, &world).await, Some(Registered::Key(_)));
        slowest = slowest.max(until("an end of a revocation", is_back).await);

        let (key, own) = (account_key(), tenant(&format!("new-{turn}")));
        world.provisioning.put_tenant(&key, &own).await.unwrap();
        let is_known = async || directory.snapshot().open_tenant(&key).is_some();
        slowest = slowest.max(until("a new tenant", is_known).await);
        world.provisioning.set_tenant_state(&own, TenantState::Suspended).await.unwrap();
        let is_suspended = async || {
            let snapshot = directory.snapshot();
            matches!(snapshot.account(&key), Some(Account::Tenant(own)) if own.state == TenantState::Suspended)
        };
        slowest = slowest.max(until("a suspension", is_suspended).await);
    }
    assert!(slowest < GOAL, "{slowest:?}");
    assert!(directory.snapshot().tenants().count() > TENANTS, "what did not change is still known");
}

#[tokio::test]
async fn a_lost_connection_hides_no_revocation_for_longer_than_a_second() {
    let world = world().await;
    let (directory, _running) = fresh(&world).await;
    let (oslo, p1) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    let mut superuser = world.database.superuser().await.unwrap();
    for _ in 0..5 {
        assert!(matches!(registered(&directory, &world).await, Some(Registered::Key(_))), "control");
        // Whoever listens is cut off, and the change is made while nobody hears it.
        let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where usename = 'bulkhead_core' and query ilike any (array['listen%', 'select 1'])";
        let ended: i64 = sqlx::query_scalar(cut).fetch_one(&mut superuser).await.unwrap();
        assert!(ended > 0, "nobody listened");
        world.provisioning.set_poller_state(&world.acme, (&oslo, &p1), PollerState::Revoked).await.unwrap();
        let is_revoked = async || registered(&directory, &world).await == Some(Registered::Revoked);
        let took = until("a revocation", is_revoked).await;
        assert!(took < GOAL + Duration::from_millis(200), "{took:?}");
        world.provisioning.set_poller_state(&world.acme, (&oslo, &p1), PollerState::Active).await.unwrap();
        let is_back = async || matches!(registered(&directory, &world).await, Some(Registered::Key(_)));
        until("an end of a revocation", is_back).await;
    }
}

#[tokio::test]
async fn a_tenant_that_was_written_a_moment_ago_is_looked_for_and_a_stranger_only_now_and_then() {
    let world = world().await;
    // Nobody keeps this one fresh.
    let directory = Directory::load(world.store.clone(), Metrics::default().answers()).await.unwrap();
    let (key, own, nobody) = (account_key(), tenant("new-one"), account_key());
    world.provisioning.put_tenant(&key, &own).await.unwrap();
    assert!(directory.snapshot().account(&key).is_none(), "control");
    directory.look_for([&nobody, &key].into_iter()).await.unwrap();
    assert!(directory.snapshot().open_tenant(&key).is_some());
    assert!(directory.snapshot().open_tenant(&world.key).is_some());
    assert!(directory.snapshot().account(&nobody).is_none());
    world.provisioning.put_tenant(&nobody, &tenant("late")).await.unwrap();
    directory.look_for([&nobody].into_iter()).await.unwrap();
    assert!(directory.snapshot().account(&nobody).is_none(), "asked again at once");
    let found = eventually("a look after a while", LIMIT, || async {
        directory.look_for([&nobody].into_iter()).await.unwrap();
        directory.snapshot().open_tenant(&nobody).map(|_| ()).ok_or_else(|| "unknown".to_owned())
    });
    found.await.unwrap();
}

fn one_batch(tenant: &Tenant) -> Shares {
    let mut shares = Shares::default();
    let seen = Seen { site: "oslo".parse().unwrap(), poller: "p1".parse().unwrap(), sequence: None };
    shares.of(tenant).seen.push(seen);
    shares
}

#[tokio::test]
async fn nothing_is_written_for_a_tenant_that_leaves_whatever_core_still_believes() {
    let world = world().await;
    let (provisioning, acme) = (&world.provisioning, &world.acme);
    let mut writer = Writer::new(world.store.clone());
    writer.write(&one_batch(acme).ready()).await.unwrap();

    // A transaction that is under way is waited for.
    let mut tx = world.store.begin(acme).await.unwrap();
    let counts = bulkhead_core::store::Counts { batches: 1, ..Default::default() };
    bulkhead_core::store::add_counts(&mut tx, acme, counts).await.unwrap();
    let (closing, leaving) = (provisioning.clone(), acme.clone());
    let closing = tokio::spawn(async move { closing.set_tenant_state(&leaving, TenantState::Offboarding).await });
    let mut superuser = world.database.superuser().await.unwrap();
    let waits =
        "select count(*) from pg_stat_activity where usename = 'bulkhead_provision' and wait_event_type = 'Lock'";
    let began = Instant::now();
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut superuser).await.unwrap() == 0 {
        assert!(began.elapsed() < LIMIT && !closing.is_finished(), "it did not wait");
    }
    tx.commit().await.unwrap();
    closing.await.unwrap().unwrap();
    assert_eq!(batches(&world).await, 2, "what was under way is stored");

    let refused = writer.write(&one_batch(acme).ready()).await.unwrap_err();
    assert!(matches!(refused, StoreError::TenantClosed { .. }), "{refused}");
    provisioning.purge_tenant(acme).await.unwrap();
    provisioning.forget_tenant(acme).await.unwrap();
    let refused = writer.write(&one_batch(acme).ready()).await.unwrap_err();
    assert!(matches!(refused, StoreError::TenantClosed { .. }), "{refused}");
    assert_eq!(provisioning.row_counts(acme).await.unwrap().values().sum::<u64>(), 0);
}

#[tokio::test]
async fn an_offboarding_that_is_called_off_lets_results_in_again() {
    let world = world().await;
    let mut writer = Writer::new(world.store.clone());
    for state in [TenantState::Offboarding, TenantState::Active] {
        world.provisioning.set_tenant_state(&world.acme, state).await.unwrap();
        assert_eq!(writer.write(&one_batch(&world.acme).ready()).await.is_ok(), state.is_open());
    }
    assert_eq!(batches(&world).await, 1);
}

async fn batches(world: &World) -> i64 {
    let sql = format!("select batches from shared.ingest_count where tenant_id = '{}'", world.acme.id.as_uuid());
    let mut superuser = world.database.superuser().await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut superuser).await.unwrap()
}
