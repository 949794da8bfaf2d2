//! A leaf that has stopped looking for its hub is set going again by the poller beside it.

use std::path::Path;

use anyhow::{Context, ensure};
use bulkhead_runtime::eventually;
use bulkhead_testkit::{Exposition, LIMIT};
use bulkhead_tests::machine::{Machine, Running, neighbouring_ports};

use crate::device::Ground;
use crate::story::{enroll, results_of, wait_for_more};

const LEAF: usize = 0;
const POLLER: usize = 1;
const LOOKED_AT: &str = "stuck_after_s = 3\n";
const LEFT_ALONE: &str = "stuck_after_s = 86400\n";

fn leaf_log(machine: &Machine) -> String {
    std::fs::read_to_string(machine.log(LEAF)).unwrap_or_default()
}

/// Has the leaf read its configuration as it is in between, and puts it back: the server goes on by what nobody can read.
async fn cut(machine: &Machine, running: &Running, file: &str, now: (&str, &str)) -> anyhow::Result<()> {
    let path = machine.bundle.join(file);
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains(now.0), "{file}: {text}");
    let log = || leaf_log(machine).matches("Disabled value is: true").count();
    let before = log();
    std::fs::write(&path, text.replace(now.0, now.1))?;
    let reload = format!("reload={}", running.id(LEAF)?);
    let told = machine.command(&["nats-server", "--signal", &reload].map(str::to_owned))?.output()?;
    ensure!(told.status.success(), "{told:?}");
    let turned = eventually("the link turned off", LIMIT, || async {
        if log() > before { Ok(()) } else { Err(machine.logs()) }
    });
    turned.await?;
    Ok(std::fs::write(&path, text)?)
}

async fn restarts(health: u16) -> anyhow::Result<f64> {
    let page = Exposition::parse(&bulkhead_testkit::scrape::get(health, "/metrics").await?.1)?;
    Ok(page.value("poller_leaf_link_restarts_total", &[]).unwrap_or_default())
}

fn set_patience(settings: &Path, patience: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(settings)?.replace(LOOKED_AT, "").replace(LEFT_ALONE, "");
    Ok(std::fs::write(settings, text.replace("[keeper]\n", &format!("[keeper]\n{patience}")))?)
}

#[tokio::test]
async fn a_link_that_does_not_come_back_is_made_anew() -> anyhow::Result<()> {
    let mut ground = Ground::start().await?;
    let witness = ground.deployment.witness().await?;
    let machine = Machine::new("site")?;
    let (folder, health) = (machine.bundle.clone(), neighbouring_ports(1)?);
    let ports = [neighbouring_ports(1)?, health].map(|port| port.to_string());
    let add = ["poller", "add", "acme-corp/bergen/p1", "--leaf-port", &ports[0], "--health-port", &ports[1]];
    let (added, _) = ground.operator().expect(0, &add).await?;
    let (code, _, error) = enroll(&machine, &folder, &[added[0]["token"].as_str().context("a token")?]).await?;
    ensure!(code == Some(0), "{error}");
    let settings = folder.join("pollers/p1/poller.toml");
    set_patience(&settings, LOOKED_AT)?;
    let mut running = machine.start()?;
    wait_for_more(&witness, &machine, "p1").await?;

    // While the hub is away the remote is turned off and on: whatever became of the server's own search, it begins anew.
    let turned = |to: &str| leaf_log(&machine).matches(&format!("Disabled value is: {to}")).count();
    ground.deployment.up.hub_child(0).context("the hub")?.kill()?;
    let anew = eventually("the link turned off and on", LIMIT, || {
        let seen = (turned("true"), turned("false"));
        std::future::ready(if seen.0 > 0 && seen.1 > 0 { Ok(()) } else { Err(format!("{seen:?}")) })
    });
    anew.await.with_context(|| machine.logs())?;
    // It rests: the time is in the file while it is off.
    let rests = eventually("a time until which it is off", LIMIT, || {
        let text = std::fs::read_to_string(folder.join("link/remote.conf")).unwrap_or_default();
        std::future::ready(if text.starts_with("disabled: true\n# until ") { Ok(()) } else { Err(text) })
    });
    rests.await?;
    ground.deployment.up.hub_child(0).context("the hub")?.restart()?;
    wait_for_more(&witness, &machine, "p1").await?;

    cut(&machine, &running, "leaf.conf", ("include \"link/remote.conf\"", "disabled: true")).await?;
    wait_for_more(&witness, &machine, "p1").await?;
    let before = restarts(health).await?;
    ensure!(before >= 1.0, "it came back by itself: {}", machine.logs());

    // What cannot be written is no restart, and is done as soon as it can be.
    std::fs::rename(folder.join("link"), folder.join("link.away"))?;
    cut(&machine, &running, "leaf.conf", ("include \"link/remote.conf\"", "disabled: true")).await?;
    let said = eventually("the poller says that it cannot", LIMIT, || async {
        let log = std::fs::read_to_string(machine.log(POLLER)).unwrap_or_default();
        if log.contains("turn the link: write ") { Ok(()) } else { Err(log) }
    });
    said.await?;
    for _ in 0..4 {
        ground.deployment.wait_for_results(&witness).await?;
    }
    ensure!(restarts(health).await? <= before, "it counts what it has not done");
    let log = std::fs::read_to_string(machine.log(POLLER))?;
    let last = log.lines().rfind(|line| line.contains("look after the leaf's link")).unwrap_or_default();
    ensure!(!last.contains("works again"), "{last}");
    std::fs::rename(folder.join("link.away"), folder.join("link"))?;
    wait_for_more(&witness, &machine, "p1").await?;
    ensure!(restarts(health).await? > before, "it came back by itself: {}", machine.logs());

    // The control: nobody looks at it.
    set_patience(&settings, LEFT_ALONE)?;
    running.restart(&machine, POLLER).await?;
    wait_for_more(&witness, &machine, "p1").await?;
    cut(&machine, &running, "leaf.conf", ("include \"link/remote.conf\"", "disabled: true")).await?;
    ground.deployment.wait_for_results(&witness).await?;
    let had = results_of(&witness, "p1").await?;
    for _ in 0..4 {
        ground.deployment.wait_for_results(&witness).await?;
    }
    ensure!(results_of(&witness, "p1").await? == had, "it came back by itself");

    // A poller that was killed between off and on: the next one turns it on.
    std::fs::write(folder.join("link/remote.conf"), "disabled: true\n")?;
    running.restart(&machine, POLLER).await?;
    wait_for_more(&witness, &machine, "p1").await?;
    ground.deployment.stop().await
}
