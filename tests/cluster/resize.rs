//! A home whose hub gets another number of servers: what the old hub has acknowledged is stored before it goes.

use std::path::PathBuf;

use anyhow::Context;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::hub_state::hub_state;
use bulkhead_accounts::up::{Deployment, Options, Programs};
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{LIMIT, StoppedDeployment, TestDeployment};
use bulkhead_tests::slots::Slots;

/// Batches that the hub holds and core has not stored.
async fn held(deployment: &TestDeployment) -> u64 {
    let states = hub_state(&deployment.up.system, deployment.up.hub_size()).await;
    states.iter().map(|state| state.messages).max().unwrap_or(0)
}

/// Stops a deployment whose hub holds what core has not stored.
async fn pause_with_held_batches(mut deployment: TestDeployment) -> anyhow::Result<StoppedDeployment> {
    deployment.up.core.kill()?;
    let filled = eventually("batches at the hub", LIMIT, || async {
        let held = held(&deployment).await;
        if held >= 4 { Ok(()) } else { Err(format!("{held} batches")) }
    });
    filled.await?;
    deployment.pause().await
}

async fn start_with(mut stopped: StoppedDeployment, hub: Option<HubSize>) -> anyhow::Result<TestDeployment> {
    stopped.options.hub_servers = hub;
    stopped.start().await
}

/// A change that core cannot make possible changes nothing.
async fn expect_no_change_without_core(stopped: &StoppedDeployment) -> anyhow::Result<()> {
    let idle = Programs { core: PathBuf::from("/bin/false"), ..stopped.options.programs.clone() };
    let options = Options { hub_servers: Some(HubSize::Three), programs: idle, ..stopped.options.clone() };
    let started = Box::pin(Deployment::start(options, &|_| {})).await;
    let error = started.err().context("a hub was changed without core")?;
    assert!(format!("{:#}", anyhow::Error::from(error)).contains("core has ended"));
    let home = &stopped.options.home;
    assert!(home.join("hub").join("js").exists() && !home.join("hub-2").exists() && !home.join("hub.json").exists());
    Ok(())
}

#[tokio::test]
async fn a_hub_gets_three_servers_and_one_again_and_every_slot_is_stored() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    drop(witness);
    let since = now_ms();
    let stopped = pause_with_held_batches(deployment).await?;
    let period = (since, now_ms());
    // A home from before there were three servers has no such file.
    std::fs::remove_file(stopped.options.home.join("hub.json"))?;
    expect_no_change_without_core(&stopped).await?;

    let deployment = start_with(stopped, Some(HubSize::Three)).await?;
    assert_eq!(deployment.up.hub_size(), HubSize::Three);
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    Slots { period_ms: period, ..Slots::ALL }.wait_until_gapless(&witness).await?;
    drop(witness);

    // Without being told it stays at three, and a server whose disk is gone is filled by the others.
    let stopped = deployment.pause().await?;
    std::fs::remove_dir_all(stopped.options.home.join("hub-2"))?;
    let deployment = start_with(stopped, None).await?;
    assert_eq!(deployment.up.hub_size(), HubSize::Three);
    let states = deployment.up.wait_until_replicas_current().await?;
    assert!(states.iter().all(|state| state.streams == 6), "{states:?}");

    let since = now_ms();
    let stopped = pause_with_held_batches(deployment).await?;
    let (home, period) = (stopped.options.home.clone(), (since, now_ms()));
    let deployment = start_with(stopped, Some(HubSize::One)).await?;
    assert_eq!(deployment.up.hub_size(), HubSize::One);
    assert!(!home.join("hub-2").exists() && !home.join("hub-3").exists());
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    Slots { period_ms: period, ..Slots::ALL }.wait_until_gapless(&witness).await?;
    deployment.stop().await
}
