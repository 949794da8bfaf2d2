//! What provisioning and starting services promise, against a real database.

use std::os::unix::fs::PermissionsExt;

use bulkhead_bus::{Account, TenantState};
use bulkhead_store::admin::{self, AdminError, Passwords};
use bulkhead_store::{
    Connections, ProvisioningError, Service, Store, StoreError, UrlError, migrate, read_database_url,
};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, batch_key, tenant};
use bulkhead_testkit::sql::run;
use sqlx::{AssertSqlSafe, PgConnection};

const ONE: Connections = Connections { shared: 1, own_schemas: 1 };

fn passwords(word: &str) -> Passwords {
    let word = || word.to_owned();
    Passwords { provision: word(), core: word(), registry: word(), dispatch: word() }
}

#[tokio::test]
async fn preparing_and_migrating_twice_changes_nothing() {
    let database = TestDatabase::start().await.unwrap();
    database.prepare().await.unwrap();
    let url = database.provision_url();
    let (first, second) = tokio::join!(migrate(&url), migrate(&url));
    first.unwrap();
    second.unwrap();
    assert!(database.store().await.unwrap().tenants().await.unwrap().tenants.is_empty());
}

#[tokio::test]
async fn services_refuse_a_database_that_is_not_migrated_or_older() {
    let database = TestDatabase::start_bare().await.unwrap();
    let passwords = passwords("secret");
    admin::prepare_database(&database.bare_url(), &passwords).await.unwrap();
    let refused = Store::connect(&database.core_url(), Service::Core, ONE).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotMigrated(_)), "{refused}");
    migrate(&database.provision_url()).await.unwrap();
    Store::connect(&database.core_url(), Service::Core, ONE).await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "update shared._migrations set version = version + 1000").await.unwrap();
    Store::connect(&database.core_url(), Service::Core, ONE).await.expect("a newer schema is fine");
    run(
        &mut superuser,
        "delete from shared._migrations where version > 1001; update shared._migrations set version = 0",
    )
    .await
    .unwrap();
    let refused = Store::connect(&database.core_url(), Service::Core, ONE).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "schema shared has version 0, and this release needs 5: run `bulkhead db migrate` first"
    );
}

/// A migration that takes something away raises the floor, and then a release that does not know of it is told to go.
#[tokio::test]
async fn services_refuse_a_database_whose_floor_is_above_them() {
    let database = TestDatabase::start().await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    for (migrations, schema, newest) in [("platform", "platform", 4), ("tenant", "shared", 5)] {
        let floor = |version: i64| {
            format!("update platform.schema_floor set oldest_reader = {version} where migrations = '{migrations}'")
        };
        // A newer migration alone only adds.
        run(&mut superuser, &format!("update {schema}._migrations set version = 1000 where version = {newest}"))
            .await
            .unwrap();
        Store::connect(&database.core_url(), Service::Core, ONE).await.expect("a newer schema without a floor is fine");
        run(&mut superuser, &floor(newest)).await.unwrap();
        Store::connect(&database.core_url(), Service::Core, ONE).await.expect("this release knows what is needed");
        run(&mut superuser, &floor(newest + 1)).await.unwrap();
        let refused = Store::connect(&database.core_url(), Service::Core, ONE).await.unwrap_err();
        let is_said = matches!(refused, StoreError::TooNew { found: 1000, floor, known, .. }
            if (floor, known) == (newest + 1, newest));
        assert!(is_said, "{refused:?}");
        assert!(!refused.is_transient(), "trying again does not help");
        assert_eq!(
            refused.to_string(),
            format!(
                "schema {schema} has version 1000, which needs services that know {} at least, and this release knows \
                 {newest}: run a newer release",
                newest + 1
            )
        );
        // And below it again.
        run(&mut superuser, &floor(2)).await.unwrap();
        Store::connect(&database.core_url(), Service::Core, ONE).await.expect("the floor is below");
    }
}

#[tokio::test]
async fn a_migration_that_was_changed_is_refused() {
    let database = TestDatabase::start().await.unwrap();
    run(&mut database.superuser().await.unwrap(), "update shared._migrations set checksum = '\\x00'").await.unwrap();
    let refused = migrate(&database.provision_url()).await.unwrap_err();
    assert!(matches!(refused, AdminError::Migrate { .. }), "{refused}");
}

#[tokio::test]
async fn a_password_that_would_end_its_string_is_refused() {
    for bad in ["", "a'b", "a b", "ä"] {
        let passwords = Passwords { core: bad.to_owned(), ..passwords("secret") };
        let database = "postgres://nobody@127.0.0.1:1/none";
        let refused = admin::prepare_database(database, &passwords).await.unwrap_err();
        assert!(matches!(refused, AdminError::Password("bulkhead_core")), "{bad:?}: {refused}");
    }
}

#[tokio::test]
async fn a_tenant_is_written_by_its_account_and_its_id_stays() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (key, mut acme) = (account_key(), tenant("acme-corp"));
    provisioning.put_tenant(&key, &acme).await.unwrap();
    let first = acme.id;
    acme = bulkhead_bus::Tenant {
        id: tenant("other").id,
        state: TenantState::Suspended,
        retention_days: 31,
        allows_unsigned: true,
        ..acme
    };
    provisioning.put_tenant(&key, &acme).await.unwrap();
    let found = provisioning.tenant_by_account(&key).await.unwrap().unwrap();
    assert_eq!(found, bulkhead_bus::Tenant { id: first, state_since_ms: found.state_since_ms, ..acme });
    assert_eq!(provisioning.tenant_by_account(&account_key()).await.unwrap(), None);
    let taken = provisioning.put_tenant(&account_key(), &tenant("acme-corp")).await.unwrap_err();
    assert!(matches!(taken, ProvisioningError::SlugTaken { .. }), "{taken}");
}

#[tokio::test]
async fn an_account_is_a_tenants_or_the_platforms() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (ops, acme) = (account_key(), account_key());
    provisioning.put_platform_account(&ops, "ops").await.unwrap();
    provisioning.put_platform_account(&ops, "ops").await.unwrap();
    provisioning.put_tenant(&acme, &tenant("acme-corp")).await.unwrap();
    let refused = provisioning.put_tenant(&ops, &tenant("xyz-inc")).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::TwoRoles { .. }), "{refused}");
    let refused = provisioning.put_platform_account(&acme, "second").await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::TwoRoles { .. }), "{refused}");
    let snapshot = database.store().await.unwrap().tenants().await.unwrap().into_snapshot();
    assert_eq!(snapshot.account(&ops), Some(&Account::Platform));
    assert!(matches!(snapshot.account(&acme), Some(Account::Tenant(_))));
    assert_eq!(snapshot.account(&account_key()), None);
}

#[tokio::test]
async fn no_two_pollers_sign_with_one_key() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (acme, xyz, key) = (tenant("acme-corp"), tenant("xyz-inc"), batch_key());
    for tenant in [&acme, &xyz] {
        provisioning.put_tenant(&account_key(), tenant).await.unwrap();
    }
    let (oslo, p1, p2) = ("oslo".parse().unwrap(), "p1".parse().unwrap(), "p2".parse().unwrap());
    provisioning.put_poller(&acme, &oslo, &p1, &key).await.unwrap();
    provisioning.put_poller(&acme, &oslo, &p1, &key).await.unwrap();
    for (tenant, poller) in [(&acme, &p2), (&xyz, &p1)] {
        let refused = provisioning.put_poller(tenant, &oslo, poller, &key).await.unwrap_err();
        assert!(matches!(refused, ProvisioningError::KeyTaken { .. }), "{refused}");
    }
    provisioning.put_poller(&acme, &oslo, &p1, &batch_key()).await.unwrap();
    provisioning.put_poller(&xyz, &oslo, &p1, &key).await.expect("a key that was given up is free");
}

#[tokio::test]
async fn partitions_are_made_once_and_only_for_days_that_results_may_have() {
    let database = TestDatabase::start().await.unwrap();
    let made = |day: &str| format!("select shared.ensure_result_partition({day})");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (url, sql) = (database.core_url(), made("current_date + 1"));
        tasks.spawn(async move {
            let mut core = <PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
            run(&mut core, &sql).await.unwrap();
        });
    }
    tasks.join_all().await;
    let mut core = database.bare_core().await.unwrap();
    for day in ["current_date - 4000", "current_date + 30", "'infinity'::date", "null::date", "'0001-01-01 BC'::date"] {
        let refused = sqlx::raw_sql(AssertSqlSafe(made(day))).execute(&mut core).await;
        assert!(refused.is_err(), "{day}");
    }
    let sql = "select count(*) from pg_inherits i where i.inhparent = 'shared.result'::regclass";
    let partitions: i64 = sqlx::query_scalar(sql).fetch_one(&mut database.superuser().await.unwrap()).await.unwrap();
    assert_eq!(partitions, 1);
}

#[test]
fn a_database_address_is_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("database.url");
    let missing = read_database_url(&path).unwrap_err();
    assert!(missing.to_string().contains("database.url"), "{missing}");
    std::fs::write(&path, " postgres://core:hidden@127.0.0.1/bulkhead\n").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let open = read_database_url(&path).unwrap_err();
    assert!(matches!(open, UrlError::Mode { mode: 0o640, .. }), "{open}");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(read_database_url(&path).unwrap(), "postgres://core:hidden@127.0.0.1/bulkhead");
    std::fs::write(&path, "mysql://core:hidden@127.0.0.1/bulkhead").unwrap();
    let wrong = read_database_url(&path).unwrap_err();
    assert!(matches!(wrong, UrlError::Form { .. }) && !format!("{wrong:?}").contains("hidden"), "{wrong}");
}

#[tokio::test]
async fn errors_do_not_show_the_password() {
    for url in ["postgres://core:hidden@127.0.0.1:1/bulkhead", "postgres://core:hidden@127.0.0.1:x/bulkhead"] {
        let refused = Store::connect(url, Service::Core, ONE).await.unwrap_err();
        let mut shown = format!("{refused:?}");
        let mut cause: Option<&dyn std::error::Error> = Some(&refused);
        while let Some(error) = cause {
            shown += &error.to_string();
            cause = error.source();
        }
        assert!(!shown.contains("hidden"), "{shown}");
    }
}
