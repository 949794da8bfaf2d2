//! Many who come back at once, because the hub was away, are all let in, and no gatekeeper takes that for its own hang.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_bus::payload::ADMITTED;
use bulkhead_runtime::Backoff;
use bulkhead_testkit::{Identity, Link, RawClient, TcpProxy};
use futures_util::future::try_join_all;

use crate::entering::{poller, soon_in};
use crate::hub::{ACME, GateHub, LIMIT};

const CROWD: usize = 500;
/// As our own clients pause after a refusal.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// A probe may take longer than it waits for one, as in a storm: what comes back late has not hung.
#[tokio::test]
async fn a_replica_whose_messages_are_late_goes_on() -> anyhow::Result<()> {
    let mut hub = GateHub::start(0).await?;
    let link = TcpProxy::start(hub.client_endpoint().addr).await?;
    hub.start_gatekeeper_at(1, link.addr).await?;
    link.set(Link::Slow(Duration::from_millis(400)));
    // Longer than a replica may be silent.
    let mut ticks = tokio::time::interval(Duration::from_secs(12));
    ticks.tick().await;
    ticks.tick().await;
    hub.gatekeepers[0].check_running().context("it has taken that for a hang")?;
    link.set(Link::Up);
    soon_in(&hub, &hub.certificate(&poller(ACME, "oslo", "p1"))?).await?;
    Ok(())
}

async fn enter(hub: &GateHub, identity: &Identity) -> anyhow::Result<RawClient> {
    let (began, mut pace) = (Instant::now(), Backoff::new(PAUSE_FIRST, PAUSE_MOST));
    loop {
        match hub.connect(identity).await {
            Ok(client) => return Ok(client),
            Err(error) if began.elapsed() > LIMIT => return Err(error).context("somebody is not let in"),
            Err(_) => pace.pause().await,
        }
    }
}

async fn all_enter(hub: &GateHub, identity: &Identity) -> anyhow::Result<Vec<RawClient>> {
    try_join_all((0..CROWD).map(|_| enter(hub, identity))).await
}

#[tokio::test]
async fn all_who_come_back_at_once_are_let_in() -> anyhow::Result<()> {
    let mut hub = GateHub::start(2).await?;
    let p1 = hub.certificate(&poller(ACME, "oslo", "p1"))?;
    let before = all_enter(&hub, &p1).await?;
    let admitted = async |hub: &GateHub| -> anyhow::Result<usize> {
        Ok(hub.decisions().await?.iter().filter(|one| one.outcome == ADMITTED).count())
    };
    hub.server.kill()?;
    hub.server.restart()?;
    let after = all_enter(&hub, &p1).await?;
    ensure!(before.iter().all(RawClient::is_closed), "the hub was not away");
    ensure!(!after.iter().any(RawClient::is_closed), "somebody was put out again");
    for gatekeeper in &mut hub.gatekeepers {
        gatekeeper.check_running().context("a gatekeeper has ended itself")?;
    }
    // Whoever is in was decided on, and that is written down, however many there were at once.
    let count = bulkhead_runtime::eventually("all decisions in their stream", LIMIT, || async {
        let count = admitted(&hub).await.map_err(|error| format!("{error:#}"))?;
        if count >= 2 * CROWD { Ok(()) } else { Err(format!("{count} of {}", 2 * CROWD)) }
    });
    Ok(count.await?)
}
