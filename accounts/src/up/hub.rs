//! The servers of the hub: where each listens, what it is started with, and how it is started again.
//!
//! Everything of a server is rendered anew at each of its starts, so that one whose folder is gone comes back empty,
//! under its old name, and is filled by the others (docs/adr/0008-replacing-a-hub-server.md).

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::child::{Child, ChildError};
use super::deployment::DeploymentError;
use super::layout::Layout;
use super::lives::Lives;
use super::start::server_spec;
use crate::certificates::Authority;
use crate::files::write_public;
use crate::hub_files::{HubServerFiles, Roots, Routes};
use crate::hub_size::HubSize;
use crate::nats_config::CalloutConfig;
use crate::operator::OperatorStore;

/// Where one server of the hub listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubPlace {
    /// From 1.
    pub number: usize,
    pub client_port: u16,
    pub leaf_port: u16,
    /// Where the other servers connect; none in a hub of one.
    pub route_port: Option<u16>,
}

impl HubPlace {
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("tls://127.0.0.1:{}", self.client_port)
    }

    #[must_use]
    pub fn leaf_url(&self) -> String {
        format!("tls://127.0.0.1:{}", self.leaf_port)
    }
}

/// A running server of the hub.
#[derive(Debug)]
pub struct HubServer {
    pub place: HubPlace,
    pub child: Child,
    lives: Lives,
}

/// What servers are made from.
pub(super) struct HubMaker<'a> {
    pub(super) layout: &'a Layout,
    pub(super) authority: &'a Authority,
    pub(super) operator: &'a OperatorStore,
    pub(super) callout: &'a CalloutConfig,
    pub(super) nats_server: &'a Path,
    /// All servers of the hub.
    pub(super) places: &'a [HubPlace],
}

impl HubMaker<'_> {
    /// Writes what a server needs and starts it.
    pub(super) fn start(&self, place: HubPlace) -> Result<HubServer, DeploymentError> {
        let path = self.write(place)?;
        let spec = server_spec(self.layout, &Layout::hub_process(place.number), self.nats_server, &path);
        let child = Child::start(spec).map_err(DeploymentError::Child)?;
        Ok(HubServer { place, child, lives: Lives::begin() })
    }

    /// Ends what is left of a server and starts it with what it needs now.
    pub(super) fn restart(&self, server: &mut HubServer) -> Result<(), DeploymentError> {
        server.child.kill().map_err(DeploymentError::Child)?;
        self.write(server.place)?;
        server.child.restart().map_err(DeploymentError::Child)?;
        server.lives.begin_again();
        Ok(())
    }

    fn write(&self, place: HubPlace) -> Result<PathBuf, DeploymentError> {
        let folder = self.layout.hub_server(place.number);
        let others = self.places.iter().filter(|other| other.number != place.number);
        let route = |other: &HubPlace| other.route_port.map(|port| format!("tls://127.0.0.1:{port}"));
        let routes = place
            .route_port
            .map(|port| Routes { listen: format!("127.0.0.1:{port}"), urls: others.filter_map(route).collect() });
        let files = HubServerFiles {
            server_name: HubSize::server_name(place.number),
            client_listen: format!("127.0.0.1:{}", place.client_port),
            leaf_listen: format!("127.0.0.1:{}", place.leaf_port),
            routes,
            hosts: vec![],
            roots: Roots::InPlace,
            folder: &folder,
            found_at: &folder,
            data: &folder,
        };
        let written = files.write(self.authority, self.operator, self.callout, OffsetDateTime::now_utc());
        written.map_err(DeploymentError::HubFiles)
    }
}

impl HubServer {
    /// Why the server has ended, when it has and may be started again: the others go on without it meanwhile.
    ///
    /// # Errors
    /// The end of its log, when it has not come up several times in a row.
    pub(super) fn end_to_mend(&mut self) -> Result<Option<ChildError>, ChildError> {
        self.lives.end_to_mend(&mut self.child)
    }
}

/// How many servers the hub of a home has. Without the file it is a home from before there were three, or a new one.
///
/// # Errors
/// When the file is there and says something else.
pub(super) fn known_size(layout: &Layout) -> Result<Option<HubSize>, DeploymentError> {
    let path = layout.hub_file();
    if !path.exists() {
        // A lost file must not make one of three servers a hub of its own.
        return Ok(match (layout.hub_server(2).exists(), layout.hub().join("js").exists()) {
            (true, _) => Some(HubSize::Three),
            (false, true) => Some(HubSize::One),
            (false, false) => None,
        });
    }
    let text = crate::files::read_state(&path).map_err(DeploymentError::File)?;
    let record: HubRecord = serde_json::from_str(&text)
        .map_err(|source| DeploymentError::HubRecord { path: path.display().to_string(), source })?;
    Ok(Some(record.servers))
}

/// How many servers the hub of a home has; a new home will have one.
///
/// # Errors
/// When the home's record is damaged.
pub fn hub_size(layout: &Layout) -> Result<HubSize, DeploymentError> {
    known_size(layout).map(Option::unwrap_or_default)
}

/// # Errors
/// When the file cannot be written.
pub(crate) fn remember_size(layout: &Layout, servers: HubSize) -> Result<(), DeploymentError> {
    let text = serde_json::json!(HubRecord { servers }).to_string();
    write_public(&layout.hub_file(), text.as_bytes()).map_err(DeploymentError::File)
}

#[derive(serde::Serialize, serde::Deserialize)]
struct HubRecord {
    servers: HubSize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::make_folder;
    use crate::up::lives::{LIFE_LEAST, SHORT_LIVES_MOST};

    fn server(folder: &Path, script: &str) -> HubServer {
        let layout = Layout::new(folder.to_owned());
        make_folder(&layout.run()).unwrap();
        make_folder(&layout.home().join("logs")).unwrap();
        let mut spec = server_spec(&layout, "hub-2", Path::new("/bin/sh"), Path::new(""));
        spec.args = vec!["-c".to_owned(), script.to_owned()];
        let place = HubPlace { number: 2, client_port: 1, leaf_port: 2, route_port: Some(3) };
        HubServer { place, child: Child::start(spec).unwrap(), lives: Lives::begin() }
    }

    async fn ended(server: &mut HubServer) {
        let ended = bulkhead_runtime::eventually("its end", LIFE_LEAST, || {
            std::future::ready(if server.child.check_running().is_err() { Ok(()) } else { Err("it runs") })
        });
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_does_not_come_up_is_given_up_after_a_few_tries_and_one_that_lived_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut broken = server(folder.path(), "echo no such option; exit 1");
        for _ in 0..SHORT_LIVES_MOST {
            ended(&mut broken).await;
            assert!(broken.end_to_mend().unwrap().is_some());
            broken.child.restart().unwrap();
        }
        ended(&mut broken).await;
        assert!(broken.end_to_mend().unwrap_err().to_string().contains("no such option"));
        // Had it lived for a while, this would be its first end.
        broken.lives.started -= LIFE_LEAST;
        assert!(broken.end_to_mend().unwrap().is_some());
        let mut well = server(folder.path(), "exec sleep 600");
        assert!(well.end_to_mend().unwrap().is_none());
    }

    #[test]
    fn the_number_of_servers_is_remembered_and_a_lost_file_does_not_part_three_servers() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        assert_eq!(known_size(&layout).unwrap(), None);
        std::fs::create_dir_all(layout.hub().join("js")).unwrap();
        assert_eq!(known_size(&layout).unwrap(), Some(HubSize::One), "a home from before there were three");
        std::fs::create_dir_all(layout.hub_server(2)).unwrap();
        assert_eq!(known_size(&layout).unwrap(), Some(HubSize::Three));
        for size in [HubSize::Three, HubSize::One] {
            remember_size(&layout, size).unwrap();
            assert_eq!(known_size(&layout).unwrap(), Some(size));
        }
        for damaged in ["", "{\"servers\": 2}", "3"] {
            std::fs::write(layout.hub_file(), damaged).unwrap();
            let error = known_size(&layout).unwrap_err();
            assert!(error.to_string().contains("hub.json"), "{damaged:?}: {error}");
        }
    }
}
