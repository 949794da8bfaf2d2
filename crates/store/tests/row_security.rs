//! What keeps tenants apart in the database, attacked as core's own role. Controls take a lock away and see it missed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bulkhead_bus::Tenant;
use bulkhead_store::{Connections, Service, Store, StoreError, TenantTx};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, batch_key, enterprise, tenant};
use bulkhead_testkit::sql::{insert_result, refusal, run};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const ONE: Connections = Connections { shared: 1, own_schemas: 1 };

/// Tables of tenants that row security does not hold for, each with what is missing.
async fn open_tables(connection: &mut PgConnection) -> Vec<String> {
    let sql = "select format('%s.%s: %s', n.nspname, c.relname, concat_ws(' ',
                   case when not c.relrowsecurity then 'not enabled' end,
                   case when not c.relforcerowsecurity then 'not forced' end,
                   case when not c.relispartition and not exists (
                       select from pg_policy p where p.polrelid = c.oid and p.polpermissive and p.polcmd = '*'
                         and p.polqual is not null and p.polwithcheck is not null) then 'no policy' end,
                   case when c.relispartition and exists (select from pg_policy p where p.polrelid = c.oid)
                       then 'a policy of its own' end,
                   case when not c.relispartition and (select count(*) from pg_policy p where p.polrelid = c.oid) > 1
                       then 'several policies' end))
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where c.relkind in ('r', 'p') and n.nspname = 'shared'
                 and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id')
                 and not (c.relrowsecurity and c.relforcerowsecurity
                   and (c.relispartition or (select count(*) from pg_policy p where p.polrelid = c.oid
                          and p.polqual is not null and p.polwithcheck is not null) = 1)
                   and not (c.relispartition and exists (select from pg_policy p where p.polrelid = c.oid)))";
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

/// Partitions on which anybody but the owner has a right.
async fn granted_partitions(connection: &mut PgConnection) -> Vec<String> {
    let sql = "select distinct c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid,
                 lateral aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) as acl
               where acl.grantee <> c.relowner and c.relkind = 'r'";
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

/// Tables that carry a tenant's id, as the catalogue has them.
async fn tenant_tables(connection: &mut PgConnection) -> Vec<String> {
    let sql = "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
               join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
               where n.nspname = 'shared' and c.relkind in ('r', 'p') and not c.relispartition order by 1";
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

async fn today_partition(connection: &mut PgConnection) -> String {
    run(connection, "select shared.ensure_result_partition(current_date)").await.unwrap();
    let sql = "select 'shared.result_' || to_char(current_date, 'YYYYMMDD')";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

async fn count_results(tx: &mut TenantTx) -> i64 {
    sqlx::query_scalar("select count(*) from result").fetch_one(tx.connection()).await.unwrap()
}

/// Two tenants with one result each.
async fn store_with_results(database: &TestDatabase) -> (Store, Tenant, Tenant) {
    let store = database.store().await.unwrap();
    let (acme, xyz) = (tenant("acme-corp"), tenant("xyz-inc"));
    today_partition(&mut database.bare_core().await.unwrap()).await;
    for tenant in [&acme, &xyz] {
        let mut tx = store.begin(tenant).await.unwrap();
        run(&mut tx.connection(), &insert_result(tenant, "result")).await.unwrap();
        tx.commit().await.unwrap();
    }
    (store, acme, xyz)
}

#[tokio::test]
async fn every_table_of_tenants_is_locked_and_no_partition_is_granted() {
    let database = TestDatabase::start().await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    today_partition(&mut superuser).await;
    assert_eq!(open_tables(&mut superuser).await, Vec::<String>::new());
    assert_eq!(granted_partitions(&mut superuser).await, Vec::<String>::new());
    let tables = tenant_tables(&mut superuser).await;
    for expected in ["check_state", "dead_letter", "ingest_count", "poller", "poller_seen", "result", "site"] {
        assert!(tables.iter().any(|table| table == expected), "{expected} in {tables:?}");
    }
}

#[tokio::test]
async fn control_a_lock_that_is_taken_away_is_missed() {
    let database = TestDatabase::start().await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    let partition = today_partition(&mut superuser).await;
    let locks = [
        (
            "alter table shared.site no force row level security",
            "site",
            "alter table shared.site force row level security",
        ),
        (
            "alter table shared.check_state disable row level security",
            "check_state",
            "alter table shared.check_state enable row level security",
        ),
        ("drop policy tenant on shared.dead_letter", "dead_letter", "select 1"),
        (
            "create policy wide on shared.poller using (true) with check (true)",
            "poller",
            "drop policy wide on shared.poller",
        ),
    ];
    for (take_away, table, put_back) in locks {
        let before = open_tables(&mut superuser).await.len();
        run(&mut superuser, take_away).await.unwrap();
        let open = open_tables(&mut superuser).await;
        assert!(open.len() == before + 1 && open.iter().any(|line| line.contains(table)), "{take_away}: {open:?}");
        run(&mut superuser, put_back).await.unwrap();
    }
    run(&mut superuser, &format!("grant select on {partition} to bulkhead_core")).await.unwrap();
    assert_eq!(granted_partitions(&mut superuser).await.len(), 1);
}

/// Tables that core has no right at.
const NOT_CORES: [&str; 2] = ["run_order", "sealed_secret"];

#[tokio::test]
async fn without_a_tenant_every_table_is_an_error() {
    let database = TestDatabase::start().await.unwrap();
    let (_, acme, _) = store_with_results(&database).await;
    let tables = tenant_tables(&mut database.superuser().await.unwrap()).await;
    assert!(tables.len() >= 7, "{tables:?}");
    let mut core = database.bare_core().await.unwrap();
    let expected = |table: &String, code| if NOT_CORES.contains(&&**table) { "42501" } else { code };
    for table in &tables {
        // 42704: the setting was never made in this session.
        let code = expected(table, "42704");
        assert_eq!(refusal(&mut core, &format!("select * from shared.{table}")).await, code, "{table}");
    }
    // 22P02: it was made once, and is empty after that transaction.
    let mut used = core.begin().await.unwrap();
    let setting = format!("select set_config('app.tenant_id', '{}', true)", acme.id.as_uuid());
    run(&mut used, &setting).await.unwrap();
    used.commit().await.unwrap();
    for table in &tables {
        let code = expected(table, "22P02");
        assert_eq!(refusal(&mut core, &format!("select * from shared.{table}")).await, code, "{table}");
    }
    assert_eq!(refusal(&mut core, &insert_result(&acme, "shared.result")).await, "22P02");
}

#[tokio::test]
async fn a_tenant_sees_and_writes_its_own_rows_only() {
    let database = TestDatabase::start().await.unwrap();
    let (store, acme, xyz) = store_with_results(&database).await;
    let mut tx = store.begin(&acme).await.unwrap();
    assert_eq!(count_results(&mut tx).await, 1);
    let foreign = format!("update result set outcome = 'fail' where tenant_id = '{}'", xyz.id.as_uuid());
    assert_eq!(run(&mut tx.connection(), &foreign).await.unwrap(), 0);
    // 42501: the new row violates the policy.
    let insert = insert_result(&xyz, "result").replace("'web'", "'planted'");
    assert_eq!(refusal(&mut tx.connection(), &insert).await, "42501");
    drop(tx);
    let mut tx = store.begin(&acme).await.unwrap();
    let give_away = format!("update result set tenant_id = '{}'", xyz.id.as_uuid());
    assert_eq!(refusal(&mut tx.connection(), &give_away).await, "42501");
    drop(tx);
    let mut tx = store.begin(&acme).await.unwrap();
    tx.switch_to(&xyz).await.unwrap();
    let owners: Vec<uuid::Uuid> =
        sqlx::query_scalar("select tenant_id from result").fetch_all(tx.connection()).await.unwrap();
    assert_eq!(owners, [xyz.id.as_uuid()], "one tenant at a time");
}

#[tokio::test]
async fn a_partition_is_closed_to_who_names_it() {
    let database = TestDatabase::start().await.unwrap();
    let (store, acme, _) = store_with_results(&database).await;
    let partition = today_partition(&mut database.bare_core().await.unwrap()).await;
    let mut tx = store.begin(&acme).await.unwrap();
    assert_eq!(refusal(&mut tx.connection(), &format!("select * from {partition}")).await, "42501");
    drop(tx);
    let mut tx = store.begin(&acme).await.unwrap();
    assert_eq!(refusal(&mut tx.connection(), &insert_result(&acme, &partition)).await, "42501");
    drop(tx);
    // Even the owner, for whom grants do not count, sees nothing in a partition.
    let mut owner = PgConnection::connect(&database.provision_url()).await.unwrap();
    run(&mut owner, "set role bulkhead_owner").await.unwrap();
    let seen: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {partition}")))
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert_eq!(seen, 0);
}

#[tokio::test]
async fn core_can_neither_change_the_schema_nor_delete_nor_provision() {
    let database = TestDatabase::start().await.unwrap();
    let (store, acme, _) = store_with_results(&database).await;
    for sql in [
        "drop table result",
        "alter table result disable row level security",
        "drop policy tenant on result",
        "create policy wide on result using (true)",
        "delete from result",
        "delete from dead_letter",
        "truncate result",
        "insert into site (tenant_id, name) values (gen_random_uuid(), 'x')",
        "update poller set batch_key = 'x'",
        "update platform.tenant set plan = 'enterprise'",
        "insert into platform.platform_account (account_key, name) values ('A', 'x')",
        "create table shared.mine (x int)",
        "create table public.mine (x int)",
        "create schema mine",
        "set local role bulkhead_owner",
        "set local role bulkhead_provision",
    ] {
        let mut tx = store.begin(&acme).await.unwrap();
        assert_eq!(refusal(&mut tx.connection(), sql).await, "42501", "{sql}");
    }
    let mut tx = store.begin(&acme).await.unwrap();
    let temporary = run(&mut tx.connection(), "create temporary table mine (x int)").await;
    assert!(temporary.is_err(), "no temporary tables: they are not of this tenant only");
}

#[tokio::test]
async fn a_privileged_role_is_refused_at_the_door() {
    let database = TestDatabase::start().await.unwrap();
    let what = |refused: Result<Store, StoreError>| match refused {
        Err(StoreError::Privileged { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(Store::connect(&database.superuser_url(), Service::Core, ONE).await), "a superuser");
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "alter role bulkhead_core bypassrls").await.unwrap();
    assert_eq!(what(Store::connect(&database.core_url(), Service::Core, ONE).await), "exempt from row security");
    run(&mut superuser, "alter role bulkhead_core nobypassrls").await.unwrap();
    run(&mut superuser, "grant bulkhead_owner to bulkhead_core").await.unwrap();
    assert_eq!(
        what(Store::connect(&database.core_url(), Service::Core, ONE).await),
        "a member of the role that owns the tables"
    );
    run(&mut superuser, "revoke bulkhead_owner from bulkhead_core").await.unwrap();
    run(&mut superuser, "alter table shared.site owner to bulkhead_core").await.unwrap();
    assert_eq!(what(Store::connect(&database.core_url(), Service::Core, ONE).await), "an owner of tables");
}

/// A service does not start on a database whose locks are open, and says which: each lock is a control of the start.
#[tokio::test]
async fn a_service_refuses_a_database_with_an_open_lock() {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let acme = enterprise("acme-corp");
    provisioning.put_tenant(&account_key(), &acme).await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    let partition = today_partition(&mut superuser).await;
    // The list of changes is written under row security, whoever changes something.
    let rows = format!(
        "select set_config('app.tenant_id', '{0}', false); insert into shared.site (tenant_id, name) values ('{0}', 'oslo')",
        acme.id.as_uuid()
    );
    run(&mut superuser, &rows).await.unwrap();
    database.store().await.unwrap();
    let policy =
        "create policy tenant on shared.site using (tenant_id = (select current_setting('app.tenant_id')::uuid))
                  with check (tenant_id = (select current_setting('app.tenant_id')::uuid))";
    let locks: [(&str, &str, &str); 10] = [
        (
            "alter table shared.site disable row level security",
            "alter table shared.site enable row level security",
            "disabled",
        ),
        (
            "alter table PARTITION no force row level security",
            "alter table PARTITION force row level security",
            "forced",
        ),
        ("grant select on PARTITION to bulkhead_core", "revoke select on PARTITION from bulkhead_core", "granted"),
        ("create policy wide on PARTITION using (true)", "drop policy wide on PARTITION", "policy of its own"),
        ("drop policy tenant on shared.site", policy, "its policy"),
        ("create policy wide on shared.site using (true)", "drop policy wide on shared.site", "its policy"),
        (
            "drop policy tenant on shared.site; create policy tenant on shared.site
             using (tenant_id = (select current_setting('app.tenant_id')::uuid) or true)
             with check (tenant_id = (select current_setting('app.tenant_id')::uuid) or true)",
            "drop policy tenant on shared.site; POLICY",
            "its policy",
        ),
        (
            "grant select on tenant_acme_corp.result to bulkhead_core",
            "revoke select on tenant_acme_corp.result from bulkhead_core",
            "not the tenant's",
        ),
        (
            "alter table tenant_acme_corp.result no force row level security",
            "alter table tenant_acme_corp.result force row level security",
            "tenant_acme_corp.result",
        ),
        (
            "alter role tenant_acme_corp_core bypassrls",
            "alter role tenant_acme_corp_core nobypassrls",
            "tenant_acme_corp_core",
        ),
    ];
    for (open, close, expected) in locks {
        let filled = |sql: &str| sql.replace("PARTITION", &partition).replace("POLICY", policy);
        run(&mut superuser, &filled(open)).await.unwrap();
        let refused = Store::connect(&database.core_url(), Service::Core, ONE).await.expect_err(open);
        assert!(refused.to_string().contains(expected), "{open}: {refused}");
        run(&mut superuser, &filled(close)).await.unwrap();
        Store::connect(&database.core_url(), Service::Core, ONE).await.expect(close);
    }
}

#[tokio::test]
async fn provisioning_lives_under_row_security_too() {
    let database = TestDatabase::start().await.unwrap();
    let (provisioning, acme, xyz) = (database.provisioning().await.unwrap(), tenant("acme-corp"), tenant("xyz-inc"));
    for tenant in [&acme, &xyz] {
        provisioning.put_tenant(&account_key(), tenant).await.unwrap();
        provisioning.put_site(tenant, &"oslo".parse().unwrap()).await.unwrap();
        let poller = "p1".parse().unwrap();
        provisioning.put_poller(tenant, &"oslo".parse().unwrap(), &poller, &batch_key()).await.unwrap();
    }
    let mut owner = PgConnection::connect(&database.provision_url()).await.unwrap();
    // The login role itself inherits nothing.
    assert_eq!(refusal(&mut owner, "select * from shared.site").await, "42501");
    run(&mut owner, "set role bulkhead_owner").await.unwrap();
    assert_eq!(refusal(&mut owner, "select * from shared.site").await, "42704");
    let store = database.store().await.unwrap();
    let mut tx = store.begin(&acme).await.unwrap();
    let sites: i64 = sqlx::query_scalar("select count(*) from site").fetch_one(tx.connection()).await.unwrap();
    assert_eq!(sites, 1);
}

/// What was begun and never heard of does not wait for whoever comes next, and nobody is warned each time.
#[tokio::test]
async fn a_transaction_that_was_left_open_ends_with_its_turn() {
    let database = TestDatabase::start().await.unwrap();
    let store = Store::connect(&database.core_url(), Service::Core, ONE).await.unwrap();
    let mut left = store.platform().await.unwrap();
    // As a cancelled begin leaves it: the pool knows of no transaction.
    run(&mut left.connection(), "begin; select pg_advisory_xact_lock_shared(7)").await.unwrap();
    drop(left);
    let mut next = store.platform().await.unwrap();
    let held = "select exists (select from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";
    let held: bool = sqlx::query_scalar(held).fetch_one(next.connection()).await.unwrap();
    assert!(!held, "its lock is still held");
}
