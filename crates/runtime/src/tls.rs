//! Client-side mTLS from files: whom to trust and what to show. TLS itself is rustls with the ring provider.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use serde::Deserialize;
use tracing::warn;

use crate::Chain;

/// Paths of PEM files. `cert_file` holds the certificate and its intermediates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {what} {path}")]
    Read { what: &'static str, path: String, source: rustls::pki_types::pem::Error },
    #[error("{what} {path} holds no certificate")]
    Empty { what: &'static str, path: String },
    #[error("use certificate {path}")]
    Use { path: String, source: rustls::Error },
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let shown = path.display().to_string();
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|source| TlsError::Read { what, path: shown.clone(), source })?;
    if found.is_empty() { Err(TlsError::Empty { what, path: shown }) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let path_shown = path.display().to_string();
    PrivateKeyDer::from_pem_file(path).map_err(|source| TlsError::Read { what: "key file", path: path_shown, source })
}

/// Of a server that asks nobody for a certificate.
///
/// # Errors
/// When a file is missing, is not PEM, or the key does not fit the certificate.
pub fn server_config(cert_file: &Path, key_file: &Path) -> Result<ServerConfig, TlsError> {
    let chain = certificates("certificate file", cert_file)?;
    let key = private_key(key_file)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|source| TlsError::Use { path: cert_file.display().to_string(), source })
}

/// Reads certificate and key anew for each handshake: a renewed file is used at the next connection. What cannot be read
/// leaves what was read last.
#[derive(Debug)]
struct FreshCertificate {
    files: TlsFiles,
    last: Mutex<Arc<CertifiedKey>>,
}

fn certified_key(files: &TlsFiles) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("certificate file", &files.cert_file)?;
    let key = private_key(&files.key_file)?;
    let path = || files.cert_file.display().to_string();
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(|source| TlsError::Use { path: path(), source })
}

impl ResolvesClientCert for FreshCertificate {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut last = self.last.lock().expect("no holder panics");
        match certified_key(&self.files) {
            Ok(read) => *last = read,
            Err(error) => warn!(error = %Chain(&error), "going on with the certificate that was read before"),
        }
        Some(Arc::clone(&last))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Of a client that shows what is in its files at each connection.
///
/// # Errors
/// When a file is missing, is not PEM, or the key does not fit the certificate.
pub fn client_config(files: &TlsFiles) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates("CA file", &files.ca_file)? {
        let path = files.ca_file.display().to_string();
        roots.add(root).map_err(|source| TlsError::Use { path, source })?;
    }
    let last = Mutex::new(certified_key(files)?);
    let shown = Arc::new(FreshCertificate { files: files.clone(), last });
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let path = files.cert_file.display().to_string();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_root_certificates(roots).with_client_cert_resolver(shown))
        .map_err(|source| TlsError::Use { path, source })?;
    // A resumed session would go on with the certificate of the first one.
    config.resumption = Resumption::disabled();
    Ok(config)
}
