//! Reconciles the INTAKE accounts with the tenants there are. Whoever comes while somebody else is at it leaves the mark and
//! goes: the one who holds the lock looks again after giving it back, so that no mark is overlooked.

use std::collections::BTreeMap;
use std::fs::{OpenOptions, TryLockError};

use bulkhead_bus::{AccountKey, TenantSlug};

use super::intake::place;
use super::{Links, Tenancy, TenancyError, TenantStage};

impl Tenancy {
    /// Sees to every tenant that waits; returns the slugs that were seen to by this call. Without `links` the accounts are
    /// only rendered, for a hub that does not run yet.
    ///
    /// # Errors
    /// When a shard is damaged or a server does not show it; the marks stay.
    pub async fn reconcile_live(&self, links: Option<&Links>) -> Result<Vec<TenantSlug>, TenancyError> {
        self.intake.make_folders().map_err(TenancyError::Intake)?;
        let path = self.intake.lock_file();
        let failed =
            |source| TenancyError::Invalid(format!("lock {}: {source}; free some space on its disk", path.display()));
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let mut seen = Vec::new();
        loop {
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(seen),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            let outcome = self.reconcile_waiting(links).await;
            file.unlock().map_err(failed)?;
            seen.extend(outcome?);
            if self.intake.waiting().map_err(TenancyError::Intake)?.is_empty() {
                return Ok(seen);
            }
        }
    }

    async fn reconcile_waiting(&self, links: Option<&Links>) -> Result<Vec<TenantSlug>, TenancyError> {
        let waiting = self.intake.waiting().map_err(TenancyError::Intake)?;
        let mut wanted: BTreeMap<TenantSlug, Option<AccountKey>> = BTreeMap::new();
        for slug in &waiting {
            let record = self.records.find(slug).map_err(TenancyError::Record)?;
            let is_imported = |stage| matches!(stage, TenantStage::Active | TenantStage::Suspended);
            let key = record.filter(|record| is_imported(record.stage)).and_then(|record| record.account);
            wanted.insert(slug.clone(), key);
        }
        let mut shards = self.intake.shards().map_err(TenancyError::Intake)?;
        for number in place(&mut shards, &wanted) {
            let Some(shard) = shards.get(&number) else { continue };
            let account = self.platform.render_intake(number, shard).map_err(TenancyError::Platform)?;
            if let Some(links) = links {
                links.push(&account).await?;
                if !self.platform.layout.live_bus(&account.name).exists() {
                    self.platform.write_live_bus(&account.name).map_err(TenancyError::Platform)?;
                }
            }
            // Last: as long as the shard is as it was, a start that was cut short renders and pushes once more.
            self.intake.write(number, shard).map_err(TenancyError::Intake)?;
        }
        self.intake.unmark(&waiting);
        Ok(waiting.into_iter().collect())
    }
}
