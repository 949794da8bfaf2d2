//! Core's settings, and the only place that reads them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_bus::payload::RESULTS_PER_BATCH_MAX;
use bulkhead_directory::address_problems;
use bulkhead_runtime::{BusSettings, LogFormat, load_settings, out_of_range};
use serde::Deserialize;

const DEFAULTS: &str = include_str!("../config.default.toml");
const PREFIX: &str = "BULKHEAD_CORE_";

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
    pub stream_bus: BusSettings,
    pub rpc_bus: BusSettings,
    #[serde(default)]
    pub live_buses: Vec<BusSettings>,
    #[serde(default)]
    pub live_buses_dir: Option<PathBuf>,
    pub ingest: IngestConfig,
    pub tenants: TenantsConfig,
    pub live: LiveConfig,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngestConfig {
    pub messages_most: usize,
    pub rows_most: usize,
    pub writers: usize,
    pub linger_ms: u64,
    pub ahead: usize,
    pub dead_letter_after: i64,
    pub backfill_rows_per_second: u32,
    pub connections: u32,
    pub schema_connections: u32,
}

impl IngestConfig {
    #[must_use]
    pub fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantsConfig {
    pub refresh_s: u64,
    pub retention_every_s: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveConfig {
    pub dark_after_s: u32,
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
        let ingest = &self.ingest;
        let ranges: [(&str, i128, i128, i128); 12] = [
            ("ingest.messages_most", ingest.messages_most as i128, 1, 5_000),
            ("ingest.rows_most", ingest.rows_most as i128, RESULTS_PER_BATCH_MAX as i128, 100_000),
            ("ingest.writers", ingest.writers as i128, 1, 16),
            ("ingest.linger_ms", i128::from(ingest.linger_ms), 1, 10_000),
            ("ingest.ahead", ingest.ahead as i128, 1, 5_000),
            ("ingest.dead_letter_after", i128::from(ingest.dead_letter_after), 2, 1_000),
            ("ingest.backfill_rows_per_second", i128::from(ingest.backfill_rows_per_second), 1, 10_000_000),
            ("ingest.connections", i128::from(ingest.connections), 2, 100),
            ("ingest.schema_connections", i128::from(ingest.schema_connections), 1, 100),
            ("tenants.refresh_s", i128::from(self.tenants.refresh_s), 1, 3_600),
            ("tenants.retention_every_s", i128::from(self.tenants.retention_every_s), 1, 86_400),
            ("live.dark_after_s", i128::from(self.live.dark_after_s), 1, 86_400),
        ];
        let mut problems = out_of_range(&ranges);
        problems.extend(bulkhead_runtime::check_filter(&self.log_filter).err().map(|error| format!("  {error}")));
        let direct = self.database_direct_url_file.as_deref();
        problems.extend(address_problems(&self.database_url_file, direct));
        if let Some(folder) = self.live_buses_dir.as_ref().filter(|folder| !folder.is_dir()) {
            problems.push(format!("  live_buses_dir: {} is not a folder: make it, empty if need be", folder.display()));
        }
        let named = [("stream_bus".to_owned(), &self.stream_bus), ("rpc_bus".to_owned(), &self.rpc_bus)];
        let live = self.live_buses.iter().enumerate().map(|(index, bus)| (format!("live_buses.{index}"), bus));
        problems.extend(named.into_iter().chain(live).flat_map(|(key, bus)| bus.hub_problems(&key)));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_setting_is_reported_at_once() {
        let text = "database_url_file = '/nonexistent'\nlive_buses_dir = '/no-folder'\n[ingest]\nmessages_most = 0\nahead = 0\n\
                    [stream_bus]\nurls=[]\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}\n\
                    [rpc_bus]\nurls=[]\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}\n";
        let file = std::env::temp_dir().join(format!("bulkhead-core-config-{}.toml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let problems = Config::load(Some(&file)).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        for part in [
            "messages_most",
            "ahead",
            "database_url_file",
            "/nonexistent",
            "/no-folder",
            "stream_bus.urls",
            "rpc_bus.tls",
        ] {
            assert!(problems.contains(part), "{part} is missing in {problems}");
        }
    }
}
