//! What a tenant may have of checks, as its plan says. Provisioning writes it; poller-dispatch goes by it.

use bulkhead_bus::Tenant;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use crate::error::{StoreError, failed};
use crate::provisioning::{self, Provisioning, ProvisioningError};
use crate::store::Store;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    pub checks: u32,
    /// Runs of all its checks at all their vantages.
    pub runs_per_minute: u32,
    pub interval_s_least: u32,
    /// Of one check.
    pub vantages: u32,
    pub on_demand_per_minute: u32,
}

fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Provisioning {
    /// # Errors
    /// When the database does not answer.
    pub async fn put_quota(&self, tenant: &Tenant, quota: &Quota) -> Result<(), ProvisioningError> {
        let sql = "insert into platform.tenant_quota values ($1, $2, $3, $4, $5, $6)
                   on conflict (tenant_id) do update set checks = excluded.checks,
                     runs_per_minute = excluded.runs_per_minute, interval_s_least = excluded.interval_s_least,
                     vantages = excluded.vantages, on_demand_per_minute = excluded.on_demand_per_minute";
        let put = sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(number(quota.checks))
            .bind(number(quota.runs_per_minute))
            .bind(number(quota.interval_s_least))
            .bind(number(quota.vantages))
            .bind(number(quota.on_demand_per_minute))
            .execute(&self.pool)
            .await;
        put.map(|_| ()).map_err(provisioning::failed("write what a tenant may have of checks"))
    }
}

impl Store {
    /// What a tenant may have of checks; `None` while provisioning of this release has not written it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn quota(&self, tenant: &Tenant) -> Result<Option<Quota>, StoreError> {
        let sql = "select checks, runs_per_minute, interval_s_least, vantages, on_demand_per_minute
                   from platform.tenant_quota where tenant_id = $1";
        let mut platform = self.platform().await?;
        let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_optional(platform.connection()).await;
        let row = row.map_err(failed("read what a tenant may have of checks"))?;
        Ok(row.map(|row| {
            let count = |column: &str| row.get::<i32, _>(column).unsigned_abs();
            Quota {
                checks: count("checks"),
                runs_per_minute: count("runs_per_minute"),
                interval_s_least: count("interval_s_least"),
                vantages: count("vantages"),
                on_demand_per_minute: count("on_demand_per_minute"),
            }
        }))
    }
}
