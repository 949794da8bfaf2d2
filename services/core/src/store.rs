//! The SQL of storing. Every function takes a transaction that has named its tenant.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::LazyLock;

use bulkhead_bus::header::Sequence;
use bulkhead_bus::payload::Reason;
use bulkhead_bus::{PollerName, SiteName, Tenant};
use bulkhead_store::{READ_LIMIT, Store, StoreError, TenantTx, within};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use time::{Date, OffsetDateTime};

use crate::admission::DeadReason;
use crate::precedence::Candidate;

/// Dead letters of one tenant that are kept; beyond that they are only counted.
pub const DEAD_LETTERS_MAX: i64 = 10_000;
/// Dead letters of all accounts that are no tenants that are kept.
pub const UNCLAIMED_MAX: i64 = 10_000;

pub(crate) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { action, source }
}

pub(crate) fn utc(unix_ms: i64) -> OffsetDateTime {
    // Rows were checked to lie near now; anything else becomes a date that no partition takes.
    bulkhead_runtime::utc_of_ms(unix_ms).unwrap_or(OffsetDateTime::UNIX_EPOCH)
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

/// Makes the partition of a day unless it is there. In a transaction of its own, because of the table's lock.
///
/// # Errors
/// When the day is outside what may be kept.
pub async fn ensure_partition(tx: &mut TenantTx, day: Date) -> Result<(), StoreError> {
    let made = sqlx::query("select ensure_result_partition($1)").bind(day).execute(tx.connection()).await;
    made.map(|_| ()).map_err(failed("make a partition"))
}

/// History first. A row that is there is replaced only by a better one ([`crate::precedence::beats`]).
const STORE_ROWS: &str = "
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
), ";

/// The newest stored row of each check, and since when it has been so: the last slot at which the outcome was another than
/// before, seen from the state that this statement began with.
const NEWEST_OF_MANY: &str = "fresh as (
    select r.*, s.since as old_since, lag(r.outcome, 1, s.outcome) over run as before, lead(r.slot) over run as next
    from stored r left join check_state s
      on s.tenant_id = $1 and s.check_name = r.check_name and s.vantage = r.vantage
    where s.slot is null or s.slot <= r.slot
    window run as (partition by r.check_name, r.vantage order by r.slot)
), changed as (
    select *, max(slot) filter (where before is distinct from outcome) over (partition by check_name, vantage) as change
    from fresh
), shown as (
    select *, coalesce(change, old_since) as since from changed where next is null order by check_name, vantage
), ";

/// Where each check is there once, as it mostly is, its row is the newest, and a run of one: a fifth of the CPU less.
const NEWEST_OF_ONE: &str = "shown as (select *, slot as since from stored order by check_name, vantage), ";

/// A late row never moves the state back, and a run that began before goes on.
const KEEP_STATE: &str = "state as (
    insert into check_state as s
        (tenant_id, check_name, vantage, poller, kind, slot, outcome, reason, latency_us, since)
    select $1, check_name, vantage, poller, kind, slot, outcome, reason, latency_us, since from shown
    on conflict (tenant_id, check_name, vantage) do update set
        poller = excluded.poller, kind = excluded.kind, slot = excluded.slot, outcome = excluded.outcome,
        reason = excluded.reason, latency_us = excluded.latency_us,
        since = case when s.outcome = excluded.outcome and (is_run_of_one or excluded.since <= s.slot)
                     then s.since else excluded.since end
    where s.slot <= excluded.slot
)
select count(*) filter (where revision = 0), count(*) filter (where revision > 0) from stored";

/// History and current state in one statement, whatever rows there are.
static WRITE_MANY: LazyLock<String> =
    LazyLock::new(|| [STORE_ROWS, NEWEST_OF_MANY, &KEEP_STATE.replace("is_run_of_one", "false")].concat());
/// The same for rows of which no two are of one check at one vantage.
static WRITE_ONE_EACH: LazyLock<String> =
    LazyLock::new(|| [STORE_ROWS, NEWEST_OF_ONE, &KEEP_STATE.replace("is_run_of_one", "true")].concat());

/// Rows as [`write_results`] sends them, a column after the other.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    checks: Vec<String>,
    slots: Vec<OffsetDateTime>,
    vantages: Vec<String>,
    pollers: Vec<String>,
    kinds: Vec<&'static str>,
    outcomes: Vec<&'static str>,
    reasons: Vec<Option<&'static str>>,
    latencies_us: Vec<Option<i64>>,
    starts: Vec<OffsetDateTime>,
    generations: Vec<i64>,
    islands: Vec<bool>,
    attested: Vec<bool>,
    details: Vec<Option<Json<BTreeMap<String, Value>>>>,
    /// No two rows are of one check at one vantage.
    is_one_each: bool,
}

impl Columns {
    /// Of rows that were merged before.
    #[must_use]
    pub fn of(rows: Vec<Candidate>) -> Self {
        let mut checks = HashSet::new();
        let is_one_each = rows.iter().all(|row| checks.insert((row.measured.check.as_str(), &*row.vantage)));
        let mut columns = Self { is_one_each, ..Self::default() };
        for Candidate { measured, vantage, poller, attested } in rows {
            columns.slots.push(utc(measured.slot_ms));
            columns.starts.push(utc(measured.started_ms));
            columns.checks.push(measured.check.into());
            columns.vantages.push(vantage);
            columns.pollers.push(poller);
            columns.kinds.push(measured.kind.as_str());
            columns.outcomes.push(measured.outcome.as_str());
            columns.reasons.push(measured.reason.map(Reason::as_str));
            columns.latencies_us.push(measured.latency_us.map(i64::from));
            columns.generations.push(measured.generation);
            columns.islands.push(measured.island);
            columns.attested.push(attested);
            columns.details.push((!measured.detail.is_empty()).then_some(Json(measured.detail)));
        }
        columns
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// Stores rows that were merged before.
///
/// # Errors
/// When the database refuses.
pub async fn write_results(tx: &mut TenantTx, tenant: &Tenant, rows: &Columns) -> Result<Written, StoreError> {
    if rows.is_empty() {
        return Ok(Written::default());
    }
    let sql: &'static str = if rows.is_one_each { &WRITE_ONE_EACH } else { &WRITE_MANY };
    let query = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(&rows.checks).bind(&rows.slots);
    let row = query
        .bind(&rows.vantages)
        .bind(&rows.pollers)
        .bind(&rows.kinds)
        .bind(&rows.outcomes)
        .bind(&rows.reasons)
        .bind(&rows.latencies_us)
        .bind(&rows.starts)
        .bind(&rows.generations)
        .bind(&rows.islands)
        .bind(&rows.attested)
        .bind(&rows.details)
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
    pub reason: DeadReason,
    pub detail: String,
    pub stream: &'static str,
    pub subject: String,
    pub headers: String,
    pub payload: Vec<u8>,
    pub delivered: i64,
}

/// How many of each reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reasons([u64; DeadReason::ALL.len()]);

impl Reasons {
    #[must_use]
    pub fn of(reason: DeadReason, count: u64) -> Self {
        let mut own = Self::default();
        own.add(reason, count);
        own
    }

    fn add(&mut self, reason: DeadReason, count: u64) {
        for (_, known) in DeadReason::ALL.iter().zip(&mut self.0).filter(|(one, _)| **one == reason) {
            *known += count;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (DeadReason, u64)> {
        DeadReason::ALL.iter().copied().zip(self.0)
    }

    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What became of dead letters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Buried {
    /// Those that were not known yet.
    pub new: Reasons,
    /// Kept at an earlier delivery.
    pub known: u64,
    /// Of the new ones, those that are only counted: the tenant has its fill.
    pub counted: u64,
}

/// Letters that are there already change nothing, whatever room is left.
const WRITE_DEAD_LETTERS: &str = "
with incoming as (
    select * from unnest(
        $2::bytea[], $3::int4[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bytea[], $10::int8[]
    ) with ordinality as i (digest, row_index, reason, detail, stream, subject, headers, payload, delivered, place)
), new as (
    select i.* from incoming i where not exists (
        select from dead_letter d where d.tenant_id = $1 and d.digest = i.digest and d.row_index = i.row_index)
), kept as (
    insert into dead_letter
        (tenant_id, digest, row_index, reason, detail, stream, subject, headers, payload, delivered)
    select $1, digest, row_index, reason, detail, stream, subject, headers, payload, delivered from new
    order by place limit greatest(0, $11 - (select count(*) from dead_letter where tenant_id = $1))
    on conflict do nothing returning digest, row_index
)
select reason, count(*), count(kept.digest) from new left join kept using (digest, row_index) group by reason";

/// Keeps dead letters, each digest and row once.
///
/// # Errors
/// When the database refuses.
pub async fn put_dead_letters(
    tx: &mut TenantTx,
    tenant: &Tenant,
    letters: &[DeadLetter],
) -> Result<Buried, StoreError> {
    let mut seen = HashSet::new();
    let letters_once: Vec<&DeadLetter> =
        letters.iter().filter(|letter| seen.insert((&letter.digest, letter.row_index))).collect();
    if letters_once.is_empty() {
        return Ok(Buried::default());
    }
    let text = |of: fn(&DeadLetter) -> &str| letters_once.iter().map(|letter| storable(of(letter))).collect::<Vec<_>>();
    let rows = sqlx::query(WRITE_DEAD_LETTERS)
        .bind(tenant.id.as_uuid())
        .bind(letters_once.iter().map(|letter| letter.digest.clone()).collect::<Vec<_>>())
        .bind(letters_once.iter().map(|letter| letter.row_index).collect::<Vec<_>>())
        .bind(text(|letter| letter.reason.as_str()))
        .bind(text(|letter| &letter.detail))
        .bind(text(|letter| letter.stream))
        .bind(text(|letter| &letter.subject))
        .bind(text(|letter| &letter.headers))
        .bind(letters_once.iter().map(|letter| letter.payload.clone()).collect::<Vec<_>>())
        .bind(letters_once.iter().map(|letter| letter.delivered).collect::<Vec<_>>())
        .bind(DEAD_LETTERS_MAX)
        .fetch_all(tx.connection())
        .await
        .map_err(failed("write dead letters"))?;
    let mut buried = Buried::default();
    for row in &rows {
        let count = |index| u64::try_from(row.get::<i64, _>(index)).unwrap_or(0);
        let reason = DeadReason::ALL.iter().find(|reason| reason.as_str() == row.get::<&str, _>("reason"));
        buried.new.add(*reason.ok_or_else(|| unreadable("reason"))?, count(1));
        buried.counted += count(1) - count(2);
    }
    buried.known = u64::try_from(letters.len()).unwrap_or(u64::MAX) - buried.new.total();
    Ok(buried)
}

/// Text without what PostgreSQL cannot store: a dead letter must never fail for its own content.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Keeps a letter that is no tenant's; beyond [`UNCLAIMED_MAX`] it is dropped, because strangers must not fill the disk.
/// Returns whether it is kept.
///
/// # Errors
/// When the database refuses.
pub async fn put_unclaimed(store: &Store, account: &str, letter: &DeadLetter) -> Result<bool, StoreError> {
    within("write unclaimed dead letter", READ_LIMIT, write_unclaimed(store, account, letter)).await
}

async fn write_unclaimed(store: &Store, account: &str, letter: &DeadLetter) -> Result<bool, StoreError> {
    let mut connection = store.platform().await?;
    let sql = "with room as (
                 select count(*) < $7 as is_left from platform.unclaimed_dead_letter
               ), kept as (
                 insert into platform.unclaimed_dead_letter
                   (digest, account_key, reason, subject, headers, payload)
                 select $1, $2, $3, $4, $5, $6 from room where is_left on conflict do nothing
               )
               select is_left or exists (select from platform.unclaimed_dead_letter where digest = $1) from room";
    let put = sqlx::query_scalar(sql)
        .bind(&letter.digest)
        .bind(account)
        .bind(letter.reason.as_str())
        .bind(storable(&letter.subject))
        .bind(storable(&letter.headers))
        .bind(&letter.payload)
        .bind(UNCLAIMED_MAX)
        .fetch_one(connection.connection())
        .await;
    let is_kept = put.map_err(failed("write unclaimed dead letter"))?;
    connection.commit().await.map(|()| is_kept)
}

/// What one transaction did for a tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub batches: u64,
    pub inserted: u64,
    pub replaced: u64,
    pub duplicates: u64,
    pub dead_letters: Reasons,
    /// Of the dead letters, those that are only counted.
    pub not_kept: u64,
}

impl Counts {
    /// What two transactions, or two tenants of one, did together.
    pub fn add(&mut self, more: Self) {
        self.batches += more.batches;
        self.inserted += more.inserted;
        self.replaced += more.replaced;
        self.duplicates += more.duplicates;
        more.dead_letters.iter().for_each(|(reason, count)| self.dead_letters.add(reason, count));
        self.not_kept += more.not_kept;
    }
}

/// Counts what the transaction stores, if its tenant may still be written for. Whoever ends a tenant waits for this row.
///
/// # Errors
/// When the tenant leaves, its rows are or go elsewhere, or the database refuses.
pub async fn add_counts(tx: &mut TenantTx, tenant: &Tenant, counts: Counts) -> Result<(), StoreError> {
    let sql = "insert into ingest_count as c (tenant_id, batches, results, replaced, duplicates, dead_letters)
               values ($1, $2, $3, $4, $5, $6)
               on conflict (tenant_id) do update set
                 batches = c.batches + excluded.batches, results = c.results + excluded.results,
                 replaced = c.replaced + excluded.replaced, duplicates = c.duplicates + excluded.duplicates,
                 dead_letters = c.dead_letters + excluded.dead_letters
               where not c.closed";
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let added = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(number(counts.batches))
        .bind(number(counts.inserted))
        .bind(number(counts.replaced))
        .bind(number(counts.duplicates))
        .bind(number(counts.dead_letters.total()))
        .execute(tx.connection())
        .await;
    if added.map_err(failed("count"))?.rows_affected() > 0 {
        return Ok(());
    }
    let sql = "select moved from ingest_count where tenant_id = $1";
    let moved = sqlx::query_scalar(sql).bind(tenant.id.as_uuid()).fetch_one(tx.connection()).await;
    let slug = tenant.slug.clone();
    Err(match moved.map_err(failed("look why a tenant is closed"))? {
        true => StoreError::Moved { slug },
        false => StoreError::TenantClosed { slug },
    })
}

/// Notes of each poller that a batch of it was stored now. Its sequence is the furthest that came: batches overtake each other.
///
/// # Errors
/// When the database refuses.
pub async fn mark_seen(
    tx: &mut TenantTx,
    tenant: &Tenant,
    seen: &BTreeMap<(SiteName, PollerName), Option<Sequence>>,
) -> Result<(), StoreError> {
    if seen.is_empty() {
        return Ok(());
    }
    let sql = "insert into poller_seen as p (tenant_id, site, poller, last_batch_at, sequence_boot, sequence_number)
               select $1, site, poller, now(), boot, number
               from unnest($2::text[], $3::text[], $4::int8[], $5::int8[]) as i (site, poller, boot, number)
               on conflict (tenant_id, site, poller) do update set
                 last_batch_at = now(),
                 (sequence_boot, sequence_number) = (
                   select boot, number from (values
                     (p.sequence_boot, p.sequence_number), (excluded.sequence_boot, excluded.sequence_number)
                   ) as s (boot, number) order by boot desc nulls last, number desc limit 1)";
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let marked = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(seen.keys().map(|(site, _)| site.as_str()).collect::<Vec<_>>())
        .bind(seen.keys().map(|(_, poller)| poller.as_str()).collect::<Vec<_>>())
        .bind(seen.values().map(|sequence| sequence.map(|sequence| number(sequence.boot))).collect::<Vec<_>>())
        .bind(seen.values().map(|sequence| sequence.map(|sequence| number(sequence.number))).collect::<Vec<_>>())
        .execute(tx.connection())
        .await;
    marked.map(|_| ()).map_err(failed("mark pollers as seen"))
}

pub(crate) fn unreadable(what: &'static str) -> StoreError {
    StoreError::Sql { action: what, source: sqlx::Error::RowNotFound }
}

pub(crate) fn parsed<T: std::str::FromStr>(row: &PgRow, column: &'static str) -> Result<T, StoreError> {
    row.get::<&str, _>(column).parse().map_err(|_| unreadable(column))
}
