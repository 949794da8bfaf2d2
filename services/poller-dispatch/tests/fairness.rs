//! However much one tenant asks and changes, another tenant's change is answered, planned and fetched meanwhile.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bulkhead_bus::DispatchVerb;
use bulkhead_bus::payload::{ChangeChecks, ChangedCheck, CheckChange, SecretQuery, SecretRow};
use bulkhead_runtime::{Bus, eventually};
use serde_json::json;
use tokio::task::JoinSet;

use self::world::{LIMIT, Place, World, ask, definition};

/// As many as the plan of the large tenant allows, and as many as one change may be about.
const CHECKS: usize = 2_000;
const CHECKS_AT_ONCE: usize = 500;
/// Changes that wait at once: several times as many as are answered at a time.
const CHANGES: usize = 96;
/// How many of them may be answered before one of another tenant that was asked after all of them.
const AHEAD_MOST: usize = CHANGES / 4;
/// Who asks something else for the large tenant, again and again.
const ASKERS: usize = 8;

/// Of some of the checks, one after the other all of them; each differs from the one before it in every check.
fn change(number: usize) -> ChangeChecks {
    let first = number * CHECKS_AT_ONCE % CHECKS;
    let put = |check: usize| {
        let (name, port) = (format!("c{check:04}"), number + 1);
        let target = format!("{name}.example:{port}");
        let definition = json!({"name": name, "type": "tcp", "target": target, "interval": 30, "site": "oslo"});
        CheckChange::Put { definition }
    };
    let changes = (first..first + CHECKS_AT_ONCE).map(put).collect();
    ChangeChecks { tenant: None, changes, removes_others: false, is_rehearsal: false }
}

/// A tenant that has asked for more than can be answered for a while.
struct Flood {
    changes: JoinSet<()>,
    asking: JoinSet<()>,
    answered: Arc<AtomicUsize>,
}

async fn change_some(bus: Bus, number: usize, answered: Arc<AtomicUsize>) -> usize {
    let rows: Vec<ChangedCheck> = ask(&bus, DispatchVerb::ChangeChecks, &change(number)).await.unwrap();
    assert_eq!(rows.len(), CHECKS_AT_ONCE);
    answered.fetch_add(1, Ordering::SeqCst) + 1
}

impl Flood {
    /// All of it is on its way, and some of it is done.
    async fn begin(place: &Place) -> Self {
        let mut flood = Self { changes: JoinSet::new(), asking: JoinSet::new(), answered: Arc::default() };
        for number in 0..CHANGES {
            let (bus, answered) = (place.bus.clone(), Arc::clone(&flood.answered));
            flood.changes.spawn(async move {
                change_some(bus, number, answered).await;
            });
        }
        for _ in 0..ASKERS {
            let bus = place.bus.clone();
            flood.asking.spawn(async move {
                loop {
                    let asked = ask::<SecretRow>(&bus, DispatchVerb::ListSecrets, &SecretQuery::default()).await;
                    assert!(asked.unwrap().is_empty());
                }
            });
        }
        let begun = eventually("the first answer", LIMIT, || async {
            if flood.answered() > 0 { Ok(()) } else { Err("no change is answered") }
        });
        begun.await.unwrap();
        place.bus.flush().await.unwrap();
        flood
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_change_does_not_wait_for_what_another_tenant_has_asked() {
    let mut world = World::start().await;
    world.start_replica().await;
    world.leader(&[0]).await;
    let _large = world.add_poller(&world.acme, "oslo", "p1").await;
    let small = world.add_poller(&world.xyz, "oslo", "p1").await;
    world.xyz.add(&[definition("before")]).await.unwrap();
    let is_shared = |rows: &[String]| rows.last().is_some_and(|row| row.starts_with("before oslo p1 "));
    world.until_rows(&world.xyz, "the first is shared out", is_shared).await;
    let generation = small.fetch(0).await.unwrap().generation;

    let mut flood = Flood::begin(&world.acme).await;
    // Control: one more of the large tenant, asked before the small tenant's, has all of the queue ahead of it.
    let own = tokio::spawn(change_some(world.acme.bus.clone(), CHANGES, Arc::clone(&flood.answered)));
    tokio::task::yield_now().await;
    world.acme.bus.flush().await.unwrap();
    let before = flood.answered();
    world.xyz.add(&[definition("after")]).await.unwrap();
    let ahead = flood.answered() - before;
    assert!(ahead <= AHEAD_MOST, "{ahead} changes of another tenant were answered first, after {before}");

    let fetched = eventually("the change at its poller", LIMIT, || async {
        let page = small.fetch(generation).await.unwrap();
        let is_there = page.checks.iter().any(|check| check.probe.name.as_str() == "after");
        if is_there && page.generation > generation { Ok(()) } else { Err(format!("{page:?}")) }
    });
    fetched.await.unwrap();
    let answered = flood.answered();
    assert!(answered < CHANGES, "the large tenant's queue was worked off meanwhile");
    assert!(!own.is_finished());
    flood.asking.shutdown().await;
    let place = own.await.unwrap();
    assert!(place - before > AHEAD_MOST, "control: the large tenant's own was answered as the {place}th");
    while let Some(ended) = flood.changes.join_next().await {
        ended.unwrap();
    }
}
