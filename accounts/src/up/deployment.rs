//! Starts the servers and services of one deployment in order, waits for states, and ends them in reverse.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_bus::payload::{Query, StatusRow};
use bulkhead_bus::{CoreVerb, PollerName, SiteName, TenantSlug};
use bulkhead_runtime::{Bus, LimitReached, eventually};
use bulkhead_store::ProvisioningError;
use bulkhead_store::admin::Passwords;

use super::child::{Child, ChildError, ChildSpec, end_leftovers};
use super::layout::Layout;
use super::platform::{Accounts, Platform, PlatformError, TenantPlan};
use super::ports::{PortError, Ports};
use super::postgres::{Postgres, PostgresError, database_folder, open_to_stand_in};
use super::site::{Site, SiteError};
use super::start::{MadeSite, Starter, child_spec, health_ports};
use super::target::Target;
use super::tools::Tools;
use crate::certificates::CertificateError;
use crate::client::{ClientError, query};
use crate::files::{FileError, make_folder};
use crate::nats_config::RenderError;
use crate::operator::OperatorError;
use crate::plan::PlanName;
use crate::profile::{Profile, ProfileError};

const READY_LIMIT: Duration = Duration::from_secs(60);

/// Where the services' programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    pub core: PathBuf,
    pub poller: PathBuf,
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
    #[error("hub configuration")]
    Render(#[source] RenderError),
    #[error("provision the platform")]
    Platform(#[source] PlatformError),
    #[error("site {0}")]
    Site(String, #[source] SiteError),
    #[error("process")]
    Child(#[source] ChildError),
    #[error("profile")]
    Profile(#[source] ProfileError),
    #[error("{0}")]
    NotReady(String, #[source] LimitReached),
}

/// A running deployment. Dropping it kills its processes; [`Deployment::stop`] ends them in order.
pub struct Deployment {
    pub layout: Layout,
    pub platform: Platform,
    pub accounts: Accounts,
    pub system: Bus,
    pub postgres: Postgres,
    pub hub: Child,
    pub core: Child,
    pub leaves: Vec<(Site, Child)>,
    pub pollers: Vec<(Site, PollerName, Child)>,
    pub hub_port: u16,
    pub hub_leaf_port: u16,
    pub passwords: Passwords,
    /// Who serves `/livez`, `/readyz` and `/metrics` on 127.0.0.1: `core`, and each poller as `<tenant>/<site>/<poller>`.
    pub health_ports: Vec<(String, u16)>,
    /// How many checks there are, over all sites: pollers of one site run the same ones, and a slot is stored once.
    pub checks: usize,
    /// What the user should know, such as ports that had to change.
    pub notes: Vec<String>,
    // Released last: nobody else may use the folder while processes still end.
    _lock: File,
}

fn lock(layout: &Layout) -> Result<File, DeploymentError> {
    let is_new = !layout.home().exists();
    make_folder(layout.home()).map_err(DeploymentError::File)?;
    if is_new {
        open_to_stand_in(layout.home());
    }
    let path = layout.lock_file();
    let failed = |source| DeploymentError::Lock { path: path.display().to_string(), source };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(failed)?;
            let home = layout.home().display().to_string();
            return Err(DeploymentError::InUse { home, pid: pid.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// Removes what earlier starts have made, but for the lock that we hold and the tools that were fetched.
fn empty(layout: &Layout) -> Result<(), DeploymentError> {
    let failed = |path: &std::path::Path| {
        let path = path.display().to_string();
        move |source| DeploymentError::Fresh { path: path.clone(), source }
    };
    // Only what a deployment makes, by name: the folder may be one that holds other things.
    for path in layout.made() {
        let removed = match std::fs::symlink_metadata(&path) {
            Err(_) => Ok(()),
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
        };
        removed.map_err(failed(&path))?;
    }
    let database = database_folder(layout.home());
    if database.exists() {
        std::fs::remove_dir_all(&database).map_err(failed(&database))?;
    }
    Ok(())
}

impl Deployment {
    /// Starts everything and returns when core answers and every leaf is linked. Call it on the main thread: children
    /// are tied to the thread that starts them.
    ///
    /// # Errors
    /// [`DeploymentError`] names what did not start and why.
    pub async fn start(options: Options, announce: &dyn Fn(&str)) -> Result<Self, DeploymentError> {
        for program in [&options.programs.core, &options.programs.poller] {
            if !program.is_file() {
                return Err(DeploymentError::Program(program.display().to_string()));
            }
        }
        let layout = Layout::new(options.home.clone());
        let lock = lock(&layout)?;
        let mut notes = options.tools.notes.clone();
        let leftovers = end_leftovers(&layout.run()).await.map_err(DeploymentError::Child)?;
        notes.extend(leftovers.iter().map(|pid| format!("ended process {pid}, left behind by an earlier start")));
        if options.fresh {
            empty(&layout)?;
        }
        for folder in [layout.run(), layout.home().join("logs"), layout.hub(), layout.core()] {
            make_folder(&folder).map_err(DeploymentError::File)?;
        }
        let mut ports = Ports::read(&layout.ports_file());
        announce("starting PostgreSQL");
        let mut starter = Starter { options: &options, layout: &layout, ports: &mut ports, announce };
        let (postgres, passwords, database) = starter.start_database().await?;
        announce("making operator, accounts and certificates");
        let (platform, hub_port, hub_leaf_port) = starter.make_platform()?;
        let plans: Vec<TenantPlan> =
            options.tenants.iter().map(|tenant| TenantPlan { slug: tenant.slug.clone(), plan: tenant.plan }).collect();
        let accounts = platform.render_accounts(&plans).map_err(DeploymentError::Platform)?;
        platform.write_profiles(&plans).map_err(DeploymentError::Platform)?;
        announce("starting the hub");
        let hub = starter.start_hub(&platform, hub_port, hub_leaf_port)?;
        let (hub, system) = with_child(hub, platform.connect_system()).await?;
        announce("pushing accounts until they are in force");
        platform.push_accounts(&system, &accounts, 1).await.map_err(DeploymentError::Platform)?;
        platform.ensure_streams(1).await.map_err(DeploymentError::Platform)?;
        let tenants = platform.write_rows(&database, &accounts).await.map_err(DeploymentError::Platform)?;
        announce("starting core");
        let core = starter.start_core(&platform, &postgres, &passwords)?;
        let (core, ()) = with_child(core, core_answers(&layout)).await?;
        announce("starting leaves and pollers");
        let sites = starter.write_sites(&platform, &database, &tenants, hub_leaf_port, postgres.port, hub_port).await?;
        let mut deployment = Self {
            layout: layout.clone(),
            platform,
            accounts,
            system,
            postgres,
            hub,
            core,
            leaves: vec![],
            pollers: vec![],
            hub_port,
            hub_leaf_port,
            passwords,
            health_ports: health_ports(&ports, &sites),
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
        Ok(deployment)
    }

    fn start_site(&mut self, options: &Options, made: MadeSite) -> Result<(), DeploymentError> {
        let name = format!("{}-{}", made.site.tenant, made.site.site);
        let leaf = ChildSpec {
            args: vec!["-c".to_owned(), made.leaf_config.display().to_string()],
            ..child_spec(&self.layout, &format!("leaf-{name}"), &options.tools.nats_server.path)
        };
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

    /// One of the hub's servers.
    pub fn hub_child(&mut self, number: usize) -> Option<&mut Child> {
        (number == 0).then_some(&mut self.hub)
    }

    async fn wait_for_leaves(&mut self, announce: &dyn Fn(&str)) -> Result<(), DeploymentError> {
        announce("waiting for the leaves to link up");
        let expected = self.leaves.len();
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
                let linked = linked_leaves(system).await;
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
        let leaves = self.leaves.iter_mut().map(|(_, child)| child);
        let pollers = self.pollers.iter_mut().map(|(_, _, child)| child);
        let own = [&mut self.postgres.child, &mut self.hub, &mut self.core];
        own.into_iter().chain(leaves).chain(pollers).try_for_each(Child::check_running).map_err(DeploymentError::Child)
    }

    /// Ends everything, in the reverse order of the start, so that what is under way is stored.
    ///
    /// # Errors
    /// When a process can be neither asked nor killed.
    pub async fn stop(mut self) -> Result<(), DeploymentError> {
        for (_, _, poller) in &mut self.pollers {
            poller.stop().await.map_err(DeploymentError::Child)?;
        }
        for (_, leaf) in &mut self.leaves {
            leaf.stop().await.map_err(DeploymentError::Child)?;
        }
        self.core.stop().await.map_err(DeploymentError::Child)?;
        self.hub.stop().await.map_err(DeploymentError::Child)?;
        self.postgres.child.stop().await.map_err(DeploymentError::Child)
    }
}

/// Leaf links that the hub has now.
async fn linked_leaves(system: &Bus) -> usize {
    let answers = system.request_all("$SYS.REQ.SERVER.PING.LEAFZ", Vec::new().into(), 1, Duration::from_secs(2)).await;
    let count = |answer: &bytes::Bytes| {
        let answer: serde_json::Value = serde_json::from_slice(answer).unwrap_or_default();
        answer["data"]["leafs"].as_array().map_or(0, Vec::len)
    };
    answers.unwrap_or_default().iter().map(count).sum()
}

/// Waits for `ready` while `child` runs; its early end is the better error.
async fn with_child<T, E: Into<DeploymentError>>(
    mut child: Child,
    ready: impl Future<Output = Result<T, E>>,
) -> Result<(Child, T), DeploymentError> {
    let mut ready = std::pin::pin!(ready);
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            done = &mut ready => return done.map(|value| (child, value)).map_err(Into::into),
            _ = looks.tick() => child.check_running().map_err(DeploymentError::Child)?,
        }
    }
}

impl From<PlatformError> for DeploymentError {
    fn from(error: PlatformError) -> Self {
        Self::Platform(error)
    }
}

/// Asks core over the bus, as a person of the platform would.
async fn core_answers(layout: &Layout) -> Result<(), DeploymentError> {
    let profile = Profile::read(&layout.profile("ops")).map_err(DeploymentError::Profile)?;
    let answered = eventually("an answer of core", READY_LIMIT, || async {
        let bus = Bus::connect(&profile.bus_settings(), "bulkhead up").await.map_err(|error| error.to_string())?;
        let reply: Result<Vec<StatusRow>, ClientError> =
            query(&bus, &profile.user, CoreVerb::ShowStatus, &Query::default()).await;
        reply.map(|_| ()).map_err(|error| error.to_string())
    });
    answered.await.map_err(|source| DeploymentError::NotReady("core is not ready".to_owned(), source))
}
