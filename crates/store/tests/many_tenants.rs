//! The ten thousandth tenant costs what the first does, and what changes is heard of at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use bulkhead_bus::TenantState;
use bulkhead_store::{Change, Changes, PollerState, ProvisioningError, Service, TenantNote};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, batch_key, tenant};
use bulkhead_testkit::sql::{insert_checks, run};
use sqlx::{AssertSqlSafe, PgConnection};

const TENANTS: usize = 10_000;
const SAMPLES: usize = 30;
/// How much more the last may take than the first, on a machine that does other things as well.
const RATIO_MAX: f64 = 3.0;
const LIMIT: Duration = Duration::from_secs(20);

async fn plan(connection: &mut PgConnection, sql: &str) -> String {
    let lines: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("explain {sql}"))).fetch_all(connection).await.unwrap();
    lines.join("\n")
}

#[tokio::test]
async fn the_last_of_ten_thousand_tenants_takes_no_longer_than_the_first() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let mut medians = Vec::new();
    for round in 0..2 {
        let mut took = Vec::new();
        for sample in 0..SAMPLES {
            let (key, own) = (account_key(), tenant(&format!("t-{round}-{sample}")));
            let began = Instant::now();
            provisioning.put_tenant(&key, &own).await.unwrap();
            let found = provisioning.tenant_by_account(&key).await.unwrap().unwrap();
            took.push(began.elapsed());
            assert_eq!(found.id, own.id);
        }
        took.sort();
        medians.push(took[SAMPLES / 2].as_secs_f64());
        let fill = format!(
            "insert into platform.tenant (tenant_id, account_key, slug, plan, state, retention_days, allows_unsigned)
             select gen_random_uuid(), 'A' || translate(upper(md5(n::text) || md5('x' || n)), '01789', 'QRSTU')::char(55),
                    'fill-' || n, 'free', 'active', 7, false from generate_series(1, {TENANTS}) n; analyze platform.tenant"
        );
        if round == 0 {
            sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut database.superuser().await.unwrap()).await.unwrap();
        }
    }
    assert!(provisioning.tenant_count().await.unwrap() >= u64::try_from(TENANTS).unwrap());
    assert!(medians[1] / medians[0] < RATIO_MAX, "{medians:?}");
    let mut superuser = database.superuser().await.unwrap();
    for condition in ["account_key = 'A'", "slug = 'fill-7'", "account_key = any(array['A', 'B'])"] {
        let plan = plan(&mut superuser, &format!("select * from platform.tenant where {condition}")).await;
        assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{condition}: {plan}");
    }
    let whole = plan(&mut superuser, "select * from platform.tenant where plan = 'free'").await;
    assert!(whole.contains("Seq Scan"), "control: {whole}");
}

async fn wait_for(changes: &mut Changes, expected: &Change) {
    let heard = tokio::time::timeout(LIMIT, async { while !changes.next().await.unwrap().contains(expected) {} });
    heard.await.unwrap_or_else(|_| panic!("{expected:?} was not heard"));
}

#[tokio::test]
async fn checks_and_runs_are_heard_by_dispatch_only() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let acme = tenant("acme-corp");
    provisioning.put_tenant(&account_key(), &acme).await.unwrap();
    let mut listening = Vec::new();
    for service in Service::ALL {
        listening.push((service, database.store_of(service).await.unwrap().listen().await.unwrap()));
    }
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, &insert_checks(&acme, "shared", "web")).await.unwrap();
    // What everybody hears, after it.
    let (oslo, p1) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    provisioning.put_poller(&acme, &oslo, &p1, &batch_key()).await.unwrap();
    let (checks, runs, last) = (Change::Checks(acme.id), Change::Runs(acme.id), Change::Pollers(acme.id));
    for (service, changes) in &mut listening {
        let mut heard = Vec::new();
        let hearing = async {
            while !heard.contains(&last) {
                heard.extend(changes.next().await.unwrap());
            }
        };
        tokio::time::timeout(LIMIT, hearing).await.unwrap();
        let expected = *service == Service::Dispatch;
        assert_eq!((heard.contains(&checks), heard.contains(&runs)), (expected, expected), "{service:?}: {heard:?}");
    }
}

#[tokio::test]
async fn every_change_is_heard_by_who_may_only_read() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let mut changes = database.store().await.unwrap().listen().await.unwrap();
    let (ops, key, acme) = (account_key(), account_key(), tenant("acme-corp"));
    let (account, pollers) = (Change::Account(key.clone()), Change::Pollers(acme.id));
    provisioning.put_platform_account(&ops, "ops").await.unwrap();
    wait_for(&mut changes, &Change::Account(ops)).await;
    provisioning.put_tenant(&key, &acme).await.unwrap();
    wait_for(&mut changes, &account).await;
    let (oslo, p1) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    provisioning.put_poller(&acme, &oslo, &p1, &batch_key()).await.unwrap();
    wait_for(&mut changes, &pollers).await;
    provisioning.set_poller_state(&acme, (&oslo, &p1), PollerState::Revoked).await.unwrap();
    wait_for(&mut changes, &pollers).await;
    provisioning.remove_poller(&acme, &oslo, &p1).await.unwrap();
    wait_for(&mut changes, &pollers).await;
    provisioning.set_tenant_state(&acme, TenantState::Offboarding).await.unwrap();
    wait_for(&mut changes, &account).await;
    provisioning.forget_tenant(&acme).await.unwrap();
    wait_for(&mut changes, &account).await;

    // Nothing to say is said as well, and a lost connection is an error and no silence.
    assert!(changes.next().await.unwrap().is_empty());
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'bulkhead_core'";
    sqlx::raw_sql(kill).execute(&mut database.superuser().await.unwrap()).await.unwrap();
    changes.next().await.unwrap_err();
}

#[tokio::test]
async fn a_display_name_is_free_text_of_some_length() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let acme = tenant("acme-corp");
    let note = |name: &str| TenantNote { display_name: Some(name.to_owned()), plan_version: Some(3) };
    let missing = provisioning.put_tenant_note(&acme, &note("ACME")).await.unwrap_err();
    assert!(matches!(missing, ProvisioningError::NoTenant { .. }), "{missing}");
    provisioning.put_tenant(&account_key(), &acme).await.unwrap();
    assert_eq!(provisioning.tenant_note(&acme).await.unwrap(), TenantNote::default());
    for good in ["ACME Corp.", "'; drop table tenant; --", &"ä".repeat(200)] {
        provisioning.put_tenant_note(&acme, &note(good)).await.unwrap();
        assert_eq!(provisioning.tenant_note(&acme).await.unwrap(), note(good));
    }
    for bad in ["", "a\0b", &"x".repeat(201)] {
        let refused = provisioning.put_tenant_note(&acme, &note(bad)).await.unwrap_err();
        assert!(matches!(refused, ProvisioningError::DisplayName { .. }), "{refused}");
    }
}
