//! Settings of poller-dispatch, and the only place that reads them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_directory::address_problems;
use bulkhead_runtime::{BusSettings, LogFormat, load_settings, out_of_range};
use serde::Deserialize;

const DEFAULTS: &str = include_str!("../config.default.toml");
const PREFIX: &str = "BULKHEAD_POLLER_DISPATCH_";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub log_format: LogFormat,
    pub log_filter: String,
    #[serde(default)]
    pub health_listen: Option<SocketAddr>,
    pub database_url_file: PathBuf,
    #[serde(default)]
    pub database_direct_url_file: Option<PathBuf>,
    pub rpc_bus: BusSettings,
    pub push_bus: BusSettings,
    pub database: DatabaseConfig,
    pub tenants: TenantsConfig,
    pub planning: PlanningConfig,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    pub connections: u32,
    pub schema_connections: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantsConfig {
    pub refresh_s: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanningConfig {
    pub workers: usize,
    pub every_s: u64,
    pub hold_s: u64,
}

impl PlanningConfig {
    #[must_use]
    pub fn hold(&self) -> Duration {
        Duration::from_secs(self.hold_s)
    }

    #[must_use]
    pub fn every(&self) -> Duration {
        Duration::from_secs(self.every_s)
    }
}

impl Config {
    /// # Errors
    /// Every setting that is wrong, one a line.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let config: Self = load_settings(DEFAULTS, file, PREFIX).map_err(|error| error.to_string())?;
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(format!("settings are not valid:\n{}", problems.join("\n"))) }
    }

    fn problems(&self) -> Vec<String> {
        let ranges: [(&str, i128, i128, i128); 6] = [
            ("database.connections", i128::from(self.database.connections), 2, 100),
            ("database.schema_connections", i128::from(self.database.schema_connections), 1, 100),
            ("tenants.refresh_s", i128::from(self.tenants.refresh_s), 1, 3_600),
            ("planning.workers", self.planning.workers as i128, 1, 64),
            ("planning.every_s", i128::from(self.planning.every_s), 1, 3_600),
            ("planning.hold_s", i128::from(self.planning.hold_s), 1, 600),
        ];
        let mut problems = out_of_range(&ranges);
        problems.extend(bulkhead_runtime::check_filter(&self.log_filter).err().map(|error| format!("  {error}")));
        let direct = self.database_direct_url_file.as_deref();
        problems.extend(address_problems(&self.database_url_file, direct));
        let buses = [("rpc_bus", &self.rpc_bus), ("push_bus", &self.push_bus)];
        problems.extend(buses.into_iter().flat_map(|(key, bus)| bus.hub_problems(key)));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_setting_is_reported_at_once() {
        let text = "database_url_file = '/nonexistent'\n[planning]\nworkers = 0\nhold_s = 0\n\
                    [rpc_bus]\nurls=[]\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}\n\
                    [push_bus]\nurls=[]\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dispatch.toml");
        std::fs::write(&file, text).unwrap();
        let problems = Config::load(Some(&file)).unwrap_err();
        for part in ["workers", "hold_s", "database_url_file", "/nonexistent", "rpc_bus.urls", "push_bus.tls"] {
            assert!(problems.contains(part), "{part} is missing in {problems}");
        }
    }
}
