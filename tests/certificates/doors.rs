//! Real servers that ask for a certificate, and what they made of one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bulkhead_accounts::certificates::CertificateFiles;
use bulkhead_accounts::up::child::AskBy;
use bulkhead_accounts::up::{Child, ChildSpec};
use bulkhead_runtime::eventually;
use bulkhead_testkit::{ConnectError, Endpoint, Handshake, Identity, RawClient, find_test_tools};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const LIMIT: Duration = Duration::from_secs(20);
static DOORS: AtomicU64 = AtomicU64::new(0);

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    LetIn,
    /// The server did not want the client's certificate.
    Refused,
    /// The client did not want the server's.
    Disbelieved,
}

/// A nats-server that verifies the certificates of its clients, or of the other servers of its cluster.
pub(crate) struct NatsDoor {
    config_file: PathBuf,
    log_file: PathBuf,
    pid_file: PathBuf,
    client: Option<SocketAddr>,
    route: Option<SocketAddr>,
    _child: Child,
}

impl NatsDoor {
    pub(crate) async fn start(folder: &Path, own: &CertificateFiles, trust: &Path) -> anyhow::Result<Self> {
        let config = format!("listen: \"127.0.0.1:-1\"\n{}", tls(own, trust));
        Self::run(folder, config).await
    }

    pub(crate) async fn start_in_cluster(
        folder: &Path,
        own: &CertificateFiles,
        trust: &Path,
        other: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let routes = match other {
            Some(other) => format!("routes: [\"tls://{}\"]", other.route.context("the other has no route listener")?),
            None => String::new(),
        };
        let tls = tls(own, trust);
        let cluster = format!("cluster {{\n name: c\n listen: \"127.0.0.1:-1\"\n {routes}\n {tls}\n}}\n");
        Self::run(folder, format!("debug: true\nlisten: \"127.0.0.1:-1\"\n{cluster}")).await
    }

    async fn run(folder: &Path, config: String) -> anyhow::Result<Self> {
        let name = format!("door-{}", DOORS.fetch_add(1, Ordering::SeqCst));
        let file = |end: &str| folder.join(format!("{name}.{end}"));
        let (config_file, log_file, pid_file) = (file("conf"), file("log"), file("pid"));
        std::fs::write(&config_file, format!("server_name: {name}\n{config}"))?;
        let child = Child::start(ChildSpec {
            name: name.clone(),
            program: find_test_tools()?.nats_server.path,
            args: vec!["-c".to_owned(), config_file.display().to_string()],
            folder: folder.to_owned(),
            log_file: log_file.clone(),
            pid_file: pid_file.clone(),
            run_as: None,
            ask_by: AskBy::Terminate,
        })?;
        let mut door = Self { config_file, log_file, pid_file, client: None, route: None, _child: child };
        let is_clustered = config.contains("cluster {");
        door.wait_for_log(if is_clustered { "Listening for route connections" } else { "Server is ready" }).await?;
        door.client = door.listener("client");
        door.route = door.listener("route");
        Ok(door)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    fn listener(&self, what: &str) -> Option<SocketAddr> {
        let text = format!("Listening for {what} connections on ");
        let log = self.log();
        let line = log.lines().find(|line| line.contains(&text))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(crate) async fn wait_for_log(&self, text: &str) -> anyhow::Result<()> {
        let look = || std::future::ready(if self.log().contains(text) { Ok(()) } else { Err(self.log()) });
        Ok(eventually(text, LIMIT, look).await?)
    }

    /// Has the server read the files of whom it trusts again.
    pub(crate) async fn reload(&self) -> anyhow::Result<()> {
        let count = || self.log().matches("Reloaded server configuration").count();
        let before = count();
        let pid = std::fs::read_to_string(&self.pid_file)?;
        // The number, and behind it when the process began.
        let pid = pid.split_whitespace().next().context("the file of the process is empty")?;
        let signal = format!("reload={pid}");
        let status = Command::new(find_test_tools()?.nats_server.path).arg("--signal").arg(signal).status()?;
        ensure!(status.success(), "reload {}", self.config_file.display());
        let look = || std::future::ready(if count() > before { Ok(()) } else { Err(self.log()) });
        Ok(eventually("reload", LIMIT, look).await?)
    }

    pub(crate) async fn meet(&self, files: &CertificateFiles, server_root: &Path) -> anyhow::Result<Verdict> {
        let addr = self.client.context("there is no client listener")?;
        let endpoint = Endpoint { addr, server_name: "localhost".to_owned(), handshake: Handshake::AfterInfo };
        let shown = Identity::trusting(server_root).with_certificate(&files.cert_file, &files.key_file);
        match RawClient::connect(&endpoint, &shown).await {
            Ok(_) => Ok(Verdict::LetIn),
            Err(ConnectError::RefusedTls(_)) => Ok(Verdict::Refused),
            Err(ConnectError::Untrusted(_)) => Ok(Verdict::Disbelieved),
            Err(error) => Err(anyhow::Error::new(error).context(self.log())),
        }
    }
}

fn tls(own: &CertificateFiles, trust: &Path) -> String {
    format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {trust:?}, verify: true, timeout: 5 }}",
        own.cert_file, own.key_file
    )
}

/// Each has taken the other for one of its cluster, which it does once TLS stands.
pub(crate) async fn wait_for_routes(one: &NatsDoor, other: &NatsDoor) -> anyhow::Result<()> {
    one.wait_for_log("Registering remote route").await?;
    other.wait_for_log("Registering remote route").await
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>().with_context(|| format!("read {}", path.display()))
}

fn store(path: &Path) -> anyhow::Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    for root in chain(path)? {
        store.add(root)?;
    }
    Ok(Arc::new(store))
}

fn server(own: &CertificateFiles, trust: (&Path, Option<&[PathBuf]>)) -> anyhow::Result<ServerConfig> {
    let (trust, list_files) = trust;
    let mut lists = Vec::new();
    for file in list_files.unwrap_or_default() {
        lists.extend(CertificateRevocationListDer::pem_file_iter(file)?.collect::<Result<Vec<_>, _>>()?);
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(store(trust)?, provider()).with_crls(lists).build()?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_client_cert_verifier(verifier);
    Ok(builder.with_single_cert(chain(&own.cert_file)?, PrivateKeyDer::from_pem_file(&own.key_file)?)?)
}

/// A client and a server of rustls meet over TCP; `trust` is whom the server believes, and which lists it reads.
pub(crate) async fn meet_rustls(
    own: &CertificateFiles,
    trust: (&Path, Option<&[PathBuf]>),
    client: &CertificateFiles,
    server_root: &Path,
) -> anyhow::Result<Verdict> {
    let acceptor = TlsAcceptor::from(Arc::new(server(own, trust)?));
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(store(server_root)?);
    let key = PrivateKeyDer::from_pem_file(&client.key_file)?;
    let config = builder.with_client_auth_cert(chain(&client.cert_file)?, key)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let serving = async {
        let (tcp, _) = listener.accept().await?;
        let mut stream = acceptor.accept(tcp).await?;
        stream.write_all(b"in").await?;
        stream.shutdown().await
    };
    let asking = async {
        let tcp = TcpStream::connect(addr).await?;
        let mut stream = TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost")?, tcp).await?;
        let mut said = [0; 2];
        stream.read_exact(&mut said).await?;
        anyhow::Ok(said)
    };
    let met = async { tokio::join!(serving, asking) };
    let (served, asked) = tokio::time::timeout(LIMIT, met).await?;
    match (served, asked) {
        (_, Ok(said)) if said == *b"in" => Ok(Verdict::LetIn),
        (Err(server), Err(client)) => {
            let broken = client.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
            match broken.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(_)) => Ok(Verdict::Disbelieved),
                Some(rustls::Error::AlertReceived(_)) => Ok(Verdict::Refused),
                _ => bail!("client: {client}, server: {server}"),
            }
        }
        (served, asked) => bail!("client: {asked:?}, server: {served:?}"),
    }
}

/// A certificate of any names, signed with the key of xyz-inc's intermediate.
pub(crate) fn forge(
    folder: &tempfile::TempDir,
    file: &str,
    common_name: &str,
    names: &[&str],
    uri: &str,
) -> anyhow::Result<CertificateFiles> {
    let authority = CertificateFiles::named(&folder.path().join("pki"), "tenant-xyz-inc");
    let behind = std::fs::read_to_string(&authority.cert_file)?;
    let signer = KeyPair::from_pem(&std::fs::read_to_string(&authority.key_file)?)?;
    let issuer = Issuer::from_ca_cert_pem(&behind, signer)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = OffsetDateTime::now_utc() - time::Duration::minutes(5);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::days(1);
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    for name in names {
        params.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
    }
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let files = CertificateFiles::named(folder.path(), file);
    std::fs::write(&files.cert_file, certificate.pem() + &behind)?;
    std::fs::write(&files.key_file, key.serialize_pem())?;
    Ok(files)
}
