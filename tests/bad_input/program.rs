//! The programs as people run them: processes of their own, with a home folder and output that is kept.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::deployment::program;
use bulkhead_testkit::{LIMIT, find_test_tools};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// What this machine's own settings must not change.
const OWN_SETTINGS: [&str; 3] = ["BULKHEAD_HOME", "BULKHEAD_PROFILE", "BULKHEAD_TOOLS_DIR"];
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

/// What `up` says when every check has a stored result.
const RUNNING: &str = "Query it from another terminal";

/// Runs a built program to its end, with `search_path` as its PATH.
pub(crate) async fn run(name: &str, args: &[&str], search_path: &OsString) -> anyhow::Result<Output> {
    let mut command = Command::new(program(name)?);
    command.args(args).env("PATH", search_path).stdin(Stdio::null()).kill_on_drop(true);
    for name in OWN_SETTINGS {
        command.env_remove(name);
    }
    let ended = tokio::time::timeout(LIMIT * 2, command.output());
    ended.await.with_context(|| format!("{name} took too long"))?.with_context(|| format!("run {name}"))
}

/// A PATH on which the servers of this test run are found first, whatever the machine has.
pub(crate) fn search_path() -> anyhow::Result<OsString> {
    let tools = find_test_tools()?;
    let folder = |path: &Path| path.parent().map(Path::to_owned).context("find a server's folder");
    let servers = [folder(&tools.nats_server.path)?, folder(&tools.postgres.path)?];
    let system = SYSTEM_FOLDERS.iter().map(PathBuf::from);
    std::env::join_paths(servers.into_iter().chain(system)).context("join PATH")
}

/// A state folder for `bulkhead up`, removed at the end.
pub(crate) struct Home {
    folder: TempDir,
    search_path: OsString,
}

impl Home {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bulkhead-test-").tempdir().context("make a folder")?;
        // So that the database's user may pass.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).context("open the folder")?;
        Ok(Self { folder, search_path: search_path()? })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// Runs `bulkhead up` until every check has a stored result, or it fails: its exit code and what it says.
    pub(crate) async fn up(&self) -> anyhow::Result<(Option<i32>, String)> {
        let home = self.path().display().to_string();
        let output = run("bulkhead", &["--home", &home, "up", "--until-first-results"], &self.search_path).await?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Runs `bulkhead up`, asks it for all stored results, and ends it: tenant, check and slot of each.
    pub(crate) async fn list_slots(&self) -> anyhow::Result<BTreeSet<String>> {
        let text_file = self.folder.path().join("up.txt");
        let mut command = Command::new(program("bulkhead")?);
        command.arg("--home").arg(self.path()).arg("up").env("PATH", &self.search_path).kill_on_drop(true);
        let output = File::create(&text_file).context("keep the output")?;
        let mut up = command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output).spawn()?;
        let running = eventually("stored results", LIMIT, || {
            let text = fs::read_to_string(&text_file).unwrap_or_default();
            std::future::ready(if text.contains(RUNNING) { Ok(()) } else { Err(text) })
        });
        running.await.context("wait for bulkhead up")?;
        let home = self.path().display().to_string();
        let asked = ["--home", &home, "results", "list", "--limit", "1000", "--json"];
        let listed = run("bulkhead", &asked, &self.search_path).await?;
        anyhow::ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let pid = up.id().context("bulkhead up has ended")?.to_string();
        std::process::Command::new("kill").args(["-INT", &pid]).status().context("interrupt bulkhead up")?;
        let ended = tokio::time::timeout(LIMIT, up.wait()).await.context("bulkhead up goes on")??;
        anyhow::ensure!(ended.success(), "bulkhead up: {ended}");
        let slot = |line: &str| -> anyhow::Result<String> {
            let row: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            Ok(format!("{} {} {}", row["tenant"], row["check"], row["slot_ms"]))
        };
        std::str::from_utf8(&listed.stdout)?.lines().map(slot).collect()
    }

    /// Processes that have this folder on their command line.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<String>> {
        let home = self.path().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
            // A process may end while it is looked at.
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&home) {
                found.push(line);
            }
        }
        Ok(found)
    }
}
