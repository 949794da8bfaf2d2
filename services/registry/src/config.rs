//! The registry's settings, and the only place that reads them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bulkhead_directory::address_problems;
use bulkhead_runtime::{BusSettings, LogFormat, load_settings, out_of_range};
use serde::Deserialize;

const DEFAULTS: &str = include_str!("../config.default.toml");
const PREFIX: &str = "BULKHEAD_REGISTRY_";

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
    pub keep_bus: BusSettings,
    pub answers: AnswersConfig,
    pub database: DatabaseConfig,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswersConfig {
    pub at_once: usize,
    pub waiting_most: usize,
    pub waiting_of_tenant_most: usize,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    pub refresh_s: u64,
    pub connections: u32,
    pub schema_connections: u32,
    pub events_waiting_most: usize,
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
        let (answers, database) = (&self.answers, &self.database);
        let ranges: [(&str, i128, i128, i128); 7] = [
            ("answers.at_once", answers.at_once as i128, 1, 10_000),
            ("answers.waiting_most", answers.waiting_most as i128, 1, 100_000),
            ("answers.waiting_of_tenant_most", answers.waiting_of_tenant_most as i128, 1, 10_000),
            ("database.refresh_s", i128::from(database.refresh_s), 1, 3_600),
            ("database.connections", i128::from(database.connections), 2, 100),
            ("database.schema_connections", i128::from(database.schema_connections), 1, 100),
            ("database.events_waiting_most", database.events_waiting_most as i128, 1, 1_000_000),
        ];
        let mut problems = out_of_range(&ranges);
        problems.extend(bulkhead_runtime::check_filter(&self.log_filter).err().map(|error| format!("  {error}")));
        let direct = self.database_direct_url_file.as_deref();
        problems.extend(address_problems(&self.database_url_file, direct));
        let buses = [("rpc_bus", &self.rpc_bus), ("keep_bus", &self.keep_bus)];
        problems.extend(buses.into_iter().flat_map(|(key, bus)| bus.hub_problems(key)));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_setting_is_reported_at_once() {
        let text = "database_url_file = '/nonexistent'\n[answers]\nat_once = 0\n[database]\nconnections = 1\n\
                    [rpc_bus]\nurls=[]\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}\n\
                    [keep_bus]\nurls=[]\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("registry.toml");
        std::fs::write(&file, text).unwrap();
        let problems = Config::load(Some(&file)).unwrap_err();
        for part in ["answers.at_once", "database.connections", "database_url_file", "rpc_bus.urls", "keep_bus.tls"] {
            assert!(problems.contains(part), "{part} is missing in {problems}");
        }
    }
}
