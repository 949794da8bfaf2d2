//! What becomes of a deployment that is started twice, beside another one, killed, or loses a part.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::deployment::program;
use bulkhead_testkit::{LIMIT, TestDeployment, find_test_tools};
use bulkhead_tests::slots::Slots;
use serde_json::Value;
use tokio::process::{Child, Command};

/// A running `bulkhead up`, its output in a file.
struct Up {
    process: Child,
    home: PathBuf,
    output: PathBuf,
}

fn bulkhead(home: &Path) -> anyhow::Result<Command> {
    // What is found or fetched once is enough for all.
    let tools = find_test_tools()?.nats_server;
    let kept = tools.path.ancestors().find(|folder| folder.ends_with("tools")).map(Path::to_owned);
    let mut command = Command::new(program("bulkhead")?);
    command.arg("--home").arg(home).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(folder) = kept {
        command.env("BULKHEAD_TOOLS_DIR", folder);
    }
    Ok(command)
}

impl Up {
    fn start(home: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let number = std::fs::read_dir(home.parent().context("parent")?)?.count();
        let output = home.with_file_name(format!("up-{number}.txt"));
        let file = std::fs::File::create(&output)?;
        let mut command = bulkhead(home)?;
        command.arg("up").args(args).stdout(file.try_clone()?).stderr(file);
        Ok(Self { process: command.spawn()?, home: home.to_owned(), output })
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    async fn wait_until_it_says(&self, text: &str) -> anyhow::Result<()> {
        let waited = eventually("a line of output", LIMIT, || async {
            let said = self.said();
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
        waited.await.with_context(|| format!("wait for {text:?}"))
    }

    async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        tokio::time::timeout(LIMIT, self.process.wait()).await.context("it goes on")?.context("wait for it")
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let pid = self.process.id().context("it has ended")?.to_string();
        anyhow::ensure!(std::process::Command::new("kill").args([signal, &pid]).status()?.success(), "kill {signal}");
        Ok(())
    }

    /// Ctrl-C, as the terminal sends it.
    async fn interrupt(mut self) -> anyhow::Result<()> {
        self.signal("-INT")?;
        let status = self.ended().await?;
        anyhow::ensure!(status.success(), "{status}: {}", self.said());
        no_process_left(&self.home).await
    }
}

/// Processes that have `home` on their command line.
fn processes_of(home: &Path) -> Vec<(u32, String)> {
    let home = home.display().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let process = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_string_lossy().parse().ok()?;
        let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        line.contains(&home).then_some((pid, line))
    };
    entries.filter_map(process).collect()
}

async fn no_process_left(home: &Path) -> anyhow::Result<()> {
    let waited = eventually("the end of every child", Duration::from_secs(15), || async {
        let left = processes_of(home);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    waited.await.context("children are left")
}

async fn rows(home: &Path, args: &[&str]) -> anyhow::Result<Vec<Value>> {
    let output = bulkhead(home)?.args(args).arg("--json").output().await?;
    anyhow::ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

async fn accounts(home: &Path) -> anyhow::Result<Vec<Value>> {
    Ok(rows(home, &["tenant", "list"]).await?.into_iter().map(|row| row["account"].clone()).collect())
}

async fn results(home: &Path) -> anyhow::Result<u64> {
    Ok(rows(home, &["status"]).await?.iter().filter_map(|row| row["results"].as_u64()).sum())
}

/// The database of root's deployments must be able to pass through the folder.
fn folder() -> anyhow::Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("bulkhead-test-").tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

const RUNNING: &str = "Query it from another terminal";

#[tokio::test]
async fn a_second_start_goes_on_from_the_first_and_a_fresh_one_forgets() -> anyhow::Result<()> {
    let folder = folder()?;
    let home = folder.path().join("home");
    let up = Up::start(&home, &[])?;
    up.wait_until_it_says(RUNNING).await?;
    assert!(up.said().contains("/metrics (core)") && up.said().contains("/metrics (xyz-inc/lima/p1)"), "{}", up.said());
    let (before, keys) = (results(&home).await?, accounts(&home).await?);
    assert!(before > 0);
    up.interrupt().await?;

    // Somebody takes the hub's port meanwhile.
    let ports: Value = serde_json::from_str(&std::fs::read_to_string(home.join("ports.json"))?)?;
    let port = u16::try_from(ports["hub-client"].as_u64().context("hub port")?)?;
    let taken = std::net::TcpListener::bind(("127.0.0.1", port))?;
    let up = Up::start(&home, &[])?;
    up.wait_until_it_says(RUNNING).await?;
    assert!(up.said().contains(&format!("port {port} of hub-client is taken")), "{}", up.said());
    assert!(results(&home).await? > before, "earlier results are gone");
    assert_eq!(accounts(&home).await?, keys);
    drop(taken);
    up.interrupt().await?;

    let up = Up::start(&home, &["--fresh"])?;
    up.wait_until_it_says(RUNNING).await?;
    assert_ne!(accounts(&home).await?, keys);
    up.interrupt().await
}

#[tokio::test]
async fn one_folder_has_one_deployment_and_a_killed_one_is_no_obstacle() -> anyhow::Result<()> {
    let folder = folder()?;
    let home = folder.path().join("home");
    let mut first = Up::start(&home, &[])?;
    first.wait_until_it_says(RUNNING).await?;
    let before = results(&home).await?;

    let mut second = Up::start(&home, &[])?;
    assert_eq!(second.ended().await?.code(), Some(1));
    let pid = first.process.id().context("pid")?.to_string();
    assert!(second.said().contains(&pid) && second.said().contains("--home"), "{}", second.said());
    // With a folder of its own it runs beside the first.
    let mut beside = Up::start(&folder.path().join("beside"), &["--until-first-results"])?;
    assert!(beside.ended().await?.success(), "{}", beside.said());

    first.signal("-KILL")?;
    first.ended().await?;
    no_process_left(&home).await?;
    let again = Up::start(&home, &[])?;
    again.wait_until_it_says(RUNNING).await?;
    assert!(results(&home).await? >= before, "stored results are gone");
    again.interrupt().await
}

#[tokio::test]
async fn the_end_of_a_child_ends_up_with_its_name_and_log() -> anyhow::Result<()> {
    let folder = folder()?;
    let home = folder.path().join("home");
    let mut up = Up::start(&home, &[])?;
    up.wait_until_it_says(RUNNING).await?;
    let core = processes_of(&home).into_iter().find(|(_, line)| line.contains("bulkhead-core"));
    let (pid, _) = core.context("core does not run")?;
    anyhow::ensure!(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status()?.success(), "kill");
    assert_eq!(up.ended().await?.code(), Some(1));
    assert!(up.said().contains("core has ended"), "{}", up.said());
    assert!(up.said().contains("core.log"), "{}", up.said());
    no_process_left(&home).await
}

#[tokio::test]
async fn every_part_may_be_killed_and_no_slot_is_missing_afterwards() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;

    deployment.up.core.kill()?;
    deployment.up.core.restart()?;
    deployment.wait_for_results(&witness).await?;
    deployment.up.hub().kill()?;
    deployment.up.hub().restart()?;
    deployment.wait_for_results(&witness).await?;
    for (_, leaf) in &mut deployment.up.leaves {
        leaf.kill()?;
        leaf.restart()?;
    }
    deployment.wait_for_results(&witness).await?;
    deployment.up.postgres.child.kill()?;
    deployment.up.postgres.restart().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    Slots::ALL.wait_until_gapless(&witness).await?;

    // Control: a slot that is taken away is found missing.
    sqlx::query(
        "delete from shared.result where slot = (select slot from shared.result order by slot offset 12 limit 1)",
    )
    .execute(&witness)
    .await?;
    assert!(!Slots::ALL.gaps(&witness).await?.is_empty(), "a missing slot goes unseen");
    deployment.stop().await
}
