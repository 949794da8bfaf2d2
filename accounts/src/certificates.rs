//! The three unrelated roots, the intermediates of tenants, and the certificates of section 5 of the design.
//!
//! *client* (tenant and platform intermediates, clientAuth only), *server* (what clients and leaves trust), *route*
//! (hub to hub). A leaf's own listener is none of them: it is self-signed and only its site's pollers trust it (ADR 3).

use std::path::{Path, PathBuf};

use bulkhead_bus::{PollerName, SiteName, TenantSlug, UserName};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::files::{FileError, read_state, write_public, write_secret};

const ROOT_DAYS: i64 = 3_650;
const INTERMEDIATE_DAYS: i64 = 1_825;
/// Of every end certificate; `up` and, later, enrolment renew long before.
const END_DAYS: i64 = 90;
/// Clocks at remote sites may be behind.
const BACKDATE: Duration = Duration::minutes(5);

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate files")]
    File(#[source] FileError),
    #[error("{path} is damaged: restore it from a backup, or start anew with `bulkhead up --fresh`")]
    Damaged { path: String, source: rcgen::Error },
    #[error("{path} is gone: restore it from a backup, or start anew with `bulkhead up --fresh`")]
    Missing { path: String },
    #[error("make certificate for {subject}")]
    Make { subject: String, source: rcgen::Error },
}

/// A PEM certificate chain and its key on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl CertificateFiles {
    /// `<folder>/<name>.crt` and `<folder>/<name>.key`.
    #[must_use]
    pub fn named(folder: &Path, name: &str) -> Self {
        Self { cert_file: folder.join(format!("{name}.crt")), key_file: folder.join(format!("{name}.key")) }
    }
}

/// The suffix of every name in certificates.
#[derive(Debug, Clone)]
pub struct TrustDomain(String);

impl Default for TrustDomain {
    fn default() -> Self {
        Self("serviceradar".to_owned())
    }
}

impl std::fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// Who a client certificate speaks for.
#[derive(Debug, Clone)]
pub enum ClientIdentity {
    Leaf {
        tenant: TenantSlug,
        site: SiteName,
    },
    Poller {
        tenant: TenantSlug,
        site: SiteName,
        poller: PollerName,
    },
    /// The forwarder of a site, which speaks to its leaf under the reserved name.
    Forwarder {
        tenant: TenantSlug,
        site: SiteName,
    },
    User {
        tenant: TenantSlug,
        user: UserName,
    },
    PlatformUser {
        user: UserName,
    },
    Service {
        service: &'static str,
    },
}

impl ClientIdentity {
    /// The DNS SAN, which is also the CN.
    #[must_use]
    pub fn dns_name(&self, domain: &TrustDomain) -> String {
        let domain = &domain.0;
        match self {
            Self::Leaf { tenant, site } => format!("leaf.{site}.{tenant}.{domain}"),
            Self::Poller { tenant, site, poller } => format!("{poller}.{site}.{tenant}.{domain}"),
            Self::Forwarder { tenant, site } => format!("fwd.{site}.{tenant}.{domain}"),
            Self::User { tenant, user } => format!("{user}.user.{tenant}.{domain}"),
            Self::PlatformUser { user } => format!("{user}.user.platform.{domain}"),
            Self::Service { service } => format!("{service}.platform.{domain}"),
        }
    }

    fn uri(&self, domain: &TrustDomain) -> String {
        let domain = &domain.0;
        match self {
            Self::Leaf { tenant, site } => format!("spiffe://{domain}/tenant/{tenant}/site/{site}/leaf/leaf"),
            Self::Poller { tenant, site, poller } => {
                format!("spiffe://{domain}/tenant/{tenant}/site/{site}/poller/{poller}")
            }
            Self::Forwarder { tenant, site } => format!("spiffe://{domain}/tenant/{tenant}/site/{site}/poller/fwd"),
            Self::User { tenant, user } => format!("spiffe://{domain}/tenant/{tenant}/user/{user}"),
            Self::PlatformUser { user } => format!("spiffe://{domain}/platform/user/{user}"),
            Self::Service { service } => format!("spiffe://{domain}/platform/service/{service}"),
        }
    }

    fn intermediate(&self) -> String {
        match self {
            Self::Leaf { tenant, .. }
            | Self::Poller { tenant, .. }
            | Self::Forwarder { tenant, .. }
            | Self::User { tenant, .. } => format!("tenant-{tenant}"),
            Self::PlatformUser { .. } | Self::Service { .. } => "platform".to_owned(),
        }
    }
}

/// The certificate authority of one platform, in one folder.
#[derive(Debug, Clone)]
pub struct Authority {
    folder: PathBuf,
    domain: TrustDomain,
}

fn parameters(subject: &str, days: i64, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    // 127 random bits: unique, positive, and never derived from the key, so a renewal has a serial of its own.
    let mut serial = Uuid::new_v4().into_bytes();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(days);
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority_parameters(subject: &str, days: i64, below: u8, now: OffsetDateTime) -> CertificateParams {
    let mut params = parameters(subject, days, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn made<T>(subject: &str, result: Result<T, rcgen::Error>) -> Result<T, CertificateError> {
    result.map_err(|source| CertificateError::Make { subject: subject.to_owned(), source })
}

fn readable<T>(path: &Path, result: Result<T, rcgen::Error>) -> Result<T, CertificateError> {
    result.map_err(|source| CertificateError::Damaged { path: path.display().to_string(), source })
}

fn write_pair(files: &CertificateFiles, chain: &str, key: &KeyPair) -> Result<(), CertificateError> {
    write_secret(&files.key_file, key.serialize_pem().as_bytes()).map_err(CertificateError::File)?;
    write_public(&files.cert_file, chain.as_bytes()).map_err(CertificateError::File)
}

fn dns(subject: &str, name: &str) -> Result<SanType, CertificateError> {
    Ok(SanType::DnsName(made(subject, name.try_into())?))
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
        self.folder.join("client-root.crt")
    }

    #[must_use]
    pub fn server_root_file(&self) -> PathBuf {
        self.folder.join("server-root.crt")
    }

    #[must_use]
    pub fn route_root_file(&self) -> PathBuf {
        self.folder.join("route-root.crt")
    }

    /// What a site's leaf trusts: its own tenant's intermediate and nothing else.
    #[must_use]
    pub fn tenant_intermediate_file(&self, tenant: &TenantSlug) -> PathBuf {
        self.folder.join(format!("tenant-{tenant}.crt"))
    }

    /// The name by which clients and leaves know the hub, whichever of its servers answers.
    #[must_use]
    pub fn hub_name(&self) -> String {
        self.hub_server_name("hub")
    }

    fn hub_server_name(&self, server: &str) -> String {
        format!("{server}.platform.{}", self.domain.0)
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
        for root in ["client-root", "server-root", "route-root"] {
            let files = CertificateFiles::named(&self.folder, root);
            if self.is_there(root, &files)? {
                continue;
            }
            let subject = format!("{root}.{}", self.domain.0);
            let key = made(&subject, KeyPair::generate())?;
            let params = authority_parameters(&subject, ROOT_DAYS, 1, now);
            let root = made(&subject, CertifiedIssuer::self_signed(params, key))?;
            write_pair(&files, &root.pem(), root.key())?;
        }
        self.ensure_intermediate("platform", now)
    }

    /// Makes a tenant's intermediate unless it is there.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn ensure_tenant(&self, tenant: &TenantSlug, now: OffsetDateTime) -> Result<(), CertificateError> {
        self.ensure_intermediate(&format!("tenant-{tenant}"), now)
    }

    fn ensure_intermediate(&self, name: &str, now: OffsetDateTime) -> Result<(), CertificateError> {
        let files = CertificateFiles::named(&self.folder, name);
        if self.is_there(name, &files)? {
            return Ok(());
        }
        let owner = name.strip_prefix("tenant-").unwrap_or(name);
        let subject = format!("intermediate.{owner}.{}", self.domain.0);
        let root = self.issuer("client-root")?;
        let key = made(&subject, KeyPair::generate())?;
        let mut params = authority_parameters(&subject, INTERMEDIATE_DAYS, 0, now);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // No URI constraint: rustls-webpki refuses certificates that carry one (design section 5).
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(format!(".{owner}.{}", self.domain.0))],
            excluded_subtrees: vec![],
        });
        let certificate = made(&subject, params.signed_by(&key, &root))?;
        write_pair(&files, &certificate.pem(), &key)
    }

    /// Whether a certificate and its key are there and readable. One without the other is damage, never replaced: what
    /// was issued under it would be worth nothing.
    fn is_there(&self, name: &str, files: &CertificateFiles) -> Result<bool, CertificateError> {
        let missing = |path: &Path| CertificateError::Missing { path: path.display().to_string() };
        match (files.cert_file.exists(), files.key_file.exists()) {
            (false, false) => Ok(false),
            (false, true) => Err(missing(&files.cert_file)),
            (true, false) => Err(missing(&files.key_file)),
            (true, true) => self.issuer(name).map(|_| true),
        }
    }

    fn issuer(&self, name: &str) -> Result<Issuer<'static, KeyPair>, CertificateError> {
        let files = CertificateFiles::named(&self.folder, name);
        let certificate = read_state(&files.cert_file).map_err(CertificateError::File)?;
        let key = read_state(&files.key_file).map_err(CertificateError::File)?;
        let key = readable(&files.key_file, KeyPair::from_pem(&key))?;
        readable(&files.cert_file, Issuer::from_ca_cert_pem(&certificate, key))
    }

    /// A client certificate, with its intermediate behind it in the same file.
    ///
    /// # Errors
    /// When the intermediate is missing or files cannot be written.
    pub fn issue_client(
        &self,
        identity: &ClientIdentity,
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        let subject = identity.dns_name(&self.domain);
        let uri = identity.uri(&self.domain);
        let mut params = end_parameters(&subject, vec![ExtendedKeyUsagePurpose::ClientAuth], now);
        let uri = SanType::URI(made(&subject, uri.as_str().try_into())?);
        params.subject_alt_names = vec![dns(&subject, &subject)?, uri];
        self.issue(&identity.intermediate(), params, &subject, files)
    }

    /// The certificate of one server of the hub, such as `hub-1`: its own name, the name that all of them answer to, and
    /// the loopback names for a hub on this machine.
    ///
    /// # Errors
    /// When the server root is missing or files cannot be written.
    pub fn issue_hub(
        &self,
        server: &str,
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        let subject = self.hub_server_name(server);
        let mut params = end_parameters(&subject, vec![ExtendedKeyUsagePurpose::ServerAuth], now);
        let loopback = SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        params.subject_alt_names =
            vec![dns(&subject, &subject)?, dns(&subject, &self.hub_name())?, dns(&subject, "localhost")?, loopback];
        self.issue("server-root", params, &subject, files)
    }

    /// The certificate of one server of the hub towards the others.
    ///
    /// # Errors
    /// When the route root is missing or files cannot be written.
    pub fn issue_route(
        &self,
        server: &str,
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        let subject = self.hub_server_name(server);
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let mut params = end_parameters(&subject, usages, now);
        let loopback = SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        params.subject_alt_names = vec![dns(&subject, &subject)?, loopback];
        self.issue("route-root", params, &subject, files)
    }

    fn issue(
        &self,
        issuer: &str,
        params: CertificateParams,
        subject: &str,
        files: &CertificateFiles,
    ) -> Result<(), CertificateError> {
        let key = made(subject, KeyPair::generate())?;
        let certificate = made(subject, params.signed_by(&key, &self.issuer(issuer)?))?;
        let issuer_file = self.folder.join(format!("{issuer}.crt"));
        let is_root = issuer.ends_with("-root");
        let behind = if is_root { String::new() } else { read_state(&issuer_file).map_err(CertificateError::File)? };
        write_pair(files, &format!("{}{behind}", certificate.pem()), &key)
    }

    /// The self-signed certificate of a leaf's own listener.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn issue_site_listener(
        &self,
        tenant: &TenantSlug,
        site: &SiteName,
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<(), CertificateError> {
        let subject = format!("listener.{site}.{tenant}.{}", self.domain.0);
        let mut params = end_parameters(&subject, vec![ExtendedKeyUsagePurpose::ServerAuth], now);
        params.use_authority_key_identifier_extension = false;
        let loopback = SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        params.subject_alt_names = vec![dns(&subject, &subject)?, dns(&subject, "localhost")?, loopback];
        let key = made(&subject, KeyPair::generate())?;
        let certificate = made(&subject, params.self_signed(&key))?;
        write_pair(files, &certificate.pem(), &key)
    }
}

fn end_parameters(subject: &str, usages: Vec<ExtendedKeyUsagePurpose>, now: OffsetDateTime) -> CertificateParams {
    let mut params = parameters(subject, END_DAYS, now);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    fn authority(folder: &Path) -> Authority {
        let authority = Authority::new(folder.to_owned(), TrustDomain::default());
        authority.ensure_roots(OffsetDateTime::now_utc()).unwrap();
        authority
    }

    #[test]
    fn a_poller_certificate_says_the_same_thing_three_times_under_its_tenants_intermediate() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let tenant: TenantSlug = "acme-corp".parse().unwrap();
        let now = OffsetDateTime::now_utc();
        authority.ensure_tenant(&tenant, now).unwrap();
        let files = CertificateFiles::named(folder.path(), "p1");
        let identity = ClientIdentity::Poller { tenant, site: "oslo".parse().unwrap(), poller: "p1".parse().unwrap() };
        authority.issue_client(&identity, &files, now).unwrap();
        let pems: Vec<Pem> =
            Pem::iter_from_buffer(&std::fs::read(&files.cert_file).unwrap()).collect::<Result<_, _>>().unwrap();
        assert_eq!(pems.len(), 2, "the intermediate goes along");
        let end = pems[0].parse_x509().unwrap();
        let issuer = pems[1].parse_x509().unwrap();
        assert_eq!(end.subject().to_string(), "CN=p1.oslo.acme-corp.serviceradar");
        let names = end.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        assert!(names.contains(&GeneralName::DNSName("p1.oslo.acme-corp.serviceradar")));
        let uri = "spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1";
        assert!(names.contains(&GeneralName::URI(uri)));
        let usage = end.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        let constraints = issuer.name_constraints().unwrap().unwrap().value.permitted_subtrees.clone().unwrap();
        assert_eq!(constraints[0].base, GeneralName::DNSName(".acme-corp.serviceradar"));
        assert!(issuer.extended_key_usage().unwrap().unwrap().value.client_auth);
    }

    #[test]
    fn a_second_start_keeps_the_roots_and_a_renewal_has_a_new_serial() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let root = std::fs::read(authority.client_root_file()).unwrap();
        authority.ensure_roots(OffsetDateTime::now_utc()).unwrap();
        assert_eq!(std::fs::read(authority.client_root_file()).unwrap(), root);
        let serial = |name: &str| {
            let files = CertificateFiles::named(folder.path(), name);
            authority.issue_hub("hub-1", &files, OffsetDateTime::now_utc()).unwrap();
            let (_, pem) = parse_x509_pem(&std::fs::read(&files.cert_file).unwrap()).unwrap();
            pem.parse_x509().unwrap().raw_serial_as_string()
        };
        assert_ne!(serial("hub"), serial("hub"));
    }
}
