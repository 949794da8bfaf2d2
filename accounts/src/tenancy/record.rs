//! What a tenant should be: one file each, `<home>/tenants/<slug>.json`. Accounts are rendered from it, whole, every time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;

use bulkhead_bus::{AccountKey, PollerName, Role, SiteName, TenantId, TenantSlug, UserName};
use bulkhead_identity::DeviceEnd;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::certificates::IssuedCertificate;
use crate::files::{FileError, read_state, remove_whole, write_secret};
use crate::plan::PlanRef;
use crate::up::{Layout, Target};

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("tenant record")]
    File(#[source] FileError),
    #[error("{path} is damaged: restore it from a backup")]
    Damaged { path: String, source: serde_json::Error },
    #[error("{path} says it is tenant {found}: a record is named as its tenant; restore it from a backup")]
    Misnamed { path: String, found: TenantSlug },
    #[error("there is no tenant {0}: `bulkhead tenant list` shows those that there are")]
    Unknown(TenantSlug),
    #[error("list tenants")]
    List(#[source] std::io::Error),
}

/// Where a tenant is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantStage {
    /// Its onboarding has begun and is not done: it is completed or undone, never left so.
    Adding,
    Active,
    /// Nobody of it is admitted; everything is kept.
    Suspended,
    /// No server has its account any more; keys and rows are kept until it is purged.
    Offboarded,
}

impl TenantStage {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Adding => "adding",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Offboarded => "offboarded",
        }
    }

    /// Whether its people and sites are admitted.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Adding | Self::Active)
    }
}

/// Whether somebody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    Active,
    Revoked,
}

/// The certificates that somebody was issued, so that they can be taken back. Credentials of an earlier release open nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Hexadecimal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serials: Vec<String>,
    /// Unix seconds until which the certificates are good.
    #[serde(default)]
    pub certificates_expire: i64,
}

/// Whether gatekeepers let whoever shows it in, as far as it depends on the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileState {
    Active,
    Expired,
}

impl FileState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
        }
    }
}

impl Issued {
    #[must_use]
    pub fn new(certificate: IssuedCertificate) -> Self {
        Self { certificates_expire: certificate.not_after.unix_timestamp(), serials: vec![certificate.serial] }
    }

    #[must_use]
    pub fn state(&self, now_s: i64) -> FileState {
        if self.certificates_expire > now_s { FileState::Active } else { FileState::Expired }
    }
}

/// A person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonRecord {
    pub role: PersonRole,
    pub standing: Standing,
    pub issued: Issued,
    /// What was issued before and is good until it ends, or until the person is put out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Issued>,
}

/// What a person of a tenant may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PersonRole {
    Admin,
    Viewer,
}

/// A text that is no role of a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role of a person: choose admin or viewer")]
pub struct PersonRoleError(String);

impl FromStr for PersonRole {
    type Err = PersonRoleError;

    fn from_str(text: &str) -> Result<Self, PersonRoleError> {
        match text {
            "admin" => Ok(Self::Admin),
            "viewer" => Ok(Self::Viewer),
            other => Err(PersonRoleError(other.chars().take(60).collect())),
        }
    }
}

impl PersonRole {
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Admin => Role::Admin,
            Self::Viewer => Role::Viewer,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Viewer => "viewer",
        }
    }
}

/// A poller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollerRecord {
    pub standing: Standing,
    /// Public key that its batches are verified with.
    pub batch_key: String,
    /// Public X25519 key for what only it may read, where its device has made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<String>,
    /// Whether its device has made its keys, so that nobody else has their private halves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_enrolled: bool,
    /// The TLS keys that its device has shown, by their SHA-256: only for these certificates are renewed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tls_keys: BTreeMap<DeviceEnd, String>,
    pub issued: Issued,
}

/// How a site's bundle is made, for every time that it is made again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteSettings {
    /// What its pollers watch beside their machine and the leaf.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
    /// Where the leaf listens on the site's loopback interface, when it is not the usual port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaf_port: Option<u16>,
    /// Where the first poller is asked about its health, when it is not the usual port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_port: Option<u16>,
    /// The proxy between its leaf and the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
}

/// A site: one leaf and its pollers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRecord {
    #[serde(default)]
    pub settings: SiteSettings,
    /// What its leaf holds.
    #[serde(default)]
    pub leaf: Issued,
    /// What earlier bundles held: good until it expires, or the site is removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_leaves: Vec<Issued>,
    #[serde(default)]
    pub pollers: BTreeMap<PollerName, PollerRecord>,
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    pub slug: TenantSlug,
    /// Free text: shown to people, and never part of a subject, a path or a configuration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub display_name: String,
    /// What the database calls it; never given again.
    pub id: Uuid,
    pub plan: PlanRef,
    pub stage: TenantStage,
    /// Unknown until its keys are made.
    pub account: Option<AccountKey>,
    /// Unix seconds.
    pub added_at: i64,
    #[serde(default)]
    pub people: BTreeMap<UserName, PersonRecord>,
    #[serde(default)]
    pub sites: BTreeMap<SiteName, SiteRecord>,
    /// Sites that an operator has removed: they come back by a command and not by a start.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed_sites: BTreeSet<SiteName>,
}

impl TenantRecord {
    #[must_use]
    pub fn new(slug: TenantSlug, id: Uuid, plan: PlanRef, now: i64) -> Self {
        Self {
            slug,
            display_name: String::new(),
            id,
            plan,
            stage: TenantStage::Adding,
            account: None,
            added_at: now,
            people: BTreeMap::new(),
            sites: BTreeMap::new(),
            removed_sites: BTreeSet::new(),
        }
    }

    #[must_use]
    pub fn tenant_id(&self) -> TenantId {
        TenantId::new(self.id)
    }

    /// How many pollers it has that are not revoked.
    #[must_use]
    pub fn active_pollers(&self) -> usize {
        let pollers = self.sites.values().flat_map(|site| site.pollers.values());
        pollers.filter(|poller| poller.standing == Standing::Active).count()
    }
}

/// All records of a home.
#[derive(Debug, Clone)]
pub struct TenantRecords {
    folder: PathBuf,
}

impl TenantRecords {
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self { folder: layout.tenants() }
    }

    fn path(&self, slug: &TenantSlug) -> PathBuf {
        self.folder.join(format!("{slug}.json"))
    }

    /// # Errors
    /// When the record is there and damaged.
    pub fn find(&self, slug: &TenantSlug) -> Result<Option<TenantRecord>, RecordError> {
        let path = self.path(slug);
        if !path.exists() {
            return Ok(None);
        }
        let text = read_state(&path).map_err(RecordError::File)?;
        let path = path.display().to_string();
        let record: TenantRecord =
            serde_json::from_str(&text).map_err(|source| RecordError::Damaged { path: path.clone(), source })?;
        if record.slug == *slug { Ok(Some(record)) } else { Err(RecordError::Misnamed { path, found: record.slug }) }
    }

    /// # Errors
    /// When there is no such tenant, or its record is damaged.
    pub fn get(&self, slug: &TenantSlug) -> Result<TenantRecord, RecordError> {
        self.find(slug)?.ok_or_else(|| RecordError::Unknown(slug.clone()))
    }

    /// The slugs of all tenants, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn slugs(&self) -> Result<Vec<TenantSlug>, RecordError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(RecordError::List)?,
        };
        let mut slugs = Vec::new();
        for entry in entries {
            let name = entry.map_err(RecordError::List)?.file_name();
            // Temporary files begin with a dot, which no slug does.
            slugs.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|name| name.parse().ok()));
        }
        slugs.sort();
        Ok(slugs)
    }

    /// # Errors
    /// When a record is damaged.
    pub fn all(&self) -> Result<Vec<TenantRecord>, RecordError> {
        self.slugs()?.iter().map(|slug| self.get(slug)).collect()
    }

    /// # Errors
    /// When it cannot be written; then the old one is still there.
    ///
    /// # Panics
    /// Never: a record serializes.
    pub fn write(&self, record: &TenantRecord) -> Result<(), RecordError> {
        let text = serde_json::to_vec_pretty(record).expect("a record serializes");
        write_secret(&self.path(&record.slug), &text).map_err(RecordError::File)
    }

    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, slug: &TenantSlug) -> Result<(), RecordError> {
        remove_whole(&self.path(slug)).map_err(RecordError::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PlanName;

    fn record(slug: &str) -> TenantRecord {
        let plan = PlanRef { name: PlanName::Pro, version: 1 };
        TenantRecord::new(slug.parse().unwrap(), Uuid::new_v4(), plan, 7)
    }

    #[test]
    fn records_are_found_by_slug_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let records = TenantRecords::new(&Layout::new(folder.path().to_owned()));
        assert_eq!(records.slugs().unwrap(), []);
        let acme = record("acme-corp");
        assert!(records.get(&acme.slug).unwrap_err().to_string().contains("no tenant acme-corp"));
        records.write(&acme).unwrap();
        records.write(&record("xyz-inc")).unwrap();
        assert_eq!(records.get(&acme.slug).unwrap(), acme);
        assert_eq!(records.all().unwrap().len(), 2);
        std::fs::copy(records.path(&acme.slug), records.path(&"other".parse().unwrap())).unwrap();
        assert!(
            records.get(&"other".parse().unwrap()).unwrap_err().to_string().contains("says it is tenant acme-corp")
        );
        std::fs::write(records.path(&acme.slug), "{").unwrap();
        assert!(records.get(&acme.slug).unwrap_err().to_string().contains("acme-corp.json is damaged"));
        records.remove(&acme.slug).unwrap();
        records.remove(&acme.slug).unwrap();
        assert_eq!(records.find(&acme.slug).unwrap(), None);
    }
}
