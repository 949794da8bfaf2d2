//! The SQL of answering. Every function takes a transaction that has named its tenant.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::payload::{EndedCheck, Measured, Probe, SealedFor, SecretRow};
use bulkhead_bus::{CheckName, PollerName, SiteName, Tenant};
use bulkhead_store::{StoreError, TenantTx};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use crate::change::Step;
use crate::store::failed;

/// Rows of one page at most: a check has one, and one more when it has changed.
const ROWS_MOST: i64 = 1_200;

type Who = (SiteName, PollerName);

/// Which plan is in force.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub generation: i64,
    /// What ended up to here may not be known any more.
    pub forgotten: i64,
    pub now_ms: i64,
}

/// # Errors
/// When the database refuses.
pub async fn read_now(tx: &mut TenantTx, tenant: &Tenant) -> Result<Now, StoreError> {
    let sql = "select coalesce(max(generation), 0) as generation, coalesce(max(forgotten), 0) as forgotten,
                      (extract(epoch from clock_timestamp()) * 1000)::int8 as now_ms
               from dispatch_state where tenant_id = $1";
    let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_one(tx.connection()).await;
    let row = row.map_err(failed("read the generation"))?;
    Ok(Now { generation: row.get("generation"), forgotten: row.get("forgotten"), now_ms: row.get("now_ms") })
}

/// Of which generations a page tells.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// What the poller has; 0 is nothing.
    pub have: i64,
    pub at: i64,
    pub now_ms: i64,
    pub after: Option<&'a CheckName>,
}

/// A row of a poller's that began, or ended.
#[derive(Debug, Clone)]
pub struct AssignedRow {
    pub check: CheckName,
    /// `None` when it is over.
    pub probe: Option<Probe>,
    pub generation: i64,
    pub from_ms: i64,
    pub until_ms: Option<i64>,
    pub owed_from_ms: Option<i64>,
}

impl AssignedRow {
    #[must_use]
    pub fn as_ended(&self) -> EndedCheck {
        let until_ms = self.until_ms.unwrap_or(self.from_ms);
        EndedCheck { check: self.check.clone(), generation: self.generation, until_ms }
    }
}

/// What began since `have` and is not over at `at`, or has slots yet to come, and what `have` knew and has ended since.
const READ_ASSIGNED: &str = "
select check_name, generation, definition, from_ms, owed_from_ms, ended, case when ended then until_ms end as until_ms
from (select *, coalesce(ended_generation <= $5, false) as ended from assignment
      where tenant_id = $1 and vantage = $2 and poller = $3 and generation <= $5
        and (generation > $4 or (ended_generation > $4 and ended_generation <= $5))
        and check_name > coalesce($7, '')) a
where generation <= $4 or not ended or (until_ms > $6 and until_ms > from_ms)
order by check_name, generation limit $8";

fn assigned_of_row(row: &PgRow, have: i64) -> Option<AssignedRow> {
    let generation: i64 = row.get("generation");
    let is_known_to_it = generation <= have;
    let probe = serde_json::from_value(row.get::<Json<Value>, _>("definition").0).ok();
    Some(AssignedRow {
        check: row.get::<&str, _>("check_name").parse().ok()?,
        probe: if is_known_to_it { None } else { Some(probe?) },
        generation,
        from_ms: row.get("from_ms"),
        until_ms: row.get("until_ms"),
        owed_from_ms: row.get("owed_from_ms"),
    })
}

/// Rows by check, all of each check that is among them; and whether there are more.
///
/// # Errors
/// When the database refuses.
pub async fn read_assigned(
    tx: &mut TenantTx,
    tenant: &Tenant,
    (site, poller): &Who,
    span: &Span<'_>,
) -> Result<(Vec<AssignedRow>, bool), StoreError> {
    let rows = sqlx::query(READ_ASSIGNED)
        .bind(tenant.id.as_uuid())
        .bind(site.as_str())
        .bind(poller.as_str())
        .bind(span.have)
        .bind(span.at)
        .bind(span.now_ms)
        .bind(span.after.map(CheckName::as_str))
        .bind(ROWS_MOST)
        .fetch_all(tx.connection())
        .await
        .map_err(failed("read an assignment"))?;
    let is_cut = rows.len() >= usize::try_from(ROWS_MOST).unwrap_or(usize::MAX);
    let last: Option<&str> = rows.last().filter(|_| is_cut).map(|row| row.get("check_name"));
    let whole = rows.iter().filter(|row| last != Some(row.get("check_name")));
    Ok((whole.filter_map(|row| assigned_of_row(row, span.have)).collect(), is_cut))
}

/// What is sealed for one poller, by name.
///
/// # Errors
/// When the database refuses.
pub async fn read_sealed(
    tx: &mut TenantTx,
    tenant: &Tenant,
    (site, poller): &Who,
    names: &BTreeSet<String>,
) -> Result<BTreeMap<String, String>, StoreError> {
    let sql = "select name, sealed from sealed_secret
               where tenant_id = $1 and site = $2 and poller = $3 and name = any($4)";
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let query = sqlx::query_as(sql).bind(tenant.id.as_uuid()).bind(site.as_str()).bind(poller.as_str()).bind(names);
    let rows: Vec<(String, String)> = query.fetch_all(tx.connection()).await.map_err(failed("read secrets"))?;
    Ok(rows.into_iter().collect())
}

/// A run on demand that a poller takes.
pub struct TakenRun {
    pub id: Uuid,
    pub probe: Probe,
    pub left_ms: u64,
}

/// What a poller is to run now, once each.
///
/// # Errors
/// When the database refuses.
pub async fn take_runs(tx: &mut TenantTx, tenant: &Tenant, (site, poller): &Who) -> Result<Vec<TakenRun>, StoreError> {
    let sql = "update run_order set taken_at = clock_timestamp()
               where tenant_id = $1 and site = $2 and poller = $3 and taken_at is null and done_at is null
                 and deadline > clock_timestamp()
               returning id, definition, (extract(epoch from deadline - clock_timestamp()) * 1000)::int8 as left_ms";
    let query = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(site.as_str()).bind(poller.as_str());
    let rows = query.fetch_all(tx.connection()).await.map_err(failed("take runs on demand"))?;
    let taken = rows.iter().filter_map(|row| {
        let probe = serde_json::from_value(row.get::<Json<Value>, _>("definition").0).ok()?;
        let left_ms = u64::try_from(row.get::<i64, _>("left_ms")).unwrap_or(0);
        Some(TakenRun { id: row.get("id"), probe, left_ms })
    });
    Ok(taken.collect())
}

/// The first report counts, until the deadline.
///
/// # Errors
/// When the database refuses.
pub async fn finish_run(
    tx: &mut TenantTx,
    tenant: &Tenant,
    (site, poller): &Who,
    (id, measured): (Uuid, &Measured),
) -> Result<(), StoreError> {
    let sql = "update run_order set done_at = clock_timestamp(), result = $5
               where tenant_id = $1 and id = $2 and site = $3 and poller = $4 and done_at is null
                 and deadline > clock_timestamp()";
    let query = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(id).bind(site.as_str()).bind(poller.as_str());
    let done = query.bind(Json(measured)).execute(tx.connection()).await;
    done.map(|_| ()).map_err(failed("keep the report of a run"))
}

/// Who changes what is configured is written down with it.
///
/// # Errors
/// When the database refuses.
pub async fn act_as(tx: &mut TenantTx, acting: &str) -> Result<(), StoreError> {
    let named = sqlx::query("select set_config('app.changed_by', $1, true)").bind(acting);
    named.execute(tx.connection()).await.map(|_| ()).map_err(failed("say who changes checks"))
}

/// Nobody else changes this tenant's checks, or orders a run of them, until the transaction ends.
///
/// # Errors
/// When the database refuses.
pub async fn lock_checks(tx: &mut TenantTx, tenant: &Tenant) -> Result<(), StoreError> {
    let sql = "select pg_advisory_xact_lock(hashtext('change_checks'), hashtext($1))";
    let locked = sqlx::query(sql).bind(tenant.id.as_uuid().to_string()).execute(tx.connection()).await;
    locked.map(|_| ()).map_err(failed("wait for others who change checks"))
}

/// # Errors
/// When the database refuses.
pub async fn read_sites(tx: &mut TenantTx, tenant: &Tenant) -> Result<BTreeSet<SiteName>, StoreError> {
    let sql = "select name from site where tenant_id = $1";
    let rows = sqlx::query_scalar(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
    let names: Vec<String> = rows.map_err(failed("read sites"))?;
    Ok(names.into_iter().filter_map(|name| name.parse().ok()).collect())
}

const PUT_CHECKS: &str = "
insert into check_definition (tenant_id, name, kind, definition, paused, revision)
select $1, * from unnest($2::text[], $3::text[], $4::jsonb[], $5::bool[], $6::int8[])
on conflict (tenant_id, name) do update set kind = excluded.kind, definition = excluded.definition,
    paused = excluded.paused, revision = excluded.revision, changed_at = clock_timestamp()";

/// # Errors
/// When the database refuses.
pub async fn write_steps(tx: &mut TenantTx, tenant: &Tenant, steps: &[Step]) -> Result<(), StoreError> {
    let put: Vec<_> = steps.iter().filter_map(|step| step.now.as_ref()).collect();
    let probe = |place: usize| &put[place].definition.probe;
    let places = 0..put.len();
    sqlx::query(PUT_CHECKS)
        .bind(tenant.id.as_uuid())
        .bind(places.clone().map(|place| probe(place).name.as_str()).collect::<Vec<_>>())
        .bind(places.map(|place| probe(place).kind.as_str()).collect::<Vec<_>>())
        .bind(put.iter().map(|check| Json(&check.definition)).collect::<Vec<_>>())
        .bind(put.iter().map(|check| check.definition.paused).collect::<Vec<_>>())
        .bind(put.iter().map(|check| check.revision).collect::<Vec<_>>())
        .execute(tx.connection())
        .await
        .map_err(failed("write checks"))?;
    let gone = steps.iter().filter(|step| step.now.is_none()).map(|step| step.check.as_str()).collect::<Vec<_>>();
    let sql = "delete from check_definition where tenant_id = $1 and name = any($2)";
    let removed = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(gone).execute(tx.connection()).await;
    removed.map(|_| ()).map_err(failed("remove checks"))
}

/// Runs on demand of the last minute.
///
/// # Errors
/// When the database refuses.
pub async fn count_runs(tx: &mut TenantTx, tenant: &Tenant) -> Result<u32, StoreError> {
    let sql = "select count(distinct id) from run_order
               where tenant_id = $1 and asked_at > clock_timestamp() - interval '1 minute'";
    let counted = sqlx::query_scalar::<_, i64>(sql).bind(tenant.id.as_uuid()).fetch_one(tx.connection()).await;
    Ok(u32::try_from(counted.map_err(failed("count runs on demand"))?).unwrap_or(u32::MAX))
}

/// A run on demand at several sites.
pub struct Ordered<'a> {
    pub id: Uuid,
    pub probe: &'a Probe,
    pub asked_by: &'a str,
    pub deadline_ms: u64,
    pub at: &'a [Who],
}

/// # Errors
/// When the database refuses.
pub async fn order_run(tx: &mut TenantTx, tenant: &Tenant, run: &Ordered<'_>) -> Result<(), StoreError> {
    let sql = "insert into run_order (tenant_id, id, site, poller, definition, asked_by, deadline)
               select $1, $2, site, poller, $3, $4, clock_timestamp() + $5 * interval '1 millisecond'
               from unnest($6::text[], $7::text[]) as o (site, poller)";
    let deadline_ms = i64::try_from(run.deadline_ms).unwrap_or(i64::MAX);
    sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(run.id)
        .bind(Json(run.probe))
        .bind(run.asked_by)
        .bind(deadline_ms)
        .bind(run.at.iter().map(|(site, _)| site.as_str()).collect::<Vec<_>>())
        .bind(run.at.iter().map(|(_, poller)| poller.as_str()).collect::<Vec<_>>())
        .execute(tx.connection())
        .await
        .map(|_| ())
        .map_err(failed("order a run"))
}

/// What was reported of a run, by site.
///
/// # Errors
/// When the database refuses.
pub async fn read_reports(
    tx: &mut TenantTx,
    tenant: &Tenant,
    id: Uuid,
) -> Result<BTreeMap<String, Measured>, StoreError> {
    let sql = "select site, result from run_order where tenant_id = $1 and id = $2 and done_at is not null";
    let rows = sqlx::query_as(sql).bind(tenant.id.as_uuid()).bind(id).fetch_all(tx.connection()).await;
    let rows: Vec<(String, Json<Value>)> = rows.map_err(failed("read reports of a run"))?;
    Ok(rows.into_iter().filter_map(|(site, result)| Some((site, serde_json::from_value(result.0).ok()?))).collect())
}

/// Keeps a secret in place of what was there. Checks that name it are of a new revision: their pollers have to fetch it.
///
/// # Errors
/// When the database refuses.
pub async fn set_secret(
    tx: &mut TenantTx,
    tenant: &Tenant,
    (name, acting): (&CheckName, &str),
    copies: &[SealedFor],
) -> Result<(), StoreError> {
    let sql = "delete from sealed_secret where tenant_id = $1 and name = $2";
    let gone = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(name.as_str()).execute(tx.connection()).await;
    gone.map_err(failed("remove a secret"))?;
    let sql = "insert into sealed_secret (tenant_id, name, site, poller, sealing_key, sealed, set_by)
               select $1, $2, site, poller, sealing_key, sealed, $3
               from unnest($4::text[], $5::text[], $6::text[], $7::text[]) as c (site, poller, sealing_key, sealed)";
    sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(name.as_str())
        .bind(acting)
        .bind(copies.iter().map(|copy| copy.site.as_str()).collect::<Vec<_>>())
        .bind(copies.iter().map(|copy| copy.poller.as_str()).collect::<Vec<_>>())
        .bind(copies.iter().map(|copy| copy.sealing_key.as_str()).collect::<Vec<_>>())
        .bind(copies.iter().map(|copy| copy.sealed.as_str()).collect::<Vec<_>>())
        .execute(tx.connection())
        .await
        .map_err(failed("keep a secret"))?;
    let sql = "update check_definition set revision = revision + 1, changed_at = clock_timestamp()
               where tenant_id = $1
                 and jsonb_path_exists(definition, '$.options.**.secret ? (@ == $name)', jsonb_build_object('name', $2::text))";
    let told = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(name.as_str()).execute(tx.connection()).await;
    told.map(|_| ()).map_err(failed("renew the checks that name a secret"))
}

/// Secrets, and never what is sealed.
///
/// # Errors
/// When the database refuses.
pub async fn list_secrets(tx: &mut TenantTx, tenant: &Tenant) -> Result<Vec<SecretRow>, StoreError> {
    let sql = "select name, max(set_by) as set_by, (extract(epoch from max(set_at)) * 1000)::int8 as set_ms,
                      array_agg(site || '/' || poller order by site, poller) as pollers
               from sealed_secret where tenant_id = $1 group by name order by name limit 1000";
    let rows = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
    let rows = rows.map_err(failed("list secrets"))?;
    let secret = |row: &PgRow| {
        Some(SecretRow {
            tenant: tenant.slug.clone(),
            name: row.get::<&str, _>("name").parse().ok()?,
            set_by: row.get("set_by"),
            set_ms: row.get("set_ms"),
            pollers: row.get("pollers"),
        })
    };
    Ok(rows.iter().filter_map(secret).collect())
}
