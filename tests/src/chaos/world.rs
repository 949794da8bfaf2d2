//! The deployment that is broken: two tenants, a link of its own between each leaf and the hub, disks that can be filled,
//! clocks that can be set, and a ledger beside each poller.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::up::{CORE, Layout};
use bulkhead_bus::{Lane, PollerName, Role, SiteName, StreamName};
use bulkhead_runtime::BusSettings;
use bulkhead_testkit::{TcpProxy, TestDeployment, free_ports};
use nkeys::KeyPair;
use sqlx::PgPool;

use super::clock::{Clock, ClockLibrary};
use super::disk::{Disk, Disks};
use super::ledger::{CHECKS, Place, check_name};
use super::plan::Surface;
use super::shares::Shared;
use crate::shared_checks::Target;
use crate::streams::{Waiting, look_at};

pub(super) const POLLER: &str = "p1";
pub(super) const LEDGER: &str = "ledger";
/// The registry and poller-dispatch, with as many replicas each.
const SHARERS: usize = 2;
const LEAF_DISK_MIB: u32 = 64;
const HUB_DISK_MIB: u32 = 96;
const DATABASE_DISK_MIB: u32 = 768;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tenant {
    Acme,
    Xyz,
}

impl Tenant {
    pub const ALL: [Self; 2] = [Self::Acme, Self::Xyz];

    #[must_use]
    pub fn slug(self) -> &'static str {
        match self {
            Self::Acme => "acme-corp",
            Self::Xyz => "xyz-inc",
        }
    }

    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Acme => Self::Xyz,
            Self::Xyz => Self::Acme,
        }
    }

    pub(super) fn site(self) -> &'static str {
        match self {
            Self::Acme => "oslo",
            Self::Xyz => "lima",
        }
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.slug())
    }
}

/// Whose disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum DiskOf {
    Hub(usize),
    Leaf(Tenant),
    Database,
}

/// What is a tenant's own, by what it was set up with and not by the database.
#[derive(Debug, Clone)]
pub(super) struct Own {
    tenant: Tenant,
    /// Checks in the settings of the real poller.
    checks: Vec<String>,
    pub(super) interval_s: f64,
    pub(super) shared: Shared,
}

impl Own {
    pub(super) fn real_poller(&self) -> String {
        format!("{}/{POLLER}", self.tenant.site())
    }

    fn ledger(&self) -> String {
        format!("{}/{LEDGER}", self.tenant.site())
    }

    fn sharing(&self) -> impl Iterator<Item = String> {
        self.tenant.sharing().iter().map(|poller| format!("{}/{poller}", self.tenant.site()))
    }

    pub(super) fn pollers(&self) -> Vec<String> {
        self.sharing().chain([self.ledger()]).collect()
    }

    /// `<site>/<poller> <check>` of those that nobody hands over.
    pub(super) fn settled_measurements(&self) -> Vec<String> {
        self.checks.iter().map(|check| format!("{} {check}", self.real_poller())).collect()
    }

    /// The same of everything. While the deployment was started, all pollers were real and had the checks of their settings.
    pub(super) fn measurements(&self) -> Vec<String> {
        let of = |poller: String, checks: &[String]| -> Vec<String> {
            checks.iter().map(|check| format!("{poller} {check}")).collect()
        };
        let settled = self.pollers().into_iter().flat_map(|poller| of(poller, &self.checks));
        let shared = self.shared.names();
        let shared = self.sharing().flat_map(|poller| of(poller, &shared));
        let sent = (0..CHECKS).map(|number| format!("{} {}", self.ledger(), check_name(self.tenant, number)));
        settled.chain(shared).chain(sent).collect()
    }

    /// All but the ledger's.
    pub(super) fn checks_at_site(&self) -> Vec<String> {
        self.checks.iter().cloned().chain(self.shared.names()).collect()
    }

    /// What its forwarder says.
    pub(super) fn subjects(&self) -> Vec<String> {
        Lane::ALL.iter().map(|lane| format!("up.{}.fwd.{lane}", self.tenant.site())).collect()
    }

    /// All that is the same in each row of its ledger.
    pub(super) fn ledger_row(&self) -> String {
        format!(
            "{} tcp started 0 ms after its slot, reason NULL, generation 0, revision 0, island f, attested t, detail NULL",
            self.ledger()
        )
    }
}

/// Everything that faults are done to.
pub struct World {
    pub deployment: TestDeployment,
    pub witness: PgPool,
    pub(super) links: BTreeMap<Tenant, Vec<TcpProxy>>,
    pub(super) clocks: BTreeMap<Tenant, Clock>,
    // Behind the deployment: its processes end before their disks go.
    pub(super) disks: BTreeMap<DiskOf, Disk>,
    pub(super) target: Target,
    /// When a leaf's disk was empty and going to be replaced, and when the new one was there. Unix milliseconds.
    pub(super) disks_replaced: BTreeMap<Tenant, (i64, i64)>,
    hub_servers: usize,
    /// When the second lane was last in use; the books of the current state want to know.
    pub(super) ordered_from_ms: i64,
}

impl World {
    /// Starts everything; what this machine does not allow is left out and said so.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(hub_servers: usize, on: Disks) -> anyhow::Result<Self> {
        let home = TestDeployment::home_folder()?;
        let mut ports = BTreeMap::new();
        let mut links: BTreeMap<Tenant, Vec<TcpProxy>> = BTreeMap::new();
        for server in 0..hub_servers {
            // Of the hub's leaf listener, so that links can lead there before the hub runs.
            let [port] = free_ports()?;
            ports.insert(if server == 0 { "hub-leaf".to_owned() } else { format!("hub-{}-leaf", server + 1) }, port);
            for tenant in Tenant::ALL {
                let link = TcpProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
                links.entry(tenant).or_default().push(link);
            }
        }
        std::fs::write(home.path().join("ports.json"), serde_json::to_vec(&ports)?).context("write ports")?;
        let disks = match on {
            Disks::Small => mount_disks(home.path(), hub_servers)?,
            Disks::Shared => BTreeMap::new(),
        };
        if disks.is_empty() {
            eprintln!(
                "SKIPPED: full disks: small file systems need root and a mount namespace of their own (unshare --mount)"
            );
        }
        let urls = |tenant: &Tenant| links[tenant].iter().map(|link| format!("tls://{}", link.addr)).collect();
        let leaf_urls = Tenant::ALL.iter().map(|tenant| Ok((tenant.slug().parse()?, urls(tenant))));
        let leaf_urls = leaf_urls.collect::<anyhow::Result<_>>()?;
        let lines = ["acme-corp enterprise oslo/p1 oslo/p2 oslo/ledger", "xyz-inc pro lima/p1 lima/ledger"];
        let deployment = TestDeployment::start_in(home, &lines, |options| {
            options.leaf_urls = leaf_urls;
            options.hub_servers = Some(if hub_servers == 1 { HubSize::One } else { HubSize::Three });
        });
        let deployment = deployment.await?;
        let witness = deployment.witness().await?;
        let mut world = Self {
            deployment,
            witness,
            links,
            clocks: BTreeMap::new(),
            disks,
            target: Target::open().await?,
            disks_replaced: BTreeMap::new(),
            hub_servers,
            ordered_from_ms: 0,
        };
        // The ledgers take the place of these.
        world.deployment.up.pollers.retain(|(_, poller, _)| poller.as_str() != LEDGER);
        world.give_clocks()?;
        world.let_partner_only_share()?;
        world.share_checks().await?;
        for tenant in Tenant::ALL {
            world.wait_for_results(tenant).await?;
        }
        Ok(world)
    }

    fn give_clocks(&mut self) -> anyhow::Result<()> {
        let folder = self.deployment.home().join("clocks");
        std::fs::create_dir_all(&folder).context("make a folder for clocks")?;
        let Some(library) = ClockLibrary::build(&folder)? else {
            eprintln!("SKIPPED: clock steps: there is no C compiler");
            return Ok(());
        };
        for tenant in Tenant::ALL {
            let child = self.poller(tenant)?;
            child.kill()?;
            let (started, clock) = library.start(child.spec(), folder.join(tenant.slug()))?;
            *child = started;
            self.clocks.insert(tenant, clock);
        }
        Ok(())
    }

    #[must_use]
    pub fn surface(&self) -> Surface {
        let (has_disks, has_clock) = (!self.disks.is_empty(), !self.clocks.is_empty());
        let sharers = self.deployment.up.sharers.len() / SHARERS;
        Surface { hub_servers: self.hub_servers, sharers, has_disks, has_clock }
    }

    pub(super) fn poller(&mut self, tenant: Tenant) -> anyhow::Result<&mut bulkhead_accounts::up::Child> {
        let mut pollers = self.deployment.up.pollers.iter_mut();
        let found =
            pollers.find(|(site, poller, _)| site.tenant.as_str() == tenant.slug() && poller.as_str() == POLLER);
        Ok(&mut found.context("the tenant has a poller")?.2)
    }

    pub(super) fn leaf(&mut self, tenant: Tenant) -> anyhow::Result<&mut bulkhead_accounts::up::Child> {
        let found = self.deployment.up.leaves.iter_mut().find(|(site, _)| site.tenant.as_str() == tenant.slug());
        Ok(&mut found.context("the tenant has a leaf")?.1)
    }

    fn site_folder(&self, tenant: Tenant) -> anyhow::Result<PathBuf> {
        Ok(self.deployment.up.layout.site(&tenant.slug().parse()?, &tenant.site().parse()?))
    }

    pub(super) fn leaf_store(&self, tenant: Tenant) -> anyhow::Result<PathBuf> {
        Ok(self.site_folder(tenant)?.join("js"))
    }

    pub(super) fn settings_file(&self, tenant: Tenant, poller: &str) -> anyhow::Result<PathBuf> {
        Ok(self.site_folder(tenant)?.join("pollers").join(poller).join("poller.toml"))
    }

    /// A part of a poller's settings file.
    fn setting(&self, tenant: Tenant, poller: &str, path: &[&str]) -> anyhow::Result<toml::Value> {
        let file = self.settings_file(tenant, poller)?;
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let mut value: toml::Value = toml::from_str(&text).context("read poller settings")?;
        for key in path {
            value = value.get(*key).cloned().with_context(|| format!("{key} in {}", file.display()))?;
        }
        Ok(value)
    }

    /// How a poller's settings say that the leaf is reached: `leaf` for itself, `forwarder.leaf` for the forwarder.
    fn bus_of(&self, tenant: Tenant, poller: &str, path: &[&str]) -> anyhow::Result<BusSettings> {
        self.setting(tenant, poller, path)?.try_into().context("read bus settings")
    }

    pub(super) fn own(&self, tenant: Tenant) -> anyhow::Result<Own> {
        let settings = self.setting(tenant, POLLER, &["checks"])?;
        let settings = settings.as_array().context("checks are a list")?;
        let names = settings.iter().map(|check| Some(check.get("name")?.as_str()?.to_owned()));
        let checks = names.collect::<Option<Vec<_>>>().context("each check has a name")?;
        let intervals: BTreeSet<_> =
            settings.iter().filter_map(|check| check.get("interval_s")?.as_integer()).collect();
        let [interval_s] = *intervals.iter().collect::<Vec<_>>() else { bail!("all checks have one interval") };
        Ok(Own { tenant, checks, interval_s: *interval_s as f64, shared: tenant.shared() })
    }

    pub(super) fn ledger_place(&self, tenant: Tenant) -> anyhow::Result<Place> {
        let seed = self.site_folder(tenant)?.join("pollers").join(LEDGER).join("batch.nk");
        let seed = std::fs::read_to_string(&seed).context("read the ledger's batch key")?;
        let (site, poller): (SiteName, PollerName) = (tenant.site().parse()?, LEDGER.parse()?);
        let key = KeyPair::from_seed(seed.trim()).context("read the ledger's batch key")?;
        let leaf = self.bus_of(tenant, LEDGER, &["leaf"])?;
        let forwarder = self.bus_of(tenant, POLLER, &["forwarder", "leaf"])?;
        Ok(Place { tenant, site, poller, leaf, forwarder, key })
    }

    /// What waits at the hub.
    ///
    /// # Errors
    /// When no hub server answers.
    pub async fn hub_waiting(&self) -> anyhow::Result<Vec<Waiting>> {
        let folder = self.deployment.up.layout.provisioning();
        let platform = &self.deployment.up.platform;
        let settings = platform.issue_service(CORE, Role::Provisioner, "provisioning", &folder)?;
        look_at(&settings, &StreamName::HUB).await
    }

    /// What waits at a tenant's leaf.
    ///
    /// # Errors
    /// When the leaf does not answer.
    pub async fn leaf_waiting(&self, tenant: Tenant) -> anyhow::Result<Vec<Waiting>> {
        look_at(&self.bus_of(tenant, POLLER, &["forwarder", "leaf"])?, &StreamName::EDGE).await
    }
}

fn mount_disks(home: &std::path::Path, hub_servers: usize) -> anyhow::Result<BTreeMap<DiskOf, Disk>> {
    let mut disks = BTreeMap::new();
    for server in 0..hub_servers {
        let folder = Layout::new(home.to_owned()).hub_server(server + 1);
        disks.insert(DiskOf::Hub(server), Disk::mount(&folder.join("js"), HUB_DISK_MIB)?);
    }
    for tenant in Tenant::ALL {
        let folder = home.join("sites").join(tenant.slug()).join(tenant.site()).join("js");
        disks.insert(DiskOf::Leaf(tenant), Disk::mount(&folder, LEAF_DISK_MIB)?);
    }
    disks.insert(DiskOf::Database, Disk::mount(&home.join("postgres"), DATABASE_DISK_MIB)?);
    Ok(disks)
}
