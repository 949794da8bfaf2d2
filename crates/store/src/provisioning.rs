//! What provisioning writes: tenants, sites, pollers. Everything can be said twice with the same effect.

use bulkhead_bus::{AccountKey, BatchKey, PollerName, SiteName, Tenant, TenantId, TenantSlug};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::StoreError;
use crate::store::{TenantTx, Tenants, begin, read_tenants};

const CONNECTIONS: u32 = 2;

/// Why a row was not written.
#[derive(Debug, thiserror::Error)]
pub enum ProvisioningError {
    #[error("{action}")]
    Sql { action: &'static str, source: sqlx::Error },
    #[error("tenant")]
    Store(#[source] StoreError),
    #[error("slug {slug} belongs to another account: offboard that tenant first, or choose another slug")]
    SlugTaken { slug: TenantSlug },
    #[error("account {account} cannot be a tenant's and the platform's at the same time: use another account")]
    TwoRoles { account: AccountKey },
    #[error("the batch key of {site}/{poller} belongs to another poller: every poller signs with a key of its own")]
    KeyTaken { site: SiteName, poller: PollerName },
}

fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> ProvisioningError {
    move |source| ProvisioningError::Sql { action, source }
}

/// Nothing is written for an account that has the other role: the guard would take a tenant for the platform.
fn one_role(key: &AccountKey, written: u64) -> Result<(), ProvisioningError> {
    if written == 1 { Ok(()) } else { Err(ProvisioningError::TwoRoles { account: key.clone() }) }
}

/// A connection as the role that provisions.
#[derive(Debug, Clone)]
pub struct Provisioning {
    pool: PgPool,
}

impl Provisioning {
    /// # Errors
    /// When the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, ProvisioningError> {
        let options = PgPoolOptions::new().max_connections(CONNECTIONS).after_connect(|connection, _| {
            Box::pin(async move {
                // The login role inherits nothing: what it does, it does as the owner, under forced row security.
                sqlx::query("set role bulkhead_owner").execute(connection).await.map(|_| ())
            })
        });
        let pool = options.connect(url).await.map_err(failed("connect to the database"))?;
        Ok(Self { pool })
    }

    /// An account whose people may name a target tenant.
    ///
    /// # Errors
    /// When the account is a tenant's.
    pub async fn put_platform_account(&self, key: &AccountKey, name: &str) -> Result<(), ProvisioningError> {
        let sql = "insert into platform.platform_account (account_key, name)
                   select $1, $2 where not exists (select from platform.tenant where account_key = $1)
                   on conflict (name) do update set account_key = excluded.account_key";
        let put = sqlx::query(sql).bind(key.as_str()).bind(name).execute(&self.pool).await;
        one_role(key, put.map_err(failed("write platform account"))?.rows_affected())
    }

    /// Every tenant and platform account.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenants(&self) -> Result<Tenants, ProvisioningError> {
        read_tenants(&self.pool).await.map_err(ProvisioningError::Store)
    }

    /// # Errors
    /// When the database does not answer.
    pub async fn tenant_by_account(&self, key: &AccountKey) -> Result<Option<Tenant>, ProvisioningError> {
        Ok(self.tenants().await?.into_snapshot_tenant(key))
    }

    /// Writes a tenant by its account key; its id stays what it was at first.
    ///
    /// # Errors
    /// When another account holds the slug, or the account is the platform's.
    pub async fn put_tenant(&self, key: &AccountKey, tenant: &Tenant) -> Result<(), ProvisioningError> {
        let sql = "insert into platform.tenant
                     (tenant_id, account_key, slug, plan, state, retention_days, allows_unsigned)
                   select $1, $2, $3, $4, $5, $6, $7
                   where not exists (select from platform.platform_account where account_key = $2)
                   on conflict (account_key) do update set
                     slug = excluded.slug, plan = excluded.plan, state = excluded.state,
                     retention_days = excluded.retention_days, allows_unsigned = excluded.allows_unsigned";
        let put = sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(key.as_str())
            .bind(tenant.slug.as_str())
            .bind(&tenant.plan)
            .bind(crate::store::state_text(tenant.state))
            .bind(i32::try_from(tenant.retention_days).unwrap_or(i32::MAX))
            .bind(tenant.allows_unsigned)
            .execute(&self.pool)
            .await;
        match put {
            Ok(done) => one_role(key, done.rows_affected()),
            Err(sqlx::Error::Database(error)) if error.constraint() == Some("tenant_slug_key") => {
                Err(ProvisioningError::SlugTaken { slug: tenant.slug.clone() })
            }
            Err(error) => Err(failed("write tenant")(error)),
        }
    }

    async fn begin(&self, tenant: &Tenant) -> Result<TenantTx, ProvisioningError> {
        begin(&self.pool, tenant).await.map_err(ProvisioningError::Store)
    }

    /// # Errors
    /// When the database refuses.
    pub async fn put_site(&self, tenant: &Tenant, site: &SiteName) -> Result<(), ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        sqlx::query("insert into site (tenant_id, name) values ($1, $2) on conflict do nothing")
            .bind(tenant.id.as_uuid())
            .bind(site.as_str())
            .execute(tx.connection())
            .await
            .map_err(failed("write site"))?;
        tx.commit().await.map_err(ProvisioningError::Store)
    }

    /// # Errors
    /// When another poller has this batch key.
    pub async fn put_poller(
        &self,
        tenant: &Tenant,
        site: &SiteName,
        poller: &PollerName,
        key: &BatchKey,
    ) -> Result<(), ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        let sql = "insert into poller (tenant_id, site, name, batch_key) values ($1, $2, $3, $4)
                   on conflict (tenant_id, site, name) do update set batch_key = excluded.batch_key";
        let put = sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(site.as_str())
            .bind(poller.as_str())
            .bind(key.as_str())
            .execute(tx.connection())
            .await;
        put.map_err(|error| match error.as_database_error().and_then(|refused| refused.constraint()) {
            Some("poller_batch_key_key") => ProvisioningError::KeyTaken { site: site.clone(), poller: poller.clone() },
            Some(_) | None => failed("write poller")(error),
        })?;
        tx.commit().await.map_err(ProvisioningError::Store)
    }
}

impl Tenants {
    fn into_snapshot_tenant(self, key: &AccountKey) -> Option<Tenant> {
        self.tenants.into_iter().find(|(account, _)| account == key).map(|(_, tenant)| tenant)
    }

    /// Ids by slug, for tools that must name a tenant to the database.
    #[must_use]
    pub fn id_of(&self, slug: &TenantSlug) -> Option<TenantId> {
        self.tenants.iter().find(|(_, tenant)| tenant.slug == *slug).map(|(_, tenant)| tenant.id)
    }
}
