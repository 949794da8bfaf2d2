//! Several replicas, any of them killed: no lease is lost, and each of them tells the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use bulkhead_bus::RegistryVerb;
use bulkhead_bus::payload::{ErrorCode, MemberEventRow, MemberQuery, MemberState};
use bulkhead_runtime::{MEMBER_BUCKETS, eventually};

use world::{LIMIT, World};

#[tokio::test]
async fn no_lease_is_lost_when_replicas_are_killed_one_after_the_other() {
    let mut world = World::start(2).await;
    let members = world.add_pollers("oslo", 5).await;
    for member in &members {
        member.register().await.unwrap();
    }
    let mut granted = 0;
    for round in 0..3 {
        world.replicas[round].kill().await;
        world.start_replica().await;
        for member in &members {
            let renewed = eventually("a renewal", LIMIT, || async {
                match member.renew().await {
                    Ok(grant) => Ok(grant),
                    // A request that was under way with the replica; it is said again, signed anew.
                    Err(error) if error.code == ErrorCode::Unavailable => Err(error.message),
                    Err(error) => panic!("{error:?}"),
                }
            });
            renewed.await.unwrap();
            granted += 1;
        }
    }
    assert_eq!(granted, 15);
    let lost: i64 = sqlx::query_scalar("select count(*) from shared.member_event where event <> 'joined'")
        .fetch_one(&mut world.database.superuser().await.unwrap())
        .await
        .unwrap();
    assert_eq!(lost, 0, "nobody was lost, fenced or gone");
    for member in &members {
        assert_eq!(world.row(&member.place()).await.unwrap().state, MemberState::Ready);
    }
}

#[tokio::test]
async fn history_is_written_once_by_however_many_replicas() {
    let world = World::start(2).await;
    let p1 = world.add_poller("oslo/p1").await;
    p1.register().await.unwrap();
    p1.renew_as(bulkhead_bus::payload::ReportedState::Draining).await.unwrap();
    let later = p1.other_start(2_000);
    later.register().await.unwrap();
    later.deregister("stopped").await.unwrap();
    let events = eventually("the history", LIMIT, || async {
        let asked = world.ask::<MemberEventRow>(RegistryVerb::ListMemberEvents, &MemberQuery::default()).await;
        let rows = asked.map_err(|error| error.message)?;
        let mut events: Vec<String> = rows.into_iter().map(|row| row.event).collect();
        events.sort();
        if events.len() >= 5 { Ok(events) } else { Err(format!("{events:?}")) }
    });
    assert_eq!(events.await.unwrap(), ["fenced", "gone", "joined", "joined", "renewed_state"]);
    let mut told = 0.0;
    for replica in &world.replicas {
        told += replica.metric("registry_events_written_total").await;
        assert_eq!(replica.metric("registry_events_dropped_total").await, 0.0);
    }
    assert_eq!(told, 5.0);
}

#[tokio::test]
async fn leases_go_on_while_the_database_is_away_and_history_says_so() {
    let world = World::start(1).await;
    let p1 = world.add_poller("oslo/p1").await;
    p1.register().await.unwrap();
    // What is heard to change is read anew, and not believed while it cannot be: that has to be over.
    let since = bulkhead_runtime::now_ms() / 1_000;
    let heard = eventually("the word that the poller was written", LIMIT, || async {
        let seen = world.replicas[0].metric("registry_tenants_seen_timestamp_seconds").await;
        if seen > since as f64 { Ok(()) } else { Err(seen) }
    });
    heard.await.unwrap();
    p1.renew().await.unwrap();
    let database = world.database.pid().to_string();
    let signal = |signal: &str| {
        // Its children serve the connections.
        let all = std::process::Command::new("pkill").args([signal, "-P", &database]).status().unwrap();
        let own = std::process::Command::new("kill").args([signal, &database]).status().unwrap();
        assert!(all.success() && own.success());
    };
    signal("-STOP");
    for _ in 0..20 {
        p1.renew().await.unwrap();
    }
    assert_eq!(world.row("oslo/p1").await.unwrap().state, MemberState::Ready);
    signal("-CONT");
    p1.renew().await.unwrap();
    let history = eventually("history again", LIMIT, || async {
        let asked = world.ask::<MemberEventRow>(RegistryVerb::ListMemberEvents, &MemberQuery::default()).await;
        match asked {
            Ok(rows) if rows.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    history.await.unwrap();
}

#[tokio::test]
async fn what_happens_after_a_bucket_was_lost_is_history_too() {
    let world = World::start(2).await;
    let p1 = world.add_poller("oslo/p1").await;
    p1.register().await.unwrap();
    let joined = async |count: usize| {
        let history = eventually("the history", LIMIT, || async {
            let asked = world.ask::<MemberEventRow>(RegistryVerb::ListMemberEvents, &MemberQuery::default()).await;
            let rows = asked.map_err(|error| error.message)?;
            let joined = rows.iter().filter(|row| row.event == "joined").count();
            if joined == count { Ok(()) } else { Err(format!("{rows:?}")) }
        });
        history.await.unwrap();
    };
    joined(1).await;
    for _ in 0..5 {
        p1.renew().await.unwrap();
    }
    for bucket in MEMBER_BUCKETS {
        let subject = format!("$JS.API.STREAM.DELETE.KV_{}", bucket.name);
        let gone = world.witness.request(&subject, "".into(), world::ANSWER_LIMIT).await.unwrap();
        assert!(String::from_utf8_lossy(&gone).contains("\"success\":true"), "{gone:?}");
        world.witness.ensure_bucket(&bucket, 1).await.unwrap();
    }
    // The new bucket gives it the revision that the old one gave.
    let registered =
        eventually("a lease again", LIMIT, || async { p1.register().await.map_err(|error| error.message) });
    assert_eq!(registered.await.unwrap().revision, 1);
    joined(2).await;
}
