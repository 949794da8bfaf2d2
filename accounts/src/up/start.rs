//! The steps of a start: database, platform, hub, core, sites. Each makes what is missing and starts what it made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_bus::{PollerName, Role, TenantState};
use bulkhead_store::Provisioning;
use bulkhead_store::admin::{self, Passwords};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::backbone::Base;
use super::child::{AskBy, Child, ChildSpec};
use super::deployment::{DeploymentError, Options};
use super::desk::DESK_PORT;
use super::gatekeepers::Gatekeeper;
use super::hub::{HubMaker, HubPlace, HubServer};
use super::layout::Layout;
use super::platform::{CORE, Platform};
use super::poller_settings::{BusFile, PollerPorts, PollerTold, TlsFile, write_settings};
use super::ports::Ports;
use super::postgres::Postgres;
use super::sharers::Sharer;
use super::site::{EndKeys, LeafSettings, Site, SiteMaker, SitePlace, order_for, settle_batch_key};
use super::target::{CheckSetting, Target, checks};
use crate::certificates::CertificateFiles;
use crate::files::{make_folder, read_secret, write_secret};
use crate::hub_size::HubSize;
use crate::tenancy::{PlatformSettings, Tenancy, TenancyError, intake_name};

pub(super) const DATABASE: &str = "bulkhead";
/// The name of the port where core is asked about its health.
const CORE_HEALTH: &str = "core-health";

#[derive(Serialize)]
struct CoreFile {
    log_format: &'static str,
    log_filter: &'static str,
    health_listen: String,
    database_url_file: PathBuf,
    stream_bus: BusFile,
    rpc_bus: BusFile,
    live_buses_dir: PathBuf,
}

/// A password that is made once and kept.
fn password(layout: &Layout, role: &str) -> Result<String, DeploymentError> {
    let path = layout.secrets().join(format!("postgres-{role}.password"));
    if path.exists() {
        return read_secret(&path).map_err(DeploymentError::File);
    }
    let password = Uuid::new_v4().simple().to_string();
    write_secret(&path, password.as_bytes()).map_err(DeploymentError::File)?;
    Ok(password)
}

/// Of every role that logs in.
pub(super) fn passwords(layout: &Layout) -> Result<Passwords, DeploymentError> {
    Ok(Passwords {
        provision: password(layout, "provision")?,
        core: password(layout, "core")?,
        registry: password(layout, "registry")?,
        dispatch: password(layout, "dispatch")?,
    })
}

/// The settings that services and bus clients share, as a settings file spells them.
pub(super) fn bus_file(settings: bulkhead_runtime::BusSettings) -> BusFile {
    let files = CertificateFiles { cert_file: settings.tls.cert_file, key_file: settings.tls.key_file };
    BusFile {
        urls: settings.urls,
        inbox_prefix: settings.inbox_prefix,
        creds_file: settings.creds_file,
        tls: TlsFile::new(settings.tls.ca_file, files),
    }
}

pub(super) fn child_spec(layout: &Layout, name: &str, program: &Path) -> ChildSpec {
    ChildSpec {
        name: name.to_owned(),
        program: program.to_owned(),
        args: vec![],
        folder: layout.home().to_owned(),
        log_file: layout.log(name),
        pid_file: layout.pid(name),
        run_as: None,
        ask_by: AskBy::Terminate,
    }
}

/// The name of the port where a poller is asked about its health.
fn poller_health(site: &Site, poller: &PollerName) -> String {
    format!("health-{}/{}/{poller}", site.tenant, site.site)
}

/// Who can be asked about its health, and on which port: core, the gatekeepers, the registry and poller-dispatch, then each poller as
/// `<tenant>/<site>/<poller>`.
pub(super) fn health_ports(
    ports: &Ports,
    (gatekeepers, sharers): (&[Gatekeeper], &[Sharer]),
    sites: &[MadeSite],
) -> Vec<(String, u16)> {
    let core = ports.chosen(CORE_HEALTH).map(|port| ("core".to_owned(), port));
    let poller = |site: &Site, poller: &PollerName| {
        let port = ports.chosen(&poller_health(site, poller))?;
        Some((format!("{}/{}/{poller}", site.tenant, site.site), port))
    };
    let pollers = sites.iter().flat_map(|made| made.pollers.iter().filter_map(|(name, _)| poller(&made.site, name)));
    let gatekeepers = gatekeepers.iter().map(|one| (one.name.clone(), one.health_port));
    let sharers = sharers.iter().map(|one| (one.name.clone(), one.health_port));
    core.into_iter().chain(gatekeepers).chain(sharers).chain(pollers).collect()
}

/// A nats-server with its configuration.
pub(super) fn server_spec(layout: &Layout, name: &str, nats_server: &Path, config: &Path) -> ChildSpec {
    ChildSpec { args: vec!["-c".to_owned(), config.display().to_string()], ..child_spec(layout, name, nats_server) }
}

/// A site whose files are written.
pub(super) struct MadeSite {
    pub(super) site: Site,
    pub(super) leaf_config: PathBuf,
    pub(super) pollers: Vec<(PollerName, PathBuf)>,
    pub(super) checks: usize,
}

/// What the steps of a start share.
pub(super) struct Starter<'a> {
    pub(super) options: &'a Options,
    pub(super) layout: &'a Layout,
    pub(super) ports: &'a mut Ports,
    pub(super) announce: &'a dyn Fn(&str),
}

impl Starter<'_> {
    pub(super) async fn start_database(&mut self) -> Result<Base, DeploymentError> {
        let port = self.ports.choose("postgres").map_err(DeploymentError::Port)?;
        let postgres = Postgres::start(self.layout.home(), &self.options.tools, port).await;
        let postgres = postgres.map_err(DeploymentError::Postgres)?;
        let passwords = passwords(self.layout)?;
        (self.announce)("preparing the database");
        admin::prepare_database(&postgres.superuser_url(), &passwords).await.map_err(DeploymentError::Database)?;
        let url = postgres.url("bulkhead_provision", &passwords.provision, DATABASE);
        bulkhead_store::migrate(&url).await.map_err(DeploymentError::Database)?;
        // For the commands that run beside this one.
        write_secret(&self.layout.database_url_file(), url.as_bytes()).map_err(DeploymentError::File)?;
        let database = Provisioning::connect(&url).await.map_err(DeploymentError::Rows)?;
        Ok(Base { postgres, passwords, database })
    }

    /// Where the servers of the hub listen: where they did, unless somebody else has taken a port.
    pub(super) fn choose_places(&mut self, hub: HubSize) -> Result<Vec<HubPlace>, DeploymentError> {
        let mut places = Vec::new();
        for number in hub.numbers() {
            let process = Layout::hub_process(number);
            let mut choose =
                |what: &str| self.ports.choose(&format!("{process}-{what}")).map_err(DeploymentError::Port);
            places.push(HubPlace {
                number,
                client_port: choose("client")?,
                leaf_port: choose("leaf")?,
                route_port: match hub {
                    HubSize::One => None,
                    HubSize::Three => Some(choose("route")?),
                },
            });
        }
        Ok(places)
    }

    pub(super) fn make_platform(&mut self, places: &[HubPlace], hub: HubSize) -> Result<Tenancy, DeploymentError> {
        let domain = PlatformSettings::trust_domain(self.layout).map_err(TenancyError::Settings);
        let desk_port = self.ports.choose(DESK_PORT).map_err(DeploymentError::Port)?;
        let settings = PlatformSettings {
            trust_domain: domain.map_err(DeploymentError::tenancy)?.to_string(),
            hub_servers: hub,
            hub_urls: places.iter().map(HubPlace::client_url).collect(),
            leaf_urls: places.iter().map(HubPlace::leaf_url).collect(),
            enrolment_urls: vec![format!("https://127.0.0.1:{desk_port}")],
            database_url_file: Some(self.layout.database_url_file()),
        };
        Tenancy::found(self.layout.clone(), settings, OffsetDateTime::now_utc()).map_err(DeploymentError::tenancy)
    }

    pub(super) fn start_hub(
        &self,
        platform: &Platform,
        places: &[HubPlace],
    ) -> Result<Vec<HubServer>, DeploymentError> {
        let callout = platform.callout()?;
        let maker = HubMaker {
            layout: self.layout,
            authority: &platform.authority,
            operator: &platform.operator,
            callout: &callout,
            nats_server: &self.options.tools.nats_server.path,
            places,
        };
        places.iter().map(|&place| maker.start(place)).collect()
    }

    pub(super) fn start_core(
        &mut self,
        platform: &Platform,
        postgres: &Postgres,
        passwords: &Passwords,
        shards: &[u32],
    ) -> Result<Child, DeploymentError> {
        let folder = self.layout.core();
        let health_port = self.ports.choose(CORE_HEALTH).map_err(DeploymentError::Port)?;
        let url_file = self.layout.secrets().join("postgres-core.url");
        let url = postgres.url("bulkhead_core", &passwords.core, DATABASE);
        write_secret(&url_file, url.as_bytes()).map_err(DeploymentError::File)?;
        let service = |account, role| platform.issue_service(account, role, "core", &folder).map(bus_file);
        let settings = CoreFile {
            log_format: "text",
            log_filter: "info",
            health_listen: format!("127.0.0.1:{health_port}"),
            database_url_file: url_file,
            stream_bus: service(CORE, Role::CoreStream)?,
            rpc_bus: service(CORE, Role::CoreRpc)?,
            live_buses_dir: self.layout.live_buses(),
        };
        let failed = |error| DeploymentError::Site("core".to_owned(), error);
        make_folder(&self.layout.live_buses()).map_err(DeploymentError::File)?;
        for &number in shards {
            platform.write_live_bus(&intake_name(number))?;
        }
        let path = folder.join("core.toml");
        write_settings(&path, &settings).map_err(failed)?;
        let spec = ChildSpec {
            args: vec!["--config".to_owned(), path.display().to_string()],
            ..child_spec(self.layout, "core", &self.options.programs.core)
        };
        Child::start(spec).map_err(DeploymentError::Child)
    }

    pub(super) async fn write_sites(
        &mut self,
        tenancy: &Tenancy,
        database: &Provisioning,
        tenants: &[bulkhead_bus::Tenant],
        places: &[HubPlace],
        postgres_port: u16,
    ) -> Result<Vec<MadeSite>, DeploymentError> {
        let platform = &tenancy.platform;
        let maker = SiteMaker { authority: &platform.authority, now: platform.now, keys: EndKeys::Made };
        let hub_leaf_urls: Vec<String> = places.iter().map(HubPlace::leaf_url).collect();
        let health_port = self.ports.chosen(CORE_HEALTH);
        let watched = checks(default_checks(places, postgres_port, health_port), &self.options.targets);
        // Each start issues anew what runs here.
        let told = PollerTold { checks: &watched, renewal_urls: &[], proxy: None };
        let mut made = Vec::new();
        for options in &self.options.tenants {
            let Some(tenant) = tenants.iter().find(|tenant| tenant.slug == options.slug) else { continue };
            for (site, pollers) in &options.sites {
                let site = Site { tenant: tenant.slug.clone(), site: site.clone(), pollers: pollers.clone() };
                let name = format!("{}/{}", site.tenant, site.site);
                let failed = |error| DeploymentError::Site(name.clone(), error);
                let port = self.ports.choose(&format!("leaf-{name}")).map_err(DeploymentError::Port)?;
                database.put_site(tenant, &site.site).await.map_err(DeploymentError::Rows)?;
                let known = self.options.leaf_urls.get(&tenant.slug).unwrap_or(&hub_leaf_urls);
                let place = SitePlace::in_home(self.layout, &platform.authority, &site);
                let settings = LeafSettings { port, hub_urls: &order_for(made.len(), known), proxy: None };
                let leaf = maker.write_leaf(&site, &place, &settings).map_err(failed)?;
                let remembered = tenancy.remember_leaf(&tenant.slug, &site.site, leaf.issued);
                remembered.map_err(DeploymentError::tenancy)?;
                let mut written = Vec::new();
                for poller in pollers {
                    let health = self.ports.choose(&poller_health(&site, poller)).map_err(DeploymentError::Port)?;
                    let ports = PollerPorts { leaf: port, health };
                    settle_batch_key(self.layout, &site, poller).map_err(failed)?;
                    let (path, key) = maker.write_poller((&site, &place), poller, ports, &told).map_err(failed)?;
                    let put = database.put_poller(tenant, &site.site, poller, &key).await;
                    put.map_err(DeploymentError::Rows)?;
                    tenancy
                        .remember_poller(&tenant.slug, (&site.site, poller), key.as_str())
                        .map_err(DeploymentError::tenancy)?;
                    written.push((poller.clone(), path));
                }
                made.push(MadeSite {
                    site,
                    leaf_config: leaf.config,
                    pollers: written,
                    checks: if tenant.state == TenantState::Active { watched.len() } else { 0 },
                });
            }
        }
        Ok(made)
    }
}

/// The real things that every deployment has: hub, database, resolver, core's health page, this machine.
fn default_checks(places: &[HubPlace], postgres_port: u16, health_port: Option<u16>) -> Vec<CheckSetting> {
    let own = |name: &str, target: Target| name.parse().ok().map(|name| target.check(name));
    let server = |place: &HubPlace| {
        own(&Layout::hub_process(place.number), Target::Tcp { address: format!("127.0.0.1:{}", place.client_port) })
    };
    let mut all: Vec<Option<CheckSetting>> = places.iter().map(server).collect();
    all.extend([
        own("database", Target::Tcp { address: format!("127.0.0.1:{postgres_port}") }),
        own("this-machine", Target::Icmp { host: "127.0.0.1".to_owned() }),
    ]);
    // A resolver that follows the DNS knows the root's name servers; one that filters may deny them, and then says so.
    let root = own("resolver", Target::Dns { name: ".".to_owned() });
    all.push(root.map(|check| CheckSetting { record: Some("NS"), ..check }));
    all.extend(
        health_port.map(|port| own("core-ready", Target::Http { url: format!("http://127.0.0.1:{port}/readyz") })),
    );
    for (name, port) in [("web-server", 80_u16), ("web-server-8080", 8080)] {
        let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
        if std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
            all.push(own(name, Target::Http { url: format!("http://127.0.0.1:{port}/") }));
        }
    }
    all.into_iter().flatten().collect()
}
