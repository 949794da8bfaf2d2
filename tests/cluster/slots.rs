//! Whether a slot is missing in the database.

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::LIMIT;
use sqlx::PgPool;

/// Milliseconds since 1970, from and to.
pub(crate) type Period = (i64, i64);

/// Slots that are missing between the first and the last of each check in a period.
pub(crate) async fn gaps(witness: &PgPool, (since_ms, until_ms): Period) -> anyhow::Result<i64> {
    let sql = "select coalesce(sum(expected - found), 0)::int8 from (
                   select count(*) as found,
                          (extract(epoch from max(slot) - min(slot)) / 5)::int8 + 1 as expected
                   from everywhere.result
                   where extract(epoch from slot) * 1000 between $1::float8 and $2::float8
                   group by tenant_id, check_name, vantage
               ) checks";
    sqlx::query_scalar(sql)
        .bind(since_ms as f64)
        .bind(until_ms as f64)
        .fetch_one(witness)
        .await
        .context("look for gaps")
}

pub(crate) async fn wait_until_gapless(witness: &PgPool, period: Period) -> anyhow::Result<()> {
    let waited = eventually("every slot stored", LIMIT, || async {
        match gaps(witness, period).await.map_err(|error| format!("{error:#}"))? {
            0 => Ok(()),
            missing => Err(format!("{missing} slots are missing")),
        }
    });
    waited.await.context("results are missing")
}
