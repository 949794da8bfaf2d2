//! A nats-server of the operator whose store is tested, with the full resolver and nothing preloaded but SYS.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use bulkhead_accounts::operator::OperatorStore;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, find_test_tools};

use super::tool::Nsc;

pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
}

/// The token of an account, whatever nsc calls its folder.
fn token_of(accounts: &Path, key: &str) -> anyhow::Result<String> {
    for folder in std::fs::read_dir(accounts)? {
        let folder = folder?;
        let path = folder.path().join(folder.file_name()).with_extension("jwt");
        let token = std::fs::read_to_string(path)?;
        if bulkhead_claims::decode_json(token.trim())?.sub == key {
            return Ok(token);
        }
    }
    anyhow::bail!("no token of {key} in {}", accounts.display())
}

impl Server {
    /// Starts it with the operator's and the system account's tokens as they are in the store that nsc uses.
    pub(crate) async fn start(folder: &Path, store: &OperatorStore, nsc: &Nsc) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let system = store.system()?;
        let log = folder.join("server.log");
        let place = nsc.data().join("stores").join(store.name());
        let operator = std::fs::read_to_string(place.join(format!("{}.jwt", store.name())))?;
        let system_token = token_of(&place.join("accounts"), system.key.as_str())?;
        let config = format!(
            "listen: 127.0.0.1:-1\nlog_file: {log:?}\noperator: {operator}\nsystem_account: {}\n\
             resolver: {{ type: full, dir: {:?}, allow_delete: true }}\nresolver_preload: {{ {}: {} }}\n",
            system.key,
            folder.join("jwt"),
            system.key,
            system_token.trim()
        );
        let path = folder.join("server.conf");
        std::fs::write(&path, config)?;
        let mut command = Command::new(find_test_tools()?.nats_server.path);
        command.arg("-c").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self { process: command.spawn().context("start nats-server")?, url: String::new() };
        let listening = eventually("a nats-server that listens", LIMIT, || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let address = text.lines().find_map(|line| Some(line.split_once("client connections on ")?.1.to_owned()));
            std::future::ready(match address {
                Some(address) if text.contains("Server is ready") => Ok(address),
                Some(_) | None => Err(text),
            })
        });
        server.url = format!("nats://{}", listening.await?.trim());
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
