//! What people ask: who is chosen, who is held, and what wakes who waits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use bulkhead_bus::payload::{
    Capability, CheckKind, ErrorCode, MemberHold, MemberQuery, MemberRow, MemberState, Pick, ReportedState,
};
use bulkhead_bus::{RegistryEvent, RegistryVerb, TenantSubject};
use bulkhead_runtime::eventually;

use world::{LIMIT, World, code};

async fn selected(world: &World, query: &MemberQuery) -> Vec<String> {
    let rows: Vec<MemberRow> = world.ask(RegistryVerb::SelectMembers, query).await.unwrap();
    rows.iter().map(|row| format!("{}/{}", row.site, row.name)).collect()
}

#[tokio::test]
async fn those_are_chosen_that_are_asked_for() {
    let world = World::start(1).await;
    for (place, region, kind) in [
        ("bergen/p1", "west", CheckKind::Tcp),
        ("oslo/p1", "east", CheckKind::Tcp),
        ("oslo/p2", "east", CheckKind::Icmp),
    ] {
        let mut member = world.add_poller(place).await;
        member.info.labels = [("region".to_owned(), region.to_owned())].into();
        member.info.capabilities = vec![Capability { kind, version: 1 }];
        // Its key may have been looked for in vain a moment ago: it asks again, as pollers do.
        let registered =
            eventually("a registration", LIMIT, || async { member.register().await.map_err(|e| e.message) });
        registered.await.unwrap();
        world.until(place, MemberState::Ready).await;
    }
    world.add_poller("rome/p1").await;
    world.until("rome/p1", MemberState::Never).await;
    let ready = MemberQuery { states: vec![MemberState::Ready], ..Default::default() };
    let labels = [("region".to_owned(), "east".to_owned())].into();
    assert_eq!(selected(&world, &MemberQuery { labels, ..ready.clone() }).await, ["oslo/p1", "oslo/p2"]);
    let tcp = MemberQuery { capabilities: vec![CheckKind::Tcp], ..ready.clone() };
    assert_eq!(selected(&world, &tcp).await, ["bergen/p1", "oslo/p1"]);
    let never = MemberQuery { states: vec![MemberState::Never], ..Default::default() };
    assert_eq!(selected(&world, &never).await, ["rome/p1"]);
    let spread = Pick::Spread { label: "site".to_owned(), count: 2 };
    assert_eq!(selected(&world, &MemberQuery { pick: Some(spread), ..ready.clone() }).await, ["bergen/p1", "oslo/p1"]);
    let rendezvous = MemberQuery { pick: Some(Pick::Rendezvous { key: "web".to_owned(), count: 1 }), ..ready.clone() };
    assert_eq!(selected(&world, &rendezvous).await, selected(&world, &rendezvous).await);
    let first = MemberQuery { pick: Some(Pick::First(1)), ..ready };
    assert_eq!(selected(&world, &first).await, ["bergen/p1"]);
    let foreign = MemberQuery { tenant: Some("xyz-inc".to_owned()), ..Default::default() };
    assert_eq!(code(world.ask::<MemberRow>(RegistryVerb::ListMembers, &foreign).await), ErrorCode::Refused);
}

#[tokio::test]
async fn a_held_poller_is_told_so_and_stays_held_through_registrations() {
    let world = World::start(2).await;
    let p1 = world.add_poller("oslo/p1").await;
    p1.register().await.unwrap();
    let hold = |poller: &str| MemberHold {
        tenant: None,
        site: "oslo".parse().unwrap(),
        poller: poller.parse().unwrap(),
        reason: Some("it is being moved".to_owned()),
    };
    assert_eq!(code(world.ask::<serde_json::Value>(RegistryVerb::HoldMember, &hold("p9")).await), ErrorCode::NotFound);
    let held: Vec<serde_json::Value> = world.ask(RegistryVerb::HoldMember, &hold("p1")).await.unwrap();
    assert_eq!((held[0]["by"].as_str(), held[0]["of"].as_str()), (Some("ann"), Some("acme-corp")));
    let row = world.until("oslo/p1", MemberState::Quarantined).await;
    assert_eq!(row.because.as_deref(), Some("held by ann of acme-corp: it is being moved"));
    let told = eventually("a poller that is told", LIMIT, || async {
        if p1.renew().await.unwrap().is_held { Ok(()) } else { Err("not yet") }
    });
    told.await.unwrap();
    p1.other_start(2_000).register().await.unwrap();
    let row = world.until("oslo/p1", MemberState::Quarantined).await;
    assert_eq!(row.info.unwrap().release, "0.1.0");
    let released: Vec<serde_json::Value> = world.ask(RegistryVerb::ReleaseMember, &hold("p1")).await.unwrap();
    assert!(released.is_empty());
    world.until("oslo/p1", MemberState::Ready).await;
}

#[tokio::test]
async fn who_waits_is_woken_by_news_and_not_by_renewals_and_services_are_told() {
    let world = World::start(1).await;
    let p1 = world.add_poller("oslo/p1").await;
    let subject = world.core(TenantSubject::Event { event: RegistryEvent::Changed });
    let mut told = world.witness.listen(&subject).await.unwrap();
    world.witness.flush().await.unwrap();
    p1.register().await.unwrap();
    tokio::time::timeout(LIMIT, told.next()).await.expect("services are told of who comes");
    let row = world.until("oslo/p1", MemberState::Ready).await;
    let after = MemberQuery { after_revision: row.revision, wait_ms: Some(20_000), ..Default::default() };
    let waiting = async { world.ask::<MemberRow>(RegistryVerb::WatchMembers, &after).await.unwrap() };
    let acting = async {
        let waits = eventually("somebody who waits", LIMIT, || async {
            let waiting = world.replicas[0].metric("registry_questions_waiting").await;
            if waiting == 1.0 { Ok(()) } else { Err(waiting) }
        });
        waits.await.unwrap();
        for _ in 0..3 {
            p1.renew().await.unwrap();
        }
        assert_eq!(world.replicas[0].metric("registry_questions_waiting").await, 1.0, "renewals wake nobody");
        p1.renew_as(ReportedState::Draining).await.unwrap();
    };
    let (rows, ()) = tokio::join!(waiting, acting);
    assert_eq!(rows[0].state, MemberState::Draining);
    let at_once: Vec<MemberRow> = world.ask(RegistryVerb::WatchMembers, &after).await.unwrap();
    assert_eq!(at_once[0].state, MemberState::Draining, "what is newer already is told at once");
    // Not too many wait: a place for each of three.
    let newest = MemberQuery { after_revision: at_once[0].revision, wait_ms: Some(20_000), ..Default::default() };
    let ask = || world.ask::<MemberRow>(RegistryVerb::WatchMembers, &newest);
    let over = async {
        let waits = eventually("three who wait", LIMIT, || async {
            let waiting = world.replicas[0].metric("registry_questions_waiting").await;
            if waiting == 3.0 { Ok(()) } else { Err(waiting) }
        });
        waits.await.unwrap();
        assert_eq!(code(ask().await), ErrorCode::Unavailable);
        p1.deregister("stopped").await.unwrap();
    };
    let (one, two, three, ()) = tokio::join!(ask(), ask(), ask(), over);
    for rows in [one, two, three] {
        assert_eq!(rows.unwrap()[0].state, MemberState::Gone);
    }
}
