//! What is in a certificate, for people and for decisions.

use std::net::IpAddr;
use std::path::Path;

use data_encoding::{BASE64, HEXLOWER};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::CertificateError;
use crate::files::read_state;

const PEM_LINE: usize = 64;

/// What is in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateFacts {
    /// The common name.
    pub subject: String,
    pub issuer: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// SHA-256 of the whole certificate.
    pub fingerprint: String,
    /// SHA-256 of its public key: the same when a certificate is made again for the same key.
    pub key_fingerprint: String,
    pub is_authority: bool,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    pub uris: Vec<String>,
    pub for_clients: bool,
    pub for_servers: bool,
}

/// Why a text holds no certificate that can be read.
#[derive(Debug, thiserror::Error)]
#[error("no certificate can be read: {0}")]
pub struct InspectError(pub(super) String);

pub(super) fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// The facts of the first certificate of a PEM text.
///
/// # Errors
/// When there is none, or it is malformed.
pub fn inspect(pem: &str) -> Result<CertificateFacts, InspectError> {
    let certificates = read_pem(pem)?;
    facts_of(&certificates[0])
}

/// The facts of every certificate of a PEM text, in its order.
///
/// # Errors
/// When there is none, or one is malformed.
pub fn inspect_all(pem: &str) -> Result<Vec<CertificateFacts>, InspectError> {
    read_pem(pem)?.iter().map(facts_of).collect()
}

/// At least one certificate.
pub(super) fn read_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, InspectError> {
    let read = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = read.map_err(|error| InspectError(error.to_string()))?;
    if certificates.is_empty() { Err(InspectError("there is none".to_owned())) } else { Ok(certificates) }
}

pub(super) fn facts_of(certificate: &CertificateDer<'_>) -> Result<CertificateFacts, InspectError> {
    let failed = |error: &dyn std::fmt::Display| InspectError(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| failed(&error))?;
    let common_name = |name: &x509_parser::x509::X509Name<'_>| {
        let first = name.iter_common_name().next().and_then(|name| name.as_str().ok());
        first.unwrap_or_default().to_owned()
    };
    let (mut dns_names, mut addresses, mut uris) = (Vec::new(), Vec::new(), Vec::new());
    let names = parsed.subject_alternative_name().map_err(|error| failed(&error))?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::DNSName(name) = name {
            dns_names.push((*name).to_owned());
        } else if let GeneralName::URI(uri) = name {
            uris.push((*uri).to_owned());
        } else if let GeneralName::IPAddress(bytes) = name {
            addresses.extend(address_in(bytes));
        }
    }
    let usage = parsed.extended_key_usage().map_err(|error| failed(&error))?.map(|usage| usage.value);
    Ok(CertificateFacts {
        subject: common_name(parsed.subject()),
        issuer: common_name(parsed.issuer()),
        serial: HEXLOWER.encode(parsed.raw_serial()),
        not_before: parsed.validity().not_before.to_datetime(),
        not_after: parsed.validity().not_after.to_datetime(),
        fingerprint: hash(certificate),
        key_fingerprint: hash(parsed.public_key().raw),
        is_authority: parsed.is_ca(),
        dns_names,
        addresses,
        uris,
        for_clients: usage.is_some_and(|usage| usage.client_auth),
        for_servers: usage.is_some_and(|usage| usage.server_auth),
    })
}

/// An address as a certificate holds it: 4 or 16 bytes.
fn address_in(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

impl CertificateFacts {
    /// The names and addresses by which a server that shows it may be reached.
    pub(super) fn hosts(&self) -> Vec<String> {
        let addresses = self.addresses.iter().map(ToString::to_string);
        self.dns_names.iter().cloned().chain(addresses).collect()
    }
}

/// Whether `issuer` has signed `certificate`: name and signature, not dates.
pub(super) fn is_signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer))
    else {
        return false;
    };
    certificate.issuer() == issuer.subject() && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

pub(super) fn unreadable(path: &Path) -> impl Fn(InspectError) -> CertificateError {
    move |error| CertificateError::Unreadable { path: path.display().to_string(), why: error.0 }
}

pub(super) fn read_bundle(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    read_pem(&read_state(path).map_err(CertificateError::File)?).map_err(unreadable(path))
}

pub(super) fn facts_in(path: &Path, certificate: &CertificateDer<'_>) -> Result<CertificateFacts, CertificateError> {
    facts_of(certificate).map_err(unreadable(path))
}

pub(super) fn to_pem(kind: &str, bytes: &[u8]) -> String {
    let text = BASE64.encode(bytes);
    let mut pem = format!("-----BEGIN {kind}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, behind) = rest.split_at(rest.len().min(PEM_LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = behind;
    }
    pem + &format!("-----END {kind}-----\n")
}

pub(super) fn bundle_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| to_pem("CERTIFICATE", certificate)).collect()
}
