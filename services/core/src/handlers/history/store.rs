//! The SQL of looking back. What is asked of one check is read from the index alone: it holds the outcome and the latency.

use bulkhead_bus::payload::{HistoryRow, Latencies, PollerHistoryRow, Query, UptimeRow};
use bulkhead_bus::{CheckName, PollerName, SiteName, Tenant, TenantSlug};
use bulkhead_store::{StoreError, TenantTx};
use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::window::{Buckets, Window};
use crate::handlers::store::{check_filter, site_filter, unix_ms};
use crate::store::{failed, parsed, utc};

/// Less than whoever asks waits for.
const LIMIT_MS: u32 = 8_000;

/// The statements of `tx` may take no longer than whoever asks waits for the answer.
///
/// # Errors
/// When the database refuses.
pub async fn limit_time(tx: &mut TenantTx) -> Result<(), StoreError> {
    let sql = "select set_config('statement_timeout', $1, true)";
    let set = sqlx::query(sql).bind(LIMIT_MS.to_string()).execute(tx.connection()).await;
    set.map(|_| ()).map_err(failed("limit the time of a question"))
}

/// What a question names that this tenant has not, and never had as far as is kept: no answer about it would be true.
///
/// # Errors
/// When the database refuses.
pub async fn find_missing(tx: &mut TenantTx, tenant: &Tenant, asked: &Query) -> Result<Option<String>, StoreError> {
    let sql = "select $2::text is null or exists (select from check_definition where tenant_id = $1 and name = $2)
                      or exists (select from check_state where tenant_id = $1 and check_name = $2)
                      or exists (select from assignment where tenant_id = $1 and check_name = $2)
                      or exists (select from result where tenant_id = $1 and check_name = $2) as has_check,
                      $3::text is null or exists (select from site where tenant_id = $1 and name = $3)
                      or exists (select from check_state where tenant_id = $1 and vantage = $3) as has_site,
                      $4::text is null or exists (select from poller where tenant_id = $1 and name = $4
                                                  and ($3::text is null or site = $3)) as has_poller";
    let row = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(check_filter(asked))
        .bind(site_filter(asked))
        .bind(asked.poller.as_ref().map(PollerName::as_str))
        .fetch_one(tx.connection())
        .await
        .map_err(failed("look for what is asked about"))?;
    let named = [
        ("has_check", "check", check_filter(asked)),
        ("has_site", "site", site_filter(asked)),
        ("has_poller", "poller", asked.poller.as_ref().map(PollerName::as_str)),
    ];
    let missing = named.into_iter().find(|(column, _, _)| !row.get::<bool, _>(*column));
    Ok(missing.map(|(_, what, name)| format!("{} has no {what} {:?}", tenant.slug, name.unwrap_or_default())))
}

/// Whether the question was cancelled because it took too long.
#[must_use]
pub fn is_cancelled(error: &StoreError) -> bool {
    matches!(error, StoreError::Sql { source: sqlx::Error::Database(refused), .. } if refused.code().as_deref() == Some("57014"))
}

/// Public so that a test may look at the plan of this very text. `$5` is the vantage, `$6` the bucket in seconds.
pub const LIST_HISTORY: &str = "
select vantage, date_bin(make_interval(secs => $6), slot, 'epoch'::timestamptz) as begins, count(*) as results,
       count(*) filter (where outcome = 'ok') as ok, count(*) filter (where outcome = 'fail') as fail,
       count(*) filter (where outcome = 'error') as error, count(*) filter (where outcome = 'missed') as missed,
       min(latency_us) as latency_min, max(latency_us) as latency_max,
       percentile_disc(array[0.5, 0.9, 0.99]) within group (order by latency_us) as latencies
from result
where tenant_id = $1 and check_name = $2 and slot >= $3 and slot < $4 and ($5::text is null or vantage = $5)
group by begins, vantage order by begins desc, vantage limit $7";

/// One check by bucket and vantage, newest first. Where there are more than `limit` rows the oldest buckets are left out
/// whole, so that a question that ends where the last one begins goes on with them.
///
/// # Errors
/// When the database refuses.
pub async fn list_history(
    tx: &mut TenantTx,
    tenant: &Tenant,
    (check, site): (&CheckName, Option<&SiteName>),
    buckets: Buckets,
    limit: usize,
) -> Result<Vec<HistoryRow>, StoreError> {
    let rows = sqlx::query(LIST_HISTORY)
        .bind(tenant.id.as_uuid())
        .bind(check.as_str())
        .bind(utc(buckets.window.since_ms))
        .bind(utc(buckets.window.until_ms))
        .bind(site.map(SiteName::as_str))
        .bind(f64::from(buckets.bucket_s))
        .bind(i64::try_from(limit + 1).unwrap_or(i64::MAX))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list a history"))?;
    let row = |row| history_row(row, &tenant.slug, check, buckets.bucket_s);
    Ok(whole_buckets(rows.iter().map(row).collect::<Result<_, _>>()?, limit))
}

/// At most `limit` rows, and no bucket with some of its vantages only, unless there is but one.
fn whole_buckets(mut rows: Vec<HistoryRow>, limit: usize) -> Vec<HistoryRow> {
    let Some(cut_ms) = rows.get(limit).map(|row| row.begins_ms) else { return rows };
    rows.truncate(limit);
    if rows.first().is_some_and(|row| row.begins_ms > cut_ms) {
        rows.retain(|row| row.begins_ms > cut_ms);
    }
    rows
}

fn count(row: &PgRow, column: &str) -> u64 {
    u64::try_from(row.get::<i64, _>(column)).unwrap_or(0)
}

fn history_row(row: &PgRow, slug: &TenantSlug, check: &CheckName, bucket_s: u32) -> Result<HistoryRow, StoreError> {
    let us = |us: i64| u32::try_from(us).unwrap_or(u32::MAX);
    let measured = row.get::<Option<[i64; 3]>, _>("latencies");
    let latency = measured.map(|[p50, p90, p99]| Latencies {
        min_us: us(row.get("latency_min")),
        p50_us: us(p50),
        p90_us: us(p90),
        p99_us: us(p99),
        max_us: us(row.get("latency_max")),
    });
    Ok(HistoryRow {
        tenant: slug.clone(),
        site: parsed(row, "vantage")?,
        check: check.clone(),
        begins_ms: unix_ms(row.get("begins")),
        bucket_s,
        results: count(row, "results"),
        ok: count(row, "ok"),
        fail: count(row, "fail"),
        error: count(row, "error"),
        missed: count(row, "missed"),
        latency,
    })
}

/// Each check from the index, once for all vantages, in the order of slots. `fails` counts up to a slot, `before` up to the last
/// `ok` before it: their difference is how many failed in a row. Materialized: a plan for any tenant counts all of it again for each row.
pub const LIST_UPTIME: &str = "
with past as materialized (
    select c.check_name, u.* from (
        select distinct check_name from check_state where tenant_id = $1 and ($5::text is null or check_name = $5)
    ) c cross join lateral (
        select vantage, count(*) filter (where outcome = 'ok') as ok, count(*) filter (where outcome = 'fail') as fail,
               count(*) filter (where outcome = 'error') as error, count(*) filter (where outcome = 'missed') as missed,
               count(*) filter (where outcome = 'fail' and fails - before = 1) as outages,
               max(fails - before) filter (where outcome = 'fail') as longest,
               min(slot) as first_slot, max(slot) as last_slot,
               extract(epoch from percentile_disc(0.5) within group (order by apart))::float8 as slot_length_s
        from (
            select vantage, slot, outcome, apart, fails,
                   coalesce(max(fails) filter (where outcome = 'ok') over up_to, 0) as before
            from (
                select vantage, slot, outcome, slot - lag(slot) over (partition by vantage order by slot) as apart,
                       count(*) filter (where outcome = 'fail') over up_to as fails
                from result r
                where r.tenant_id = $1 and r.check_name = c.check_name and r.slot >= $2 and r.slot < $3
                  and ($4::text is null or r.vantage = $4)
                window up_to as (partition by vantage order by slot rows unbounded preceding)
            ) counted
            window up_to as (partition by vantage order by slot rows unbounded preceding)
        ) runs
        group by vantage
    ) u
)
select s.check_name, s.vantage, coalesce(ok, 0) as ok, coalesce(fail, 0) as fail, coalesce(error, 0) as error,
       coalesce(missed, 0) as missed, coalesce(outages, 0) as outages, coalesce(longest, 0) as longest,
       first_slot, last_slot, slot_length_s
from check_state s left join past p on p.check_name = s.check_name and p.vantage = s.vantage
where s.tenant_id = $1 and ($4::text is null or s.vantage = $4) and ($5::text is null or s.check_name = $5)
order by s.check_name, s.vantage limit $6";

/// How checks did, by check and vantage. A check that was measured once is a row, though the window has nothing of it.
///
/// # Errors
/// When the database refuses.
pub async fn list_uptime(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    (window, now_ms): (Window, i64),
    limit: usize,
) -> Result<Vec<UptimeRow>, StoreError> {
    let rows = sqlx::query(LIST_UPTIME)
        .bind(tenant.id.as_uuid())
        .bind(utc(window.since_ms))
        .bind(utc(window.until_ms))
        .bind(site_filter(asked))
        .bind(check_filter(asked))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list uptime"))?;
    // What is yet to come is not missing.
    let passed_ms = window.until_ms.min(now_ms) - window.since_ms;
    rows.iter().map(|row| uptime_row(row, &tenant.slug, passed_ms)).collect()
}

fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1_000.0).round() as i64
}

fn uptime_row(row: &PgRow, slug: &TenantSlug, passed_ms: i64) -> Result<UptimeRow, StoreError> {
    let (ok, fail) = (count(row, "ok"), count(row, "fail"));
    let known = ok + fail;
    let slot_length_ms = row.get::<Option<f64>, _>("slot_length_s").map(milliseconds).filter(|ms| *ms > 0);
    let lasting = |slots: u64| Some(i64::try_from(slots).unwrap_or(i64::MAX).saturating_mul(slot_length_ms?));
    let share = |part: f64, whole: f64| (whole > 0.0).then(|| (100.0 * part / whole).min(100.0));
    let moment = |column| row.get::<Option<OffsetDateTime>, _>(column).map(unix_ms);
    Ok(UptimeRow {
        tenant: slug.clone(),
        site: parsed(row, "vantage")?,
        check: parsed(row, "check_name")?,
        ok,
        fail,
        error: count(row, "error"),
        missed: count(row, "missed"),
        uptime_percent: share(ok as f64, known as f64),
        coverage_percent: lasting(known).and_then(|known_ms| share(known_ms as f64, passed_ms as f64)),
        slot_length_ms,
        down_ms: lasting(fail),
        outages: count(row, "outages"),
        longest_outage_ms: lasting(count(row, "longest")),
        first_slot_ms: moment("first_slot"),
        last_slot_ms: moment("last_slot"),
    })
}

/// Who measured is in no index: each check of the vantage is found by the key, and its rows are read.
pub const LIST_POLLER_HISTORY: &str = "
select date_bin(make_interval(secs => $6), r.slot, 'epoch'::timestamptz) as begins, count(*) as results,
       count(*) filter (where r.outcome = 'error') as error, count(*) filter (where r.outcome = 'missed') as missed,
       count(*) filter (where r.island) as islands, count(*) filter (where r.attested) as attested,
       min(r.slot) as first_slot, max(r.slot) as last_slot,
       extract(epoch from percentile_disc(0.5) within group (order by r.received_at - r.slot))::float8 as delay_p50_s,
       extract(epoch from percentile_disc(0.99) within group (order by r.received_at - r.slot))::float8 as delay_p99_s
from check_state s cross join lateral (
    select slot, outcome, island, attested, received_at from result r
    where r.tenant_id = $1 and r.check_name = s.check_name and r.slot >= $2 and r.slot < $3 and r.vantage = $4 and r.poller = $5
) r
where s.tenant_id = $1 and s.vantage = $4
group by begins order by begins desc limit $7";

/// What one poller delivered, by bucket of its slots, newest first.
///
/// # Errors
/// When the database refuses.
pub async fn list_poller_history(
    tx: &mut TenantTx,
    tenant: &Tenant,
    (site, poller): (&SiteName, &PollerName),
    buckets: Buckets,
    limit: usize,
) -> Result<Vec<PollerHistoryRow>, StoreError> {
    let rows = sqlx::query(LIST_POLLER_HISTORY)
        .bind(tenant.id.as_uuid())
        .bind(utc(buckets.window.since_ms))
        .bind(utc(buckets.window.until_ms))
        .bind(site.as_str())
        .bind(poller.as_str())
        .bind(f64::from(buckets.bucket_s))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list what a poller delivered"))?;
    let row = |row: &PgRow| PollerHistoryRow {
        tenant: tenant.slug.clone(),
        site: site.clone(),
        poller: poller.clone(),
        begins_ms: unix_ms(row.get("begins")),
        bucket_s: buckets.bucket_s,
        results: count(row, "results"),
        error: count(row, "error"),
        missed: count(row, "missed"),
        islands: count(row, "islands"),
        attested: count(row, "attested"),
        first_slot_ms: unix_ms(row.get("first_slot")),
        last_slot_ms: unix_ms(row.get("last_slot")),
        delay_p50_ms: milliseconds(row.get("delay_p50_s")),
        delay_p99_ms: milliseconds(row.get("delay_p99_s")),
    };
    Ok(rows.iter().map(row).collect())
}
