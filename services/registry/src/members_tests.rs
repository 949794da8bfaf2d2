use super::*;
use crate::document::encode;
use bulkhead_bus::payload::MemberInfo;

fn key() -> MemberKey {
    let account = nkeys::KeyPair::new_account().public_key().parse().unwrap();
    MemberKey { account, site: "oslo".parse().unwrap(), name: "p1".parse().unwrap() }
}

fn lease(boot: u64, state: ReportedState) -> LeaseDoc {
    LeaseDoc {
        boot,
        number: 1,
        class: LeaseClass::Normal,
        state,
        reasons: vec![],
        applied_generation: 0,
        load: Default::default(),
        clock_ahead_ms: 0,
        renewed_ms: 1_000,
        since_ms: 1_000,
        ended: None,
    }
}

fn entry(key: &MemberKey, revision: u64, value: Option<bytes::Bytes>) -> BucketEntry {
    let end = value.is_none().then_some(ValueEnd::Expired);
    BucketEntry { key: key.to_string(), value, end, revision, at_ms: 20_000 }
}

fn said(change: &Change) -> (bool, Vec<&'static str>) {
    (change.is_news, change.events.iter().map(|event| event.what.as_str()).collect())
}

#[test]
fn what_becomes_of_a_member_is_told_once() {
    let (mut members, key) = (Members::default(), key());
    let mut take = |revision, value: Option<LeaseDoc>, expected: (bool, Vec<&'static str>)| {
        let entry = entry(&key, revision, value.as_ref().map(encode));
        let change = members.take_lease(&key, &entry, Reading::News);
        assert_eq!(said(&change), expected, "{value:?}");
        members.live()
    };
    let ready = lease(5, ReportedState::Ready);
    assert_eq!(take(1, Some(ready.clone()), (true, vec!["joined"])), 1);
    assert_eq!(take(2, Some(LeaseDoc { applied_generation: 9, number: 2, ..ready.clone() }), (false, vec![])), 1);
    assert_eq!(take(2, None, (false, vec![])), 1, "nothing new");
    assert_eq!(take(3, Some(lease(5, ReportedState::Draining)), (true, vec!["renewed_state"])), 1);
    assert_eq!(take(4, Some(lease(6, ReportedState::Ready)), (true, vec!["fenced", "joined"])), 1);
    assert_eq!(take(5, None, (true, vec!["lost"])), 0);
    assert_eq!(take(6, Some(ready.clone()), (true, vec!["joined"])), 1);
    let ended = LeaseDoc { ended: Some("stopped".to_owned()), ..ready };
    assert_eq!(take(7, Some(ended), (true, vec!["gone"])), 0);
}

#[test]
fn what_was_there_before_is_not_told_as_new() {
    let (mut members, key) = (Members::default(), key());
    let first = entry(&key, 1, Some(encode(&lease(5, ReportedState::Ready))));
    assert_eq!(said(&members.take_lease(&key, &first, Reading::First)), (true, vec![]));
    // Somebody has to tell it, and telling it twice does no harm.
    let mut members = Members::default();
    assert_eq!(said(&members.take_lease(&key, &entry(&key, 2, None), Reading::First)).1, ["lost"]);
}

#[test]
fn each_state_is_told_from_the_others() {
    let (mut members, key) = (Members::default(), key());
    let doubtful = Standing::Doubtful("hub");
    let check = |members: &Members, standing, expected: MemberState| {
        let member = members.get(&key).cloned().unwrap_or_default();
        assert_eq!(member.state(standing).0, expected, "{standing:?}");
    };
    check(&members, Standing::Known, MemberState::Never);
    check(&members, doubtful, MemberState::Never);
    let info = InfoDoc { info: Some(MemberInfo::default()), class: LeaseClass::Fast, ..InfoDoc::default() };
    members.take_info(&key, &entry(&key, 1, Some(encode(&info))), Reading::News);
    check(&members, Standing::Known, MemberState::Lost);
    members.take_lease(&key, &entry(&key, 1, Some(encode(&lease(5, ReportedState::Degraded)))), Reading::News);
    check(&members, Standing::Known, MemberState::Degraded);
    check(&members, doubtful, MemberState::Degraded);
    check(&members, Standing::Blind("hub"), MemberState::Unknown);
    members.take_lease(&key, &entry(&key, 2, None), Reading::News);
    check(&members, Standing::Known, MemberState::Lost);
    check(&members, doubtful, MemberState::Unknown);
    let lost = members.get(&key).unwrap().lost().unwrap();
    assert_eq!((lost.at_ms, lost.renewed_ms), (20_000, 14_000), "a lease of the fast class lasts 6 s");
    let held = HeldDoc { by: "ann".to_owned(), of: "acme-corp".to_owned(), reason: None, since_ms: 5 };
    let change = members.take_info(
        &key,
        &entry(&key, 2, Some(encode(&InfoDoc { held: Some(held), ..info.clone() }))),
        Reading::News,
    );
    assert_eq!(said(&change), (true, vec!["quarantined"]));
    check(&members, Standing::Known, MemberState::Quarantined);
    let change = members.take_info(&key, &entry(&key, 3, Some(encode(&info))), Reading::News);
    assert_eq!(said(&change), (true, vec!["released"]));
    let ended = LeaseDoc { ended: Some("upgrade".to_owned()), ..lease(5, ReportedState::Ready) };
    members.take_lease(&key, &entry(&key, 3, Some(encode(&ended))), Reading::News);
    check(&members, Standing::Known, MemberState::Gone);
}
