//! Starts the servers and services of one deployment in order, waits for states, and ends them in reverse.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_bus::{PollerName, SiteName, TenantSlug};
use bulkhead_runtime::{Bus, Chain, LimitReached, eventually};
use bulkhead_store::ProvisioningError;
use bulkhead_store::admin::Passwords;

use super::backbone::{Base, stop_hub};
use super::child::{Child, ChildError, ChildSpec, end_leftovers};
use super::gatekeepers::{Gatekeeper, stop_gatekeepers};
use super::home::{empty, lock};
use super::hub::{HubMaker, HubPlace, HubServer};
use super::layout::Layout;
use super::platform::{Accounts, Platform, PlatformError};
use super::ports::{PortError, Ports};
use super::postgres::{Postgres, PostgresError};
use super::rebuild::unfinished_restore;
use super::sharers::{Sharer, stop_sharers};
use super::site::{Site, SiteError};
use super::start::{MadeSite, Starter, child_spec, health_ports, server_spec};
use super::target::Target;
use super::tended::Tended;
use super::tools::Tools;
use super::wanted::drop_ended;
use crate::certificates::CertificateError;
use crate::files::{FileError, make_folder};
use crate::gatekeeper_files::GatekeeperFilesError;
use crate::hub_files::HubFilesError;
use crate::hub_size::HubSize;
use crate::hub_state::{ServerState, wait_until_whole};
use crate::operator::OperatorError;
use crate::plan::PlanName;
use crate::profile::ProfileError;
use crate::tenancy::{PlatformSettings, TenancyError};

const READY_LIMIT: Duration = Duration::from_secs(60);

/// Where the services' programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// This command itself, which is also the enrolment desk.
    pub bulkhead: PathBuf,
    pub core: PathBuf,
    pub gatekeeper: PathBuf,
    pub poller: PathBuf,
    pub registry: PathBuf,
    pub poller_dispatch: PathBuf,
}

impl Programs {
    /// All of them in one folder, as they are built and installed.
    #[must_use]
    pub fn beside(bulkhead: PathBuf) -> Self {
        let named = |name: &str| bulkhead.with_file_name(name);
        Self {
            core: named("bulkhead-core"),
            gatekeeper: named("bulkhead-gatekeeper"),
            poller: named("bulkhead-poller"),
            registry: named("bulkhead-registry"),
            poller_dispatch: named("bulkhead-poller-dispatch"),
            bulkhead,
        }
    }

    fn check(&self) -> Result<(), DeploymentError> {
        let Self { bulkhead, core, gatekeeper, poller, registry, poller_dispatch } = self;
        match [bulkhead, core, gatekeeper, poller, registry, poller_dispatch]
            .into_iter()
            .find(|program| !program.is_file())
        {
            Some(missing) => Err(DeploymentError::Program(missing.display().to_string())),
            None => Ok(()),
        }
    }
}

/// A tenant to run, with its sites and their pollers.
#[derive(Debug, Clone)]
pub struct TenantOptions {
    pub slug: TenantSlug,
    pub plan: PlanName,
    pub sites: Vec<(SiteName, Vec<PollerName>)>,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    pub home: PathBuf,
    /// Throw away what an earlier start has left in `home`.
    pub fresh: bool,
    /// `None`: as many as this home's hub has, and one for a new home.
    pub hub_servers: Option<HubSize>,
    pub tools: Tools,
    pub programs: Programs,
    pub tenants: Vec<TenantOptions>,
    pub targets: Vec<Target>,
    /// Where the leaves of a tenant reach the hub, when that is not where it listens: behind a proxy, a load balancer or a
    /// translated address.
    pub leaf_urls: BTreeMap<TenantSlug, Vec<String>>,
}

/// Why the deployment does not run.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    #[error("state folder")]
    File(#[source] FileError),
    #[error("lock {path}")]
    Lock { path: String, source: std::io::Error },
    #[error(
        "{home} is in use by process {pid}: watch it with `bulkhead status`, or run a second deployment with --home"
    )]
    InUse { home: String, pid: String },
    #[error("{0} holds a platform that was restored only in part: run `bulkhead restore` into it once more")]
    Unrestored(String),
    #[error(
        "{home} provisions servers that `bulkhead up` does not run, at {url}, and this would take its place: run one for this machine alone with --home"
    )]
    Elsewhere { home: String, url: String },
    #[error("empty {path}")]
    Fresh { path: String, source: std::io::Error },
    #[error("program {0} is missing: build it with `cargo build`, or keep it beside bulkhead")]
    Program(String),
    #[error("ports")]
    Port(#[source] PortError),
    #[error("PostgreSQL")]
    Postgres(#[source] PostgresError),
    #[error("prepare the database")]
    Database(#[source] bulkhead_store::AdminError),
    #[error("database rows")]
    Rows(#[source] ProvisioningError),
    #[error("operator store")]
    Operator(#[source] OperatorError),
    #[error("certificates")]
    Certificate(#[source] CertificateError),
    #[error("a server of the hub")]
    HubFiles(#[source] HubFilesError),
    #[error("a gatekeeper")]
    GatekeeperFiles(#[source] GatekeeperFilesError),
    #[error("provision the platform")]
    Platform(#[source] PlatformError),
    #[error("provision tenants")]
    Tenancy(#[source] Box<TenancyError>),
    #[error("site {0}")]
    Site(String, #[source] SiteError),
    #[error("{path} does not say how many servers the hub has: write {{\"servers\":1}} or {{\"servers\":3}} into it")]
    HubRecord { path: String, source: serde_json::Error },
    #[error(
        "the hub keeps {from} for now, because core has not stored all that it holds: go on without --hub, see why core \
         stores nothing (logs/core.log), and try again"
    )]
    Undrained { from: HubSize, source: LimitReached },
    #[error("process")]
    Child(#[source] ChildError),
    #[error("profile")]
    Profile(#[source] ProfileError),
    #[error("{0}")]
    NotReady(String, #[source] LimitReached),
}

impl DeploymentError {
    pub(super) fn tenancy(error: TenancyError) -> Self {
        Self::Tenancy(Box::new(error))
    }
}

/// A home that was made for servers elsewhere is not turned into one of this machine.
fn refuse_elsewhere(layout: &Layout) -> Result<(), DeploymentError> {
    let Ok(known) = PlatformSettings::read(layout) else { return Ok(()) };
    match known.elsewhere() {
        Some(url) => {
            let (home, url) = (layout.home().display().to_string(), url.to_owned());
            Err(DeploymentError::Elsewhere { home, url })
        }
        None => Ok(()),
    }
}

/// A running deployment. Dropping it kills its processes; [`Deployment::stop`] ends them in order.
pub struct Deployment {
    pub layout: Layout,
    pub platform: Platform,
    pub accounts: Accounts,
    pub system: Bus,
    pub postgres: Postgres,
    /// The servers of the hub, in the order of their numbers.
    pub hub_servers: Vec<HubServer>,
    pub gatekeepers: Vec<Gatekeeper>,
    pub desk: Tended,
    pub core: Child,
    /// The registry and poller-dispatch, with their replicas.
    pub sharers: Vec<Sharer>,
    pub leaves: Vec<(Site, Child)>,
    pub pollers: Vec<(Site, PollerName, Child)>,
    pub passwords: Passwords,
    /// Who serves `/livez`, `/readyz` and `/metrics` on 127.0.0.1: `core`, `gatekeeper-1`, `registry-1` and so on, and each poller as `<tenant>/<site>/<poller>`.
    pub health_ports: Vec<(String, u16)>,
    /// How many checks there are, over all sites: pollers of one site run the same ones, and a slot is stored once.
    pub checks: usize,
    /// What the user should know, such as ports that had to change.
    pub notes: Vec<String>,
    // Released last: nobody else may use the folder while processes still end.
    _lock: File,
}

impl Deployment {
    /// Starts everything and returns when core answers and every leaf is linked. Call it on the main thread: children
    /// are tied to the thread that starts them.
    ///
    /// # Errors
    /// [`DeploymentError`] names what did not start and why.
    pub async fn start(mut options: Options, announce: &dyn Fn(&str)) -> Result<Self, DeploymentError> {
        options.programs.check()?;
        let layout = Layout::new(options.home.clone());
        let lock = lock(&layout)?;
        let mut notes = options.tools.notes.clone();
        let leftovers = end_leftovers(&layout.run()).await.map_err(DeploymentError::Child)?;
        notes.extend(leftovers.iter().map(|pid| format!("ended process {pid}, left behind by an earlier start")));
        if options.fresh {
            empty(&layout)?;
        }
        if unfinished_restore(layout.home()).exists() {
            return Err(DeploymentError::Unrestored(layout.home().display().to_string()));
        }
        refuse_elsewhere(&layout)?;
        let ended = drop_ended(&layout, &mut options.tenants);
        notes.extend(ended.map_err(|error| DeploymentError::tenancy(TenancyError::Record(error)))?);
        for folder in [layout.run(), layout.home().join("logs"), layout.hub(), layout.core()] {
            make_folder(&folder).map_err(DeploymentError::File)?;
        }
        let mut ports = Ports::read(&layout.ports_file());
        announce("starting PostgreSQL");
        let mut starter = Starter { options: &options, layout: &layout, ports: &mut ports, announce };
        let base = starter.start_database().await?;
        let size = starter.settle_size(&base).await?;
        let backbone = Box::pin(starter.start_backbone(&base, size)).await?;
        announce("starting leaves and pollers");
        let places: Vec<HubPlace> = backbone.hub.iter().map(|server| server.place).collect();
        let (tenancy, tenants) = (&backbone.tenancy, &backbone.tenants);
        notes.extend(backbone.accounts.left.iter().cloned());
        let desk = starter.start_desk()?;
        let Base { postgres, passwords, database } = base;
        let sites = starter.write_sites(tenancy, &database, tenants, &places, postgres.port).await?;
        for tenant in tenants {
            let record = tenancy.records.get(&tenant.slug).map_err(TenancyError::Record);
            let record = record.map_err(DeploymentError::tenancy)?;
            tenancy.tell_tenant(&backbone.links, &record).await.map_err(DeploymentError::tenancy)?;
        }
        let mut deployment = Self {
            layout: layout.clone(),
            platform: backbone.tenancy.platform,
            accounts: backbone.accounts,
            system: backbone.system,
            postgres,
            hub_servers: backbone.hub,
            health_ports: health_ports(&ports, (&backbone.gatekeepers, &backbone.sharers), &sites),
            gatekeepers: backbone.gatekeepers,
            desk,
            core: backbone.core,
            sharers: backbone.sharers,
            leaves: vec![],
            pollers: vec![],
            passwords,
            checks: sites.iter().map(|made| made.checks).sum(),
            notes,
            _lock: lock,
        };
        for site in sites {
            deployment.start_site(&options, site)?;
        }
        deployment.notes.append(&mut ports.moved);
        ports.write(&layout.ports_file()).map_err(DeploymentError::Port)?;
        deployment.wait_for_leaves(announce).await?;
        if let Err(behind) = deployment.wait_until_replicas_current().await {
            // It works all the same, and goes on catching up.
            deployment.notes.push(format!("stop no other server of the hub yet: {}", Chain(&behind)));
        }
        Ok(deployment)
    }

    fn start_site(&mut self, options: &Options, made: MadeSite) -> Result<(), DeploymentError> {
        let name = format!("{}-{}", made.site.tenant, made.site.site);
        let nats_server = &options.tools.nats_server.path;
        let leaf = server_spec(&self.layout, &format!("leaf-{name}"), nats_server, &made.leaf_config);
        let leaf = Child::start(leaf).map_err(DeploymentError::Child)?;
        self.leaves.push((made.site.clone(), leaf));
        for (poller, settings) in made.pollers {
            let spec = ChildSpec {
                args: vec!["--config".to_owned(), settings.display().to_string()],
                ..child_spec(&self.layout, &format!("poller-{name}-{poller}"), &options.programs.poller)
            };
            let child = Child::start(spec).map_err(DeploymentError::Child)?;
            self.pollers.push((made.site.clone(), poller, child));
        }
        Ok(())
    }

    /// The process of one of the hub's servers, counted from 0.
    pub fn hub_child(&mut self, number: usize) -> Option<&mut Child> {
        self.hub_servers.get_mut(number).map(|server| &mut server.child)
    }

    async fn wait_for_leaves(&mut self, announce: &dyn Fn(&str)) -> Result<(), DeploymentError> {
        announce("waiting for the leaves to link up");
        // The leaves of a suspended tenant knock in vain, until it is resumed.
        let open = self.accounts.tenants.iter().filter(|(record, _)| record.stage.is_open());
        let open: Vec<&TenantSlug> = open.map(|(record, _)| &record.slug).collect();
        let expected = self.leaves.iter().filter(|(site, _)| open.contains(&&site.tenant)).count();
        let servers = self.hub_servers.len();
        let mut failure = None;
        let system = self.system.clone();
        let linked = eventually("every leaf linked to the hub", READY_LIMIT, || {
            failure = failure.take().or_else(|| self.check_running().err());
            let system = &system;
            let is_over = failure.is_some();
            async move {
                if is_over {
                    return Ok(());
                }
                let linked = linked_leaves(system, servers).await;
                if linked >= expected { Ok(()) } else { Err(format!("{linked} of {expected} leaves are linked")) }
            }
        });
        let linked = linked.await;
        if let Some(error) = failure {
            return Err(error);
        }
        linked.map_err(|source| DeploymentError::NotReady("leaves are not linked to the hub".to_owned(), source))
    }

    /// An error when a process has ended by itself.
    ///
    /// # Errors
    /// The end of that process's log.
    pub fn check_running(&mut self) -> Result<(), DeploymentError> {
        let mut hub = self.hub_servers.iter_mut().map(|server| &mut server.child);
        hub.try_for_each(Child::check_running).map_err(DeploymentError::Child)?;
        self.check_all_but_hub()
    }

    fn check_all_but_hub(&mut self) -> Result<(), DeploymentError> {
        let leaves = self.leaves.iter_mut().map(|(_, child)| child);
        let pollers = self.pollers.iter_mut().map(|(_, _, child)| child);
        // A gatekeeper that has ended is started again: it ends itself when it hangs.
        let mut all = [&mut self.postgres.child, &mut self.core].into_iter().chain(leaves).chain(pollers);
        all.try_for_each(Child::check_running).map_err(DeploymentError::Child)
    }

    /// Looks whether everything runs. A gatekeeper or a server of a hub of three that has ended is started again, because the
    /// others go on meanwhile; the answer says which and why.
    ///
    /// # Errors
    /// When another process has ended, or such a server does not come up several times in a row.
    pub fn look_after(&mut self) -> Result<Vec<String>, DeploymentError> {
        let mut notes = Vec::new();
        for gatekeeper in &mut self.gatekeepers {
            let ended = gatekeeper.mend().map_err(DeploymentError::Child)?;
            notes.extend(ended.map(|end| format!("starting it again while the other one goes on: {end}")));
        }
        notes.extend(self.desk.mend().map_err(DeploymentError::Child)?);
        for sharer in &mut self.sharers {
            notes.extend(sharer.tended.mend().map_err(DeploymentError::Child)?);
        }
        match self.hub_size() {
            HubSize::One => self.check_running()?,
            HubSize::Three => {
                notes.extend(self.mend_hub()?);
                self.check_all_but_hub()?;
            }
        }
        Ok(notes)
    }

    #[must_use]
    pub fn hub_size(&self) -> HubSize {
        if self.hub_servers.len() == 1 { HubSize::One } else { HubSize::Three }
    }

    /// The first server of the hub, which is all of a hub of one.
    ///
    /// # Panics
    /// Never: a hub has at least one server.
    pub fn hub(&mut self) -> &mut Child {
        &mut self.hub_servers.first_mut().expect("a hub has a server").child
    }

    /// Starts a server of the hub again, after ending what still runs of it. Its configuration and certificates are made
    /// anew: when its folder is gone it comes back empty, and the others fill it.
    ///
    /// # Errors
    /// When it cannot be ended, written or started.
    pub fn restart_hub_server(&mut self, number: usize) -> Result<(), DeploymentError> {
        let places: Vec<HubPlace> = self.hub_servers.iter().map(|server| server.place).collect();
        let Some(server) = self.hub_servers.iter_mut().find(|server| server.place.number == number) else {
            return Ok(());
        };
        let nats_server = server.child.spec().program.clone();
        let (authority, operator, callout) =
            (&self.platform.authority, &self.platform.operator, &self.platform.callout()?);
        let layout = &self.layout;
        HubMaker { layout, authority, operator, callout, nats_server: &nats_server, places: &places }.restart(server)
    }

    fn mend_hub(&mut self) -> Result<Vec<String>, DeploymentError> {
        let mut ended = Vec::new();
        for server in &mut self.hub_servers {
            let end = server.end_to_mend().map_err(DeploymentError::Child)?;
            ended.extend(end.map(|end| (server.place.number, end.to_string())));
        }
        let mut notes = Vec::new();
        for (number, end) in ended {
            self.restart_hub_server(number)?;
            notes.push(format!("starting it again while the others go on: {end}"));
        }
        Ok(notes)
    }

    /// Waits until every server of the hub has all that the others have. Until then none of the others may be stopped: a
    /// server that was emptied has forgotten what it voted for, and could help one that is behind to lead
    /// (docs/adr/0008-replacing-a-hub-server.md).
    ///
    /// # Errors
    /// When that takes too long; the error says which server misses what.
    pub async fn wait_until_replicas_current(&self) -> Result<Vec<ServerState>, DeploymentError> {
        let whole = wait_until_whole(&self.system, self.hub_size(), READY_LIMIT).await;
        whole.map_err(|source| DeploymentError::NotReady("a server of the hub is behind".to_owned(), source))
    }

    /// Ends everything, in the reverse order of the start, so that what is under way is stored.
    ///
    /// # Errors
    /// When a process can be neither asked nor killed.
    pub async fn stop(mut self) -> Result<(), DeploymentError> {
        self.desk.child.stop().await.map_err(DeploymentError::Child)?;
        for (_, _, poller) in &mut self.pollers {
            poller.stop().await.map_err(DeploymentError::Child)?;
        }
        for (_, leaf) in &mut self.leaves {
            leaf.stop().await.map_err(DeploymentError::Child)?;
        }
        stop_sharers(&mut self.sharers).await.map_err(DeploymentError::Child)?;
        self.core.stop().await.map_err(DeploymentError::Child)?;
        stop_gatekeepers(&mut self.gatekeepers).await.map_err(DeploymentError::Child)?;
        stop_hub(&mut self.hub_servers).await.map_err(DeploymentError::Child)?;
        self.postgres.child.stop().await.map_err(DeploymentError::Child)
    }
}

/// Leaf links that the servers of the hub have now, all together.
async fn linked_leaves(system: &Bus, servers: usize) -> usize {
    let limit = Duration::from_secs(2);
    let answers = system.request_all("$SYS.REQ.SERVER.PING.LEAFZ", Vec::new().into(), servers, limit).await;
    let count = |answer: &bytes::Bytes| {
        let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
        answer["data"]["leafs"].as_array().map_or(0, Vec::len)
    };
    answers.unwrap_or_default().iter().map(count).sum()
}

impl From<PlatformError> for DeploymentError {
    fn from(error: PlatformError) -> Self {
        Self::Platform(error)
    }
}
