//! Revoking certificates, and the lists that say so to verifiers.
//!
//! The record comes first and the list is made from the records, so a list that is lost or late can be made again.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::authority::{Authority, SigningPair};
use super::book::{IssuedRecord, append, read};
use super::error::CertificateError;
use super::facts::to_pem;
use super::make::made;
use crate::files::write_public;
use bulkhead_identity::AuthorityName;

/// How long a list may be relied on.
const LIST_LIFE: Duration = Duration::days(7);
/// A certificate stays on the list a little longer than it is good, for clocks that are behind.
const KEPT_AFTER_END: Duration = Duration::days(1);

/// Why a certificate is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

impl Reason {
    fn code(self) -> RevocationReason {
        match self {
            Self::Unspecified => RevocationReason::Unspecified,
            Self::KeyCompromise => RevocationReason::KeyCompromise,
            Self::AffiliationChanged => RevocationReason::AffiliationChanged,
            Self::Superseded => RevocationReason::Superseded,
            Self::CessationOfOperation => RevocationReason::CessationOfOperation,
            Self::PrivilegeWithdrawn => RevocationReason::PrivilegeWithdrawn,
        }
    }
}

/// What is to be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocable {
    /// One certificate, by its serial number in hexadecimal.
    Serial(String),
    /// Every certificate of a DNS name or URI.
    Identity(String),
}

impl FromStr for Revocable {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let serial = text.replace(':', "");
        match HEXLOWER_PERMISSIVE.decode(serial.as_bytes()) {
            Ok(bytes) if bytes.len() >= 8 => Ok(Self::Serial(HEXLOWER.encode(&bytes))),
            Ok(_) | Err(_) => Ok(Self::Identity(text.to_owned())),
        }
    }
}

impl Revocable {
    fn is(&self, record: &IssuedRecord) -> bool {
        match self {
            Self::Serial(serial) => record.serial == *serial,
            Self::Identity(identity) => record.identity == *identity || record.subject == *identity,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Serial(serial) => format!("serial {serial}"),
            Self::Identity(identity) => format!("name {:?}", identity.chars().take(200).collect::<String>()),
        }
    }
}

/// One revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRecord {
    pub serial: String,
    pub identity: String,
    /// The SHA-256 of the key that signed it, whose list names it.
    pub issuer_key: String,
    pub reason: Reason,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// A list as it is on disk.
struct List {
    number: u64,
    this_update: OffsetDateTime,
    serials: BTreeSet<String>,
}

impl Authority {
    /// The list of an authority, PEM; while it is rotated one list of each key. It is there once something was revoked or
    /// [`Authority::renew_lists`] was called.
    #[must_use]
    pub fn list_file(&self, name: &AuthorityName) -> PathBuf {
        self.folder.join(format!("{}.crl", name.file_name()))
    }

    pub(super) fn revoked_file(&self, name: &AuthorityName) -> PathBuf {
        self.folder.join("revoked").join(format!("{}.jsonl", name.file_name()))
    }

    /// Everything that was revoked of what an authority has issued, oldest first.
    ///
    /// # Errors
    /// When its book cannot be read.
    pub fn list_revoked(&self, name: &AuthorityName) -> Result<Vec<RevokedRecord>, CertificateError> {
        read(&self.revoked_file(name))
    }

    /// What [`Authority::revoke`] would revoke: certificates that are good and not revoked yet. Changes nothing.
    ///
    /// # Errors
    /// When nothing like it was ever issued, or a book cannot be read.
    pub fn plan_revocation(
        &self,
        what: &Revocable,
        reason: Reason,
        now: OffsetDateTime,
    ) -> Result<Vec<(AuthorityName, RevokedRecord)>, CertificateError> {
        self.plan_among(&self.list_authorities()?, what, reason, now)
    }

    fn plan_among(
        &self,
        names: &[AuthorityName],
        what: &Revocable,
        reason: Reason,
        now: OffsetDateTime,
    ) -> Result<Vec<(AuthorityName, RevokedRecord)>, CertificateError> {
        let mut was_issued = false;
        let mut found = Vec::new();
        for name in names {
            let matching: Vec<_> = self.list_issued(name)?.into_iter().filter(|record| what.is(record)).collect();
            if matching.is_empty() {
                continue;
            }
            was_issued = true;
            let revoked = self.list_revoked(name)?;
            let is_open = |record: &IssuedRecord| {
                record.not_after > now && !revoked.iter().any(|one| one.serial == record.serial)
            };
            found.extend(matching.into_iter().filter(is_open).map(|record| {
                let (serial, identity) = (record.serial, record.identity);
                let (issuer_key, not_after) = (record.issuer_key, record.not_after);
                (name.clone(), RevokedRecord { serial, identity, issuer_key, reason, at: now, not_after })
            }));
        }
        if was_issued { Ok(found) } else { Err(CertificateError::NeverIssued { what: what.shown() }) }
    }

    /// The keys of which an authority has revoked a certificate, as SHA-256: whoever has taken one back trusts its key no more.
    ///
    /// # Errors
    /// When a book cannot be read.
    pub fn revoked_keys(&self, issuer: &AuthorityName) -> Result<BTreeSet<String>, CertificateError> {
        let revoked: BTreeSet<String> = self.list_revoked(issuer)?.into_iter().map(|one| one.serial).collect();
        let issued = self.list_issued(issuer)?.into_iter().filter(|one| revoked.contains(&one.serial));
        Ok(issued.map(|one| one.key_fingerprint).collect())
    }

    /// Who has issued it.
    ///
    /// # Errors
    /// When a book cannot be read.
    pub fn issuers_of(&self, what: &Revocable) -> Result<BTreeSet<AuthorityName>, CertificateError> {
        let mut issuers = BTreeSet::new();
        for name in self.list_authorities()? {
            if self.list_issued(&name)?.iter().any(|record| what.is(record)) {
                issuers.insert(name);
            }
        }
        Ok(issuers)
    }

    /// Revokes what is good of it and brings the lists up to date. Once more does no more, but finishes what was cut off.
    ///
    /// # Errors
    /// When nothing like it was ever issued, or files cannot be read or written.
    pub fn revoke(
        &self,
        what: &Revocable,
        reason: Reason,
        now: OffsetDateTime,
    ) -> Result<Vec<(AuthorityName, RevokedRecord)>, CertificateError> {
        let _lock = self.lock()?;
        self.revoke_among(&self.list_authorities()?, what, reason, now)
    }

    /// As [`Authority::revoke`], for what `issuer` has issued: the books of the others, of which there is one a tenant,
    /// stay closed.
    ///
    /// # Errors
    /// As [`Authority::revoke`].
    pub fn revoke_of(
        &self,
        issuer: &AuthorityName,
        what: &Revocable,
        reason: Reason,
        now: OffsetDateTime,
    ) -> Result<Vec<(AuthorityName, RevokedRecord)>, CertificateError> {
        let _lock = self.lock()?;
        self.revoke_among(std::slice::from_ref(issuer), what, reason, now)
    }

    fn revoke_among(
        &self,
        names: &[AuthorityName],
        what: &Revocable,
        reason: Reason,
        now: OffsetDateTime,
    ) -> Result<Vec<(AuthorityName, RevokedRecord)>, CertificateError> {
        let found = self.plan_among(names, what, reason, now)?;
        for (name, record) in &found {
            append(&self.revoked_file(name), record)?;
        }
        for name in names {
            if !self.list_revoked(name)?.is_empty() {
                self.renew_list(name, now)?;
            }
        }
        Ok(found)
    }

    /// Makes every list anew that is missing, wrong or past half of its life. Returns whose those were.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub fn renew_lists(&self, now: OffsetDateTime) -> Result<Vec<AuthorityName>, CertificateError> {
        let _lock = self.lock()?;
        let mut renewed = Vec::new();
        for name in self.list_authorities()? {
            if self.renew_list(&name, now)? {
                renewed.push(name);
            }
        }
        Ok(renewed)
    }

    /// Whether a list had to be made anew.
    pub(super) fn renew_list(&self, name: &AuthorityName, now: OffsetDateTime) -> Result<bool, CertificateError> {
        let records: Vec<_> =
            self.list_revoked(name)?.into_iter().filter(|record| record.not_after + KEPT_AFTER_END > now).collect();
        let pairs = self.live_pairs(name)?;
        let there = self.read_lists(name);
        let mut is_due = there.len() != pairs.len();
        let mut text = String::new();
        for pair in &pairs {
            let own: Vec<_> = records.iter().filter(|record| record.issuer_key == pair.key_hash()).collect();
            let serials: BTreeSet<String> = own.iter().map(|record| record.serial.clone()).collect();
            let before = there.iter().find(|list| list.is_signed_by(pair)).and_then(SignedList::read);
            is_due |= before.as_ref().is_none_or(|list| {
                list.serials != serials || list.this_update + LIST_LIFE / 2 <= now || list.this_update > now
            });
            // Seconds, so that numbers grow even when the list before is lost.
            let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0);
            let number = before.map_or(seconds, |list| seconds.max(list.number + 1));
            text.push_str(&make_list(pair, &own, (number, now))?);
        }
        if is_due {
            write_public(&self.list_file(name), text.as_bytes()).map_err(CertificateError::File)?;
        }
        Ok(is_due)
    }

    /// The lists on disk. One that cannot be read counts as missing: it is made anew from the records.
    fn read_lists(&self, name: &AuthorityName) -> Vec<SignedList> {
        let read = CertificateRevocationListDer::pem_file_iter(self.list_file(name));
        read.map(|lists| lists.flatten().map(SignedList).collect()).unwrap_or_default()
    }
}

struct SignedList(CertificateRevocationListDer<'static>);

impl SignedList {
    fn is_signed_by(&self, pair: &SigningPair) -> bool {
        let issuer = X509Certificate::from_der(&pair.certificates[0]);
        let list = CertificateRevocationList::from_der(&self.0);
        match (list, issuer) {
            (Ok((_, list)), Ok((_, issuer))) => list.verify_signature(issuer.public_key()).is_ok(),
            (Ok(_) | Err(_), _) => false,
        }
    }

    fn read(&self) -> Option<List> {
        let (_, list) = CertificateRevocationList::from_der(&self.0).ok()?;
        Some(List {
            number: list.crl_number()?.iter_u64_digits().next().unwrap_or(0),
            this_update: list.last_update().to_datetime(),
            serials: list.iter_revoked_certificates().map(|one| HEXLOWER.encode(one.raw_serial())).collect(),
        })
    }
}

fn make_list(
    pair: &SigningPair,
    records: &[&RevokedRecord],
    (number, now): (u64, OffsetDateTime),
) -> Result<String, CertificateError> {
    let subject = &pair.facts.subject;
    let entry = |record: &&RevokedRecord| {
        let serial = HEXLOWER.decode(record.serial.as_bytes()).map_err(|error| CertificateError::Unreadable {
            path: format!("record of {}", record.identity),
            why: error.to_string(),
        })?;
        let reason = (record.reason != Reason::Unspecified).then(|| record.reason.code());
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: record.at,
            reason_code: reason,
            invalidity_date: None,
        })
    };
    let params = CertificateRevocationListParams {
        this_update: now,
        next_update: now + LIST_LIFE,
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: records.iter().map(entry).collect::<Result<_, CertificateError>>()?,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(to_pem("X509 CRL", made(subject, params.signed_by(&pair.issuer))?.der()))
}
