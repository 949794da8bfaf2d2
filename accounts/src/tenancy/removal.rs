//! Taking pollers and sites away: written down first, then told to the hub and the database, each whether the other is there
//! or not. What is cut short is completed by the same call.

use bulkhead_bus::{PollerName, SiteName};
use bulkhead_store::{PollerState, WithPollers};
use serde_json::json;

use super::paths::{PollerPath, SitePath};
use super::sites::known_poller;
use super::{Act, Line, Links, Preview, SiteRecord, Standing, Tenancy, TenancyError, TenantRecord};
use crate::certificates::AuthorityName;
use crate::files::remove_whole;

/// The pollers of a site whose removal has begun.
fn pollers_of(begun: &Line) -> Vec<PollerName> {
    let names = begun.detail["pollers"].as_array().into_iter().flatten();
    names.filter_map(|name| name.as_str()?.parse().ok()).collect()
}

impl Tenancy {
    /// Core refuses what the poller signs, within a second, and its certificates are revoked. Its site needs a new bundle
    /// before its leaf refuses it as well.
    ///
    /// # Errors
    /// When there is no such poller.
    pub async fn revoke_poller(&self, links: &Links, path: &PollerPath) -> Result<(), TenancyError> {
        let mut record = self.records.get(&path.tenant).map_err(TenancyError::Record)?;
        if known_poller(&record, path).is_err() && self.withdraw_tokens(path, "its poller was revoked")? > 0 {
            return Ok(());
        }
        known_poller(&record, path)?;
        let act = self.begin(Act::ChangePoller, &path.to_string(), json!({"change": "revoked"}))?;
        if let Some(poller) = record.sites.get_mut(&path.site).and_then(|site| site.pollers.get_mut(&path.poller)) {
            poller.standing = Standing::Revoked;
            self.platform
                .revoke_certificates(&AuthorityName::Tenant(path.tenant.clone()), &poller.issued)
                .map_err(TenancyError::Platform)?;
        }
        self.records.write(&record).map_err(TenancyError::Record)?;
        self.withdraw_tokens(path, "its poller was revoked")?;
        // One of them away keeps the other from nothing.
        let refused = self.refuse_poller(links, &record, path).await;
        self.follow_tenant(links, &record).await?;
        refused?;
        act.finish(json!({"change": "revoked"}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// Core refuses what it signs.
    async fn refuse_poller(&self, links: &Links, record: &TenantRecord, path: &PollerPath) -> Result<(), TenancyError> {
        let Some(database) = links.database().await? else { return Ok(()) };
        let (tenant, place) = (self.tenant_of(record)?, (&path.site, &path.poller));
        database.set_poller_state(&tenant, place, PollerState::Revoked).await.map_err(TenancyError::Rows)
    }

    /// Takes a poller off the lists; what it has measured stays.
    ///
    /// # Errors
    /// When there is no such poller.
    pub async fn remove_poller(&self, links: &Links, path: &PollerPath) -> Result<(), TenancyError> {
        let mut record = self.records.get(&path.tenant).map_err(TenancyError::Record)?;
        let withdrawn = self.withdraw_tokens(path, "its poller was removed")?;
        // What a device has left open ends with its poller.
        for act in [Act::InvitePoller, Act::EnrolPoller, Act::RenewPoller] {
            self.journal.forget(act, &path.to_string()).map_err(TenancyError::Journal)?;
        }
        if !self.is_leaving(path)? {
            let known = known_poller(&record, path);
            if known.is_err() && withdrawn > 0 {
                return Ok(());
            }
            known?;
        }
        let act = self.begin(Act::RemovePoller, &path.to_string(), json!({}))?;
        if let Some(site) = record.sites.get_mut(&path.site)
            && let Some(poller) = site.pollers.remove(&path.poller)
        {
            self.platform
                .revoke_certificates(&AuthorityName::Tenant(path.tenant.clone()), &poller.issued)
                .map_err(TenancyError::Platform)?;
        }
        self.records.write(&record).map_err(TenancyError::Record)?;
        let removed = self.remove_poller_rows(links, &record, path).await;
        self.follow_tenant(links, &record).await?;
        removed?;
        self.destroy_batch_key(path)?;
        act.finish(json!({}), self.now_s()).map_err(TenancyError::Journal)
    }

    async fn remove_poller_rows(
        &self,
        links: &Links,
        record: &TenantRecord,
        path: &PollerPath,
    ) -> Result<(), TenancyError> {
        let Some(database) = links.database().await? else { return Ok(()) };
        let tenant = self.tenant_of(record)?;
        database.remove_poller(&tenant, &path.site, &path.poller).await.map_err(TenancyError::Rows)
    }

    /// Removes a site: its leaf is disconnected at once and never admitted again.
    ///
    /// # Errors
    /// When it has pollers that are not to go with it, or a server does not follow.
    pub async fn remove_site(
        &self,
        links: &Links,
        path: &SitePath,
        with_pollers: WithPollers,
    ) -> Result<(), TenancyError> {
        let mut record = self.records.get(&path.tenant).map_err(TenancyError::Record)?;
        let begun = self.journal.find(Act::RemoveSite, &path.to_string()).map_err(TenancyError::Journal)?;
        let begun = begun.as_ref().and_then(|lines| lines.first());
        let pollers: Vec<PollerName> = match (record.sites.get(&path.site), begun) {
            (None, Some(begun)) => pollers_of(begun),
            _ => removable_site(&record, path, with_pollers)?.pollers.keys().cloned().collect(),
        };
        let act = self.begin(Act::RemoveSite, &path.to_string(), json!({"pollers": pollers}))?;
        self.take_site_out(&mut record, path)?;
        let told = self.follow_tenant(links, &record).await;
        self.remove_site_rows(links, &record, path).await?;
        told?;
        let below = format!("{path}/");
        for line in self.journal.under_way().map_err(TenancyError::Journal)? {
            let Some(first) = line.first().filter(|first| first.about.starts_with(&below)) else { continue };
            if matches!(first.act, Act::InvitePoller | Act::EnrolPoller | Act::RenewPoller) {
                self.journal.forget(first.act, &first.about).map_err(TenancyError::Journal)?;
            }
        }
        for poller in pollers {
            let (tenant, site) = (path.tenant.clone(), path.site.clone());
            self.destroy_batch_key(&PollerPath { tenant, site, poller })?;
        }
        act.finish(json!({}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// From here on it is nobody's: not let in, not issued anything, and not started again.
    fn take_site_out(&self, record: &mut TenantRecord, path: &SitePath) -> Result<(), TenancyError> {
        let below = format!("{path}/");
        let withdrawn = self.tokens().withdraw(|of| of.starts_with(&below), "its site was removed", self.now_s());
        withdrawn.map_err(TenancyError::Enrolment)?;
        record.removed_sites.insert(path.site.clone());
        if let Some(site) = record.sites.remove(&path.site) {
            let issuer = AuthorityName::Tenant(path.tenant.clone());
            self.void_all(&issuer, &site.leaf, &site.earlier_leaves)?;
            for poller in site.pollers.values() {
                self.platform.revoke_certificates(&issuer, &poller.issued).map_err(TenancyError::Platform)?;
            }
        }
        self.records.write(record).map_err(TenancyError::Record)
    }

    async fn remove_site_rows(
        &self,
        links: &Links,
        record: &TenantRecord,
        path: &SitePath,
    ) -> Result<(), TenancyError> {
        let Some(database) = links.database().await? else { return Ok(()) };
        let tenant = self.tenant_of(record)?;
        let removed = database.remove_site(&tenant, &path.site, WithPollers::Remove).await;
        removed.map(drop).map_err(TenancyError::Rows)
    }

    /// What revoking or removing a poller would do.
    ///
    /// # Errors
    /// When there is no such poller, or the servers cannot be asked.
    pub async fn preview_poller(&self, links: &Links, path: &PollerPath) -> Result<Preview, TenancyError> {
        let record = self.records.get(&path.tenant).map_err(TenancyError::Record)?;
        let serials = &known_poller(&record, path)?.issued.serials;
        let account = self.account_named(path.tenant.as_str())?;
        let now = self.gate_of_tenant(&record, &account)?;
        let issued = self.platform.authority.list_issued(&AuthorityName::Tenant(path.tenant.clone()));
        let issued = issued.map_err(TenancyError::Certificate)?.into_iter();
        let mut wanted = now.clone();
        wanted.revoked.extend(issued.filter(|one| serials.contains(&one.serial)).map(|one| one.fingerprint));
        self.preview_gate(links, &account, (&now, &wanted)).await
    }

    /// Whether the removal of a poller has begun and is not done.
    fn is_leaving(&self, path: &PollerPath) -> Result<bool, TenancyError> {
        let begun = self.journal.find(Act::RemovePoller, &path.to_string()).map_err(TenancyError::Journal)?;
        Ok(begun.is_some())
    }

    /// Refuses to add what is being removed: completing that would take the new one away.
    pub(super) fn refuse_leaving(&self, path: &PollerPath) -> Result<(), TenancyError> {
        self.refuse_leaving_site(&SitePath { tenant: path.tenant.clone(), site: path.site.clone() })?;
        match self.is_leaving(path)? {
            true => Err(TenancyError::Invalid(format!(
                "the removal of poller {path} has begun and is not done: `bulkhead push` completes it"
            ))),
            false => Ok(()),
        }
    }

    pub(super) fn refuse_leaving_site(&self, path: &SitePath) -> Result<(), TenancyError> {
        match self.journal.find(Act::RemoveSite, &path.to_string()).map_err(TenancyError::Journal)? {
            Some(_) => Err(TenancyError::Invalid(format!(
                "the removal of site {path} has begun and is not done: `bulkhead push` completes it"
            ))),
            None => Ok(()),
        }
    }

    /// What removing a site would do.
    ///
    /// # Errors
    /// What [`Tenancy::remove_site`] would refuse.
    pub async fn preview_site_removal(
        &self,
        links: &Links,
        path: &SitePath,
        with_pollers: WithPollers,
    ) -> Result<Preview, TenancyError> {
        let mut record = self.records.get(&path.tenant).map_err(TenancyError::Record)?;
        removable_site(&record, path, with_pollers)?;
        let account = self.account_named(path.tenant.as_str())?;
        let now = self.gate_of_tenant(&record, &account)?;
        record.sites.remove(&path.site);
        let wanted = self.gate_of_tenant(&record, &account)?;
        self.preview_gate(links, &account, (&now, &wanted)).await
    }

    /// So that a poller of the same name is somebody else: whoever has the old key speaks for nobody.
    fn destroy_batch_key(&self, path: &PollerPath) -> Result<(), TenancyError> {
        let keys = self.platform.layout.batch_keys(&path.tenant, &path.site, &path.poller);
        keys.iter().try_for_each(|key| remove_whole(key)).map_err(TenancyError::File)
    }
}

fn removable_site<'a>(
    record: &'a TenantRecord,
    path: &SitePath,
    with_pollers: WithPollers,
) -> Result<&'a SiteRecord, TenancyError> {
    let Some(site) = record.sites.get(&path.site) else {
        let known: Vec<&str> = record.sites.keys().map(SiteName::as_str).collect();
        let has = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        return Err(TenancyError::Invalid(format!("there is no site {path}: tenant {} has {has}", path.tenant)));
    };
    if !site.pollers.is_empty() && with_pollers == WithPollers::Refuse {
        let problem =
            format!("site {path} has {} pollers: remove them first, or say --with-pollers", site.pollers.len());
        return Err(TenancyError::Invalid(problem));
    }
    Ok(site)
}
