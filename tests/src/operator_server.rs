//! A nats-server of an operator, without TLS: full resolver, nothing preloaded but the system account. For what nsc pushes.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, find_test_tools};

/// Ends when it is dropped.
#[derive(Debug)]
pub struct OperatorServer {
    process: Child,
    pub url: String,
}

impl OperatorServer {
    /// Starts it in `folder`, where `jwt` may hold accounts already; `system` is the account's key and token.
    ///
    /// # Errors
    /// When it does not listen in time; the error holds its log.
    pub async fn start(folder: &Path, operator: &str, (system, token): (&str, &str)) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (path, log) = (folder.join("server.conf"), folder.join("server.log"));
        let (operator, token) = (operator.trim(), token.trim());
        let config = format!(
            "listen: 127.0.0.1:-1\nlog_file: {log:?}\noperator: {operator}\nsystem_account: {system}\n\
             resolver: {{ type: full, dir: {:?}, allow_delete: true }}\nresolver_preload: {{ {system}: {token} }}\n",
            folder.join("jwt"),
        );
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

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for OperatorServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
