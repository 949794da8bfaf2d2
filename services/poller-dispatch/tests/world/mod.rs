//! A hub with the rights that the roles have, a database, replicas of poller-dispatch as processes, pollers and people that ask
//! them, and a registry that says what a test wants: it is the other end of the wire.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{
    AssignmentPage, Capability, ChangeChecks, ChangedCheck, CheckChange, CheckKind, ErrorCode, FetchAssignment,
    MemberInfo, MemberPage, MemberRow, MemberState, Reply, ReplyError,
};
use bulkhead_bus::{
    AccountKey, AssignmentVerb, CoreSubject, DispatchVerb, Head, PollerName, RegistryEvent, Role, SiteName, Tenant,
    TenantSubject, role_permissions,
};
use bulkhead_runtime::{Bus, BusSettings, Headers, TlsFiles, eventually, now_ms};
use bulkhead_store::{Provisioning, Quota, Service};
use bulkhead_testkit::database::{account_key, enterprise, tenant};
use bulkhead_testkit::{Forger, TestDatabase, client_params, find_test_tools, free_ports, scrape};
use nkeys::KeyPair;
use rcgen::ExtendedKeyUsagePurpose;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(70);
const RPC: &str = "dispatch-rpc";
/// The registry answers where this user hears.
const PUSH: &str = "dispatch-push";
/// Is the registry; it may say and hear everything in CORE.
const WITNESS: &str = "registry";
const ACME: &str = "acme";
const XYZ: &str = "xyz";
const OPS: &str = "ops";

pub(crate) const QUOTA: Quota =
    Quota { checks: 2_000, runs_per_minute: 100_000, interval_s_least: 5, vantages: 3, on_demand_per_minute: 10 };

struct Hub {
    folder: TempDir,
    port: u16,
    _process: Child,
}

fn permissions(role: Role, name: &str) -> String {
    let permissions = role_permissions(role);
    let list = |subjects: Vec<String>| {
        let quoted = subjects.iter().map(|subject| format!("{:?}", subject.replace("{{name()}}", name)));
        quoted.collect::<Vec<_>>().join(", ")
    };
    let (publish, subscribe) = (list(permissions.publish), list(permissions.subscribe));
    format!("publish: {{ allow: [{publish}] }}, subscribe: {{ allow: [{subscribe}] }}")
}

fn certificates(folder: &Path) {
    let root = Forger::root("root");
    std::fs::write(folder.join("root.crt"), root.pem()).unwrap();
    for name in ["localhost", RPC, PUSH, WITNESS, ACME, XYZ, OPS] {
        let mut params = client_params(name, &format!("spiffe://test/{name}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        root.end(&params).write(&root, folder, name).unwrap();
    }
}

impl Hub {
    async fn start(accounts: &[(&str, &AccountKey)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        let [port] = free_ports().unwrap();
        let tenant = |(user, account): &(&str, &AccountKey)| {
            format!(
                "{account} {{ users: [ {{ user: {user} }} ], imports: [\n\
                   {{ service: {{ account: CORE, subject: \"{up}\" }}, to: \"{}\" }},\n\
                   {{ stream: {{ account: CORE, subject: \"{down}\" }}, to: \"{}\" }} ] }}\n",
                Head::Up.pattern(),
                Head::Down.pattern(),
                up = Head::Up.core_pattern(account.as_str()),
                down = Head::Down.core_pattern(account.as_str()),
            )
        };
        let config = format!(
            "listen: 127.0.0.1:{port}\nserver_name: hub\n\
             tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {root:?}, verify_and_map: true }}\n\
             accounts {{\n\
               CORE {{ exports: [ {{ service: \"{up}\", account_token_position: 2 }}, \
                 {{ stream: \"{down}\", account_token_position: 2 }} ], users: [\n\
                 {{ user: {WITNESS} }},\n\
                 {{ user: {RPC}, permissions: {{ {rpc} }} }},\n\
                 {{ user: {PUSH}, permissions: {{ {push} }} }}\n] }}\n{tenants}}}\n",
            cert = folder.path().join("localhost.crt"),
            key = folder.path().join("localhost.key"),
            root = folder.path().join("root.crt"),
            up = Head::Up.core_pattern("*"),
            down = Head::Down.core_pattern("*"),
            rpc = permissions(Role::DispatchRpc, RPC),
            push = permissions(Role::DispatchPush, PUSH),
            tenants = accounts.iter().map(tenant).collect::<String>(),
        );
        std::fs::write(folder.path().join("hub.conf"), config).unwrap();
        let log = std::fs::File::create(folder.path().join("hub.log")).unwrap();
        let mut command = Command::new(find_test_tools().unwrap().nats_server.path);
        command.arg("-c").arg(folder.path().join("hub.conf")).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let process = command.spawn().unwrap();
        Self { folder, port, _process: process }
    }

    fn settings(&self, name: &str) -> BusSettings {
        let file = |ending: &str| self.folder.path().join(format!("{name}.{ending}"));
        BusSettings {
            urls: vec![format!("tls://localhost:{}", self.port)],
            tls: TlsFiles {
                ca_file: self.folder.path().join("root.crt"),
                cert_file: file("crt"),
                key_file: file("key"),
            },
            creds_file: None,
            inbox_prefix: format!("_INBOX_{name}"),
        }
    }

    async fn connect(&self, name: &str) -> Bus {
        let settings = self.settings(name);
        let connected = eventually("a hub", LIMIT, || Bus::connect(&settings, "test")).await;
        connected.unwrap_or_else(|error| {
            let log = std::fs::read_to_string(self.folder.path().join("hub.log")).unwrap_or_default();
            panic!("{error}\n{log}")
        })
    }
}

/// A replica of poller-dispatch.
pub(crate) struct Replica {
    process: Child,
    health_port: u16,
    log: PathBuf,
}

impl Replica {
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Stops, or goes on.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
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

/// What the registry says of one tenant.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) is_known: bool,
    pub(crate) revision: u64,
    pub(crate) members: Vec<MemberRow>,
}

pub(crate) type Registry = Arc<Mutex<BTreeMap<AccountKey, Said>>>;

async fn be_registry(bus: Bus, said: Registry) {
    let mut asked = bus.answer("t.*.svc.registry.list_members", "registry").await.unwrap();
    loop {
        let request = asked.next().await;
        let account = CoreSubject::account_of(&request.subject).unwrap();
        let page = said.lock().unwrap().get(&account).cloned().map(|said| MemberPage {
            is_known: said.is_known,
            because: (!said.is_known).then(|| "a test says so".to_owned()),
            revision: said.revision,
            members: said.members,
            has_more: false,
        });
        // Whoever is not known here has no answer, as from a registry that is away.
        if let Some(page) = page {
            request.answer(serde_json::to_vec(&Reply::Rows(vec![page])).unwrap().into()).await.unwrap();
        }
    }
}

pub(crate) struct World {
    pub(crate) replicas: Vec<Replica>,
    hub: Hub,
    pub(crate) witness: Bus,
    pub(crate) ops: Bus,
    pub(crate) database: TestDatabase,
    pub(crate) provisioning: Provisioning,
    pub(crate) registry: Registry,
    pub(crate) acme: Place,
    pub(crate) xyz: Place,
}

/// A tenant, and its connection.
pub(crate) struct Place {
    pub(crate) tenant: Tenant,
    pub(crate) account: AccountKey,
    pub(crate) bus: Bus,
}

impl World {
    /// Two tenants, of which one has a schema of its own, with pollers p1 and p2 at oslo, p1 at lima, and the platform's people.
    pub(crate) async fn start() -> Self {
        let (ops_key, acme_key, xyz_key) = (account_key(), account_key(), account_key());
        let hub = Hub::start(&[(OPS, &ops_key), (ACME, &acme_key), (XYZ, &xyz_key)]).await;
        let database = TestDatabase::start().await.unwrap();
        let provisioning = database.provisioning().await.unwrap();
        provisioning.put_platform_account(&ops_key, "ops").await.unwrap();
        let place = async |user, tenant: Tenant, account: AccountKey| {
            provisioning.put_tenant(&account, &tenant).await.unwrap();
            provisioning.put_quota(&tenant, &QUOTA).await.unwrap();
            Place { tenant, account, bus: hub.connect(user).await }
        };
        let acme = place(ACME, enterprise("acme-corp"), acme_key).await;
        let xyz = place(XYZ, tenant("xyz-inc"), xyz_key).await;
        let (witness, ops) = (hub.connect(WITNESS).await, hub.connect(OPS).await);
        let registry = Registry::default();
        for account in [&acme.account, &xyz.account] {
            registry.lock().unwrap().insert(account.clone(), Said { is_known: true, revision: 1, members: vec![] });
        }
        tokio::spawn(be_registry(witness.clone(), Arc::clone(&registry)));
        Self { replicas: vec![], hub, witness, ops, database, provisioning, registry, acme, xyz }
    }

    pub(crate) async fn start_replica(&mut self) {
        let number = self.replicas.len() + 1;
        let folder = self.hub.folder.path();
        let url_file = folder.join("database.url");
        std::fs::write(&url_file, self.database.service_url(Service::Dispatch)).unwrap();
        std::fs::set_permissions(&url_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let [health_port] = free_ports().unwrap();
        let bus = |name: &str| {
            let BusSettings { urls, tls, inbox_prefix, .. } = self.hub.settings(name);
            let (ca, cert, key) = (tls.ca_file, tls.cert_file, tls.key_file);
            format!(
                "urls = {urls:?}\ninbox_prefix = {inbox_prefix:?}\n\
                 tls = {{ ca_file = {ca:?}, cert_file = {cert:?}, key_file = {key:?} }}\n"
            )
        };
        let config = format!(
            "log_filter = \"info,bulkhead_poller_dispatch=debug\"\nhealth_listen = \"127.0.0.1:{health_port}\"\n\
             database_url_file = {url_file:?}\n[rpc_bus]\n{}\n[push_bus]\n{}\n[planning]\nhold_s = 2\n",
            bus(RPC),
            bus(PUSH)
        );
        let (file, log) =
            (folder.join(format!("dispatch-{number}.toml")), folder.join(format!("dispatch-{number}.log")));
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-poller-dispatch"));
        command.arg("--config").arg(&file).kill_on_drop(true);
        command
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(std::fs::File::create(log.with_extension("err")).unwrap());
        let process = command.spawn().unwrap();
        self.replicas.push(Replica { process, health_port, log: log.clone() });
        let ready = eventually("a ready poller-dispatch", LIMIT, || async {
            match scrape::get(health_port, "/readyz").await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        ready.await.unwrap_or_else(|error| {
            let error_log = std::fs::read_to_string(log.with_extension("err")).unwrap_or_default();
            panic!("{error}\n{}\n{error_log}", self.replicas[number - 1].log())
        });
    }

    /// Waits until a replica plans; its place.
    pub(crate) async fn leader(&self, among: &[usize]) -> usize {
        let found = eventually("a leader", LIMIT, || async {
            for place in among {
                if self.replicas[*place].metric("dispatch_is_leader").await > 0.5 {
                    return Ok(*place);
                }
            }
            Err("nobody plans".to_owned())
        });
        found.await.unwrap()
    }

    /// A registered poller that the registry calls ready.
    pub(crate) async fn add_poller(&self, place: &Place, site: &str, name: &str) -> Poller {
        let poller = Poller::new(place, site, name);
        self.provisioning.put_site(&place.tenant, &poller.site).await.unwrap();
        let key = poller.key.public_key().parse().unwrap();
        self.provisioning.put_poller(&place.tenant, &poller.site, &poller.name, &key).await.unwrap();
        self.say(place, |said| said.members.push(poller.row(place, MemberState::Ready))).await;
        poller
    }

    /// The registry says something else from now on, and that it does.
    pub(crate) async fn say(&self, place: &Place, change: impl FnOnce(&mut Said)) {
        {
            let mut all = self.registry.lock().unwrap();
            let said = all.get_mut(&place.account).unwrap();
            said.revision += 1;
            change(said);
        }
        let subject = TenantSubject::Event { event: RegistryEvent::Changed };
        let subject = CoreSubject { account: place.account.clone(), subject }.to_string();
        self.witness.publish(&subject, Vec::new().into()).await.unwrap();
    }

    pub(crate) async fn say_state(&self, place: &Place, poller: &Poller, state: MemberState) {
        self.say(place, |said| {
            for row in
                said.members.iter_mut().filter(|row| row.site == poller.site && row.name == poller.name.clone().into())
            {
                row.state = state;
                row.renewed_ms = Some(now_ms() - 15_000);
            }
        })
        .await;
    }

    /// `check vantage poller generation because` of all rows of a tenant, in order.
    pub(crate) async fn rows(&self, place: &Place) -> Vec<String> {
        let schema = if place.tenant.plan == "enterprise" { "tenant_acme_corp" } else { "shared" };
        let sql = format!(
            "select concat_ws(' ', check_name, vantage, coalesce(poller, 'nobody'), generation, ended_because)
             from {schema}.assignment where tenant_id = $1 order by check_name, vantage, generation"
        );
        let mut superuser = self.database.superuser().await.unwrap();
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(place.tenant.id.as_uuid());
        rows.fetch_all(&mut superuser).await.unwrap()
    }

    pub(crate) async fn until_rows(&self, place: &Place, what: &str, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let seen = eventually(what, LIMIT, || async {
            let rows = self.rows(place).await;
            if is_so(&rows) { Ok(rows) } else { Err(format!("{rows:#?}")) }
        });
        match seen.await {
            Ok(rows) => rows,
            Err(error) => {
                let logs: Vec<String> = self.replicas.iter().map(Replica::log).collect();
                panic!("{error}\n{}", logs.join("\n---\n"))
            }
        }
    }
}

impl Place {
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        verb: DispatchVerb,
        body: &impl Serialize,
    ) -> Result<Vec<T>, ReplyError> {
        ask(&self.bus, verb, body).await
    }

    pub(crate) async fn change(&self, changes: Vec<CheckChange>) -> Result<Vec<ChangedCheck>, ReplyError> {
        let asked = ChangeChecks { tenant: None, changes, removes_others: false, is_rehearsal: false };
        self.ask(DispatchVerb::ChangeChecks, &asked).await
    }

    pub(crate) async fn add(&self, definitions: &[Value]) -> Result<Vec<ChangedCheck>, ReplyError> {
        let add = |definition: &Value| CheckChange::Add { definition: definition.clone() };
        self.change(definitions.iter().map(add).collect()).await
    }
}

/// Asks as the person `ann`.
pub(crate) async fn ask<T: DeserializeOwned>(
    bus: &Bus,
    verb: DispatchVerb,
    body: &impl Serialize,
) -> Result<Vec<T>, ReplyError> {
    let subject = TenantSubject::Dispatch { user: "ann".parse().unwrap(), verb }.to_string();
    let body = serde_json::to_vec(body).unwrap();
    answered(&bus.request(&subject, body.into(), ANSWER_LIMIT).await.unwrap())
}

pub(crate) fn answered<T: DeserializeOwned>(answer: &[u8]) -> Result<Vec<T>, ReplyError> {
    match serde_json::from_slice(answer).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(answer)))
    {
        Reply::Rows(rows) => Ok(rows),
        Reply::Error(error) => Err(error),
    }
}

pub(crate) fn code<T: std::fmt::Debug>(answer: Result<T, ReplyError>) -> ErrorCode {
    answer.unwrap_err().code
}

/// A check of a target of its own at oslo.
pub(crate) fn definition(name: &str) -> Value {
    json!({"name": name, "type": "tcp", "target": format!("{name}.example:1"), "interval": 30, "site": "oslo"})
}

/// A poller that asks over its tenant's connection.
pub(crate) struct Poller {
    bus: Bus,
    pub(crate) site: SiteName,
    pub(crate) name: PollerName,
    pub(crate) key: KeyPair,
    pub(crate) boot: u64,
    number: AtomicU64,
}

/// A request as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    pub(crate) subject: String,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

impl Poller {
    pub(crate) fn new(place: &Place, site: &str, name: &str) -> Self {
        let (site, name) = (site.parse().unwrap(), name.parse().unwrap());
        Self { bus: place.bus.clone(), site, name, key: KeyPair::new_user(), boot: 1_000, number: AtomicU64::new(0) }
    }

    pub(crate) fn row(&self, place: &Place, state: MemberState) -> MemberRow {
        let capability = |kind| Capability { kind, version: 1 };
        let info = MemberInfo {
            release: "0.1.0".to_owned(),
            capabilities: CheckKind::ALL.into_iter().map(capability).collect(),
            capacity: 1,
            sealing_key: Some(format!("X{}", self.name)),
            ..MemberInfo::default()
        };
        serde_json::from_value(
            json!({"tenant": place.tenant.slug, "site": self.site, "name": self.name, "state": state,
            "renewed_ms": now_ms(), "since_ms": now_ms(), "info": info}),
        )
        .unwrap()
    }

    pub(crate) fn signed(&self, verb: AssignmentVerb, body: &impl Serialize) -> Signed {
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        let subject = TenantSubject::Assignment { site: self.site.clone(), poller: self.name.clone(), verb };
        let (body, sequence) = (serde_json::to_vec(body).unwrap(), Sequence { boot: self.boot, number });
        let text = header::signed_request_bytes(&subject.to_string(), sequence, &body);
        let mut headers = Headers::default();
        headers.set(header::SIGNATURE, &header::encode_signature(&self.key.sign(&text).unwrap()));
        headers.set(header::KEY, &self.key.public_key());
        headers.set(header::SEQUENCE, &sequence.to_string());
        Signed { subject: subject.to_string(), headers, body }
    }

    pub(crate) async fn send<T: DeserializeOwned>(&self, signed: Signed) -> Result<Vec<T>, ReplyError> {
        let answer = self.bus.request_with(&signed.subject, signed.headers, signed.body.into(), ANSWER_LIMIT).await;
        answered(&answer.unwrap())
    }

    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        verb: AssignmentVerb,
        body: &impl Serialize,
    ) -> Result<Vec<T>, ReplyError> {
        self.send(self.signed(verb, body)).await
    }

    /// All pages of what changed since `have`.
    pub(crate) async fn fetch(&self, have: i64) -> Result<AssignmentPage, ReplyError> {
        let mut asked = FetchAssignment { version: 1, boot: self.boot, have, at: None, after: None };
        let mut all: Option<AssignmentPage> = None;
        loop {
            let page: AssignmentPage = self.ask(AssignmentVerb::FetchAssignment, &asked).await?.remove(0);
            asked.at = Some(page.generation);
            let last = page.checks.iter().map(|check| &check.probe.name).chain(page.ended.iter().map(|end| &end.check));
            asked.after = last.max().cloned();
            let has_more = page.has_more;
            all = Some(match all {
                None => page,
                Some(mut whole) => {
                    assert_eq!(whole.generation, page.generation);
                    whole.checks.extend(page.checks);
                    whole.ended.extend(page.ended);
                    whole
                }
            });
            if !has_more {
                return Ok(all.unwrap());
            }
        }
    }

    pub(crate) async fn names(&self, have: i64) -> Vec<String> {
        self.fetch(have).await.unwrap().checks.iter().map(|check| check.probe.name.to_string()).collect()
    }
}
