//! What a device asks for, checked: its names are the token's, and it has the private halves of what it shows. Pure.

use std::collections::BTreeMap;

use bulkhead_bus::BatchKey;
use bulkhead_identity::{ClientIdentity, DeviceEnd, Enrolee, EnrolmentRequest, RenewalRequest, TrustDomain, proof};
use data_encoding::BASE64;
use nkeys::{KeyPair, XKey};
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData, SanType,
};
use sha2::{Digest, Sha256};

use crate::certificates::key_hash;
use crate::up::DeviceKeys;

/// Why a request is not good.
#[derive(Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// A certificate request that is none, or whose signature is not its key's.
    Csr { end: DeviceEnd, problem: String },
    /// It asks for another name; whose, when it says so.
    Name { expected: String, found: String, tenant: Option<String> },
    /// A key of another kind than the one for its purpose, or one that is used twice.
    Key(&'static str),
    /// The private half of the batch key was not shown.
    Proof,
}

/// The keys of a device, and what tells them from any other's.
pub struct CheckedKeys {
    pub keys: DeviceKeys,
    pub sealing_key: String,
    /// SHA-256 over all of them.
    pub digest: String,
}

/// An uncompressed point of P-256.
const P256_BYTES: usize = 65;

/// # Errors
/// The first thing that is wrong.
pub fn check_keys(
    request: &EnrolmentRequest,
    enrolee: &Enrolee,
    domain: &TrustDomain,
) -> Result<CheckedKeys, BadRequest> {
    let key_of = |end| check_csr(request.csr(end), end, &enrolee.identity(end), domain);
    let (leaf_tls, forwarder_tls, poller_tls) =
        (key_of(DeviceEnd::Leaf)?, key_of(DeviceEnd::Forwarder)?, key_of(DeviceEnd::Poller)?);
    if leaf_tls == forwarder_tls || leaf_tls == poller_tls || forwarder_tls == poller_tls {
        return Err(BadRequest::Key("leaf, forwarder and poller each need a TLS key of their own"));
    }
    let batch: BatchKey =
        request.batch_key.parse().map_err(|_| BadRequest::Key("a batch key is a public nkey of a user (U…)"))?;
    let sealing_key = check_sealing_key(&request.sealing_key)?;
    let signature = BASE64.decode(request.batch_key_proof.as_bytes()).map_err(|_| BadRequest::Proof)?;
    let public = KeyPair::from_public_key(batch.as_str()).map_err(|_| BadRequest::Proof)?;
    public.verify(&proof(&request.token), &signature).map_err(|_| BadRequest::Proof)?;
    let mut hasher = Sha256::new();
    for part in
        [&key_hash(&leaf_tls), &key_hash(&forwarder_tls), &key_hash(&poller_tls), &request.batch_key, &sealing_key]
    {
        hasher.update(part.as_bytes());
        hasher.update(b"\n");
    }
    let digest = data_encoding::HEXLOWER.encode(&hasher.finalize());
    let keys = DeviceKeys { poller: enrolee.poller.clone(), leaf_tls, forwarder_tls, poller_tls, batch };
    Ok(CheckedKeys { keys, sealing_key, digest })
}

/// The keys of a renewal, each with the name that it has.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_renewal(
    request: &RenewalRequest,
    enrolee: &Enrolee,
    domain: &TrustDomain,
) -> Result<BTreeMap<DeviceEnd, PublicKey>, BadRequest> {
    let key_of =
        |(end, csr): &(DeviceEnd, String)| check_csr(csr, *end, &enrolee.identity(*end), domain).map(|key| (*end, key));
    let is_once = |end: DeviceEnd| request.csrs.iter().filter(|(one, _)| *one == end).count() <= 1;
    if request.csrs.is_empty() || !DeviceEnd::ALL.into_iter().all(is_once) {
        return Err(BadRequest::Key("a renewal has one certificate request for each certificate that is due"));
    }
    request.csrs.iter().map(key_of).collect()
}

fn check_sealing_key(text: &str) -> Result<String, BadRequest> {
    let is_key = text.starts_with('X') && XKey::from_public_key(text).is_ok();
    let problem = "a sealing key is a public X25519 nkey (X…)";
    if is_key { Ok(text.to_owned()) } else { Err(BadRequest::Key(problem)) }
}

/// The key of a certificate request for exactly this name. Everything else in it is ignored: what a certificate says is for
/// its authority to decide.
fn check_csr(
    pem: &str,
    end: DeviceEnd,
    identity: &ClientIdentity,
    domain: &TrustDomain,
) -> Result<PublicKey, BadRequest> {
    let request = CertificateSigningRequestParams::from_pem(pem)
        .map_err(|error| BadRequest::Csr { end, problem: error.to_string() })?;
    let (dns, uri) = (identity.dns_name(domain), identity.uri(domain));
    let named = request.params.distinguished_name.iter().map(|(kind, value)| match (kind, value_text(value)) {
        (DnType::CommonName, text) => text,
        (kind, text) => format!("{kind:?}={text}"),
    });
    let names: Vec<String> = named.chain(request.params.subject_alt_names.iter().map(san_text)).collect();
    let stranger = names.iter().find(|name| **name != dns && **name != uri);
    if let Some(found) = stranger {
        let found: String = found.chars().take(200).collect();
        let tenant = tenant_named(&found, domain);
        return Err(BadRequest::Name { expected: dns, found, tenant });
    }
    if names.is_empty() {
        return Err(BadRequest::Name { expected: dns, found: String::new(), tenant: None });
    }
    let key = request.public_key;
    let is_p256 = *key.algorithm() == PKCS_ECDSA_P256_SHA256 && key.der_bytes().len() == P256_BYTES;
    if is_p256 { Ok(key) } else { Err(BadRequest::Key("a TLS key is an ECDSA key on P-256 that signs with SHA-256")) }
}

fn value_text(value: &DnValue) -> String {
    if let DnValue::Utf8String(text) = value {
        return text.clone();
    }
    if let DnValue::PrintableString(text) = value { text.as_str().to_owned() } else { format!("{value:?}") }
}

fn san_text(san: &SanType) -> String {
    if let SanType::DnsName(name) = san {
        return name.as_str().to_owned();
    }
    if let SanType::URI(uri) = san { uri.as_str().to_owned() } else { format!("{san:?}") }
}

/// The tenant that a name of this platform is about: `….<tenant>.<trust domain>`.
fn tenant_named(name: &str, domain: &TrustDomain) -> Option<String> {
    if let Some(rest) = name.strip_prefix(&format!("spiffe://{domain}/tenant/")) {
        return rest.split('/').next().map(str::to_owned);
    }
    let owned = name.strip_suffix(&format!(".{domain}"))?;
    owned.rsplit('.').next().map(str::to_owned)
}

#[cfg(test)]
mod tests;
