//! The SQL of answering. Every function takes a transaction that has named its tenant; nothing here writes.

use bulkhead_bus::payload::{CheckKind, Outcome, PollerRow, Query, Reason, ResultRow, StateRow};
use bulkhead_bus::{CheckName, SiteName, Tenant, TenantSlug};
use bulkhead_store::{StoreError, TenantTx};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use crate::store::{failed, parsed, unreadable, utc};

/// The first and the last moment that a question may name: 1970 to 9999.
pub(super) const ASKED_MS: std::ops::RangeInclusive<i64> = 0..=253_402_300_799_000;

pub(crate) fn unix_ms(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// A word of a closed set, through the same names as on the wire.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|_| unreadable("word"))
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

pub(super) fn site_filter(asked: &Query) -> Option<&str> {
    asked.site.as_ref().map(SiteName::as_str)
}

pub(super) fn check_filter(asked: &Query) -> Option<&str> {
    asked.check.as_ref().map(CheckName::as_str)
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
                   select check_name, slot, vantage, poller, kind, outcome, reason, latency_us, attested, island, detail
                   from result r
                   where r.tenant_id = $1 and r.check_name = s.check_name and r.vantage = s.vantage and r.slot >= $2
                   order by r.slot desc limit $3
               ) r
               where s.tenant_id = $1 and ($4::text is null or s.vantage = $4) and ($5::text is null or s.check_name = $5)
               order by r.slot desc, r.check_name, r.vantage limit $3";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(utc(since_ms.clamp(*ASKED_MS.start(), *ASKED_MS.end())))
        .bind(i64::from(limit))
        .bind(site_filter(asked))
        .bind(check_filter(asked))
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
        island: row.get("island"),
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
        .bind(check_filter(asked))
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
