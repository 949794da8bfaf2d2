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
use crate::key::{BatchSigner, KeyError, SignError};

/// Of the leaf's own listener, which only the pollers beside it trust, by itself: it is not renewed.
const LISTENER_DAYS: i64 = 3_650;
const BACKDATE: Duration = Duration::minutes(5);

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
}

/// Where the certificate of an end belongs, within the folder and without its ending.
pub(super) fn end_path(end: DeviceEnd, poller: &PollerName) -> String {
    match end {
        DeviceEnd::Leaf => "tls/leaf".to_owned(),
        DeviceEnd::Forwarder => format!("pollers/{poller}/forwarder"),
        DeviceEnd::Poller => format!("pollers/{poller}/poller"),
    }
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, KeysError> {
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(failed("read", path)).map_err(KeysError::Folder)
}

struct Maker<'a> {
    folder: &'a SiteFolder,
    is_new: bool,
}

impl Maker<'_> {
    fn put(&self, relative: &str, secret: &str) -> Result<(), KeysError> {
        self.folder.put(relative, secret.as_bytes(), SECRET).map_err(KeysError::Folder)
    }

    fn is_kept(&self, relative: &str) -> bool {
        !self.is_new && self.folder.path.join(relative).exists()
    }

    fn tls(&self, relative: &str) -> Result<KeyPair, KeysError> {
        let path = self.folder.path.join(relative);
        if self.is_kept(relative) {
            let damaged = |source| KeysError::Tls { path: path.display().to_string(), source };
            return KeyPair::from_pem(&read_secret(&path)?).map_err(damaged);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|source| KeysError::Make { what: "a TLS key", source })?;
        self.put(relative, &Zeroizing::new(key.serialize_pem()))?;
        Ok(key)
    }

    fn batch(&self, relative: &str) -> Result<BatchSigner, KeysError> {
        if !self.is_kept(relative) {
            let seed = NKey::new_user().seed().map(Zeroizing::new).map_err(KeysError::Seed)?;
            self.put(relative, &seed)?;
        }
        BatchSigner::read(&self.folder.path.join(relative)).map_err(KeysError::Batch)
    }

    fn sealing(&self, relative: &str) -> Result<XKey, KeysError> {
        let path = self.folder.path.join(relative);
        if self.is_kept(relative) {
            let damaged = |_| KeysError::Sealing { path: path.display().to_string() };
            return XKey::from_seed(read_secret(&path)?.trim()).map_err(damaged);
        }
        let key = XKey::new();
        let seed = key.seed().map(Zeroizing::new).map_err(KeysError::Seed)?;
        self.put(relative, &seed)?;
        Ok(key)
    }

    /// The listener's key and certificate, which the site's pollers trust by itself (ADR 3).
    fn listener(&self, enrolee: &Enrolee, domain: &TrustDomain) -> Result<(), KeysError> {
        if self.is_kept("tls/listener.key") && self.is_kept("tls/listener.crt") {
            return Ok(());
        }
        let make = |source| KeysError::Make { what: "the listener's certificate", source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
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
        self.put("tls/listener.key", &Zeroizing::new(key.serialize_pem()))?;
        self.folder.put("tls/listener.crt", certificate.as_bytes(), PUBLIC).map_err(KeysError::Folder)
    }
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
        let of_site = Maker { folder, is_new: is_new && folder.pollers_beside().is_empty() };
        let own = Maker { folder, is_new };
        of_site.listener(enrolee, domain)?;
        let key = |end| format!("{}.key", end_path(end, poller));
        Ok(Self {
            leaf: of_site.tls(&key(DeviceEnd::Leaf))?,
            forwarder: own.tls(&key(DeviceEnd::Forwarder))?,
            poller: own.tls(&key(DeviceEnd::Poller))?,
            batch: own.batch(&format!("pollers/{poller}/batch.nk"))?,
            sealing: own.sealing(&format!("pollers/{poller}/sealing.xk"))?,
        })
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
