//! What the listeners really serve: a TLS handshake with each, and the certificate compared with the file.
//!
//! It ends before anything is said inside: a server sees a visitor that leaves.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_runtime::Chain;
use futures_util::StreamExt;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::finding::{Area, Finding, Look};
use super::home::{Home, HubFolder};
use super::trust::Certificate;
use crate::certificates::CertificateFiles;
use crate::profile::Profile;
use crate::up::{DESK_PORT, Site};

static SERVED: Look = Look {
    area: Area::Certificates,
    name: "certificate-served",
    rule: "a listener serves the certificate that lies in its file",
    meaning: "a renewed certificate is not in force: what is served ends earlier than the file says",
};

pub(super) const LOOKS: &[&Look] = &[&SERVED];

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(4);
/// Listeners that are visited at once.
const AT_ONCE: usize = 32;

/// When TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handshake {
    AfterInfo,
    First,
}

/// Where somebody listens, what should be served, and what to show.
struct Listener {
    subject: String,
    address: String,
    handshake: Handshake,
    cert_file: PathBuf,
    visitor: CertificateFiles,
}

/// Takes whatever is served and remembers it. The server still proves that it holds the key.
#[derive(Debug)]
struct Recorder {
    algorithms: WebPkiSupportedAlgorithms,
    seen: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.seen.lock().expect("no holder panics") = Some(end_entity.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn config(recorder: Arc<Recorder>, visitor: &CertificateFiles) -> Result<ClientConfig, String> {
    let chain = CertificateDer::pem_file_iter(&visitor.cert_file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| Chain(&error).to_string())?;
    let key = PrivateKeyDer::from_pem_file(&visitor.key_file).map_err(|error| Chain(&error).to_string())?;
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(|builder| builder.dangerous().with_custom_certificate_verifier(recorder))
        .and_then(|builder| builder.with_client_auth_cert(chain, key))
        .map_err(|error| error.to_string())
}

/// Why no certificate was seen.
enum Unserved {
    /// Nobody is there, or nobody speaks: which is a finding of its own, among the links.
    Away(String),
    Broken(String),
}

/// What is served at `address`.
async fn served(listener: &Listener) -> Result<CertificateDer<'static>, Unserved> {
    let stream = TcpStream::connect(&listener.address).await.map_err(|error| Unserved::Away(error.to_string()))?;
    handshake(listener, stream).await.map_err(Unserved::Broken)
}

async fn handshake(listener: &Listener, stream: TcpStream) -> Result<CertificateDer<'static>, String> {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let recorder = Arc::new(Recorder { algorithms, seen: Mutex::new(None) });
    let connector = TlsConnector::from(Arc::new(config(Arc::clone(&recorder), &listener.visitor)?));
    let mut stream = BufReader::new(stream);
    if listener.handshake == Handshake::AfterInfo {
        let mut info = String::new();
        stream.read_line(&mut info).await.map_err(|error| error.to_string())?;
    }
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let connected = connector.connect(name, stream).await;
    let seen = recorder.seen.lock().expect("no holder panics").take();
    match (connected, seen) {
        (_, Some(certificate)) => Ok(certificate),
        (Err(error), None) => Err(error.to_string()),
        (Ok(_), None) => Err("no certificate was served".to_owned()),
    }
}

fn judge(home: &Home, listener: &Listener, served: &CertificateDer<'_>, now: OffsetDateTime) -> Finding {
    let subject = &listener.subject;
    let restart = home.restart_advice();
    let file = match CertificateDer::from_pem_file(&listener.cert_file) {
        Ok(file) => file,
        Err(error) => return SERVED.fail(subject, format!("its file: {}", Chain(&error)), restart),
    };
    let ends = |certificate: &CertificateDer<'_>| Certificate::read(certificate).map(|read| read.not_after);
    match (ends(served), ends(&file)) {
        _ if file == *served => SERVED.ok(subject, home.shown(&listener.cert_file)),
        (Ok(served), _) if served <= now => {
            SERVED.fail(subject, format!("it serves a certificate that ended on {}", served.date()), restart)
        }
        (Ok(served), Ok(file)) => {
            let found = format!("it serves one until {}, the file holds one until {}", served.date(), file.date());
            SERVED.warn(subject, found, restart)
        }
        (Err(why), _) | (_, Err(why)) => SERVED.fail(subject, format!("it is no certificate: {why}"), restart),
    }
}

/// Every `listen: "address"` of a configuration that we have rendered, in its order.
pub(super) fn addresses(config: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(config).unwrap_or_default();
    let values = text.lines().filter_map(|line| line.trim_start().strip_prefix("listen: "));
    values.filter_map(|value| serde_json::from_str(value.trim_end()).ok()).collect()
}

fn hub_listeners(home: &Home) -> Result<Vec<Listener>, String> {
    let person = Profile::read(&home.layout.profile("ops")).map_err(|error| Chain(&error).to_string())?;
    let visitor = CertificateFiles { cert_file: person.cert_file, key_file: person.key_file };
    let kinds = [("clients", Handshake::AfterInfo), ("leaves", Handshake::First)];
    let of_hub = |hub: &HubFolder| {
        let cert_file = hub.folder.join("hub.crt");
        let listener = |((kind, handshake), address): ((&str, Handshake), String)| Listener {
            subject: format!("{} for {kind}", hub.server_name),
            address,
            handshake,
            cert_file: cert_file.clone(),
            visitor: visitor.clone(),
        };
        kinds.into_iter().zip(addresses(&hub.config_file())).map(listener).collect::<Vec<_>>()
    };
    Ok(home.hubs.iter().flat_map(of_hub).collect())
}

fn leaf_listener(home: &Home, site: &Site) -> Option<Listener> {
    let folder = home.layout.site(&site.tenant, &site.site);
    let poller = home.layout.poller(&site.tenant, &site.site, site.pollers.first()?);
    Some(Listener {
        subject: format!("leaf {}/{}", site.tenant, site.site),
        address: addresses(&folder.join("leaf.conf")).into_iter().next()?,
        handshake: Handshake::AfterInfo,
        cert_file: folder.join("tls").join("listener.crt"),
        visitor: CertificateFiles::named(&poller, "forwarder"),
    })
}

/// The enrolment desk asks for no certificate, so that it does not matter which one the visitor has.
fn desk_listener(home: &Home) -> Option<Listener> {
    let person = Profile::read(&home.layout.profile("ops")).ok()?;
    Some(Listener {
        subject: "enrolment desk".to_owned(),
        address: format!("127.0.0.1:{}", home.ports.get(DESK_PORT)?),
        handshake: Handshake::First,
        cert_file: CertificateFiles::named(&home.layout.enrolment_desk(), "desk").cert_file,
        visitor: CertificateFiles { cert_file: person.cert_file, key_file: person.key_file },
    })
}

/// Where the links are looked at, a listener that does not answer is a finding among them.
async fn listener_finding(home: &Home, has_links: bool, listener: Listener) -> Finding {
    let subject = &listener.subject;
    let seen = match tokio::time::timeout(HANDSHAKE_LIMIT, served(&listener)).await {
        Ok(seen) => seen,
        Err(_) => Err(Unserved::Away(format!("no handshake within {HANDSHAKE_LIMIT:?}"))),
    };
    match seen {
        Ok(certificate) => judge(home, &listener, &certificate, home.now),
        Err(Unserved::Away(why) | Unserved::Broken(why)) if home.up.is_none() => {
            SERVED.skip(subject, format!("nothing runs ({why})"))
        }
        Err(Unserved::Away(why)) if has_links => SERVED.skip(subject, format!("it does not answer: see links ({why})")),
        Err(Unserved::Away(why) | Unserved::Broken(why)) => {
            SERVED.fail(subject, format!("{}: {why}", listener.address), home.restart_advice())
        }
    }
}

pub(super) async fn look(home: &Home, areas: &[Area]) -> Vec<Finding> {
    let has_links = areas.contains(&Area::Links);
    let hub = hub_listeners(home);
    let unasked = hub.as_ref().err().map(|why| SERVED.fail("hub", why, home.restart_advice()));
    let leaves = home.sites.iter().filter_map(|site| leaf_listener(home, site));
    let others = leaves.chain(desk_listener(home));
    let looking =
        hub.unwrap_or_default().into_iter().chain(others).map(|listener| listener_finding(home, has_links, listener));
    let mut findings: Vec<Finding> = futures_util::stream::iter(looking).buffered(AT_ONCE).collect().await;
    findings.extend(unasked);
    findings
}
