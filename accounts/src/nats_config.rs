//! Renders the server configurations in `nats-config/`. Every text value is quoted by the template, so that no name,
//! path or token can end a string and add a directive; a value that the template does not get is an error.

use std::path::PathBuf;

use bulkhead_bus::Permissions;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

const HUB: &str = include_str!("../../nats-config/hub.conf");
const LEAF: &str = include_str!("../../nats-config/leaf.conf");

/// Before it is acknowledged. In a hub of three as well: its servers may share one power supply.
pub const SYNC_ALWAYS: &str = "always";

/// Why a configuration was not rendered.
#[derive(Debug, thiserror::Error)]
#[error("render server configuration")]
pub struct RenderError(#[source] pub(crate) minijinja::Error);

#[derive(Debug, Clone, Serialize)]
pub struct HubConfig {
    pub server_name: String,
    pub client_listen: String,
    pub leaf_listen: String,
    pub operator_token: String,
    pub system_account: String,
    pub system_token: String,
    pub resolver_dir: PathBuf,
    pub store_dir: PathBuf,
    pub max_file_bytes: u64,
    /// When what JetStream writes is safe from a power cut, such as [`SYNC_ALWAYS`].
    pub sync_interval: &'static str,
    pub hub_cert_file: PathBuf,
    pub hub_key_file: PathBuf,
    pub client_root_file: PathBuf,
    pub cluster: Option<ClusterConfig>,
    /// `None` where credentials decide.
    pub callout: Option<CalloutConfig>,
}

/// Certificates decide: nobody enters by credentials but the members of these accounts.
#[derive(Debug, Clone, Serialize)]
pub struct CalloutConfig {
    /// AUTH and SENT; the server adds the system account.
    pub pinned: Vec<String>,
    /// The token of whoever shows none.
    pub sentinel_token: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct ClusterConfig {
    pub listen: String,
    pub routes: Vec<String>,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub route_root_file: PathBuf,
}

#[derive(Debug, Clone, Serialize)]
pub struct LeafConfig {
    pub server_name: String,
    pub client_listen: String,
    pub store_dir: PathBuf,
    /// Unique for each site: two leaves with one domain would share interest.
    pub domain: String,
    pub max_file_bytes: u64,
    pub listener_cert_file: PathBuf,
    pub listener_key_file: PathBuf,
    pub tenant_intermediate_file: PathBuf,
    pub users: Vec<LeafUser>,
    /// Who may look at the leaf's links and have it read its files again, if anybody.
    pub keeper: Option<LeafUser>,
    /// Says whether the leaf links to the hub; named from the configuration's folder.
    pub link_file: Option<&'static str>,
    /// The proxy between leaf and hub, such as `http://proxy.example.com:3128`.
    pub proxy: Option<String>,
    pub hub_urls: Vec<String>,
    /// How long it waits before it looks for the hub again, such as `1734ms`.
    pub reconnect: String,
    /// Subjects that never pass the link, in either direction.
    pub kept: Vec<String>,
    pub leaf_cert_file: PathBuf,
    pub leaf_key_file: PathBuf,
    pub server_root_file: PathBuf,
}

/// A local user of a leaf; its name is the DNS name of its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeafUser {
    pub name: String,
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
}

impl LeafUser {
    #[must_use]
    pub fn new(name: String, permissions: Permissions) -> Self {
        Self { name, publish: permissions.publish, subscribe: permissions.subscribe }
    }
}

/// A JSON string is a string of the server's configuration language too, escapes included.
#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
fn quote(text: String) -> Result<String, minijinja::Error> {
    serde_json::to_string(&text)
        .map_err(|error| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, error.to_string()))
}

fn quote_list(texts: Vec<String>) -> Result<String, minijinja::Error> {
    let quoted = texts.into_iter().map(quote).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("[{}]", quoted.join(", ")))
}

fn render(template: &str, values: impl Serialize) -> Result<String, RenderError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("quote", quote);
    environment.add_filter("quote_list", quote_list);
    environment.render_str(template, minijinja::value::Serde(values)).map_err(RenderError)
}

impl HubConfig {
    /// # Errors
    /// When the template and the values do not fit.
    pub fn render(&self) -> Result<String, RenderError> {
        render(HUB, self)
    }
}

impl LeafConfig {
    /// # Errors
    /// When the template and the values do not fit.
    pub fn render(&self) -> Result<String, RenderError> {
        render(LEAF, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_or_a_newline_cannot_end_a_string() {
        let quoted = quote("x\"\n} accounts { EVIL {} }".to_owned()).unwrap();
        assert_eq!(quoted, r#""x\"\n} accounts { EVIL {} }""#);
    }

    #[test]
    fn a_missing_value_is_an_error() {
        assert!(render("{{ nothing }}", ()).is_err());
    }
}
