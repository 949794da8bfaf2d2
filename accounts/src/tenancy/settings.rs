//! `platform.toml`: where the platform that a home provisions can be reached. `bulkhead up` and `operator init` write it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::certificates::{TrustDomain, TrustDomainError};
use crate::files::{FileError, read_text, write_public};
use crate::hub_size::HubSize;
use crate::up::Layout;

/// Why there is no platform to work with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("there is no platform in {home}: make one with `bulkhead operator init`, or start one with `bulkhead up`")]
    NoPlatform { home: String },
    #[error("platform settings")]
    File(#[source] FileError),
    #[error("{path} is not valid")]
    Parse { path: String, source: toml::de::Error },
    #[error("{path}: {problem}")]
    Value { path: String, problem: String },
}

/// Who gives this command, for the list of changes: the account of this machine. It says who was at work and proves nothing.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "who is logged in is no setting of ours")]
pub(super) fn acting() -> Option<String> {
    let names = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    names
        .map(|name| name.chars().filter(|letter| !letter.is_control()).take(64).collect::<String>())
        .find(|name| !name.is_empty())
}

/// Where the hub and the database are. Secrets are named by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformSettings {
    /// Suffix of every name in certificates.
    pub trust_domain: String,
    /// Servers of the hub: a push is in force when each of them has it.
    pub hub_servers: HubSize,
    /// Where clients reach the hub: one entry a server.
    pub hub_urls: Vec<String>,
    /// Where sites reach it.
    pub leaf_urls: Vec<String>,
    /// Where devices enrol: `https://host:port` of the enrolment desk. None where sites get bundles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enrolment_urls: Vec<String>,
    /// A file with the URL of the database for provisioning; without one no rows are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_url_file: Option<PathBuf>,
}

impl PlatformSettings {
    /// # Errors
    /// When the home holds no platform, or the file is not valid.
    pub fn read(layout: &Layout) -> Result<Self, SettingsError> {
        let path = layout.platform_file();
        if !path.exists() {
            return Err(SettingsError::NoPlatform { home: layout.home().display().to_string() });
        }
        let text = read_text(&path).map_err(SettingsError::File)?;
        let path = path.display().to_string();
        let settings: Self =
            toml::from_str(&text).map_err(|source| SettingsError::Parse { path: path.clone(), source })?;
        settings.check().map_err(|problem| SettingsError::Value { path, problem })?;
        Ok(settings)
    }

    /// The trust domain of the certificates of a home; the usual one where there is no platform yet.
    ///
    /// # Errors
    /// When the settings are damaged.
    pub fn trust_domain(layout: &Layout) -> Result<TrustDomain, SettingsError> {
        match Self::read(layout) {
            Ok(settings) => {
                let path = || layout.platform_file().display().to_string();
                let named = settings.trust_domain.parse();
                named.map_err(|error: TrustDomainError| SettingsError::Value {
                    path: path(),
                    problem: error.to_string(),
                })
            }
            Err(SettingsError::NoPlatform { .. }) => Ok(TrustDomain::default()),
            Err(error) => Err(error),
        }
    }

    /// Where the hub is, when its servers are none that `bulkhead up` runs.
    #[must_use]
    pub fn elsewhere(&self) -> Option<&str> {
        // Of a home that was restored, the name of the database's file is that of another home.
        let is_of_up = |path: &PathBuf| path.ends_with("secrets/postgres-provisioning.url");
        let is_here = self.database_url_file.as_ref().is_some_and(is_of_up);
        self.hub_urls.first().map(String::as_str).filter(|_| !is_here)
    }

    /// Whether every value is one that commands can work with; the rule that is broken, otherwise.
    ///
    /// # Errors
    /// The first bad value, with the rule.
    pub fn check(&self) -> Result<(), String> {
        for (name, urls) in [("hub_urls", &self.hub_urls), ("leaf_urls", &self.leaf_urls)] {
            if urls.is_empty() {
                return Err(format!("{name} is empty: name at least one, such as tls://hub.example.com:4222"));
            }
            if let Some(bad) = urls.iter().find(|url| !is_server_url(url)) {
                return Err(format!("{name} holds {bad:?}: write tls://host:port"));
            }
        }
        if let Some(bad) = self.enrolment_urls.iter().find(|url| enrolment_address(url).is_none()) {
            return Err(format!("enrolment_urls holds {bad:?}: write https://host:port"));
        }
        Ok(())
    }

    /// # Errors
    /// When the file cannot be written.
    ///
    /// # Panics
    /// Never: settings are made of text and numbers.
    pub fn write(&self, layout: &Layout) -> Result<(), SettingsError> {
        self.check()
            .map_err(|problem| SettingsError::Value { path: layout.platform_file().display().to_string(), problem })?;
        let text = toml::to_string(self).expect("settings serialize");
        write_public(&layout.platform_file(), text.as_bytes()).map_err(SettingsError::File)
    }
}

/// Host and port of `https://host:port`.
#[must_use]
pub fn enrolment_address(url: &str) -> Option<(String, u16)> {
    let address = url.strip_prefix("https://")?;
    host_and_port(&format!("tls://{address}")).map(|(host, port)| (host.to_owned(), port))
}

fn is_server_url(url: &str) -> bool {
    host_and_port(url).is_some()
}

/// The parts of `tls://host:port`; nothing else is one, and nothing that could end a line or a string of a configuration.
/// An address of version 6 loses its brackets.
#[must_use]
pub fn host_and_port(url: &str) -> Option<(&str, u16)> {
    let (host, port) = url.strip_prefix("tls://")?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port| port > 0)?;
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok().then_some((address, port));
    }
    let is_label_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_host = host.split('.').all(|label| !label.is_empty() && label.bytes().all(is_label_byte));
    is_host.then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> PlatformSettings {
        PlatformSettings {
            trust_domain: "example".to_owned(),
            hub_servers: HubSize::One,
            hub_urls: vec!["tls://127.0.0.1:4222".to_owned()],
            leaf_urls: vec!["tls://hub.example.com:7422".to_owned()],
            enrolment_urls: vec![],
            database_url_file: None,
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_home_without_a_platform_says_how_to_get_one() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        let error = PlatformSettings::read(&layout).unwrap_err().to_string();
        assert!(error.contains("operator init"), "{error}");
        settings().write(&layout).unwrap();
        assert_eq!(PlatformSettings::read(&layout).unwrap(), settings());
    }

    #[test]
    fn a_wrong_value_is_named_with_the_rule() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        for (change, expected) in [
            ((|s| s.hub_urls.clear()) as fn(&mut PlatformSettings), "hub_urls is empty"),
            (|s| s.leaf_urls = vec!["nats://a:1".to_owned()], "write tls://host:port"),
            (|s| s.leaf_urls = vec!["tls://a\"]:1".to_owned()], "write tls://host:port"),
            (|s| s.leaf_urls = vec!["tls://a:0".to_owned()], "write tls://host:port"),
            (|s| s.enrolment_urls = vec!["http://a:1".to_owned()], "write https://host:port"),
            (|s| s.enrolment_urls = vec!["https://a:1/x".to_owned()], "write https://host:port"),
        ] {
            let mut bad = settings();
            change(&mut bad);
            let error = bad.write(&layout).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::write(layout.platform_file(), "hub_server = 1").unwrap();
        assert!(PlatformSettings::read(&layout).unwrap_err().to_string().contains("platform.toml"));
    }
}
