//! The services that share checks out: the registry, which knows who is there, and poller-dispatch, which says who runs what. What
//! pollers have been given they go on with while these are away.

use std::path::{Path, PathBuf};

use bulkhead_bus::Role;
use serde::Serialize;

use super::child::{Child, ChildError, ChildSpec};
use super::deployment::DeploymentError;
use super::platform::{CORE, Platform};
use super::poller_settings::{BusFile, write_settings};
use super::postgres::Postgres;
use super::start::{DATABASE, Starter, bus_file, child_spec};
use super::tended::Tended;
use crate::files::{make_folder, write_secret};
use crate::hub_size::HubSize;

pub(super) const REGISTRY: &str = "registry";
pub(super) const DISPATCH: &str = "poller-dispatch";

/// One replica of one of the two.
#[derive(Debug)]
pub struct Sharer {
    /// Such as `registry-1`; in ports and logs as well.
    pub name: String,
    pub health_port: u16,
    pub tended: Tended,
}

#[derive(Serialize)]
struct RegistryFile {
    log_format: &'static str,
    log_filter: &'static str,
    health_listen: String,
    database_url_file: PathBuf,
    rpc_bus: BusFile,
    keep_bus: BusFile,
}

#[derive(Serialize)]
struct DispatchFile {
    log_format: &'static str,
    log_filter: &'static str,
    health_listen: String,
    database_url_file: PathBuf,
    rpc_bus: BusFile,
    push_bus: BusFile,
}

/// How many replicas: as many as can be lost one at a time where the hub can lose a server.
fn replicas(hub: HubSize) -> usize {
    match hub {
        HubSize::One => 1,
        HubSize::Three => 2,
    }
}

impl Starter<'_> {
    /// Writes what the registry and poller-dispatch need and starts them.
    pub(super) fn start_sharers(
        &mut self,
        platform: &Platform,
        (postgres, passwords): (&Postgres, &bulkhead_store::admin::Passwords),
        hub: HubSize,
    ) -> Result<Vec<Sharer>, DeploymentError> {
        let mut all = Vec::new();
        let registry_url =
            self.url_file(REGISTRY, &postgres.url("bulkhead_registry", &passwords.registry, DATABASE))?;
        let dispatch_url =
            self.url_file(DISPATCH, &postgres.url("bulkhead_dispatch", &passwords.dispatch, DATABASE))?;
        let bus = |service, role, folder: &Path| platform.issue_service(CORE, role, service, folder).map(bus_file);
        for number in 1..=replicas(hub) {
            let (name, health_port, folder) = self.place_sharer(REGISTRY, number)?;
            let settings = RegistryFile {
                log_format: "text",
                log_filter: "info",
                health_listen: format!("127.0.0.1:{health_port}"),
                database_url_file: registry_url.clone(),
                rpc_bus: bus(REGISTRY, Role::RegistryRpc, &folder)?,
                keep_bus: bus(REGISTRY, Role::RegistryKeep, &folder)?,
            };
            let program = self.options.programs.registry.clone();
            let loss = "who comes and who goes is not noticed";
            all.push(self.start_sharer((name, health_port), (&folder, &settings), &program, loss)?);
            let (name, health_port, folder) = self.place_sharer(DISPATCH, number)?;
            let settings = DispatchFile {
                log_format: "text",
                log_filter: "info",
                health_listen: format!("127.0.0.1:{health_port}"),
                database_url_file: dispatch_url.clone(),
                rpc_bus: bus(DISPATCH, Role::DispatchRpc, &folder)?,
                push_bus: bus(DISPATCH, Role::DispatchPush, &folder)?,
            };
            let program = self.options.programs.poller_dispatch.clone();
            let loss = "checks are neither changed nor handed over";
            all.push(self.start_sharer((name, health_port), (&folder, &settings), &program, loss)?);
        }
        Ok(all)
    }

    fn url_file(&self, service: &str, url: &str) -> Result<PathBuf, DeploymentError> {
        let path = self.layout.secrets().join(format!("postgres-{service}.url"));
        write_secret(&path, url.as_bytes()).map_err(DeploymentError::File)?;
        Ok(path)
    }

    fn place_sharer(&mut self, service: &str, number: usize) -> Result<(String, u16, PathBuf), DeploymentError> {
        let name = format!("{service}-{number}");
        let health_port = self.ports.choose(&format!("{name}-health")).map_err(DeploymentError::Port)?;
        let folder = self.layout.home().join(&name);
        make_folder(&folder).map_err(DeploymentError::File)?;
        Ok((name, health_port, folder))
    }

    fn start_sharer(
        &self,
        (name, health_port): (String, u16),
        (folder, settings): (&Path, &impl Serialize),
        program: &Path,
        loss: &'static str,
    ) -> Result<Sharer, DeploymentError> {
        let path = folder.join("settings.toml");
        write_settings(&path, settings).map_err(|error| DeploymentError::Site(name.clone(), error))?;
        let spec = ChildSpec {
            args: vec!["--config".to_owned(), path.display().to_string()],
            ..child_spec(self.layout, &name, program)
        };
        Ok(Sharer { name, health_port, tended: Tended::start(spec, loss)? })
    }
}

pub(super) fn children(sharers: &mut [Sharer]) -> Vec<&mut Child> {
    sharers.iter_mut().map(|one| &mut one.tended.child).collect()
}

/// Ends all of them.
pub(super) async fn stop_sharers(sharers: &mut [Sharer]) -> Result<(), ChildError> {
    for sharer in sharers {
        sharer.tended.child.stop().await?;
    }
    Ok(())
}
