//! Sites and pollers: one bundle a site, written anew whenever a poller comes, goes or gets a new key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bulkhead_bus::{PollerName, SiteName, Tenant};
use serde_json::json;

use super::first_people::renew;
use super::paths::{PollerPath, SitePath};
use super::{
    Act, Issued, Links, PollerRecord, SiteRecord, SiteSettings, Standing, Tenancy, TenancyError, TenantRecord,
    TenantStage,
};
use crate::bundle::{
    BundleManifest, BundleOptions, PollerManifest, SiteBundle, check_place, make_site_bundle, remove_leftovers,
};
use crate::up::{Target, tenant_row};

/// Where a bundle was written.
#[derive(Debug)]
pub struct WrittenBundle {
    pub folder: PathBuf,
    pub archive: PathBuf,
    /// SHA-256 of the archive.
    pub sha256: String,
    pub manifest: BundleManifest,
}

/// What a bundle is written with.
#[derive(Debug, Clone)]
pub struct BundleOrder {
    /// The folder that gets the bundle's folder and archive.
    pub to: PathBuf,
    pub site: SiteOrder,
}

/// How a site is set up from now on.
#[derive(Debug, Clone, Default)]
pub struct SiteOrder {
    /// Instead of what the site watched so far.
    pub targets: Option<Vec<Target>>,
    /// Instead of the port that it had so far.
    pub leaf_port: Option<u16>,
    /// Instead of the port that it had so far.
    pub health_port: Option<u16>,
    /// Instead of the proxy that it had so far; `Some(None)` goes without one.
    pub proxy: Option<Option<String>>,
}

impl SiteOrder {
    pub(super) fn settings(&self, known: &SiteSettings) -> SiteSettings {
        SiteSettings {
            targets: self.targets.clone().unwrap_or_else(|| known.targets.clone()),
            leaf_port: self.leaf_port.or(known.leaf_port),
            health_port: self.health_port.or(known.health_port),
            proxy: self.proxy.clone().unwrap_or_else(|| known.proxy.clone()),
        }
    }
}

impl SiteSettings {
    pub(super) fn options(&self) -> BundleOptions {
        let usual = BundleOptions::default();
        BundleOptions {
            targets: self.targets.clone(),
            leaf_port: self.leaf_port.unwrap_or(usual.leaf_port),
            health_port: self.health_port.unwrap_or(usual.health_port),
            proxy: self.proxy.clone(),
            ..usual
        }
    }
}

impl Tenancy {
    pub(super) fn tenant_of(&self, record: &TenantRecord) -> Result<Tenant, TenancyError> {
        Ok(tenant_row(record, &self.plan_of(record)?))
    }

    /// Adds a poller, and its site when that is new, and writes the site's bundle. For one that is there already the bundle
    /// is written anew.
    ///
    /// # Errors
    /// When the tenant is not active, its plan allows no more sites, or something cannot be written.
    pub async fn add_poller(
        &self,
        links: &Links,
        path: &PollerPath,
        order: &BundleOrder,
    ) -> Result<WrittenBundle, TenancyError> {
        let record =
            self.staged(&path.tenant, &[TenantStage::Active], "pollers are added to a tenant that is active")?;
        self.check_sites(&record, &path.site)?;
        self.refuse_leaving(path)?;
        if let Some(known) = record.sites.get(&path.site).and_then(|site| site.pollers.get(&path.poller)) {
            refuse_revoked(known, path)?;
        }
        refuse_enrolled(&record, &path.site)?;
        self.refuse_invited(path)?;
        check_place(&order.to, &path.tenant, &path.site).map_err(TenancyError::BundleFiles)?;
        let act = self.begin(Act::AddPoller, &path.to_string(), json!({}))?;
        self.withdraw_tokens(path, "a bundle was written instead")?;
        let written = self.bundle(links, record, (&path.site, Some(&path.poller)), BTreeSet::new(), order).await?;
        act.finish(json!({"sha256": written.sha256}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(written)
    }

    /// Gives a poller a new batch key and its site a new bundle. What the old key has signed and core has not stored yet is
    /// refused from now on.
    ///
    /// # Errors
    /// When there is no such poller that is active.
    pub async fn rotate_poller(
        &self,
        links: &Links,
        path: &PollerPath,
        order: &BundleOrder,
    ) -> Result<WrittenBundle, TenancyError> {
        let record =
            self.staged(&path.tenant, &[TenantStage::Active], "only pollers of an active tenant are rotated")?;
        refuse_revoked(known_poller(&record, path)?, path)?;
        refuse_enrolled(&record, &path.site)?;
        check_place(&order.to, &path.tenant, &path.site).map_err(TenancyError::BundleFiles)?;
        let act = self.begin(Act::ChangePoller, &path.to_string(), json!({"change": "new key"}))?;
        let new_keys = BTreeSet::from([path.poller.clone()]);
        let written = self.bundle(links, record, (&path.site, Some(&path.poller)), new_keys, order).await?;
        act.finish(json!({"sha256": written.sha256}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(written)
    }

    /// Whether `bulkhead up` runs this poller.
    #[must_use]
    pub fn runs_here(&self, path: &PollerPath) -> bool {
        self.platform.layout.poller(&path.tenant, &path.site, &path.poller).exists()
    }

    /// A poller of a tenant.
    ///
    /// # Errors
    /// When there is none of that name; the error names those that there are.
    pub fn poller<'a>(&self, record: &'a TenantRecord, path: &PollerPath) -> Result<&'a PollerRecord, TenancyError> {
        known_poller(record, path)
    }

    /// Adds a site without pollers.
    ///
    /// # Errors
    /// When the tenant is not active or its plan allows no more sites.
    pub async fn add_site(&self, links: &Links, path: &SitePath) -> Result<(), TenancyError> {
        let mut record =
            self.staged(&path.tenant, &[TenantStage::Active], "sites are added to a tenant that is active")?;
        self.check_sites(&record, &path.site)?;
        self.refuse_leaving_site(path)?;
        let act = self.begin(Act::AddSite, &path.to_string(), json!({}))?;
        let tenant = self.tenant_of(&record)?;
        if let Some(database) = links.database().await? {
            database.put_site(&tenant, &path.site).await.map_err(TenancyError::Rows)?;
        }
        record.sites.entry(path.site.clone()).or_default();
        record.removed_sites.remove(&path.site);
        self.records.write(&record).map_err(TenancyError::Record)?;
        self.tell_tenant(links, &record).await?;
        act.finish(json!({}), self.now_s()).map_err(TenancyError::Journal)
    }

    pub(super) fn check_sites(&self, record: &TenantRecord, site: &SiteName) -> Result<(), TenancyError> {
        let plan = self.plan_of(record)?;
        let allowed = usize::try_from(plan.leaf_links).unwrap_or(usize::MAX);
        if record.sites.contains_key(site) || record.sites.len() < allowed {
            return Ok(());
        }
        let slug = &record.slug;
        Err(TenancyError::Invalid(format!(
            "tenant {slug} has {} sites, and plan {} allows {allowed}: remove one, or move it to another plan \
             (`bulkhead tenant plan {slug} PLAN`)",
            record.sites.len(),
            record.plan
        )))
    }

    /// Writes the bundle of a site with all its active pollers, and everything that has to be known of it. What the site was
    /// given before stays good until it expires, so that the bundle can be exchanged without a gap.
    async fn bundle(
        &self,
        links: &Links,
        mut record: TenantRecord,
        (site, poller): (&SiteName, Option<&PollerName>),
        new_keys: BTreeSet<PollerName>,
        order: &BundleOrder,
    ) -> Result<WrittenBundle, TenancyError> {
        remove_leftovers(self.platform.layout.home());
        let known = record.sites.get(site).cloned().unwrap_or_default();
        let is_active =
            |(name, poller): (&PollerName, &PollerRecord)| (poller.standing == Standing::Active).then(|| name.clone());
        let mut pollers: BTreeSet<PollerName> = known.pollers.iter().filter_map(is_active).collect();
        pollers.extend(poller.cloned());
        let pollers: Vec<PollerName> = pollers.into_iter().collect();
        let settings = order.site.settings(&known.settings);
        let options = BundleOptions { new_keys, ..settings.options() };
        let made = make_site_bundle(&self.platform, &self.settings.leaf_urls, &record.slug, site, &pollers, &options);
        let made = made.map_err(|error| TenancyError::Bundle(Box::new(error)))?;
        // The record first: what was issued must be known before it leaves this machine.
        let site_record = site_record(SiteRecord { settings, ..known }, &made, self.now_s());
        record.sites.insert(site.clone(), site_record);
        record.removed_sites.remove(site);
        self.records.write(&record).map_err(TenancyError::Record)?;
        let tenant = self.tenant_of(&record)?;
        if let Some(database) = links.database().await? {
            database.put_site(&tenant, site).await.map_err(TenancyError::Rows)?;
            for poller in &made.manifest.pollers {
                let put = database.put_poller(&tenant, site, &poller.poller, &poller.batch_key).await;
                put.map_err(TenancyError::Rows)?;
            }
        }
        self.tell_tenant(links, &record).await?;
        write_bundle(&made.files, &order.to, made.manifest)
    }
}

/// What is revoked stays so: a new key under the same entry would be refused as well.
pub(super) fn refuse_revoked(known: &PollerRecord, path: &PollerPath) -> Result<(), TenancyError> {
    match known.standing {
        Standing::Active => Ok(()),
        Standing::Revoked => Err(TenancyError::Invalid(format!(
            "poller {path} is revoked: remove it first (`bulkhead poller remove {path}`), then add it"
        ))),
    }
}

/// A bundle would give pollers other keys than their devices have made, and end them.
pub(super) fn refuse_enrolled(record: &TenantRecord, site: &SiteName) -> Result<(), TenancyError> {
    let pollers = record.sites.get(site).into_iter().flat_map(|site| &site.pollers);
    let enrolled = pollers.filter(|(_, poller)| poller.is_enrolled && poller.standing == Standing::Active);
    let enrolled: Vec<&str> = enrolled.map(|(name, _)| name.as_str()).collect();
    if enrolled.is_empty() {
        return Ok(());
    }
    Err(TenancyError::Invalid(format!(
        "site {}/{site} has pollers that made their own keys ({}), and a bundle would replace those: `bulkhead poller add` \
         without --to gives a token instead, and `bulkhead-poller enroll --new-keys` makes new keys there",
        record.slug,
        enrolled.join(", ")
    )))
}

pub(super) fn known_poller<'a>(record: &'a TenantRecord, path: &PollerPath) -> Result<&'a PollerRecord, TenancyError> {
    let poller = record.sites.get(&path.site).and_then(|site| site.pollers.get(&path.poller));
    poller.ok_or_else(|| {
        let all =
            record.sites.iter().flat_map(|(site, held)| held.pollers.keys().map(move |one| format!("{site}/{one}")));
        let known: Vec<String> = all.collect();
        let has = if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
        TenancyError::Invalid(format!("there is no poller {path}: tenant {} has {has}", path.tenant))
    })
}

/// What a poller was issued before and now: all of it is taken back together.
pub(super) fn merge_serials(before: Option<&PollerRecord>, now: &PollerManifest) -> Vec<String> {
    let before = before.map(|before| before.issued.serials.clone()).unwrap_or_default();
    before.into_iter().chain([now.certificate.serial.clone(), now.forwarder.serial.clone()]).collect()
}

/// What is known of a site once the bundle exists.
fn site_record(mut known: SiteRecord, made: &SiteBundle, now_s: i64) -> SiteRecord {
    renew(now_s, &mut known.leaf, &mut known.earlier_leaves, made.leaf.clone());
    let pollers = &mut known.pollers;
    for poller in &made.manifest.pollers {
        let issued = Issued {
            serials: merge_serials(pollers.get(&poller.poller), poller),
            certificates_expire: poller.certificate.not_after,
        };
        let record = PollerRecord {
            standing: Standing::Active,
            batch_key: poller.batch_key.as_str().to_owned(),
            sealing_key: None,
            is_enrolled: false,
            tls_keys: std::collections::BTreeMap::new(),
            issued,
        };
        pollers.insert(poller.poller.clone(), record);
    }
    known
}

fn write_bundle(
    files: &crate::bundle::BundleFiles,
    to: &Path,
    manifest: BundleManifest,
) -> Result<WrittenBundle, TenancyError> {
    let to = std::path::absolute(to).map_err(|error| TenancyError::Invalid(format!("{}: {error}", to.display())))?;
    crate::files::make_folder(&to).map_err(TenancyError::File)?;
    let folder = to.join(files.name());
    let archive = to.join(format!("{}.tar.gz", files.name()));
    files.write_folder(&folder).map_err(TenancyError::BundleFiles)?;
    let sha256 = files.write_archive(&archive).map_err(TenancyError::BundleFiles)?;
    Ok(WrittenBundle { folder, archive, sha256, manifest })
}
