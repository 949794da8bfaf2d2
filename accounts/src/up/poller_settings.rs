//! What a poller is told in its settings file, which names its keys and certificates and holds none.

use std::path::{Path, PathBuf};

use bulkhead_bus::question::KEEPER_INBOX;
use bulkhead_bus::{PollerName, SiteName, TenantSlug};
use serde::Serialize;

use super::site::{LINK_FILE, Site, SiteError, SitePlace, poller_folder};
use super::target::CheckSetting;
use crate::certificates::CertificateFiles;
use crate::files::{make_folder, write_public};
use crate::seal::seal;

/// Where a poller finds its leaf, and where it is asked about its health.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PollerPorts {
    pub leaf: u16,
    pub health: u16,
}

/// What a poller is told beside its names and ports.
pub(crate) struct PollerTold<'a> {
    pub checks: &'a [CheckSetting],
    /// Where its machine's certificates are renewed; none where it does not do that.
    pub renewal_urls: &'a [String],
    /// The proxy on the way there.
    pub proxy: Option<&'a str>,
}

#[derive(Serialize)]
struct PollerFile<'a> {
    log_format: &'static str,
    log_filter: &'static str,
    health_listen: String,
    state_dir: PathBuf,
    batch_key_file: PathBuf,
    identity: PollerIdentity<'a>,
    leaf: BusFile,
    forwarder: ForwarderFile,
    keeper: KeeperFile,
    #[serde(skip_serializing_if = "Option::is_none")]
    renewal: Option<RenewalFile<'a>>,
    checks: &'a [CheckSetting],
}

/// Where certificates are renewed, and the site's folder.
#[derive(Serialize)]
struct RenewalFile<'a> {
    urls: &'a [String],
    folder: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<&'a str>,
}

#[derive(Serialize)]
struct PollerIdentity<'a> {
    tenant: &'a TenantSlug,
    site: &'a SiteName,
    poller: &'a PollerName,
}

#[derive(Serialize)]
struct ForwarderFile {
    enabled: bool,
    leaf: BusFile,
}

#[derive(Serialize)]
struct KeeperFile {
    link_file: PathBuf,
    leaf: BusFile,
}

#[derive(Serialize)]
pub(crate) struct BusFile {
    pub urls: Vec<String>,
    pub inbox_prefix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds_file: Option<PathBuf>,
    pub tls: TlsFile,
}

#[derive(Serialize)]
pub(crate) struct TlsFile {
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl TlsFile {
    pub(crate) fn new(ca_file: PathBuf, files: CertificateFiles) -> Self {
        Self { ca_file, cert_file: files.cert_file, key_file: files.key_file }
    }
}

/// Writes a poller's settings, which name its keys and certificates and hold none; returns their path.
///
/// # Errors
/// [`SiteError`].
pub(crate) fn write_poller_settings(
    (site, place): (&Site, &SitePlace),
    poller: &PollerName,
    ports: PollerPorts,
    told: &PollerTold<'_>,
) -> Result<PathBuf, SiteError> {
    let (folder, named) = (place.written.join(poller_folder(poller)), place.named.join(poller_folder(poller)));
    make_folder(&folder).map_err(SiteError::File)?;
    let tls = place.named.join("tls");
    let listener = CertificateFiles::named(&tls, "listener").cert_file;
    let bus = |files: CertificateFiles, inbox_prefix: String| BusFile {
        urls: vec![format!("tls://127.0.0.1:{}", ports.leaf)],
        inbox_prefix,
        creds_file: None,
        tls: TlsFile::new(listener.clone(), files),
    };
    let inbox = |user: &str| format!("_INBOX_{}.{user}", site.site);
    let forwarder = bus(CertificateFiles::named(&named, "forwarder"), inbox("fwd"));
    let file = PollerFile {
        log_format: "text",
        log_filter: "info",
        health_listen: format!("127.0.0.1:{}", ports.health),
        state_dir: place.named.join(place.poller_state_dir(poller)),
        batch_key_file: named.join("batch.nk"),
        identity: PollerIdentity { tenant: &site.tenant, site: &site.site, poller },
        leaf: bus(CertificateFiles::named(&named, "poller"), inbox(poller.as_str())),
        forwarder: ForwarderFile { enabled: true, leaf: forwarder },
        keeper: KeeperFile {
            link_file: place.named.join(LINK_FILE),
            leaf: bus(CertificateFiles::named(&tls, "leaf"), KEEPER_INBOX.to_owned()),
        },
        renewal: (!told.renewal_urls.is_empty()).then(|| RenewalFile {
            urls: told.renewal_urls,
            folder: place.named.join("."),
            proxy: told.proxy,
        }),
        checks: told.checks,
    };
    let path = folder.join("poller.toml");
    write_settings(&path, &file)?;
    Ok(path)
}

/// Writes a settings file that names secrets by path.
///
/// # Panics
/// Never: settings are made of text, numbers and lists.
pub(crate) fn write_settings(path: &Path, settings: &impl Serialize) -> Result<(), SiteError> {
    let text = toml::to_string(settings).expect("settings serialize");
    write_public(path, seal(&text).as_bytes()).map_err(SiteError::File)
}
