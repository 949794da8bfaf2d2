//! The gatekeeper's settings, and the only place that reads them.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bulkhead_bus::{AccountKey, UserName};
use bulkhead_claims::{Claims, KeyKind, OperatorBody, SealingKey, SigningKey, UserBody, decode};
use bulkhead_identity::TrustDomain;
use bulkhead_runtime::{BusSettings, Chain, Credentials, LogFormat, load_settings};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::answer::Session;
use crate::judge::DirectAccounts;
use crate::knowledge::TrustFiles;

const DEFAULTS: &str = include_str!("../config.default.toml");
const PREFIX: &str = "BULKHEAD_GATEKEEPER_";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub log_format: LogFormat,
    pub log_filter: String,
    #[serde(default)]
    pub health_listen: Option<SocketAddr>,
    pub name: String,
    pub bus: BusSettings,
    pub system_bus: BusSettings,
    pub trust_domain: String,
    pub client_root_file: PathBuf,
    pub operator_file: PathBuf,
    pub xkey_file: PathBuf,
    pub answer_key_file: PathBuf,
    pub sentinel_account: String,
    pub cache_dir: PathBuf,
    pub spool_dir: PathBuf,
    pub spool_bytes: u64,
    pub session: SessionConfig,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionConfig {
    pub hours: u32,
    pub spread_percent: u32,
}

/// A seed, of which only its owner may know.
fn read_seed(path: &Path) -> Result<Zeroizing<String>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("{} has mode {mode:03o}, a seed is for its owner alone: chmod 600 it", path.display()));
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(failed)
}

impl Config {
    /// # Errors
    /// Every setting that is wrong, one a line.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let config: Self = load_settings(DEFAULTS, file, PREFIX).map_err(|error| error.to_string())?;
        let problems = config.problems();
        if problems.is_empty() { Ok(config) } else { Err(format!("settings are not valid:\n{}", problems.join("\n"))) }
    }

    fn domain(&self) -> Result<TrustDomain, String> {
        self.trust_domain.parse().map_err(|error| format!("trust_domain: {error}"))
    }

    /// # Errors
    /// When the trust domain is none.
    pub fn trust_files(&self) -> Result<TrustFiles, String> {
        let (root_file, operator_file) = (self.client_root_file.clone(), self.operator_file.clone());
        Ok(TrustFiles { root_file, operator_file, domain: self.domain()? })
    }

    /// # Errors
    /// When the file is not there, is open to others, or holds something else.
    pub fn xkey(&self) -> Result<SealingKey, String> {
        let seed = read_seed(&self.xkey_file).map_err(|error| format!("xkey_file: {error}"))?;
        SealingKey::from_seed(&seed).map_err(|error| format!("xkey_file: {}: {error}", self.xkey_file.display()))
    }

    /// # Errors
    /// When the file is not there, is open to others, or holds something else.
    pub fn answer_key(&self) -> Result<SigningKey, String> {
        let path = &self.answer_key_file;
        let seed = read_seed(path).map_err(|error| format!("answer_key_file: {error}"))?;
        let key = SigningKey::from_seed(&seed, KeyKind::Account);
        key.map_err(|error| format!("answer_key_file: {}: {error}", path.display()))
    }

    /// # Errors
    /// When the credentials or the operator's token do not say which accounts they are of.
    pub fn direct_accounts(&self) -> Result<DirectAccounts, String> {
        let path = self.bus.creds_file.as_deref().ok_or("bus.creds_file: there is none")?;
        let token = Credentials::read(path).map_err(|error| format!("bus.creds_file: {}", Chain(&error)))?.jwt;
        let user: Claims<UserBody> = decode(&token).map_err(|error| format!("bus.creds_file: {error}"))?;
        let token = std::fs::read_to_string(&self.operator_file).map_err(|error| format!("operator_file: {error}"))?;
        let operator: Claims<OperatorBody> = decode(token.trim()).map_err(|error| format!("operator_file: {error}"))?;
        let system = operator.nats.system_account.ok_or("operator_file: the operator names no system account")?;
        // Signed by the account itself it names none.
        let auth = if user.nats.issuer_account.is_empty() { user.iss } else { user.nats.issuer_account };
        auth.parse::<AccountKey>().map_err(|error| format!("bus.creds_file: {error}"))?;
        Ok(DirectAccounts { auth, sentinel: self.sentinel_account.clone(), system })
    }

    #[must_use]
    pub fn session(&self) -> Session {
        let most_s = i64::from(self.session.hours) * 3_600;
        Session { most_s, spread_s: most_s * i64::from(self.session.spread_percent) / 100 }
    }

    fn problems(&self) -> Vec<String> {
        let ranges = [
            ("spool_bytes", self.spool_bytes, 1 << 20, 1 << 40),
            ("session.hours", u64::from(self.session.hours), 1, 168),
            ("session.spread_percent", u64::from(self.session.spread_percent), 0, 90),
        ];
        let wrong = ranges.iter().filter(|(_, value, least, most)| value < least || value > most);
        let range =
            wrong.map(|(name, value, least, most)| format!("  {name} is {value}: it must be {least} to {most}"));
        let mut problems: Vec<String> = range.collect();
        problems.extend(bulkhead_runtime::check_filter(&self.log_filter).err().map(|error| format!("  {error}")));
        problems.extend(self.name.parse::<UserName>().err().map(|error| format!("  name: {error}")));
        let account = self.sentinel_account.parse::<AccountKey>();
        problems.extend(account.err().map(|error| format!("  sentinel_account: {error}")));
        problems.extend(self.xkey().err().map(|error| format!("  {error}")));
        problems.extend(self.answer_key().err().map(|error| format!("  {error}")));
        match self.trust_files() {
            Ok(files) => problems.extend(files.read().err().map(|error| format!("  {}", Chain(error.as_ref())))),
            Err(error) => problems.push(format!("  {error}")),
        }
        problems.extend(bus_problems("bus", &self.bus));
        problems.extend(bus_problems("system_bus", &self.system_bus));
        if problems.is_empty() {
            problems.extend(self.direct_accounts().err().map(|error| format!("  {error}")));
        }
        problems
    }
}

/// Nobody lets the gatekeeper in by its certificate.
fn bus_problems(key: &str, settings: &BusSettings) -> Vec<String> {
    let mut problems = settings.hub_problems(key);
    if settings.creds_file.is_none() {
        problems.push(format!("  {key}.creds_file: name one: the gatekeeper itself enters by credentials"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_setting_is_reported_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open.nk");
        std::fs::write(&open, "SX").unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
        let bus = "urls=['nats://x']\ninbox_prefix='x'\ntls={ca_file='a',cert_file='b',key_file='c'}\n";
        let text = format!(
            "name='Gate'\nclient_root_file='/no-root'\noperator_file='/no-operator'\nxkey_file='{}'\n\
             answer_key_file='/no-key'\nsentinel_account='x'\ncache_dir='/c'\nspool_dir='/s'\nspool_bytes=1\n\
             trust_domain='*'\n[session]\nhours=0\n[bus]\n{bus}[system_bus]\n{bus}",
            open.display()
        );
        let file = folder.path().join("gatekeeper.toml");
        std::fs::write(&file, text).unwrap();
        let problems = Config::load(Some(&file)).unwrap_err();
        for part in [
            "name:",
            "sentinel_account:",
            "chmod 600",
            "answer_key_file:",
            "spool_bytes is 1",
            "trust_domain:",
            "session.hours is 0",
            "bus.urls:",
            "bus.tls:",
            "bus.creds_file:",
            "system_bus.urls:",
        ] {
            assert!(problems.contains(part), "{part} is missing in {problems}");
        }
    }
}
