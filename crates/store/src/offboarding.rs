//! The end of a tenant: its state closes the door for everybody who writes, then its rows go in batches, then it is
//! forgotten. Every step can be repeated after a crash. One row stays for ever, without content: `ingest_count` of that id
//! says that nothing may be written under it.

use std::collections::BTreeMap;

use bulkhead_bus::{Tenant, TenantState};
use sqlx::{AssertSqlSafe, Connection};
use time::OffsetDateTime;

use crate::isolation::Isolation;
use crate::moving::LOCK_LIMIT_S;
use crate::provisioning::{Provisioning, ProvisioningError, failed};
use crate::store::{READ_TENANT, tenant_of_row};
use crate::transaction::{TenantTx, writing_lock};

/// Rows of one transaction of a purge.
const BATCH_ROWS: i64 = 5_000;
/// Tables of a tenant's schema that are emptied in any order; results go by day, and the counters are reset.
/// The list of changes last: removing what is configured is a change.
const PLAIN_TABLES: [&str; 12] = [
    "site",
    "poller",
    "poller_seen",
    "check_state",
    "dead_letter",
    "check_definition",
    "sealed_secret",
    "assignment",
    "dispatch_state",
    "run_order",
    "member_event",
    "config_change",
];
const RESULT: &str = "result";
const COUNTERS: &str = "ingest_count";
const UNCLAIMED: &str = "unclaimed_dead_letter";

/// Rows by table. Of `ingest_count` it is the row whose counters were not zero.
pub type RowCounts = BTreeMap<&'static str, u64>;

impl Provisioning {
    /// Brings a tenant into a state. When this returns, whoever writes for it goes by it: transactions under way have
    /// ended, and later ones store nothing for a tenant that leaves.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub async fn set_tenant_state(&self, tenant: &Tenant, state: TenantState) -> Result<Tenant, ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        let sql = "update platform.tenant set state = $2,
                     state_since = case when state = $2 then state_since else clock_timestamp() end
                   where tenant_id = $1";
        sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(state.as_str())
            .execute(tx.connection())
            .await
            .map_err(failed("write the state of a tenant"))?;
        let fence = if state.is_open() {
            "update ingest_count set closed = false where tenant_id = $1 and closed and not moved"
        } else {
            "insert into ingest_count (tenant_id, batches, results, replaced, duplicates, dead_letters, closed)
             values ($1, 0, 0, 0, 0, 0, true) on conflict (tenant_id) do update set closed = true"
        };
        let fenced = sqlx::query(fence).bind(tenant.id.as_uuid()).execute(tx.connection()).await;
        fenced.map_err(failed("close or open the counters of a tenant"))?;
        let sql = format!("{READ_TENANT} where tenant_id = $1");
        let row = sqlx::query(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).fetch_optional(tx.connection()).await;
        let row = row.map_err(failed("read a tenant"))?;
        let row = row.ok_or_else(|| ProvisioningError::NoTenant { slug: tenant.slug.clone() })?;
        let (_, changed) = tenant_of_row(&row).map_err(ProvisioningError::Store)?;
        tx.commit().await.map_err(ProvisioningError::Store)?;
        if !state.is_open() {
            self.wait_for_writers(tenant).await?;
        }
        Ok(changed)
    }

    /// For those whom the counters do not stop: whoever of them comes now finds the tenant closed.
    async fn wait_for_writers(&self, tenant: &Tenant) -> Result<(), ProvisioningError> {
        let waiting = failed("wait for those who write for a tenant");
        let mut connection = self.alone().await?;
        let sql = format!("set lock_timeout to '{LOCK_LIMIT_S}s'; select pg_advisory_lock({})", writing_lock(tenant));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(&waiting)?;
        connection.close().await.map_err(waiting)
    }

    /// How many rows a tenant has, by table.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn row_counts(&self, tenant: &Tenant) -> Result<RowCounts, ProvisioningError> {
        let mut counts = RowCounts::new();
        let mut tx = self.begin(tenant).await?;
        for table in PLAIN_TABLES.into_iter().chain([RESULT]) {
            let sql = format!("select count(*) from {table} where tenant_id = $1");
            counts.insert(table, count(&mut tx, tenant, sql).await?);
        }
        let sql = format!("select count(*) from {COUNTERS} where tenant_id = $1 and {COUNTED}");
        counts.insert(COUNTERS, count(&mut tx, tenant, sql).await?);
        let sql = "select count(*) from platform.unclaimed_dead_letter u
                   join platform.tenant t using (account_key) where t.tenant_id = $1";
        counts.insert(UNCLAIMED, count(&mut tx, tenant, sql.to_owned()).await?);
        Ok(counts)
    }

    /// Removes every row of a tenant that leaves, a batch at a time, and says how many there were by table. A purge that
    /// was cut short goes on where it stood; what an earlier one has removed is not counted again.
    ///
    /// # Errors
    /// When the tenant is still active or suspended.
    pub async fn purge_tenant(&self, tenant: &Tenant) -> Result<RowCounts, ProvisioningError> {
        self.check_closed(tenant).await?;
        let _alone = self.alone_with(tenant).await?;
        let mut removed = self.purge_schema(tenant).await?;
        for table in PLAIN_TABLES {
            *removed.entry(table).or_default() += self.purge_table(tenant, table).await?;
        }
        let mut results = 0;
        for day in self.result_days(tenant).await? {
            results += self.purge_day(tenant, day).await?;
        }
        // Whatever is in a partition with a name of its own.
        results += self.delete(tenant, "delete from result where tenant_id = $1").await?;
        *removed.entry(RESULT).or_default() += results;
        let reset = format!(
            "update {COUNTERS} set batches = 0, results = 0, replaced = 0, duplicates = 0, dead_letters = 0
             where tenant_id = $1 and {COUNTED}"
        );
        *removed.entry(COUNTERS).or_default() += self.delete(tenant, &reset).await?;
        removed.insert(UNCLAIMED, self.delete(tenant, PURGE_UNCLAIMED).await?);
        Ok(removed)
    }

    /// Drops the schema of a tenant, if it has one, and says what was in it. From here on its rows are looked for in the
    /// shared tables, which say that nothing may be written for it.
    async fn purge_schema(&self, tenant: &Tenant) -> Result<RowCounts, ProvisioningError> {
        let mut counts = RowCounts::new();
        if self.isolation(tenant).await? == Some(Isolation::Schema) {
            counts = self.row_counts(tenant).await?;
            counts.remove(UNCLAIMED);
            let sql = "update platform.tenant set isolation = 'shared' where tenant_id = $1";
            let left = sqlx::query(sql).bind(tenant.id.as_uuid()).execute(&self.pool).await;
            left.map_err(failed("leave the schema of a tenant"))?;
        }
        self.drop_schema(tenant).await?;
        for table in ["tenant_move", "batch_key"] {
            self.delete(tenant, &format!("delete from platform.{table} where tenant_id = $1")).await?;
        }
        Ok(counts)
    }

    /// Takes a purged tenant off the list: its account is unknown from here on, and its slug free.
    ///
    /// # Errors
    /// When it is still active or suspended, or has rows.
    pub async fn forget_tenant(&self, tenant: &Tenant) -> Result<(), ProvisioningError> {
        self.check_closed(tenant).await?;
        let mut counts = self.row_counts(tenant).await?;
        // Messages that came after the purge go with the account.
        counts.remove(UNCLAIMED);
        counts.retain(|_, rows| *rows > 0);
        if !counts.is_empty() {
            let left: Vec<String> = counts.iter().map(|(table, rows)| format!("{table}: {rows}")).collect();
            return Err(ProvisioningError::RowsLeft { slug: tenant.slug.clone(), left: left.join(", ") });
        }
        self.delete(tenant, PURGE_UNCLAIMED).await?;
        self.delete(tenant, "delete from platform.tenant_quota where tenant_id = $1").await?;
        self.delete(tenant, "delete from platform.tenant where tenant_id = $1").await.map(|_| ())
    }

    /// Nobody's rows may go by mistake. A tenant that is not on the list has been forgotten.
    async fn check_closed(&self, tenant: &Tenant) -> Result<(), ProvisioningError> {
        let sql = "select state from platform.tenant where tenant_id = $1";
        let state: Option<String> = sqlx::query_scalar(sql)
            .bind(tenant.id.as_uuid())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read the state of a tenant"))?;
        let is_open = |state: String| state.parse::<TenantState>().is_ok_and(TenantState::is_open);
        if state.is_some_and(is_open) {
            return Err(ProvisioningError::StillOpen { slug: tenant.slug.clone() });
        }
        Ok(())
    }

    async fn purge_table(&self, tenant: &Tenant, table: &str) -> Result<u64, ProvisioningError> {
        let batch = format!(
            "delete from {table} where tenant_id = $1
             and ctid = any (array(select ctid from {table} where tenant_id = $1 limit {BATCH_ROWS}))"
        );
        let mut removed = 0;
        loop {
            match self.delete(tenant, &batch).await? {
                0 => return Ok(removed),
                rows => removed += rows,
            }
        }
    }

    async fn result_days(&self, tenant: &Tenant) -> Result<Vec<OffsetDateTime>, ProvisioningError> {
        let sql = "select (to_date(substr(c.relname, 8), 'YYYYMMDD')::text || ' 00:00:00+00')::timestamptz
                   from pg_inherits i join pg_class c on c.oid = i.inhrelid
                   where i.inhparent = 'result'::regclass and c.relname ~ '^result_[0-9]{8}$' order by 1";
        let mut tx = self.begin(tenant).await?;
        sqlx::query_scalar(sql).fetch_all(tx.connection()).await.map_err(failed("look for days of results"))
    }

    /// A day is a partition, and only within one does a place name a row.
    async fn purge_day(&self, tenant: &Tenant, day: OffsetDateTime) -> Result<u64, ProvisioningError> {
        let sql = format!(
            "delete from result where tenant_id = $1 and slot >= $2 and slot < $3
             and ctid = any (array(select ctid from result
                                   where tenant_id = $1 and slot >= $2 and slot < $3 limit {BATCH_ROWS}))"
        );
        let mut removed = 0;
        loop {
            let mut tx = self.begin(tenant).await?;
            let done = sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(tenant.id.as_uuid())
                .bind(day)
                .bind(day + time::Duration::DAY)
                .execute(tx.connection())
                .await
                .map_err(failed("remove results"))?;
            tx.commit().await.map_err(ProvisioningError::Store)?;
            match done.rows_affected() {
                0 => return Ok(removed),
                rows => removed += rows,
            }
        }
    }

    /// Runs one statement about a tenant in a transaction of its own.
    async fn delete(&self, tenant: &Tenant, sql: &str) -> Result<u64, ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        let done = sqlx::query(AssertSqlSafe(sql.to_owned()))
            .bind(tenant.id.as_uuid())
            .execute(tx.connection())
            .await
            .map_err(failed("remove rows of a tenant"))?;
        tx.commit().await.map_err(ProvisioningError::Store)?;
        Ok(done.rows_affected())
    }
}

const COUNTED: &str = "batches + results + replaced + duplicates + dead_letters > 0";
const PURGE_UNCLAIMED: &str = "delete from platform.unclaimed_dead_letter u using platform.tenant t
                               where t.tenant_id = $1 and u.account_key = t.account_key";

async fn count(tx: &mut TenantTx, tenant: &Tenant, sql: String) -> Result<u64, ProvisioningError> {
    let rows = sqlx::query_scalar(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).fetch_one(tx.connection()).await;
    let rows: i64 = rows.map_err(failed("count rows of a tenant"))?;
    Ok(u64::try_from(rows).unwrap_or(0))
}
