//! Where everything of one deployment is: one folder, the same paths at every start.

use std::path::{Path, PathBuf};

use bulkhead_bus::{PollerName, SiteName, TenantSlug};

/// The folder of a deployment, `.bulkhead` by default.
#[derive(Debug, Clone)]
pub struct Layout {
    home: PathBuf,
}

impl Layout {
    #[must_use]
    pub fn new(home: PathBuf) -> Self {
        Self { home }
    }

    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.home.join("lock")
    }

    /// Everything that a deployment makes in its folder and that a fresh start removes.
    #[must_use]
    pub fn made(&self) -> Vec<PathBuf> {
        let names = [
            "core",
            "enrolment-desk",
            "enrolments",
            "evidence",
            "gate",
            "gatekeeper-1",
            "gatekeeper-2",
            "gatekeeper-3",
            "hub",
            "hub-2",
            "hub-3",
            "hub.json",
            "intake",
            "journal",
            "logs",
            "nsc",
            "ops.json",
            "pki",
            "plans",
            "platform.toml",
            "poller-dispatch-1",
            "poller-dispatch-2",
            "ports.json",
            "postgres",
            "profiles",
            "provisioning",
            "pushed",
            "registry-1",
            "registry-2",
            "restore.unfinished",
            "run",
            "secrets",
            "sites",
            "sites-issued",
            "tenants",
        ];
        names.iter().map(|name| self.home.join(name)).collect()
    }

    /// Where the hub and the database are.
    #[must_use]
    pub fn platform_file(&self) -> PathBuf {
        self.home.join("platform.toml")
    }

    /// What the gatekeepers were told of each account.
    #[must_use]
    pub fn gate(&self) -> PathBuf {
        self.home.join("gate")
    }

    /// The folder of a gatekeeper, by its name, which it has in ports, logs and AUTH as well.
    #[must_use]
    pub fn gatekeeper(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// What tenants there should be, one file each.
    #[must_use]
    pub fn tenants(&self) -> PathBuf {
        self.home.join("tenants")
    }

    /// Whose live stream each INTAKE account imports, and whose is waiting to be.
    #[must_use]
    pub fn intake(&self) -> PathBuf {
        self.home.join("intake")
    }

    /// What was destroyed, as the operator has signed it.
    #[must_use]
    pub fn evidence(&self) -> PathBuf {
        self.home.join("evidence")
    }

    /// People of the platform.
    #[must_use]
    pub fn ops_file(&self) -> PathBuf {
        self.home.join("ops.json")
    }

    /// Which token of each account was last put in force.
    #[must_use]
    pub fn pushed(&self) -> PathBuf {
        self.home.join("pushed")
    }

    /// What was begun, and every act that was done.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.home.join("journal")
    }

    /// Plans that the operator has changed.
    #[must_use]
    pub fn plans(&self) -> PathBuf {
        self.home.join("plans")
    }

    #[must_use]
    pub fn ports_file(&self) -> PathBuf {
        self.home.join("ports.json")
    }

    #[must_use]
    pub fn operator(&self) -> PathBuf {
        self.home.join("nsc")
    }

    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.home.join("pki")
    }

    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.home.join("secrets")
    }

    /// The key that signs enrolment tokens.
    #[must_use]
    pub fn enrolment_key(&self) -> PathBuf {
        self.secrets().join("enrolment.key")
    }

    /// What became of enrolment tokens.
    #[must_use]
    pub fn enrolments(&self) -> PathBuf {
        self.home.join("enrolments")
    }

    /// The enrolment desk's own certificate.
    #[must_use]
    pub fn enrolment_desk(&self) -> PathBuf {
        self.home.join("enrolment-desk")
    }

    /// The folder of the hub's first server: the same in a hub of one and of three.
    #[must_use]
    pub fn hub(&self) -> PathBuf {
        self.hub_server(1)
    }

    /// The folder of a server of the hub, by its number from 1.
    #[must_use]
    pub fn hub_server(&self, number: usize) -> PathBuf {
        self.home.join(Self::hub_process(number))
    }

    /// What a server of the hub is called in paths, ports and logs: `hub`, `hub-2`, `hub-3`.
    #[must_use]
    pub fn hub_process(number: usize) -> String {
        if number == 1 { "hub".to_owned() } else { format!("hub-{number}") }
    }

    /// How many servers the hub of this home has.
    #[must_use]
    pub fn hub_file(&self) -> PathBuf {
        self.home.join("hub.json")
    }

    #[must_use]
    pub fn core(&self) -> PathBuf {
        self.home.join("core")
    }

    /// How core reaches each INTAKE account: it watches this folder.
    #[must_use]
    pub fn live_buses(&self) -> PathBuf {
        self.core().join("live")
    }

    /// How core reaches one INTAKE account.
    #[must_use]
    pub fn live_bus(&self, intake: &str) -> PathBuf {
        self.live_buses().join(format!("{intake}.toml"))
    }

    /// The database's address for those who provision.
    #[must_use]
    pub fn database_url_file(&self) -> PathBuf {
        self.secrets().join("postgres-provisioning.url")
    }

    #[must_use]
    pub fn provisioning(&self) -> PathBuf {
        self.home.join("provisioning")
    }

    #[must_use]
    pub fn site(&self, tenant: &TenantSlug, site: &SiteName) -> PathBuf {
        self.home.join("sites").join(tenant.as_str()).join(site.as_str())
    }

    #[must_use]
    pub fn poller(&self, tenant: &TenantSlug, site: &SiteName, poller: &PollerName) -> PathBuf {
        self.site(tenant, site).join("pollers").join(poller.as_str())
    }

    /// What the home keeps of a site that runs elsewhere: the batch keys of its pollers.
    #[must_use]
    pub fn issued_site(&self, tenant: &TenantSlug, site: &SiteName) -> PathBuf {
        self.home.join("sites-issued").join(tenant.as_str()).join(site.as_str())
    }

    /// Every file and folder that is a tenant's own, beside its record, its account and its intermediate.
    #[must_use]
    pub fn of_tenant(&self, tenant: &TenantSlug) -> Vec<PathBuf> {
        let profile = self.profile(&format!("{tenant}-admin"));
        let sites = ["sites", "sites-issued"].map(|name| self.home.join(name).join(tenant.as_str()));
        sites.into_iter().chain([profile.with_extension(""), profile]).collect()
    }

    /// Where the batch key of a poller may be: of a site that runs elsewhere, and of one that runs here.
    #[must_use]
    pub fn batch_keys(&self, tenant: &TenantSlug, site: &SiteName, poller: &PollerName) -> [PathBuf; 2] {
        let issued = self.issued_site(tenant, site).join(format!("{poller}.nk"));
        [issued, self.poller(tenant, site, poller).join("batch.nk")]
    }

    /// `name` is `ops` for the platform, or `<tenant>-admin`.
    #[must_use]
    pub fn profile(&self, name: &str) -> PathBuf {
        self.home.join("profiles").join(format!("{name}.toml"))
    }

    #[must_use]
    pub fn log(&self, process: &str) -> PathBuf {
        self.home.join("logs").join(format!("{process}.log"))
    }

    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.home.join("run")
    }

    #[must_use]
    pub fn pid(&self, process: &str) -> PathBuf {
        self.run().join(format!("{process}.pid"))
    }
}
