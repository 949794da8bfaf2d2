//! TLS of checks: the certificate is looked at even where it is refused, and refused all the same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bulkhead_bus::payload::Reason;
use bulkhead_runtime::Chain;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::warn;

use crate::target::Host;
use crate::{Detail, Failure};

/// Whose certificates a check trusts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    System,
    File(PathBuf),
}

/// Why a server cannot be verified at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("read ca_file {path}")]
    Read { path: String, source: rustls_pki_types::pem::Error },
    #[error("ca_file {path} holds no certificate: name a PEM file with one or more")]
    Empty { path: String },
    #[error("use ca_file {path}")]
    Root { path: String, source: rustls::Error },
    #[error("this machine has no trusted root certificates: install them, or set ca_file")]
    NoSystemRoots,
    #[error("make a verifier")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    #[error("make a TLS client")]
    Client(#[source] rustls::Error),
}

fn read_roots(path: &Path) -> Result<RootCertStore, TrustError> {
    let shown = path.display().to_string();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|source| TrustError::Read { path: shown.clone(), source })?;
    let mut roots = RootCertStore::empty();
    for certificate in found {
        roots.add(certificate).map_err(|source| TrustError::Root { path: shown.clone(), source })?;
    }
    if roots.is_empty() { Err(TrustError::Empty { path: shown }) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore, TrustError> {
    let mut roots = RootCertStore::empty();
    // Some of a system's roots are often unusable; what counts is that there are others.
    let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TrustError::NoSystemRoots) } else { Ok(roots) }
}

/// A client that verifies against one set of roots.
#[derive(Clone)]
struct Verified {
    config: ClientConfig,
    verifier: Arc<WebPkiServerVerifier>,
}

fn verified_by(trust: &Trust) -> Result<Verified, TrustError> {
    let roots = match trust {
        Trust::System => system_roots()?,
        Trust::File(path) => read_roots(path)?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.build().map_err(TrustError::Verifier)?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(TrustError::Client)?;
    let mut config = builder.with_webpki_verifier(Arc::clone(&verifier)).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session shows no certificate.
    config.resumption = Resumption::disabled();
    Ok(Verified { config, verifier })
}

/// Whether `trust` can be used, for settings to be checked before anything starts.
pub(crate) fn check_trust(trust: &Trust) -> Result<(), TrustError> {
    match trust {
        // Looked at when it is used: roots of the system come and go without us.
        Trust::System => Ok(()),
        Trust::File(_) => verified_by(trust).map(drop),
    }
}

/// What HTTPS checks verify with, one client for each set of roots that was needed.
#[derive(Default)]
pub(crate) struct TrustStores(Mutex<HashMap<Trust, Option<Verified>>>);

impl TrustStores {
    /// Files that are needed again are read again.
    pub(crate) fn forget(&self) {
        self.0.lock().expect("no holder panics").clear();
    }

    /// Says once which cannot be used; its checks end `error`.
    fn verified(&self, trust: &Trust) -> Option<Verified> {
        let mut stores = self.0.lock().expect("no holder panics");
        let store = stores.entry(trust.clone()).or_insert_with(|| {
            let made = verified_by(trust).inspect_err(|error| {
                warn!(error = %Chain(error), "https checks cannot verify servers and end with an error");
            });
            made.ok()
        });
        store.clone()
    }
}

/// Remembers the certificate that a server shows, then lets the real verifier decide.
#[derive(Debug)]
struct Witness {
    verifier: Arc<WebPkiServerVerifier>,
    not_after_ms: Mutex<Option<i64>>,
}

/// When an end-entity certificate expires, unix milliseconds; `None` where it cannot be read.
fn read_not_after_ms(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.validity().not_after.timestamp().checked_mul(1_000)
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.not_after_ms.lock().expect("no holder panics") = read_not_after_ms(end_entity);
        self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn failure_of(error: &std::io::Error) -> Failure {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Failure::of_target(Reason::CertificateInvalid)
        }
        Some(_) => Failure::of_target(Reason::TlsFailed),
        None => Failure::of_socket(error),
    }
}

/// A verified TLS stream, and when the server's certificate expires.
pub(crate) async fn shake_hands(
    stores: &TrustStores,
    trust: &Trust,
    (host, stream): (&Host, TcpStream),
    detail: &mut Detail,
) -> Result<(TlsStream<TcpStream>, Option<i64>), Failure> {
    let store = stores.verified(trust).ok_or(Failure::of_poller(Reason::Internal))?;
    let name = match host {
        Host::Address(address) => ServerName::from(*address),
        Host::Name(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
            .map_err(|_| Failure::of_poller(Reason::Internal))?,
    };
    let witness = Arc::new(Witness { verifier: Arc::clone(&store.verifier), not_after_ms: Mutex::default() });
    let mut config = store.config.clone();
    let shown: Arc<dyn ServerCertVerifier> = Arc::clone(&witness) as _;
    config.dangerous().set_certificate_verifier(shown);
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let not_after_ms = *witness.not_after_ms.lock().expect("no holder panics");
    if let Some(not_after_ms) = not_after_ms {
        detail.insert("tls_not_after_ms".to_owned(), not_after_ms.into());
    }
    shaken.map(|stream| (stream, not_after_ms)).map_err(|error| failure_of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_file_that_cannot_be_used_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, expected) in
            [("", "holds no certificate"), ("rubbish", "holds no certificate"), (garbage, "use ca_file")]
        {
            let path = folder.path().join("ca.pem");
            std::fs::write(&path, text).unwrap();
            let error = check_trust(&Trust::File(path)).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("ca.pem"), "{error}");
        }
        let missing = check_trust(&Trust::File(folder.path().join("none.pem"))).unwrap_err();
        assert!(missing.to_string().contains("none.pem"), "{missing}");
    }
}
