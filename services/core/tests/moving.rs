//! Moves of a tenant's rows between the shared tables and a schema of its own, while its results keep arriving and people
//! keep asking. Nothing is lost, nothing is doubled, and whoever reads sees one place.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod load;
mod rows;

use std::time::Duration;

use bulkhead_core::commit::{Shares, Writer};
use bulkhead_store::{Isolation, MoveStep, ProvisioningError, StoreError, TENANT_TABLES};
use sqlx::{AssertSqlSafe, PgConnection};

use load::{Load, ROWS_A_BATCH, World, share, store_alone, world};

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

impl World {
    /// All rows of acme are in `schema`, and nothing of it is anywhere else.
    async fn check_all_in(&self, schema: &str, batches: i64) {
        let mut superuser = self.database.superuser().await.unwrap();
        let id = self.acme.id.as_uuid();
        let rows = batches * ROWS_A_BATCH;
        for table in TENANT_TABLES {
            let expected = match table {
                "result" => rows,
                "check_state" => ROWS_A_BATCH,
                // Site, poller and check.
                "config_change" => 3,
                "dead_letter" => 0,
                _others => 1,
            };
            let sql = format!("select count(*) from {schema}.{table} where tenant_id = '{id}'");
            assert_eq!(number(&mut superuser, &sql).await, expected, "{table} in {schema}");
        }
        let sql =
            format!("select results from {schema}.ingest_count where tenant_id = '{id}' and not closed and not moved");
        assert_eq!(number(&mut superuser, &sql).await, rows, "counted in {schema}");
        let elsewhere = match schema {
            "shared" => "select count(*) from pg_namespace where nspname = 'tenant_acme_corp'".to_owned(),
            _ => TENANT_TABLES
                .into_iter()
                .filter(|table| *table != "ingest_count")
                .map(|table| format!("(select count(*) from shared.{table} where tenant_id = '{id}')"))
                .collect::<Vec<_>>()
                .join(" + ")
                .replacen("(select", "select (select", 1),
        };
        assert_eq!(number(&mut superuser, &elsewhere).await, 0, "{elsewhere}");
        assert_eq!(number(&mut superuser, "select count(*) from platform.tenant_move").await, 0);
        assert_eq!(number(&mut superuser, "select count(*) from platform.batch_key").await, 2);
        let others = format!("select count(*) from shared.result where tenant_id = '{}'", self.xyz.id.as_uuid());
        assert_eq!(number(&mut superuser, &others).await, rows, "the other tenant's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_moved_under_load_and_back() {
    let mut world = world().await;
    let load = Load::begin(&world, 0);
    load.more(20).await;
    world.plan("enterprise").await;
    let moved = world.provisioning.move_tenant(&world.planned("enterprise"), &|_| {}).await.unwrap().unwrap();
    assert_eq!(moved.to, Isolation::Schema);
    load.more(20).await;
    let batches = load.end().await;
    world.check_all_in("tenant_acme_corp", batches).await;
    assert_eq!(
        world.provisioning.move_tenant(&world.planned("enterprise"), &|_| {}).await.unwrap(),
        None,
        "it is there"
    );

    let load = Load::begin(&world, batches);
    world.plan("free").await;
    let steps = std::sync::Mutex::new(Vec::new());
    let moved = world.provisioning.move_tenant(&world.planned("free"), &|step| steps.lock().unwrap().push(step)).await;
    assert_eq!(moved.unwrap().unwrap().to, Isolation::Shared);
    let batches = load.end().await;
    world.check_all_in("shared", batches).await;
    let steps = steps.into_inner().unwrap();
    assert!(matches!(steps.first(), Some(MoveStep::Copying { done: 0, .. })), "{steps:?}");
    assert_eq!(steps.last(), Some(&MoveStep::Removing));
    assert!(steps.contains(&MoveStep::Holding) && steps.contains(&MoveStep::Switched), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_cut_short_anywhere_goes_on_or_is_taken_back() {
    let mut world = world().await;
    let load = Load::begin(&world, 0);
    load.more(10).await;
    // There and back, each cut at another moment; whichever way it went, the rows are all there.
    let (mut cut, mut limit) = (0, Duration::from_millis(2));
    for round in 0..24 {
        let plan = if round % 4 < 2 { "enterprise" } else { "pro" };
        world.plan(plan).await;
        let planned = world.planned(plan);
        let moving = world.provisioning.move_tenant(&planned, &|_| {});
        cut += u32::from(tokio::time::timeout(limit, moving).await.is_err());
        limit = limit.mul_f64(1.25);
    }
    assert!(cut >= 8, "{cut} of 24 were cut short");
    world.plan("enterprise").await;
    world.provisioning.move_tenant(&world.planned("enterprise"), &|_| {}).await.unwrap();
    let batches = load.end().await;
    world.check_all_in("tenant_acme_corp", batches).await;
}

/// What a move held that was killed is opened again by whoever stores; one that is under way is left alone.
#[tokio::test]
async fn a_hold_ends_with_whoever_holds() {
    let world = world().await;
    let mut writer = Writer::new(world.store.clone());
    store_alone(&mut writer, &world.acme, 0).await;
    let mut mover = world.database.superuser().await.unwrap();
    let id = world.acme.id.as_uuid();
    let hold = format!(
        "select pg_advisory_lock(hashtext('move'), hashtext('{id}'));
         update shared.ingest_count set closed = true, moved = true where tenant_id = '{id}'"
    );
    sqlx::raw_sql(AssertSqlSafe(hold)).execute(&mut mover).await.unwrap();
    let mut shares = Shares::default();
    share(&mut shares, &world.acme, 1);
    let ready = shares.ready();
    let reopen = async || {
        let mut tx = world.store.begin(&world.acme).await.unwrap();
        let is_open = tx.reopen_place().await.unwrap();
        tx.commit().await.unwrap();
        is_open
    };
    assert!(matches!(writer.write(&ready).await, Err(StoreError::Moved { .. })));
    assert!(!reopen().await, "it is under way");
    assert!(matches!(writer.write(&ready).await, Err(StoreError::Moved { .. })));
    sqlx::Connection::close(mover).await.unwrap();
    while !reopen().await {
        tokio::task::yield_now().await;
    }
    writer.write(&ready).await.unwrap();
    // In the place that a tenant has left it stays closed.
    let mut superuser = world.database.superuser().await.unwrap();
    let left = format!(
        "update shared.ingest_count set closed = true, moved = true where tenant_id = '{id}';
         update platform.tenant set isolation = 'schema' where tenant_id = '{id}';
         begin; select set_config('app.tenant_id', '{id}', true); set local search_path to shared; set local role bulkhead_core;
         select 1 / (case when shared.reopen_place() then 0 else 1 end); commit"
    );
    sqlx::raw_sql(AssertSqlSafe(left)).execute(&mut superuser).await.expect("it was not opened");
}

/// Control: rows that do not arrive are missed, the rows stay where they are, and messages go on.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_not_the_same_are_not_said_to_be_moved() {
    let mut world = world().await;
    let mut writer = Writer::new(world.store.clone());
    for number in 0..3 {
        store_alone(&mut writer, &world.acme, number).await;
        store_alone(&mut writer, &world.xyz, number).await;
    }
    let mut superuser = world.database.superuser().await.unwrap();
    world.provisioning.make_schema(&world.planned("enterprise")).await.unwrap();
    let lose = "create function public.lose() returns trigger language plpgsql as
                  $$ begin if new.check_name = 'web-7' then return null; end if; return new; end $$;
                create trigger lose before insert on tenant_acme_corp.result for each row execute function public.lose()";
    sqlx::raw_sql(lose).execute(&mut superuser).await.unwrap();
    world.plan("enterprise").await;
    let refused = world.provisioning.move_tenant(&world.planned("enterprise"), &|_| {}).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::NotTheSame { there: 120, here: 117, .. }), "{refused:?}");
    assert_eq!(world.provisioning.isolation(&world.acme).await.unwrap(), Some(Isolation::Shared));
    store_alone(&mut writer, &world.acme, 3).await;
    store_alone(&mut writer, &world.xyz, 3).await;
    // So are those that arrive as others; then nobody has waited for anything yet.
    let change = "create or replace function public.lose() returns trigger language plpgsql as
                    $$ begin if new.check_name = 'web-7' then new.detail := '{}'; end if; return new; end $$";
    sqlx::raw_sql(change).execute(&mut superuser).await.unwrap();
    let steps = std::sync::Mutex::new(Vec::new());
    let say = |step| steps.lock().unwrap().push(step);
    let refused = world.provisioning.move_tenant(&world.planned("enterprise"), &say).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::NotTheSame { there: 52, here: 48, .. }), "{refused:?}");
    assert!(!steps.into_inner().unwrap().contains(&MoveStep::Holding));
    // Once it is mended the same call goes on, and what it finds changed is as it was.
    sqlx::raw_sql("drop trigger lose on tenant_acme_corp.result").execute(&mut superuser).await.unwrap();
    world.provisioning.move_tenant(&world.planned("enterprise"), &|_| {}).await.unwrap().unwrap();
    world.check_all_in("tenant_acme_corp", 4).await;
}

/// Control: without holding, what arrives while the rest is moved is lost, and the load sees it.
#[tokio::test(flavor = "multi_thread")]
async fn control_without_the_hold_rows_are_missing() {
    let mut world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    let mut writer = Writer::new(world.store.clone());
    for number in 0..3 {
        store_alone(&mut writer, &world.acme, number).await;
    }
    // Whatever says that nothing is to be written here is undone at once.
    let weaken = "create function public.open() returns trigger language plpgsql as
                    $$ begin new.closed := false; new.moved := false; return new; end $$;
                  create trigger open before insert or update on shared.ingest_count for each row execute function public.open()";
    sqlx::raw_sql(weaken).execute(&mut superuser).await.unwrap();
    // A transaction of core's that found its place before the move, and writes behind it.
    let mut late = world.store.begin(&world.acme).await.unwrap();
    world.plan("enterprise").await;
    let (provisioning, planned) = (world.provisioning.clone(), world.planned("enterprise"));
    let (told, mut said) = tokio::sync::mpsc::unbounded_channel();
    let moving =
        tokio::spawn(
            async move { provisioning.move_tenant(&planned, &|step| told.send(step).unwrap_or_default()).await },
        );
    while said.recv().await != Some(MoveStep::Switched) {}
    let row = "insert into result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation, island,
                                   attested)
               select tenant_id, 'late', slot, vantage, poller, kind, outcome, started_at, generation, island, attested
               from result limit 1";
    sqlx::raw_sql(row).execute(late.connection()).await.unwrap();
    let counts = bulkhead_core::store::Counts::default();
    bulkhead_core::store::add_counts(&mut late, &world.acme, counts).await.expect("nothing holds it");
    late.commit().await.unwrap();
    moving.await.unwrap().unwrap();
    let lost = "select count(*) from tenant_acme_corp.result where check_name = 'late'";
    assert_eq!(number(&mut superuser, lost).await, 0, "stored, confirmed, and gone with the old place");
}
