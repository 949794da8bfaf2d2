//! What one gatekeeper is started with: its settings, two users with certificates, and the keys that it answers with.
//!
//! `bulkhead up` writes it for those that it runs itself, `bulkhead server-config` for those elsewhere.

use std::path::{Path, PathBuf};

use bulkhead_bus::Role;
use bulkhead_claims::KeyKind;
use bulkhead_runtime::BusSettings;
use serde::Serialize;

use crate::certificates::{CertificateFiles, ClientIdentity};
use crate::files::{FileError, make_folder, read_state, write_public, write_secret};
use crate::gate::{AUTH, GateError, GateSecrets, SENT};
use crate::hub_files::Roots;
use crate::hub_size::HubSize;
use crate::keys::KeyError;
use crate::operator::{OperatorError, SYSTEM, UserRequest};
use crate::up::{BusFile, Platform, PlatformError, SiteError, TlsFile, write_settings};

/// The settings' name in a gatekeeper's folder.
pub const GATEKEEPER_CONFIG: &str = "gatekeeper.toml";
/// So that one can be away.
const LEAST: usize = 2;
/// How long its credentials are good, as its certificates are: both are written anew together.
const CREDENTIALS_DAYS: i64 = 90;

/// Why a gatekeeper's files were not written.
#[derive(Debug, thiserror::Error)]
pub enum GatekeeperFilesError {
    #[error("files of a gatekeeper")]
    File(#[source] FileError),
    #[error("operator store")]
    Operator(#[source] OperatorError),
    #[error("users of a gatekeeper")]
    Platform(#[source] Box<PlatformError>),
    #[error("keys of the gatekeepers")]
    Gate(#[source] GateError),
    #[error("the sentinel's signing key")]
    Key(#[source] KeyError),
    #[error("the sentinel's signing key")]
    Sign(#[source] bulkhead_claims::SignError),
    #[error("settings of a gatekeeper")]
    Settings(#[source] SiteError),
}

/// One gatekeeper.
#[derive(Debug, Clone)]
pub struct GatekeeperFiles<'a> {
    /// Such as `gatekeeper-1`.
    pub name: String,
    /// The servers that it is at: its own alone, where each has one beside it.
    pub hub_urls: Vec<String>,
    pub health_listen: Option<String>,
    pub log_format: &'static str,
    pub roots: Roots,
    /// Where the files are written.
    pub folder: &'a Path,
    /// Where the gatekeeper will find them.
    pub found_at: &'a Path,
    /// What the gatekeeper writes itself.
    pub data: &'a Path,
}

#[derive(Serialize)]
struct SettingsFile {
    log_format: &'static str,
    log_filter: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_listen: Option<String>,
    name: String,
    trust_domain: String,
    client_root_file: PathBuf,
    operator_file: PathBuf,
    xkey_file: PathBuf,
    answer_key_file: PathBuf,
    sentinel_account: String,
    cache_dir: PathBuf,
    spool_dir: PathBuf,
    bus: BusFile,
    system_bus: BusFile,
}

/// The names of a hub's gatekeepers: one beside each server, and at least two.
#[must_use]
pub fn gatekeeper_names(hub: HubSize) -> Vec<String> {
    (1..=hub.servers().max(LEAST)).map(|number| format!("gatekeeper-{number}")).collect()
}

/// The servers that a gatekeeper is at: its own, when each has one.
#[must_use]
pub fn own_servers(name: &str, hub_urls: &[String]) -> Vec<String> {
    let number: Option<usize> = name.strip_prefix("gatekeeper-").and_then(|number| number.parse().ok());
    let own = number.and_then(|number| hub_urls.get(number.wrapping_sub(1))).filter(|_| hub_urls.len() > 1);
    own.map_or_else(|| hub_urls.to_vec(), |own| vec![own.clone()])
}

impl GatekeeperFiles<'_> {
    /// A file of the home, as the gatekeeper finds it: in the home itself, or as a copy beside its settings.
    fn found(&self, file: PathBuf) -> Result<PathBuf, GatekeeperFilesError> {
        let (Roots::Copied, Some(name)) = (self.roots, file.file_name()) else { return Ok(file) };
        let text = read_state(&file).map_err(GatekeeperFilesError::File)?;
        write_public(&self.folder.join(name), text.as_bytes()).map_err(GatekeeperFilesError::File)?;
        Ok(self.found_at.join(name))
    }

    fn bus(&self, platform: &Platform, account: &str, role: Role) -> Result<BusFile, GatekeeperFilesError> {
        let expires = platform.now.unix_timestamp() + CREDENTIALS_DAYS * 86_400;
        // Its user's name is in the subjects that it may speak.
        let user = UserRequest { account, role, name: &self.name, site: None, expires };
        let identity = ClientIdentity::Service { service: "gatekeeper" };
        let issued = platform.issue_direct(&user, &identity, &self.folder.join(account));
        let issued: BusSettings = issued.map_err(|error| GatekeeperFilesError::Platform(Box::new(error)))?;
        let folder = self.found_at.join(account);
        let files = CertificateFiles::named(&folder, &self.name);
        let creds_file = issued.creds_file.and_then(|file| file.file_name().map(|name| folder.join(name)));
        Ok(BusFile {
            urls: self.hub_urls.clone(),
            inbox_prefix: issued.inbox_prefix,
            creds_file,
            tls: TlsFile::new(self.found(issued.tls.ca_file)?, files),
        })
    }

    /// Writes everything anew, with new certificates and credentials; returns the settings' path.
    ///
    /// # Errors
    /// When an authority, the operator store or a key is damaged, or a file cannot be written.
    pub fn write(&self, platform: &Platform) -> Result<PathBuf, GatekeeperFilesError> {
        make_folder(self.folder).map_err(GatekeeperFilesError::File)?;
        let operator = &platform.operator;
        let sent = operator.account(SENT).map_err(GatekeeperFilesError::Operator)?;
        let no_account = || GatekeeperFilesError::Operator(OperatorError::NoAccount(SENT.to_owned()));
        let sent = sent.ok_or_else(no_account)?;
        let no_role = || GatekeeperFilesError::Operator(OperatorError::NoRole(SENT.to_owned(), "sentinel".to_owned()));
        let public = sent.role_key(Role::Sentinel).ok_or_else(no_role)?;
        let answer = operator.keys().read(public, KeyKind::Account).map_err(GatekeeperFilesError::Key)?;
        let answer = answer.seed().map_err(GatekeeperFilesError::Sign)?;
        write_secret(&self.folder.join("answer.nk"), answer.as_bytes()).map_err(GatekeeperFilesError::File)?;
        let xkey = GateSecrets::new(&platform.layout).xkey().map_err(GatekeeperFilesError::Gate)?;
        let seed = xkey.seed().map_err(|error| GatekeeperFilesError::Gate(GateError::Seal(error)))?;
        write_secret(&self.folder.join("gatekeeper.xk"), seed.as_bytes()).map_err(GatekeeperFilesError::File)?;
        let settings = SettingsFile {
            log_format: self.log_format,
            log_filter: "info",
            health_listen: self.health_listen.clone(),
            name: self.name.clone(),
            trust_domain: platform.authority.trust_domain().to_string(),
            client_root_file: self.found(platform.authority.client_root_file())?,
            operator_file: self.found(operator.token_file())?,
            xkey_file: self.found_at.join("gatekeeper.xk"),
            answer_key_file: self.found_at.join("answer.nk"),
            sentinel_account: sent.key.to_string(),
            cache_dir: self.data.join("cache"),
            spool_dir: self.data.join("spool"),
            bus: self.bus(platform, AUTH, Role::Gatekeeper)?,
            system_bus: self.bus(platform, SYSTEM, Role::GateWatch)?,
        };
        let path = self.folder.join(GATEKEEPER_CONFIG);
        write_settings(&path, &settings).map_err(GatekeeperFilesError::Settings)?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_of_three_has_a_gatekeeper_of_its_own_and_a_single_one_has_two() {
        let urls: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let three = gatekeeper_names(HubSize::Three);
        assert_eq!(three.iter().flat_map(|name| own_servers(name, &urls)).collect::<Vec<_>>(), urls);
        assert_eq!(gatekeeper_names(HubSize::One), ["gatekeeper-1", "gatekeeper-2"]);
        assert_eq!(own_servers("gatekeeper-2", &urls[..1]), ["a"]);
        for other in ["gatekeeper-4", "gatekeeper-0", "spare", "gatekeeper-x"] {
            assert_eq!(own_servers(other, &urls), urls, "{other}");
        }
    }
}
