//! Tenants of a trial: `bulkhead up` knows what it runs before there is a hub, so nothing is pushed here.

use bulkhead_bus::{PollerName, SiteName, Tenant, TenantSlug};
use bulkhead_store::Provisioning;
use uuid::Uuid;

use super::first_people::renew;
use super::{Issued, PollerRecord, Standing, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::plan::{Plan, PlanName};
use crate::up::Accounts;

impl Tenancy {
    /// Makes a record for a tenant that has none. A home of an earlier release has an account and rows for it already.
    ///
    /// # Errors
    /// When the database does not answer or the record cannot be written.
    pub async fn adopt(
        &self,
        database: &Provisioning,
        slug: &TenantSlug,
        plan: PlanName,
    ) -> Result<TenantRecord, TenancyError> {
        if let Some(record) = self.records.find(slug).map_err(TenancyError::Record)? {
            return Ok(record);
        }
        let account = self.platform.operator.account(slug.as_str()).map_err(TenancyError::Operator)?;
        let known = match &account {
            Some(account) => database.tenant_by_account(&account.key).await.map_err(TenancyError::Rows)?,
            None => None,
        };
        let id = known.map_or_else(Uuid::new_v4, |known| known.id.as_uuid());
        let mut record = TenantRecord::new(slug.clone(), id, Plan::of(plan).plan_ref(), self.now_s());
        record.account = account.map(|account| account.key);
        self.records.write(&record).map_err(TenancyError::Record)?;
        Ok(record)
    }

    /// Marks every tenant whose live stream no shard imports, and gives each its place.
    ///
    /// # Errors
    /// When a shard is damaged or cannot be written.
    pub async fn place_all(&self, accounts: &mut Accounts) -> Result<(), TenancyError> {
        self.intake.make_folders().map_err(TenancyError::Intake)?;
        for (record, account) in &mut accounts.tenants {
            record.account = Some(account.key.clone());
            if record.stage == TenantStage::Adding {
                record.stage = TenantStage::Active;
            }
            self.records.write(record).map_err(TenancyError::Record)?;
            self.intake.mark(&record.slug).map_err(TenancyError::Intake)?;
        }
        self.reconcile_live(None).await?;
        for (number, shard) in self.intake.shards().map_err(TenancyError::Intake)? {
            let account = self.platform.render_intake(number, &shard).map_err(TenancyError::Platform)?;
            accounts.intake.insert(number, account);
        }
        Ok(())
    }

    /// Writes OPS and every tenant to the database; returns the tenants as services know them.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn write_rows(&self, database: &Provisioning, accounts: &Accounts) -> Result<Vec<Tenant>, TenancyError> {
        self.platform.write_ops_row(database, &accounts.ops).await.map_err(TenancyError::Platform)?;
        let mut tenants = Vec::new();
        for (record, account) in &accounts.tenants {
            let plan = self.plan_of(record)?;
            let written = self.platform.write_tenant_row(database, record, &plan, &account.key).await;
            tenants.push(written.map_err(TenancyError::Platform)?);
        }
        Ok(tenants)
    }

    /// Remembers what the leaf of a site was issued.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn remember_leaf(&self, slug: &TenantSlug, site: &SiteName, issued: Issued) -> Result<(), TenancyError> {
        let mut record = self.records.get(slug).map_err(TenancyError::Record)?;
        let known = record.sites.entry(site.clone()).or_default();
        renew(self.now_s(), &mut known.leaf, &mut known.earlier_leaves, issued);
        self.records.write(&record).map_err(TenancyError::Record)
    }

    /// Remembers a poller that was made, and its site.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn remember_poller(
        &self,
        slug: &TenantSlug,
        (site, poller): (&SiteName, &PollerName),
        batch_key: &str,
    ) -> Result<(), TenancyError> {
        let mut record = self.records.get(slug).map_err(TenancyError::Record)?;
        let before = record.clone();
        let pollers = &mut record.sites.entry(site.clone()).or_default().pollers;
        let known = pollers.entry(poller.clone()).or_insert_with(|| PollerRecord {
            standing: Standing::Active,
            batch_key: String::new(),
            sealing_key: None,
            is_enrolled: false,
            tls_keys: std::collections::BTreeMap::new(),
            issued: Issued::default(),
        });
        batch_key.clone_into(&mut known.batch_key);
        if record == before { Ok(()) } else { self.records.write(&record).map_err(TenancyError::Record) }
    }
}
