//! What tests say to a database themselves.

use bulkhead_bus::Tenant;
use sqlx::{AssertSqlSafe, PgConnection};

/// Says `sql`, which may be several statements, and returns how many rows the last was about.
///
/// # Errors
/// What the database answers.
pub async fn run(connection: &mut PgConnection, sql: &str) -> Result<u64, sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|done| done.rows_affected())
}

/// The code with which the database refuses `sql`.
///
/// # Panics
/// When it does not refuse.
pub async fn refusal(connection: &mut PgConnection, sql: &str) -> String {
    let refused = run(connection, sql).await.expect_err(sql);
    refused.as_database_error().and_then(|error| error.code()).expect("an error of the database").into_owned()
}

/// The number that `sql` asks for.
///
/// # Panics
/// When there is none.
pub async fn count(connection: &mut PgConnection, sql: &str) -> i64 {
    let counted = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await;
    counted.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Stores a result of `tenant` in `table`, which a transaction of the tenant calls `result`.
#[must_use]
pub fn insert_result(tenant: &Tenant, table: &str) -> String {
    format!(
        "insert into {table} (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation, island,
                              attested)
         values ('{}', 'web', date_trunc('day', now()), 'oslo', 'p1', 'tcp', 'ok', now(), 0, false, true)",
        tenant.id.as_uuid()
    )
}

/// One row of `tenant` in each table of checks and members, in `schema`; the check is called `name`. Its session names the tenant
/// from there on: the list of changes is written under row security.
#[must_use]
pub fn insert_checks(tenant: &Tenant, schema: &str, name: &str) -> String {
    let id = tenant.id.as_uuid();
    format!(
        r#"select set_config('app.tenant_id', '{id}', false);
           insert into {schema}.check_definition (tenant_id, name, kind, definition)
           values ('{id}', '{name}', 'tcp', '{{"target": "127.0.0.1:80", "note": "a,\"b\""}}');
           insert into {schema}.assignment (tenant_id, check_name, vantage, generation, poller, definition, revision, interval_ms, from_ms)
           values ('{id}', '{name}', 'oslo', 1, 'p1', '{{}}', 1, 10000, 0);
           insert into {schema}.dispatch_state (tenant_id, generation, epoch, lease_revision, weights)
           values ('{id}', 1, 1, 1, '{{"oslo/p1": 8}}') on conflict do nothing;
           insert into {schema}.run_order (tenant_id, id, site, poller, definition, asked_by, deadline)
           values ('{id}', md5('{name}')::uuid, 'oslo', 'p1', '{{}}', 'ann', now());
           insert into {schema}.sealed_secret (tenant_id, name, site, poller, sealing_key, sealed, set_by)
           values ('{id}', '{name}', 'oslo', 'p1', 'key', 'text', 'ann');
           insert into {schema}.member_event (tenant_id, site, name, revision, event)
           values ('{id}', 'oslo', '{name}', 1, 'joined')"#
    )
}
