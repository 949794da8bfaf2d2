//! What each kind of certificate says. Dates, serials and names only; nothing is signed or written here.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::error::CertificateError;
use super::facts::hash;
use bulkhead_identity::AuthorityName;
use bulkhead_identity::{ClientIdentity, TrustDomain};

const ROOT_DAYS: i64 = 3_650;
const INTERMEDIATE_DAYS: i64 = 1_825;
/// Of every end certificate; `up` and, later, enrolment renew long before.
const END_DAYS: i64 = 90;
/// Clocks at remote sites may be behind.
const BACKDATE: Duration = Duration::minutes(5);
/// Enough of a key's hash to tell apart authorities of one name.
const KEY_LABEL_LENGTH: usize = 12;

pub(super) fn made<T>(subject: &str, result: Result<T, rcgen::Error>) -> Result<T, CertificateError> {
    result.map_err(|source| CertificateError::Make { subject: subject.to_owned(), source })
}

/// SHA-256 of a public key, lower-case hexadecimal.
pub(crate) fn key_hash(key: &impl PublicKeyData) -> String {
    hash(&key.subject_public_key_info())
}

fn parameters(subject: &str, days: i64, now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    // 126 random bits: unique, positive, and never derived from the key, so a renewal has a serial of its own.
    let mut serial = Uuid::new_v4().into_bytes();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(days);
    params.use_authority_key_identifier_extension = true;
    params
}

/// The common name of a new authority. The key is in it: lists of revoked certificates and verifiers find an authority by
/// its name, and must not take a new one for the old.
pub(super) fn authority_subject(name: &AuthorityName, key: &KeyPair, domain: &TrustDomain) -> String {
    let label = &key_hash(key)[..KEY_LABEL_LENGTH];
    match name.owner() {
        None => format!("{}-{label}.{}", name.file_name(), domain.as_str()),
        Some(owner) => format!("intermediate-{label}.{owner}.{}", domain.as_str()),
    }
}

pub(super) fn authority_parameters(
    name: &AuthorityName,
    subject: &str,
    domain: &TrustDomain,
    now: OffsetDateTime,
) -> CertificateParams {
    let (days, below) = if name.is_root() { (ROOT_DAYS, 1) } else { (INTERMEDIATE_DAYS, 0) };
    let mut params = parameters(subject, days, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let Some(owner) = name.owner() else { return params };
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    // No URI constraint: rustls-webpki refuses certificates that carry one (design section 5).
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(format!(".{owner}.{}", domain.as_str()))],
        excluded_subtrees: vec![],
    });
    params
}

/// A new root as its predecessor vouches for it, for those who do not know it yet.
pub(super) fn cross_parameters(
    name: &AuthorityName,
    subject: &str,
    domain: &TrustDomain,
    now: OffsetDateTime,
) -> CertificateParams {
    let mut params = authority_parameters(name, subject, domain, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params
}

fn end_parameters(subject: &str, usages: Vec<ExtendedKeyUsagePurpose>, now: OffsetDateTime) -> CertificateParams {
    let mut params = parameters(subject, END_DAYS, now);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    params
}

fn dns(subject: &str, name: &str) -> Result<SanType, CertificateError> {
    Ok(SanType::DnsName(made(subject, name.try_into())?))
}

fn loopback() -> SanType {
    SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())
}

pub(super) fn client_parameters(
    identity: &ClientIdentity,
    domain: &TrustDomain,
    now: OffsetDateTime,
) -> Result<CertificateParams, CertificateError> {
    let subject = identity.dns_name(domain);
    identity.check_plain().map_err(|source| CertificateError::Identity { subject: subject.clone(), source })?;
    let mut params = end_parameters(&subject, vec![ExtendedKeyUsagePurpose::ClientAuth], now);
    let uri = SanType::URI(made(&subject, identity.uri(domain).as_str().try_into())?);
    params.subject_alt_names = vec![dns(&subject, &subject)?, uri];
    Ok(params)
}

/// `also` is the name that all servers of the hub answer to; `hosts` are where this one is reached.
pub(super) fn hub_parameters(
    subject: &str,
    also: &str,
    hosts: &[String],
    now: OffsetDateTime,
) -> Result<CertificateParams, CertificateError> {
    let mut params = end_parameters(subject, vec![ExtendedKeyUsagePurpose::ServerAuth], now);
    params.subject_alt_names =
        vec![dns(subject, subject)?, dns(subject, also)?, dns(subject, "localhost")?, loopback()];
    add_hosts(&mut params, subject, hosts)?;
    Ok(params)
}

pub(super) fn desk_parameters(
    subject: &str,
    hosts: &[String],
    now: OffsetDateTime,
) -> Result<CertificateParams, CertificateError> {
    let mut params = end_parameters(subject, vec![ExtendedKeyUsagePurpose::ServerAuth], now);
    params.subject_alt_names = vec![dns(subject, subject)?, dns(subject, "localhost")?, loopback()];
    add_hosts(&mut params, subject, hosts)?;
    Ok(params)
}

pub(super) fn route_parameters(
    subject: &str,
    hosts: &[String],
    now: OffsetDateTime,
) -> Result<CertificateParams, CertificateError> {
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let mut params = end_parameters(subject, usages, now);
    params.subject_alt_names = vec![dns(subject, subject)?, loopback()];
    add_hosts(&mut params, subject, hosts)?;
    Ok(params)
}

/// A host is a DNS name or an address; one that is there already is not named twice.
fn add_hosts(params: &mut CertificateParams, subject: &str, hosts: &[String]) -> Result<(), CertificateError> {
    for host in hosts {
        let name = match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => dns(subject, host)?,
        };
        if !params.subject_alt_names.contains(&name) {
            params.subject_alt_names.push(name);
        }
    }
    Ok(())
}

pub(super) fn listener_parameters(subject: &str, now: OffsetDateTime) -> Result<CertificateParams, CertificateError> {
    let mut params = end_parameters(subject, vec![ExtendedKeyUsagePurpose::ServerAuth], now);
    params.use_authority_key_identifier_extension = false;
    params.subject_alt_names = vec![dns(subject, subject)?, dns(subject, "localhost")?, loopback()];
    Ok(params)
}
