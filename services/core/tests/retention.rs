//! What plans keep no longer goes, and nothing else: in the shared tables, where one tenant keeps more than another, and in a
//! schema of one tenant.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bulkhead_bus::Tenant;
use bulkhead_core::retention::{Removed, see_to};
use bulkhead_runtime::now_ms;
use bulkhead_store::{Provisioning, Store};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, tenant};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// Days of the results that there are.
const DAYS: i64 = 60;

struct World {
    database: TestDatabase,
    provisioning: Provisioning,
    store: Store,
    /// Keeps 7 days, in the shared tables.
    free: Tenant,
    /// Keeps 30 days, in the shared tables.
    pro: Tenant,
    /// Keeps 30 days, in a schema of its own.
    apart: Tenant,
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

/// Each tenant has a result at noon of every day, and a dead letter.
async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let named =
        |slug: &str, plan: &str, retention_days| Tenant { plan: plan.to_owned(), retention_days, ..tenant(slug) };
    let (free, pro, apart) =
        (named("free-inc", "free", 7), named("pro-inc", "pro", 30), named("apart-inc", "enterprise", 30));
    let mut superuser = database.superuser().await.unwrap();
    for (tenant, schema) in [(&free, "shared"), (&pro, "shared"), (&apart, "tenant_apart_inc")] {
        provisioning.put_tenant(&account_key(), tenant).await.unwrap();
        let id = tenant.id.as_uuid();
        let sql = format!(
            "select {schema}.ensure_result_partition(current_date - n) from generate_series(0, {DAYS}) n;
             insert into {schema}.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                          island, attested)
             select '{id}', 'web', (current_date - n)::timestamp at time zone 'UTC' + interval '12 hours', 'oslo', 'p1', 'tcp', 'ok',
                    now(), 0, false, true from generate_series(1, {DAYS}) n;
             insert into {schema}.dead_letter values
                 ('{id}', 'old', 0, 'signature', '', 'RESULTS', 'x', '', '', 1, now() - interval '100 days'),
                 ('{id}', 'new', 0, 'signature', '', 'RESULTS', 'x', '', '', 1, now());
             insert into {schema}.assignment (tenant_id, check_name, vantage, generation, definition, revision, interval_ms, from_ms,
                                              until_ms, ended_generation)
             values ('{id}', 'old', 'oslo', 1, '{{}}', 1, 1000, 0, 1000, 2), ('{id}', 'of-now', 'oslo', 1, '{{}}', 1, 1000, 0, null, null),
                    ('{id}', 'new', 'oslo', 1, '{{}}', 1, 1000, 0, extract(epoch from now()) * 1000, 2);
             insert into {schema}.dispatch_state (tenant_id, generation, epoch, lease_revision, weights)
             values ('{id}', 2, 1, 0, '{{}}');
             insert into {schema}.run_order (tenant_id, id, site, poller, definition, asked_by, deadline, done_at)
             select '{id}', gen_random_uuid(), name, 'p1', '{{}}', 'ann', now() - age, null
             from (values ('old', interval '100 days'), ('new', interval '0')) v (name, age);
             insert into {schema}.member_event (tenant_id, site, name, revision, event, at)
             select '{id}', 'oslo', name, 1, 'lost', now() - age
             from (values ('old', interval '100 days'), ('new', interval '0')) v (name, age)"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut superuser).await.unwrap();
    }
    let store = database.store().await.unwrap();
    World { database, provisioning, store, free, pro, apart }
}

impl World {
    async fn see_to(&self, tenant: &Tenant) -> Removed {
        see_to(&self.store, tenant, false, now_ms()).await.unwrap()
    }

    /// Results of a tenant, and the age in days of its oldest.
    async fn kept(&self, tenant: &Tenant) -> (i64, i64) {
        let mut tx = self.store.begin(tenant).await.unwrap();
        let sql =
            "select count(*), coalesce(floor(extract(epoch from now() - min(slot)) / 86400), 0)::int8 from result";
        sqlx::query_as(sql).fetch_one(tx.connection()).await.unwrap()
    }
}

#[tokio::test]
async fn each_tenant_keeps_what_its_plan_keeps() {
    let world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    let removed = world.see_to(&world.free).await;
    // What nobody of the shared tables keeps: days that end more than 31 days ago.
    assert!((29..=31).contains(&removed.partitions), "{removed:?}");
    let (rows, oldest) = world.kept(&world.free).await;
    assert!((6..=7).contains(&rows) && oldest <= 7, "{rows} rows, {oldest} days old");
    let (rows, oldest) = world.kept(&world.pro).await;
    assert!((30..=32).contains(&rows) && oldest >= 29, "pro keeps its own: {rows} rows, {oldest} days old");
    assert_eq!(world.kept(&world.apart).await.0, DAYS, "and whoever is apart is not touched");
    world.see_to(&world.pro).await;
    assert!((29..=30).contains(&world.kept(&world.pro).await.0));

    let removed = world.see_to(&world.apart).await;
    assert!(removed.partitions <= 1, "months: {removed:?}");
    let (rows, oldest) = world.kept(&world.apart).await;
    assert!((29..=30).contains(&rows) && oldest <= 30, "{rows} rows, {oldest} days old");
    for schema in ["shared", "tenant_apart_inc"] {
        let letters = format!("select count(*) from {schema}.dead_letter where encode(digest, 'escape') = 'old'");
        assert_eq!(number(&mut superuser, &letters).await, 0, "{schema}");
        let letters = format!("select count(*) from {schema}.dead_letter");
        assert_eq!(number(&mut superuser, &letters).await, if schema == "shared" { 2 } else { 1 }, "{schema}");
    }
    for (table, column, left) in
        [("assignment", "check_name", "new,of-now"), ("run_order", "site", "new"), ("member_event", "name", "new")]
    {
        for (tenant, schema) in [(&world.free, "shared"), (&world.pro, "shared"), (&world.apart, "tenant_apart_inc")] {
            let sql = format!(
                "select coalesce(string_agg({column}, ',' order by {column}), '') from {schema}.{table} where tenant_id = '{}'",
                tenant.id.as_uuid()
            );
            let kept: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut superuser).await.unwrap();
            assert_eq!(kept, left, "{table} of {}", tenant.slug);
            let forgotten =
                format!("select forgotten from {schema}.dispatch_state where tenant_id = '{}'", tenant.id.as_uuid());
            assert_eq!(number(&mut superuser, &forgotten).await, 2, "whoever is older is told everything anew");
        }
    }
    let ahead = "select count(*) from pg_inherits i join pg_class c on c.oid = i.inhrelid
                 where i.inhparent = 'shared.result'::regclass and c.relname > 'result_' || to_char(current_date, 'YYYYMMDD')";
    assert_eq!(number(&mut superuser, ahead).await, 7, "a week ahead");
    let again = world.see_to(&world.free).await;
    assert_eq!((again.partitions, again.rows), (0, 0), "once more does no more");
}

#[tokio::test]
async fn a_longer_plan_keeps_partitions_that_a_shorter_one_does_not() {
    let world = world().await;
    let longer = Tenant { retention_days: 3_000, ..world.pro.clone() };
    let mut superuser = world.database.superuser().await.unwrap();
    let key = format!("select account_key from platform.tenant where slug = '{}'", longer.slug);
    let key: String = sqlx::query_scalar(AssertSqlSafe(key)).fetch_one(&mut superuser).await.unwrap();
    world.provisioning.put_tenant(&key.parse().unwrap(), &longer).await.unwrap();
    assert_eq!(world.see_to(&world.free).await.partitions, 0);
    assert_eq!(world.kept(&longer).await.0, DAYS);
    assert!(world.kept(&world.free).await.0 <= 7);
}

/// A move compares both places: what is removed from one of them meanwhile would be missed.
#[tokio::test]
async fn nothing_is_removed_while_rows_are_moved() {
    let world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    let begin = format!("insert into platform.tenant_move values ('{}', 'schema')", world.free.id.as_uuid());
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut superuser).await.unwrap();
    let removed = world.see_to(&world.free).await;
    assert_eq!((removed.partitions, removed.rows), (0, 0));
    assert_eq!(world.see_to(&world.pro).await.partitions, 0, "partitions are everybody's");
    assert_eq!(world.kept(&world.free).await.0, DAYS);
    sqlx::raw_sql("delete from platform.tenant_move").execute(&mut superuser).await.unwrap();
    assert!(world.see_to(&world.free).await.partitions > 0);
}

#[tokio::test]
async fn whoever_reads_in_an_old_partition_is_not_waited_for() {
    let world = world().await;
    let mut reader = world.database.superuser().await.unwrap();
    let mut reading = reader.begin().await.unwrap();
    sqlx::query("select count(*) from shared.result").execute(&mut *reading).await.unwrap();
    // Partitions that are made do not wait for it at all, and those that should go, for half a second.
    let removed = world.see_to(&world.free).await;
    assert_eq!(removed.partitions, 0);
    assert!(removed.rows > 50, "single rows go all the same: {removed:?}");
    let removed = world.see_to(&world.pro).await;
    assert!(removed.rows >= 29, "{removed:?}");
    reading.rollback().await.unwrap();
    assert!(world.see_to(&world.free).await.partitions > 0);
}

#[tokio::test]
async fn nobody_else_may_remove_anything() {
    let world = world().await;
    let mut bare = world.database.bare_core().await.unwrap();
    // Without a tenant, and with one that is not there.
    assert!(sqlx::query("select shared.remove_old_rows(10)").execute(&mut bare).await.is_err());
    let mut tx = world.store.begin(&tenant("nobody")).await.unwrap();
    assert_eq!(number(&mut tx.connection(), "select remove_old_rows(10)").await, 0);
    drop(tx);
    // As one tenant, nothing of another's: what is too old for both goes of one.
    let mut tx = world.store.begin(&world.free).await.unwrap();
    let gone = number(&mut tx.connection(), "select remove_old_rows(1000)").await;
    tx.commit().await.unwrap();
    assert!(gone > 50 && gone + world.kept(&world.free).await.0 == DAYS, "{gone}");
    assert_eq!(world.kept(&world.pro).await.0, DAYS);
}
