//! A real PostgreSQL for one test: its own cluster on a free loopback port, gone when it is dropped.

use std::os::unix::fs::PermissionsExt;

use anyhow::Context;
use bulkhead_accounts::up::Postgres;
use bulkhead_accounts::up::child::RunAs;
use bulkhead_bus::{AccountKey, BatchKey, Tenant, TenantId, TenantState};
use bulkhead_store::admin::{self, Passwords};
use bulkhead_store::{Connections, Provisioning, Service, Store};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{find_test_tools, free_ports};

const DATABASE: &str = "bulkhead";
const PASSWORD: &str = "secret";
/// Of a store.
pub const CONNECTIONS: Connections = Connections { shared: 4, own_schemas: 2 };

/// A running PostgreSQL, with Bulkhead's roles and schemas once it is prepared.
pub struct TestDatabase {
    // Before its folder: fields are dropped in order.
    server: Postgres,
    _folder: TempDir,
}

impl TestDatabase {
    /// An empty PostgreSQL.
    ///
    /// # Errors
    /// When it does not start; the error holds the end of its log.
    pub async fn start_bare() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bulkhead-test-").tempdir().context("make a folder")?;
        // So that the user that stands in for root may pass.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).context("open the folder")?;
        for inner in ["logs", "run"] {
            std::fs::create_dir(folder.path().join(inner)).context("make a folder")?;
        }
        let [port] = free_ports()?;
        let server = Postgres::start(folder.path(), &find_test_tools()?, port).await?;
        Ok(Self { server, _folder: folder })
    }

    /// A PostgreSQL with roles and schemas.
    ///
    /// # Errors
    /// When it does not start or cannot be prepared.
    pub async fn start() -> anyhow::Result<Self> {
        let database = Self::start_bare().await?;
        database.prepare().await?;
        Ok(database)
    }

    /// Makes roles, database and schemas, as an installation does.
    ///
    /// # Errors
    /// When the database refuses.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let password = || PASSWORD.to_owned();
        let passwords =
            Passwords { provision: password(), core: password(), registry: password(), dispatch: password() };
        admin::prepare_database(&self.bare_url(), &passwords).await?;
        Ok(bulkhead_store::migrate(&self.provision_url()).await?)
    }

    /// The superuser's address of the database that every PostgreSQL has.
    #[must_use]
    pub fn bare_url(&self) -> String {
        self.server.superuser_url()
    }

    /// The superuser's address of Bulkhead's database.
    #[must_use]
    pub fn superuser_url(&self) -> String {
        self.server.superuser_url().trim_end_matches("postgres").to_owned() + DATABASE
    }

    #[must_use]
    pub fn provision_url(&self) -> String {
        self.server.url("bulkhead_provision", PASSWORD, DATABASE)
    }

    #[must_use]
    pub fn core_url(&self) -> String {
        self.service_url(Service::Core)
    }

    #[must_use]
    pub fn service_url(&self, service: Service) -> String {
        self.server.url(service.login(), PASSWORD, DATABASE)
    }

    /// Who runs the server, where that is not ourselves.
    pub(crate) fn run_as(&self) -> Option<RunAs> {
        self.server.child.spec().run_as
    }

    pub(crate) fn port(&self) -> u16 {
        self.server.port
    }

    /// Of the roles that provision and store.
    pub(crate) fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The process of the server.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.server.child.pid()
    }

    /// # Errors
    /// When the role may not connect.
    pub async fn store(&self) -> anyhow::Result<Store> {
        self.store_of(Service::Core).await
    }

    /// # Errors
    /// When the role may not connect.
    pub async fn store_of(&self, service: Service) -> anyhow::Result<Store> {
        Ok(Store::connect(&self.service_url(service), service, CONNECTIONS).await?)
    }

    /// # Errors
    /// When the role may not connect.
    pub async fn provisioning(&self) -> anyhow::Result<Provisioning> {
        Ok(Provisioning::connect(&self.provision_url()).await?)
    }

    /// A connection that sees everything, to look at what others did.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn superuser(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.superuser_url()).await?)
    }

    /// A connection as the role that provisions, which inherits nothing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn bare_provision(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.provision_url()).await?)
    }

    /// A connection as core's role, without any of the store's care.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn bare_core(&self) -> anyhow::Result<PgConnection> {
        self.bare(Service::Core).await
    }

    /// A connection as a service's role, without any of the store's care.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn bare(&self, service: Service) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.service_url(service)).await?)
    }
}

/// A new account's key.
///
/// # Panics
/// Never: what nkeys makes is a key.
#[must_use]
pub fn account_key() -> AccountKey {
    nkeys::KeyPair::new_account().public_key().parse().expect("a new key is a key")
}

/// Puts a tenant on the list, with the site `oslo` and its poller `p1`; returns its account's key.
///
/// # Errors
/// When the database refuses.
pub async fn onboard(provisioning: &Provisioning, tenant: &Tenant) -> anyhow::Result<AccountKey> {
    let (key, oslo, p1) = (account_key(), "oslo".parse()?, "p1".parse()?);
    provisioning.put_tenant(&key, tenant).await?;
    provisioning.put_site(tenant, &oslo).await?;
    provisioning.put_poller(tenant, &oslo, &p1, &batch_key()).await?;
    Ok(key)
}

/// A new poller's batch key.
///
/// # Panics
/// Never: what nkeys makes is a key.
#[must_use]
pub fn batch_key() -> BatchKey {
    nkeys::KeyPair::new_user().public_key().parse().expect("a new key is a key")
}

/// Accounts of nobody, many of them at once: well-formed public keys without a key behind them.
#[must_use]
pub fn account_keys(count: usize) -> Vec<AccountKey> {
    // Not all bytes are a point of the curve.
    let keys = std::iter::repeat_with(|| well_formed_key(Uuid::new_v4(), Uuid::new_v4()).parse().ok());
    keys.flatten().take(count).collect()
}

/// A byte that says what it is, 32 bytes of key and a checksum (CRC-16/XMODEM), as base32.
fn well_formed_key(one: Uuid, other: Uuid) -> String {
    let mut bytes = vec![0_u8];
    bytes.extend(one.as_bytes().iter().chain(other.as_bytes()));
    let step = |crc: u16, bit: u8| (crc << 1) ^ (if (crc >> 15 == 1) ^ (bit == 1) { 0x1021 } else { 0 });
    let bits = |byte: &u8| -> Vec<u8> { (0..8).rev().map(|place| byte >> place & 1).collect() };
    let checksum = bytes.iter().flat_map(bits).fold(0, step);
    bytes.extend(checksum.to_le_bytes());
    let all: Vec<u8> = bytes.iter().flat_map(bits).collect();
    let letter = |five: &[u8]| {
        let value = five.iter().fold(0, |value, bit| value << 1 | bit);
        char::from(if value < 26 { b'A' + value } else { b'2' + value - 26 })
    };
    all.chunks(5).map(letter).collect()
}

/// A tenant with a schema of its own.
///
/// # Panics
/// When `slug` is not a slug.
#[must_use]
pub fn enterprise(slug: &str) -> Tenant {
    Tenant { plan: "enterprise".to_owned(), ..tenant(slug) }
}

/// An active tenant on plan free.
///
/// # Panics
/// When `slug` is not a slug.
#[must_use]
pub fn tenant(slug: &str) -> Tenant {
    Tenant {
        id: TenantId::new(Uuid::new_v4()),
        slug: slug.parse().expect("a test names tenants well"),
        plan: "free".to_owned(),
        state: TenantState::Active,
        state_since_ms: 0,
        retention_days: 7,
        allows_unsigned: false,
    }
}
