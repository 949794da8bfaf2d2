//! A real PostgreSQL for one test: its own cluster on a free loopback port, gone when it is dropped.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "a module of test files, which have no outside")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_bus::{AccountKey, BatchKey, Tenant, TenantId, TenantState};
use bulkhead_store::admin::{self, Passwords};
use bulkhead_store::{Provisioning, Store};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const SUPERUSER: &str = "test_admin";
const DATABASE: &str = "bulkhead";

/// A running PostgreSQL with Bulkhead's roles and schemas.
pub struct TestDatabase {
    server: Child,
    port: u16,
    folder: TempDir,
}

/// Where the programs are: on PATH, or where Debian puts them.
fn programs() -> PathBuf {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let usual = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = std::env::split_paths(&on_path).chain(usual.map(|entry| entry.path().join("bin")));
    let real = folders.filter_map(|folder| fs::canonicalize(folder.join("initdb")).ok());
    let found = real.filter_map(|initdb| initdb.parent().map(Path::to_owned));
    found
        .into_iter()
        .find(|bin| bin.join("postgres").is_file())
        .expect("initdb and postgres on PATH: install PostgreSQL")
}

/// The user that stands in for root, whom PostgreSQL refuses.
fn stand_in(folder: &Path) -> Option<(u32, u32)> {
    if fs::metadata(folder).unwrap().uid() != 0 {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let named = |name| accounts.lines().find(|line| line.split(':').next() == Some(name));
    let line = ["postgres", "nobody"].into_iter().find_map(named).expect("a user postgres or nobody");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

/// `program`, unprivileged, and dying with the thread that runs the test.
fn command(program: &Path, user: Option<(u32, u32)>, folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Some((uid, gid)) = user {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    command.arg("--pdeathsig=INT").arg("--").arg(program).current_dir(folder).stdin(Stdio::null());
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl TestDatabase {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("bulkhead-test-").tempdir().unwrap();
        let user = stand_in(folder.path());
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        let (programs, data) = (programs(), folder.path().join("data"));
        let made = command(&programs.join("initdb"), user, folder.path())
            .args(["--username", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--pgdata"])
            .arg(&data)
            .output()
            .expect("setpriv and initdb run");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let settings =
            ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=40", "jit=off"];
        let server = command(&programs.join("postgres"), user, folder.path())
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string()])
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .expect("postgres runs");
        Self { server, port, folder }
    }

    async fn wait_until_up(&mut self) {
        let end = Instant::now() + START_LIMIT;
        let mut ticks = tokio::time::interval(Duration::from_millis(25));
        while let Err(error) = admin::ping(&self.url(SUPERUSER, "postgres")).await {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let ended = self.server.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "PostgreSQL is not up: {error}: {log}");
            ticks.tick().await;
        }
    }

    fn url(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}:secret@127.0.0.1:{}/{database}", self.port)
    }

    pub fn superuser_url(&self) -> String {
        self.url(SUPERUSER, DATABASE)
    }

    pub fn provision_url(&self) -> String {
        self.url("bulkhead_provision", DATABASE)
    }

    pub fn core_url(&self) -> String {
        self.url("bulkhead_core", DATABASE)
    }

    /// Makes roles, database and schemas, as an installation does.
    pub async fn prepare(&self) {
        let passwords = Passwords { provision: "secret".to_owned(), core: "secret".to_owned() };
        admin::prepare_database(&self.url(SUPERUSER, "postgres"), &passwords).await.unwrap();
        admin::migrate(&self.provision_url()).await.unwrap();
    }

    pub async fn store(&self) -> Store {
        Store::connect(&self.core_url(), "core", 4).await.unwrap()
    }

    pub async fn provisioning(&self) -> Provisioning {
        Provisioning::connect(&self.provision_url()).await.unwrap()
    }

    /// A connection that sees everything, to look at what others did.
    pub async fn superuser(&self) -> PgConnection {
        PgConnection::connect(&self.superuser_url()).await.unwrap()
    }

    /// A connection as core's role, without any of the store's care.
    pub async fn bare_core(&self) -> PgConnection {
        PgConnection::connect(&self.core_url()).await.unwrap()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // SIGINT is a fast shutdown, which leaves no shared memory behind.
        let asked = Command::new("kill").args(["-INT", &self.server.id().to_string()]).status();
        let end = Instant::now() + STOP_LIMIT;
        while asked.as_ref().is_ok_and(std::process::ExitStatus::success) && Instant::now() < end {
            if matches!(self.server.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::yield_now();
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// An empty PostgreSQL.
pub async fn bare_postgres() -> TestDatabase {
    let mut database = TestDatabase::start();
    database.wait_until_up().await;
    database
}

/// A PostgreSQL with roles and schemas.
pub async fn postgres() -> TestDatabase {
    let database = bare_postgres().await;
    database.prepare().await;
    database
}

pub fn account_key() -> AccountKey {
    nkeys::KeyPair::new_account().public_key().parse().unwrap()
}

pub fn batch_key() -> BatchKey {
    nkeys::KeyPair::new_user().public_key().parse().unwrap()
}

pub fn tenant(slug: &str) -> Tenant {
    Tenant {
        id: TenantId::new(Uuid::new_v4()),
        slug: slug.parse().unwrap(),
        plan: "free".to_owned(),
        state: TenantState::Active,
        retention_days: 7,
        allows_unsigned: false,
    }
}
