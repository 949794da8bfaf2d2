//! A real hub in operator mode, provisioned by the product's own code, for the attackers to fail at. Credentials decide on
//! it, and no gatekeeper is asked: what is tested here are the attackers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_accounts::certificates::{CertificateFiles, ClientIdentity};
use bulkhead_accounts::files::{make_folder, write_public};
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::nats_config::{ClusterConfig, HubConfig, SYNC_ALWAYS};
use bulkhead_accounts::operator::UserRequest;
use bulkhead_accounts::up::child::{AskBy, Child, ChildSpec};
use bulkhead_accounts::up::{Accounts, CORE, INTAKE, Platform};
use bulkhead_bus::{AccountKey, Role, SiteName};
use bulkhead_runtime::eventually;
use bulkhead_testkit::{CertificatePair, Endpoint, Handshake, Identity, find_test_tools, platform_on_paper};
use tempfile::TempDir;
use time::OffsetDateTime;

pub(crate) const ACME: &str = "acme-corp";
pub(crate) const XYZ: &str = "xyz-inc";
/// Logged after all listeners but that for routes.
pub(crate) const READY: &str = "Server is ready";
const START_LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Hub {
    pub(crate) platform: Platform,
    pub(crate) accounts: Accounts,
    pub(crate) client: SocketAddr,
    pub(crate) leaf: SocketAddr,
    /// `None` on a hub that stands alone.
    pub(crate) route: Option<SocketAddr>,
    pub(crate) log_file: PathBuf,
    // Before the folder, so that nobody writes into it while it goes.
    _process: Child,
    _folder: TempDir,
}

fn pair(files: CertificateFiles) -> CertificatePair {
    CertificatePair { cert_file: files.cert_file, key_file: files.key_file }
}

/// Starts nats-server in `folder` and waits for `line` in its log.
pub(crate) async fn start_server(folder: &Path, name: &str, config: &str, line: &str) -> (Child, PathBuf) {
    let config_file = folder.join(format!("{name}.conf"));
    write_public(&config_file, config.as_bytes()).unwrap();
    let log_file = folder.join(format!("{name}.log"));
    let mut child = Child::start(ChildSpec {
        name: name.to_owned(),
        program: find_test_tools().unwrap().nats_server.path,
        args: vec!["-c".to_owned(), config_file.display().to_string()],
        folder: folder.to_owned(),
        log_file: log_file.clone(),
        pid_file: folder.join(format!("{name}.pid")),
        run_as: None,
        ask_by: AskBy::Terminate,
    })
    .unwrap();
    let look = || {
        let log = std::fs::read_to_string(&log_file).unwrap_or_default();
        child.check_running().unwrap_or_else(|error| panic!("{error}\n{log}"));
        std::future::ready(if log.contains(line) { Ok(()) } else { Err(log) })
    };
    eventually(line, START_LIMIT, look).await.unwrap();
    (child, log_file)
}

/// The address in a line such as `Listening for leafnode connections on 127.0.0.1:43210`.
pub(crate) fn listener(log: &str, what: &str) -> SocketAddr {
    let text = format!("Listening for {what} connections on ");
    let line = log.lines().find(|line| line.contains(&text));
    let line = line.unwrap_or_else(|| panic!("no {what} listener in\n{log}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Whether a hub looks for others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    Alone,
    /// With a route listener, and a route to nobody: a server with JetStream starts only when it has one.
    Routes,
}

impl Company {
    /// What a server logs when it listens everywhere: routes are opened after all other listeners.
    fn last_line(self) -> &'static str {
        match self {
            Self::Alone => READY,
            Self::Routes => "Listening for route connections on ",
        }
    }
}

fn hub_config(platform: &Platform, company: Company) -> HubConfig {
    let folder = platform.layout.hub();
    make_folder(&folder).unwrap();
    let (hub, route) = (CertificateFiles::named(&folder, "hub"), CertificateFiles::named(&folder, "route"));
    platform.authority.issue_hub("hub-1", &[], &hub, platform.now).unwrap();
    platform.authority.issue_route("hub-1", &[], &route, platform.now).unwrap();
    let system = platform.operator.system().unwrap();
    let free = || "127.0.0.1:-1".to_owned();
    let cluster = ClusterConfig {
        listen: free(),
        routes: vec!["tls://127.0.0.1:1".to_owned()],
        cert_file: route.cert_file,
        key_file: route.key_file,
        route_root_file: platform.authority.route_root_file(),
    };
    HubConfig {
        server_name: "hub-1".to_owned(),
        client_listen: free(),
        leaf_listen: free(),
        operator_token: platform.operator.token.clone(),
        system_account: system.key.to_string(),
        system_token: system.token,
        resolver_dir: folder.join("jwt"),
        store_dir: folder.join("js"),
        max_file_bytes: 4 << 30,
        sync_interval: SYNC_ALWAYS,
        hub_cert_file: hub.cert_file,
        hub_key_file: hub.key_file,
        client_root_file: platform.authority.client_root_file(),
        cluster: (company == Company::Routes).then_some(cluster),
        callout: None,
    }
}

impl Hub {
    /// With the accounts of two tenants in force.
    pub(crate) async fn start() -> Self {
        Self::start_in(Company::Alone).await
    }

    pub(crate) async fn start_with_routes() -> Self {
        Self::start_in(Company::Routes).await
    }

    async fn start_in(company: Company) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paper = platform_on_paper(folder.path(), OffsetDateTime::now_utc());
        let (mut platform, accounts) = paper.await.unwrap();
        let config = hub_config(&platform, company).render().unwrap();
        let (process, log_file) = start_server(folder.path(), "hub", &config, company.last_line()).await;
        let log = std::fs::read_to_string(&log_file).unwrap();
        let (client, leaf) = (listener(&log, "client"), listener(&log, "leafnode"));
        platform.hub_urls = vec![format!("tls://{client}")];
        let system = platform.connect_system().await.unwrap();
        platform.push_accounts(&system, &accounts, HubSize::One).await.unwrap();
        let route = (company == Company::Routes).then(|| listener(&log, "route"));
        Self { platform, accounts, client, leaf, route, log_file, _process: process, _folder: folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.platform.layout.home()
    }

    pub(crate) fn key_of(&self, tenant: &str) -> &AccountKey {
        let (_, record) = self.accounts.tenants.iter().find(|(record, _)| record.slug.as_str() == tenant).unwrap();
        &record.key
    }

    pub(crate) fn client_endpoint(&self) -> Endpoint {
        Endpoint { addr: self.client, server_name: "localhost".to_owned(), handshake: Handshake::AfterInfo }
    }

    pub(crate) fn leaf_endpoint(&self) -> Endpoint {
        Endpoint { addr: self.leaf, server_name: "localhost".to_owned(), handshake: Handshake::First }
    }

    pub(crate) fn nobody(&self) -> Identity {
        Identity::trusting(self.platform.authority.server_root_file())
    }

    fn issue(&self, user: &UserRequest<'_>, identity: &ClientIdentity) -> Identity {
        let folder = self.folder().join("users").join(user.account).join(user.role.name());
        make_folder(&folder).unwrap();
        let bus = self.platform.issue_direct(user, identity, &folder).unwrap();
        let shown = Identity::trusting(bus.tls.ca_file).with_certificate(bus.tls.cert_file, bus.tls.key_file);
        shown.with_creds(bus.creds_file.unwrap())
    }

    fn expires(&self) -> i64 {
        self.platform.now.unix_timestamp() + 3_600
    }

    pub(crate) fn poller(&self, tenant: &str, site: &str, name: &str) -> Identity {
        let place: SiteName = site.parse().unwrap();
        let expires = self.expires();
        let user = UserRequest { account: tenant, role: Role::Poller, name, site: Some(&place), expires };
        let (tenant, poller) = (tenant.parse().unwrap(), name.parse().unwrap());
        self.issue(&user, &ClientIdentity::Poller { tenant, site: place.clone(), poller })
    }

    pub(crate) fn leaf_of(&self, tenant: &str, site: &str) -> Identity {
        let place: SiteName = site.parse().unwrap();
        let expires = self.expires();
        let user = UserRequest { account: tenant, role: Role::Leaf, name: "leaf", site: Some(&place), expires };
        self.issue(&user, &ClientIdentity::Leaf { tenant: tenant.parse().unwrap(), site: place.clone() })
    }

    /// Core's receiver of live streams.
    pub(crate) fn live_reader(&self) -> Identity {
        let expires = self.expires();
        let user = UserRequest { account: INTAKE, role: Role::CoreLive, name: "core-live", site: None, expires };
        self.issue(&user, &ClientIdentity::Service { service: "core" })
    }

    pub(crate) fn dispatcher(&self) -> Identity {
        let expires = self.expires();
        let user = UserRequest { account: CORE, role: Role::DispatchPush, name: "dispatch", site: None, expires };
        self.issue(&user, &ClientIdentity::Service { service: "poller-dispatch" })
    }

    pub(crate) fn hub_certificate(&self) -> CertificatePair {
        pair(CertificateFiles::named(&self.platform.layout.hub(), "hub"))
    }

    pub(crate) fn route_certificate(&self) -> CertificatePair {
        pair(CertificateFiles::named(&self.platform.layout.hub(), "route"))
    }
}
