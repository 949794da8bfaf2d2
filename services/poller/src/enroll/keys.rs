//! The keys of a site's machine, each with one purpose (docs/enrolment.md): ECDSA on P-256 for TLS, Ed25519 for batches, X25519
//! for what only this poller may read. They are written before anybody is asked.

use std::path::Path;

use bulkhead_bus::PollerName;
use bulkhead_identity::{DeviceEnd, Enrolee, EnrolmentRequest, TrustDomain, proof};
use data_encoding::BASE64;
use nkeys::{KeyPair as NKey, XKey};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::folder::{FolderError, PUBLIC, SECRET, SiteFolder, failed};
use super::place::check_certificate;
use crate::key::{BatchSigner, KeyError, SignError};

/// Of the leaf's own listener, which only the pollers beside it trust, by itself: it is not renewed.
const LISTENER_DAYS: i64 = 3_650;
const BACKDATE: Duration = Duration::minutes(5);
const LISTENER_KEY: &str = "tls/listener.key";
const LISTENER_CERTIFICATE: &str = "tls/listener.crt";

#[derive(Debug, thiserror::Error)]
pub(super) enum KeysError {
    #[error("files")]
    Folder(#[source] FolderError),
    #[error("{path} holds no key for TLS: restore it, or make new ones with --new-keys")]
    Tls { path: String, source: rcgen::Error },
    #[error("{path} holds no X25519 seed: restore it, or make new ones with --new-keys")]
    Sealing { path: String },
    #[error("batch key")]
    Batch(#[source] KeyError),
    #[error("make {what}")]
    Make { what: &'static str, source: rcgen::Error },
    #[error("make a seed")]
    Seed(#[source] nkeys::error::Error),
    #[error("show the batch key")]
    Sign(#[source] SignError),
}

/// What a machine has made.
pub(super) struct DeviceKeys {
    leaf: KeyPair,
    forwarder: KeyPair,
    poller: KeyPair,
    batch: BatchSigner,
    sealing: XKey,
    /// Where keys belong, and whether a new one waits beside it.
    places: Vec<(String, bool)>,
    mark: String,
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeysError> {
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(failed("read", path)).map_err(KeysError::Folder)
}

/// New keys wait here until there are certificates for them.
const NEW: &str = ".new";
/// Where it says that a poller's new keys are in place, and their certificates may not be yet.
fn mark(poller: &PollerName) -> String {
    format!("pollers/{poller}/.new-keys")
}

struct Maker<'a> {
    folder: &'a SiteFolder,
    is_new: bool,
    mark: &'a str,
}

impl Maker<'_> {
    /// Where a key is now; whether it has to be made. One that was made anew by the same command before is taken up.
    fn place(&self, relative: &str) -> (String, bool) {
        let waiting = format!("{relative}{NEW}");
        let is_there = |name: &str| self.folder.path.join(name).exists();
        if !self.is_new {
            return (relative.to_owned(), !is_there(relative));
        }
        if !is_there(&waiting) && is_there(self.mark) && is_there(relative) {
            return (relative.to_owned(), false);
        }
        let is_missing = !is_there(&waiting);
        (waiting, is_missing)
    }

    fn put(&self, relative: &str, secret: &str) -> Result<(), KeysError> {
        self.folder.put(relative, secret.as_bytes(), SECRET).map_err(KeysError::Folder)
    }

    fn tls(&self, relative: &str) -> Result<KeyPair, KeysError> {
        let (place, is_missing) = self.place(relative);
        let path = self.folder.path.join(&place);
        if !is_missing {
            let damaged = |source| KeysError::Tls { path: path.display().to_string(), source };
            return KeyPair::from_pem(&read_secret(&path)?).map_err(damaged);
        }
        let key = new_tls_key("a TLS key")?;
        self.put(&place, &Zeroizing::new(key.serialize_pem()))?;
        Ok(key)
    }

    fn batch(&self, relative: &str) -> Result<BatchSigner, KeysError> {
        let (place, is_missing) = self.place(relative);
        if is_missing {
            let seed = NKey::new_user().seed().map(Zeroizing::new).map_err(KeysError::Seed)?;
            self.put(&place, &seed)?;
        }
        BatchSigner::read(&self.folder.path.join(&place)).map_err(KeysError::Batch)
    }

    fn sealing(&self, relative: &str) -> Result<XKey, KeysError> {
        let (place, is_missing) = self.place(relative);
        let path = self.folder.path.join(&place);
        if !is_missing {
            let damaged = |_| KeysError::Sealing { path: path.display().to_string() };
            return XKey::from_seed(read_secret(&path)?.trim()).map_err(damaged);
        }
        let key = XKey::new();
        let seed = key.seed().map(Zeroizing::new).map_err(KeysError::Seed)?;
        self.put(&place, &seed)?;
        Ok(key)
    }

    /// The listener's key and certificate, which the site's pollers trust by itself (ADR 3). Nobody else knows them, so that they
    /// are made anew where they do not fit each other.
    fn listener(&self, enrolee: &Enrolee, domain: &TrustDomain) -> Result<(), KeysError> {
        let read = |name: &str| std::fs::read_to_string(self.folder.path.join(name)).map(Zeroizing::new);
        if let (Ok(key), Ok(certificate)) = (read(LISTENER_KEY), read(LISTENER_CERTIFICATE))
            && let Ok(key) = KeyPair::from_pem(&key)
            && check_certificate(&certificate, &key.subject_public_key_info()).is_ok()
        {
            return Ok(());
        }
        let make = |source| KeysError::Make { what: "the listener's certificate", source };
        let key = new_tls_key("the listener's key")?;
        let subject = format!("listener.{}.{}.{domain}", enrolee.site, enrolee.tenant);
        let mut params = CertificateParams::new(vec![subject.clone(), "localhost".to_owned()]).map_err(make)?;
        params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
        params.distinguished_name = named(&subject);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - BACKDATE, now + Duration::days(LISTENER_DAYS));
        let certificate = params.self_signed(&key).map_err(make)?.pem();
        self.put(LISTENER_KEY, &Zeroizing::new(key.serialize_pem()))?;
        self.folder.put(LISTENER_CERTIFICATE, certificate.as_bytes(), PUBLIC).map_err(KeysError::Folder)
    }
}

fn new_tls_key(what: &'static str) -> Result<KeyPair, KeysError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| KeysError::Make { what, source })
}

fn named(subject: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, subject);
    name
}

impl DeviceKeys {
    /// Reads the keys that are there and makes the others. With `is_new` this poller's are made anew, and the leaf's are kept
    /// where other pollers live with it.
    pub(super) fn ensure(
        folder: &SiteFolder,
        enrolee: &Enrolee,
        domain: &TrustDomain,
        is_new: bool,
    ) -> Result<Self, KeysError> {
        let poller = &enrolee.poller;
        for part in ["tls".to_owned(), format!("pollers/{poller}")] {
            folder.make(&part).map_err(KeysError::Folder)?;
        }
        let mark = mark(poller);
        let of_site = Maker { folder, is_new: is_new && folder.pollers_beside().is_empty(), mark: &mark };
        let own = Maker { folder, is_new, mark: &mark };
        of_site.listener(enrolee, domain)?;
        let [leaf, forwarder, tls] = [DeviceEnd::Leaf, DeviceEnd::Forwarder, DeviceEnd::Poller]
            .map(|end: DeviceEnd| format!("{}.key", end.path(poller)));
        let [batch, sealing] = ["batch.nk", "sealing.xk"].map(|name| format!("pollers/{poller}/{name}"));
        let (site_is_new, mark) = (of_site.is_new, mark.clone());
        Ok(Self {
            leaf: of_site.tls(&leaf)?,
            forwarder: own.tls(&forwarder)?,
            poller: own.tls(&tls)?,
            batch: own.batch(&batch)?,
            sealing: own.sealing(&sealing)?,
            places: [(leaf, site_is_new), (forwarder, is_new), (tls, is_new), (batch, is_new), (sealing, is_new)]
                .into(),
            mark,
        })
    }

    /// Puts new keys in the place of the old ones, now that there are certificates for them.
    pub(super) fn take_over(&self, folder: &SiteFolder) -> Result<(), FolderError> {
        let mut new = self.places.iter().filter(|(_, is_new)| *is_new).peekable();
        if new.peek().is_some() {
            folder.put(&self.mark, b"", PUBLIC)?;
        }
        new.try_for_each(|(key, _)| folder.take_over(&format!("{key}{NEW}"), key))
    }

    /// Keys have their certificates beside them; no others wait.
    pub(super) fn finish(&self, folder: &SiteFolder) -> Result<(), FolderError> {
        // Of an attempt that came to nothing.
        self.places.iter().try_for_each(|(key, _)| folder.remove(&format!("{key}{NEW}")))?;
        folder.remove(&self.mark)
    }

    fn tls(&self, end: DeviceEnd) -> &KeyPair {
        match end {
            DeviceEnd::Leaf => &self.leaf,
            DeviceEnd::Forwarder => &self.forwarder,
            DeviceEnd::Poller => &self.poller,
        }
    }

    /// The public key of an end, as certificates hold it.
    pub(super) fn public_key(&self, end: DeviceEnd) -> Vec<u8> {
        self.tls(end).subject_public_key_info()
    }

    fn csr(&self, end: DeviceEnd, enrolee: &Enrolee, domain: &TrustDomain) -> Result<String, KeysError> {
        let make = |source| KeysError::Make { what: "a certificate request", source };
        let identity = enrolee.identity(end);
        let subject = identity.dns_name(domain);
        let mut params = CertificateParams::new(vec![subject.clone()]).map_err(make)?;
        let uri = identity.uri(domain);
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(make)?));
        params.distinguished_name = named(&subject);
        params.serialize_request(self.tls(end)).map_err(make)?.pem().map_err(make)
    }

    /// What is asked for; `beside` are the pollers that are in the folder already.
    pub(super) fn request(
        &self,
        token: &str,
        enrolee: &Enrolee,
        domain: &TrustDomain,
        beside: Vec<PollerName>,
    ) -> Result<EnrolmentRequest, KeysError> {
        let signature = self.batch.sign(&proof(token)).map_err(KeysError::Sign)?;
        Ok(EnrolmentRequest {
            token: token.to_owned(),
            leaf_csr: self.csr(DeviceEnd::Leaf, enrolee, domain)?,
            forwarder_csr: self.csr(DeviceEnd::Forwarder, enrolee, domain)?,
            poller_csr: self.csr(DeviceEnd::Poller, enrolee, domain)?,
            batch_key: self.batch.public_key().to_owned(),
            batch_key_proof: BASE64.encode(&signature),
            sealing_key: self.sealing.public_key(),
            beside,
        })
    }
}
