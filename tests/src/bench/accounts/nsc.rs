//! The official tool beside ours: a store with the same accounts, and a server of its own that holds them.
//!
//! The store is a copy of ours, which is laid out as nsc does; the server's folder of tokens is a copy of the hub's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::times::Times;
use super::town::{Town, resident_bytes};
use crate::operator_server::OperatorServer;

/// The official tool at one size of its store.
#[derive(Debug, Clone)]
pub struct OfficialTool {
    /// `nsc add account`.
    pub add: Times,
    /// `nsc push --account` of that account.
    pub push: Times,
    /// Both, one after the other.
    pub both: Times,
    pub accounts: usize,
    /// What its server has in memory; it loads an account when somebody asks for it.
    pub server_bytes: u64,
}

/// nsc with its store and its server.
pub(super) struct Nsc {
    program: PathBuf,
    folder: TempDir,
    server: OperatorServer,
    accounts: usize,
}

impl Nsc {
    pub(super) async fn start(program: &Path, town: &Town) -> anyhow::Result<Self> {
        let (layout, operator) = (&town.tenancy.platform.layout, &town.tenancy.platform.operator);
        let folder = tempfile::Builder::new().prefix("bulkhead-bench-nsc-").tempdir().context("make a folder")?;
        let root = folder.path().join("data").join("nats").join("nsc");
        let ours = layout.operator();
        copy_files(&ours.join("stores"), &root.join("stores"))?;
        copy_files(&ours.join("keys").join("keys"), &root.join("keys").join("keys"))?;
        let settings = json!({"store_root": root.join("stores"), "operator": operator.name(), "account": "sys",
                              "github_updates": "nats-io/nsc", "last_update": 0});
        let settings_file = folder.path().join("config").join("nats").join("nsc").join("nsc.json");
        write(&settings_file, &settings.to_string())?;
        copy_files(&layout.hub_server(1).join("jwt"), &folder.path().join("jwt"))?;
        let accounts_folder = root.join("stores").join(operator.name()).join("accounts");
        let accounts = std::fs::read_dir(&accounts_folder)?.count();
        // nsc pushes as a user that it makes for the moment, with a key that no role binds.
        run(program, folder.path(), &["edit", "account", "sys", "--sk", "generate"])?;
        let system = operator.system().context("read the system account")?.key;
        let token = std::fs::read_to_string(accounts_folder.join("sys").join("sys.jwt"))?;
        let known = folder.path().join("jwt").join(format!("{system}.jwt"));
        if known.exists() {
            std::fs::remove_file(known)?;
        }
        let server = OperatorServer::start(folder.path(), &operator.token, (system.as_str(), &token)).await?;
        Ok(Self { program: program.to_owned(), folder, server, accounts })
    }

    /// Runs it `runs` times for a new account each.
    pub(super) fn measure(&self, runs: usize) -> anyhow::Result<OfficialTool> {
        let (mut adds, mut pushes) = (Vec::new(), Vec::new());
        for number in 0..runs {
            let name = format!("by-nsc-{number}");
            adds.push(self.run(&["add", "account", "--name", &name])?.1);
            let (said, took) = self.run(&["push", "--account", &name, "-u", &self.server.url])?;
            ensure!(said.contains("jwt updated") || said.contains("pushed"), "nsc push: {said}");
            pushes.push(took);
        }
        let both = adds.iter().zip(&pushes).map(|(add, push)| *add + *push).collect();
        Ok(OfficialTool {
            add: adds.into_iter().collect(),
            push: pushes.into_iter().collect(),
            both,
            accounts: self.accounts,
            server_bytes: resident_bytes(self.server.pid())?,
        })
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<(String, Duration)> {
        run(&self.program, self.folder.path(), args)
    }
}

/// Runs nsc on its store in `folder`; what it said, and how long it took.
fn run(program: &Path, folder: &Path, args: &[&str]) -> anyhow::Result<(String, Duration)> {
    let mut command = Command::new(program);
    command.args(args).env("HOME", folder).env("XDG_CONFIG_HOME", folder.join("config"));
    command.env("XDG_DATA_HOME", folder.join("data")).env("NSC_NO_GIT_IGNORE", "true").env_remove("NATS_CA");
    let began = Instant::now();
    let output = command.current_dir(folder).output().context("run nsc")?;
    let took = began.elapsed();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "nsc {args:?}: {said}");
    Ok((said, took))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn copy_files(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).with_context(|| format!("copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}
