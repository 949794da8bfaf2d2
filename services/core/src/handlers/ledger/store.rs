//! The SQL of checks, of who runs them, and of the slots that they should have.

use bulkhead_bus::payload::{AssignmentRow, CheckDefinition, CheckRow, Query, Reason};
use bulkhead_bus::{CheckName, PollerName, SiteName, Tenant};
use bulkhead_store::{StoreError, TenantTx};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{Absence, EmptySlot, Slots, Span, Thinned};
use crate::handlers::store::unix_ms;
use crate::store::{failed, parsed, utc};

/// Spans that one question reads.
pub const SPANS_MOST: usize = 50_000;
/// Slots without a measurement that one answer is made from.
pub const EMPTY_MOST: i64 = 100_000;

fn check_text(asked: &Query) -> Option<&str> {
    asked.check.as_ref().map(CheckName::as_str)
}

fn site_text(asked: &Query) -> Option<&str> {
    asked.site.as_ref().map(SiteName::as_str)
}

/// The checks of a tenant, by name; `asked` may name one, or a site where they are run.
///
/// # Errors
/// When the database refuses, or a row is damaged.
pub async fn list_checks(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    limit: u32,
) -> Result<Vec<CheckRow>, StoreError> {
    let sql = "select d.name, d.definition, d.paused, d.revision, d.changed_at,
                      (select count(*) from assignment a where a.tenant_id = $1 and a.check_name = d.name
                       and a.ended_generation is null and a.poller is not null) as vantages
               from check_definition d
               where d.tenant_id = $1 and ($2::text is null or d.name = $2)
                 and ($3::text is null or exists (select from assignment a where a.tenant_id = $1
                      and a.check_name = d.name and a.vantage = $3 and a.ended_generation is null))
               order by d.name limit $4";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(check_text(asked))
        .bind(site_text(asked))
        .bind(i64::from(limit))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list checks"))?;
    rows.iter().map(|row| check_row(row, tenant)).collect()
}

fn damaged(tenant: &Tenant, what: impl ToString) -> StoreError {
    StoreError::Row { account: tenant.slug.to_string(), what: what.to_string() }
}

fn check_row(row: &PgRow, tenant: &Tenant) -> Result<CheckRow, StoreError> {
    let definition: CheckDefinition =
        serde_json::from_value(row.get("definition")).map_err(|error| damaged(tenant, error))?;
    Ok(CheckRow {
        tenant: tenant.slug.clone(),
        // Pausing is a column of its own.
        definition: CheckDefinition { paused: row.get("paused"), ..definition },
        revision: row.get("revision"),
        changed_ms: unix_ms(row.get("changed_at")),
        vantages_assigned: u32::try_from(row.get::<i64, _>("vantages")).unwrap_or(u32::MAX),
    })
}

/// Who runs what now.
///
/// # Errors
/// When the database refuses, or a row is damaged.
pub async fn list_assignments(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    limit: u32,
) -> Result<Vec<AssignmentRow>, StoreError> {
    let sql = "select check_name, vantage, poller, generation, revision, from_ms from assignment
               where tenant_id = $1 and ended_generation is null and ($2::text is null or check_name = $2)
                 and ($3::text is null or vantage = $3) and ($4::text is null or poller = $4)
               order by check_name, vantage limit $5";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(check_text(asked))
        .bind(site_text(asked))
        .bind(asked.poller.as_ref().map(PollerName::as_str))
        .bind(i64::from(limit))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list assignments"))?;
    let row = |row: &PgRow| {
        Ok(AssignmentRow {
            tenant: tenant.slug.clone(),
            site: parsed(row, "vantage")?,
            check: parsed(row, "check_name")?,
            poller: poller_of(row, tenant)?,
            generation: row.get("generation"),
            revision: row.get("revision"),
            from_ms: row.get("from_ms"),
        })
    };
    rows.iter().map(row).collect()
}

fn poller_of(row: &PgRow, tenant: &Tenant) -> Result<Option<PollerName>, StoreError> {
    let poller = row.get::<Option<&str>, _>("poller").map(str::parse).transpose();
    poller.map_err(|error| damaged(tenant, error))
}

/// Who was to run what at some time of a window.
///
/// # Errors
/// When the database refuses, or a row is damaged.
pub async fn list_spans(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    (since_ms, until_ms): (i64, i64),
) -> Result<Vec<Span>, StoreError> {
    let sql = "select check_name, vantage, poller, interval_ms, from_ms, until_ms, ended_because from assignment
               where tenant_id = $1 and ($2::text is null or check_name = $2) and ($3::text is null or vantage = $3)
                 and from_ms < $5 and (until_ms is null or until_ms > $4)
               order by check_name, vantage, generation limit $6";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(check_text(asked))
        .bind(site_text(asked))
        .bind(since_ms)
        .bind(until_ms)
        .bind(i64::try_from(SPANS_MOST + 1).unwrap_or(i64::MAX))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list who ran what"))?;
    let span = |row: &PgRow| {
        Ok(Span {
            check: parsed(row, "check_name")?,
            site: parsed(row, "vantage")?,
            poller: poller_of(row, tenant)?,
            interval_ms: row.get::<i64, _>("interval_ms").max(1),
            from_ms: row.get("from_ms"),
            until_ms: row.get("until_ms"),
            has_lost_its_poller: row.get::<Option<&str>, _>("ended_because") == Some("poller_lost"),
        })
    };
    rows.iter().map(span).collect()
}

/// Those of the slots that have no measurement, in the order of `slots`.
const LIST_EMPTY: &str = "
select s.number, g.slot_ms, r.outcome, r.reason
from unnest($2::text[], $3::text[], $4::int8[], $5::int8[], $6::int8[]) with ordinality
         as s (check_name, vantage, first_ms, last_ms, interval_ms, number)
cross join lateral generate_series(s.first_ms, s.last_ms, s.interval_ms) as g (slot_ms)
left join lateral (
    select r.outcome, r.reason from result r
    where r.tenant_id = $1 and r.check_name = s.check_name and r.vantage = s.vantage
      and r.slot = 'epoch'::timestamptz + g.slot_ms * interval '1 millisecond') r on true
where r.outcome is null or r.outcome = 'missed'
order by s.number, g.slot_ms limit $7";

/// # Errors
/// When the database refuses, or it takes too long.
pub async fn list_empty(
    tx: &mut TenantTx,
    tenant: &Tenant,
    slots: &[(usize, &Span, Slots)],
) -> Result<Vec<EmptySlot>, StoreError> {
    let texts = |text: fn(&Span) -> &str| slots.iter().map(|(_, span, _)| text(span)).collect::<Vec<&str>>();
    let numbers = |number: fn(&Slots) -> i64| slots.iter().map(|(_, _, slots)| number(slots)).collect::<Vec<i64>>();
    let rows = sqlx::query(LIST_EMPTY)
        .bind(tenant.id.as_uuid())
        .bind(texts(|span| span.check.as_str()))
        .bind(texts(|span| span.site.as_str()))
        .bind(numbers(|slots| slots.first_ms))
        .bind(numbers(|slots| slots.last_ms))
        .bind(numbers(|slots| slots.interval_ms))
        .bind(EMPTY_MOST)
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list slots without a measurement"))?;
    let empty = |row: &PgRow| {
        let number = usize::try_from(row.get::<i64, _>("number") - 1).unwrap_or(0);
        let has_row = row.get::<Option<&str>, _>("outcome").is_some();
        let reason =
            row.get::<Option<&str>, _>("reason").and_then(|text| serde_json::from_value::<Reason>(text.into()).ok());
        EmptySlot { span: slots[number].0, slot_ms: row.get("slot_ms"), missed: has_row.then_some(reason) }
    };
    Ok(rows.iter().map(empty).collect())
}

/// When pollers were not there. An absence that began before the window counts as well.
const LIST_ABSENCES: &str = "
with told as (
    select site, name, event, at, boot,
           lead(at) over w as next_at, lead(boot) over w as next_boot
    from member_event
    where tenant_id = $1 and ($2::text is null or site = $2) and event in ('joined', 'gone', 'lost') and at > $3
    window w as (partition by site, name order by at, revision))
select site, name, at, next_at, boot is not distinct from next_boot as is_same
from told where event in ('gone', 'lost') and at < $4";

/// # Errors
/// When the database refuses, or a row is damaged.
pub async fn list_absences(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    (since_ms, until_ms): (i64, i64),
) -> Result<Vec<Absence>, StoreError> {
    /// Whoever has been away for longer has no results to come.
    const LONG_MS: i64 = 8 * 86_400_000;
    let rows = sqlx::query(LIST_ABSENCES)
        .bind(tenant.id.as_uuid())
        .bind(site_text(asked))
        .bind(utc(since_ms - LONG_MS))
        .bind(utc(until_ms))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list when pollers were away"))?;
    let absence = |row: &PgRow| {
        Ok(Absence {
            site: parsed(row, "site")?,
            name: parsed(row, "name")?,
            from_ms: unix_ms(row.get("at")),
            until_ms: row.get::<Option<_>, _>("next_at").map(unix_ms),
            is_same_process: row.get::<Option<bool>, _>("is_same").unwrap_or(false),
        })
    };
    rows.iter().map(absence).collect()
}

/// Results that say that others gave way.
///
/// # Errors
/// When the database refuses, or it takes too long.
pub async fn list_thinned(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    (since_ms, until_ms): (i64, i64),
) -> Result<Vec<Thinned>, StoreError> {
    let sql = "select check_name, vantage, slot from result
               where tenant_id = $1 and slot >= $2 and slot < $3 and ($4::text is null or check_name = $4)
                 and ($5::text is null or vantage = $5) and detail ? 'thinned' limit $6";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(utc(since_ms))
        // The one that says so may lie behind the window.
        .bind(utc(until_ms.saturating_add(super::MINUTE_MS)))
        .bind(check_text(asked))
        .bind(site_text(asked))
        .bind(EMPTY_MOST)
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list what gave way"))?;
    let thinned = |row: &PgRow| {
        let (check, site) = (parsed(row, "check_name")?, parsed(row, "vantage")?);
        Ok(Thinned { check, site, slot_ms: unix_ms(row.get("slot")) })
    };
    rows.iter().map(thinned).collect()
}
