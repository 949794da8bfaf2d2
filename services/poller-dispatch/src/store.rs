//! The SQL of planning: who plans, what there is, and what a plan changes. Every function that takes a transaction takes one
//! that has named its tenant.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::payload::{CheckDefinition, Probe};
use bulkhead_bus::{CheckName, PollerName, SiteName, Tenant};
use bulkhead_store::{Store, StoreError, TenantTx};
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;

use crate::turn::{Configured, Open, Turn};

pub(crate) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { action, source }
}

/// Makes `holder` the one who plans, or lets it go on; its epoch. `None` while somebody else plans. A leader that says nothing for
/// 5 s is one no more.
///
/// # Errors
/// When the database does not answer.
pub async fn claim_leadership(store: &Store, holder: &str) -> Result<Option<i64>, StoreError> {
    let sql = "update platform.dispatch_leader
               set epoch = epoch + case when holder = $1 then 0 else 1 end, holder = $1,
                   until = clock_timestamp() + interval '5 seconds'
               where holder = $1 or until < clock_timestamp() returning epoch";
    let mut platform = store.platform().await?;
    let claimed = sqlx::query_scalar(sql).bind(holder).fetch_optional(platform.connection()).await;
    let claimed = claimed.map_err(failed("claim leadership"))?;
    platform.commit().await?;
    Ok(claimed)
}

/// Lets others plan at once.
///
/// # Errors
/// When the database does not answer.
pub async fn give_up_leadership(store: &Store, holder: &str) -> Result<(), StoreError> {
    let sql = "update platform.dispatch_leader set until = clock_timestamp() where holder = $1";
    let mut platform = store.platform().await?;
    let given = sqlx::query(sql).bind(holder).execute(platform.connection()).await;
    given.map_err(failed("give up leadership"))?;
    platform.commit().await
}

/// What the plan of before has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub generation: i64,
    pub epoch: i64,
    pub lease_revision: i64,
    /// Who took part, with its weight.
    pub weights: BTreeMap<String, u32>,
    /// By the database's clock, which is the one of all replicas.
    pub now_ms: i64,
}

impl Kept {
    #[must_use]
    pub fn known(&self) -> BTreeSet<(SiteName, PollerName)> {
        let names = self.weights.keys().filter_map(|name| name.split_once('/'));
        names.filter_map(|(site, poller)| Some((site.parse().ok()?, poller.parse().ok()?))).collect()
    }
}

/// Nobody else plans this tenant until the transaction ends.
///
/// # Errors
/// When the database refuses.
pub async fn lock_state(tx: &mut TenantTx, tenant: &Tenant) -> Result<Kept, StoreError> {
    let sql = "insert into dispatch_state (tenant_id, generation, epoch, lease_revision, weights)
               values ($1, 0, 0, 0, '{}') on conflict do nothing";
    let made = sqlx::query(sql).bind(tenant.id.as_uuid()).execute(tx.connection()).await;
    made.map_err(failed("begin the plans of a tenant"))?;
    let sql = "select generation, epoch, lease_revision, weights, (extract(epoch from clock_timestamp()) * 1000)::int8 as now_ms
               from dispatch_state where tenant_id = $1 for update";
    let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_one(tx.connection()).await;
    let row = row.map_err(failed("read the plan of a tenant"))?;
    Ok(Kept {
        generation: row.get("generation"),
        epoch: row.get("epoch"),
        lease_revision: row.get("lease_revision"),
        weights: row.get::<Json<BTreeMap<String, u32>>, _>("weights").0,
        now_ms: row.get("now_ms"),
    })
}

/// A tenant's checks. A row that this release cannot read is left out, and what is assigned of it ends.
///
/// # Errors
/// When the database refuses.
pub async fn read_checks(tx: &mut TenantTx, tenant: &Tenant) -> Result<BTreeMap<CheckName, Configured>, StoreError> {
    let sql = "select name, definition, revision from check_definition where tenant_id = $1";
    let rows = sqlx::query_as(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
    let rows: Vec<(String, Json<Value>, i64)> = rows.map_err(failed("read checks"))?;
    let read = rows.into_iter().filter_map(|(name, definition, revision)| {
        let definition: CheckDefinition = serde_json::from_value(definition.0).ok()?;
        Some((name.parse().ok()?, Configured { definition, revision }))
    });
    Ok(read.collect())
}

fn open_of_row(row: &PgRow) -> Option<Open> {
    Some(Open {
        check: row.get::<&str, _>("check_name").parse().ok()?,
        site: row.get::<&str, _>("vantage").parse().ok()?,
        generation: row.get("generation"),
        poller: row.get::<Option<&str>, _>("poller").map(str::parse).transpose().ok()?,
        probe: serde_json::from_value::<Probe>(row.get::<Json<Value>, _>("definition").0).ok(),
        revision: row.get("revision"),
        from_ms: row.get("from_ms"),
    })
}

/// Who runs what now.
///
/// # Errors
/// When the database refuses.
pub async fn read_open(tx: &mut TenantTx, tenant: &Tenant) -> Result<Vec<Open>, StoreError> {
    let sql = "select check_name, vantage, generation, poller, definition, revision, from_ms from assignment
               where tenant_id = $1 and ended_generation is null";
    let rows = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
    Ok(rows.map_err(failed("read assignments"))?.iter().filter_map(open_of_row).collect())
}

const END_ROWS: &str = "
update assignment a set until_ms = e.until_ms, ended_generation = $2, ended_because = e.because
from unnest($3::text[], $4::text[], $5::int8[], $6::int8[], $7::text[]) as e (check_name, vantage, generation, until_ms, because)
where a.tenant_id = $1 and a.check_name = e.check_name and a.vantage = e.vantage and a.generation = e.generation";

const BEGIN_ROWS: &str = "
insert into assignment (tenant_id, check_name, vantage, generation, poller, definition, revision, interval_ms, from_ms, owed_from_ms)
select $1, check_name, vantage, $2, poller, definition, revision, interval_ms, from_ms, owed_from_ms
from unnest($3::text[], $4::text[], $5::text[], $6::jsonb[], $7::int8[], $8::int8[], $9::int8[], $10::int8[])
  as b (check_name, vantage, poller, definition, revision, interval_ms, from_ms, owed_from_ms)";

/// # Errors
/// When the database refuses.
pub async fn write_turn(tx: &mut TenantTx, tenant: &Tenant, generation: i64, turn: &Turn) -> Result<(), StoreError> {
    let ended = &turn.ended;
    sqlx::query(END_ROWS)
        .bind(tenant.id.as_uuid())
        .bind(generation)
        .bind(ended.iter().map(|row| row.check.as_str()).collect::<Vec<_>>())
        .bind(ended.iter().map(|row| row.site.as_str()).collect::<Vec<_>>())
        .bind(ended.iter().map(|row| row.generation).collect::<Vec<_>>())
        .bind(ended.iter().map(|row| row.until_ms).collect::<Vec<_>>())
        .bind(ended.iter().map(|row| row.because.as_str()).collect::<Vec<_>>())
        .execute(tx.connection())
        .await
        .map_err(failed("end assignments"))?;
    let begun = &turn.begun;
    let interval_ms = |seconds: u64| i64::try_from(seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
    sqlx::query(BEGIN_ROWS)
        .bind(tenant.id.as_uuid())
        .bind(generation)
        .bind(begun.iter().map(|row| row.check.as_str()).collect::<Vec<_>>())
        .bind(begun.iter().map(|row| row.site.as_str()).collect::<Vec<_>>())
        .bind(begun.iter().map(|row| row.poller.as_ref().map(PollerName::as_str)).collect::<Vec<_>>())
        .bind(begun.iter().map(|row| Json(&row.probe)).collect::<Vec<_>>())
        .bind(begun.iter().map(|row| row.revision).collect::<Vec<_>>())
        .bind(begun.iter().map(|row| interval_ms(row.probe.interval_s)).collect::<Vec<_>>())
        .bind(begun.iter().map(|row| row.from_ms).collect::<Vec<_>>())
        .bind(begun.iter().map(|row| row.owed_from_ms).collect::<Vec<_>>())
        .execute(tx.connection())
        .await
        .map_err(failed("begin assignments"))?;
    Ok(())
}

/// Commits what was written with `tx` and what the plan leaves, if `holder` still plans under the epoch of `kept`; says whether it
/// did. That is asked last, so that one who was asleep for however long writes nothing: whoever takes over meanwhile waits for this
/// transaction with each tenant that it locks.
///
/// # Errors
/// When the database refuses.
pub async fn commit_plan(mut tx: TenantTx, tenant: &Tenant, holder: &str, kept: &Kept) -> Result<bool, StoreError> {
    let sql = "update dispatch_state
               set generation = $2, epoch = $3, lease_revision = $4, weights = $5, planned_at = clock_timestamp()
               where tenant_id = $1";
    sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(kept.generation)
        .bind(kept.epoch)
        .bind(kept.lease_revision)
        .bind(Json(&kept.weights))
        .execute(tx.connection())
        .await
        .map_err(failed("keep the plan of a tenant"))?;
    let plans = is_leader(&mut tx, holder, kept.epoch).await?;
    if plans {
        tx.commit().await?;
    }
    Ok(plans)
}

/// Nothing of the tenant's can be asked after it: in a schema of one tenant the platform's tables are another role's.
async fn is_leader(tx: &mut TenantTx, holder: &str, epoch: i64) -> Result<bool, StoreError> {
    let itself = sqlx::query("select set_config('role', 'none', true)").execute(tx.connection()).await;
    itself.map_err(failed("ask as the service itself"))?;
    let sql = "select exists (select from platform.dispatch_leader where epoch = $1 and holder = $2)";
    let asked = sqlx::query_scalar(sql).bind(epoch).bind(holder).fetch_one(tx.connection()).await;
    asked.map_err(failed("ask who plans"))
}
