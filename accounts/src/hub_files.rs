//! What one server of the hub is started with: its configuration, certificates and the roots that it trusts.
//!
//! `bulkhead up` writes it for the servers that it runs itself, `bulkhead server-config` for servers elsewhere.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use crate::certificates::{Authority, CertificateError, CertificateFiles};
use crate::files::{FileError, make_folder, read_state, write_public};
use crate::nats_config::{CalloutConfig, ClusterConfig, HubConfig, RenderError, SYNC_ALWAYS};
use crate::operator::{OperatorError, OperatorStore};

/// What a hub server may write.
pub const HUB_STORE_BYTES: u64 = 4 << 30;
/// The configuration's name in a server's folder.
pub const HUB_CONFIG: &str = "hub.conf";

/// Why a server's files were not written.
#[derive(Debug, thiserror::Error)]
pub enum HubFilesError {
    #[error("files of a hub server")]
    File(#[source] FileError),
    #[error("certificates of a hub server")]
    Certificate(#[source] CertificateError),
    #[error("operator store")]
    Operator(#[source] OperatorError),
    #[error("hub configuration")]
    Render(#[source] RenderError),
}

/// Where the other servers connect, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    pub listen: String,
    /// Of the other servers.
    pub urls: Vec<String>,
}

/// The roots that a server trusts, as it finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roots {
    /// In this home: a server that is started again sees what has become of them.
    InPlace,
    /// As copies beside the configuration.
    Copied,
}

/// One server of the hub.
#[derive(Debug, Clone)]
pub struct HubServerFiles<'a> {
    /// Such as `hub-1`.
    pub server_name: String,
    pub client_listen: String,
    pub leaf_listen: String,
    /// None in a hub of one.
    pub routes: Option<Routes>,
    /// Names and addresses that others reach it at, beside its own name and the loopback.
    pub hosts: Vec<String>,
    pub roots: Roots,
    /// Where the files are written.
    pub folder: &'a Path,
    /// Where the server will find them.
    pub found_at: &'a Path,
    /// What the server writes itself.
    pub data: &'a Path,
}

/// Whom a hub believes, as its configuration says it.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'a> {
    pub operator_token: &'a str,
    pub system_account: &'a str,
    pub system_token: &'a str,
    pub callout: &'a CalloutConfig,
}

fn hub_pair(folder: &Path) -> CertificateFiles {
    CertificateFiles::named(folder, "hub")
}

fn route_pair(folder: &Path) -> CertificateFiles {
    CertificateFiles::named(folder, "route")
}

impl HubServerFiles<'_> {
    /// Where the server finds a root of the home.
    fn found_root(&self, root: PathBuf) -> PathBuf {
        match (self.roots, root.file_name()) {
            (Roots::Copied, Some(name)) => self.found_at.join(name),
            (Roots::InPlace | Roots::Copied, _) => root,
        }
    }

    fn copy_root(&self, root: &Path) -> Result<(), HubFilesError> {
        if self.roots == Roots::InPlace {
            return Ok(());
        }
        let text = read_state(root).map_err(HubFilesError::File)?;
        let copy = self.folder.join(root.file_name().unwrap_or_default());
        write_public(&copy, text.as_bytes()).map_err(HubFilesError::File)
    }

    /// The configuration's text. Writes nothing.
    ///
    /// # Errors
    /// When the template and the values do not fit.
    pub fn render(&self, authority: &Authority, trust: Trust<'_>) -> Result<String, RenderError> {
        let (hub, route) = (hub_pair(self.found_at), route_pair(self.found_at));
        let cluster = self.routes.as_ref().map(|routes| ClusterConfig {
            listen: routes.listen.clone(),
            routes: routes.urls.clone(),
            cert_file: route.cert_file,
            key_file: route.key_file,
            route_root_file: self.found_root(authority.route_root_file()),
        });
        let config = HubConfig {
            server_name: self.server_name.clone(),
            client_listen: self.client_listen.clone(),
            leaf_listen: self.leaf_listen.clone(),
            operator_token: trust.operator_token.to_owned(),
            system_account: trust.system_account.to_owned(),
            system_token: trust.system_token.to_owned(),
            resolver_dir: self.data.join("jwt"),
            store_dir: self.data.join("js"),
            max_file_bytes: HUB_STORE_BYTES,
            sync_interval: SYNC_ALWAYS,
            hub_cert_file: hub.cert_file,
            hub_key_file: hub.key_file,
            client_root_file: self.found_root(authority.client_root_file()),
            cluster,
            callout: Some(trust.callout.clone()),
        };
        config.render()
    }

    /// Writes everything anew, with new certificates; returns the configuration's path.
    ///
    /// # Errors
    /// When an authority or the operator store is damaged, or a file cannot be written.
    pub fn write(
        &self,
        authority: &Authority,
        operator: &OperatorStore,
        callout: &CalloutConfig,
        now: OffsetDateTime,
    ) -> Result<PathBuf, HubFilesError> {
        make_folder(self.folder).map_err(HubFilesError::File)?;
        let hub = hub_pair(self.folder);
        authority.issue_hub(&self.server_name, &self.hosts, &hub, now).map_err(HubFilesError::Certificate)?;
        self.copy_root(&authority.client_root_file())?;
        if self.routes.is_some() {
            let route = route_pair(self.folder);
            authority.issue_route(&self.server_name, &self.hosts, &route, now).map_err(HubFilesError::Certificate)?;
            self.copy_root(&authority.route_root_file())?;
        }
        let system = operator.system().map_err(HubFilesError::Operator)?;
        let trust = Trust {
            operator_token: &operator.token,
            system_account: system.key.as_str(),
            system_token: &system.token,
            callout,
        };
        let text = self.render(authority, trust).map_err(HubFilesError::Render)?;
        let path = self.folder.join(HUB_CONFIG);
        write_public(&path, text.as_bytes()).map_err(HubFilesError::File)?;
        Ok(path)
    }
}
