//! Who gets a lease, who keeps it and who is told to stop, on a real hub with the rights of the roles.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use bulkhead_bus::header::Sequence;
use bulkhead_bus::payload::{ErrorCode, MemberState, ReportedState};
use bulkhead_bus::{LeaseClass, LeaseVerb};
use bulkhead_runtime::eventually;
use bulkhead_store::PollerState;
use nkeys::KeyPair;

use world::{LIMIT, Member, World, code};

#[tokio::test]
async fn a_member_comes_renews_ends_and_is_lost_and_each_is_another_state() {
    let world = World::start(1).await;
    let (p1, p2) = (world.add_poller("oslo/p1").await, world.add_poller("oslo/p2").await);
    world.until("oslo/p2", MemberState::Never).await;
    let granted = p1.register().await.unwrap();
    assert_eq!((granted.ttl_ms, granted.heartbeat_ms, granted.is_held), (6_000, 2_000, false));
    let row = world.until("oslo/p1", MemberState::Ready).await;
    assert_eq!((row.boot, row.class), (Some(1_000), LeaseClass::Fast));
    assert_eq!(row.info.unwrap().release, "0.1.0");
    let renewed = p1.renew_as(ReportedState::Draining).await.unwrap();
    assert!(renewed.revision > granted.revision, "the revision is the fencing token");
    world.until("oslo/p1", MemberState::Draining).await;

    let ended = p1.deregister("upgrade").await.unwrap();
    assert_eq!(ended.ttl_ms, 0);
    let row = world.until("oslo/p1", MemberState::Gone).await;
    assert_eq!(row.because.as_deref(), Some("upgrade"));
    assert_eq!(code(p1.renew().await), ErrorCode::NotFound, "who ended registers again");

    p2.register().await.unwrap();
    world.until("oslo/p2", MemberState::Ready).await;
    let row = world.until("oslo/p2", MemberState::Lost).await;
    let (since_ms, renewed_ms) = (row.since_ms.unwrap(), row.renewed_ms.unwrap());
    assert!((5_000..9_000).contains(&(since_ms - renewed_ms)), "a lease of the fast class lasts 6 s: {row:?}");
    assert_eq!(world.row("oslo/p1").await.unwrap().state, MemberState::Gone, "a clean end lasts");
    let later = p2.other_start(2_000);
    later.register().await.unwrap();
    world.until("oslo/p2", MemberState::Ready).await;
}

#[tokio::test]
async fn an_answer_that_was_lost_fences_nobody() {
    let world = World::start(1).await;
    let p1 = world.add_poller("oslo/p1").await;
    let first = p1.register().await.unwrap();
    for _ in 0..3 {
        // It renews, and goes on with the revision that it knows.
        let mut body = p1.renew_body(ReportedState::Ready);
        body.revision = first.revision;
        let renewed = p1.send(p1.signed(LeaseVerb::Renew, &body)).await.unwrap();
        assert!(renewed.revision > first.revision);
    }
    // The same request twice is as good as once.
    let signed = p1.signed(LeaseVerb::Renew, &p1.renew_body(ReportedState::Ready));
    let once = p1.send(signed.clone()).await.unwrap();
    assert_eq!(p1.send(signed).await.unwrap().revision, once.revision, "nothing is written for it");
    // A registration whose answer was lost.
    p1.register().await.unwrap();
    p1.register().await.unwrap();
    p1.renew().await.unwrap();
}

#[tokio::test]
async fn of_two_with_one_identity_the_later_start_wins_in_either_order() {
    let world = World::start(2).await;
    let (earlier, also_earlier) = (world.add_poller("oslo/p1").await, world.add_poller("oslo/p2").await);
    let later = earlier.other_start(2_000);
    earlier.register().await.unwrap();
    later.register().await.unwrap();
    let also_later = also_earlier.other_start(2_000);
    also_later.register().await.unwrap();
    assert_eq!(code(also_earlier.register().await), ErrorCode::Fenced);
    for (loser, winner) in [(&earlier, &later), (&also_earlier, &also_later)] {
        for _ in 0..5 {
            assert_eq!(code(loser.renew().await), ErrorCode::Fenced);
            assert_eq!(code(loser.register().await), ErrorCode::Fenced);
            assert_eq!(code(loser.deregister("stopped").await), ErrorCode::Fenced);
            winner.renew().await.unwrap();
        }
        assert_eq!(world.row(&winner.place()).await.unwrap().boot, Some(2_000));
    }
}

#[tokio::test]
async fn a_leaf_link_is_spoken_for_by_any_poller_of_its_site_and_a_second_forwarder_waits() {
    let world = World::start(1).await;
    let (p1, p2) = (world.add_poller("oslo/p1").await, world.add_poller("oslo/p2").await);
    let abroad = world.add_poller("rome/p1").await;
    let leaf = |of: &Member, boot| {
        let mut leaf = world.member("oslo/fwd", KeyPair::from_seed(&of.key.seed().unwrap()).unwrap());
        leaf.boot = boot;
        leaf
    };
    let (first, second) = (leaf(&p1, bulkhead_runtime::now_ms() as u64), leaf(&p2, 2_000));
    first.register().await.unwrap();
    world.until("oslo/fwd", MemberState::Ready).await;
    assert_eq!(code(second.register().await), ErrorCode::Fenced);
    assert_eq!(code(leaf(&abroad, u64::MAX).register().await), ErrorCode::NotSigned, "of another site");
    first.deregister("stopped").await.unwrap();
    second.register().await.unwrap();
    assert_eq!(world.until("oslo/fwd", MemberState::Ready).await.boot, Some(2_000));
}

#[tokio::test]
async fn whoever_is_not_proved_by_a_good_key_is_refused_and_changes_nothing() {
    let world = World::start(1).await;
    let (p1, p2) = (world.add_poller("oslo/p1").await, world.add_poller("oslo/p2").await);
    let nobody = world.member("oslo/p9", KeyPair::new_user());
    assert_eq!(code(nobody.register().await), ErrorCode::NotSigned);
    let mut disguised = world.member("oslo/p1", KeyPair::from_seed(&p2.key.seed().unwrap()).unwrap());
    disguised.boot = u64::MAX;
    assert_eq!(code(disguised.register().await), ErrorCode::NotSigned, "another poller's key");
    let mut unsigned = p1.signed(LeaseVerb::Register, &p1.register_body());
    unsigned.headers = bulkhead_runtime::Headers::default();
    assert_eq!(code(p1.send(unsigned).await), ErrorCode::NotSigned);
    let mut changed = p1.signed(LeaseVerb::Register, &p1.register_body());
    changed.body =
        serde_json::to_vec(&bulkhead_bus::payload::Register { class: LeaseClass::Normal, ..p1.register_body() })
            .unwrap();
    assert_eq!(code(p1.send(changed).await), ErrorCode::NotSigned, "another body than was signed");
    let mut moved = p1.signed(LeaseVerb::Deregister, &p1.register_body());
    moved.subject = moved.subject.replace("deregister", "register");
    assert_eq!(code(p1.send(moved).await), ErrorCode::NotSigned, "signed for another verb");
    let other_boot = p1.signed_as(LeaseVerb::Register, &p1.register_body(), Sequence { boot: 5, number: 1 });
    assert_eq!(code(p1.send(other_boot).await), ErrorCode::Invalid);
    assert_eq!(world.until("oslo/p1", MemberState::Never).await.revision, None);
    assert_eq!(world.row("oslo/p9").await, None);
    p1.register().await.expect("control: with its own key it is let in");
}

#[tokio::test]
async fn what_was_said_before_is_no_request_any_more() {
    let world = World::start(1).await;
    let p1 = world.add_poller("oslo/p1").await;
    let registered = p1.signed(LeaseVerb::Register, &p1.register_body());
    let renewed = p1.signed(LeaseVerb::Renew, &p1.renew_body(ReportedState::Ready));
    p1.send(registered.clone()).await.unwrap();
    p1.send(renewed.clone()).await.unwrap();
    p1.renew().await.unwrap();
    for replayed in [&registered, &renewed] {
        assert_eq!(code(p1.send(replayed.clone()).await), ErrorCode::NotSigned);
    }
    world.until("oslo/p1", MemberState::Lost).await;
    assert_eq!(code(p1.send(registered.clone()).await), ErrorCode::NotSigned, "no lease comes of a recording");
    assert_eq!(code(p1.send(renewed).await), ErrorCode::NotFound);
    // Of an older start, long after.
    let mut old = p1.register_body();
    (old.boot, old.sent_ms) = (500, old.sent_ms - 3_600_000);
    let old = p1.signed_as(LeaseVerb::Register, &old, Sequence { boot: 500, number: 1 });
    assert_eq!(code(p1.send(old).await), ErrorCode::NotSigned);
    assert_eq!(world.row("oslo/p1").await.unwrap().state, MemberState::Lost);
    p1.register().await.expect("control: the next one is new");
}

#[tokio::test]
async fn a_revoked_poller_is_refused_by_every_replica() {
    let world = World::start(2).await;
    let p1 = world.add_poller("oslo/p1").await;
    p1.register().await.unwrap();
    let (site, poller) = (p1.site.clone(), p1.name.poller().unwrap().clone());
    world.provisioning.set_poller_state(&world.acme, (&site, &poller), PollerState::Revoked).await.unwrap();
    // Either replica answers, and each believes its keys for a second at most.
    let refused = eventually("refusals of whoever answers", LIMIT, || async {
        for _ in 0..20 {
            match p1.renew().await {
                Err(error) if error.code == ErrorCode::NotSigned => {}
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(())
    });
    refused.await.unwrap();
    world.provisioning.set_poller_state(&world.acme, (&site, &poller), PollerState::Active).await.unwrap();
    let back =
        eventually("control: it is let in again", LIMIT, || async { p1.renew().await.map_err(|error| error.message) });
    back.await.unwrap();
}
