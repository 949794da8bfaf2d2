//! Everything that a site gets, in one folder and one archive: leaf, pollers, certificates, credentials, units, README.
//!
//! Private keys and credentials exist in the bundle only; of a poller's batch key the home keeps a copy, so that a site that
//! is bundled anew stays who it is. Nothing here talks to the hub or the database.

mod files;
mod manifest;
mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bulkhead_bus::{PollerName, SiteName, TenantSlug};
use bulkhead_claims::{KeyKind, SigningKey};
use time::OffsetDateTime;

pub use files::{BundleFile, BundleFiles, BundleFilesError};
pub use manifest::{BundleManifest, CertificateFacts, FactsError, LeafManifest, PollerManifest};

use crate::certificates::CertificateFiles;
use crate::files::{FileError, make_folder, read_text, write_public};
use crate::keys::{KeyError, write_key};
use crate::nats_config::RenderError;
use crate::tenancy::Issued;
use crate::up::{
    CheckSetting, DeviceKeys, EndKeys, Layout, LeafSettings, Platform, PollerPorts, PollerTold, Site, SiteError,
    SiteMaker, SitePlace, Target, checks, ensure_batch_key, order_for, poller_folder, write_poller_settings,
};
use texts::{PollerText, SiteText};

/// How the folder of a bundle under way begins.
const UNDER_WAY: &str = ".bundle-";
const LEAF_PORT: u16 = 4222;
/// Of the first poller; the next ones follow.
const HEALTH_PORT: u16 = 9101;

/// Why there is no bundle. Nothing but a poller's batch key is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("a bundle of {0} without a poller would measure nothing: name at least one")]
    NoPoller(String),
    #[error("poller {0} is named twice")]
    Twice(PollerName),
    #[error("poller {0} is to get a new key and is not in this bundle: name it among the pollers")]
    Stranger(PollerName),
    #[error("no URL says where the leaf reaches the hub: name at least one, such as tls://hub.example.com:7422")]
    NoUrl,
    #[error("leaf URL {0:?} is not valid: write tls://host:port")]
    Url(String),
    #[error("ports {first} to 65535 are not enough for {pollers} pollers: choose a lower first one")]
    Ports { first: u16, pollers: usize },
    #[error("make a temporary folder in {path}")]
    Temporary { path: String, source: std::io::Error },
    #[error("site {0}")]
    Site(String, #[source] SiteError),
    #[error("batch key of poller {0}")]
    Key(PollerName, #[source] KeyError),
    #[error("files of the bundle")]
    File(#[source] FileError),
    #[error("collect the bundle's files")]
    Collect(#[source] BundleFilesError),
    #[error("what the bundle's certificates say")]
    Facts(#[source] FactsError),
    #[error("text for the site")]
    Text(#[source] RenderError),
}

impl BundleError {
    /// Whether what was asked for makes no bundle, however often it is tried.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::NoPoller(_)
            | Self::Twice(_)
            | Self::Stranger(_)
            | Self::NoUrl
            | Self::Url(_)
            | Self::Ports { .. } => true,
            Self::Temporary { .. }
            | Self::Site(..)
            | Self::Key(..)
            | Self::File(_)
            | Self::Collect(_)
            | Self::Facts(_)
            | Self::Text(_) => false,
        }
    }
}

/// What differs from bundle to bundle beside the names.
#[derive(Debug, Clone)]
pub struct BundleOptions {
    /// What the pollers watch beside this machine and the leaf.
    pub targets: Vec<Target>,
    /// Pollers that get a new batch key even when they have one.
    pub new_keys: BTreeSet<PollerName>,
    /// Where the leaf listens on the site's loopback interface.
    pub leaf_port: u16,
    /// Where the first poller is asked about its health; the next ones follow.
    pub health_port: u16,
    /// The proxy between leaf and hub.
    pub proxy: Option<String>,
    /// Where a device renews its certificates.
    pub renewal_urls: Vec<String>,
    /// How many sites came before, so that sites take turns in which server of the hub they try first.
    pub index: usize,
}

impl Default for BundleOptions {
    fn default() -> Self {
        Self {
            targets: vec![],
            new_keys: BTreeSet::new(),
            leaf_port: LEAF_PORT,
            health_port: HEALTH_PORT,
            proxy: None,
            renewal_urls: vec![],
            index: 0,
        }
    }
}

/// A bundle in memory.
pub struct SiteBundle {
    pub files: BundleFiles,
    pub manifest: BundleManifest,
    /// What its leaf shows to the hub.
    pub leaf: Issued,
}

/// A bundle under way.
struct Maker<'a> {
    platform: &'a Platform,
    site: &'a Site,
    options: &'a BundleOptions,
    place: SitePlace,
    health_ports: Vec<u16>,
    keys: EndKeys<'a>,
    /// Pollers of the site that a device has already.
    beside: &'a BTreeMap<PollerName, PollerManifest>,
}

/// Issues a site's leaf and all its pollers anew. Batch keys stay, except where `options.new_keys` says otherwise: what is in
/// the manifest then has to be registered before the bundle is used.
///
/// # Errors
/// [`BundleError`].
pub fn make_site_bundle(
    platform: &Platform,
    leaf_urls: &[String],
    tenant: &TenantSlug,
    site: &SiteName,
    pollers: &[PollerName],
    options: &BundleOptions,
) -> Result<SiteBundle, BundleError> {
    let site = Site { tenant: tenant.clone(), site: site.clone(), pollers: pollers.to_vec() };
    make(platform, leaf_urls, &site, options, (EndKeys::Made, &BTreeMap::new()))
}

/// Issues certificates for the keys of a device, and writes what else it needs for its poller and those `beside` it that it
/// has already. There is nothing secret in it.
///
/// # Errors
/// [`BundleError`].
pub fn make_device_files(
    platform: &Platform,
    leaf_urls: &[String],
    (tenant, site): (&TenantSlug, &SiteName),
    keys: &DeviceKeys,
    beside: &BTreeMap<PollerName, PollerManifest>,
    options: &BundleOptions,
) -> Result<SiteBundle, BundleError> {
    let pollers: BTreeSet<PollerName> = beside.keys().cloned().chain([keys.poller.clone()]).collect();
    let site = Site { tenant: tenant.clone(), site: site.clone(), pollers: pollers.into_iter().collect() };
    make(platform, leaf_urls, &site, options, (EndKeys::Device(keys), beside))
}

/// A folder of the home that goes by itself.
pub(crate) fn temporary(layout: &Layout) -> Result<tempfile::TempDir, BundleError> {
    let home = layout.home();
    make_folder(home).map_err(BundleError::File)?;
    let private = std::fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix(UNDER_WAY).permissions(private).tempdir_in(home);
    folder.map_err(|source| BundleError::Temporary { path: home.display().to_string(), source })
}

fn make(
    platform: &Platform,
    leaf_urls: &[String],
    site: &Site,
    options: &BundleOptions,
    (keys, beside): (EndKeys<'_>, &BTreeMap<PollerName, PollerManifest>),
) -> Result<SiteBundle, BundleError> {
    check_request(site, leaf_urls, options)?;
    let health_ports = health_ports(options.health_port, site.pollers.len())?;
    let folder = temporary(&platform.layout)?;
    let place = SitePlace {
        written: folder.path().to_owned(),
        named: "".into(),
        state: "state".into(),
        tenant_intermediate_file: "tls/tenant.crt".into(),
        server_root_file: "tls/hub-root.crt".into(),
    };
    let maker = Maker { platform, site, options, place, health_ports, keys, beside };
    let leaf_urls = order_for(options.index, leaf_urls);
    let (issued, leaf, pollers) = maker.write_site(&leaf_urls)?;
    let manifest = BundleManifest::new(site, platform.now, leaf_urls, leaf, pollers);
    maker.write_texts(&manifest)?;
    let files = BundleFiles::collect(folder.path(), &texts::bundle_name(site), platform.now);
    Ok(SiteBundle { files: files.map_err(BundleError::Collect)?, manifest, leaf: issued })
}

/// Whether the bundle of a site can be written in `to`, before anything is made.
///
/// # Errors
/// When something else is in its place.
pub fn check_place(to: &Path, tenant: &TenantSlug, site: &SiteName) -> Result<(), BundleFilesError> {
    let site = Site { tenant: tenant.clone(), site: site.clone(), pollers: vec![] };
    files::check_replaceable(&to.join(texts::bundle_name(&site)))
}

/// Removes what a bundle has left in the home whose making was killed: it holds private keys. Only for whoever may change the
/// platform alone.
pub fn remove_leftovers(home: &Path) {
    for entry in std::fs::read_dir(home).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNDER_WAY) {
            // One that cannot be removed is in nobody's way, and the next bundle tries again.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn check_request(site: &Site, leaf_urls: &[String], options: &BundleOptions) -> Result<(), BundleError> {
    if site.pollers.is_empty() {
        return Err(BundleError::NoPoller(format!("{}/{}", site.tenant, site.site)));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = site.pollers.iter().find(|poller| !seen.insert(*poller)) {
        return Err(BundleError::Twice(twice.clone()));
    }
    if let Some(stranger) = options.new_keys.iter().find(|poller| !seen.contains(poller)) {
        return Err(BundleError::Stranger(stranger.clone()));
    }
    if leaf_urls.is_empty() {
        return Err(BundleError::NoUrl);
    }
    match leaf_urls.iter().find(|url| !is_leaf_url(url)) {
        Some(bad) => Err(BundleError::Url(bad.chars().take(100).collect())),
        None => Ok(()),
    }
}

/// `tls://host:port`; host and port as in a target.
fn is_leaf_url(url: &str) -> bool {
    url.strip_prefix("tls://").is_some_and(|address| format!("tcp://{address}").parse::<Target>().is_ok())
}

fn health_ports(first: u16, pollers: usize) -> Result<Vec<u16>, BundleError> {
    let ports: Vec<u16> = (first..=u16::MAX).take(pollers).collect();
    if first > 0 && ports.len() == pollers { Ok(ports) } else { Err(BundleError::Ports { first, pollers }) }
}

impl Maker<'_> {
    fn site_failed(&self, error: SiteError) -> BundleError {
        BundleError::Site(format!("{}/{}", self.site.tenant, self.site.site), error)
    }

    fn facts(&self, folder: &Path, name: &str) -> Result<CertificateFacts, BundleError> {
        let file = CertificateFiles::named(&self.place.written.join(folder), name).cert_file;
        CertificateFacts::read(&file).map_err(BundleError::Facts)
    }

    /// Everything that runs, and what is said about it.
    fn write_site(&self, leaf_urls: &[String]) -> Result<(Issued, LeafManifest, Vec<PollerManifest>), BundleError> {
        let (platform, site, place) = (self.platform, self.site, &self.place);
        let now = platform.now;
        let authority = &platform.authority;
        let maker = SiteMaker { authority, now, keys: self.keys };
        let tls = Path::new("tls");
        for (source, name) in [
            (authority.tenant_intermediate_file(&site.tenant), &place.tenant_intermediate_file),
            (authority.server_root_file(), &place.server_root_file),
        ] {
            let text = read_text(&source).map_err(BundleError::File)?;
            write_public(&place.written.join(name), text.as_bytes()).map_err(BundleError::File)?;
        }
        let settings =
            LeafSettings { port: self.options.leaf_port, hub_urls: leaf_urls, proxy: self.options.proxy.as_deref() };
        let leaf = maker.write_leaf(site, place, &settings);
        let issued = leaf.map_err(|error| self.site_failed(error))?.issued;
        let listener = match self.keys {
            EndKeys::Made => Some(self.facts(tls, "listener")?),
            EndKeys::Device(_) => None,
        };
        let leaf = LeafManifest { certificate: self.facts(tls, "leaf")?, listener };
        let watched = self.checks();
        let renewal_urls = match self.keys {
            EndKeys::Made => &[][..],
            EndKeys::Device(_) => &self.options.renewal_urls,
        };
        let told = PollerTold { checks: &watched, renewal_urls, proxy: self.options.proxy.as_deref() };
        let mut pollers = Vec::new();
        for (poller, &health) in site.pollers.iter().zip(&self.health_ports) {
            let ports = PollerPorts { leaf: self.options.leaf_port, health };
            if let Some(known) = self.beside.get(poller) {
                let written = write_poller_settings((site, place), poller, ports, &told);
                written.map_err(|error| self.site_failed(error))?;
                pollers.push(known.clone());
                continue;
            }
            if let EndKeys::Made = self.keys {
                self.place_batch_key(poller)?;
            }
            let written = maker.write_poller((site, place), poller, ports, &told);
            let (_, batch_key) = written.map_err(|error| self.site_failed(error))?;
            let folder = poller_folder(poller);
            pollers.push(PollerManifest {
                poller: poller.clone(),
                certificate: self.facts(&folder, "poller")?,
                forwarder: self.facts(&folder, "forwarder")?,
                batch_key,
            });
        }
        Ok((issued, leaf, pollers))
    }

    fn checks(&self) -> Vec<CheckSetting> {
        let own = |name: &str, target: Target| name.parse().ok().map(|name| target.check(name));
        let address = format!("127.0.0.1:{}", self.options.leaf_port);
        let own =
            [own("this-machine", Target::Icmp { host: "127.0.0.1".to_owned() }), own("leaf", Target::Tcp { address })];
        checks(own.into_iter().flatten().collect(), &self.options.targets)
    }

    /// Puts the poller's key where its settings will find it.
    fn place_batch_key(&self, poller: &PollerName) -> Result<(), BundleError> {
        let kept = self.platform.layout.issued_site(&self.site.tenant, &self.site.site).join(format!("{poller}.nk"));
        let key = if self.options.new_keys.contains(poller) {
            let key = SigningKey::generate(KeyKind::User);
            write_key(&kept, &key).map_err(|error| BundleError::Key(poller.clone(), error))?;
            key
        } else {
            ensure_batch_key(&kept).map_err(|error| self.site_failed(error))?
        };
        let path = self.place.written.join(poller_folder(poller)).join("batch.nk");
        write_key(&path, &key).map_err(|error| BundleError::Key(poller.clone(), error))
    }

    /// What people and init systems read.
    fn write_texts(&self, manifest: &BundleManifest) -> Result<(), BundleError> {
        let poller = |(name, &health_port): (&PollerName, &u16)| PollerText::new(self.site, name, health_port);
        let pollers = self.site.pollers.iter().zip(&self.health_ports).map(poller).collect();
        let is_enrolled = matches!(self.keys, EndKeys::Device(_));
        let text = SiteText::new(
            self.site,
            manifest,
            self.options.leaf_port,
            pollers,
            (is_enrolled, &self.options.renewal_urls),
        );
        let mut files = text.render().map_err(BundleError::Text)?;
        files.push(("MANIFEST.json".into(), manifest.to_json()));
        for (path, text) in files {
            write_public(&self.place.written.join(path), text.as_bytes()).map_err(BundleError::File)?;
        }
        Ok(())
    }
}

/// The day that people are told.
fn day(moment: OffsetDateTime) -> String {
    moment.date().to_string()
}

#[cfg(test)]
mod tests;
