//! What a bundle is made of, without its secrets: what a site's administrator reads and what a revocation names.

use std::path::Path;

use bulkhead_bus::{BatchKey, PollerName, SiteName, TenantSlug};
use data_encoding::HEXLOWER;
use serde::Serialize;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::pem::parse_x509_pem;

use super::day;
use crate::certificates::IssuedRecord;
use crate::files::{FileError, read_text};
use crate::up::Site;

/// Why a certificate says nothing.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    #[error("read certificate")]
    File(#[source] FileError),
    #[error("{path} holds no certificate: {problem}")]
    Parse { path: String, problem: String },
}

/// What identifies a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateFacts {
    pub subject: String,
    /// Hexadecimal, without a sign or separators.
    pub serial: String,
    /// SHA-256 of the whole certificate, hexadecimal.
    pub fingerprint: String,
    /// Unix seconds.
    pub not_after: i64,
}

impl CertificateFacts {
    /// Of the first certificate in a PEM file.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn read(path: &Path) -> Result<Self, FactsError> {
        let text = read_text(path).map_err(FactsError::File)?;
        Self::parse(&text).map_err(|problem| FactsError::Parse { path: path.display().to_string(), problem })
    }

    /// Of a certificate as the book of its issuer has it.
    #[must_use]
    pub fn of(record: &IssuedRecord) -> Self {
        Self {
            subject: record.subject.clone(),
            serial: record.serial.clone(),
            fingerprint: record.fingerprint.clone(),
            not_after: record.not_after.unix_timestamp(),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|error| error.to_string())?;
        let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
        let subject = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Ok(Self {
            subject: subject.ok_or("it has no common name")?.to_owned(),
            serial: HEXLOWER.encode(certificate.raw_serial()),
            fingerprint: HEXLOWER.encode(&Sha256::digest(&pem.contents)),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

/// The leaf of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeafManifest {
    /// Towards the hub.
    pub certificate: CertificateFacts,
    /// Towards the site's pollers; `None` where the device has made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<CertificateFacts>,
}

/// A poller of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PollerManifest {
    pub poller: PollerName,
    pub certificate: CertificateFacts,
    /// As the forwarder of its site.
    pub forwarder: CertificateFacts,
    /// The public half of the key that signs its batches.
    pub batch_key: BatchKey,
}

/// `MANIFEST.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BundleManifest {
    pub tenant: TenantSlug,
    pub site: SiteName,
    /// The day.
    pub made: String,
    /// The day on which the first of its certificates ends.
    pub ends: String,
    /// Unix seconds.
    pub ends_at: i64,
    pub leaf_urls: Vec<String>,
    pub leaf: LeafManifest,
    pub pollers: Vec<PollerManifest>,
}

impl BundleManifest {
    pub(super) fn new(
        site: &Site,
        now: OffsetDateTime,
        leaf_urls: Vec<String>,
        leaf: LeafManifest,
        pollers: Vec<PollerManifest>,
    ) -> Self {
        let of_poller = |poller: &PollerManifest| poller.certificate.not_after.min(poller.forwarder.not_after);
        let of_listener = leaf.listener.as_ref().map_or(i64::MAX, |listener| listener.not_after);
        let of_leaf = leaf.certificate.not_after.min(of_listener);
        let ends_at = pollers.iter().map(of_poller).fold(of_leaf, i64::min);
        let ends = OffsetDateTime::from_unix_timestamp(ends_at).unwrap_or(now);
        Self {
            tenant: site.tenant.clone(),
            site: site.site.clone(),
            made: day(now),
            ends: day(ends),
            ends_at,
            leaf_urls,
            leaf,
            pollers,
        }
    }

    pub(super) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("names, numbers and keys serialize");
        text.push('\n');
        text
    }
}
