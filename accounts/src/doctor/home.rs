//! What the state folder says: sites, hub servers, ports, whether `up` runs. Read, never written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bulkhead_bus::{PollerName, SiteName, TenantSlug};
use time::OffsetDateTime;

use super::elsewhere::{FarSite, far_sites};
use super::finding::{Finding, Level};
use crate::certificates::Authority;
use crate::files::read_text;
use crate::tenancy::{PlatformSettings, TenantRecords, TenantStage};
use crate::up::{Layout, Site};

/// Folders that hold what servers keep and what was fetched: not ours to look through.
const SERVERS_OWN: [&str; 4] = ["js", "jwt", "postgres", "tools"];
/// More files than a home has; a link or a mistake must not keep the doctor busy.
const FILES_MOST: usize = 100_000;

/// One hub server's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubFolder {
    pub(super) server_name: String,
    pub(super) folder: PathBuf,
}

impl HubFolder {
    pub(super) fn config_file(&self) -> PathBuf {
        self.folder.join("hub.conf")
    }
}

/// The state folder of one deployment.
pub(super) struct Home {
    pub(super) layout: Layout,
    pub(super) now: OffsetDateTime,
    /// The process of `bulkhead up`, when it runs.
    pub(super) up: Option<u32>,
    pub(super) ports: BTreeMap<String, u16>,
    pub(super) hubs: Vec<HubFolder>,
    pub(super) sites: Vec<Site>,
    /// Those whose machines are elsewhere, as the records have them.
    pub(super) far_sites: Vec<FarSite>,
    /// Where each tenant is in its life, of those whose record can be read.
    stages: BTreeMap<TenantSlug, TenantStage>,
}

impl Home {
    pub(super) fn read(folder: &Path, now: OffsetDateTime) -> Self {
        let layout = Layout::new(folder.to_owned());
        let ports = read_text(&layout.ports_file()).ok().and_then(|text| serde_json::from_str(&text).ok());
        let up = running_up(&layout.lock_file());
        let (hubs, sites) = (hub_folders(&layout), sites(folder));
        let records = TenantRecords::new(&layout);
        let stage = |slug: TenantSlug| Some((slug.clone(), records.find(&slug).ok()??.stage));
        let stages = records.slugs().unwrap_or_default().into_iter().filter_map(stage).collect();
        let far_sites = far_sites(&layout);
        Self { layout, now, up, ports: ports.unwrap_or_default(), hubs, sites, far_sites, stages }
    }

    /// Why nobody of a tenant is admitted, where that is wanted.
    pub(super) fn closed(&self, tenant: &str) -> Option<&'static str> {
        let stage = self.stages.get(&tenant.parse::<TenantSlug>().ok()?)?;
        (!stage.is_open()).then(|| stage.as_str())
    }

    /// What has to be so where nobody is admitted: results wait at the site, and none is stored. `site` begins with the tenant.
    pub(super) fn excused(&self, finding: Finding, site: &str) -> Finding {
        let tenant = site.split('/').next().unwrap_or_default();
        match self.closed(tenant) {
            Some(stage) if finding.level > Level::Skip => {
                finding.look.skip(&finding.subject, format!("tenant {tenant} is {stage}"))
            }
            Some(_) | None => finding,
        }
    }

    /// Whether servers are not to have the account of this name at all.
    pub(super) fn is_offboarded(&self, account: &str) -> bool {
        self.closed(account) == Some(TenantStage::Offboarded.as_str())
    }

    /// Its authorities; where the settings are damaged, with the usual trust domain.
    pub(super) fn authority(&self) -> Authority {
        Authority::new(self.layout.authority(), PlatformSettings::trust_domain(&self.layout).unwrap_or_default())
    }

    /// Whether a deployment was ever made here.
    pub(super) fn is_deployment(&self) -> bool {
        self.layout.ports_file().exists() || self.layout.operator().exists()
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.now.unix_timestamp() * 1_000
    }

    /// A path as it is shown: from the state folder on.
    pub(super) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(self.layout.home()).unwrap_or(path).display().to_string()
    }

    /// The command that starts this deployment.
    pub(super) fn start_command(&self) -> String {
        format!("bulkhead --home {} up", self.layout.home().display())
    }

    /// What ends it and starts it again, which issues certificates and credentials and renders configuration anew.
    pub(super) fn restart_advice(&self) -> String {
        format!("end `bulkhead up` (Ctrl-C) and start it again: {}", self.start_command())
    }

    /// Every file and folder but those that servers keep for themselves.
    pub(super) fn entries(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![self.layout.home().to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(kind) = entry.file_type() else { continue };
                let is_servers_own = SERVERS_OWN.iter().any(|name| entry.file_name() == *name);
                if is_servers_own || found.len() >= FILES_MOST {
                    continue;
                }
                found.push(entry.path());
                if kind.is_dir() {
                    open.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }
}

/// Who holds the lock: the process that the file names, if it has the file open. Trying the lock itself would be in the
/// way of a start.
fn running_up(lock_file: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(lock_file).ok()?.trim().parse().ok()?;
    let lock_file = lock_file.canonicalize().ok()?;
    let holds = |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|target| target == lock_file);
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(open) => open.flatten().any(holds).then_some(pid),
        // Somebody else's process: that it is there is all that can be seen.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Some(pid),
        Err(_) => None,
    }
}

/// The value of the first `key: "text"` of a configuration that we have rendered.
pub(super) fn config_text(config: &str, key: &str) -> Option<String> {
    let value = config.lines().find_map(|line| line.trim_start().strip_prefix(key)?.strip_prefix(": "))?;
    serde_json::from_str(value.trim_end()).ok()
}

/// Every folder with a hub server's configuration: `hub` itself, what is in it, and what is named like it.
fn hub_folders(layout: &Layout) -> Vec<HubFolder> {
    let mut folders = vec![layout.hub()];
    folders.extend(subfolders(&layout.hub()).into_iter().map(|(_, path)| path));
    let beside = subfolders(layout.home()).into_iter().filter(|(name, _)| name.starts_with("hub-"));
    folders.extend(beside.map(|(_, path)| path));
    let hub = |folder: PathBuf| {
        let config = fs::read_to_string(folder.join("hub.conf")).ok()?;
        let server_name = config_text(&config, "server_name").unwrap_or_else(|| "hub".to_owned());
        Some(HubFolder { server_name, folder })
    };
    folders.into_iter().filter_map(hub).collect()
}

fn subfolders(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut found: Vec<_> =
        folders.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect();
    found.sort();
    found
}

/// Tenants' sites and their pollers, as the folders name them.
fn sites(home: &Path) -> Vec<Site> {
    let mut found = Vec::new();
    for (tenant, folder) in subfolders(&home.join("sites")) {
        let Ok(tenant) = tenant.parse::<TenantSlug>() else { continue };
        for (site, folder) in subfolders(&folder) {
            let Ok(site) = site.parse::<SiteName>() else { continue };
            let pollers = subfolders(&folder.join("pollers")).into_iter();
            let pollers: Vec<PollerName> = pollers.filter_map(|(name, _)| name.parse().ok()).collect();
            found.push(Site { tenant: tenant.clone(), site, pollers });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folders_say_what_there_is() {
        let folder = tempfile::tempdir().unwrap();
        for path in
            ["hub/2", "hub-3", "sites/acme-corp/oslo/pollers/p1", "sites/acme-corp/oslo/js/x", "sites/No Tenant/x"]
        {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        for (path, name) in [("hub", "hub-1"), ("hub/2", "hub-2"), ("hub-3", "hub-3")] {
            let text = format!("# A hub.\nserver_name: \"{name}\"\nlisten: \"127.0.0.1:1\"\n");
            fs::write(folder.path().join(path).join("hub.conf"), text).unwrap();
        }
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        let names: Vec<&str> = home.hubs.iter().map(|hub| hub.server_name.as_str()).collect();
        assert_eq!(names, ["hub-1", "hub-2", "hub-3"]);
        assert_eq!(home.sites.len(), 1);
        assert_eq!(home.sites[0].pollers, ["p1".parse().unwrap()]);
        let shown: Vec<String> = home.entries().iter().map(|path| home.shown(path)).collect();
        assert!(shown.contains(&"hub/2/hub.conf".to_owned()));
        assert!(!shown.iter().any(|path| path.contains("js")), "{shown:?}");
    }

    #[test]
    fn up_runs_while_the_process_in_the_lock_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(running_up(&path), None);
        fs::write(&path, format!("{}\n", std::process::id())).unwrap();
        assert_eq!(running_up(&path), None, "the number of a process that has other business");
        let held = fs::File::open(&path).unwrap();
        assert_eq!(running_up(&path), Some(std::process::id()));
        drop(held);
        fs::write(&path, "no number").unwrap();
        assert_eq!(running_up(&path), None);
    }
}
