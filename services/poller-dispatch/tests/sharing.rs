//! Checks from their configuration to the pollers that run them, with pollers that go, replicas that are killed and a registry that
//! cannot tell.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead_bus::payload::{CheckChange, MemberState};
use bulkhead_runtime::eventually;

use self::world::{LIMIT, Poller, World, definition};

fn owners(rows: &[String]) -> BTreeSet<String> {
    let words = rows.iter().map(|row| row.split(' ').collect::<Vec<_>>());
    words.filter(|words| words.len() == 4).map(|words| format!("{}@{}={}", words[0], words[1], words[2])).collect()
}

fn of(rows: &[String], poller: &str) -> usize {
    owners(rows).iter().filter(|owner| owner.ends_with(&format!("={poller}"))).count()
}

/// Both tenants with pollers, acme with so many checks that are shared out.
async fn shared_out(checks: usize) -> (World, Poller, Poller) {
    let mut world = World::start().await;
    world.start_replica().await;
    world.leader(&[0]).await;
    let p1 = world.add_poller(&world.acme, "oslo", "p1").await;
    let p2 = world.add_poller(&world.acme, "oslo", "p2").await;
    let definitions: Vec<_> = (0..checks).map(|number| definition(&format!("c{number:04}"))).collect();
    for some in definitions.chunks(400) {
        world.acme.add(some).await.unwrap();
    }
    let all = |rows: &[String]| owners(rows).len() == checks && of(rows, "nobody") == 0;
    world.until_rows(&world.acme, "all shared out", all).await;
    (world, p1, p2)
}

#[tokio::test]
async fn checks_are_fetched_by_pages_move_when_one_is_lost_and_stay_when_all_memory_is_lost() {
    let (mut world, p1, p2) = shared_out(1_200).await;
    let (one, two) = (p1.fetch(0).await.unwrap(), p2.fetch(0).await.unwrap());
    assert!(one.is_whole && one.ended.is_empty());
    assert_eq!(one.checks.len() + two.checks.len(), 1_200);
    assert!(one.checks.len() > 500, "several pages: {}", one.checks.len());
    let names = |page: &bulkhead_bus::payload::AssignmentPage| {
        page.checks.iter().map(|check| check.probe.name.clone()).collect::<BTreeSet<_>>()
    };
    assert!(names(&one).is_disjoint(&names(&two)));

    // Another tenant's poller gets nothing of it, under whatever name.
    let other = world.add_poller(&world.xyz, "oslo", "p1").await;
    assert_eq!(other.names(0).await, Vec::<String>::new());

    // A process with no memory of it changes nothing.
    let before = world.rows(&world.acme).await;
    world.replicas[0].kill().await;
    world.start_replica().await;
    world.leader(&[1]).await;
    let planned = eventually("a plan", LIMIT, || async {
        let plans = world.replicas[1].metric("dispatch_plans_total{planned=\"unchanged\"}").await;
        if plans >= 2.0 { Ok(()) } else { Err(format!("{plans} plans")) }
    });
    planned.await.unwrap();
    assert_eq!(world.rows(&world.acme).await, before);
    assert!(!p1.fetch(one.generation).await.unwrap().is_whole);
    assert!(p1.names(one.generation).await.is_empty(), "it has all of that");

    // One is lost: what it had moves, with the slots that it may have left, and nothing else does.
    world.say_state(&world.acme, &p2, MemberState::Lost).await;
    let rows = world.until_rows(&world.acme, "all with p1", |rows| of(rows, "p1") == 1_200).await;
    assert_eq!(rows.iter().filter(|row| row.ends_with(" poller_lost")).count(), two.checks.len());
    let delta = p1.fetch(one.generation).await.unwrap();
    assert_eq!((delta.checks.len(), delta.is_whole), (two.checks.len(), false));
    assert!(delta.checks.iter().all(|check| check.owed_from_ms.is_some_and(|owed| owed <= check.from_ms)));
    let ended = p2.fetch(two.generation).await.unwrap();
    assert_eq!((ended.ended.len(), ended.checks.len()), (two.checks.len(), 0));
    assert!(ended.ended.iter().all(|end| delta.checks.iter().any(|begun| begun.from_ms == end.until_ms)));

    // It comes back, and gets its share by a planned hand-over.
    world.say_state(&world.acme, &p2, MemberState::Ready).await;
    let rows = world.until_rows(&world.acme, "some with p2", |rows| of(rows, "p2") > 0).await;
    assert!(of(&rows, "p2") <= 600, "{}", of(&rows, "p2"));
    let back = p2.fetch(0).await.unwrap();
    // What it had before may have slots yet to come.
    let lasting = back.checks.iter().filter(|check| check.until_ms.is_none());
    assert_eq!(lasting.count(), of(&rows, "p2"));
    assert!(back.checks.iter().all(|check| check.owed_from_ms.is_none()));
}

#[tokio::test]
async fn whoever_hands_over_or_is_held_loses_all_and_a_site_that_is_away_nothing() {
    let (world, p1, p2) = shared_out(60).await;
    world.say_state(&world.acme, &p2, MemberState::Draining).await;
    world.until_rows(&world.acme, "all with p1", |rows| of(rows, "p1") == 60).await;
    world.say_state(&world.acme, &p2, MemberState::Ready).await;
    world.until_rows(&world.acme, "some with p2", |rows| of(rows, "p2") > 0).await;
    world.say_state(&world.acme, &p1, MemberState::Quarantined).await;
    let before = world.until_rows(&world.acme, "all with p2", |rows| of(rows, "p2") == 60).await;
    let plans = world.replicas[0].metric("dispatch_plans_total{planned=\"unchanged\"}").await;
    world.say_state(&world.acme, &p2, MemberState::Lost).await;
    let planned = eventually("a plan", LIMIT, || async {
        let now = world.replicas[0].metric("dispatch_plans_total{planned=\"unchanged\"}").await;
        if now > plans { Ok(()) } else { Err(format!("{now} plans")) }
    });
    planned.await.unwrap();
    assert_eq!(world.rows(&world.acme).await, before, "a whole site that is away");
    world.say_state(&world.acme, &p1, MemberState::Ready).await;
    world.until_rows(&world.acme, "all with p1", |rows| of(rows, "p1") == 60).await;
}

#[tokio::test]
async fn a_registry_that_cannot_tell_moves_nothing_and_what_is_new_is_still_given() {
    let (world, _p1, p2) = shared_out(40).await;
    let had = world.rows(&world.acme).await;
    world.say(&world.acme, |said| said.is_known = false).await;
    world.say_state(&world.acme, &p2, MemberState::Lost).await;
    world.acme.add(&[definition("new")]).await.unwrap();
    let new = |rows: &[String]| owners(rows).contains("new@oslo=p1");
    let rows = world.until_rows(&world.acme, "new with p1", new).await;
    assert!(had.iter().all(|row| rows.contains(row)), "nobody loses anything");
    let held = eventually("a hold", LIMIT, || async {
        let held = world.replicas[0].metric("dispatch_tenants_held").await;
        if held > 0.5 { Ok(()) } else { Err("nobody is held") }
    });
    held.await.unwrap();
    // Control: once it is known, and was for a while, the lost one is lost.
    world.say(&world.acme, |said| said.is_known = true).await;
    world.until_rows(&world.acme, "all with p1", |rows| of(rows, "p1") == 41).await;
}

#[tokio::test]
async fn another_replica_plans_when_the_leader_is_killed_and_one_that_slept_writes_nothing() {
    let (mut world, _p1, p2) = shared_out(40).await;
    world.start_replica().await;
    // Asleep before it hears of anything.
    world.replicas[0].signal("-STOP");
    world.leader(&[1]).await;
    world.say_state(&world.acme, &p2, MemberState::Lost).await;
    let moved = world.until_rows(&world.acme, "all with p1", |rows| of(rows, "p1") == 40).await;
    world.replicas[0].signal("-CONT");
    let awake = eventually("no leader any more", LIMIT, || async {
        let is_leader = world.replicas[0].metric("dispatch_is_leader").await;
        if is_leader < 0.5 { Ok(()) } else { Err("it still believes that it plans") }
    });
    awake.await.unwrap();
    assert_eq!(world.rows(&world.acme).await, moved);

    world.replicas[1].kill().await;
    // What was on its way to the one that was killed is answered by nobody: it is said again.
    let added = eventually("somebody who answers", LIMIT, || async {
        let put = CheckChange::Put { definition: definition("late") };
        match tokio::time::timeout(Duration::from_secs(2), world.acme.change(vec![put])).await {
            Ok(changed) => changed.map(drop).map_err(|error| error.message),
            Err(_) => Err("no answer".to_owned()),
        }
    });
    added.await.unwrap();
    let late = |rows: &[String]| owners(rows).contains("late@oslo=p1");
    world.until_rows(&world.acme, "late with p1", late).await;
    assert_eq!(world.leader(&[0]).await, 0);
}
