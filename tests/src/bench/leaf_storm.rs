//! Leaves that lose their hub and come back to it, each with the pauses of nats-server: exactly its `reconnect` after a link
//! that ended or was refused, and up to twice as long when nobody listens (nats-server 2.15.1, server/leafnode.go).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_testkit::{ConnectError, RawLeaf, TestDeployment};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::identity::{SITE, STORM_LIMIT, Storm, TENANT, Way, beside};

/// `reconnect` of a leaf is somewhere between, by its name (`accounts/src/up/site.rs`).
const RECONNECT_LEAST: Duration = Duration::from_secs(1);
const RECONNECT_MOST: Duration = Duration::from_secs(3);
/// Without a link for so long, each is turned off for up to so long: what the poller beside it does (ADR 14).
const STUCK_AFTER: Duration = Duration::from_secs(60);
const REST_MOST: Duration = Duration::from_secs(30);
/// At first they come one after the other.
const FIRST_EVERY: Duration = Duration::from_millis(5);
/// A leaf that is out says so at once: its hub was killed.
const END_LIMIT: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the leaves tell.
#[derive(Default)]
struct Seen {
    inside: Mutex<BTreeSet<usize>>,
    failed: AtomicUsize,
}

impl Seen {
    fn inside(&self) -> usize {
        self.inside.lock().expect("no holder panics").len()
    }
}

async fn pause(length: Duration) {
    let mut pace = tokio::time::interval(length);
    pace.tick().await;
    pace.tick().await;
}

/// Comes in and comes back, until `end`.
async fn keep_in(way: Arc<Way>, number: usize, seen: Arc<Seen>) {
    let reconnect = RECONNECT_LEAST + (RECONNECT_MOST - RECONNECT_LEAST).mul_f64(fastrand::f64());
    let name = format!("leaf-{TENANT}-{SITE}.{number}");
    pause(FIRST_EVERY * u32::try_from(number).unwrap_or(u32::MAX) + FIRST_EVERY).await;
    let (mut since, mut stuck_after) = (Instant::now(), STUCK_AFTER);
    loop {
        if since.elapsed() > stuck_after {
            pause(REST_MOST.mul_f64(fastrand::f64()) + FIRST_EVERY).await;
            (since, stuck_after) = (Instant::now(), stuck_after * 2);
        }
        match RawLeaf::connect(&way.hub, &way.identity, &name).await {
            Ok(leaf) => {
                seen.inside.lock().expect("no holder panics").insert(number);
                let ended = leaf.wait_closed(END_LIMIT).await;
                seen.inside.lock().expect("no holder panics").remove(&number);
                if ended.is_err() {
                    return;
                }
                (since, stuck_after) = (Instant::now(), STUCK_AFTER);
                pause(reconnect).await;
            }
            Err(ConnectError::Unreachable { .. }) => pause(reconnect.mul_f64(1.0 + fastrand::f64())).await,
            Err(_) => {
                seen.failed.fetch_add(1, Ordering::Relaxed);
                pause(reconnect).await;
            }
        }
    }
}

/// Until so many are in, or no longer than the limit; how long that was after `began`.
async fn until_in(seen: &Seen, leaves: usize, began: Instant) -> Duration {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    while seen.inside() < leaves && began.elapsed() < STORM_LIMIT {
        looks.tick().await;
    }
    began.elapsed()
}

/// Machines of one site, each a leaf with a name of its own, whose hub is killed and started again.
pub(super) async fn leaf_storm(deployment: &mut TestDeployment, way: &Way, leaves: usize) -> anyhow::Result<Storm> {
    let (way, seen) = (Arc::new(way.clone()), Arc::new(Seen::default()));
    let (over, mut is_over) = watch::channel(false);
    let theirs = Arc::clone(&seen);
    let staying = tokio::spawn(beside(async move {
        let mut staying = JoinSet::new();
        for number in 0..leaves {
            staying.spawn(keep_in(Arc::clone(&way), number, Arc::clone(&theirs)));
        }
        let _ = is_over.wait_for(|over| *over).await;
        Ok(())
    }));
    until_in(&seen, leaves, Instant::now()).await;
    ensure!(seen.inside() == leaves, "{} of {leaves} leaves are in before the storm", seen.inside());
    deployment.up.hub_child(0).context("the hub")?.restart()?;
    let began = Instant::now();
    seen.failed.store(0, Ordering::Relaxed);
    // They see its end at their own pace.
    let mut looks = tokio::time::interval(LOOK_EVERY);
    while seen.inside() > 0 {
        ensure!(began.elapsed() < STORM_LIMIT, "leaves do not see that their hub is gone");
        looks.tick().await;
    }
    let all_in = until_in(&seen, leaves, began).await;
    let storm = Storm { clients: leaves, inside: seen.inside(), all_in, failed: seen.failed.load(Ordering::Relaxed) };
    over.send(true).context("the leaves are gone")?;
    staying.await.context("the leaves")??;
    Ok(storm)
}
