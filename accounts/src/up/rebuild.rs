//! A platform that is put together again in a folder of its own, step by step: database, hub, core. No site is started.
//!
//! It never listens where the platform that it is a copy of does, so that no site links up to it.

use std::fs::File;
use std::path::Path;

use bulkhead_runtime::Bus;
use bulkhead_store::admin::{self, Passwords};
use time::OffsetDateTime;

use super::backbone::{children, core_answers, stop_hub, while_running};
use super::child::Child;
use super::deployment::{DeploymentError, Options};
use super::gatekeepers::{Gatekeeper, stop_gatekeepers};
use super::home::lock;
use super::hub::{HubPlace, HubServer, remember_size};
use super::layout::Layout;
use super::platform::{OPS, Platform, PlatformError};
use super::ports::Ports;
use super::postgres::Postgres;
use super::start::{DATABASE, Starter, passwords};
use crate::certificates::Authority;
use crate::files::make_folder;
use crate::hub_size::HubSize;
use crate::operator::{AccountRecord, OperatorError, OperatorStore};
use crate::tenancy::{Intake, PlatformSettings, Tenancy, TenancyError, ensure_gate, remember_people, waves};

/// A folder that nobody else uses, for a platform to be put into.
pub struct Rebuild {
    pub layout: Layout,
    options: Options,
    // Released last.
    lock: File,
}

/// A platform with a database, and nothing in it yet.
pub struct RebuiltDatabase {
    pub layout: Layout,
    pub postgres: Postgres,
    options: Options,
    ports: Ports,
    passwords: Passwords,
    lock: File,
}

/// A platform with database and hub, whose accounts are in force.
pub struct RebuiltHub {
    pub layout: Layout,
    pub postgres: Postgres,
    pub platform: Platform,
    pub system: Bus,
    pub size: HubSize,
    hub: Vec<HubServer>,
    gatekeepers: Vec<Gatekeeper>,
    core: Option<Child>,
    options: Options,
    ports: Ports,
    passwords: Passwords,
    _lock: File,
}

impl Rebuild {
    /// Takes the folder `options.home`.
    ///
    /// # Errors
    /// When somebody else uses it.
    pub fn begin(options: Options) -> Result<Self, DeploymentError> {
        let layout = Layout::new(options.home.clone());
        let lock = lock(&layout)?;
        Ok(Self { layout, options, lock })
    }

    /// Starts an empty database, with its roles.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_database(self) -> Result<RebuiltDatabase, DeploymentError> {
        let Self { layout, options, lock } = self;
        for folder in [layout.run(), layout.home().join("logs"), layout.hub(), layout.core()] {
            make_folder(&folder).map_err(DeploymentError::File)?;
        }
        let mut ports = Ports::beside(&layout.ports_file());
        let port = ports.choose("postgres").map_err(DeploymentError::Port)?;
        let postgres = Postgres::start(layout.home(), &options.tools, port).await;
        let postgres = postgres.map_err(DeploymentError::Postgres)?;
        let passwords = passwords(&layout)?;
        let prepared = admin::prepare_database(&postgres.superuser_url(), &passwords).await;
        prepared.map_err(DeploymentError::Database)?;
        Ok(RebuiltDatabase { layout, postgres, options, ports, passwords, lock })
    }
}

impl RebuiltDatabase {
    /// The platform's database, as the superuser.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.postgres.database_url(DATABASE)
    }

    /// Brings the database to this release and starts the hub with every account of the operator store, signed anew.
    ///
    /// # Errors
    /// When something does not start, or an account does not come into force.
    pub async fn start_hub(self, size: HubSize) -> Result<RebuiltHub, DeploymentError> {
        let Self { layout, postgres, options, mut ports, passwords, lock } = self;
        let url = postgres.url("bulkhead_provision", &passwords.provision, DATABASE);
        bulkhead_store::migrate(&url).await.map_err(DeploymentError::Database)?;
        remember_size(&layout, size)?;
        let mut starter = Starter { options: &options, layout: &layout, ports: &mut ports, announce: &|_| {} };
        let places = starter.choose_places(size)?;
        let tenancy = open_tenancy(&layout, &places, size)?;
        let platform = &tenancy.platform;
        // A backup of an earlier release has neither.
        platform.render_callout(size)?;
        sign_anew(platform)?;
        let mut hub = starter.start_hub(platform, &places)?;
        let system = while_running(children(&mut hub), platform.connect_hub(size)).await?;
        let accounts = all_accounts(platform)?;
        while_running(children(&mut hub), push_all(&accounts, &system, size)).await?;
        let links = tenancy.link(system.clone()).map_err(DeploymentError::tenancy)?;
        let gate = links.gate().await.map_err(DeploymentError::tenancy)?;
        ensure_gate(gate, size).await.map_err(DeploymentError::tenancy)?;
        let told: Vec<&AccountRecord> = accounts.iter().collect();
        tenancy.tell_gate_all(&links, &told, &|_| {}).await.map_err(DeploymentError::tenancy)?;
        let gatekeepers = starter.start_gatekeepers(platform, size)?;
        Ok(RebuiltHub {
            layout,
            postgres,
            platform: tenancy.platform,
            system,
            size,
            hub,
            gatekeepers,
            core: None,
            options,
            ports,
            passwords,
            _lock: lock,
        })
    }
}

impl RebuiltHub {
    /// The platform's database, as the superuser.
    #[must_use]
    pub fn database_url(&self) -> String {
        self.postgres.database_url(DATABASE)
    }

    /// Starts core and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer in time.
    pub async fn start_core(&mut self) -> Result<(), DeploymentError> {
        let people = self.platform.write_profiles(&[]).map_err(DeploymentError::Platform)?;
        let now = self.platform.now.unix_timestamp();
        remember_people(&self.layout, &people, now).map_err(DeploymentError::tenancy)?;
        let places: Vec<HubPlace> = self.hub.iter().map(|server| server.place).collect();
        let tenancy = open_tenancy(&self.layout, &places, self.size)?;
        let links = tenancy.link(self.system.clone()).map_err(DeploymentError::tenancy)?;
        let ops = tenancy.platform.operator.account(OPS).map_err(DeploymentError::Operator)?;
        if let Some(ops) = ops {
            tenancy.tell_gate(&links, &ops).await.map_err(DeploymentError::tenancy)?;
        }
        let mut starter =
            Starter { options: &self.options, layout: &self.layout, ports: &mut self.ports, announce: &|_| {} };
        let shards = Intake::new(&self.layout)
            .shards()
            .map_err(|error| DeploymentError::tenancy(TenancyError::Intake(error)))?;
        let shards: Vec<u32> = shards.keys().copied().collect();
        let mut core = starter.start_core(&self.platform, &self.postgres, &self.passwords, &shards)?;
        while_running(vec![&mut core], core_answers(&self.layout)).await?;
        self.core = Some(core);
        Ok(())
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// When a process can be neither asked nor killed.
    pub async fn stop(mut self) -> Result<(), DeploymentError> {
        if let Some(core) = &mut self.core {
            core.stop().await.map_err(DeploymentError::Child)?;
        }
        stop_gatekeepers(&mut self.gatekeepers).await.map_err(DeploymentError::Child)?;
        stop_hub(&mut self.hub).await.map_err(DeploymentError::Child)?;
        self.postgres.child.stop().await.map_err(DeploymentError::Child)
    }
}

fn open_tenancy(layout: &Layout, places: &[HubPlace], size: HubSize) -> Result<Tenancy, DeploymentError> {
    let operator = OperatorStore::read(layout.operator()).map_err(DeploymentError::Operator)?;
    let operator =
        operator.ok_or_else(|| DeploymentError::Operator(OperatorError::NoAccount("operator".to_owned())))?;
    let domain = PlatformSettings::trust_domain(layout).map_err(TenancyError::Settings);
    let domain = domain.map_err(DeploymentError::tenancy)?;
    let hub_urls: Vec<String> = places.iter().map(HubPlace::client_url).collect();
    let settings = PlatformSettings {
        trust_domain: domain.to_string(),
        hub_servers: size,
        hub_urls: hub_urls.clone(),
        leaf_urls: places.iter().map(HubPlace::leaf_url).collect(),
        enrolment_urls: vec![],
        database_url_file: None,
    };
    let authority = Authority::new(layout.authority(), domain);
    let platform = Platform { layout: layout.clone(), operator, authority, hub_urls, now: OffsetDateTime::now_utc() };
    Ok(Tenancy::of(platform, settings))
}

/// Every account gets a newer token with the same content. A server that comes back with what it had before would
/// otherwise hold a token that was signed after the backup, and the newer one wins among servers.
fn sign_anew(platform: &Platform) -> Result<(), DeploymentError> {
    let now = platform.now.unix_timestamp();
    for name in platform.operator.account_names() {
        let account = platform.operator.account(&name).map_err(DeploymentError::Operator)?;
        let account = account.ok_or_else(|| DeploymentError::Operator(OperatorError::NoAccount(name.clone())))?;
        platform.operator.sign_body(&name, account.claims.nats, now).map_err(DeploymentError::Operator)?;
    }
    Ok(())
}

fn all_accounts(platform: &Platform) -> Result<Vec<AccountRecord>, DeploymentError> {
    let account = |name: String| {
        let account = platform.operator.account(&name).map_err(DeploymentError::Operator)?;
        account.ok_or_else(|| DeploymentError::Operator(OperatorError::NoAccount(name.clone())))
    };
    platform.operator.account_names().into_iter().map(account).collect()
}

async fn push_all(accounts: &[AccountRecord], system: &Bus, size: HubSize) -> Result<(), PlatformError> {
    for account in waves(&accounts.iter().collect::<Vec<_>>()).into_iter().flatten() {
        crate::resolver::push(system, account, size.servers()).await.map_err(PlatformError::Push)?;
    }
    Ok(())
}

/// Whether a folder holds a platform that was put together only in part.
#[must_use]
pub fn unfinished_restore(home: &Path) -> std::path::PathBuf {
    home.join("restore.unfinished")
}
