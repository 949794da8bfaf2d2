//! Core through the real PgBouncer, which lends two connections by the transaction: everything is stored and answered, nobody
//! meets another's rows, and what would go wrong without care does go wrong.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rows;

use std::time::Duration;

use bulkhead_bus::Tenant;
use bulkhead_bus::payload::Query;
use bulkhead_core::admission::DeadReason;
use bulkhead_core::commit::{Seen, Shares, Writer};
use bulkhead_core::handlers::store::{glance_at, list_pollers, list_results, list_states};
use bulkhead_core::store::{self, DeadLetter};
use bulkhead_runtime::now_ms;
use bulkhead_store::{Change, Provisioning, Service, Store, StoreError};
use bulkhead_testkit::database::{CONNECTIONS, account_key, onboard, tenant};
use bulkhead_testkit::{PgBouncer, TestDatabase};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection, Row};

use rows::row;

const ROUNDS: i64 = 40;

fn shares(tenant: &Tenant, slot_ms: i64) -> Shares {
    let mut shares = Shares::default();
    let share = shares.of(tenant);
    share.rows.extend([slot_ms, slot_ms + 500].map(|slot_ms| row(tenant.slug.as_str(), slot_ms)));
    share.seen.push(Seen { site: "oslo".parse().unwrap(), poller: "p1".parse().unwrap(), sequence: None });
    shares
}

/// What a tenant is shown, which must be its own and nothing else.
async fn is_shown(store: &Store, tenant: &Tenant) -> usize {
    let mut tx = store.begin(tenant).await.unwrap();
    let rows = list_results(&mut tx, tenant, &Query::default(), i64::MIN, 1_000).await.unwrap();
    let states = list_states(&mut tx, tenant, &Query::default()).await.unwrap();
    assert!(rows.iter().all(|row| row.check.as_str() == tenant.slug.as_str()), "{}: {rows:?}", tenant.slug);
    assert!(states.iter().all(|row| row.check.as_str() == tenant.slug.as_str()), "{}: {states:?}", tenant.slug);
    assert_eq!(list_pollers(&mut tx, tenant).await.unwrap().len(), 1);
    glance_at(&mut tx, tenant).await.unwrap();
    rows.len()
}

async fn bare(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().unwrap().extra_float_digits(None).connect().await.unwrap()
}

async fn setting(connection: &mut PgConnection, name: &str) -> String {
    let sql = format!("select coalesce(current_setting('{name}', true), '')");
    sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(connection).await.unwrap().get(0)
}

#[tokio::test]
async fn many_tenants_share_two_connections_and_never_meet() {
    let database = TestDatabase::start().await.unwrap();
    let Some(bouncer) = PgBouncer::start(&database, "").await.unwrap() else { return };
    let provisioning = database.provisioning().await.unwrap();
    let tenants: Vec<Tenant> = (0..8)
        .map(|number| {
            let plan = if number % 2 == 0 { "pro" } else { "enterprise" };
            Tenant { plan: plan.to_owned(), ..tenant(&format!("tenant-{number}")) }
        })
        .collect();
    for tenant in &tenants {
        onboard(&provisioning, tenant).await.unwrap();
    }
    let url = bouncer.before(&database.core_url());
    let store = Store::connect_pooled(&url, &database.core_url(), Service::Core, CONNECTIONS).await.unwrap();
    let first_slot = now_ms() / 10_000 * 10_000 - 600_000;
    let mut tasks = tokio::task::JoinSet::new();
    for own in tenants.clone() {
        let store = store.clone();
        tasks.spawn(async move {
            let (mut writer, mut cancelled) = (Writer::new(store.clone()), 0);
            for round in 0..ROUNDS {
                let ready = shares(&own, first_slot + round * 1_000).ready();
                let limit = Duration::from_micros(500 * u64::try_from(round).unwrap());
                cancelled += u64::from(tokio::time::timeout(limit, writer.write(&ready)).await.is_err());
                writer.write(&ready).await.unwrap();
                assert_eq!(is_shown(&store, &own).await, 2 * usize::try_from(round + 1).unwrap());
            }
            cancelled
        });
    }
    let cancelled: u64 = tasks.join_all().await.into_iter().sum();
    assert!(cancelled > 10, "{cancelled} were cancelled");
    let mut superuser = database.superuser().await.unwrap();
    let used = "select count(*) from pg_stat_activity where usename = 'bulkhead_core'";
    let used: i64 = sqlx::query_scalar(used).fetch_one(&mut superuser).await.unwrap();
    assert!((1..=2).contains(&used), "{used} connections");
    // Nothing of a tenant stays with a connection.
    for _ in 0..8 {
        let mut next = bare(&url).await;
        assert_eq!(setting(&mut next, "app.tenant_id").await, "");
        assert_eq!(setting(&mut next, "role").await, "none");
    }
}

#[tokio::test]
async fn what_needs_a_session_has_one_and_commits_are_on_the_disk() {
    let database = TestDatabase::start().await.unwrap();
    let Some(bouncer) = PgBouncer::start(&database, "").await.unwrap() else { return };
    let mut superuser = database.superuser().await.unwrap();
    sqlx::raw_sql("alter role bulkhead_core set synchronous_commit = off").execute(&mut superuser).await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let acme = tenant("acme-corp");
    onboard(&provisioning, &acme).await.unwrap();
    let url = bouncer.before(&database.core_url());
    let store = Store::connect_pooled(&url, &database.core_url(), Service::Core, CONNECTIONS).await.unwrap();
    assert_eq!(setting(&mut bare(&url).await, "synchronous_commit").await, "off", "as the role has it");
    let mut tx = store.begin(&acme).await.unwrap();
    let mut platform = store.platform().await.unwrap();
    for (name, expected) in [("synchronous_commit", "on"), ("jit", "off"), ("statement_timeout", "30s")] {
        assert_eq!(setting(&mut tx.connection(), name).await, expected, "{name}");
        assert_eq!(setting(&mut platform.connection(), name).await, expected, "{name}");
    }
    drop((tx, platform));
    let letter = DeadLetter {
        digest: vec![1; 32],
        row_index: -1,
        reason: DeadReason::SlotTooOld,
        detail: String::new(),
        stream: "RESULTS",
        subject: "s".to_owned(),
        headers: String::new(),
        payload: vec![],
        delivered: 1,
    };
    assert!(store::put_unclaimed(&store, "A", &letter).await.unwrap());
    let kept = "select count(*) from platform.unclaimed_dead_letter";
    assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&mut superuser).await.unwrap(), 1);
    assert_eq!(store.tenants().await.unwrap().tenants.len(), 1);
    assert!(store.database_bytes().await.unwrap() > 0);
    store.ping().await.unwrap();
    let mut changes = store.listen().await.unwrap();
    let key = account_key();
    provisioning.put_tenant(&key, &tenant("xyz-inc")).await.unwrap();
    loop {
        if changes.next().await.unwrap().contains(&Change::Account(key.clone())) {
            break;
        }
    }
    assert_eq!(store.accounts(&[key]).await.unwrap().tenants.len(), 1);
}

/// Each of these is what the care is for.
#[tokio::test]
async fn without_care_statements_are_lost_and_tenants_leak() {
    let database = TestDatabase::start().await.unwrap();
    let Some(bouncer) = PgBouncer::start(&database, "").await.unwrap() else { return };
    let url = bouncer.before(&database.core_url());
    let mut refused = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = bare(&url).await;
        let asked = sqlx::query("select $1::int4").bind(1).fetch_one(&mut client).await;
        refused.extend(asked.err().and_then(|error| Some(error.as_database_error()?.code()?.into_owned())));
        clients.push(client);
    }
    assert!(refused.iter().any(|code| code == "42P05" || code == "26000"), "statements by name fail: {refused:?}");
    let acme = tenant("acme-corp").id.as_uuid().to_string();
    let naive = format!("select set_config('app.tenant_id', '{acme}', false)");
    sqlx::raw_sql(AssertSqlSafe(naive)).execute(&mut bare(&url).await).await.unwrap();
    assert_eq!(setting(&mut bare(&url).await, "app.tenant_id").await, acme, "a tenant leaks to whoever comes next");
}

#[tokio::test]
async fn whoever_needs_a_session_refuses_a_pooler() {
    let database = TestDatabase::start().await.unwrap();
    for settings in ["", "ignore_startup_parameters = options, extra_float_digits"] {
        let Some(bouncer) = PgBouncer::start(&database, settings).await.unwrap() else { return };
        let url = bouncer.before(&database.core_url());
        let store = Store::connect(&url, Service::Core, CONNECTIONS).await;
        assert!(matches!(store, Err(StoreError::Pooled)), "{settings}: {store:?}");
        let store = Store::connect_pooled(&url, &url, Service::Core, CONNECTIONS).await;
        assert!(matches!(store, Err(StoreError::Pooled)), "{settings}: {store:?}");
        let provisioning = Provisioning::connect(&bouncer.before(&database.provision_url())).await.map(drop);
        assert!(format!("{provisioning:?}").contains("Pooled"), "{settings}: {provisioning:?}");
        let migrated = bulkhead_store::migrate(&bouncer.before(&database.provision_url())).await;
        assert!(format!("{migrated:?}").contains("Pooled"), "{settings}: {migrated:?}");
    }
}
