//! Reconciles the INTAKE accounts with the tenants there are. Whoever comes while somebody else is at it leaves the mark and
//! goes: the one who holds the lock looks again after giving it back, so that no mark is overlooked.

use std::collections::BTreeMap;

use bulkhead_bus::{AccountKey, TenantSlug};

use super::intake::place;
use super::{LOCK_LIMIT, Links, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::provisioning_lock::ProvisioningLock;

/// The account whose live stream is to be imported for a tenant.
fn live_key(record: &TenantRecord) -> Option<&AccountKey> {
    let is_imported = matches!(record.stage, TenantStage::Active | TenantStage::Suspended);
    record.account.as_ref().filter(|_| is_imported)
}

impl Tenancy {
    /// Whose live stream INTAKE accounts should import: account keys by slug.
    ///
    /// # Errors
    /// When a record is damaged.
    pub fn live_tenants(&self) -> Result<BTreeMap<TenantSlug, AccountKey>, TenancyError> {
        let records = self.records.all().map_err(TenancyError::Record)?;
        Ok(records.into_iter().filter_map(|record| Some((record.slug.clone(), live_key(&record)?.clone()))).collect())
    }

    /// Marks every tenant whose place in the shards is not what its record says, whether anybody has marked it or not.
    ///
    /// # Errors
    /// When a record or a shard is damaged, or a mark cannot be written.
    pub fn mark_misplaced(&self) -> Result<(), TenancyError> {
        let wanted = self.live_tenants()?;
        let shards = self.intake.shards().map_err(TenancyError::Intake)?;
        let placed: BTreeMap<&TenantSlug, &AccountKey> = shards.values().flat_map(|shard| &shard.tenants).collect();
        let is_misplaced = |slug: &&TenantSlug| wanted.get(*slug) != placed.get(*slug).copied();
        for slug in wanted.keys().chain(placed.keys().copied()).filter(is_misplaced) {
            self.intake.mark(slug).map_err(TenancyError::Intake)?;
        }
        Ok(())
    }

    /// Keeps everybody else from changing what INTAKE accounts import, for whoever renders them from the shards there are.
    /// Who has held it calls [`Tenancy::reconcile_live`] afterwards: whoever came meanwhile has left its mark and gone.
    ///
    /// # Errors
    /// When somebody else keeps it.
    pub fn hold_live(&self) -> Result<ProvisioningLock, TenancyError> {
        self.intake.make_folders().map_err(TenancyError::Intake)?;
        ProvisioningLock::take_at(&self.intake.lock_file(), LOCK_LIMIT).map_err(TenancyError::Lock)
    }

    /// Sees to every tenant that waits; returns the slugs that were seen to by this call. Without `links` the accounts are
    /// only rendered, for a hub that does not run yet.
    ///
    /// # Errors
    /// When a shard is damaged or a server does not show it; the marks stay.
    pub async fn reconcile_live(&self, links: Option<&Links>) -> Result<Vec<TenantSlug>, TenancyError> {
        self.intake.make_folders().map_err(TenancyError::Intake)?;
        let path = self.intake.lock_file();
        let mut seen = Vec::new();
        loop {
            let Some(held) = ProvisioningLock::try_at(&path).map_err(TenancyError::Lock)? else { return Ok(seen) };
            let outcome = self.reconcile_waiting(links).await;
            drop(held);
            seen.extend(outcome?);
            if self.intake.waiting().map_err(TenancyError::Intake)?.is_empty() {
                return Ok(seen);
            }
        }
    }

    async fn reconcile_waiting(&self, links: Option<&Links>) -> Result<Vec<TenantSlug>, TenancyError> {
        let waiting = self.intake.take_marks().map_err(TenancyError::Intake)?;
        let mut wanted: BTreeMap<TenantSlug, Option<AccountKey>> = BTreeMap::new();
        for slug in &waiting {
            let record = self.records.find(slug).map_err(TenancyError::Record)?;
            wanted.insert(slug.clone(), record.as_ref().and_then(live_key).cloned());
        }
        let mut shards = self.intake.shards().map_err(TenancyError::Intake)?;
        for number in place(&mut shards, &wanted) {
            let Some(shard) = shards.get(&number) else { continue };
            let account = self.platform.render_intake(number, shard).map_err(TenancyError::Platform)?;
            if let Some(links) = links {
                self.put_in_force(links, &account).await?;
                if !self.platform.layout.live_bus(&account.name).exists() {
                    self.platform.write_live_bus(&account.name).map_err(TenancyError::Platform)?;
                }
            }
            // Last: as long as the shard is as it was, a start that was cut short renders and pushes once more.
            self.intake.write(number, shard).map_err(TenancyError::Intake)?;
        }
        self.intake.forget_marks(&waiting);
        Ok(waiting.into_iter().collect())
    }
}
