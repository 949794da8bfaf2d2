//! All SQL of core. Every function takes a transaction that has named its tenant.

use std::collections::BTreeSet;

use bulkhead_bus::header::Sequence;
use bulkhead_bus::payload::{CheckKind, Outcome, PollerRow, Query, Reason, ResultRow, StateRow};
use bulkhead_bus::{BatchKey, PollerName, SiteName, Tenant, TenantSlug};
use bulkhead_store::{Store, StoreError, TenantTx};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use time::{Date, OffsetDateTime};

use crate::admission::BatchKeys;
use crate::precedence::Candidate;

/// Dead letters of one tenant that are kept whole; beyond that they are only counted.
pub const DEAD_LETTERS_MAX: i64 = 10_000;

fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { action, source }
}

fn utc(unix_ms: i64) -> OffsetDateTime {
    // Rows were checked to lie near now; anything else becomes a date that no partition takes.
    bulkhead_runtime::utc_of_ms(unix_ms).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn unix_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// What became of the rows of one statement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    pub inserted: u64,
    pub replaced: u64,
}

/// The days that rows fall on.
#[must_use]
pub fn days_of(rows: &[Candidate]) -> BTreeSet<Date> {
    rows.iter().map(|row| utc(row.measured.slot_ms).date()).collect()
}

/// Makes the partition of a day unless it is there.
///
/// # Errors
/// When the day is outside what may be kept.
pub async fn ensure_partition(tx: &mut TenantTx, day: Date) -> Result<(), StoreError> {
    let made = sqlx::query("select ensure_result_partition($1)").bind(day).execute(tx.connection()).await;
    made.map(|_| ()).map_err(failed("make a partition"))
}

/// History and current state in one statement. A row that is there is replaced only by a better one
/// ([`crate::precedence::beats`]); a late row never moves the state back.
const WRITE_RESULTS: &str = "
with incoming as (
    select * from unnest(
        $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::int8[],
        $10::timestamptz[], $11::int8[], $12::bool[], $13::bool[], $14::jsonb[]
    ) as i (check_name, slot, vantage, poller, kind, outcome, reason, latency_us,
            started_at, generation, island, attested, detail)
), stored as (
    insert into result as r
        (tenant_id, check_name, slot, vantage, poller, kind, outcome, reason, latency_us,
         started_at, generation, island, attested, detail)
    select $1, i.* from incoming i
    on conflict (tenant_id, check_name, slot, vantage) do update set
        poller = excluded.poller, kind = excluded.kind, outcome = excluded.outcome, reason = excluded.reason,
        latency_us = excluded.latency_us, started_at = excluded.started_at, generation = excluded.generation,
        island = excluded.island, attested = excluded.attested, detail = excluded.detail,
        received_at = now(), revision = r.revision + 1
    where not excluded.island
      and case when (r.outcome = 'missed') = (excluded.outcome = 'missed')
               then excluded.generation > r.generation
               else r.outcome = 'missed' end
    returning check_name, slot, vantage, poller, kind, outcome, reason, latency_us, revision
), newest as (
    select distinct on (check_name, vantage) * from stored order by check_name, vantage, slot desc
), state as (
    insert into check_state as s
        (tenant_id, check_name, vantage, poller, kind, slot, outcome, reason, latency_us, since)
    select $1, check_name, vantage, poller, kind, slot, outcome, reason, latency_us, slot from newest
    on conflict (tenant_id, check_name, vantage) do update set
        poller = excluded.poller, kind = excluded.kind, slot = excluded.slot, outcome = excluded.outcome,
        reason = excluded.reason, latency_us = excluded.latency_us,
        since = case when s.outcome = excluded.outcome then s.since else excluded.since end
    where s.slot <= excluded.slot
)
select count(*) filter (where revision = 0), count(*) filter (where revision > 0) from stored";

/// Stores rows that were merged before.
///
/// # Errors
/// When the database refuses.
pub async fn write_results(tx: &mut TenantTx, tenant: &Tenant, rows: &[Candidate]) -> Result<Written, StoreError> {
    if rows.is_empty() {
        return Ok(Written::default());
    }
    let text = |of: fn(&Candidate) -> &str| rows.iter().map(|row| of(row).to_owned()).collect::<Vec<_>>();
    let reasons: Vec<Option<&str>> = rows.iter().map(|row| row.measured.reason.map(Reason::as_str)).collect();
    let latencies: Vec<Option<i64>> = rows.iter().map(|row| row.measured.latency_us.map(i64::from)).collect();
    let details: Vec<Option<Json<&std::collections::BTreeMap<String, Value>>>> =
        rows.iter().map(|row| (!row.measured.detail.is_empty()).then_some(Json(&row.measured.detail))).collect();
    let row = sqlx::query(WRITE_RESULTS)
        .bind(tenant.id.as_uuid())
        .bind(text(|row| row.measured.check.as_str()))
        .bind(rows.iter().map(|row| utc(row.measured.slot_ms)).collect::<Vec<_>>())
        .bind(text(|row| &row.vantage))
        .bind(text(|row| &row.poller))
        .bind(text(|row| row.measured.kind.as_str()))
        .bind(text(|row| row.measured.outcome.as_str()))
        .bind(reasons)
        .bind(latencies)
        .bind(rows.iter().map(|row| utc(row.measured.started_ms)).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.measured.generation).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.measured.island).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.attested).collect::<Vec<_>>())
        .bind(details)
        .fetch_one(tx.connection())
        .await
        .map_err(failed("write results"))?;
    let count = |index| u64::try_from(row.get::<i64, _>(index)).unwrap_or(0);
    Ok(Written { inserted: count(0), replaced: count(1) })
}

/// A message or row that was not stored.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    pub digest: Vec<u8>,
    /// The row in the batch; -1 for the whole message.
    pub row_index: i32,
    pub reason: &'static str,
    pub detail: String,
    pub stream: &'static str,
    pub subject: String,
    pub headers: String,
    pub payload: Vec<u8>,
    pub delivered: i64,
}

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    New,
    /// It was kept at an earlier delivery.
    Already,
    /// The tenant has its fill: it is only counted.
    Counted,
}

/// # Errors
/// When the database refuses.
pub async fn put_dead_letter(tx: &mut TenantTx, tenant: &Tenant, letter: &DeadLetter) -> Result<Kept, StoreError> {
    let id = tenant.id.as_uuid();
    let sql = "select count(*) from dead_letter where tenant_id = $1";
    let count: i64 =
        sqlx::query_scalar(sql).bind(id).fetch_one(tx.connection()).await.map_err(failed("count dead letters"))?;
    if count >= DEAD_LETTERS_MAX {
        return Ok(Kept::Counted);
    }
    let sql = "insert into dead_letter
                 (tenant_id, digest, row_index, reason, detail, stream, subject, headers, payload, delivered)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict do nothing";
    let put = sqlx::query(sql)
        .bind(id)
        .bind(&letter.digest)
        .bind(letter.row_index)
        .bind(letter.reason)
        .bind(storable(&letter.detail))
        .bind(letter.stream)
        .bind(storable(&letter.subject))
        .bind(storable(&letter.headers))
        .bind(&letter.payload)
        .bind(letter.delivered)
        .execute(tx.connection())
        .await
        .map_err(failed("write dead letter"))?;
    Ok(if put.rows_affected() == 1 { Kept::New } else { Kept::Already })
}

/// Text without what PostgreSQL cannot store: a dead letter must never fail for its own content.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// # Errors
/// When the database refuses.
pub async fn put_unclaimed(store: &Store, account: &str, letter: &DeadLetter) -> Result<(), StoreError> {
    let mut connection = store.platform().await?;
    let sql = "insert into platform.unclaimed_dead_letter (digest, account_key, reason, subject, headers, payload)
               values ($1, $2, $3, $4, $5, $6) on conflict do nothing";
    let put = sqlx::query(sql)
        .bind(&letter.digest)
        .bind(account)
        .bind(letter.reason)
        .bind(storable(&letter.subject))
        .bind(storable(&letter.headers))
        .bind(&letter.payload)
        .execute(&mut *connection)
        .await;
    put.map(|_| ()).map_err(failed("write unclaimed dead letter"))
}

/// What one transaction did for a tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub batches: u64,
    pub inserted: u64,
    pub replaced: u64,
    pub duplicates: u64,
    pub dead_letters: u64,
}

/// # Errors
/// When the database refuses.
pub async fn add_counts(tx: &mut TenantTx, tenant: &Tenant, counts: Counts) -> Result<(), StoreError> {
    let sql = "insert into ingest_count as c (tenant_id, batches, results, replaced, duplicates, dead_letters)
               values ($1, $2, $3, $4, $5, $6)
               on conflict (tenant_id) do update set
                 batches = c.batches + excluded.batches, results = c.results + excluded.results,
                 replaced = c.replaced + excluded.replaced, duplicates = c.duplicates + excluded.duplicates,
                 dead_letters = c.dead_letters + excluded.dead_letters";
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let added = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(number(counts.batches))
        .bind(number(counts.inserted))
        .bind(number(counts.replaced))
        .bind(number(counts.duplicates))
        .bind(number(counts.dead_letters))
        .execute(tx.connection())
        .await;
    added.map(|_| ()).map_err(failed("count"))
}

/// Notes that a batch of a poller was stored now.
///
/// # Errors
/// When the database refuses.
pub async fn mark_seen(
    tx: &mut TenantTx,
    tenant: &Tenant,
    (site, poller): (&SiteName, &PollerName),
    sequence: Option<Sequence>,
) -> Result<(), StoreError> {
    let sql = "insert into poller_seen as p
                 (tenant_id, site, poller, last_batch_at, sequence_boot, sequence_number)
               values ($1, $2, $3, now(), $4, $5)
               on conflict (tenant_id, site, poller) do update set
                 last_batch_at = now(),
                 sequence_boot = coalesce(excluded.sequence_boot, p.sequence_boot),
                 sequence_number = coalesce(excluded.sequence_number, p.sequence_number)";
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let marked = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(site.as_str())
        .bind(poller.as_str())
        .bind(sequence.map(|sequence| number(sequence.boot)))
        .bind(sequence.map(|sequence| number(sequence.number)))
        .execute(tx.connection())
        .await;
    marked.map(|_| ()).map_err(failed("mark a poller as seen"))
}

fn unreadable(what: &'static str) -> StoreError {
    StoreError::Sql { action: what, source: sqlx::Error::RowNotFound }
}

fn parsed<T: std::str::FromStr>(row: &PgRow, column: &'static str) -> Result<T, StoreError> {
    row.get::<&str, _>(column).parse().map_err(|_| unreadable(column))
}

/// A word of a closed set, through the same names as on the wire.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|_| unreadable("word"))
}

/// # Errors
/// When the database refuses.
pub async fn read_batch_keys(tx: &mut TenantTx, tenant: &Tenant) -> Result<BatchKeys, StoreError> {
    let sql = "select site, name, batch_key from poller where tenant_id = $1 and state = 'active'";
    let rows = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
    let rows = rows.map_err(failed("read batch keys"))?;
    let key = |row: &PgRow| {
        let key: BatchKey = parsed(row, "batch_key")?;
        Ok(((parsed(row, "site")?, parsed(row, "name")?), key))
    };
    rows.iter().map(key).collect()
}

/// # Errors
/// When the database refuses.
pub async fn list_pollers(tx: &mut TenantTx, tenant: &Tenant) -> Result<Vec<PollerRow>, StoreError> {
    let sql = "select p.site, p.name, p.batch_key, s.last_batch_at
               from poller p left join poller_seen s on s.tenant_id = p.tenant_id and s.site = p.site and s.poller = p.name
               where p.tenant_id = $1 order by p.site, p.name";
    let rows = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
    let rows = rows.map_err(failed("list pollers"))?;
    let poller = |row: &PgRow| {
        Ok(PollerRow {
            tenant: tenant.slug.clone(),
            site: parsed(row, "site")?,
            poller: parsed(row, "name")?,
            last_batch_ms: row.get::<Option<OffsetDateTime>, _>("last_batch_at").map(unix_ms),
            batch_key: row.get("batch_key"),
        })
    };
    rows.iter().map(poller).collect()
}

fn site_filter(asked: &Query) -> Option<&str> {
    asked.site.as_ref().map(SiteName::as_str)
}

/// The newest results, newest first. Each check's own are taken from the key, so that no index by time is needed.
///
/// # Errors
/// When the database refuses.
pub async fn list_results(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    since_ms: i64,
    limit: u32,
) -> Result<Vec<ResultRow>, StoreError> {
    let sql = "select r.* from check_state s
               cross join lateral (
                   select check_name, slot, vantage, poller, kind, outcome, reason, latency_us, attested, detail
                   from result r
                   where r.tenant_id = $1 and r.check_name = s.check_name and r.vantage = s.vantage and r.slot >= $2
                   order by r.slot desc limit $3
               ) r
               where s.tenant_id = $1 and ($4::text is null or s.vantage = $4) and ($5::text is null or s.check_name = $5)
               order by r.slot desc, r.check_name, r.vantage limit $3";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(utc(since_ms))
        .bind(i64::from(limit))
        .bind(site_filter(asked))
        .bind(asked.check.as_ref().map(bulkhead_bus::CheckName::as_str))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list results"))?;
    rows.iter().map(|row| result_row(row, &tenant.slug)).collect()
}

/// What history and state have in common.
struct Shown {
    kind: CheckKind,
    outcome: Outcome,
    reason: Option<Reason>,
    latency_us: Option<u32>,
}

fn shown(row: &PgRow) -> Result<Shown, StoreError> {
    let reason: Option<&str> = row.get("reason");
    Ok(Shown {
        kind: word(row.get("kind"))?,
        outcome: word(row.get("outcome"))?,
        reason: reason.map(word).transpose()?,
        latency_us: row.get::<Option<i64>, _>("latency_us").and_then(|us| u32::try_from(us).ok()),
    })
}

fn result_row(row: &PgRow, slug: &TenantSlug) -> Result<ResultRow, StoreError> {
    let Shown { kind, outcome, reason, latency_us } = shown(row)?;
    Ok(ResultRow {
        tenant: slug.clone(),
        site: parsed(row, "vantage")?,
        poller: parsed(row, "poller")?,
        check: parsed(row, "check_name")?,
        kind,
        slot_ms: unix_ms(row.get("slot")),
        outcome,
        reason,
        latency_us,
        attested: row.get("attested"),
        detail: row.get("detail"),
    })
}

/// # Errors
/// When the database refuses.
pub async fn list_states(tx: &mut TenantTx, tenant: &Tenant, asked: &Query) -> Result<Vec<StateRow>, StoreError> {
    let sql = "select check_name, vantage, poller, kind, slot, outcome, reason, latency_us, since from check_state
               where tenant_id = $1 and ($2::text is null or vantage = $2) and ($3::text is null or check_name = $3)
               order by vantage, check_name";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(site_filter(asked))
        .bind(asked.check.as_ref().map(bulkhead_bus::CheckName::as_str))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list states"))?;
    let state = |row: &PgRow| {
        let Shown { kind, outcome, reason, latency_us } = shown(row)?;
        Ok(StateRow {
            tenant: tenant.slug.clone(),
            site: parsed(row, "vantage")?,
            poller: parsed(row, "poller")?,
            check: parsed(row, "check_name")?,
            kind,
            outcome,
            reason,
            latency_us,
            slot_ms: unix_ms(row.get("slot")),
            since_ms: unix_ms(row.get("since")),
        })
    };
    rows.iter().map(state).collect()
}

/// What one look at a tenant shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Glance {
    pub sites: u32,
    pub pollers: u32,
    pub checks_ok: u32,
    pub checks_not_ok: u32,
    pub results: u64,
    pub dead_letters: u64,
    pub newest_slot_ms: Option<i64>,
}

/// # Errors
/// When the database refuses.
pub async fn glance_at(tx: &mut TenantTx, tenant: &Tenant) -> Result<Glance, StoreError> {
    let sql = "select (select count(*) from site where tenant_id = $1) as sites,
                      (select count(*) from poller where tenant_id = $1) as pollers,
                      (select count(*) from check_state where tenant_id = $1 and outcome = 'ok') as ok,
                      (select count(*) from check_state where tenant_id = $1 and outcome <> 'ok') as not_ok,
                      (select max(slot) from check_state where tenant_id = $1) as newest,
                      coalesce((select results from ingest_count where tenant_id = $1), 0) as results,
                      coalesce((select dead_letters from ingest_count where tenant_id = $1), 0) as dead_letters";
    let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_one(tx.connection()).await;
    let row = row.map_err(failed("look at a tenant"))?;
    let count = |column| u64::try_from(row.get::<i64, _>(column)).unwrap_or(0);
    let small = |column| u32::try_from(count(column)).unwrap_or(u32::MAX);
    Ok(Glance {
        sites: small("sites"),
        pollers: small("pollers"),
        checks_ok: small("ok"),
        checks_not_ok: small("not_ok"),
        results: count("results"),
        dead_letters: count("dead_letters"),
        newest_slot_ms: row.get::<Option<OffsetDateTime>, _>("newest").map(unix_ms),
    })
}
