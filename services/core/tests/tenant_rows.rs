//! One tenant's rows taken out and brought back: into another tenant, into another kind of place, and to where they were,
//! while its results keep arriving. Every row is compared.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod load;
mod rows;

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_bus::Tenant;
use bulkhead_core::commit::{Shares, Writer};
use bulkhead_store::{
    Bring, BroughtRows, ExportedRows, FedRows, ImportStep, Provisioning, ProvisioningError, RowPiece, StoreError,
    TENANT_TABLES, TableSum,
};
use bulkhead_testkit::database::{account_key, tenant};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::mpsc;

use load::{Load, ROWS_A_BATCH, World, share, store_alone, world};

/// Everything that was read, as a file would hold it.
#[derive(Debug, Clone)]
struct Taken {
    exported: ExportedRows,
    parts: Vec<(String, Vec<u8>)>,
}

async fn take(provisioning: &Provisioning, tenant: &Tenant) -> Taken {
    let mut parts = Vec::new();
    let mut sink = |piece: RowPiece<'_>| {
        match piece {
            RowPiece::Begin(name) => parts.push((name.to_owned(), vec![])),
            RowPiece::Bytes(bytes) => parts.last_mut().unwrap().1.extend_from_slice(bytes),
            RowPiece::End => {}
        }
        Ok(())
    };
    let exported = provisioning.export_tenant(tenant, &mut sink).await.unwrap();
    Taken { exported, parts }
}

/// Feeds parts in small pieces, which end anywhere in a row.
fn feed(parts: &[(String, Vec<u8>)], is_whole: bool) -> mpsc::Receiver<FedRows> {
    let (send, receive) = mpsc::channel(4);
    let parts = parts.to_vec();
    tokio::spawn(async move {
        let mut all = Vec::new();
        for (name, bytes) in parts {
            all.push(FedRows::Begin(name));
            all.extend(bytes.chunks(1_000).map(|piece| FedRows::Bytes(piece.to_vec())));
            all.push(FedRows::End);
        }
        all.extend(is_whole.then_some(FedRows::Whole));
        for fed in all {
            // Whoever refuses does not wait for the rest.
            if send.send(fed).await.is_err() {
                return;
            }
        }
    });
    receive
}

async fn bring(
    provisioning: &Provisioning,
    tenant: &Tenant,
    how: Bring,
    taken: &Taken,
) -> Result<BroughtRows, ProvisioningError> {
    provisioning.import_tenant(tenant, how, &taken.exported.tables, (feed(&taken.parts, true), &|_| {})).await
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

fn schema_of(tenant: &Tenant) -> String {
    match tenant.plan.as_str() {
        "enterprise" => format!("tenant_{}", tenant.slug.as_str().replace('-', "_")),
        _shared => "shared".to_owned(),
    }
}

/// Rows that one tenant has and the other has not, in both directions; whose they are does not count.
async fn differences(superuser: &mut PgConnection, table: &str, one: &Tenant, other: &Tenant) -> i64 {
    let columns = format!(
        "select string_agg(case when attname in ('was', 'is_now') then format('%s - ''tenant_id'' as %1$s', attname) else attname end,
                           ', ' order by attnum) from pg_attribute where attrelid = 'shared.{table}'::regclass
         and attnum > 0 and attname not in ('tenant_id', 'closed', 'moved')"
    );
    let columns: String = sqlx::query_scalar(AssertSqlSafe(columns)).fetch_one(&mut *superuser).await.unwrap();
    let of = |tenant: &Tenant| {
        format!("select {columns} from {}.{table} where tenant_id = '{}'", schema_of(tenant), tenant.id.as_uuid())
    };
    let (one, other) = (of(one), of(other));
    let sql = format!(
        "select (select count(*) from ({one} except all {other}) a) + (select count(*) from ({other} except all {one}) b)"
    );
    number(superuser, &sql).await
}

/// Text that ends lines, quotes and columns; nothing, and nothing of it; JSON; bytes.
const STRANGE: &str = r#"
    update SCHEMA.result set reason = 'bad_answer', detail = '{"a": [1, null, "x\ny,\"z\""], "b": {}, "c": "\\N"}', latency_us = null
    where tenant_id = 'ID' and check_name = 'web-3';
    update SCHEMA.result set detail = '"\u00e5 ,;"' where tenant_id = 'ID' and check_name = 'web-4';
    insert into SCHEMA.dead_letter (tenant_id, digest, row_index, reason, detail, stream, subject, headers, payload, delivered)
    select 'ID', decode(md5(n::text), 'hex'), n, 'undecodable', E'line\n"two"', 'RESULTS', 't.x', '', decode('00ff0a2c22', 'hex'), n + 1
    from generate_series(-1, 20) n;"#;

async fn fill(world: &World, tenant: &Tenant) {
    let mut writer = Writer::new(world.store.clone());
    for number in 0..5 {
        store_alone(&mut writer, tenant, number).await;
    }
    let strange = STRANGE.replace("SCHEMA", &schema_of(tenant)).replace("ID", &tenant.id.as_uuid().to_string());
    run(&mut world.database.superuser().await.unwrap(), &strange).await;
}

async fn add(world: &World, slug: &str, plan: &str) -> Tenant {
    let added = Tenant { plan: plan.to_owned(), ..tenant(slug) };
    world.provisioning.put_tenant(&account_key(), &added).await.unwrap();
    added
}

/// Keys of pollers, and what is of the running platform.
const NOT_COPIED: [&str; 6] = ["site", "poller", "assignment", "dispatch_state", "run_order", "sealed_secret"];

fn copied() -> impl Iterator<Item = &'static str> {
    TENANT_TABLES.into_iter().filter(|table| !NOT_COPIED.contains(table))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_every_row_wherever_both_are() {
    let mut world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    fill(&world, &world.acme).await;
    for (from, to) in [("pro", "free"), ("pro", "enterprise"), ("enterprise", "pro"), ("enterprise", "enterprise")] {
        world.plan(from).await;
        let source = world.planned(from);
        world.provisioning.move_tenant(&source, &|_| {}).await.unwrap();
        let taken = take(&world.provisioning, &source).await;
        assert_eq!(taken.exported.tables["result"].rows, 5 * ROWS_A_BATCH as u64);
        assert_eq!(taken.exported.tables["dead_letter"].rows, 22);
        assert_eq!((&*taken.exported.sites, &*taken.exported.pollers), (&["oslo".into()][..], &["oslo/p1".into()][..]));
        let copy = add(&world, &format!("copy-{from}-{to}"), to).await;
        let brought = bring(&world.provisioning, &copy, Bring::Copy, &taken).await.unwrap();
        assert_eq!(brought.rows["result"], 5 * ROWS_A_BATCH as u64);
        for table in copied() {
            assert_eq!(differences(&mut superuser, table, &source, &copy).await, 0, "{table} from {from} to {to}");
        }
        let own = format!(
            "select count(*) from {}.config_change where tenant_id = '{id}' and is_now ->> 'tenant_id' = '{id}'",
            schema_of(&copy),
            id = copy.id.as_uuid()
        );
        assert_eq!(number(&mut superuser, &own).await, 3, "what was configured is the copy's");
        for table in NOT_COPIED {
            assert_eq!(taken.exported.tables[table].rows, 1, "{table}");
            let schema = schema_of(&copy);
            let sql = format!("select count(*) from {schema}.{table} where tenant_id = '{}'", copy.id.as_uuid());
            assert_eq!(number(&mut superuser, &sql).await, 0, "{table}");
        }
        // The same text comes out of it, whatever the place; so it does when it is brought twice.
        bring(&world.provisioning, &copy, Bring::Copy, &taken).await.unwrap();
        let again = take(&world.provisioning, &copy).await;
        for table in copied() {
            assert_eq!(again.exported.tables[table], taken.exported.tables[table], "{table} from {from} to {to}");
        }
    }
}

/// Control for the comparison above: one changed, one missing and one row more are each seen.
#[tokio::test]
async fn control_a_row_that_is_not_the_same_is_a_difference() {
    let world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let copy = add(&world, "copy", "free").await;
    bring(&world.provisioning, &copy, Bring::Copy, &taken).await.unwrap();
    let before = world.provisioning.sum_tenant(&copy).await.unwrap();
    let id = copy.id.as_uuid();
    for (table, change) in [
        ("result", "update shared.result set latency_us = 8 where check_name = 'web-5'"),
        ("check_state", "delete from shared.check_state where check_name = 'web-6'"),
        ("dead_letter", "update shared.dead_letter set payload = '\\x00' where row_index = 7"),
    ] {
        run(&mut superuser, &format!("{change} and tenant_id = '{id}'")).await;
        assert_ne!(differences(&mut superuser, table, &world.acme, &copy).await, 0, "{table}");
        assert_ne!(world.provisioning.sum_tenant(&copy).await.unwrap()[table], before[table], "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_under_load_is_of_one_moment() {
    let world = world().await;
    let load = Load::begin(&world, 0);
    let mut before = 0;
    for _ in 0..5 {
        load.more(3).await;
        let taken = take(&world.provisioning, &world.acme).await;
        let counts = &taken.parts.iter().find(|(name, _)| name == "ingest_count").unwrap().1;
        let counts = String::from_utf8(counts.clone()).unwrap();
        let (names, values) = counts.split_once('\n').unwrap();
        let of = |name: &str| {
            let place = names.split(',').position(|one| one == name).unwrap();
            values.trim().split(',').nth(place).unwrap().parse::<u64>().unwrap()
        };
        let rows = taken.exported.tables["result"].rows;
        assert_eq!(of("results"), rows, "rows and counts");
        assert!(rows > before);
        before = rows;
    }
    load.end().await;
}

/// Rows are lost, changed and made up; then the backup is brought back while results keep arriving.
async fn damaged_and_mended(plan: &str) {
    let mut world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    world.plan(plan).await;
    world.acme = world.planned(plan);
    world.provisioning.move_tenant(&world.acme, &|_| {}).await.unwrap();
    fill(&world, &world.acme).await;
    let (schema, id) = (schema_of(&world.acme), world.acme.id.as_uuid());
    run(&mut superuser, &format!("update {schema}.result set received_at = now() - interval '1 hour'")).await;
    run(&mut superuser, &format!("update {schema}.dead_letter set received_at = now() - interval '1 hour'")).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let load = Load::unread(&world, 5);
    load.more(5).await;
    let again = format!(
        "update {schema}.result set received_at = now(), latency_us = 5 where tenant_id = '{id}' and check_name = 'web-8'
             and received_at < now() - interval '30 minutes'"
    );
    run(&mut superuser, &again).await;
    let damage = format!(
        "delete from {schema}.result where tenant_id = '{id}' and check_name in ('web-1', 'web-2') and received_at < now() - interval '30 minutes';
         update {schema}.result set outcome = 'fail', latency_us = 1 where tenant_id = '{id}' and check_name = 'web-3'
             and received_at < now() - interval '30 minutes';
         update {schema}.result set check_name = 'made-up' where tenant_id = '{id}' and check_name = 'web-9'
             and received_at < now() - interval '30 minutes';
         update {schema}.check_state set outcome = 'fail' where tenant_id = '{id}' and check_name = 'web-4';
         delete from {schema}.dead_letter where tenant_id = '{id}' and row_index > 10"
    );
    run(&mut superuser, &damage).await;
    let how = Bring::Back { taken_ms: taken.exported.taken_ms };
    let brought = bring(&world.provisioning, &world.acme, how, &taken).await.unwrap();
    assert_eq!(brought.gone, BTreeMap::from([("result".to_owned(), 5)]), "what was made up");
    assert_eq!(brought.kept, BTreeMap::from([("result".to_owned(), 5)]), "what has come again since");
    assert_eq!(brought.rows["result"], 5 * ROWS_A_BATCH as u64 - 5);
    load.more(5).await;
    let batches = load.end().await;
    let found = |what: &str| format!("select count(*) from {schema}.{what}");
    let all = number(&mut superuser, &found(&format!("result where tenant_id = '{id}'"))).await;
    assert_eq!(all, batches * ROWS_A_BATCH, "every row that was ever stored");
    let wrong = format!(
        "result where tenant_id = '{id}' and (outcome <> 'ok' or (check_name = 'web-3') <> (latency_us is null)
             and received_at < now() - interval '30 minutes' or check_name = 'made-up')"
    );
    assert_eq!(number(&mut superuser, &found(&wrong)).await, 0);
    assert_eq!(number(&mut superuser, &found(&format!("dead_letter where tenant_id = '{id}'"))).await, 22);
    let states = format!("check_state where tenant_id = '{id}' and outcome = 'ok'");
    assert_eq!(number(&mut superuser, &found(&states)).await, ROWS_A_BATCH, "the next result mends a state");
    let open = format!("ingest_count where tenant_id = '{id}' and not closed and not moved and results = {all}");
    assert_eq!(number(&mut superuser, &found(&open)).await, 1, "messages go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_to_shared_tables_under_load() {
    damaged_and_mended("pro").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_to_a_schema_under_load() {
    damaged_and_mended("enterprise").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_short_has_brought_everything_or_nothing() {
    let world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let copy = add(&world, "copy", "enterprise").await;
    let load = Load::begin(&world, 5);
    let (mut cut, mut limit) = (0, Duration::from_millis(5));
    let back = Bring::Back { taken_ms: taken.exported.taken_ms };
    for _ in 0..14 {
        for (tenant, how) in [(&copy, Bring::Copy), (&world.acme, back)] {
            let bringing = bring(&world.provisioning, tenant, how, &taken);
            match tokio::time::timeout(limit, bringing).await {
                Ok(brought) => drop(brought.unwrap()),
                Err(_) => cut += 1,
            }
        }
        let rows = number(&mut superuser, "select count(*) from tenant_copy.result").await;
        assert!(rows == 0 || rows == 5 * ROWS_A_BATCH, "{rows}");
        limit = limit.mul_f64(1.3);
    }
    assert!(cut >= 5, "{cut} were cut short");
    bring(&world.provisioning, &copy, Bring::Copy, &taken).await.unwrap();
    bring(&world.provisioning, &world.acme, back, &taken).await.unwrap();
    let batches = load.end().await;
    let sql = format!("select count(*) from shared.result where tenant_id = '{}'", world.acme.id.as_uuid());
    assert_eq!(number(&mut superuser, &sql).await, batches * ROWS_A_BATCH);
}

#[tokio::test]
async fn what_is_not_as_it_was_is_refused_and_nothing_is_brought() {
    let world = world().await;
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let copy = add(&world, "copy", "free").await;
    let empty = world.provisioning.sum_tenant(&copy).await.unwrap();
    let result = taken.parts.iter().position(|(name, _)| name.starts_with("result/")).unwrap();
    let edited = |edit: &dyn Fn(&mut Taken)| {
        let mut taken = taken.clone();
        edit(&mut taken);
        taken
    };
    let lose = |taken: &mut Taken| {
        let rows = &mut taken.parts[result].1;
        let end = rows.iter().rposition(|&byte| byte == b'\n').unwrap();
        rows.truncate(rows[..end].iter().rposition(|&byte| byte == b'\n').unwrap() + 1);
    };
    let twice = |taken: &mut Taken| {
        let rows = &mut taken.parts[result].1;
        let row = rows.split(|&byte| byte == b'\n').nth(1).unwrap().to_vec();
        rows.extend(row.into_iter().chain([b'\n']));
    };
    let more = |taken: &mut Taken| taken.parts.push(("later_table".to_owned(), b"a\n1\n".to_vec()));
    let column = |taken: &mut Taken| {
        let text = String::from_utf8(taken.parts[result].1.clone()).unwrap();
        taken.parts[result].1 = text.replacen("check_name", "check_later", 1).into_bytes();
    };
    let word = |taken: &mut Taken| {
        let text = String::from_utf8(taken.parts[result].1.clone()).unwrap();
        taken.parts[result].1 = text.replacen(",ok,", ",banana,", 1).into_bytes();
    };
    let name = |taken: &mut Taken| {
        let text = String::from_utf8(taken.parts[result].1.clone()).unwrap();
        taken.parts[result].1 = text.replacen("web-0", "t.*.>", 1).into_bytes();
    };
    let counts = taken.parts.iter().position(|(name, _)| name == "ingest_count").unwrap();
    let negative = |taken: &mut Taken| {
        let text = String::from_utf8(taken.parts[counts].1.clone()).unwrap();
        taken.parts[counts].1 = text.replacen('\n', "\n-", 1).into_bytes();
    };
    let injected = |taken: &mut Taken| taken.parts[result].1.splice(0..10, *b"x) from x;\n").for_each(drop);
    let cases: [(&str, Taken); 8] = [
        ("UnknownValue", edited(&word)),
        ("UnknownValue", edited(&name)),
        ("BadRows", edited(&negative)),
        ("NotAsExported", edited(&lose)),
        ("NotAsExported", edited(&twice)),
        ("UnknownPart", edited(&more)),
        ("UnknownColumn", edited(&column)),
        ("UnknownColumn", edited(&injected)),
    ];
    for how in [Bring::Copy, Bring::Rehearse] {
        for (expected, bad) in &cases {
            let refused = bring(&world.provisioning, &copy, how, bad).await.unwrap_err();
            assert!(format!("{refused:?}").starts_with(expected), "{expected}: {refused:?}");
        }
        let torn = feed(&taken.parts, false);
        let refused =
            world.provisioning.import_tenant(&copy, how, &taken.exported.tables, (torn, &|_| {})).await.unwrap_err();
        assert!(matches!(refused, ProvisioningError::NotWhole), "{refused:?}");
        assert_eq!(world.provisioning.sum_tenant(&copy).await.unwrap(), empty, "nothing was brought");
    }
    let yet_to_come = Bring::Back { taken_ms: taken.exported.taken_ms + 3_600_000 };
    let refused = bring(&world.provisioning, &world.acme, yet_to_come, &taken).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::FromTheFuture { .. }), "{refused:?}");
}

/// Control: a database that loses a row on the way is seen, and nothing stays.
#[tokio::test]
async fn control_rows_that_are_lost_on_the_way_are_missed() {
    let world = world().await;
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let copy = add(&world, "copy", "free").await;
    let empty = world.provisioning.sum_tenant(&copy).await.unwrap();
    let mut superuser = world.database.superuser().await.unwrap();
    let lose = "create function public.lose() returns trigger language plpgsql as
                  $$ begin if new.check_name = 'web-7' then return null; end if; return new; end $$;
                create trigger lose before insert on shared.result for each row execute function public.lose()";
    run(&mut superuser, lose).await;
    let refused = bring(&world.provisioning, &copy, Bring::Copy, &taken).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::NotAsExported { there: 200, here: 195, .. }), "{refused:?}");
    assert_eq!(world.provisioning.sum_tenant(&copy).await.unwrap(), empty);
    run(&mut superuser, "drop trigger lose on shared.result").await;
    bring(&world.provisioning, &copy, Bring::Copy, &taken).await.unwrap();
}

/// Whoever stores meanwhile is told to come again, and can once the rows are back.
#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_while_rows_are_brought_back() {
    let world = world().await;
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let (told, mut is_bringing) = mpsc::unbounded_channel();
    let (go_on, waits) = std::sync::mpsc::channel::<()>();
    let waits = std::sync::Mutex::new(waits);
    let progress = |step: ImportStep<'_>| {
        if step == ImportStep::Bringing("result") {
            told.send(()).unwrap();
            tokio::task::block_in_place(|| waits.lock().unwrap().recv().unwrap());
        }
    };
    let back = Bring::Back { taken_ms: taken.exported.taken_ms };
    let fed = (feed(&taken.parts, true), &progress as _);
    let (mut writer, acme) = (Writer::new(world.store.clone()), world.acme.clone());
    let storing = tokio::spawn(async move {
        is_bringing.recv().await.unwrap();
        let mut shares = Shares::default();
        share(&mut shares, &acme, 5);
        let refused = writer.write(&shares.ready()).await;
        go_on.send(()).unwrap();
        refused
    });
    world.provisioning.import_tenant(&world.acme, back, &taken.exported.tables, fed).await.unwrap();
    let refused = storing.await.unwrap();
    assert!(matches!(refused, Err(StoreError::Moved { .. })), "{refused:?}");
    store_alone(&mut Writer::new(world.store.clone()), &world.acme, 5).await;
}

/// Rows that went would stay in the place that the move has filled by half.
#[tokio::test]
async fn nothing_is_brought_where_a_move_was_begun() {
    let world = world().await;
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let back = Bring::Back { taken_ms: taken.exported.taken_ms };
    let mut superuser = world.database.superuser().await.unwrap();
    let id = world.acme.id.as_uuid();
    run(&mut superuser, &format!("insert into platform.tenant_move values ('{id}', 'schema')")).await;
    let refused = bring(&world.provisioning, &world.acme, back, &taken).await.unwrap_err();
    assert!(matches!(refused, ProvisioningError::MoveBegun { .. }), "{refused:?}");
    run(&mut superuser, "delete from platform.tenant_move").await;
    bring(&world.provisioning, &world.acme, back, &taken).await.unwrap();
}

/// A check that stopped keeps its last state, though the result that it is of is gone.
#[tokio::test]
async fn a_state_that_is_newer_than_the_backup_stays() {
    let world = world().await;
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let mut superuser = world.database.superuser().await.unwrap();
    let of = format!("tenant_id = '{}' and check_name = 'web-11'", world.acme.id.as_uuid());
    run(&mut superuser, &format!("update shared.check_state set slot = now(), outcome = 'fail' where {of}")).await;
    let back = Bring::Back { taken_ms: taken.exported.taken_ms };
    bring(&world.provisioning, &world.acme, back, &taken).await.unwrap();
    let newer = format!("select count(*) from shared.check_state where {of} and outcome = 'fail'");
    assert_eq!(number(&mut superuser, &newer).await, 1);
    // Control: one that the backup is newer than comes back.
    let older = format!("update shared.check_state set slot = slot - interval '9 days', outcome = 'fail' where {of}");
    run(&mut superuser, &older).await;
    bring(&world.provisioning, &world.acme, back, &taken).await.unwrap();
    assert_eq!(number(&mut superuser, &newer).await, 0);
}

/// What the plan keeps no longer is left out, and said.
#[tokio::test]
async fn rows_that_the_plan_does_not_keep_are_left_out() {
    let world = world().await;
    fill(&world, &world.acme).await;
    let taken = take(&world.provisioning, &world.acme).await;
    let short = Tenant { retention_days: 1, ..tenant("short") };
    world.provisioning.put_tenant(&account_key(), &short).await.unwrap();
    let brought = bring(&world.provisioning, &short, Bring::Copy, &taken).await.unwrap();
    let left_out = brought.too_old["result"];
    assert!(left_out > 0);
    assert_eq!(brought.rows["result"] + left_out, 5 * ROWS_A_BATCH as u64);
    let sums: BTreeMap<String, TableSum> = world.provisioning.sum_tenant(&short).await.unwrap();
    assert_eq!(sums["result"].rows, brought.rows["result"]);
}

/// Whoever adds a table of tenants is told here that it has to be in a backup.
#[tokio::test]
async fn every_table_of_tenants_is_taken() {
    let world = world().await;
    let mut superuser = world.database.superuser().await.unwrap();
    let sql = "select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
               where c.relnamespace = 'shared'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition order by 1";
    let found: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut superuser).await.unwrap();
    let mut known = TENANT_TABLES.map(str::to_owned);
    known.sort_unstable();
    assert_eq!(found, known);
}
