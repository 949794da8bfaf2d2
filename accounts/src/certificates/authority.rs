//! An authority on disk: which files it is, what of it is trusted, and with which certificate and key it signs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bulkhead_bus::TenantSlug;
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;

use super::CertificateFiles;
use super::book::{IssuedRecord, append};
use super::error::CertificateError;
use super::facts::{CertificateFacts, bundle_pem, facts_in, is_signed_by, read_bundle};
use super::make::{authority_parameters, authority_subject, key_hash, made};
use super::steps::rename_whole;
use crate::files::{make_folder, read_state, write_public, write_secret};
use bulkhead_identity::AuthorityName;
use bulkhead_identity::{ClientIdentity, TrustDomain};

/// The certificate authority of one platform, in one folder.
#[derive(Debug, Clone)]
pub struct Authority {
    pub(super) folder: PathBuf,
    pub(super) domain: TrustDomain,
}

/// A certificate of an authority that is trusted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrustedCertificate {
    /// Whether new certificates are signed with its key.
    pub signs: bool,
    #[serde(flatten)]
    pub facts: CertificateFacts,
}

/// One authority at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthorityState {
    pub name: AuthorityName,
    /// What rotation it is in; `None` outside of one.
    pub rotation: Option<&'static str>,
    pub trusted: Vec<TrustedCertificate>,
}

/// A key with the certificates made for it.
pub(super) struct SigningPair {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// One or, while the root above is rotated, one of each root.
    pub(super) certificates: Vec<CertificateDer<'static>>,
    /// Of the first of them.
    pub(super) facts: CertificateFacts,
}

impl SigningPair {
    pub(super) fn key_hash(&self) -> &str {
        &self.facts.key_fingerprint
    }

    /// Signs, for no longer than the authority itself is good.
    pub(super) fn sign(
        &self,
        name: &AuthorityName,
        subject: &str,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, CertificateError> {
        if self.facts.not_after <= params.not_before {
            return Err(CertificateError::Ended { name: name.clone(), until: self.facts.not_after });
        }
        params.not_after = params.not_after.min(self.facts.not_after);
        Ok(made(subject, params.signed_by(key, &self.issuer))?.der().clone())
    }
}

/// Reads the key of `files` and those certificates that are made for it.
pub(super) fn read_pair(files: &CertificateFiles) -> Result<SigningPair, CertificateError> {
    let damaged = |path: &Path| {
        let path = path.display().to_string();
        move |source| CertificateError::Damaged { path, source }
    };
    let key = read_state(&files.key_file).map_err(CertificateError::File)?;
    let key = KeyPair::from_pem(&key).map_err(damaged(&files.key_file))?;
    let own = key_hash(&key);
    let mut certificates = Vec::new();
    let mut first = None;
    for certificate in read_bundle(&files.cert_file)? {
        let facts = facts_in(&files.cert_file, &certificate)?;
        if facts.key_fingerprint == own {
            first.get_or_insert(facts);
            certificates.push(certificate);
        }
    }
    let Some(facts) = first else {
        return Err(CertificateError::Mismatch {
            cert_file: files.cert_file.display().to_string(),
            key_file: files.key_file.display().to_string(),
        });
    };
    let issuer = Issuer::from_ca_cert_der(&certificates[0], key).map_err(damaged(&files.cert_file))?;
    Ok(SigningPair { issuer, certificates, facts })
}

impl Authority {
    #[must_use]
    pub fn new(folder: PathBuf, domain: TrustDomain) -> Self {
        Self { folder, domain }
    }

    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    #[must_use]
    pub fn client_root_file(&self) -> PathBuf {
        self.files(&AuthorityName::ClientRoot).cert_file
    }

    #[must_use]
    pub fn server_root_file(&self) -> PathBuf {
        self.files(&AuthorityName::ServerRoot).cert_file
    }

    #[must_use]
    pub fn route_root_file(&self) -> PathBuf {
        self.files(&AuthorityName::RouteRoot).cert_file
    }

    /// What a site's leaf trusts: its own tenant's intermediate and nothing else.
    #[must_use]
    pub fn tenant_intermediate_file(&self, tenant: &TenantSlug) -> PathBuf {
        self.files(&AuthorityName::Tenant(tenant.clone())).cert_file
    }

    pub(super) fn files(&self, name: &AuthorityName) -> CertificateFiles {
        CertificateFiles::named(&self.folder, &name.file_name())
    }

    /// The certificate of the key with which an authority signs now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn signing_certificate(&self, name: &AuthorityName) -> Result<CertificateDer<'static>, CertificateError> {
        Ok(self.signing(name)?.certificates[0].clone())
    }

    /// The name by which clients and leaves know the hub, whichever of its servers answers.
    #[must_use]
    pub fn hub_name(&self) -> String {
        self.hub_server_name("hub")
    }

    pub(super) fn hub_server_name(&self, server: &str) -> String {
        format!("{server}.platform.{}", self.domain.as_str())
    }

    #[must_use]
    pub fn dns_name(&self, identity: &ClientIdentity) -> String {
        identity.dns_name(&self.domain)
    }

    /// Makes what is missing of the three roots and the platform's intermediate.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn ensure_roots(&self, now: OffsetDateTime) -> Result<(), CertificateError> {
        let _lock = self.lock()?;
        for root in AuthorityName::ROOTS {
            self.ensure(&root, now)?;
        }
        self.ensure(&AuthorityName::Platform, now)
    }

    /// Makes a tenant's intermediate unless it is there.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn ensure_tenant(&self, tenant: &TenantSlug, now: OffsetDateTime) -> Result<(), CertificateError> {
        let _lock = self.lock()?;
        self.ensure(&AuthorityName::Tenant(tenant.clone()), now)
    }

    /// The intermediates that may vouch for a tenant now: two while one takes the other's place. The fingerprint of the key
    /// stays when a new root signs the same intermediate again.
    ///
    /// # Errors
    /// When the tenant has none, or it cannot be read.
    pub fn tenant_issuers(&self, tenant: &TenantSlug) -> Result<Vec<CertificateFacts>, CertificateError> {
        let state = self.authority_state(&AuthorityName::Tenant(tenant.clone()))?;
        Ok(state.trusted.into_iter().map(|trusted| trusted.facts).collect())
    }

    /// What is trusted of one authority, newest first.
    ///
    /// # Errors
    /// When there is no such authority, or it cannot be read.
    pub fn authority_state(&self, name: &AuthorityName) -> Result<AuthorityState, CertificateError> {
        let files = self.files(name);
        if !files.cert_file.exists() {
            return Err(CertificateError::NoAuthority { name: name.clone() });
        }
        let signing = read_pair(&files)?;
        let certificates = read_bundle(&files.cert_file)?;
        let trusted = |certificate: &CertificateDer<'_>| {
            let facts = facts_in(&files.cert_file, certificate)?;
            Ok(TrustedCertificate { signs: facts.key_fingerprint == signing.key_hash(), facts })
        };
        Ok(AuthorityState {
            name: name.clone(),
            rotation: self.rotation_phase(name)?,
            trusted: certificates.iter().map(trusted).collect::<Result<_, CertificateError>>()?,
        })
    }

    /// Every authority that there is: the roots, the platform, the tenants by their slugs.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list_authorities(&self) -> Result<Vec<AuthorityName>, CertificateError> {
        let mut found = Vec::new();
        let entries = std::fs::read_dir(&self.folder).map_err(|source| CertificateError::Store {
            action: "read folder",
            path: self.folder.display().to_string(),
            source,
        })?;
        for entry in entries.flatten() {
            let file_name = entry.file_name();
            let name = file_name.to_str().and_then(|name| name.strip_suffix(".crt"));
            found.extend(name.and_then(AuthorityName::from_file_name));
        }
        found.sort();
        Ok(found)
    }

    /// Every intermediate that there is.
    pub(super) fn list_intermediates(&self) -> Result<Vec<AuthorityName>, CertificateError> {
        Ok(self.list_authorities()?.into_iter().filter(|name| !name.is_root()).collect())
    }

    /// One change at a time; given back when the file is dropped.
    pub(super) fn lock(&self) -> Result<File, CertificateError> {
        make_folder(&self.folder).map_err(CertificateError::File)?;
        let path = self.folder.join(".lock");
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let locked = opened.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| CertificateError::Store { action: "lock", path: path.display().to_string(), source })
    }

    fn ensure(&self, name: &AuthorityName, now: OffsetDateTime) -> Result<(), CertificateError> {
        if self.is_there(name)? {
            return Ok(());
        }
        let key = made(&name.to_string(), KeyPair::generate())?;
        let (chain, records) = self.make_authority(name, &key, now)?;
        records.iter().try_for_each(|record| append(&self.issued_file(&AuthorityName::ClientRoot), record))?;
        let files = self.files(name);
        // The key takes its place last: without it nothing was issued yet, and the next start finishes or begins anew.
        write_secret(&self.pending_key(name), key.serialize_pem().as_bytes()).map_err(CertificateError::File)?;
        write_public(&files.cert_file, bundle_pem(&chain).as_bytes()).map_err(CertificateError::File)?;
        rename_whole(&self.pending_key(name), &files.key_file)
    }

    fn pending_key(&self, name: &AuthorityName) -> PathBuf {
        self.folder.join(format!(".{}.pending.key", name.file_name()))
    }

    /// Whether a certificate and its key are there and readable. One without the other is damage, never replaced: what
    /// was issued under it would be worth nothing.
    fn is_there(&self, name: &AuthorityName) -> Result<bool, CertificateError> {
        let files = self.files(name);
        let missing = |path: &Path| CertificateError::Missing { path: path.display().to_string() };
        match (files.cert_file.exists(), files.key_file.exists()) {
            (false, false) => Ok(false),
            (false, true) => Err(missing(&files.cert_file)),
            (true, false) => {
                let pending = CertificateFiles { key_file: self.pending_key(name), ..files.clone() };
                if !pending.key_file.exists() || read_pair(&pending).is_err() {
                    return Err(missing(&files.key_file));
                }
                rename_whole(&pending.key_file, &files.key_file).map(|()| true)
            }
            (true, true) => read_pair(&files).map(|_| true),
        }
    }

    /// The certificates of a new authority: one, or for an intermediate one of every root that is trusted now, with what
    /// the client root's book is to say of them.
    pub(super) fn make_authority(
        &self,
        name: &AuthorityName,
        key: &KeyPair,
        now: OffsetDateTime,
    ) -> Result<(Vec<CertificateDer<'static>>, Vec<IssuedRecord>), CertificateError> {
        let subject = authority_subject(name, key, &self.domain);
        let params = || authority_parameters(name, &subject, &self.domain, now);
        if name.is_root() {
            let certificate = made(&subject, params().self_signed(key))?;
            return Ok((vec![certificate.der().clone()], vec![]));
        }
        let (mut certificates, mut records) = (Vec::new(), Vec::new());
        for root in self.live_pairs(&AuthorityName::ClientRoot)? {
            let certificate = root.sign(&AuthorityName::ClientRoot, &subject, params(), key)?;
            let roots = vec![root.key_hash().to_owned()];
            records.push(self.record_of(&AuthorityName::ClientRoot, &certificate, &root, roots)?);
            certificates.push(certificate);
        }
        Ok((certificates, records))
    }

    /// What the book of its issuer says of a certificate.
    pub(super) fn record_of(
        &self,
        issuer: &AuthorityName,
        certificate: &CertificateDer<'_>,
        pair: &SigningPair,
        roots: Vec<String>,
    ) -> Result<IssuedRecord, CertificateError> {
        let facts = facts_in(&self.files(issuer).cert_file, certificate)?;
        Ok(IssuedRecord {
            identity: facts.uris.first().unwrap_or(&facts.subject).clone(),
            serial: facts.serial,
            subject: facts.subject,
            issuer_key: pair.key_hash().to_owned(),
            roots,
            not_before: facts.not_before,
            not_after: facts.not_after,
            fingerprint: facts.fingerprint,
            key_fingerprint: facts.key_fingerprint,
        })
    }

    pub(super) fn signing(&self, name: &AuthorityName) -> Result<SigningPair, CertificateError> {
        read_pair(&self.files(name))
    }

    /// The keys of the roots that have signed one of `certificates`.
    pub(super) fn roots_of(&self, certificates: &[CertificateDer<'_>]) -> Result<Vec<String>, CertificateError> {
        let path = self.client_root_file();
        let mut roots = Vec::new();
        for root in read_bundle(&path)? {
            if certificates.iter().any(|certificate| is_signed_by(certificate, &root)) {
                roots.push(facts_in(&path, &root)?.key_fingerprint);
            }
        }
        Ok(roots)
    }
}
