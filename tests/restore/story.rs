//! The whole story: a backup under load, more results, the loss of everything but the sites, and the platform again.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::Context;
use bulkhead_accounts::backup::{Manifest, Opening, Report, RestoreOptions, rehearse};
use bulkhead_accounts::up::{Programs, database_folder};
use bulkhead_bus::StreamName;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::deployment::program;
use bulkhead_testkit::{LIMIT, Link, TcpProxy, TestDeployment, find_test_tools};
use tempfile::TempDir;

use crate::books::{Slot, grid, held, stored};
use crate::damage::{expect_damage_to_be_refused, expect_refusals, with_streams_of};

/// More than an interval's batches of both sites: the streams hold what the database does not.
pub(crate) const HELD_LEAST: u64 = 6;
pub(crate) const WITHOUT_SITES: [&str; 2] = ["acme-corp enterprise", "xyz-inc free"];

/// Where backups of a test and their key are.
pub(crate) struct Safe {
    pub(crate) folder: TempDir,
    pub(crate) recipient: String,
}

impl Safe {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let folder = TestDeployment::home_folder()?;
        let key = age::x25519::Identity::generate();
        let safe = Self { recipient: key.to_public().to_string(), folder };
        let text = age::secrecy::ExposeSecret::expose_secret(&key.to_string()).to_owned();
        bulkhead_accounts::files::write_secret(&safe.key(), text.as_bytes())?;
        Ok(safe)
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("backup.key")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn opening(&self) -> Opening {
        Opening::IdentityFile(self.key())
    }

    pub(crate) async fn rehearse(&self, file: &Path) -> anyhow::Result<Report> {
        let options = RestoreOptions {
            file: file.to_owned(),
            opening: self.opening(),
            home: self.file("rehearsal"),
            tools: find_test_tools()?,
            programs: Programs::beside(program("bulkhead")?),
        };
        let report = rehearse(&options, &|_| {}).await.context("rehearse")?;
        anyhow::ensure!(!options.home.exists(), "the rehearsal has left its copy");
        anyhow::ensure!(report.is_good(), "{:?}", report.checks);
        Ok(report)
    }
}

/// The real program.
pub(crate) async fn bulkhead(home: &Path, args: &[&str]) -> anyhow::Result<Output> {
    let tools = find_test_tools()?.nats_server;
    let kept = tools.path.ancestors().find(|folder| folder.ends_with("tools")).map(Path::to_owned);
    let mut command = tokio::process::Command::new(program("bulkhead")?);
    command.arg("--home").arg(home).args(args).kill_on_drop(true);
    if let Some(folder) = kept {
        command.env("BULKHEAD_TOOLS_DIR", folder);
    }
    tokio::time::timeout(LIMIT * 2, command.output()).await.context("bulkhead took too long")?.context("run bulkhead")
}

pub(crate) async fn done(home: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = bulkhead(home, args).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "bulkhead {args:?} ended with {}: {said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path is text")
}

pub(crate) async fn back_up(
    deployment: &TestDeployment,
    safe: &Safe,
    name: &str,
) -> anyhow::Result<(PathBuf, Manifest)> {
    let file = safe.file(name);
    let args = ["backup", "--to", text(&file)?, "--recipient", &safe.recipient, "--json"];
    let written = done(deployment.home(), &args).await?;
    let key = safe.key();
    let args = ["backup", "show", text(&file)?, "--identity", text(&key)?, "--json"];
    let shown = done(deployment.home(), &args).await?;
    assert_eq!(shown, written, "what was written is not what is read");
    Ok((file, serde_json::from_str(&written)?))
}

/// Parts are in the order in which they were saved: streams, database, files.
fn expect_the_order(manifest: &Manifest) -> anyhow::Result<()> {
    let names: Vec<&str> = manifest.parts.iter().map(|part| part.name.as_str()).collect();
    let database = names.iter().position(|name| *name == "database").context("no database")?;
    let (before, after) = (&names[..database], &names[database + 1..]);
    anyhow::ensure!(before.len() == StreamName::HUB.len(), "before the database: {before:?}");
    anyhow::ensure!(before.iter().all(|name| name.starts_with("streams/")), "before the database: {before:?}");
    anyhow::ensure!(after.iter().all(|name| name.starts_with("home/")), "after the database: {after:?}");
    Ok(())
}

/// A deployment whose sites reach the hub through `link`, on a port that is known.
async fn start_behind(link_port: u16, link: &TcpProxy) -> anyhow::Result<TestDeployment> {
    let home = TestDeployment::home_folder()?;
    std::fs::write(home.path().join("ports.json"), format!("{{\"hub-leaf\": {link_port}}}"))?;
    let url = format!("tls://{}", link.addr);
    TestDeployment::start_in(home, &bulkhead_testkit::deployment::TRIAL, |options| {
        options.leaf_urls = options.tenants.iter().map(|tenant| (tenant.slug.clone(), vec![url.clone()])).collect();
    })
    .await
}

pub(crate) async fn wait_until_held(
    deployment: &TestDeployment,
    is_enough: impl Fn(u64) -> bool,
) -> anyhow::Result<()> {
    let waited = eventually("the hub's streams", LIMIT, || async {
        let held = held(deployment).await;
        if is_enough(held) { Ok(()) } else { Err(format!("{held} batches")) }
    });
    Ok(waited.await?)
}

/// The hub, core and the database die at once and leave nothing; the sites know nothing of it.
fn lose_platform(deployment: &mut TestDeployment) -> anyhow::Result<()> {
    deployment.up.hub().kill()?;
    deployment.up.core.kill()?;
    deployment.up.postgres.child.kill()?;
    let home = deployment.home();
    std::fs::remove_dir_all(database_folder(home))?;
    for folder in ["hub", "core", "nsc", "secrets", "profiles", "provisioning"] {
        std::fs::remove_dir_all(home.join(folder))?;
    }
    for file in ["ports.json", "hub.json"] {
        std::fs::remove_file(home.join(file))?;
    }
    // The public roots are at the sites as well, and `up` lets its sites read them here.
    remove_keys(&home.join("pki"))
}

fn remove_keys(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_keys(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "key") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Waits until each known check has a result newer than `since_ms` and the books balance but for `lost`; what is missing.
async fn wait_for_balance(
    new: &TestDeployment,
    known: &BTreeSet<Slot>,
    lost: &BTreeSet<Slot>,
    since_ms: i64,
) -> anyhow::Result<BTreeSet<Slot>> {
    let witness = new.witness().await?;
    let checks: BTreeSet<_> = known.iter().map(|(t, c, v, _)| (t.clone(), c.clone(), v.clone())).collect();
    let waited = eventually("every slot that was not lost", LIMIT, || async {
        let stored = stored(&witness).await.map_err(|error| format!("{error:#}"))?;
        let fresh = stored.iter().filter(|slot| slot.3 > since_ms);
        let fresh: BTreeSet<_> = fresh.map(|(t, c, v, _)| (t.clone(), c.clone(), v.clone())).collect();
        if fresh != checks {
            return Err(format!("{} of {} checks have gone on", fresh.len(), checks.len()));
        }
        let missing: BTreeSet<Slot> = grid(&(known | &stored)).difference(&stored).cloned().collect();
        let unexplained = missing.difference(lost).count();
        if unexplained == 0 { Ok(missing) } else { Err(format!("{unexplained} slots are missing without a reason")) }
    });
    waited.await.context("the books do not balance")
}

#[tokio::test]
async fn a_platform_that_is_lost_comes_back_and_its_sites_go_on() -> anyhow::Result<()> {
    let [port] = bulkhead_testkit::free_ports()?;
    let link = TcpProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let mut old = start_behind(port, &link).await?;
    let witness = old.witness().await?;
    old.wait_for_results(&witness).await?;
    let early = stored(&witness).await?;

    // Without core the streams hold what the database has not: the backup has to have both.
    let safe = Safe::make()?;
    old.up.core.kill()?;
    wait_until_held(&old, |held| held >= HELD_LEAST).await?;
    let (backup, manifest) = back_up(&old, &safe, "monday.bulkhead").await?;
    let dumped: i64 = manifest.results.values().sum();
    assert!(manifest.messages() >= HELD_LEAST && dumped >= i64::try_from(early.len())?, "{manifest:?}");
    expect_the_order(&manifest)?;
    expect_damage_to_be_refused(&safe, &backup).await?;
    expect_refusals(&old, &safe, &backup).await?;

    old.up.core.restart()?;
    old.wait_for_results(&witness).await?;
    let rehearsed = safe.rehearse(&backup).await?;
    assert!(rehearsed.results > dumped, "the streams gave nothing: {:?}", rehearsed.checks);

    // Control: streams from after the database are what a backup in the wrong order has. It loses results, and is seen to.
    wait_until_held(&old, |held| held == 0).await?;
    let (later, _) = back_up(&old, &safe, "later.bulkhead").await?;
    let wrong = with_streams_of(&safe, &backup, &later)?;
    let wrong = safe.rehearse(&wrong).await?;
    assert!(wrong.results < rehearsed.results, "{} results in the wrong order", wrong.results);

    link.set(Link::Cut);
    wait_until_held(&old, |held| held == 0).await?;
    let at_the_end = stored(&witness).await?;
    drop(witness);
    lose_platform(&mut old)?;

    let home = TestDeployment::home_folder()?;
    done(home.path(), &["restore", text(&backup)?, "--identity", text(&safe.key())?]).await?;
    // A server waits two seconds for each account that another one imports from: with many tenants for too long.
    let log = std::fs::read_to_string(home.path().join("logs/hub.log"))?;
    assert!(!log.contains("Can't locate account"), "pushed before what it imports from: {log}");
    let new = TestDeployment::start_in(home, &WITHOUT_SITES, |_| {}).await?;
    assert_eq!(new.up.hub_servers[0].place.leaf_port, port, "the sites would look for it in vain");
    wait_until_held(&new, |held| held == 0).await?;
    let restored = stored(&new.witness().await?).await?;
    assert_eq!(i64::try_from(restored.len())?, rehearsed.results, "the rehearsal has promised something else");
    assert!(early.is_subset(&restored) && restored.is_subset(&at_the_end));

    // What the hub had taken from the leaves after the backup is lost with it: they do not send it again.
    let lost: BTreeSet<Slot> = at_the_end.difference(&restored).cloned().collect();
    assert!(!lost.is_empty());
    let since = now_ms();
    link.set(Link::Up);
    let missing = wait_for_balance(&new, &at_the_end, &lost, since).await?;
    assert!(!missing.is_empty(), "what was lost is there: the books see nothing");
    new.stop().await
}
