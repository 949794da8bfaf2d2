//! Everything that one site needs, in one folder: leaf configuration, certificates, poller settings.

use std::path::{Path, PathBuf};

use bulkhead_bus::question::{KEEPER_INBOX, server_leaves, server_reload};
use bulkhead_bus::{BatchKey, EdgeRole, PollerName, SiteName, TenantSlug, edge_permissions};
use bulkhead_claims::{KeyKind, SigningKey};
use bulkhead_identity::{DeviceEnd, leaf_name};
use rcgen::PublicKey;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::layout::Layout;
use super::poller_settings::{PollerPorts, PollerTold, write_poller_settings};
use crate::certificates::{Authority, CertificateError, CertificateFiles, ClientIdentity, IssuedCertificate, key_hash};
use crate::files::{FileError, make_folder, remove_whole, write_public};
use crate::keys::{KeyError, read_key, write_key};
use crate::nats_config::{LeafConfig, LeafUser, RenderError};
use crate::tenancy::Issued;

/// What is spoken on a leaf and is not for the hub, nor from it.
pub const KEPT: [&str; 4] = ["results.>", "$JS.>", "$KV.>", "$SYS.>"];
/// Says whether the leaf links to the hub; its poller turns the link off and on (ADR 14).
pub(super) const LINK_FILE: &str = "link/remote.conf";
const LINK_ON: &str = "disabled: false\n";
/// Enough of a leaf's key to tell machines of one site apart.
const LEAF_LABEL_LENGTH: usize = 8;
/// Both streams of a leaf, and room for their bookkeeping.
const LEAF_STORE_BYTES: u64 = 1_152 << 20;

/// Why a site's folder was not written.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("site files")]
    File(#[source] FileError),
    #[error("site certificates")]
    Certificate(#[source] CertificateError),
    #[error("batch key of a poller")]
    Key(#[source] KeyError),
    #[error("leaf configuration")]
    Render(#[source] RenderError),
    #[error("batch key")]
    BatchKey(#[source] bulkhead_bus::BatchKeyError),
}

/// One site of one tenant.
#[derive(Debug, Clone)]
pub struct Site {
    pub tenant: TenantSlug,
    pub site: SiteName,
    pub pollers: Vec<PollerName>,
}

/// Where a site's files are written, and how its configuration names them: the same paths, or paths relative to the site's
/// folder when it is not known yet where that will be.
#[derive(Debug, Clone)]
pub(crate) struct SitePlace {
    pub written: PathBuf,
    pub named: PathBuf,
    /// Within the folder; what the site's processes write is below it.
    pub state: PathBuf,
    pub tenant_intermediate_file: PathBuf,
    pub server_root_file: PathBuf,
}

impl SitePlace {
    pub(crate) fn in_home(layout: &Layout, authority: &Authority, site: &Site) -> Self {
        let folder = layout.site(&site.tenant, &site.site);
        Self {
            written: folder.clone(),
            named: folder,
            state: PathBuf::new(),
            tenant_intermediate_file: authority.tenant_intermediate_file(&site.tenant),
            server_root_file: authority.server_root_file(),
        }
    }

    /// The leaf's folder of streams, within the site's folder.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.state.join("js")
    }

    /// A poller's state, within the site's folder.
    pub(crate) fn poller_state_dir(&self, poller: &PollerName) -> PathBuf {
        self.state.join(poller_folder(poller)).join("state")
    }
}

/// A poller's files, within the site's folder.
pub(crate) fn poller_folder(poller: &PollerName) -> PathBuf {
    Path::new("pollers").join(poller.as_str())
}

/// What a leaf is told beside its names.
pub(crate) struct LeafSettings<'a> {
    /// Where it listens on the loopback interface.
    pub port: u16,
    pub hub_urls: &'a [String],
    /// The proxy on its way to the hub.
    pub proxy: Option<&'a str>,
}

/// The machine as a user of its own leaf, by the leaf's certificate: it may look at links, and say that files have changed.
#[must_use]
pub(crate) fn keeper(authority: &Authority, site: &Site) -> LeafUser {
    let identity = ClientIdentity::Leaf { tenant: site.tenant.clone(), site: site.site.clone() };
    LeafUser {
        name: authority.dns_name(&identity),
        publish: vec![server_leaves("*"), server_reload("*")],
        subscribe: vec![format!("{KEEPER_INBOX}.>")],
    }
}

/// A leaf that was written.
pub(crate) struct WrittenLeaf {
    pub config: PathBuf,
    /// What it shows to the hub.
    pub issued: Issued,
}

/// Whose keys a site's certificates are for.
#[derive(Clone, Copy)]
pub(crate) enum EndKeys<'a> {
    /// New ones, which are written beside the certificates.
    Made,
    /// Those of a device, which keeps their private halves. Of pollers beside it nothing but settings is written.
    Device(&'a DeviceKeys),
}

/// The public halves that a device has shown to have (ADR 13).
pub struct DeviceKeys {
    pub poller: PollerName,
    pub leaf_tls: PublicKey,
    pub forwarder_tls: PublicKey,
    pub poller_tls: PublicKey,
    pub batch: BatchKey,
}

impl DeviceKeys {
    #[must_use]
    pub fn tls(&self, end: DeviceEnd) -> &PublicKey {
        match end {
            DeviceEnd::Leaf => &self.leaf_tls,
            DeviceEnd::Forwarder => &self.forwarder_tls,
            DeviceEnd::Poller => &self.poller_tls,
        }
    }
}

/// What a site is made from.
pub(crate) struct SiteMaker<'a> {
    pub authority: &'a Authority,
    pub now: OffsetDateTime,
    pub keys: EndKeys<'a>,
}

impl SiteMaker<'_> {
    fn client(
        &self,
        identity: &ClientIdentity,
        files: &CertificateFiles,
        end: DeviceEnd,
    ) -> Result<IssuedCertificate, SiteError> {
        let issued = match self.keys {
            EndKeys::Made => self.authority.issue_client(identity, files, self.now),
            EndKeys::Device(keys) => self.authority.certify_client(identity, keys.tls(end), files, self.now),
        };
        issued.map_err(SiteError::Certificate)
    }

    /// Writes the leaf's configuration and certificates.
    ///
    /// # Errors
    /// [`SiteError`].
    pub(crate) fn write_leaf(
        &self,
        site: &Site,
        place: &SitePlace,
        settings: &LeafSettings<'_>,
    ) -> Result<WrittenLeaf, SiteError> {
        let folder = &place.written;
        let tls = folder.join("tls");
        make_folder(&tls).map_err(SiteError::File)?;
        if let EndKeys::Made = self.keys {
            let listener = CertificateFiles::named(&tls, "listener");
            self.authority
                .issue_site_listener(&site.tenant, &site.site, &listener, self.now)
                .map_err(SiteError::Certificate)?;
        }
        let identity = ClientIdentity::Leaf { tenant: site.tenant.clone(), site: site.site.clone() };
        let certificate = self.client(&identity, &CertificateFiles::named(&tls, "leaf"), DeviceEnd::Leaf)?;
        // Of an earlier release: whoever shows credentials is refused.
        remove_whole(&folder.join("leaf.creds")).map_err(SiteError::File)?;
        let listen = format!("127.0.0.1:{}", settings.port);
        let mut config = placed_leaf_config(place, self.authority, site, listen, settings.hub_urls.to_vec());
        config.proxy = settings.proxy.map(str::to_owned);
        if let EndKeys::Device(keys) = self.keys {
            // Two machines of one site are two leaves: a server closes the older link of a name that comes twice.
            config.server_name = format!("{}.{}", config.server_name, &key_hash(&keys.leaf_tls)[..LEAF_LABEL_LENGTH]);
        }
        let link = folder.join(LINK_FILE);
        make_folder(link.parent().unwrap_or(folder)).map_err(SiteError::File)?;
        write_public(&link, LINK_ON.as_bytes()).map_err(SiteError::File)?;
        let path = folder.join("leaf.conf");
        let text = config.render().map_err(SiteError::Render)?;
        write_public(&path, text.as_bytes()).map_err(SiteError::File)?;
        Ok(WrittenLeaf { config: path, issued: Issued::new(certificate) })
    }

    /// Writes a poller's settings, certificates and batch key; returns the settings' path and the public batch key.
    ///
    /// # Errors
    /// [`SiteError`].
    pub(crate) fn write_poller(
        &self,
        (site, place): (&Site, &SitePlace),
        poller: &PollerName,
        ports: PollerPorts,
        told: &PollerTold<'_>,
    ) -> Result<(PathBuf, BatchKey), SiteError> {
        let folder = place.written.join(poller_folder(poller));
        make_folder(&place.written.join(place.poller_state_dir(poller))).map_err(SiteError::File)?;
        let path = write_poller_settings((site, place), poller, ports, told)?;
        let key = match self.keys {
            EndKeys::Made => {
                let key = ensure_batch_key(&folder.join("batch.nk"))?;
                key.public().parse().map_err(SiteError::BatchKey)?
            }
            EndKeys::Device(keys) => keys.batch.clone(),
        };
        let (tenant, site_name) = (site.tenant.clone(), site.site.clone());
        let identity =
            ClientIdentity::Poller { tenant: tenant.clone(), site: site_name.clone(), poller: poller.clone() };
        self.client(&identity, &CertificateFiles::named(&folder, "poller"), DeviceEnd::Poller)?;
        let forwarder = ClientIdentity::Forwarder { tenant, site: site_name };
        self.client(&forwarder, &CertificateFiles::named(&folder, "forwarder"), DeviceEnd::Forwarder)?;
        Ok((path, key))
    }
}

/// A poller that runs here has one key, that of its bundles: a rotation outlives the next start.
pub(crate) fn settle_batch_key(layout: &Layout, site: &Site, poller: &PollerName) -> Result<(), SiteError> {
    let [kept, running] = layout.batch_keys(&site.tenant, &site.site, poller);
    // One that is damaged, or that others could read, is told and not replaced in silence.
    let own = running.exists().then(|| read_key(&running, KeyKind::User)).transpose().map_err(SiteError::Key)?;
    if let Some(own) = own.as_ref().filter(|_| !kept.exists()) {
        write_key(&kept, own).map_err(SiteError::Key)?;
    }
    let key = ensure_batch_key(&kept)?;
    match own {
        Some(own) if own.public() == key.public() => Ok(()),
        Some(_) | None => write_key(&running, &key).map_err(SiteError::Key),
    }
}

/// The batch key in `path`; a new one when there is none.
pub(crate) fn ensure_batch_key(path: &Path) -> Result<SigningKey, SiteError> {
    if path.exists() {
        return read_key(path, KeyKind::User).map_err(SiteError::Key);
    }
    let key = SigningKey::generate(KeyKind::User);
    write_key(path, &key).map_err(SiteError::Key)?;
    Ok(key)
}

/// The configuration of a site's leaf in its home. Everything but where it listens and whom it links to follows from the names.
#[must_use]
pub fn leaf_config(
    layout: &Layout,
    authority: &Authority,
    site: &Site,
    client_listen: String,
    hub_urls: Vec<String>,
) -> LeafConfig {
    placed_leaf_config(&SitePlace::in_home(layout, authority, site), authority, site, client_listen, hub_urls)
}

fn placed_leaf_config(
    place: &SitePlace,
    authority: &Authority,
    site: &Site,
    client_listen: String,
    hub_urls: Vec<String>,
) -> LeafConfig {
    let folder = &place.named;
    let tls = folder.join("tls");
    let (listener, leaf) = (CertificateFiles::named(&tls, "listener"), CertificateFiles::named(&tls, "leaf"));
    let name = format!("{}-{}", site.tenant, site.site);
    LeafConfig {
        server_name: leaf_name(&site.tenant, &site.site),
        client_listen,
        store_dir: folder.join(place.store_dir()),
        domain: name.clone(),
        max_file_bytes: LEAF_STORE_BYTES,
        listener_cert_file: listener.cert_file,
        listener_key_file: listener.key_file,
        tenant_intermediate_file: place.tenant_intermediate_file.clone(),
        users: leaf_users(authority, site),
        keeper: Some(keeper(authority, site)),
        link_file: Some(LINK_FILE),
        proxy: None,
        hub_urls,
        reconnect: reconnect_of(&name),
        kept: KEPT.map(str::to_owned).into(),
        leaf_cert_file: leaf.cert_file,
        leaf_key_file: leaf.key_file,
        server_root_file: place.server_root_file.clone(),
    }
}

/// From 1 to 3 s, by the site's name: the same at every start, and spread evenly over sites. A link that is refused waits for
/// exactly so long (facts: edge-and-identity section 1.6).
fn reconnect_of(name: &str) -> String {
    const LEAST_MS: u64 = 1_000;
    const SPREAD_MS: u64 = 2_000;
    let hash = Sha256::digest(name.as_bytes());
    let number = u64::from_be_bytes(hash[..8].try_into().expect("a hash has more than eight bytes"));
    format!("{}ms", LEAST_MS + number % SPREAD_MS)
}

/// The local users of a site's leaf: its forwarder and its pollers.
#[must_use]
pub fn leaf_users(authority: &Authority, site: &Site) -> Vec<LeafUser> {
    let (tenant, place) = (&site.tenant, &site.site);
    let forwarder = ClientIdentity::Forwarder { tenant: tenant.clone(), site: place.clone() };
    let forwarder = LeafUser::new(authority.dns_name(&forwarder), edge_permissions(place, &EdgeRole::Forwarder));
    let poller = |poller: &PollerName| {
        let identity = ClientIdentity::Poller { tenant: tenant.clone(), site: place.clone(), poller: poller.clone() };
        let permissions = edge_permissions(place, &EdgeRole::Poller(poller.clone()));
        LeafUser::new(authority.dns_name(&identity), permissions)
    };
    std::iter::once(forwarder).chain(site.pollers.iter().map(poller)).collect()
}

/// The order in which the `index`th site tries the servers of the hub: first choices take turns, and so do the second
/// choices of those that share a first one, so that the leaves of a server that dies do not all go to the same other.
pub(crate) fn order_for(index: usize, urls: &[String]) -> Vec<String> {
    let mut order = urls.to_vec();
    let count = order.len().max(1);
    order.rotate_left(index % count);
    if (index / count) % 2 == 1
        && let [_, others @ ..] = order.as_mut_slice()
    {
        others.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn sites_wait_from_one_to_three_seconds_each_its_own_time() {
        let waits: BTreeSet<String> = (0..100).map(|site| reconnect_of(&format!("acme-corp-site-{site}"))).collect();
        assert!(waits.len() > 90, "{waits:?}");
        for wait in &waits {
            let ms: u64 = wait.strip_suffix("ms").unwrap().parse().unwrap();
            assert!((1_000..3_000).contains(&ms), "{wait}");
        }
        assert_eq!(reconnect_of("a"), reconnect_of("a"));
    }

    #[test]
    fn sites_take_turns_in_whom_they_try_first_and_second() {
        let urls: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let orders: Vec<Vec<String>> = (0..6).map(|index| order_for(index, &urls)).collect();
        assert_eq!(orders.iter().collect::<BTreeSet<_>>().len(), 6, "{orders:?}");
        for place in 0..2 {
            for url in &urls {
                let count = orders.iter().filter(|order| order[place] == *url).count();
                assert_eq!(count, 2, "{url} in place {place} of {orders:?}");
            }
        }
        assert_eq!(order_for(6, &urls), orders[0]);
        assert_eq!(order_for(5, &urls[..1]), ["a"]);
        assert_eq!(order_for(5, &[]), Vec::<String>::new());
    }
}
