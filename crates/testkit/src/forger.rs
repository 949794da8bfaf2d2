//! Certificates with anything in them: an authority of the attacker's own, or one that it has got hold of.

use std::path::Path;

use anyhow::Context;
use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
};
use sha2::{Digest, Sha256};

use crate::identity::CertificatePair;

/// An authority whose key we hold.
pub struct Forger {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key_hash: String,
}

/// An end certificate and its key, PEM.
pub struct Forged {
    pub pem: String,
    pub key_pem: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// SHA-256, lower-case hexadecimal.
    pub fingerprint: String,
}

/// Parameters of a client's certificate with this common name, DNS name and URI.
///
/// # Panics
/// When a name has no place in a certificate.
#[must_use]
pub fn client_params(name: &str, uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    // Positive and without a leading zero, as the product's own are.
    let mut serial = uuid::Uuid::new_v4().into_bytes();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(serial.to_vec().into());
    params.subject_alt_names =
        vec![SanType::DnsName(name.try_into().expect("a DNS name")), SanType::URI(uri.try_into().expect("a URI"))];
    params
}

fn authority_params(subject: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn hash_of(key: &KeyPair) -> String {
    HEXLOWER.encode(&Sha256::digest(key.subject_public_key_info()))
}

fn authority(certificate: &Certificate, params: CertificateParams, key: KeyPair) -> Forger {
    Forger { pem: certificate.pem(), key_hash: hash_of(&key), issuer: Issuer::new(params, key) }
}

impl Forger {
    /// A root of one's own.
    ///
    /// # Panics
    /// When the name has no place in a certificate.
    #[must_use]
    pub fn root(subject: &str) -> Self {
        let (params, key) = (authority_params(subject), KeyPair::generate().expect("a key"));
        let certificate = params.self_signed(&key).expect("a root");
        authority(&certificate, params, key)
    }

    /// An authority below this one, for names below `subtree` or for all.
    ///
    /// # Panics
    /// When a name has no place in a certificate.
    #[must_use]
    pub fn intermediate(&self, subject: &str, subtree: Option<&str>) -> Self {
        let (mut params, key) = (authority_params(subject), KeyPair::generate().expect("a key"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.name_constraints = subtree.map(|subtree| NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(subtree.to_owned())],
            excluded_subtrees: vec![],
        });
        let certificate = params.signed_by(&key, &self.issuer).expect("an intermediate");
        authority(&certificate, params, key)
    }

    /// An authority of the deployment under attack, whose files have got out.
    ///
    /// # Errors
    /// When the files are not an authority's.
    pub fn stolen(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let (pem, key) = (read(certificate)?, KeyPair::from_pem(&read(key)?).context("read the key")?);
        let key_hash = hash_of(&key);
        let issuer = Issuer::from_ca_cert_pem(&pem, key).context("read the authority")?;
        Ok(Self { issuer, pem, key_hash })
    }

    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of its public key, as gate records name it.
    #[must_use]
    pub fn key_hash(&self) -> &str {
        &self.key_hash
    }

    /// # Panics
    /// When the parameters have no place in a certificate.
    #[must_use]
    pub fn end(&self, params: &CertificateParams) -> Forged {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("an end certificate");
        let serial = params.serial_number.as_ref().map(|serial| HEXLOWER.encode(serial.to_bytes().as_ref()));
        let fingerprint = HEXLOWER.encode(&Sha256::digest(certificate.der()));
        Forged { pem: certificate.pem(), key_pem: key.serialize_pem(), serial: serial.unwrap_or_default(), fingerprint }
    }
}

impl Forged {
    /// Writes certificate and intermediate, and the key, for a client to show.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, above: &Forger, folder: &Path, name: &str) -> anyhow::Result<CertificatePair> {
        std::fs::create_dir_all(folder)?;
        let (cert_file, key_file) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&cert_file, format!("{}{}", self.pem, above.pem))?;
        std::fs::write(&key_file, &self.key_pem)?;
        Ok(CertificatePair { cert_file, key_file })
    }
}
