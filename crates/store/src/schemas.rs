//! Schemas of single tenants: made with the tenant, dropped with it.

use bulkhead_bus::{Tenant, TenantId};
use sqlx::{Connection, PgConnection, Row};

use crate::isolation::{Isolation, SHARED, own_schema};
use crate::migrations::bring_schema;
use crate::provisioning::{Provisioning, ProvisioningError, failed};

/// What a database holds well: more make dumps and planning slow, and every backend large (facts: postgres section 3).
pub const SCHEMAS_MOST: i64 = 1_000;

impl Provisioning {
    /// Makes the schema of a tenant, its role and its tables, or completes one that was begun. Nobody uses it before the
    /// tenant's row says so.
    ///
    /// # Errors
    /// [`ProvisioningError::SchemasFull`] when the database has its fill, [`ProvisioningError::SlugTaken`] when another
    /// tenant's schema has this name.
    pub async fn make_schema(&self, tenant: &Tenant) -> Result<(), ProvisioningError> {
        let schema = own_schema(&tenant.slug);
        let mut connection = self.alone().await?;
        reserve(&mut connection, tenant, &schema).await?;
        bring_schema(&mut connection, &schema).await.map_err(ProvisioningError::Schema)?;
        connection.close().await.map_err(failed("close"))
    }

    /// Drops the schema of a tenant with all rows in it, and its role. What is not there is no error.
    ///
    /// # Errors
    /// When the tenant's rows are still looked for there, or the database refuses.
    pub async fn drop_schema(&self, tenant: &Tenant) -> Result<(), ProvisioningError> {
        if self.isolation(tenant).await? == Some(Isolation::Schema) {
            return Err(ProvisioningError::SchemaInUse { slug: tenant.slug.clone() });
        }
        let mut connection = self.alone().await?;
        let schema = own_schema(&tenant.slug);
        drop_schema(&mut connection, tenant.id, &schema).await?;
        connection.close().await.map_err(failed("close"))
    }

    /// Where the rows of a tenant are; `None` when it is not on the list.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn isolation(&self, tenant: &Tenant) -> Result<Option<Isolation>, ProvisioningError> {
        let sql = "select isolation from platform.tenant where tenant_id = $1";
        let found = sqlx::query_scalar(sql).bind(tenant.id.as_uuid()).fetch_optional(&self.pool).await;
        let found: Option<String> = found.map_err(failed("look where a tenant's rows are"))?;
        Ok(found.and_then(|found| found.parse().ok()))
    }

    /// A connection that is never given back: what it has set and locked ends with it.
    pub(crate) async fn alone(&self) -> Result<PgConnection, ProvisioningError> {
        Ok(self.pool.acquire().await.map_err(failed("take a connection"))?.detach())
    }
}

/// Before anything is made, so that two onboardings at once do not both take the last place.
async fn reserve(connection: &mut PgConnection, tenant: &Tenant, schema: &str) -> Result<(), ProvisioningError> {
    let reserving = failed("reserve a schema");
    let mut tx = connection.begin().await.map_err(&reserving)?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('tenant_schema'))")
        .execute(&mut *tx)
        .await
        .map_err(&reserving)?;
    let sql = "select (select tenant_id from platform.tenant_schema where schema = $1), count(*)
               from platform.tenant_schema";
    let row = sqlx::query(sql).bind(schema).fetch_one(&mut *tx).await.map_err(&reserving)?;
    match row.get::<Option<uuid::Uuid>, _>(0) {
        Some(owner) if owner == tenant.id.as_uuid() => return Ok(()),
        Some(_) => return Err(ProvisioningError::SlugTaken { slug: tenant.slug.clone() }),
        None if row.get::<i64, _>(1) >= SCHEMAS_MOST => {
            return Err(ProvisioningError::SchemasFull { slug: tenant.slug.clone() });
        }
        None => {}
    }
    let sql = "insert into platform.tenant_schema (tenant_id, schema, version) values ($1, $2, 0)";
    let put = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(schema).execute(&mut *tx).await;
    put.map_err(&reserving)?;
    tx.commit().await.map_err(&reserving)
}

/// Drops what there is. The row that says whose it is goes last: as long as it is there, this can be said again, and without it
/// there is nothing, or it is another tenant's who has the slug by now.
pub(crate) async fn drop_schema(
    connection: &mut PgConnection,
    tenant: TenantId,
    schema: &str,
) -> Result<(), ProvisioningError> {
    let dropping = failed("drop the schema of a tenant");
    let is_ours = "select exists (select from platform.tenant_schema where tenant_id = $1 and schema = $2)";
    let is_ours = sqlx::query_scalar(is_ours).bind(tenant.as_uuid()).bind(schema).fetch_one(&mut *connection).await;
    if !is_ours.map_err(&dropping)? {
        return Ok(());
    }
    let sql = format!("drop schema if exists {schema} cascade");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await.map_err(&dropping)?;
    sqlx::query("select provisioning.drop_role($1)").bind(schema).execute(&mut *connection).await.map_err(&dropping)?;
    let gone = sqlx::query("delete from platform.tenant_schema where tenant_id = $1 and schema = $2")
        .bind(tenant.as_uuid())
        .bind(schema)
        .execute(connection)
        .await;
    gone.map(|_| ()).map_err(dropping)
}

/// Closes the shared tables to a tenant whose rows are in its own schema: whoever believes otherwise is told, a service of
/// the last release included.
pub(crate) async fn close_shared(connection: &mut PgConnection, tenant: &Tenant) -> Result<(), ProvisioningError> {
    let closing = failed("close the shared tables to a tenant");
    let mut tx = connection.begin().await.map_err(&closing)?;
    sqlx::query("select set_config('app.tenant_id', $1, true), set_config('search_path', $2, true)")
        .bind(tenant.id.as_uuid().to_string())
        .bind(SHARED)
        .execute(&mut *tx)
        .await
        .map_err(&closing)?;
    sqlx::query(CLOSE).bind(tenant.id.as_uuid()).execute(&mut *tx).await.map_err(&closing)?;
    tx.commit().await.map_err(closing)
}

/// Whoever writes a tenant's results writes this row as well, and so waits for it and then goes by it.
pub(crate) const CLOSE: &str = "
    insert into ingest_count (tenant_id, batches, results, replaced, duplicates, dead_letters, closed, moved)
    values ($1, 0, 0, 0, 0, 0, true, true) on conflict (tenant_id) do update set closed = true, moved = true";
