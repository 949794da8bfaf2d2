use super::*;
use bulkhead_bus::payload::{CheckKind, Outcome};
use bulkhead_bus::{Account, Lane, TenantId, TenantState};
use nkeys::KeyPair;
use proptest::prelude::*;

const NOW: i64 = 1_800_000_000_000;

struct World {
    account: AccountKey,
    pair: KeyPair,
    keys: BatchKeys,
    tenant: Tenant,
    snapshot: TenantSnapshot,
}

fn world() -> World {
    let account: AccountKey = KeyPair::new_account().public_key().parse().unwrap();
    let pair = KeyPair::new_user();
    let sender = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    let keys = BatchKeys::from([(sender, Registered::Key(pair.public_key().parse().unwrap()))]);
    let tenant = Tenant {
        id: TenantId::new(uuid::Uuid::new_v4()),
        slug: "acme-corp".parse().unwrap(),
        plan: "free".to_owned(),
        state: TenantState::Active,
        state_since_ms: NOW,
        retention_days: 7,
        allows_unsigned: false,
    };
    let snapshot = TenantSnapshot::from_iter([(account.clone(), Account::Tenant(tenant.clone()))]);
    World { account, pair, keys, tenant, snapshot }
}

fn row(slot_ms: i64) -> Measured {
    Measured {
        check: "web".parse().unwrap(),
        kind: CheckKind::Tcp,
        slot_ms,
        started_ms: slot_ms,
        outcome: Outcome::Ok,
        reason: None,
        latency_us: Some(5),
        generation: 0,
        island: false,
        detail: std::collections::BTreeMap::new(),
    }
}

fn batch(rows: Vec<Measured>) -> ResultBatch {
    ResultBatch {
        version: 1,
        tenant: Some("acme-corp".to_owned()),
        site: "oslo".parse().unwrap(),
        poller: "p1".parse().unwrap(),
        results: rows,
    }
}

fn subject_of(account: &AccountKey) -> String {
    let subject = TenantSubject::Forwarded { site: "oslo".parse().unwrap(), lane: Lane::Results };
    CoreSubject { account: account.clone(), subject }.to_string()
}

/// Admits `body` as it would arrive from oslo's forwarder, signed by `signer` when there is one.
fn admit_bytes(world: &World, body: &[u8], signer: Option<&KeyPair>) -> Verdict {
    let sequence = Sequence { boot: 1, number: 2 };
    let signed = signer.map(|pair| {
        let signature = pair.sign(&header::signed_bytes(sequence, body)).unwrap();
        (header::encode_signature(&signature), pair.public_key())
    });
    let value = |name: &str| -> Option<&str> {
        let (signature, key) = signed.as_ref()?;
        match name {
            header::SIGNATURE => Some(signature),
            header::KEY => Some(key),
            header::SEQUENCE => Some("1.2"),
            _ => None,
        }
    };
    let subject = subject_of(&world.account);
    let incoming = Incoming { subject: &subject, body, stored_ms: NOW };
    admit(incoming, value, &world.snapshot, |_| Some(&world.keys), NOW)
}

fn check(world: &World, body: &ResultBatch, signer: Option<&KeyPair>, expected: Option<DeadReason>) {
    let verdict = admit_bytes(world, &serde_json::to_vec(body).unwrap(), signer);
    match (&verdict, expected) {
        (Verdict::Admitted(_), None) => {}
        (Verdict::Dead(tenant, dead), Some(reason)) => {
            assert_eq!((dead.reason, &tenant.slug), (reason, &world.tenant.slug), "{dead:?}");
        }
        _ => panic!("{verdict:?} instead of {expected:?}"),
    }
}

#[test]
fn only_the_registered_key_of_the_named_poller_attests() {
    let world = world();
    let good = batch(vec![row(NOW)]);
    check(&world, &good, Some(&world.pair), None);
    check(&world, &good, None, Some(DeadReason::Unsigned));
    check(&world, &good, Some(&KeyPair::new_user()), Some(DeadReason::ForeignKey));
    let other = ResultBatch { poller: "p2".parse().unwrap(), ..good.clone() };
    check(&world, &other, Some(&world.pair), Some(DeadReason::ForeignKey));
}

#[test]
fn a_poller_whose_key_is_unreadable_waits_and_no_other_does() {
    let mut world = world();
    world.keys.insert(("oslo".parse().unwrap(), "p2".parse().unwrap()), Registered::Unreadable);
    let good = batch(vec![row(NOW)]);
    check(&world, &good, Some(&world.pair), None);
    let damaged = ResultBatch { poller: "p2".parse().unwrap(), ..good };
    let verdict = admit_bytes(&world, &serde_json::to_vec(&damaged).unwrap(), Some(&KeyPair::new_user()));
    assert!(verdict.is_undecided(), "{verdict:?}");
    check(&world, &damaged, None, Some(DeadReason::Unsigned));
}

#[test]
fn nothing_in_the_name_of_a_revoked_poller_is_stored() {
    let mut world = world();
    let good = batch(vec![row(NOW)]);
    check(&world, &good, Some(&world.pair), None);
    world.keys.insert(("oslo".parse().unwrap(), "p1".parse().unwrap()), Registered::Revoked);
    check(&world, &good, Some(&world.pair), Some(DeadReason::PollerRevoked));
    check(&world, &good, Some(&KeyPair::new_user()), Some(DeadReason::PollerRevoked));
    check(&world, &good, None, Some(DeadReason::PollerRevoked));
    // Under another name its key is foreign, as anybody's would be.
    let other = ResultBatch { poller: "p2".parse().unwrap(), ..good };
    check(&world, &other, Some(&world.pair), Some(DeadReason::ForeignKey));
}

#[test]
fn a_suspended_tenants_batches_are_stored_if_the_hub_had_them_before() {
    let mut world = world();
    let good = serde_json::to_vec(&batch(vec![row(NOW)])).unwrap();
    for (since, expected) in [(NOW + 1, None), (NOW, Some(DeadReason::TenantSuspended))] {
        let tenant = Tenant { state: TenantState::Suspended, state_since_ms: since, ..world.tenant.clone() };
        world.snapshot.set(world.account.clone(), Some(Account::Tenant(tenant)));
        let verdict = admit_bytes(&world, &good, Some(&world.pair));
        assert_eq!(verdict.dead().map(|dead| dead.reason), expected, "{verdict:?}");
    }
    let tenant = Tenant { state: TenantState::Offboarding, ..world.tenant.clone() };
    world.snapshot.set(world.account.clone(), Some(Account::Tenant(tenant)));
    let verdict = admit_bytes(&world, &good, Some(&world.pair));
    let is_unknown = matches!(&verdict, Verdict::Unclaimed(_, dead) if dead.reason == DeadReason::UnknownAccount);
    assert!(is_unknown, "{verdict:?}");
}

#[test]
fn a_body_that_names_somebody_else_is_refused() {
    let world = world();
    let forged = ResultBatch { tenant: Some("xyz-inc".to_owned()), ..batch(vec![row(NOW)]) };
    check(&world, &forged, Some(&world.pair), Some(DeadReason::TenantMismatch));
    let elsewhere = ResultBatch { site: "bergen".parse().unwrap(), ..batch(vec![row(NOW)]) };
    check(&world, &elsewhere, Some(&world.pair), Some(DeadReason::SenderMismatch));
    let newer = ResultBatch { version: 2, ..batch(vec![]) };
    check(&world, &newer, Some(&world.pair), Some(DeadReason::UnknownVersion));
    let many = batch(vec![row(NOW); RESULTS_PER_BATCH_MAX + 1]);
    check(&world, &many, Some(&world.pair), Some(DeadReason::TooManyResults));
}

#[test]
fn a_bad_row_does_not_take_the_good_ones_with_it() {
    let world = world();
    let mut nul = row(NOW);
    nul.detail.insert("text".to_owned(), serde_json::json!({"deep": ["a\u{0}b"]}));
    let mut large = row(NOW);
    large.detail.insert("text".to_owned(), serde_json::json!("x".repeat(DETAIL_BYTES_MAX)));
    let mut wild = row(NOW);
    wild.started_ms = i64::MIN;
    let rows = vec![
        row(NOW),
        row(NOW - 8 * DAY_MS),
        row(NOW + FUTURE_MS + 1),
        nul,
        large,
        wild,
        row(NOW + FUTURE_MS),
        row(NOW - 7 * DAY_MS),
    ];
    let body = serde_json::to_vec(&batch(rows)).unwrap();
    let Verdict::Admitted(admitted) = admit_bytes(&world, &body, Some(&world.pair)) else { panic!("not admitted") };
    let dead: Vec<(usize, DeadReason)> = admitted.dead_rows.iter().map(|row| (row.index, row.dead.reason)).collect();
    let expected = [
        (1, DeadReason::SlotTooOld),
        (2, DeadReason::SlotInFuture),
        (3, DeadReason::UnsafeText),
        (4, DeadReason::DetailTooLarge),
        (5, DeadReason::BadStart),
    ];
    assert_eq!(dead, expected);
    assert_eq!(admitted.rows.len(), 3);
    assert_eq!(Verdict::Admitted(admitted).entries(), 8, "letters take their place in a transaction");
}

#[test]
fn a_message_that_cannot_be_taken_apart_is_its_senders() {
    let world = world();
    let (own, nobody) = (subject_of(&world.account), KeyPair::new_account().public_key().parse().unwrap());
    for (why, expected) in [
        (BundleError::Version("3".to_owned()), DeadReason::UnknownVersion),
        (BundleError::Count, DeadReason::NotDecodable),
        (BundleError::Short(3), DeadReason::NotDecodable),
    ] {
        let verdict = undecodable(&own, &world.snapshot, &why);
        let Verdict::Dead(tenant, dead) = verdict else { panic!("{verdict:?}") };
        assert_eq!((tenant, dead), (world.tenant.clone(), Dead::new(expected, &why)));
        let verdict = undecodable(&subject_of(&nobody), &world.snapshot, &why);
        assert!(matches!(verdict, Verdict::Unclaimed(..)), "{verdict:?}");
    }
}

#[test]
fn strangers_and_foreign_subjects_are_told_apart() {
    let world = world();
    let nobody: AccountKey = KeyPair::new_account().public_key().parse().unwrap();
    let verdict = |subject: &str| {
        let incoming = Incoming { subject, body: b"{}", stored_ms: NOW };
        admit(incoming, |_| None, &world.snapshot, |_| None, NOW)
    };
    assert!(matches!(verdict(&subject_of(&nobody)), Verdict::Unclaimed(..)));
    assert!(matches!(verdict("results.p1"), Verdict::Foreign(_)));
    let unknown = subject_of(&world.account).replace(".fwd.", ".x.");
    assert!(matches!(verdict(&unknown), Verdict::Dead(..)));
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..400), millis in any::<i64>()) {
        let world = world();
        let is_admitted = matches!(admit_bytes(&world, &bytes, Some(&world.pair)), Verdict::Admitted(_));
        prop_assert!(!is_admitted);
        // Any slot and start, however wild, is judged without overflow.
        let mut wild = row(NOW);
        wild.started_ms = millis;
        let rows = vec![row(millis), wild, row(i64::MIN), row(i64::MAX)];
        let body = serde_json::to_vec(&batch(rows)).unwrap();
        let is_admitted = matches!(admit_bytes(&world, &body, Some(&world.pair)), Verdict::Admitted(_));
        prop_assert!(is_admitted);
    }
}
