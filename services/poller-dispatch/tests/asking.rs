//! What pollers and people may ask, and what they are told when they may not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeMap;

use bulkhead_bus::payload::{
    AssignmentPage, ChangeChecks, ChangedCheck, CheckChange, CheckKind, ErrorCode, FetchAssignment, FetchRuns,
    Measured, MemberState, Outcome, ReportRun, RunCheck, RunOrder, RunRow, SealedFor, SealingKeyRow, SecretQuery,
    SecretRow, SetSecret,
};
use bulkhead_bus::{AssignmentVerb, DispatchVerb};
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_store::PollerState;
use nkeys::KeyPair;
use serde_json::json;

use self::world::{LIMIT, Place, Poller, World, ask, code, definition};

async fn world() -> (World, Poller, Poller) {
    let mut world = World::start().await;
    world.start_replica().await;
    let p1 = world.add_poller(&world.acme, "oslo", "p1").await;
    let p2 = world.add_poller(&world.acme, "lima", "p2").await;
    (world, p1, p2)
}

fn fetch() -> FetchAssignment {
    FetchAssignment { version: 1, boot: 1_000, have: 0, at: None, after: None }
}

#[tokio::test]
async fn only_what_the_poller_itself_has_signed_just_now_is_answered() {
    let (world, mut p1, p2) = world().await;
    let good = p1.signed(AssignmentVerb::FetchAssignment, &fetch());
    assert!(p1.send::<AssignmentPage>(good.clone()).await.is_ok(), "control");
    assert_eq!(code(p1.send::<AssignmentPage>(good.clone()).await), ErrorCode::NotSigned, "sent again");
    let refused = async |signed| code(p1.send::<AssignmentPage>(signed).await);
    // The signature of one subject is none for another.
    let mut moved = p1.signed(AssignmentVerb::FetchAssignment, &fetch());
    moved.subject = p2.signed(AssignmentVerb::FetchAssignment, &fetch()).subject;
    assert_eq!(refused(moved).await, ErrorCode::NotSigned);
    let mut changed = p1.signed(AssignmentVerb::FetchAssignment, &fetch());
    changed.body = serde_json::to_vec(&FetchAssignment { have: 7, ..fetch() }).unwrap();
    assert_eq!(refused(changed).await, ErrorCode::NotSigned);
    let mut bare = p1.signed(AssignmentVerb::FetchAssignment, &fetch());
    bare.headers = bulkhead_runtime::Headers::default();
    assert_eq!(refused(bare).await, ErrorCode::NotSigned);
    let newer = p1.signed(AssignmentVerb::FetchAssignment, &FetchAssignment { version: 9, ..fetch() });
    assert_eq!(refused(newer).await, ErrorCode::Invalid);

    // The good key of another poller of this tenant, and of another tenant's poller of the same name.
    let own = std::mem::replace(&mut p1.key, KeyPair::from_seed(&p2.key.seed().unwrap()).unwrap());
    let foreign = p1.ask::<AssignmentPage>(AssignmentVerb::FetchAssignment, &fetch()).await;
    assert_eq!(code(foreign), ErrorCode::NotSigned);
    let other = world.add_poller(&world.xyz, "oslo", "p1").await;
    p1.key = KeyPair::from_seed(&other.key.seed().unwrap()).unwrap();
    let foreign = p1.ask::<AssignmentPage>(AssignmentVerb::FetchAssignment, &fetch()).await;
    assert_eq!(code(foreign), ErrorCode::NotSigned);
    p1.key = own;

    // An earlier start, after a later one.
    p1.boot = 2_000;
    assert!(p1.fetch(0).await.is_ok());
    p1.boot = 1_500;
    assert_eq!(code(p1.fetch(0).await), ErrorCode::Fenced);
    // The later one has ended, and the registry has given the name back.
    world.say(&world.acme, |said| said.members.iter_mut().for_each(|row| row.boot = Some(1_500))).await;
    assert!(p1.fetch(0).await.is_ok());
    p1.boot = 1_400;
    assert_eq!(code(p1.fetch(0).await), ErrorCode::Fenced);
    p1.boot = 2_001;
    world.provisioning.set_poller_state(&world.acme.tenant, (&p1.site, &p1.name), PollerState::Revoked).await.unwrap();
    let gone = eventually("a refusal", LIMIT, || async {
        match p1.fetch(0).await {
            Err(error) if error.code == ErrorCode::NotSigned => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    gone.await.unwrap();
    assert!(world.replicas[0].metric("dispatch_requests_refused_total{refusal=\"replayed\"}").await > 0.5);
    assert!(world.replicas[0].metric("dispatch_requests_refused_total{refusal=\"foreign_key\"}").await > 1.5);
}

#[tokio::test]
async fn people_change_checks_all_of_it_or_nothing_and_are_written_down() {
    let (world, _p1, _p2) = world().await;
    let acme = &world.acme;
    let wrong = json!({"name": "Web!", "type": "htp", "interval": "soon", "sites": ["Oslo", "paris"]});
    let changes = vec![
        CheckChange::Add { definition: definition("good") },
        CheckChange::Add { definition: wrong },
        CheckChange::Remove { name: "gone".to_owned() },
    ];
    let error = acme.change(changes).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    for part in ["Web!", "htp", "target is missing", "soon", "Oslo", "\"gone\" is not there"] {
        assert!(error.message.contains(part), "{part:?} is not in {}", error.message);
    }
    let rehearsal = ChangeChecks {
        tenant: None,
        changes: vec![CheckChange::Add { definition: definition("good") }],
        removes_others: false,
        is_rehearsal: true,
    };
    let rows: Vec<ChangedCheck> = acme.ask(DispatchVerb::ChangeChecks, &rehearsal).await.unwrap();
    assert_eq!((rows[0].act.as_str(), rows[0].revision), ("added", 1));
    let added = acme.add(&[definition("good")]).await.unwrap();
    assert_eq!(added[0].act, "added", "neither the refused change nor the rehearsal did anything");
    assert_eq!(code(acme.add(&[definition("good")]).await), ErrorCode::Conflict);
    let often = json!({"name": "o", "type": "tcp", "target": "h:1", "interval": 1, "site": "oslo", "timeout": 300});
    let error = acme.add(&[often]).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::OverQuota);
    assert!(error.message.contains("the plan allows 5 s at the least"), "{}", error.message);

    // The platform names the tenant, and is written down as itself.
    let mut of_ops = ChangeChecks { is_rehearsal: false, ..rehearsal };
    of_ops.changes = vec![CheckChange::Pause { name: "good".to_owned() }];
    let nobody = ask::<ChangedCheck>(&world.ops, DispatchVerb::ChangeChecks, &of_ops).await;
    assert_eq!(code(nobody), ErrorCode::Invalid);
    of_ops.tenant = Some("acme-corp".to_owned());
    let rows = ask::<ChangedCheck>(&world.ops, DispatchVerb::ChangeChecks, &of_ops).await.unwrap();
    assert_eq!((rows[0].act.as_str(), rows[0].revision), ("paused", 2));
    // Another tenant that names this one is refused.
    assert_eq!(
        code(ask::<ChangedCheck>(&world.xyz.bus, DispatchVerb::ChangeChecks, &of_ops).await),
        ErrorCode::Refused
    );
    let sql = "select array_agg(act || ' ' || changed_by order by changed_at) from tenant_acme_corp.config_change
               where table_name = 'check_definition'";
    let mut superuser = world.database.superuser().await.unwrap();
    let written: Vec<String> = sqlx::query_scalar(sql).fetch_one(&mut superuser).await.unwrap();
    assert_eq!(written, ["insert ann", "update ops/ann"]);
}

fn run(name: &str, deadline_ms: u64) -> RunCheck {
    RunCheck { tenant: None, check: Some(name.parse().unwrap()), definition: None, sites: vec![], deadline_ms }
}

/// Takes the run that it finds, and reports that it went well.
async fn take_and_report(poller: &Poller) {
    let order = eventually("an order", LIMIT, || async {
        let orders: Vec<RunOrder> =
            poller.ask(AssignmentVerb::FetchRuns, &FetchRuns { version: 1, boot: 1_000 }).await.unwrap();
        orders.into_iter().next().ok_or_else(|| "no order".to_owned())
    });
    let order = order.await.unwrap();
    assert!(order.left_ms <= 60_000);
    let measured = Measured {
        check: order.probe.name.clone(),
        kind: CheckKind::Tcp,
        slot_ms: 0,
        started_ms: now_ms(),
        outcome: Outcome::Ok,
        reason: None,
        latency_us: Some(7),
        generation: 0,
        island: false,
        detail: BTreeMap::new(),
    };
    let report = ReportRun { version: 1, id: order.id, measured };
    poller.ask::<()>(AssignmentVerb::ReportRun, &report).await.unwrap();
}

async fn run_of(place: &Place, asked: &RunCheck) -> Vec<RunRow> {
    place.ask(DispatchVerb::RunCheck, asked).await.unwrap()
}

#[tokio::test]
async fn a_run_is_reported_to_any_replica_and_what_is_not_reported_is_missed() {
    let (mut world, p1, p2) = world().await;
    world.start_replica().await;
    let wide = json!({"name": "wide", "type": "tcp", "target": "h:1", "interval": 30, "sites": ["oslo", "lima"]});
    world.acme.add(&[wide]).await.unwrap();
    // The queue gives requests to whichever replica: several in a row reach both.
    for _ in 0..4 {
        let asked = run("wide", 30_000);
        let (rows, (), ()) = tokio::join!(run_of(&world.acme, &asked), take_and_report(&p1), take_and_report(&p2));
        let shown: Vec<_> = rows.iter().map(|row| (row.site.as_str(), row.outcome, row.latency_us)).collect();
        assert_eq!(shown, [("lima", Outcome::Ok, Some(7)), ("oslo", Outcome::Ok, Some(7))]);
    }
    let rows = run_of(&world.acme, &run("wide", 300)).await;
    assert!(rows.iter().all(|row| row.outcome == Outcome::Missed && row.poller.is_some()), "{rows:?}");

    let asked = |verb_body: RunCheck| {
        let acme = &world.acme;
        async move { acme.ask::<RunRow>(DispatchVerb::RunCheck, &verb_body).await }
    };
    assert_eq!(code(asked(run("gone", 300)).await), ErrorCode::NotFound);
    assert_eq!(code(asked(run("wide", 60_001)).await), ErrorCode::Invalid);
    world.say_state(&world.acme, &p1, MemberState::Lost).await;
    let rows = run_of(&world.acme, &run("wide", 300)).await;
    assert_eq!(rows.iter().filter(|row| row.poller.is_none()).count(), 1);
    world.say_state(&world.acme, &p2, MemberState::Lost).await;
    let error = asked(run("wide", 300)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("no poller at lima, oslo is ready to run tcp now"), "{}", error.message);
    world.say(&world.acme, |said| said.is_known = false).await;
    let error = asked(run("wide", 300)).await.unwrap_err();
    assert!(error.message.contains("nobody can tell now who is there"), "{}", error.message);

    world.say(&world.acme, |said| said.is_known = true).await;
    world.say_state(&world.acme, &p1, MemberState::Ready).await;
    let over = loop {
        match asked(run("wide", 1)).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(over.code, ErrorCode::OverQuota);
    assert!(over.message.contains("the plan allows 10 runs on demand a minute, and there were 10"), "{}", over.message);
}

#[tokio::test]
async fn secrets_go_sealed_to_the_poller_that_they_are_for_and_to_nobody_else() {
    let (world, p1, p2) = world().await;
    let acme = &world.acme;
    let keys: Vec<SealingKeyRow> = acme.ask(DispatchVerb::ListSealingKeys, &SecretQuery::default()).await.unwrap();
    assert_eq!(keys.iter().map(|row| row.sealing_key.as_str()).collect::<Vec<_>>(), ["Xp1", "Xp2"]);
    let secret = json!({"name": "web", "type": "http", "target": "https://h.example/", "interval": 30,
        "sites": ["oslo", "lima"], "headers": {"Authorization": {"secret": "token"}}});
    acme.add(&[secret]).await.unwrap();
    let is_shared = |rows: &[String]| rows.len() == 2 && !rows.concat().contains("nobody");
    world.until_rows(acme, "web shared out", is_shared).await;
    assert!(p1.fetch(0).await.unwrap().checks[0].secrets.is_empty());
    let copy = |poller: &Poller, sealed: &str| SealedFor {
        site: poller.site.clone(),
        poller: poller.name.clone(),
        sealing_key: format!("X{}", poller.name),
        sealed: sealed.to_owned(),
    };
    let set = |copies| SetSecret { tenant: None, name: "token".parse().unwrap(), copies };
    let copies = vec![copy(&p1, "for-p1"), copy(&p2, "for-p2")];
    let rows: Vec<SecretRow> = acme.ask(DispatchVerb::SetSecret, &set(copies)).await.unwrap();
    assert_eq!(
        (rows[0].set_by.as_str(), rows[0].pollers.clone()),
        ("ann", vec!["lima/p2".to_owned(), "oslo/p1".to_owned()])
    );
    // The check is told anew, with what is for this poller only.
    let had = p1.fetch(0).await.unwrap().generation;
    let told = eventually("the secret", LIMIT, || async {
        let page = p1.fetch(0).await.unwrap();
        let sealed = page.checks.iter().find_map(|check| check.secrets.get("token").cloned());
        if page.checks.iter().any(|check| check.generation > 1) { Ok(sealed) } else { Err(format!("{page:?} {had}")) }
    });
    assert_eq!(told.await.unwrap().as_deref(), Some("for-p1"));
    let listed =
        acme.bus.request("up._user.ann.rpc.dispatch.list_secrets", b"{}".as_slice().into(), LIMIT).await.unwrap();
    assert!(!String::from_utf8_lossy(&listed).contains("for-p"), "what is sealed is shown to nobody");
    let stranger = SealedFor { poller: "p9".parse().unwrap(), ..copy(&p1, "x") };
    assert_eq!(code(acme.ask::<SecretRow>(DispatchVerb::SetSecret, &set(vec![stranger])).await), ErrorCode::Invalid);
    let none: Vec<SecretRow> = world.xyz.ask(DispatchVerb::ListSecrets, &SecretQuery::default()).await.unwrap();
    assert!(none.is_empty());
    let gone: Vec<SecretRow> = acme.ask(DispatchVerb::SetSecret, &set(vec![])).await.unwrap();
    assert!(gone.is_empty());
}
