//! A hub of three servers, whose streams are restored on each of them.

use bulkhead_testkit::TestDeployment;
use bulkhead_testkit::deployment::TRIAL;

use crate::books::stored;
use crate::story::{HELD_LEAST, Safe, WITHOUT_SITES, back_up, done, text, wait_until_held};

#[tokio::test]
async fn a_hub_of_three_comes_back_with_what_its_streams_held() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start_cluster(&TRIAL).await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    deployment.up.core.kill()?;
    wait_until_held(&deployment, |held| held >= HELD_LEAST).await?;
    let safe = Safe::make()?;
    let (backup, manifest) = back_up(&deployment, &safe, "cluster.bulkhead").await?;
    assert_eq!(manifest.hub_servers.servers(), 3);
    let report = safe.rehearse(&backup).await?;
    assert!(report.results > manifest.results.values().sum(), "the streams gave nothing: {:?}", report.checks);
    // The live one is as it was.
    deployment.up.core.restart()?;
    deployment.wait_for_results(&witness).await?;
    assert!(i64::try_from(stored(&witness).await?.len())? > report.results);
    drop(witness);
    deployment.stop().await?;

    let home = TestDeployment::home_folder()?;
    let key = safe.key();
    done(home.path(), &["restore", text(&backup)?, "--identity", text(&key)?]).await?;
    let again = TestDeployment::start_in(home, &WITHOUT_SITES, |_| {}).await?;
    let states = again.up.wait_until_replicas_current().await?;
    assert!(states.len() == 3 && states.iter().all(|state| state.streams == 6), "{states:?}");
    wait_until_held(&again, |held| held == 0).await?;
    assert_eq!(i64::try_from(stored(&again.witness().await?).await?.len())?, report.results);
    again.stop().await
}
