//! UNNEST alone: the same rows into a table of the same shape, and nothing else.

use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_bus::payload::Measured;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::load::rows;

const ROWS_PER_STATEMENT: usize = 5_000;
const LASTS: Duration = Duration::from_secs(3);

const TABLE: &str = "
create schema if not exists bench;
create table if not exists bench.result (like shared.result including defaults,
    primary key (tenant_id, check_name, slot, vantage) include (outcome, latency_us));
truncate bench.result";

const INSERT: &str = "
insert into bench.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, latency_us, started_at,
                          generation, island, attested)
select $1, i.check_name, i.slot, 'site', 'p1', i.kind, i.outcome, i.latency_us, i.started_at, 0, false, true
from unnest($2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::int8[], $7::timestamptz[])
     as i (check_name, slot, kind, outcome, latency_us, started_at)
on conflict do nothing";

fn utc(ms: i64) -> OffsetDateTime {
    bulkhead_runtime::utc_of_ms(ms).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

async fn insert(pool: &PgPool, tenant: Uuid, rows: &[Measured]) -> anyhow::Result<()> {
    sqlx::query(INSERT)
        .bind(tenant)
        .bind(rows.iter().map(|row| row.check.to_string()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| utc(row.slot_ms)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.kind.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.outcome.as_str().to_owned()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.latency_us.map(i64::from)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| utc(row.started_ms)).collect::<Vec<_>>())
        .execute(pool)
        .await
        .context("insert by UNNEST")?;
    Ok(())
}

/// Rows a second of UNNEST alone: batches of 5,000 of one tenant, each in a transaction of its own, on one connection.
pub(super) async fn unnest(pool: &PgPool, from_ms: i64) -> anyhow::Result<f64> {
    sqlx::raw_sql(TABLE).execute(pool).await.context("make a table")?;
    let batch = rows(ROWS_PER_STATEMENT, from_ms)?;
    insert(pool, Uuid::new_v4(), &batch).await?;
    let began = Instant::now();
    let mut inserted = 0_usize;
    while began.elapsed() < LASTS {
        insert(pool, Uuid::new_v4(), &batch).await?;
        inserted += batch.len();
    }
    Ok(inserted as f64 / began.elapsed().as_secs_f64())
}
