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
