//! The gatekeepers of a deployment: one beside each server of the hub, and at least two, so that one can be away.

use super::child::{Child, ChildError, ChildSpec};
use super::deployment::DeploymentError;
use super::lives::Lives;
use super::platform::Platform;
use super::start::{Starter, child_spec};
use crate::gatekeeper_files::{GatekeeperFiles, gatekeeper_names, own_servers};
use crate::hub_files::Roots;
use crate::hub_size::HubSize;

/// A running gatekeeper. One ends itself when it hangs, and is started again: the other one goes on meanwhile.
#[derive(Debug)]
pub struct Gatekeeper {
    pub name: String,
    pub child: Child,
    pub health_port: u16,
    lives: Lives,
}

/// The name of the port where a gatekeeper is asked about its health.
fn health_port_name(name: &str) -> String {
    format!("{name}-health")
}

impl Starter<'_> {
    /// Writes what the gatekeepers need and starts them.
    pub(super) fn start_gatekeepers(
        &mut self,
        platform: &Platform,
        hub: HubSize,
    ) -> Result<Vec<Gatekeeper>, DeploymentError> {
        let mut all = Vec::new();
        for name in gatekeeper_names(hub) {
            let health_port = self.ports.choose(&health_port_name(&name)).map_err(DeploymentError::Port)?;
            let folder = self.layout.gatekeeper(&name);
            let files = GatekeeperFiles {
                name: name.clone(),
                hub_urls: own_servers(&name, &platform.hub_urls),
                health_listen: Some(format!("127.0.0.1:{health_port}")),
                log_format: "text",
                roots: Roots::InPlace,
                folder: &folder,
                found_at: &folder,
                data: &folder,
            };
            let path = files.write(platform).map_err(DeploymentError::GatekeeperFiles)?;
            let spec = ChildSpec {
                args: vec!["--config".to_owned(), path.display().to_string()],
                ..child_spec(self.layout, &name, &self.options.programs.gatekeeper)
            };
            let child = Child::start(spec).map_err(DeploymentError::Child)?;
            all.push(Gatekeeper { name, child, health_port, lives: Lives::begin() });
        }
        Ok(all)
    }
}

impl Gatekeeper {
    /// Starts it again when it has ended; says why it had.
    ///
    /// # Errors
    /// The end of its log, when it has not come up several times in a row.
    pub(super) fn mend(&mut self) -> Result<Option<ChildError>, ChildError> {
        let ended = self.lives.end_to_mend(&mut self.child)?;
        if ended.is_some() {
            self.child.restart()?;
            self.lives.begin_again();
        }
        Ok(ended)
    }
}

pub(super) fn children(gatekeepers: &mut [Gatekeeper]) -> Vec<&mut Child> {
    gatekeepers.iter_mut().map(|one| &mut one.child).collect()
}

/// Ends all of them.
pub(super) async fn stop_gatekeepers(gatekeepers: &mut [Gatekeeper]) -> Result<(), ChildError> {
    for gatekeeper in gatekeepers {
        gatekeeper.child.stop().await?;
    }
    Ok(())
}
