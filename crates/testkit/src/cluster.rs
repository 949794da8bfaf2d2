//! What a test does to a hub of three servers, and how it looks at each of them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::up::{CORE, HubServer};
use bulkhead_bus::question::stream_info;
use bulkhead_bus::{Role, StreamName};
use bulkhead_runtime::{Bus, eventually};
use bytes::Bytes;
use serde_json::Value;

use crate::{Endpoint, Handshake, LIMIT, TestDeployment};

const ANSWER_LIMIT: Duration = Duration::from_secs(2);

impl TestDeployment {
    /// Where clients connect, for each server of the hub.
    #[must_use]
    pub fn hub_servers(&self) -> Vec<Endpoint> {
        let endpoint = |server: &HubServer| Self::endpoint(server.place.client_port, Handshake::AfterInfo);
        self.up.hub_servers.iter().map(endpoint).collect()
    }

    /// Where the servers of the hub wait for each other; nowhere in a hub of one.
    #[must_use]
    pub fn hub_routes(&self) -> Vec<SocketAddr> {
        let port = |server: &HubServer| server.place.route_port;
        self.up.hub_servers.iter().filter_map(port).map(|port| (Ipv4Addr::LOCALHOST, port).into()).collect()
    }

    /// A server of the hub, by its number from 1.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn hub_server(&mut self, number: usize) -> anyhow::Result<&mut HubServer> {
        let server = self.up.hub_servers.iter_mut().find(|server| server.place.number == number);
        server.with_context(|| format!("there is no hub server {number}"))
    }

    /// Kills a server of the hub and takes its disk away.
    ///
    /// # Errors
    /// When it cannot be killed, or its folder not be removed.
    pub fn lose_hub_server(&mut self, number: usize) -> anyhow::Result<()> {
        self.hub_server(number)?.child.kill()?;
        let folder = self.up.layout.hub_server(number);
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }

    /// The number of the server that leads a stream.
    ///
    /// # Errors
    /// When none does so in time.
    pub async fn stream_leader(&self, stream: StreamName) -> anyhow::Result<usize> {
        let folder = self.home().join("looking");
        let platform = &self.up.platform;
        let settings = platform.issue_service(CORE, Role::Provisioner, "provisioning", &folder)?;
        let bus = Bus::connect(&settings, Role::Provisioner.name()).await.context("connect as provisioner")?;
        let subject = stream_info(stream);
        let led = eventually("a leader of the stream", LIMIT, || async {
            let info = bus.request(&subject, Bytes::new(), ANSWER_LIMIT).await.map_err(|error| error.to_string())?;
            let info: Value = serde_json::from_slice(&info).map_err(|error| error.to_string())?;
            let leader = info["cluster"]["leader"].as_str().unwrap_or_default();
            let number = HubSize::Three.numbers().find(|&number| HubSize::server_name(number) == leader);
            number.ok_or_else(|| info.to_string())
        });
        led.await.context("look for the leader")
    }

    /// How many leaves hang on each server of the hub that answers.
    ///
    /// # Errors
    /// When nothing can be asked.
    pub async fn leaves_by_server(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let servers = self.up.hub_servers.len();
        let asked = self.up.system.request_all("$SYS.REQ.SERVER.PING.LEAFZ", Bytes::new(), servers, ANSWER_LIMIT);
        let count = |answer: &Bytes| -> anyhow::Result<(String, usize)> {
            let answer: Value = serde_json::from_slice(answer)?;
            let name = answer["server"]["name"].as_str().context("an answer without a server")?;
            Ok((name.to_owned(), answer["data"]["leafs"].as_array().map_or(0, Vec::len)))
        };
        asked.await.context("ask for leaves")?.iter().map(count).collect()
    }
}
