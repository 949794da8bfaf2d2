//! Schemas of single tenants: what is made with the tenant, who reaches it, and what is left when it goes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bulkhead_bus::{Tenant, TenantState};
use bulkhead_store::inspection::Inspection;
use bulkhead_store::{Isolation, Provisioning, ProvisioningError, SCHEMAS_MOST, Store, StoreError, TENANT_TABLES};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, enterprise, onboard, tenant};
use bulkhead_testkit::sql::{count, insert_result, refusal, run};

/// Tables of a tenant's schema that core reads.
const TABLES: [&str; 12] = [
    "site",
    "poller",
    "poller_seen",
    "result",
    "check_state",
    "dead_letter",
    "ingest_count",
    "config_change",
    "check_definition",
    "assignment",
    "dispatch_state",
    "member_event",
];

struct World {
    database: TestDatabase,
    provisioning: Provisioning,
    store: Store,
    /// Two with schemas of their own, and one in the shared tables.
    tenants: [Tenant; 3],
}

/// Each tenant has a site, a poller and a result.
async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let store = database.store().await.unwrap();
    let tenants = [enterprise("acme-corp"), enterprise("big-bank"), tenant("xyz-inc")];
    for tenant in &tenants {
        onboard(&provisioning, tenant).await.unwrap();
        let mut tx = store.begin(tenant).await.unwrap();
        run(&mut tx.connection(), "select ensure_result_partition(current_date)").await.unwrap();
        run(&mut tx.connection(), &insert_result(tenant, "result")).await.unwrap();
        tx.commit().await.unwrap();
    }
    World { database, provisioning, store, tenants }
}

#[tokio::test]
async fn a_tenants_rows_are_where_its_plan_puts_them() {
    let World { database, store, provisioning, tenants } = world().await;
    let mut superuser = database.superuser().await.unwrap();
    for (schema, rows) in [("tenant_acme_corp", 1), ("tenant_big_bank", 1), ("shared", 1)] {
        assert_eq!(count(&mut superuser, &format!("select count(*) from {schema}.result")).await, rows, "{schema}");
    }
    let months = "select count(*) from pg_inherits where inhparent = 'tenant_acme_corp.result'::regclass";
    assert_eq!(count(&mut superuser, months).await, 1, "a month and no days");
    for (tenant, expected) in tenants.iter().zip([Isolation::Schema, Isolation::Schema, Isolation::Shared]) {
        let mut tx = store.begin(tenant).await.unwrap();
        assert_eq!(tx.isolation(), expected);
        assert_eq!(count(&mut tx.connection(), "select count(*) from result").await, 1);
        assert_eq!(provisioning.isolation(tenant).await.unwrap(), Some(expected));
        assert_eq!(provisioning.pollers(tenant).await.unwrap().len(), 1);
    }
    // Whoever still believes the old plan is brought where the rows are.
    let stale = Tenant { plan: "free".to_owned(), ..tenants[0].clone() };
    assert_eq!(store.begin(&stale).await.unwrap().isolation(), Isolation::Schema);
    let early = Tenant { plan: "enterprise".to_owned(), ..tenants[2].clone() };
    assert_eq!(store.begin(&early).await.unwrap().isolation(), Isolation::Shared);
    let mut tx = store.begin(&tenants[2]).await.unwrap();
    let refused = tx.switch_to(&tenants[0]).await.unwrap_err();
    assert!(matches!(refused, StoreError::Moved { .. }), "{refused}");
}

#[tokio::test]
async fn the_schema_of_one_tenant_is_closed_to_all_others() {
    let World { database, store, tenants, .. } = world().await;
    let [acme, bank, xyz] = &tenants;
    let mut superuser = database.superuser().await.unwrap();
    let partition: String = sqlx::query_scalar(
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'tenant_acme_corp.result'::regclass",
    )
    .fetch_one(&mut superuser)
    .await
    .unwrap();
    for table in TABLES {
        let sql = format!("select * from tenant_acme_corp.{table}");
        // Core's own role, another tenant's role, and the shared tables' transaction: the schema is not theirs.
        let mut bare = database.bare_core().await.unwrap();
        assert_eq!(refusal(&mut bare, &sql).await, "42501", "{table}");
        for other in [bank, xyz] {
            let mut tx = store.begin(other).await.unwrap();
            assert_eq!(refusal(&mut tx.connection(), &sql).await, "42501", "{table} as {}", other.slug);
        }
        // Its own role without a tenant, and with another one: the second lock.
        run(&mut bare, "begin; set local role tenant_acme_corp_core").await.unwrap();
        let code = refusal(&mut bare, &sql).await;
        assert!(["42704", "22P02"].contains(&code.as_str()), "{table}: {code}");
        run(&mut bare, "rollback; begin; set local role tenant_acme_corp_core").await.unwrap();
        let name = format!("select set_config('app.tenant_id', '{}', true)", bank.id.as_uuid());
        run(&mut bare, &name).await.unwrap();
        assert_eq!(count(&mut bare, &format!("select count(*) from tenant_acme_corp.{table}")).await, 0, "{table}");
        run(&mut bare, "rollback").await.unwrap();
    }
    for sql in [
        format!("select * from {partition}"),
        "delete from result".to_owned(),
        "truncate result".to_owned(),
        "drop table site".to_owned(),
        "alter table result disable row level security".to_owned(),
        "create table mine (x int)".to_owned(),
        "insert into site (tenant_id, name) values (gen_random_uuid(), 'x')".to_owned(),
        "update poller set batch_key = 'x'".to_owned(),
        insert_result(bank, "result").replace("'web'", "'planted'"),
        "set local role bulkhead_owner".to_owned(),
        "select provisioning.make_role('tenant_acme_corp')".to_owned(),
    ] {
        let mut tx = store.begin(acme).await.unwrap();
        assert_eq!(refusal(&mut tx.connection(), &sql).await, "42501", "{sql}");
    }
    // Control: a grant too many opens exactly what the test looks at.
    run(&mut superuser, "grant usage on schema tenant_acme_corp to bulkhead_core; grant select on tenant_acme_corp.site to bulkhead_core").await.unwrap();
    let mut tx = store.begin(xyz).await.unwrap();
    assert_eq!(
        count(&mut tx.connection(), "select count(*) from tenant_acme_corp.site").await,
        0,
        "the second lock holds"
    );
    drop(tx);
    run(
        &mut superuser,
        "drop policy tenant on tenant_acme_corp.site; create policy wide on tenant_acme_corp.site using (true)",
    )
    .await
    .unwrap();
    let mut tx = store.begin(xyz).await.unwrap();
    assert_eq!(
        count(&mut tx.connection(), "select count(*) from tenant_acme_corp.site").await,
        1,
        "and is the last one"
    );
}

#[tokio::test]
async fn tenants_roles_are_made_for_schemas_of_tenants_only() {
    let World { database, .. } = world().await;
    let mut owner = database.bare_provision().await.unwrap();
    run(&mut owner, "set role bulkhead_owner").await.unwrap();
    for bad in ["bulkhead", "pg_read_all_data", "tenant_", "tenant_A", "tenant_x\"; drop role postgres; --", ""] {
        let made = sqlx::query("select provisioning.make_role($1)").bind(bad).execute(&mut owner).await.unwrap_err();
        assert_eq!(made.as_database_error().unwrap().code().unwrap(), "22023", "{bad}");
        let dropped = sqlx::query("select provisioning.drop_role($1)").bind(bad).execute(&mut owner).await.unwrap_err();
        assert_eq!(dropped.as_database_error().unwrap().code().unwrap(), "22023", "{bad}");
    }
    assert_eq!(refusal(&mut owner, "create role mine").await, "42501");
    assert_eq!(refusal(&mut owner, "set role bulkhead_roles").await, "42501");
    let mut superuser = database.superuser().await.unwrap();
    let sql = "select count(*) from pg_roles where rolname like 'tenant\\_%'
               and (rolcanlogin or rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolinherit)";
    assert_eq!(count(&mut superuser, sql).await, 0);
}

#[tokio::test]
async fn what_is_granted_in_every_schema_is_what_should_be() {
    let World { database, .. } = world().await;
    let inspection = Inspection::connect(&database.provision_url()).await.unwrap();
    let rights = inspection.rights().await.unwrap();
    assert_eq!(rights.expected, rights.found);
    let tables = inspection.tenant_tables().await.unwrap();
    let own = tables.iter().filter(|table| table.name.starts_with("tenant_acme_corp.") && table.has_tenant);
    assert_eq!(own.clone().count(), TENANT_TABLES.len() + 1, "and a partition");
    assert!(own.clone().all(|table| table.is_secured && table.is_forced && table.owner == "bulkhead_owner"));
    assert!(own.clone().all(|table| table.policies.len() == usize::from(!table.is_partition)));
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "grant select on tenant_acme_corp.result to public").await.unwrap();
    let rights = inspection.rights().await.unwrap();
    let more: Vec<&str> = rights.found.difference(&rights.expected).map(|right| &*right.object).collect();
    assert_eq!(more, ["tenant_acme_corp.result"]);
}

#[tokio::test]
async fn a_purged_tenant_leaves_no_schema_and_no_role() {
    let World { database, provisioning, store, tenants } = world().await;
    let acme = &tenants[0];
    let open = provisioning.drop_schema(acme).await.unwrap_err();
    assert!(matches!(open, ProvisioningError::SchemaInUse { .. }), "{open}");
    assert!(provisioning.purge_tenant(acme).await.is_err(), "it is active");
    provisioning.set_tenant_state(acme, TenantState::Offboarding).await.unwrap();
    let rows = provisioning.purge_tenant(acme).await.unwrap();
    assert_eq!((rows["result"], rows["site"], rows["poller"]), (1, 1, 1), "{rows:?}");
    let again = provisioning.purge_tenant(acme).await.unwrap();
    assert_eq!(again.values().sum::<u64>(), 0, "{again:?}");
    provisioning.forget_tenant(acme).await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    let left = "select (select count(*) from pg_namespace where nspname = 'tenant_acme_corp')
                     + (select count(*) from pg_roles where rolname like 'tenant\\_acme%')
                     + (select count(*) from platform.tenant_schema where schema = 'tenant_acme_corp')";
    assert_eq!(count(&mut superuser, left).await, 0);
    assert_eq!(count(&mut superuser, "select count(*) from tenant_big_bank.result").await, 1);
    // Whoever has not heard of it may write nowhere.
    let mut tx = store.begin(acme).await.unwrap();
    assert_eq!(count(&mut tx.connection(), "select count(*) from ingest_count where closed").await, 1);
    drop(tx);
    // And the slug opens nothing old.
    let next = enterprise("acme-corp");
    provisioning.put_tenant(&account_key(), &next).await.unwrap();
    // Whoever says the purge of the old one again takes nothing of the new one.
    provisioning.purge_tenant(acme).await.unwrap();
    assert_eq!(count(&mut superuser, "select count(*) from pg_namespace where nspname = 'tenant_acme_corp'").await, 1);
    let mut tx = store.begin(&next).await.unwrap();
    assert_eq!(count(&mut tx.connection(), "select count(*) from result").await, 0);
}

#[tokio::test]
async fn one_schema_more_than_a_database_holds_is_refused_with_the_way_out() {
    let World { database, provisioning, .. } = world().await;
    let mut superuser = database.superuser().await.unwrap();
    let fill = format!(
        "insert into platform.tenant_schema (tenant_id, schema, version)
         select gen_random_uuid(), 'tenant_x' || n, 4 from generate_series(1, {SCHEMAS_MOST} - 2) n"
    );
    run(&mut superuser, &fill).await.unwrap();
    let late = enterprise("too-late");
    let refused = provisioning.put_tenant(&account_key(), &late).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::SchemasFull { .. }), "{refused}");
    assert!(refused.to_string().contains("too-late") && refused.to_string().contains("plan pro"), "{refused}");
    assert_eq!(count(&mut superuser, "select count(*) from platform.tenant where slug = 'too-late'").await, 0);
    assert_eq!(count(&mut superuser, "select count(*) from pg_namespace where nspname = 'tenant_too_late'").await, 0);
    provisioning.put_tenant(&account_key(), &tenant("in-time")).await.expect("the shared tables have room");
}

#[tokio::test]
async fn a_schema_that_was_half_made_is_completed() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let acme = enterprise("acme-corp");
    provisioning.make_schema(&acme).await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    // As kills leave it: before its version is noted, and before anything but its place is.
    let key = account_key();
    for cut in
        ["select 1", "drop schema tenant_acme_corp cascade; drop role tenant_acme_corp_core, tenant_acme_corp_dispatch"]
    {
        run(
            &mut superuser,
            &format!("{cut}; update platform.tenant_schema set version = 0; delete from platform.tenant"),
        )
        .await
        .unwrap();
        provisioning.put_tenant(&key, &acme).await.unwrap();
        provisioning.put_tenant(&key, &acme).await.unwrap();
        assert_eq!(count(&mut superuser, "select version from platform.tenant_schema").await, 5);
        assert_eq!(database.store().await.unwrap().begin(&acme).await.unwrap().isolation(), Isolation::Schema);
    }
    // Another tenant cannot have that schema, whatever it is called.
    let thief = Tenant { id: tenant("x").id, ..acme };
    let refused = provisioning.make_schema(&thief).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::SlugTaken { .. }), "{refused}");
}
