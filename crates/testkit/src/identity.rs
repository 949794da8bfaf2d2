//! Where an attacker connects and what it shows: any mixture of certificate, credentials and CONNECT fields.
//!
//! Nothing here checks that the parts belong together: that is what the servers under test must do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bulkhead_bus::header::encode_signature;
use bulkhead_runtime::Credentials;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::{Map, Value};

/// A listener, and the name that its certificate must carry.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub addr: SocketAddr,
    pub server_name: String,
    pub handshake: Handshake,
}

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// After the server's INFO, as a client listener does by default.
    AfterInfo,
    /// Before anything else, as the hub's leaf listener does.
    First,
    /// Not at all: the attacker goes on in clear text.
    Never,
}

/// What is shown. The certificate and the credentials may be anybody's.
#[derive(Debug, Clone)]
pub struct Identity {
    pub ca_file: PathBuf,
    pub certificate: Option<CertificatePair>,
    pub creds_file: Option<PathBuf>,
    /// Added to CONNECT, over everything that the client would say itself; a null takes a field away.
    pub connect_fields: Map<String, Value>,
    /// What the files hold, for whoever connects again and again.
    pub prepared: Option<ClientConfig>,
}

/// PEM files: a certificate with its intermediates, and its key.
#[derive(Debug, Clone)]
pub struct CertificatePair {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl Identity {
    /// Nobody: no certificate, no credentials. `ca_file` is whom the attacker itself trusts.
    #[must_use]
    pub fn trusting(ca_file: impl Into<PathBuf>) -> Self {
        Self {
            ca_file: ca_file.into(),
            certificate: None,
            creds_file: None,
            connect_fields: Map::new(),
            prepared: None,
        }
    }

    #[must_use]
    pub fn with_certificate(self, cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        let pair = CertificatePair { cert_file: cert_file.into(), key_file: key_file.into() };
        Self { certificate: Some(pair), prepared: None, ..self }
    }

    #[must_use]
    pub fn with_creds(self, creds_file: impl Into<PathBuf>) -> Self {
        Self { creds_file: Some(creds_file.into()), ..self }
    }

    /// Reads the files once for all connections, as a client that comes back does. Each is a whole handshake still.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn prepared(mut self) -> anyhow::Result<Self> {
        let mut tls = self.client_config()?;
        tls.resumption = Resumption::disabled();
        self.prepared = Some(tls);
        Ok(self)
    }

    /// Such as `user` and `pass`, or a claimed `nkey`.
    #[must_use]
    pub fn with_field(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.connect_fields.insert(name.to_owned(), value.into());
        self
    }

    /// `said`, with the credentials' JWT and signature over the server's nonce, and with the hostile fields on top.
    pub(crate) fn sign_connect(&self, said: Value, info: &Value) -> anyhow::Result<Value> {
        let Value::Object(mut fields) = said else { anyhow::bail!("CONNECT is not an object") };
        if let Some(creds_file) = &self.creds_file {
            let credentials = Credentials::read(creds_file)?;
            if let Some(nonce) = info.get("nonce").and_then(Value::as_str) {
                let signature = credentials.key.sign(nonce.as_bytes()).context("sign nonce")?;
                fields.insert("sig".to_owned(), encode_signature(&signature).into());
            }
            fields.insert("jwt".to_owned(), credentials.jwt.into());
        }
        fields.extend(self.connect_fields.clone());
        fields.retain(|_, value| !value.is_null());
        Ok(Value::Object(fields))
    }

    /// TLS that trusts `ca_file` only.
    pub(crate) fn client_config(&self) -> anyhow::Result<ClientConfig> {
        if let Some(tls) = &self.prepared {
            return Ok(tls.clone());
        }
        let mut roots = RootCertStore::empty();
        for root in read_certificates(&self.ca_file)? {
            roots.add(root).with_context(|| format!("trust {}", self.ca_file.display()))?;
        }
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        self.show_certificate(builder.with_root_certificates(roots))
    }

    /// TLS that trusts everybody, for where only the server's refusal is of interest.
    pub(crate) fn gullible_config(&self) -> anyhow::Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let verifier = Arc::new(Gullible(provider().signature_verification_algorithms));
        self.show_certificate(builder.dangerous().with_custom_certificate_verifier(verifier))
    }

    fn show_certificate(
        &self,
        builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    ) -> anyhow::Result<ClientConfig> {
        let Some(pair) = &self.certificate else { return Ok(builder.with_no_client_auth()) };
        let (chain, key) = pair.read()?;
        builder.with_client_auth_cert(chain, key).with_context(|| format!("use {}", pair.cert_file.display()))
    }
}

impl CertificatePair {
    pub(crate) fn read(&self) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let key = PrivateKeyDer::from_pem_file(&self.key_file)
            .with_context(|| format!("read key file {}", self.key_file.display()))?;
        Ok((read_certificates(&self.cert_file)?, key))
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.with_context(|| format!("read certificate file {}", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "certificate file {} holds no certificate", path.display());
    Ok(found)
}

/// Believes any server certificate; still checks that the server holds its key.
#[derive(Debug)]
struct Gullible(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
