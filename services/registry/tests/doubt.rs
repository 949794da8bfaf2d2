//! What the registry says when it cannot know: after many leases end at once, after the hub was away, and while it sees nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use bulkhead_bus::RegistryVerb;
use bulkhead_bus::payload::{ErrorCode, MemberQuery, MemberRow, MemberState, Pick};
use bulkhead_runtime::eventually;

use world::{LIMIT, Member, World, code};

fn states(rows: &[MemberRow]) -> Vec<MemberState> {
    rows.iter().map(|row| row.state).collect()
}

/// Renews those that live until what is looked for is seen.
async fn while_living<T>(living: &[Member], what: &str, look: impl AsyncFn() -> Result<T, String>) -> T {
    let seen = eventually(what, LIMIT, || async {
        for member in living {
            // Also in a hub that is away: who lives goes on.
            if member.renew().await.is_err_and(|error| error.code == ErrorCode::NotFound) {
                let _ = member.register().await;
            }
        }
        look().await
    });
    seen.await.unwrap()
}

async fn page_that_is_known(world: &World, is_known: bool) -> Result<Vec<MemberRow>, String> {
    let page = world.page().await;
    if page.is_known == is_known { Ok(page.members) } else { Err(format!("{page:?}")) }
}

/// Ten members, of whom so many fall silent; what is said of them, at the first word that they are not there any more.
async fn silent_of_ten(silent: usize) -> (World, Vec<Member>, bool, Vec<MemberState>) {
    let world = World::start(1).await;
    let mut members = world.add_pollers("oslo", 10).await;
    for member in &members {
        member.register().await.unwrap();
    }
    let living = members.split_off(silent);
    let (is_known, rows) = while_living(&living, "leases that end", async || {
        let page = world.page().await;
        let ended = page.members.iter().filter(|row| row.state != MemberState::Ready).count();
        if ended == silent { Ok((page.is_known, page.members)) } else { Err(format!("{:?}", states(&page.members))) }
    })
    .await;
    let of_silent = rows.into_iter().filter(|row| row.state != MemberState::Ready).collect::<Vec<_>>();
    (world, living, is_known, states(&of_silent))
}

#[tokio::test]
async fn many_that_end_at_once_are_unknown_and_lost_only_later() {
    let (world, living, is_known, states_of_silent) = silent_of_ten(5).await;
    assert!(!is_known, "half of them at once");
    assert!(states_of_silent.iter().all(|state| *state == MemberState::Unknown), "{states_of_silent:?}");
    let rows = while_living(&living, "trust", async || page_that_is_known(&world, true).await).await;
    let lost = states(&rows).into_iter().filter(|state| *state == MemberState::Lost).count();
    assert_eq!(lost, 5, "after two of the time that a lease has, nobody has come back");
}

#[tokio::test]
async fn one_of_ten_that_ends_is_lost_at_once() {
    let (_world, _living, is_known, states_of_silent) = silent_of_ten(1).await;
    assert!(is_known, "control: that is no mass");
    assert_eq!(states_of_silent, [MemberState::Lost]);
}

#[tokio::test]
async fn a_hub_that_was_away_is_unknown_and_then_known_again() {
    let mut world = World::start(1).await;
    let mut members = world.add_pollers("oslo", 3).await;
    for member in &members {
        member.register().await.unwrap();
    }
    let silent = members.remove(0);
    world.until("oslo/p1", MemberState::Ready).await;
    world.hub.kill().await;
    world.hub.start_again();
    world.witness.until_connected().await;
    world.bus.until_connected().await;
    let (rows, because) = while_living(&members, "an answer after the hub is back", async || {
        let asked = world.ask::<MemberRow>(RegistryVerb::ListMembers, &MemberQuery::default()).await;
        let rows = asked.map_err(|error| error.message)?;
        let page = world.page().await;
        let missing = page.members.iter().find(|row| row.state == MemberState::Unknown && row.name == silent.name);
        missing.map(|_| (rows, page.because)).ok_or_else(|| format!("{:?}", states(&page.members)))
    })
    .await;
    assert_eq!(rows.len(), 3, "nobody is missing from an answer");
    assert!(because.is_some());
    let rows = while_living(&members, "trust", async || page_that_is_known(&world, true).await).await;
    assert_eq!(states(&rows), [MemberState::Lost, MemberState::Ready, MemberState::Ready]);
}

#[tokio::test]
async fn a_registry_that_sees_nothing_never_says_that_nobody_is_there() {
    let world = World::start(1).await;
    let members = world.add_pollers("oslo", 2).await;
    members[0].register().await.unwrap();
    world.until("oslo/p1", MemberState::Ready).await;
    // The bucket is gone: the connection stands, and nothing is ever heard of the leases again.
    let gone =
        world.witness.request("$JS.API.STREAM.DELETE.KV_REG_LEASE", "".into(), world::ANSWER_LIMIT).await.unwrap();
    assert!(String::from_utf8_lossy(&gone).contains("\"success\":true"), "{gone:?}");
    let page = eventually("a blind registry", LIMIT, || page_that_is_known(&world, false)).await.unwrap();
    assert_eq!(states(&page), [MemberState::Unknown, MemberState::Unknown]);
    assert_eq!(states(&world.list().await), [MemberState::Unknown, MemberState::Unknown]);
    let ready = MemberQuery { states: vec![MemberState::Ready], pick: Some(Pick::All), ..Default::default() };
    let listed: Vec<MemberRow> = world.ask(RegistryVerb::ListMembers, &ready).await.unwrap();
    assert_eq!(listed.len(), 2, "who is unknown may be ready");
    assert_eq!(code(world.ask::<MemberRow>(RegistryVerb::SelectMembers, &ready).await), ErrorCode::Unavailable);
    assert_eq!(code(members[0].renew().await), ErrorCode::Unavailable, "and nothing is granted");
}

#[tokio::test]
async fn a_hub_that_hangs_makes_nobody_lost() {
    let world = World::start(1).await;
    let members = world.add_pollers("oslo", 4).await;
    for member in &members {
        member.register().await.unwrap();
    }
    world.until("oslo/p4", MemberState::Ready).await;
    world.hub.signal("-STOP");
    // Longer than a lease lasts: its own clock has gone on.
    let waited = tokio::time::timeout(std::time::Duration::from_secs(8), std::future::pending::<()>());
    assert!(waited.await.is_err());
    world.hub.signal("-CONT");
    let seen = while_living(&[], "what is said of the leases that ended meanwhile", async || {
        let asked = world.ask::<MemberRow>(RegistryVerb::ListMembers, &MemberQuery::default()).await;
        let states = states(&asked.map_err(|error| error.message)?);
        match states.contains(&MemberState::Ready) {
            true => Err(format!("{states:?}")),
            false => Ok(states),
        }
    })
    .await;
    assert_eq!(seen, [MemberState::Unknown; 4]);
}
