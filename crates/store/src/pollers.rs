//! What provisioning writes of one tenant's sites and pollers.

use bulkhead_bus::{BatchKey, PollerName, SiteName, Tenant};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::StoreError;
use crate::provisioning::{Provisioning, ProvisioningError, failed};
use crate::transaction::TenantTx;

/// Whether what a poller signs is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollerState {
    Active,
    /// Everything in its name is refused, whoever signed it and whenever.
    Revoked,
}

impl PollerState {
    /// As rows and answers spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Revoked => "revoked",
        }
    }
}

/// A poller as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollerRecord {
    pub site: SiteName,
    pub poller: PollerName,
    pub batch_key: BatchKey,
    pub state: PollerState,
}

/// A site, and how many pollers it has in whatever state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRecord {
    pub site: SiteName,
    pub pollers: u64,
}

/// What becomes of the pollers of a site that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithPollers {
    /// While there are any the site stays.
    Refuse,
    Remove,
}

impl Provisioning {
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

    /// Registers a poller with the key that it signs with; one that was revoked stays revoked.
    ///
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
                   on conflict (tenant_id, site, name) do update set batch_key = excluded.batch_key
                   where poller.batch_key is distinct from excluded.batch_key";
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

    /// Within a second core goes by it.
    ///
    /// # Errors
    /// When there is no such poller.
    pub async fn set_poller_state(
        &self,
        tenant: &Tenant,
        (site, poller): (&SiteName, &PollerName),
        state: PollerState,
    ) -> Result<(), ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        let sql = "update poller set state = $4 where tenant_id = $1 and site = $2 and name = $3";
        let set = sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(site.as_str())
            .bind(poller.as_str())
            .bind(state.as_str())
            .execute(tx.connection())
            .await
            .map_err(failed("write the state of a poller"))?;
        if set.rows_affected() == 0 {
            return Err(ProvisioningError::NoPoller { site: site.clone(), poller: poller.clone() });
        }
        tx.commit().await.map_err(ProvisioningError::Store)
    }

    /// Takes a poller off the list; what it has measured stays, and its key is free.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn remove_poller(
        &self,
        tenant: &Tenant,
        site: &SiteName,
        poller: &PollerName,
    ) -> Result<(), ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        remove_pollers(&mut tx, tenant, site, Some(poller)).await?;
        tx.commit().await.map_err(ProvisioningError::Store)
    }

    /// Removes a site, and says how many pollers went with it.
    ///
    /// # Errors
    /// When it has pollers and they are not to go with it.
    pub async fn remove_site(
        &self,
        tenant: &Tenant,
        site: &SiteName,
        pollers: WithPollers,
    ) -> Result<u64, ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        let removed = remove_pollers(&mut tx, tenant, site, None).await?;
        if removed > 0 && pollers == WithPollers::Refuse {
            return Err(ProvisioningError::SiteInUse { site: site.clone(), pollers: removed });
        }
        sqlx::query("delete from site where tenant_id = $1 and name = $2")
            .bind(tenant.id.as_uuid())
            .bind(site.as_str())
            .execute(tx.connection())
            .await
            .map_err(failed("remove site"))?;
        tx.commit().await.map_err(ProvisioningError::Store)?;
        Ok(removed)
    }

    /// Every poller of a tenant, by site and name.
    ///
    /// # Errors
    /// When a row is not readable.
    pub async fn pollers(&self, tenant: &Tenant) -> Result<Vec<PollerRecord>, ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        let sql = "select site, name, batch_key, state from poller where tenant_id = $1 order by 1, 2";
        let rows = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
        let rows = rows.map_err(failed("read pollers"))?;
        rows.iter().map(|row| poller_of_row(row).ok_or_else(|| unreadable(tenant, row, "poller"))).collect()
    }

    /// Every site of a tenant, by name.
    ///
    /// # Errors
    /// When a row is not readable.
    pub async fn sites(&self, tenant: &Tenant) -> Result<Vec<SiteRecord>, ProvisioningError> {
        let mut tx = self.begin(tenant).await?;
        let sql = "select s.name as site, count(p.name) from site s
                   left join poller p on p.tenant_id = s.tenant_id and p.site = s.name
                   where s.tenant_id = $1 group by 1 order by 1";
        let rows = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
        let rows = rows.map_err(failed("read sites"))?;
        let record = |row: &PgRow| {
            let site = row.get::<&str, _>(0).parse().map_err(|_| unreadable(tenant, row, "site"))?;
            Ok(SiteRecord { site, pollers: u64::try_from(row.get::<i64, _>(1)).unwrap_or(0) })
        };
        rows.iter().map(record).collect()
    }
}

async fn remove_pollers(
    tx: &mut TenantTx,
    tenant: &Tenant,
    site: &SiteName,
    poller: Option<&PollerName>,
) -> Result<u64, ProvisioningError> {
    let mut removed = 0;
    for sql in [
        "delete from poller_seen where tenant_id = $1 and site = $2 and ($3::text is null or poller = $3)",
        "delete from poller where tenant_id = $1 and site = $2 and ($3::text is null or name = $3)",
    ] {
        let done = sqlx::query(sql)
            .bind(tenant.id.as_uuid())
            .bind(site.as_str())
            .bind(poller.map(PollerName::as_str))
            .execute(tx.connection())
            .await
            .map_err(failed("remove pollers"))?;
        removed = done.rows_affected();
    }
    Ok(removed)
}

fn poller_of_row(row: &PgRow) -> Option<PollerRecord> {
    let state = match row.get::<&str, _>("state") {
        "active" => PollerState::Active,
        "revoked" => PollerState::Revoked,
        _ => return None,
    };
    let text = |column| row.get::<&str, _>(column);
    Some(PollerRecord {
        site: text("site").parse().ok()?,
        poller: text("name").parse().ok()?,
        batch_key: text("batch_key").parse().ok()?,
        state,
    })
}

fn unreadable(tenant: &Tenant, row: &PgRow, kind: &str) -> ProvisioningError {
    let what = format!("{kind} {:?}", row.get::<&str, _>("site"));
    ProvisioningError::Store(StoreError::Row { account: tenant.slug.to_string(), what })
}
