//! What core writes and answers, against a real database: redelivery is harmless and the books balance.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use bulkhead_bus::Tenant;
use bulkhead_bus::header::Sequence;
use bulkhead_bus::payload::{CheckKind, Measured, Outcome, Query, Reason, ResultRow, StateRow};
use bulkhead_core::admission::DeadReason;
use bulkhead_core::commit::{Seen, Shares, Writer};
use bulkhead_core::handlers::store::{glance_at, list_pollers, list_results, list_states};
use bulkhead_core::precedence::Candidate;
use bulkhead_core::store::{self, Counts, DEAD_LETTERS_MAX, DeadLetter, Reasons, UNCLAIMED_MAX};
use bulkhead_runtime::now_ms;
use bulkhead_store::{Registered, Store, read_batch_keys};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{batch_key, onboard, tenant};
use sqlx::{AssertSqlSafe, Row};

struct World {
    database: TestDatabase,
    store: Store,
    writer: Writer,
    acme: Tenant,
    xyz: Tenant,
    /// The beginning of a slot that is not long ago.
    slot: i64,
}

async fn world() -> World {
    let database = TestDatabase::start().await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (acme, xyz) = (tenant("acme-corp"), tenant("xyz-inc"));
    for tenant in [&acme, &xyz] {
        onboard(&provisioning, tenant).await.unwrap();
    }
    let store = database.store().await.unwrap();
    let slot = now_ms() / 10_000 * 10_000 - 600_000;
    World { writer: Writer::new(store.clone()), database, store, acme, xyz, slot }
}

fn measured(slot_ms: i64, outcome: Outcome) -> Measured {
    Measured {
        check: "web".parse().unwrap(),
        kind: CheckKind::Http,
        slot_ms,
        started_ms: slot_ms + 3,
        outcome,
        reason: (outcome == Outcome::Fail).then_some(Reason::Timeout),
        latency_us: Some(u32::MAX),
        generation: 0,
        island: false,
        detail: BTreeMap::new(),
    }
}

fn from_oslo(measured: Measured) -> Candidate {
    Candidate { measured, vantage: "oslo".to_owned(), poller: "p1".to_owned(), attested: true }
}

fn letter(digest: u8, row_index: i32) -> DeadLetter {
    DeadLetter {
        digest: vec![digest; 32],
        row_index,
        reason: DeadReason::SlotTooOld,
        detail: "a NUL \0 in a text".to_owned(),
        stream: "RESULTS",
        subject: "t.A.up.oslo\0.fwd.results".to_owned(),
        headers: "X: \0".to_owned(),
        payload: b"\0\xff".to_vec(),
        delivered: 1,
    }
}

impl World {
    /// One batch of `tenant` in one transaction.
    async fn commit_for(&mut self, tenant: Tenant, rows: Vec<Measured>, dead: Vec<DeadLetter>) -> Counts {
        let mut shares = Shares::default();
        let share = shares.of(&tenant);
        share.rows = rows.into_iter().map(from_oslo).collect();
        share.dead = dead;
        let sequence = Some(Sequence { boot: 1, number: 1 });
        share.seen.push(Seen { site: "oslo".parse().unwrap(), poller: "p1".parse().unwrap(), sequence });
        self.writer.write(&shares.clone().ready()).await.unwrap()
    }

    async fn commit(&mut self, rows: Vec<Measured>) -> Counts {
        self.commit_for(self.acme.clone(), rows, vec![]).await
    }

    async fn results(&self, tenant: &Tenant, asked: &Query) -> Vec<ResultRow> {
        let mut tx = self.store.begin(tenant).await.unwrap();
        list_results(&mut tx, tenant, asked, i64::MIN, 1_000).await.unwrap()
    }

    async fn state(&self) -> StateRow {
        let mut tx = self.store.begin(&self.acme).await.unwrap();
        let mut states = list_states(&mut tx, &self.acme, &Query::default()).await.unwrap();
        assert_eq!(states.len(), 1, "{states:?}");
        states.remove(0)
    }

    /// Outcome, slot and since of the one check, the times as slots of ten seconds.
    async fn shown(&self) -> (Outcome, i64, i64) {
        let state = self.state().await;
        (state.outcome, (state.slot_ms - self.slot) / 10_000, (state.since_ms - self.slot) / 10_000)
    }

    fn at(&self, slot: i64, outcome: Outcome) -> Measured {
        measured(self.slot + slot * 10_000, outcome)
    }
}

#[tokio::test]
async fn a_batch_that_comes_twice_changes_nothing() {
    let mut world = world().await;
    let rows: Vec<Measured> = (0..5).map(|slot| world.at(slot, Outcome::Ok)).collect();
    let dead = vec![letter(1, 3), letter(1, 4), letter(1, 4)];
    let acme = world.acme.clone();
    let first = world.commit_for(acme.clone(), rows.clone(), dead.clone()).await;
    let two = Reasons::of(DeadReason::SlotTooOld, 2);
    let expected = Counts { batches: 1, inserted: 5, duplicates: 1, dead_letters: two, ..Counts::default() };
    assert_eq!(first, expected);
    let (state, history) = (world.state().await, world.results(&acme, &Query::default()).await);
    for _ in 0..3 {
        let again = world.commit_for(acme.clone(), rows.clone(), dead.clone()).await;
        assert_eq!(again, Counts { batches: 1, duplicates: 8, ..Counts::default() });
    }
    assert_eq!((world.state().await, world.results(&acme, &Query::default()).await), (state, history));
    let mut tx = world.store.begin(&acme).await.unwrap();
    let glance = glance_at(&mut tx, &acme).await.unwrap();
    assert_eq!((glance.results, glance.dead_letters, glance.checks_ok, glance.pollers), (5, 2, 1, 1));
    let row = sqlx::query("select batches, results + replaced + duplicates + dead_letters from ingest_count")
        .fetch_one(tx.connection())
        .await
        .unwrap();
    assert_eq!((row.get::<i64, _>(0), row.get::<i64, _>(1)), (4, 4 * 8), "the books balance");
    assert!(world.results(&world.xyz, &Query::default()).await.is_empty());
}

#[tokio::test]
async fn a_better_row_takes_the_slot_and_no_other() {
    let mut world = world().await;
    let row = |outcome, generation, island| Measured { generation, island, ..measured(world.slot, outcome) };
    let steps = [
        (row(Outcome::Missed, 0, false), (1, 0, 0), Outcome::Missed),
        (row(Outcome::Ok, 0, true), (0, 0, 1), Outcome::Missed),
        (row(Outcome::Ok, 0, false), (0, 1, 0), Outcome::Ok),
        (row(Outcome::Missed, 9, false), (0, 0, 1), Outcome::Ok),
        (row(Outcome::Fail, 0, false), (0, 0, 1), Outcome::Ok),
        (row(Outcome::Fail, 1, false), (0, 1, 0), Outcome::Fail),
        (row(Outcome::Error, 9, true), (0, 0, 1), Outcome::Fail),
    ];
    for (row, (inserted, replaced, duplicates), outcome) in steps {
        let counts = world.commit(vec![row.clone()]).await;
        assert_eq!((counts.inserted, counts.replaced, counts.duplicates), (inserted, replaced, duplicates), "{row:?}");
        let results = world.results(&world.acme, &Query::default()).await;
        assert_eq!(results.iter().map(|row| row.outcome).collect::<Vec<_>>(), [outcome], "{row:?}");
        assert_eq!(world.state().await.outcome, outcome, "{row:?}");
    }
    let empty = Measured { island: true, ..world.at(1, Outcome::Ok) };
    assert_eq!(world.commit(vec![empty]).await.inserted, 1, "an island result fills an empty slot");
}

#[tokio::test]
async fn rows_for_one_slot_in_one_transaction_are_merged() {
    let mut world = world().await;
    let better = Measured { generation: 2, ..world.at(0, Outcome::Fail) };
    let rows = vec![world.at(0, Outcome::Missed), better, world.at(0, Outcome::Ok), world.at(1, Outcome::Ok)];
    let counts = world.commit(rows).await;
    assert_eq!((counts.inserted, counts.duplicates), (2, 2));
    let outcomes: Vec<Outcome> =
        world.results(&world.acme, &Query::default()).await.iter().map(|row| row.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::Fail], "newest first");
}

#[tokio::test]
async fn the_state_moves_forward_only_and_since_follows_the_outcome() {
    use Outcome::{Fail, Missed, Ok};
    let mut world = world().await;
    type Step<'a> = (&'a [(i64, Outcome)], (Outcome, i64, i64));
    let steps: [Step<'_>; 8] = [
        (&[(5, Ok)], (Ok, 5, 5)),
        // A late result is history and nothing else.
        (&[(2, Fail)], (Ok, 5, 5)),
        (&[(6, Ok), (7, Ok)], (Ok, 7, 5)),
        // Down and up again within one transaction is a change all the same.
        (&[(8, Fail), (9, Ok), (10, Ok)], (Ok, 10, 9)),
        (&[(11, Fail), (12, Fail)], (Fail, 12, 11)),
        (&[(13, Fail), (3, Ok)], (Fail, 13, 11)),
        (&[(14, Missed)], (Missed, 14, 14)),
        // The missed slot was measured after all.
        (&[(14, Ok), (15, Ok)], (Ok, 15, 14)),
    ];
    for (rows, expected) in steps {
        let rows = rows.iter().map(|(slot, outcome)| world.at(*slot, *outcome)).collect();
        world.commit(rows).await;
        assert_eq!(world.shown().await, expected);
    }
}

#[tokio::test]
async fn the_shares_of_one_transaction_stand_or_fall_together() {
    let mut world = world().await;
    let (acme, xyz, slot) = (world.acme.clone(), world.xyz.clone(), world.slot);
    let mut shares = Shares::default();
    for tenant in [&acme, &xyz] {
        shares.of(tenant).rows.push(from_oslo(measured(slot, Outcome::Ok)));
    }
    // A NUL is what the database refuses; admission never lets it come this far.
    let mut poison = measured(slot + 10_000, Outcome::Ok);
    poison.detail.insert("text".to_owned(), "a\0b".into());
    shares.of(&xyz).rows.push(from_oslo(poison));
    let refused = world.writer.write(&shares.clone().ready()).await.unwrap_err();
    assert!(!refused.is_transient(), "{refused:?}");
    for tenant in [&acme, &xyz] {
        assert!(world.results(tenant, &Query::default()).await.is_empty(), "{}", tenant.slug);
    }
    shares.of(&xyz).rows.pop();
    let counts = world.writer.write(&shares.clone().ready()).await.unwrap();
    assert_eq!(counts.inserted, 2);
    for tenant in [&acme, &xyz] {
        let rows = world.results(tenant, &Query::default()).await;
        assert_eq!(rows.iter().map(|row| &row.tenant).collect::<Vec<_>>(), [&tenant.slug]);
    }
}

#[tokio::test]
async fn a_database_that_is_gone_is_worth_another_try() {
    let mut world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    world.commit(vec![world.at(0, Outcome::Ok)]).await;
    // A partition that retention took away is made again once the writer is told to forget it.
    let partitions: Vec<String> = sqlx::query_scalar(
        "select i.inhrelid::regclass::text from pg_inherits i join pg_class c on c.oid = i.inhrelid
                            where c.relkind = 'r'",
    )
    .fetch_all(&mut superuser)
    .await
    .unwrap();
    for partition in partitions {
        sqlx::raw_sql(AssertSqlSafe(format!("drop table {partition}"))).execute(&mut superuser).await.unwrap();
    }
    let mut shares = Shares::default();
    shares.of(&world.acme).rows.push(from_oslo(world.at(0, Outcome::Ok)));
    let refused = world.writer.write(&shares.clone().ready()).await.unwrap_err();
    assert!(!refused.is_transient(), "{refused:?}");
    world.writer.forget_days();
    assert_eq!(world.writer.write(&shares.clone().ready()).await.unwrap().inserted, 1);
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'bulkhead_core'";
    let mut outcomes = Vec::new();
    for _ in 0..8 {
        sqlx::raw_sql(end).execute(&mut superuser).await.unwrap();
        outcomes.push(
            world
                .writer
                .write(&shares.clone().ready())
                .await
                .map_err(|error| assert!(error.is_transient(), "{error:?}")),
        );
    }
    sqlx::raw_sql("alter role bulkhead_core connection limit 0").execute(&mut superuser).await.unwrap();
    sqlx::raw_sql(end).execute(&mut superuser).await.unwrap();
    let refused = world.writer.write(&shares.clone().ready()).await.unwrap_err();
    assert!(refused.is_transient(), "{refused:?}");
}

#[tokio::test]
async fn what_is_committed_is_on_the_disk_whatever_the_server_is_set_to() {
    let world = world().await;
    let weaken = "alter role bulkhead_core set synchronous_commit = off";
    sqlx::raw_sql(weaken).execute(&mut world.database.superuser().await.unwrap()).await.unwrap();
    let setting = "select current_setting('synchronous_commit')";
    let mut bare = world.database.bare_core().await.unwrap();
    assert_eq!(sqlx::query_scalar::<_, String>(setting).fetch_one(&mut bare).await.unwrap(), "off");
    let store = world.database.store().await.unwrap();
    // The second time it is a connection that was given back.
    for _ in 0..2 {
        let mut connection = store.platform().await.unwrap();
        assert_eq!(sqlx::query_scalar::<_, String>(setting).fetch_one(connection.connection()).await.unwrap(), "on");
    }
}

#[tokio::test]
async fn only_what_can_never_be_stored_is_the_datas_fault() {
    let mut world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    world.commit(vec![world.at(0, Outcome::Ok)]).await;
    let mut nul = world.at(1, Outcome::Ok);
    nul.detail.insert("text".to_owned(), "a\0b".into());
    let far = Measured { slot_ms: now_ms() + 11 * 86_400_000, ..world.at(1, Outcome::Ok) };
    let detached = "do $$ declare p text; begin
        for p in select inhrelid::regclass from pg_inherits where inhparent = 'shared.result'::regclass
        loop execute format('alter table shared.result detach partition %s', p); end loop; end $$";
    for (what, sql, row, expected) in [
        ("a NUL", "select", nul, true),
        (
            "a check that has a name",
            "alter table shared.check_state add constraint no_fail check (outcome <> 'fail')",
            world.at(1, Outcome::Fail),
            true,
        ),
        // Admission has let it pass, so the clocks of core and the database differ by days.
        ("a day outside what may be kept", "select", far, false),
        ("a right", "revoke insert on shared.check_state from bulkhead_core", world.at(1, Outcome::Ok), false),
        ("a column", "alter table shared.check_state rename since to begun", world.at(1, Outcome::Ok), false),
        ("a table", "drop table shared.check_state", world.at(1, Outcome::Ok), false),
        // Its name is taken, so that it is not made anew.
        ("a partition", detached, world.at(1, Outcome::Ok), false),
    ] {
        sqlx::raw_sql(sql).execute(&mut superuser).await.unwrap();
        let mut shares = Shares::default();
        shares.of(&world.acme).rows.push(from_oslo(row));
        world.writer.forget_days();
        let refused = world.writer.write(&shares.clone().ready()).await.unwrap_err();
        assert_eq!((refused.is_the_datas_fault(), refused.is_transient()), (expected, false), "{what}: {refused:?}");
    }
}

#[tokio::test]
async fn dead_letters_are_kept_once_and_up_to_a_limit() {
    let mut world = world().await;
    let acme = world.acme.clone();
    let fill = format!(
        "insert into shared.dead_letter (tenant_id, digest, row_index, reason, detail, stream, subject, headers, payload,
           delivered)
         select '{}', 'x', n, 'r', 'd', 's', 's', 'h', 'p', 1 from generate_series(1, {}) n",
        acme.id.as_uuid(),
        DEAD_LETTERS_MAX - 1
    );
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut world.database.superuser().await.unwrap()).await.unwrap();
    let counts = world.commit_for(acme.clone(), vec![], vec![letter(1, -1), letter(2, -1), letter(3, -1)]).await;
    assert_eq!((counts.dead_letters.total(), counts.not_kept, counts.duplicates), (3, 2, 0));
    let again = world.commit_for(acme.clone(), vec![], vec![letter(1, -1)]).await;
    assert_eq!(
        (again.dead_letters.total(), again.duplicates),
        (0, 1),
        "what is kept is known, even when there is no room"
    );
    let mut tx = world.store.begin(&acme).await.unwrap();
    let kept: i64 = sqlx::query_scalar("select count(*) from dead_letter").fetch_one(tx.connection()).await.unwrap();
    assert_eq!(kept, DEAD_LETTERS_MAX);
    let other = world.commit_for(world.xyz.clone(), vec![], vec![letter(2, -1)]).await;
    assert_eq!((other.dead_letters.total(), other.not_kept), (1, 0), "one tenant's fill is not another's");
}

#[tokio::test]
async fn new_dead_letters_are_counted_by_reason_and_known_ones_are_not() {
    let mut world = world().await;
    let (acme, unsigned) =
        (world.acme.clone(), |digest| DeadLetter { reason: DeadReason::Unsigned, ..letter(digest, -1) });
    let by_reason = |counts: Counts| counts.dead_letters.iter().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    let first =
        world.commit_for(acme.clone(), vec![], vec![letter(1, 0), letter(1, 1), unsigned(2), unsigned(2)]).await;
    assert_eq!(by_reason(first), [(DeadReason::Unsigned, 1), (DeadReason::SlotTooOld, 2)]);
    let second = world.commit_for(acme, vec![], vec![letter(1, 0), unsigned(2), unsigned(3)]).await;
    assert_eq!((by_reason(second), second.duplicates), (vec![(DeadReason::Unsigned, 1)], 2));
}

#[tokio::test]
async fn letters_of_strangers_are_kept_apart_and_up_to_a_limit() {
    let world = world().await;
    assert!(store::put_unclaimed(&world.store, "A", &letter(1, -1)).await.unwrap());
    assert!(store::put_unclaimed(&world.store, "A", &letter(1, -1)).await.unwrap());
    let fill = format!(
        "insert into platform.unclaimed_dead_letter (digest, account_key, reason, subject, headers, payload)
         select n::text::bytea, 'A', 'r', 's', 'h', 'p' from generate_series(2, {UNCLAIMED_MAX}) n"
    );
    let mut superuser = world.database.superuser().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&mut superuser).await.unwrap();
    assert!(!store::put_unclaimed(&world.store, "A", &letter(2, -1)).await.unwrap());
    assert!(store::put_unclaimed(&world.store, "A", &letter(1, -1)).await.unwrap());
    let count: i64 = sqlx::query_scalar("select count(*) from platform.unclaimed_dead_letter")
        .fetch_one(&mut superuser)
        .await
        .unwrap();
    assert_eq!(count, UNCLAIMED_MAX);
}

#[tokio::test]
async fn a_poller_is_seen_with_its_furthest_sequence() {
    let mut world = world().await;
    let acme = world.acme.clone();
    for (boot, number) in [(7, 3), (7, 2), (6, 900), (7, 4)] {
        let mut shares = Shares::default();
        let (site, poller) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
        shares.of(&acme).seen.push(Seen { site, poller, sequence: Some(Sequence { boot, number }) });
        world.writer.write(&shares.clone().ready()).await.unwrap();
    }
    let mut shares = Shares::default();
    let (site, poller) = ("oslo".parse().unwrap(), "p1".parse().unwrap());
    shares.of(&acme).seen.push(Seen { site, poller, sequence: None });
    world.writer.write(&shares.clone().ready()).await.unwrap();
    let mut tx = world.store.begin(&acme).await.unwrap();
    let row =
        sqlx::query("select sequence_boot, sequence_number from poller_seen").fetch_one(tx.connection()).await.unwrap();
    assert_eq!((row.get::<i64, _>(0), row.get::<i64, _>(1)), (7, 4));
    let pollers = list_pollers(&mut tx, &acme).await.unwrap();
    assert!(pollers.len() == 1 && pollers[0].last_batch_ms.is_some(), "{pollers:?}");
}

#[tokio::test]
async fn a_damaged_row_of_a_poller_is_named_and_leaves_the_others_their_keys() {
    let world = world().await;
    let acme = world.acme.id.as_uuid();
    let damage = format!(
        "alter table shared.poller alter batch_key drop not null;
         insert into shared.poller (tenant_id, site, name, batch_key) values
           ('{acme}', 'oslo', 'p2', 'no key'), ('{acme}', 'oslo', 'p3', null), ('{acme}', 'No Site', 'p4', '{}')",
        batch_key()
    );
    sqlx::raw_sql(AssertSqlSafe(damage)).execute(&mut world.database.superuser().await.unwrap()).await.unwrap();
    let mut tx = world.store.begin(&world.acme).await.unwrap();
    let (keys, mut damaged) = read_batch_keys(&mut tx, &world.acme).await.unwrap();
    let of = |name: &str| keys.get(&("oslo".parse().unwrap(), name.parse().unwrap()));
    assert!(matches!(of("p1"), Some(Registered::Key(_))), "{keys:?}");
    assert_eq!((of("p2"), of("p3")), (Some(&Registered::Unreadable), Some(&Registered::Unreadable)));
    assert_eq!(keys.len(), 3, "a name that is none is nobody's");
    damaged.sort_by(|one, other| one.name.cmp(&other.name));
    let names: Vec<_> = damaged.iter().map(|row| (row.site.as_str(), row.name.as_str())).collect();
    assert_eq!(names, [("oslo", "p2"), ("oslo", "p3"), ("No Site", "p4")]);
}

#[tokio::test]
async fn two_writers_of_the_same_rows_both_finish() {
    let world = world().await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let mut own = Writer::new(world.store.clone());
        let mut rows: Vec<Candidate> = (0..50).map(|slot| from_oslo(world.at(slot % 25, Outcome::Ok))).collect();
        rows.rotate_left(writer * 7);
        let (acme, xyz) = (world.acme.clone(), world.xyz.clone());
        tasks.spawn(async move {
            for _ in 0..10 {
                let mut shares = Shares::default();
                for tenant in [&xyz, &acme] {
                    shares.of(tenant).rows = rows.clone();
                }
                own.write(&shares.ready()).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    for tenant in [&world.acme, &world.xyz] {
        assert_eq!(world.results(tenant, &Query::default()).await.len(), 25);
    }
}

#[tokio::test]
async fn questions_are_filtered_and_any_time_may_be_asked() {
    let mut world = world().await;
    let acme = world.acme.clone();
    let other = Measured { check: "dns".parse().unwrap(), ..world.at(1, Outcome::Fail) };
    world.commit(vec![world.at(0, Outcome::Ok), world.at(2, Outcome::Ok), other]).await;
    let checks = |rows: Vec<ResultRow>| rows.iter().map(|row| row.check.to_string()).collect::<Vec<_>>();
    let asked = Query { check: Some("web".parse().unwrap()), ..Query::default() };
    assert_eq!(checks(world.results(&acme, &asked).await), ["web", "web"]);
    let asked = Query { site: Some("bergen".parse().unwrap()), ..Query::default() };
    assert!(world.results(&acme, &asked).await.is_empty());
    let mut tx = world.store.begin(&acme).await.unwrap();
    let count = async |tx: &mut bulkhead_store::TenantTx, since_ms, limit| {
        list_results(tx, &acme, &Query::default(), since_ms, limit).await.unwrap().len()
    };
    assert_eq!(count(&mut tx, i64::MIN, 1_000).await, 3);
    assert_eq!(count(&mut tx, i64::MAX, 1_000).await, 0);
    assert_eq!(count(&mut tx, world.slot + 10_000, 1_000).await, 2);
    assert_eq!(count(&mut tx, 0, 2).await, 2);
    let row = &list_results(&mut tx, &acme, &Query::default(), 0, 2).await.unwrap()[1];
    assert_eq!((row.outcome, row.reason, row.latency_us), (Outcome::Fail, Some(Reason::Timeout), Some(u32::MAX)));
}
