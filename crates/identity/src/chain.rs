//! Whether somebody trusted says what an end certificate says, checked from nothing: a server's word on a chain counts for
//! nothing here. Names are not compared with any account: that is the gatekeeper's part.

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::{ClientIdentity, IdentityError, TrustDomain, read_identity};

/// Chains that a server may show of one connection; while an authority is rotated there is more than one.
const CHAINS_MOST: usize = 8;
/// An end certificate, its intermediate, the root, and one that vouches for a new root.
const CERTIFICATES_MOST: usize = 4;
const PEM_BYTES_MOST: usize = 16 * 1024;

/// The client roots that are trusted now.
#[derive(Debug, Clone)]
pub struct TrustedRoots {
    anchors: Vec<TrustAnchor<'static>>,
    keys: BTreeSet<String>,
}

/// Why a chain is not believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("no certificate was shown that a server has verified")]
    NotShown,
    #[error("{what} is more than the {most} that are read")]
    TooMuch { what: String, most: usize },
    #[error("no certificate can be read: {0}")]
    Unreadable(String),
    #[error("the end certificates of the chains are not one")]
    Several,
    #[error("it is not good before unix second {0}")]
    NotYetGood(u64),
    #[error("it was good until unix second {0}")]
    Expired(u64),
    #[error("no trusted root vouches for it: {0}")]
    Untrusted(String),
    #[error("{0} intermediates vouch for it, and exactly one says whose it is")]
    Intermediates(usize),
    #[error("it speaks for nobody")]
    Identity(#[source] IdentityError),
}

/// An end certificate that a trusted root vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCertificate {
    pub identity: ClientIdentity,
    /// SHA-256 of the public key that signed it, lower-case hexadecimal.
    pub authority_key: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 of the whole certificate, lower-case hexadecimal.
    pub fingerprint: String,
    /// Unix seconds.
    pub not_after: i64,
}

fn hash(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

fn read_pem(text: &str) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    let read = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    read.map_err(|error| ChainError::Unreadable(error.to_string()))
}

impl TrustedRoots {
    /// # Errors
    /// When there is none in it, or one cannot be read.
    pub fn from_pem(text: &str) -> Result<Self, ChainError> {
        let unreadable = |error: webpki::Error| ChainError::Unreadable(format!("{error:?}"));
        let certificates = read_pem(text)?;
        if certificates.is_empty() {
            return Err(ChainError::Unreadable("there is none".to_owned()));
        }
        let (mut anchors, mut keys) = (Vec::new(), BTreeSet::new());
        for certificate in &certificates {
            anchors.push(anchor_from_trusted_cert(certificate).map_err(unreadable)?.to_owned());
            let (_, parsed) =
                X509Certificate::from_der(certificate).map_err(|error| ChainError::Unreadable(error.to_string()))?;
            keys.insert(hash(parsed.public_key().raw));
        }
        Ok(Self { anchors, keys })
    }

    /// SHA-256 of their public keys, lower-case hexadecimal.
    #[must_use]
    pub fn keys(&self) -> &BTreeSet<String> {
        &self.keys
    }
}

/// The end certificate and all that stands above it in any chain.
fn read_shown(chains: &[Vec<String>]) -> Result<(CertificateDer<'static>, Vec<CertificateDer<'static>>), ChainError> {
    if chains.len() > CHAINS_MOST {
        return Err(ChainError::TooMuch { what: format!("a list of {} chains", chains.len()), most: CHAINS_MOST });
    }
    let (mut end, mut above) = (None, Vec::new());
    for chain in chains {
        if chain.len() > CERTIFICATES_MOST {
            let what = format!("a chain of {} certificates", chain.len());
            return Err(ChainError::TooMuch { what, most: CERTIFICATES_MOST });
        }
        if let Some(long) = chain.iter().map(String::len).find(|length| *length > PEM_BYTES_MOST) {
            return Err(ChainError::TooMuch { what: format!("a certificate of {long} bytes"), most: PEM_BYTES_MOST });
        }
        let mut certificates = Vec::new();
        for text in chain {
            let mut one = read_pem(text)?;
            match one.len() {
                1 => certificates.append(&mut one),
                count => return Err(ChainError::Unreadable(format!("{count} certificates where one stands"))),
            }
        }
        let mut certificates = certificates.into_iter();
        let first = certificates.next().ok_or(ChainError::NotShown)?;
        match &end {
            None => end = Some(first),
            Some(other) if *other == first => {}
            Some(_) => return Err(ChainError::Several),
        }
        above.extend(certificates);
    }
    above.dedup();
    end.map(|end| (end, above)).ok_or(ChainError::NotShown)
}

/// Reads the chains of one connection as PEM, each from the end certificate upwards, and verifies them at `now_s`, unix
/// seconds: signatures, dates, constraints on names, use by clients, and exactly one intermediate below a trusted root.
///
/// # Errors
/// Which rule it breaks.
pub fn verify_chain(
    chains: &[Vec<String>],
    roots: &TrustedRoots,
    domain: &TrustDomain,
    now_s: u64,
) -> Result<VerifiedCertificate, ChainError> {
    let (end, above) = read_shown(chains)?;
    let unreadable = |error: &dyn std::fmt::Display| ChainError::Unreadable(error.to_string());
    let parsed = EndEntityCert::try_from(&end).map_err(|error| ChainError::Unreadable(format!("{error:?}")))?;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s));
    let path = parsed
        .verify_for_usage(ALL_VERIFICATION_ALGS, &roots.anchors, &above, time, KeyUsage::client_auth(), None, None)
        .map_err(refusal)?;
    let mut intermediates = path.intermediate_certificates();
    let (Some(issuer), None) = (intermediates.next(), intermediates.next()) else {
        return Err(ChainError::Intermediates(path.intermediate_certificates().count()));
    };
    let authority_key = hash(issuer.subject_public_key_info().as_ref());
    let identity = read_identity(&end, domain).map_err(ChainError::Identity)?;
    let (_, facts) = X509Certificate::from_der(&end).map_err(|error| unreadable(&error))?;
    Ok(VerifiedCertificate {
        identity,
        authority_key,
        serial: HEXLOWER.encode(facts.raw_serial()),
        fingerprint: hash(&end),
        not_after: facts.validity().not_after.timestamp(),
    })
}

fn refusal(error: webpki::Error) -> ChainError {
    if let webpki::Error::CertExpired { not_after, .. } = error {
        ChainError::Expired(not_after.as_secs())
    } else if let webpki::Error::CertNotValidYet { not_before, .. } = error {
        ChainError::NotYetGood(not_before.as_secs())
    } else {
        ChainError::Untrusted(format!("{error:?}").chars().take(200).collect())
    }
}

#[cfg(test)]
mod tests;
