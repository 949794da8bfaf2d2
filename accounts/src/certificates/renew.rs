//! Renewing end certificates before they end.
//!
//! The key stays: then one file changes, in one rename, and no reader ever sees a certificate beside another one's key.
//! A new key is had by issuing anew.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;

use super::CertificateFiles;
use super::authority::Authority;
use super::book::IssuedCertificate;
use super::error::CertificateError;
use super::facts::{CertificateFacts, InspectError, facts_in, is_signed_by, read_bundle, unreadable};
use super::make::{client_parameters, hub_parameters, key_hash, route_parameters};
use crate::files::{read_state, write_public};
use bulkhead_identity::AuthorityName;
use bulkhead_identity::{ClientIdentity, is_due_for_renewal, read_identity};

/// Whether a certificate has lived two thirds of its life.
///
/// # Errors
/// When the file cannot be read.
pub fn needs_renewal(cert_file: &Path, now: OffsetDateTime) -> Result<bool, CertificateError> {
    let facts = facts_in(cert_file, &read_bundle(cert_file)?[0])?;
    let [begins, ends, now] = [facts.not_before, facts.not_after, now].map(OffsetDateTime::unix_timestamp);
    Ok(is_due_for_renewal(begins, ends, now))
}

impl Authority {
    /// Whether a command may go on with a certificate of `identity` that is there: by the authority that signs now, with what goes
    /// behind it now, not revoked, and not due for renewal. What cannot be read is not fit.
    #[must_use]
    pub fn is_fit(&self, files: &CertificateFiles, identity: &ClientIdentity, now: OffsetDateTime) -> bool {
        let judge = || -> Result<bool, CertificateError> {
            let pair = read_pair_of_end(files)?;
            let bundle = read_bundle(&files.cert_file)?;
            let Some((end, behind)) = bundle.split_first() else { return Ok(false) };
            let name = identity.authority();
            let signing = self.signing(&name)?;
            let is_current = signing.certificates.first().is_some_and(|issuer| is_signed_by(end, issuer))
                && self.chain_behind(&name, &signing)?.0 == behind;
            let is_revoked = self.list_revoked(&name)?.iter().any(|record| record.serial == pair.facts.serial);
            let is_theirs = read_identity(end, &self.domain).is_ok_and(|found| found == *identity);
            Ok(is_theirs && is_current && !is_revoked && !needs_renewal(&files.cert_file, now)?)
        };
        judge().unwrap_or(false)
    }

    /// A new certificate for the same identity and the same key, with a new serial and of the authority that signs now.
    ///
    /// # Errors
    /// When it is revoked, was not issued by an authority that is trusted now, or its key is another one's.
    pub fn renew(&self, files: &CertificateFiles, now: OffsetDateTime) -> Result<IssuedCertificate, CertificateError> {
        let _lock = self.lock()?;
        let pair = read_pair_of_end(files)?;
        let (name, params) = self.parameters_of(files, &pair.facts, now)?;
        let path = || files.cert_file.display().to_string();
        let trusted = read_bundle(&self.files(&name).cert_file)?;
        let end = &read_bundle(&files.cert_file)?[0];
        if !trusted.iter().any(|issuer| is_signed_by(end, issuer)) {
            return Err(CertificateError::NotOurs { path: path(), name });
        }
        if self.list_revoked(&name)?.iter().any(|record| record.serial == pair.facts.serial) {
            return Err(CertificateError::Revoked { path: path(), serial: pair.facts.serial });
        }
        let (issued, chain) = self.certify(&name, (&pair.facts.subject, params), &pair.key)?;
        write_public(&files.cert_file, chain.as_bytes()).map_err(CertificateError::File)?;
        Ok(issued)
    }

    /// Who has to renew a certificate, and what it is to say: what its kind says, not what it happens to say. A server keeps
    /// the hosts that it is reached at.
    fn parameters_of(
        &self,
        files: &CertificateFiles,
        facts: &CertificateFacts,
        now: OffsetDateTime,
    ) -> Result<(AuthorityName, CertificateParams), CertificateError> {
        let subject = &facts.subject;
        match (facts.for_clients, facts.for_servers) {
            (true, true) => Ok((AuthorityName::RouteRoot, route_parameters(subject, &facts.hosts(), now)?)),
            (false, _) => {
                let params = hub_parameters(subject, &self.hub_name(), &facts.hosts(), now)?;
                Ok((AuthorityName::ServerRoot, params))
            }
            (true, false) => {
                let end = &read_bundle(&files.cert_file)?[0];
                let identity = read_identity(end, &self.domain)
                    .map_err(|source| CertificateError::Identity { subject: subject.clone(), source })?;
                Ok((identity.authority(), client_parameters(&identity, &self.domain, now)?))
            }
        }
    }
}

struct EndPair {
    key: KeyPair,
    facts: CertificateFacts,
}

fn read_pair_of_end(files: &CertificateFiles) -> Result<EndPair, CertificateError> {
    let text = read_state(&files.key_file).map_err(CertificateError::File)?;
    let key = KeyPair::from_pem(&text);
    let key = key.map_err(|error| unreadable(&files.key_file)(InspectError(error.to_string())))?;
    let facts = facts_in(&files.cert_file, &read_bundle(&files.cert_file)?[0])?;
    if facts.key_fingerprint == key_hash(&key) {
        return Ok(EndPair { key, facts });
    }
    Err(CertificateError::Mismatch {
        cert_file: files.cert_file.display().to_string(),
        key_file: files.key_file.display().to_string(),
    })
}
