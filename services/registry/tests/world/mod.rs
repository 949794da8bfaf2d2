//! A hub with the rights that the roles have, a database, replicas of the registry as processes, and members that ask them.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{
    Deregister, ErrorCode, LEASE_VERSION, LeaseGrant, MemberInfo, MemberPage, MemberQuery, MemberRow, MemberState,
    Register, Renew, Reply, ReplyError, ReportedState,
};
use bulkhead_bus::{
    AccountKey, CoreSubject, Head, LeaseClass, LeaseVerb, MemberName, Permissions, RegistryVerb, Role, ServiceVerb,
    SiteName, Tenant, TenantSubject, role_permissions,
};
use bulkhead_runtime::{Bus, BusSettings, Headers, MEMBER_BUCKETS, RequestError, TlsFiles, eventually, now_ms};
use bulkhead_store::{Provisioning, Service};
use bulkhead_testkit::database::{account_key, tenant};
use bulkhead_testkit::{Forger, TestDatabase, client_params, find_test_tools, free_ports, scrape};
use nkeys::KeyPair;
use rcgen::ExtendedKeyUsagePurpose;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::process::{Child, Command};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Of a renewal: what is not answered by then is asked again.
const RENEW_LIMIT: Duration = Duration::from_secs(2);
const RPC: &str = "registry-rpc";
const KEEP: &str = "registry-keep";
/// Makes the buckets and asks what services ask; it may say and hear everything in CORE.
const WITNESS: &str = "dispatch-push";
/// Stands for all members and people of a tenant.
const TENANT: &str = "tenant";

/// A nats-server that knows three users by their certificates.
pub(crate) struct Hub {
    folder: TempDir,
    pub(crate) port: u16,
    process: Child,
}

fn permissions(role: Role, name: &str) -> String {
    let Permissions { publish, subscribe } = role_permissions(role);
    let list = |subjects: Vec<String>| {
        let quoted = subjects.iter().map(|subject| format!("{:?}", subject.replace("{{name()}}", name)));
        quoted.collect::<Vec<_>>().join(", ")
    };
    format!("publish: {{ allow: [{}] }}, subscribe: {{ allow: [{}] }}", list(publish), list(subscribe))
}

fn certificates(folder: &Path) {
    let root = Forger::root("root");
    std::fs::write(folder.join("root.crt"), root.pem()).unwrap();
    for name in ["localhost", RPC, KEEP, WITNESS, TENANT] {
        let mut params = client_params(name, &format!("spiffe://test/{name}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        root.end(&params).write(&root, folder, name).unwrap();
    }
}

impl Hub {
    async fn start(account: &AccountKey) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        let [port] = free_ports().unwrap();
        let config = format!(
            "listen: 127.0.0.1:{port}\nserver_name: hub\njetstream {{ store_dir: {store:?}, sync_interval: always }}\n\
             tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {root:?}, verify_and_map: true }}\n\
             accounts {{\n\
               CORE {{ jetstream: enabled, exports: [ {{ service: \"{exported}\", account_token_position: 2 }} ], users: [\n\
                 {{ user: {WITNESS} }},\n\
                 {{ user: {RPC}, permissions: {{ {rpc} }} }},\n\
                 {{ user: {KEEP}, permissions: {{ {keep} }} }}\n] }}\n\
               {account} {{ users: [ {{ user: {TENANT} }} ], imports: [\n\
                 {{ service: {{ account: CORE, subject: \"{imported}\" }}, to: \"{up}\" }} ] }}\n}}\n",
            store = folder.path().join("store"),
            cert = folder.path().join("localhost.crt"),
            key = folder.path().join("localhost.key"),
            root = folder.path().join("root.crt"),
            exported = Head::Up.core_pattern("*"),
            imported = Head::Up.core_pattern(account.as_str()),
            up = Head::Up.pattern(),
            rpc = permissions(Role::RegistryRpc, RPC),
            keep = permissions(Role::RegistryKeep, KEEP),
        );
        std::fs::write(folder.path().join("hub.conf"), config).unwrap();
        let process = Self::process(folder.path());
        Self { folder, port, process }
    }

    fn process(folder: &Path) -> Child {
        let log = std::fs::File::options().append(true).create(true).open(folder.join("hub.log")).unwrap();
        let mut command = Command::new(find_test_tools().unwrap().nats_server.path);
        command.arg("-c").arg(folder.join("hub.conf")).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        command.spawn().unwrap()
    }

    pub(crate) fn settings(&self, name: &str, inbox_prefix: &str) -> BusSettings {
        let file = |ending: &str| self.folder.path().join(format!("{name}.{ending}"));
        BusSettings {
            urls: vec![format!("tls://localhost:{}", self.port)],
            tls: TlsFiles {
                ca_file: self.folder.path().join("root.crt"),
                cert_file: file("crt"),
                key_file: file("key"),
            },
            creds_file: None,
            inbox_prefix: inbox_prefix.to_owned(),
        }
    }

    async fn connect(&self, name: &str) -> Bus {
        let settings = self.settings(name, &format!("_INBOX_{name}"));
        let connected = eventually("a hub", LIMIT, || Bus::connect(&settings, "test"));
        connected.await.unwrap()
    }

    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = Self::process(self.folder.path());
    }

    /// Hangs, and goes on.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

/// A replica of the registry.
pub(crate) struct Replica {
    process: Child,
    pub(crate) health_port: u16,
    log: PathBuf,
}

impl Replica {
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, page) = scrape::get(self.health_port, "/metrics").await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {page}")).parse().unwrap()
    }
}

pub(crate) struct World {
    pub(crate) replicas: Vec<Replica>,
    pub(crate) hub: Hub,
    /// In CORE.
    pub(crate) witness: Bus,
    /// In the tenant's account.
    pub(crate) bus: Bus,
    pub(crate) database: TestDatabase,
    pub(crate) provisioning: Provisioning,
    pub(crate) acme: Tenant,
    pub(crate) account: AccountKey,
}

impl World {
    /// One tenant without pollers, and so many replicas of the registry.
    pub(crate) async fn start(replicas: usize) -> Self {
        let (account, acme) = (account_key(), tenant("acme-corp"));
        let (hub, database) = (Hub::start(&account).await, TestDatabase::start().await.unwrap());
        let (witness, bus) = (hub.connect(WITNESS).await, hub.connect(TENANT).await);
        for bucket in MEMBER_BUCKETS {
            witness.ensure_bucket(&bucket, 1).await.unwrap();
        }
        let provisioning = database.provisioning().await.unwrap();
        provisioning.put_tenant(&account, &acme).await.unwrap();
        let mut world = Self { replicas: vec![], hub, witness, bus, database, provisioning, acme, account };
        for _ in 0..replicas {
            world.start_replica().await;
        }
        world
    }

    pub(crate) async fn start_replica(&mut self) {
        let number = self.replicas.len() + 1;
        let folder = self.hub.folder.path();
        let url_file = folder.join("database.url");
        std::fs::write(&url_file, self.database.service_url(Service::Registry)).unwrap();
        std::fs::set_permissions(&url_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let [health_port] = free_ports().unwrap();
        let bus = |name: &str| {
            let settings = self.hub.settings(name, &format!("_INBOX_{name}"));
            format!(
                "urls = {:?}\ninbox_prefix = {:?}\ntls = {{ ca_file = {:?}, cert_file = {:?}, key_file = {:?} }}\n",
                settings.urls,
                settings.inbox_prefix,
                settings.tls.ca_file,
                settings.tls.cert_file,
                settings.tls.key_file
            )
        };
        let config = format!(
            "log_filter = \"info,bulkhead_registry=debug\"\nhealth_listen = \"127.0.0.1:{health_port}\"\n\
             database_url_file = {url_file:?}\n[rpc_bus]\n{}\n[keep_bus]\n{}\n[answers]\nwaiting_of_tenant_most = 3\n",
            bus(RPC),
            bus(KEEP)
        );
        let (file, log) =
            (folder.join(format!("registry-{number}.toml")), folder.join(format!("registry-{number}.log")));
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-registry"));
        command.arg("--config").arg(&file).kill_on_drop(true);
        command
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(std::fs::File::create(log.with_extension("err")).unwrap());
        let process = command.spawn().unwrap();
        self.replicas.push(Replica { process, health_port, log });
        let ready = eventually("a ready registry", LIMIT, || async {
            match scrape::get(health_port, "/readyz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        ready.await.unwrap_or_else(|error| panic!("{error}\n{}", self.replicas[number - 1].log()));
    }

    /// A poller with a key of its own.
    pub(crate) async fn add_poller(&self, place: &str) -> Member {
        let member = self.member(place, KeyPair::new_user());
        let poller = member.name.poller().unwrap();
        self.provisioning.put_site(&self.acme, &member.site).await.unwrap();
        let key = member.key.public_key().parse().unwrap();
        self.provisioning.put_poller(&self.acme, &member.site, poller, &key).await.unwrap();
        member
    }

    pub(crate) async fn add_pollers(&self, site: &str, count: usize) -> Vec<Member> {
        let mut members = Vec::new();
        for number in 1..=count {
            members.push(self.add_poller(&format!("{site}/p{number}")).await);
        }
        members
    }

    pub(crate) fn member(&self, place: &str, key: KeyPair) -> Member {
        let (site, name) = place.split_once('/').unwrap();
        Member {
            bus: self.bus.clone(),
            site: site.parse().unwrap(),
            name: name.parse().unwrap(),
            key,
            boot: 1_000,
            number: AtomicU64::new(0),
            revision: AtomicU64::new(0),
            class: LeaseClass::Fast,
            info: MemberInfo { release: "0.1.0".to_owned(), capacity: 1, ..MemberInfo::default() },
        }
    }

    pub(crate) fn core(&self, subject: TenantSubject) -> String {
        CoreSubject { account: self.account.clone(), subject }.to_string()
    }

    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        verb: RegistryVerb,
        query: &impl Serialize,
    ) -> Result<Vec<T>, ReplyError> {
        let subject = TenantSubject::Registry { user: "ann".parse().unwrap(), verb }.to_string();
        let body = serde_json::to_vec(query).unwrap();
        let answer = self.bus.request(&subject, body.into(), Duration::from_secs(40)).await;
        answered(&answer.map_err(|error| unavailable(&error))?)
    }

    pub(crate) async fn list(&self) -> Vec<MemberRow> {
        self.ask(RegistryVerb::ListMembers, &MemberQuery::default()).await.unwrap()
    }

    pub(crate) async fn row(&self, place: &str) -> Option<MemberRow> {
        self.list().await.into_iter().find(|row| format!("{}/{}", row.site, row.name) == place)
    }

    pub(crate) async fn page(&self) -> MemberPage {
        let subject = self.core(TenantSubject::Service { verb: ServiceVerb::ListMembers });
        let answer = self.witness.request(&subject, b"{}".as_slice().into(), ANSWER_LIMIT).await.unwrap();
        answered::<MemberPage>(&answer).unwrap().remove(0)
    }

    /// Waits until a member is in this state.
    pub(crate) async fn until(&self, place: &str, state: MemberState) -> MemberRow {
        let what = format!("{place} {}", state.as_str());
        let seen = eventually(&what, LIMIT, || async {
            let row = self.row(place).await.ok_or_else(|| "no row".to_owned())?;
            if row.state == state { Ok(row) } else { Err(format!("{row:?}")) }
        });
        seen.await.unwrap()
    }
}

pub(crate) fn answered<T: DeserializeOwned>(answer: &[u8]) -> Result<Vec<T>, ReplyError> {
    match serde_json::from_slice(answer).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(answer)))
    {
        Reply::Rows(rows) => Ok(rows),
        Reply::Error(error) => Err(error),
    }
}

fn unavailable(error: &RequestError) -> ReplyError {
    ReplyError { code: ErrorCode::Unavailable, message: error.to_string() }
}

/// One process of a member, as the registry knows it.
pub(crate) struct Member {
    bus: Bus,
    pub(crate) site: SiteName,
    pub(crate) name: MemberName,
    pub(crate) key: KeyPair,
    pub(crate) boot: u64,
    number: AtomicU64,
    revision: AtomicU64,
    pub(crate) class: LeaseClass,
    pub(crate) info: MemberInfo,
}

/// A request as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

impl Member {
    /// Another process with the same identity.
    pub(crate) fn other_start(&self, boot: u64) -> Self {
        Self {
            bus: self.bus.clone(),
            site: self.site.clone(),
            name: self.name.clone(),
            key: KeyPair::from_seed(&self.key.seed().unwrap()).unwrap(),
            boot,
            number: AtomicU64::new(0),
            revision: AtomicU64::new(0),
            class: self.class,
            info: self.info.clone(),
        }
    }

    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.site, self.name)
    }

    pub(crate) fn signed(&self, verb: LeaseVerb, body: &impl Serialize) -> Signed {
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        self.signed_as(verb, body, Sequence { boot: self.boot, number })
    }

    pub(crate) fn signed_as(&self, verb: LeaseVerb, body: &impl Serialize, sequence: Sequence) -> Signed {
        let subject = TenantSubject::Lease { site: self.site.clone(), name: self.name.clone(), verb };
        let body = serde_json::to_vec(body).unwrap();
        let text = header::signed_request_bytes(&subject.to_string(), sequence, &body);
        let mut headers = Headers::default();
        headers.set(header::SIGNATURE, &header::encode_signature(&self.key.sign(&text).unwrap()));
        headers.set(header::KEY, &self.key.public_key());
        headers.set(header::SEQUENCE, &sequence.to_string());
        Signed { subject: subject.to_string(), headers, body }
    }

    pub(crate) async fn send(&self, signed: Signed) -> Result<LeaseGrant, ReplyError> {
        let answer = self.bus.request_with(&signed.subject, signed.headers, signed.body.into(), RENEW_LIMIT).await;
        let grant: LeaseGrant = answered(&answer.map_err(|error| unavailable(&error))?)?.remove(0);
        self.revision.store(grant.revision, Ordering::SeqCst);
        Ok(grant)
    }

    pub(crate) fn register_body(&self) -> Register {
        Register {
            version: LEASE_VERSION,
            boot: self.boot,
            class: self.class,
            info: self.info.clone(),
            state: ReportedState::Ready,
            sent_ms: now_ms(),
        }
    }

    pub(crate) fn renew_body(&self, state: ReportedState) -> Renew {
        Renew {
            version: LEASE_VERSION,
            boot: self.boot,
            revision: self.revision.load(Ordering::SeqCst),
            state,
            reasons: vec![],
            applied_generation: 0,
            load: Default::default(),
            sent_ms: now_ms(),
        }
    }

    pub(crate) async fn register(&self) -> Result<LeaseGrant, ReplyError> {
        self.send(self.signed(LeaseVerb::Register, &self.register_body())).await
    }

    pub(crate) async fn renew(&self) -> Result<LeaseGrant, ReplyError> {
        self.renew_as(ReportedState::Ready).await
    }

    pub(crate) async fn renew_as(&self, state: ReportedState) -> Result<LeaseGrant, ReplyError> {
        self.send(self.signed(LeaseVerb::Renew, &self.renew_body(state))).await
    }

    pub(crate) async fn deregister(&self, reason: &str) -> Result<LeaseGrant, ReplyError> {
        let revision = self.revision.load(Ordering::SeqCst);
        let body = Deregister { version: LEASE_VERSION, boot: self.boot, revision, reason: reason.to_owned() };
        self.send(self.signed(LeaseVerb::Deregister, &body)).await
    }
}

pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, ReplyError>) -> ErrorCode {
    answer.unwrap_err().code
}
