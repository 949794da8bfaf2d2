//! A hub on which certificates decide, provisioned by the product's own code, with the real gatekeeper before it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bulkhead_accounts::certificates::{AuthorityName, CertificateFiles, ClientIdentity};
use bulkhead_accounts::files::{make_folder, write_public, write_secret};
use bulkhead_accounts::gate::{
    AUTH, GateSecrets, SENT, Vouching, platform_gate, render_auth, render_sentinel, sealed_keys, sign_record,
    tenant_gate,
};
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::nats_config::{CalloutConfig, HubConfig, SYNC_ALWAYS};
use bulkhead_accounts::operator::{AccountRecord, OperatorStore, UserRequest};
use bulkhead_accounts::render::{DECISIONS_LOG, GATE};
use bulkhead_accounts::resolver::push;
use bulkhead_accounts::tenancy::{PlatformPeople, TenantRecord};
use bulkhead_accounts::up::child::{AskBy, Child, ChildSpec};
use bulkhead_accounts::up::{Accounts, Platform};
use bulkhead_bus::gate::{GATE_BUCKET, GateKey};
use bulkhead_bus::{AccountKey, Role};
use bulkhead_claims::{KeyKind, ScopedKey, SealingKey, SigningKey, parse_credentials};
use bulkhead_identity::{GateBody, GateSite};
use bulkhead_runtime::{Bus, BusSettings, eventually};
use bulkhead_testkit::{
    ConnectError, Endpoint, Handshake, Identity, RawClient, RawLeaf, find_test_tools, free_ports, platform_on_paper,
};
use serde_json::json;
use tempfile::TempDir;
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) const ACME: &str = "acme-corp";
pub(crate) const XYZ: &str = "xyz-inc";
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// On purpose: what a test has to notice.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weakness {
    /// Credentials are let in beside certificates.
    pub(crate) unpinned: bool,
}

pub(crate) struct GateHub {
    pub(crate) platform: Platform,
    pub(crate) accounts: Accounts,
    pub(crate) auth: AccountRecord,
    pub(crate) sent: AccountRecord,
    pub(crate) client: SocketAddr,
    pub(crate) leaf: SocketAddr,
    pub(crate) server: Child,
    pub(crate) gatekeepers: Vec<Child>,
    /// How provisioning reaches AUTH.
    pub(crate) writer: Bus,
    sender: SealingKey,
    /// Of the gatekeepers.
    pub(crate) xkey: SealingKey,
    /// Signs anything in AUTH, for tests to look.
    pub(crate) plain: SigningKey,
    pub(crate) system: Bus,
    /// Of the gatekeepers, in the order of their starts.
    pub(crate) health_ports: Vec<u16>,
    epochs: AtomicU64,
    // Last: nobody writes into it any more.
    folder: TempDir,
}

fn spec(folder: &Path, name: &str, program: PathBuf, args: &[&str]) -> ChildSpec {
    ChildSpec {
        name: name.to_owned(),
        program,
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        folder: folder.to_owned(),
        log_file: folder.join(format!("{name}.log")),
        pid_file: folder.join(format!("{name}.pid")),
        run_as: None,
        ask_by: AskBy::Terminate,
    }
}

/// AUTH, which a test may look into, and SENT.
fn callout_accounts(
    operator: &OperatorStore,
    xkey: &SealingKey,
    plain: &SigningKey,
    now: i64,
) -> anyhow::Result<(AccountRecord, AccountRecord)> {
    let auth = render_auth(operator, HubSize::One, now)?;
    let mut body = auth.claims.nats.clone();
    body.signing_keys.push(ScopedKey::Plain(plain.public().to_owned()));
    let auth = operator.sign_body(AUTH, body, now)?;
    let sent = render_sentinel(operator, &auth, xkey.public(), now)?;
    Ok((auth, sent))
}

impl GateHub {
    /// Two tenants, and `gatekeepers` replicas.
    pub(crate) async fn start(gatekeepers: usize) -> anyhow::Result<Self> {
        Self::start_weak(gatekeepers, Weakness::default()).await
    }

    pub(crate) async fn start_weak(gatekeepers: usize, weakness: Weakness) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let now = OffsetDateTime::now_utc();
        let (mut platform, accounts) = platform_on_paper(folder.path(), now).await?;
        let xkey = GateSecrets::new(&platform.layout).xkey()?;
        let plain = SigningKey::generate(KeyKind::Account);
        let (auth, sent) = callout_accounts(&platform.operator, &xkey, &plain, now.unix_timestamp())?;
        let [client, leaf] = free_ports()?.map(local);
        let sentinel = platform.operator.issue_user(
            &UserRequest {
                account: SENT,
                role: Role::Sentinel,
                name: "sentinel",
                site: None,
                expires: i64::from(i32::MAX),
            },
            now.unix_timestamp(),
        )?;
        let pinned = match weakness.unpinned {
            true => vec![],
            false => vec![auth.key.to_string(), sent.key.to_string()],
        };
        let callout = CalloutConfig { pinned, sentinel_token: parse_credentials(&sentinel.text)?.token };
        let config = hub_config(&platform, (client, leaf), callout)?.render()?;
        let config_file = folder.path().join("hub.conf");
        write_public(&config_file, config.as_bytes())?;
        let server = find_test_tools()?.nats_server.path;
        let hub = Child::start(spec(folder.path(), "hub", server, &["-c", &config_file.display().to_string()]))?;
        platform.hub_urls = vec![format!("tls://{client}")];
        let system = platform.connect_system().await?;
        platform.push_accounts(&system, &accounts, HubSize::One).await?;
        for account in [&auth, &sent] {
            push(&system, account, 1).await?;
        }
        let writer = platform.issue_service(AUTH, Role::GateWriter, "provisioning", &folder.path().join("writer"))?;
        let writer = Bus::connect(&writer, "gate-writer").await?;
        writer.ensure_bucket(&GATE, 1).await?;
        writer.ensure_log(&DECISIONS_LOG, 1).await?;
        let sender = SealingKey::generate();
        let epochs = AtomicU64::new(1);
        let mut this = Self {
            platform,
            accounts,
            auth,
            sent,
            client,
            leaf,
            server: hub,
            gatekeepers: vec![],
            writer,
            sender,
            xkey,
            plain,
            system,
            health_ports: vec![],
            epochs,
            folder,
        };
        for tenant in [ACME, XYZ] {
            this.put_keys(&this.tenant(tenant).1).await?;
            this.put_record(tenant, |_| {}).await?;
        }
        this.put_core().await?;
        for number in 1..=gatekeepers {
            this.start_gatekeeper(number).await?;
        }
        Ok(this)
    }

    fn expires(&self) -> i64 {
        self.platform.now.unix_timestamp() + 86_400
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn key_of(&self, tenant: &str) -> &AccountKey {
        &self.tenant(tenant).1.key
    }

    fn tenant(&self, tenant: &str) -> &(TenantRecord, AccountRecord) {
        let found = self.accounts.tenants.iter().find(|(record, _)| record.slug.as_str() == tenant);
        found.expect("one of the two")
    }

    /// The gatekeeper gets exactly this account's keys, sealed.
    async fn put_keys(&self, account: &AccountRecord) -> anyhow::Result<()> {
        let sealed = sealed_keys(&self.platform.operator, account, &self.sender, self.xkey.public())?;
        self.put(&GateKey::Keys(account.key.clone()), sealed).await
    }

    /// A new record of a tenant: open, with people ann and vic and the sites oslo and rome.
    pub(crate) async fn put_record(&self, tenant: &str, change: impl FnOnce(&mut GateBody)) -> anyhow::Result<()> {
        let token = self.record(tenant, change)?;
        self.put(&GateKey::Record(self.key_of(tenant).clone()), token.into_bytes()).await
    }

    fn vouching(&self, name: &AuthorityName) -> anyhow::Result<Vouching> {
        Ok(Vouching::of(&self.platform.authority, name, self.platform.now)?)
    }

    pub(crate) fn record(&self, tenant: &str, change: impl FnOnce(&mut GateBody)) -> anyhow::Result<String> {
        let (record, account) = self.tenant(tenant);
        let vouching = self.vouching(&AuthorityName::Tenant(record.slug.clone()))?;
        let text = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let mut body = GateBody {
            epoch: self.epochs.fetch_add(1, Ordering::SeqCst),
            people: text(&[("ann", "admin"), ("vic", "viewer")]),
            sites: ["oslo", "rome"].map(|site| (site.to_owned(), GateSite::default())).into(),
            ..tenant_gate(record, account, vouching)
        };
        change(&mut body);
        Ok(sign_record(&self.platform.operator, account, body, self.platform.now.unix_timestamp())?)
    }

    /// CORE, whom the platform's intermediate vouches for.
    async fn put_core(&self) -> anyhow::Result<()> {
        let core = &self.accounts.core;
        self.put_keys(core).await?;
        let vouching = self.vouching(&AuthorityName::Platform)?;
        let epoch = self.epochs.fetch_add(1, Ordering::SeqCst);
        let body = GateBody { epoch, ..platform_gate(core, &PlatformPeople::default(), vouching) };
        let token = sign_record(&self.platform.operator, core, body, self.platform.now.unix_timestamp())?;
        self.put(&GateKey::Record(core.key.clone()), token.into_bytes()).await
    }

    pub(crate) async fn put(&self, key: &GateKey, value: Vec<u8>) -> anyhow::Result<()> {
        self.writer.put(GATE_BUCKET, &key.text(), value.into(), LIMIT).await?;
        Ok(())
    }

    pub(crate) async fn remove(&self, key: &GateKey) -> anyhow::Result<()> {
        self.writer.remove(GATE_BUCKET, &key.text(), LIMIT).await?;
        Ok(())
    }

    /// `hub`: where it finds AUTH; SYS it finds at the server itself.
    fn gatekeeper_settings(&self, number: usize, hub: SocketAddr) -> anyhow::Result<(PathBuf, u16)> {
        let name = format!("gatekeeper-{number}");
        let folder = self.path().join(&name);
        make_folder(&folder)?;
        let expires = self.expires();
        let issue = |account: &str, role: Role, into: &str| -> anyhow::Result<BusSettings> {
            let user = UserRequest { account, role, name: &name, site: None, expires };
            let identity = ClientIdentity::Service { service: "gatekeeper" };
            Ok(self.platform.issue_direct(&user, &identity, &folder.join(into))?)
        };
        let sentinel_key = self.sent.role_key(Role::Sentinel).context("SENT has a key")?;
        let answer = self.platform.operator.keys().read(sentinel_key, KeyKind::Account)?;
        write_secret(&folder.join("answer.nk"), answer.seed()?.as_bytes())?;
        write_secret(&folder.join("own.xk"), self.xkey.seed()?.as_bytes())?;
        write_public(&folder.join("operator.jwt"), self.platform.operator.token.as_bytes())?;
        let bus = |urls: Vec<String>, settings: BusSettings| {
            json!({
                "urls": urls, "creds_file": settings.creds_file, "inbox_prefix": settings.inbox_prefix,
                "tls": { "ca_file": settings.tls.ca_file, "cert_file": settings.tls.cert_file, "key_file": settings.tls.key_file },
            })
        };
        let [health] = free_ports()?;
        let settings = json!({
            "name": name,
            "log_filter": "info",
            "health_listen": format!("127.0.0.1:{health}"),
            "client_root_file": self.platform.authority.client_root_file(),
            "operator_file": folder.join("operator.jwt"),
            "xkey_file": folder.join("own.xk"),
            "answer_key_file": folder.join("answer.nk"),
            "sentinel_account": self.sent.key.as_str(),
            "cache_dir": folder.join("cache"),
            "spool_dir": folder.join("spool"),
            "bus": bus(vec![format!("tls://{hub}")], issue(AUTH, Role::Gatekeeper, "auth")?),
            "system_bus": bus(self.platform.hub_urls.clone(), issue("sys", Role::GateWatch, "sys")?),
        });
        let path = folder.join("gatekeeper.toml");
        write_public(&path, toml::to_string(&settings)?.as_bytes())?;
        Ok((path, health))
    }

    pub(crate) async fn start_gatekeeper(&mut self, number: usize) -> anyhow::Result<()> {
        self.start_gatekeeper_at(number, self.client).await
    }

    /// With something between it and AUTH.
    pub(crate) async fn start_gatekeeper_at(&mut self, number: usize, hub: SocketAddr) -> anyhow::Result<()> {
        let (settings, health) = self.gatekeeper_settings(number, hub)?;
        let args = ["--config", &settings.display().to_string()];
        let name = format!("gatekeeper-{number}");
        let mut child = Child::start(spec(
            self.path(),
            &name,
            bulkhead_testkit::deployment::program("bulkhead-gatekeeper")?,
            &args,
        ))?;
        let ready = eventually("a ready gatekeeper", LIMIT, || {
            let ended = child.check_running().err().map(|error| error.to_string());
            async move {
                match ended {
                    Some(error) => Ok(Err(error)),
                    None => is_ready(health).await.map(Ok),
                }
            }
        });
        ready.await?.map_err(|error| anyhow!(error))?;
        self.health_ports.push(health);
        self.gatekeepers.push(child);
        Ok(())
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

    /// A certificate, as the product issues it, and nothing else.
    pub(crate) fn certificate(&self, identity: &ClientIdentity) -> anyhow::Result<Identity> {
        let folder = self.path().join("issued");
        let files = CertificateFiles::named(&folder, &Uuid::new_v4().to_string());
        self.platform.authority.issue_client(identity, &files, OffsetDateTime::now_utc())?;
        Ok(self.nobody().with_certificate(files.cert_file, files.key_file))
    }

    /// Good credentials, as the tenant's own keys sign them.
    pub(crate) fn credentials(&self, account: &str, role: Role, name: &str) -> anyhow::Result<PathBuf> {
        let site = "oslo".parse()?;
        let user = UserRequest { account, role, name, site: Some(&site), expires: self.expires() };
        let issued = self.platform.operator.issue_user(&user, OffsetDateTime::now_utc().unix_timestamp())?;
        let path = self.path().join("issued").join(format!("{}.creds", Uuid::new_v4()));
        write_secret(&path, issued.text.as_bytes())?;
        Ok(path)
    }

    pub(crate) async fn connect(&self, identity: &Identity) -> Result<RawClient, ConnectError> {
        RawClient::connect(&self.client_endpoint(), identity).await
    }

    pub(crate) async fn link(&self, identity: &Identity, name: &str) -> Result<RawLeaf, ConnectError> {
        RawLeaf::connect(&self.leaf_endpoint(), identity, name).await
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn is_ready(port: u16) -> Result<(), String> {
    match bulkhead_testkit::scrape::get(port, "/readyz").await {
        Ok((200, _)) => Ok(()),
        Ok((_, page)) => Err(page),
        Err(error) => Err(format!("{error:#}")),
    }
}

fn hub_config(
    platform: &Platform,
    (client, leaf): (SocketAddr, SocketAddr),
    callout: CalloutConfig,
) -> anyhow::Result<HubConfig> {
    let folder = platform.layout.hub();
    make_folder(&folder)?;
    let hub = CertificateFiles::named(&folder, "hub");
    platform.authority.issue_hub("hub-1", &[], &hub, platform.now)?;
    let system = platform.operator.system()?;
    Ok(HubConfig {
        server_name: "hub-1".to_owned(),
        client_listen: client.to_string(),
        leaf_listen: leaf.to_string(),
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
        cluster: None,
        callout: Some(callout),
    })
}
