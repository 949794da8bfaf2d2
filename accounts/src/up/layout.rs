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
            "hub",
            "hub-2",
            "hub-3",
            "hub.json",
            "logs",
            "nsc",
            "pki",
            "ports.json",
            "postgres",
            "profiles",
            "provisioning",
            "restore.unfinished",
            "run",
            "secrets",
            "sites",
        ];
        names.iter().map(|name| self.home.join(name)).collect()
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
