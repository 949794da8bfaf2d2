//! Issuing end certificates: of clients, of the hub's servers, of leaves' own listeners.

use bulkhead_bus::{SiteName, TenantSlug};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

use super::CertificateFiles;
use super::authority::{Authority, SigningPair};
use super::book::{IssuedCertificate, append};
use super::error::CertificateError;
use super::facts::bundle_pem;
use super::make::{client_parameters, desk_parameters, hub_parameters, listener_parameters, made, route_parameters};
use crate::files::{write_public, write_secret};
use bulkhead_identity::AuthorityName;
use bulkhead_identity::ClientIdentity;

impl Authority {
    /// A client certificate with a new key, its intermediate behind it in the same file.
    ///
    /// # Errors
    /// When the intermediate is missing, the name would look like another one's, or files cannot be written.
    pub fn issue_client(
        &self,
        identity: &ClientIdentity,
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<IssuedCertificate, CertificateError> {
        let params = client_parameters(identity, &self.domain, now)?;
        let _lock = self.lock()?;
        self.issue(&identity.authority(), (&identity.dns_name(&self.domain), params), files)
    }

    /// A client certificate for a key whose private half is elsewhere; only the certificate is written.
    ///
    /// # Errors
    /// As [`Authority::issue_client`].
    pub fn certify_client(
        &self,
        identity: &ClientIdentity,
        key: &impl PublicKeyData,
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<IssuedCertificate, CertificateError> {
        let params = client_parameters(identity, &self.domain, now)?;
        let _lock = self.lock()?;
        let subject = identity.dns_name(&self.domain);
        let (issued, chain) = self.certify(&identity.authority(), (&subject, params), key)?;
        write_public(&files.cert_file, chain.as_bytes()).map_err(CertificateError::File)?;
        Ok(issued)
    }

    /// A client certificate that is good for so long, and no longer than its intermediate.
    ///
    /// # Errors
    /// As [`Authority::issue_client`].
    pub fn issue_client_for(
        &self,
        identity: &ClientIdentity,
        files: &CertificateFiles,
        now: OffsetDateTime,
        life: Duration,
    ) -> Result<IssuedCertificate, CertificateError> {
        let mut params = client_parameters(identity, &self.domain, now)?;
        params.not_after = now + life;
        let _lock = self.lock()?;
        self.issue(&identity.authority(), (&identity.dns_name(&self.domain), params), files)
    }

    /// The certificate of one server of the hub, such as `hub-1`: its own name, the name that all of them answer to,
    /// the loopback names for a hub on this machine, and `hosts`, the names and addresses that others reach it at.
    ///
    /// # Errors
    /// When the server root is missing or files cannot be written.
    pub fn issue_hub(
        &self,
        server: &str,
        hosts: &[String],
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<IssuedCertificate, CertificateError> {
        let subject = self.hub_server_name(server);
        let params = hub_parameters(&subject, &self.hub_name(), hosts, now)?;
        let _lock = self.lock()?;
        self.issue(&AuthorityName::ServerRoot, (&subject, params), files)
    }

    /// The certificate of the enrolment desk, which is a server and no part of the hub.
    ///
    /// # Errors
    /// When the server root is missing or files cannot be written.
    pub fn issue_desk(
        &self,
        hosts: &[String],
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<IssuedCertificate, CertificateError> {
        let subject = self.hub_server_name("enrolment");
        let params = desk_parameters(&subject, hosts, now)?;
        let _lock = self.lock()?;
        self.issue(&AuthorityName::ServerRoot, (&subject, params), files)
    }

    /// The certificate of one server of the hub towards the others.
    ///
    /// # Errors
    /// When the route root is missing or files cannot be written.
    pub fn issue_route(
        &self,
        server: &str,
        hosts: &[String],
        files: &CertificateFiles,
        now: OffsetDateTime,
    ) -> Result<IssuedCertificate, CertificateError> {
        let subject = self.hub_server_name(server);
        let params = route_parameters(&subject, hosts, now)?;
        let _lock = self.lock()?;
        self.issue(&AuthorityName::RouteRoot, (&subject, params), files)
    }

    /// The self-signed certificate of a leaf's own listener. It is in no book: no authority has issued it.
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
        let subject = format!("listener.{site}.{tenant}.{}", self.domain.as_str());
        let key = made(&subject, KeyPair::generate())?;
        let certificate = made(&subject, listener_parameters(&subject, now)?.self_signed(&key))?;
        write_pair(files, &bundle_pem(&[certificate.der().clone()]), &key)
    }

    fn issue(
        &self,
        issuer: &AuthorityName,
        (subject, params): (&str, CertificateParams),
        files: &CertificateFiles,
    ) -> Result<IssuedCertificate, CertificateError> {
        let key = made(subject, KeyPair::generate())?;
        let (issued, chain) = self.certify(issuer, (subject, params), &key)?;
        write_pair(files, &chain, &key)?;
        Ok(issued)
    }

    /// A certificate for `key` with what goes behind it, as PEM. It is in the book when this returns.
    pub(super) fn certify(
        &self,
        issuer: &AuthorityName,
        (subject, params): (&str, CertificateParams),
        key: &impl PublicKeyData,
    ) -> Result<(IssuedCertificate, String), CertificateError> {
        let signing = self.signing(issuer)?;
        let certificate = signing.sign(issuer, subject, params, key)?;
        let (behind, roots) = self.chain_behind(issuer, &signing)?;
        let record = self.record_of(issuer, &certificate, &signing, roots)?;
        append(&self.issued_file(issuer), &record)?;
        Ok((record.issued(), bundle_pem(&[vec![certificate], behind].concat())))
    }

    /// What goes behind an end certificate in its file, and the keys of the roots to which that leads.
    pub(super) fn chain_behind(
        &self,
        issuer: &AuthorityName,
        signing: &SigningPair,
    ) -> Result<(Vec<CertificateDer<'static>>, Vec<String>), CertificateError> {
        if !issuer.is_root() {
            let roots = self.roots_of(&signing.certificates)?;
            return Ok((signing.certificates.clone(), roots));
        }
        let own = signing.key_hash().to_owned();
        Ok(match self.cross_certificate(issuer, &own)? {
            None => (vec![], vec![own]),
            Some((cross, old)) => (vec![cross], vec![own, old]),
        })
    }
}

fn write_pair(files: &CertificateFiles, chain: &str, key: &KeyPair) -> Result<(), CertificateError> {
    write_secret(&files.key_file, key.serialize_pem().as_bytes()).map_err(CertificateError::File)?;
    write_public(&files.cert_file, chain.as_bytes()).map_err(CertificateError::File)
}
