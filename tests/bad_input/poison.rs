//! One message that ends the client which it is handed to, on each way into core that delivers at most once: core goes on
//! listening, and everybody else is answered and shown as before.

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, RawClient, RawLeaf, TestDeployment};

/// Text, and a panic of the client library for it (async-nats 0.51).
const BLOCK: &str = "NATS/1.0\r\nX: a\rb\r\n\r\n";

fn poisoned(verb: &str, subject: &str) -> Vec<u8> {
    let body = "{}";
    format!("{verb} {subject} {} {}\r\n{BLOCK}{body}\r\n", BLOCK.len(), BLOCK.len() + body.len()).into_bytes()
}

/// How often a client of core has ended by itself so far.
fn ended_clients(deployment: &TestDeployment) -> anyhow::Result<usize> {
    let log = std::fs::read_to_string(deployment.up.layout.log("core")).context("read core's log")?;
    Ok(log.matches("has ended by itself").count())
}

async fn wait_for_end(deployment: &TestDeployment, before: usize) -> anyhow::Result<()> {
    let ended = eventually("a client of core to end", LIMIT, || async {
        let count = ended_clients(deployment).map_err(|error| format!("{error:#}"))?;
        if count > before { Ok(()) } else { Err(format!("{count} have ended")) }
    });
    Ok(ended.await?)
}

async fn live_received(deployment: &TestDeployment) -> anyhow::Result<f64> {
    deployment.metrics("core").await?.value("core_live_received_total", &[]).context("live messages are counted")
}

async fn wait_for_live(deployment: &TestDeployment) -> anyhow::Result<()> {
    let before = live_received(deployment).await?;
    let shown = eventually("another live message", LIMIT, || async {
        let now = live_received(deployment).await.map_err(|error| format!("{error:#}"))?;
        if now > before { Ok(()) } else { Err(format!("{now} as before")) }
    });
    Ok(shown.await?)
}

#[tokio::test]
async fn a_message_that_ends_its_client_stops_nobody() -> anyhow::Result<()> {
    let mut deployment = TestDeployment::start().await?;
    let core = deployment.up.core.pid();
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    wait_for_live(&deployment).await?;

    let identity = deployment.leaf_identity("acme-corp", "oslo")?;
    let leaf = RawLeaf::connect(&deployment.hub_for_leaves(), &identity, "leaf-acme-corp-oslo.raw").await?;
    leaf.send_raw(&poisoned("HMSG", "live.oslo.p1.results")).await?;
    wait_for_end(&deployment, 0).await.context("by way of a live message")?;
    wait_for_live(&deployment).await.context("after a live message that ended the client")?;

    let person = RawClient::connect(&deployment.hub(), &deployment.person_identity("acme-corp-admin")?).await?;
    person.send_raw(&poisoned("HPUB", "up._user.admin.rpc.core.show_status")).await?;
    wait_for_end(&deployment, 1).await.context("by way of a question")?;
    let profile = deployment.up.layout.profile("xyz-inc-admin");
    let profile = profile.to_str().context("profile path")?;
    let answered = eventually("an answer for the other tenant", LIMIT, || async {
        let rows = deployment.rows(&["status", "--profile", profile]).await;
        rows.map_err(|error| format!("{error:#}"))
    });
    assert!(!answered.await?.is_empty());
    let ready = eventually("core to be ready again", LIMIT, || async {
        match deployment.health("core", "/readyz").await {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("{status}: {body}")),
            Err(error) => Err(format!("{error:#}")),
        }
    });
    ready.await?;
    deployment.up.check_running()?;
    assert_eq!(deployment.up.core.pid(), core, "core did not have to be started again");
    deployment.stop().await
}
