//! What an operator's tool sees of a real database, well and broken.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bulkhead_bus::Tenant;
use bulkhead_store::inspection::{DeadLetters, TableState};
use bulkhead_store::rights::{Right, Rights};
use bulkhead_store::{Inspection, TENANT_TABLES};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, tenant};
use bulkhead_testkit::sql::run;
use sqlx::PgConnection;

async fn inspection(database: &TestDatabase) -> Inspection {
    Inspection::connect(&database.provision_url()).await.unwrap()
}

async fn table(inspection: &Inspection, name: &str) -> TableState {
    inspection.tenant_tables().await.unwrap().into_iter().find(|table| table.name == name).unwrap()
}

#[tokio::test]
async fn versions_clock_schemas_and_roles_are_seen() {
    let database = TestDatabase::start().await.unwrap();
    let inspection = inspection(&database).await;
    assert!(inspection.version().await.unwrap() >= 150_000);
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let there = i128::from(inspection.clock_ms().await.unwrap());
    assert!((there - i128::try_from(before).unwrap()).abs() < 5_000, "{there}");
    let schemas = inspection.schemas().await.unwrap();
    assert!(schemas.iter().all(|schema| schema.applied == schema.expected && schema.changed.is_empty()), "{schemas:?}");
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "update shared._migrations set checksum = '\\x00'").await.unwrap();
    run(&mut superuser, "delete from platform._migrations").await.unwrap();
    let schemas = inspection.schemas().await.unwrap();
    assert_eq!((schemas[0].applied.len(), schemas[1].changed.len()), (0, 5), "{schemas:?}");

    let roles = inspection.roles().await.unwrap();
    let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "bulkhead_core",
            "bulkhead_dispatch",
            "bulkhead_owner",
            "bulkhead_provision",
            "bulkhead_registry",
            "bulkhead_roles"
        ]
    );
    let powers: Vec<&[&str]> = roles.iter().map(|role| &role.powers[..]).collect();
    assert_eq!(powers, [&[][..], &[], &[], &[], &[], &["createrole"]]);
    assert_eq!(
        roles.iter().map(|role| role.owns_tables).collect::<Vec<_>>(),
        [false, false, true, false, false, false]
    );
    assert_eq!(
        roles.iter().map(|role| role.is_member_of_owner).collect::<Vec<_>>(),
        [false, false, false, true, false, false]
    );
    let hindered: Vec<&str> = roles.iter().filter(|role| !role.hindrances.is_empty()).map(|role| &*role.name).collect();
    assert_eq!(hindered, ["bulkhead_owner", "bulkhead_roles"]);
    run(&mut superuser, "alter role bulkhead_core bypassrls createdb nologin connection limit 1").await.unwrap();
    let core = &inspection.roles().await.unwrap()[0];
    assert_eq!(core.powers, ["bypassrls", "createdb"]);
    assert_eq!(core.hindrances, ["it may not log in", "its connections are limited"]);
}

#[tokio::test]
async fn rights_are_those_of_the_migrations_and_one_more_or_less_is_seen() {
    let database = TestDatabase::start().await.unwrap();
    let inspection = inspection(&database).await;
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "set search_path to shared; select ensure_result_partition(current_date)").await.unwrap();
    let Rights { expected, found } = inspection.rights().await.unwrap();
    assert_eq!(found, expected);

    run(&mut superuser, "grant delete on shared.site to public; grant select (slug) on platform.tenant to public")
        .await
        .unwrap();
    run(&mut superuser, "revoke insert on shared.result from bulkhead_core").await.unwrap();
    run(&mut superuser, "revoke usage on schema platform from bulkhead_core").await.unwrap();
    run(&mut superuser, "revoke execute on function shared.ensure_result_partition(date) from bulkhead_core")
        .await
        .unwrap();
    let Rights { expected, found } = inspection.rights().await.unwrap();
    let shown = |right: &Right| format!("{} {} {}", right.role, right.privilege, right.object);
    let more: Vec<String> = found.difference(&expected).map(shown).collect();
    assert_eq!(more, ["PUBLIC SELECT platform.tenant", "PUBLIC DELETE shared.site"]);
    let less: Vec<String> = expected.difference(&found).map(shown).collect();
    let function = "bulkhead_core EXECUTE function shared.ensure_result_partition(date)";
    assert_eq!(less, [function, "bulkhead_core USAGE schema platform", "bulkhead_core INSERT shared.result"]);
}

#[tokio::test]
async fn settings_are_those_of_the_server_and_not_of_whoever_looks() {
    let database = TestDatabase::start().await.unwrap();
    let mut superuser = database.superuser().await.unwrap();
    let settings = inspection(&database).await.settings().await.unwrap();
    assert_eq!(settings.own, []);
    let server: Vec<(&str, &str)> = settings.server.iter().map(|(name, value)| (&**name, &**value)).collect();
    let expected = [
        ("default_transaction_read_only", "off"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
    ];
    assert_eq!(server, expected);
    run(&mut superuser, "alter role bulkhead_core set default_transaction_read_only = on").await.unwrap();
    run(&mut superuser, "alter database bulkhead set synchronous_commit = off").await.unwrap();
    let settings = inspection(&database).await.settings().await.unwrap();
    let own: Vec<String> = settings.own.iter().map(|one| format!("{}: {} = {}", one.of, one.name, one.value)).collect();
    assert_eq!(
        own,
        ["database bulkhead: synchronous_commit = off", "role bulkhead_core: default_transaction_read_only = on"]
    );
}

#[tokio::test]
async fn row_security_policies_and_grants_are_seen_of_tables_and_partitions() {
    let database = TestDatabase::start().await.unwrap();
    let inspection = inspection(&database).await;
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "set search_path to shared; select ensure_result_partition(current_date)").await.unwrap();
    let tables = inspection.tenant_tables().await.unwrap();
    let of_tenants: Vec<&TableState> = tables.iter().filter(|table| table.has_tenant).collect();
    assert_eq!(of_tenants.len(), TENANT_TABLES.len() + 1, "and a partition: {tables:?}");
    assert!(of_tenants.iter().all(|table| table.is_secured && table.is_forced));
    assert!(of_tenants.iter().all(|table| table.policies.len() == usize::from(!table.is_partition)));

    run(&mut superuser, "alter table shared.site no force row level security").await.unwrap();
    run(&mut superuser, "alter table shared.poller disable row level security").await.unwrap();
    run(&mut superuser, "create policy more on shared.site using (true)").await.unwrap();
    let site = table(&inspection, "shared.site").await;
    assert!(site.is_secured && !site.is_forced && site.policies.len() == 2, "{site:?}");
    assert!(!table(&inspection, "shared.poller").await.is_secured);
}

/// A result of `check` whose poller's clock is `ahead_s` ahead, with its state.
async fn store(superuser: &mut PgConnection, tenant: &Tenant, check: &str, ahead_s: i32) {
    let id = tenant.id.as_uuid();
    let sql = format!(
        "insert into shared.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested, received_at)
         values ('{id}', '{check}', date_trunc('second', now()), 'oslo', 'p1', 'tcp', 'ok',
                 now() + interval '{ahead_s} s', 0, false, true, now());
         insert into shared.check_state (tenant_id, check_name, vantage, poller, kind, slot, outcome, since)
         select tenant_id, check_name, vantage, poller, kind, slot, outcome, slot from shared.result
         where tenant_id = '{id}' and check_name = '{check}'"
    );
    run(superuser, &sql).await.unwrap();
}

#[tokio::test]
async fn clocks_and_dead_letters_are_those_of_the_tenant_asked_about() {
    let database = TestDatabase::start().await.unwrap();
    let inspection = inspection(&database).await;
    let mut superuser = database.superuser().await.unwrap();
    run(&mut superuser, "set search_path to shared; select ensure_result_partition(current_date)").await.unwrap();
    let provisioning = database.provisioning().await.unwrap();
    let (acme, xyz) = (tenant("acme-corp"), tenant("xyz-inc"));
    for tenant in [&acme, &xyz] {
        provisioning.put_tenant(&account_key(), tenant).await.unwrap();
    }
    assert_eq!(inspection.tenants().await.unwrap().tenants.len(), 2);
    store(&mut superuser, &acme, "on-time", -1).await;
    store(&mut superuser, &xyz, "on-time", -1).await;
    store(&mut superuser, &xyz, "ahead", 90).await;
    let clocks = inspection.poller_clocks(&acme).await.unwrap();
    assert!(clocks.len() == 1 && clocks[0].ahead_s <= 0.0, "{clocks:?}");
    let clocks = inspection.poller_clocks(&xyz).await.unwrap();
    assert!(clocks.len() == 1 && (clocks[0].ahead_s - 90.0).abs() < 0.1, "{clocks:?}");
    assert_eq!((clocks[0].site.as_str(), clocks[0].poller.as_str()), ("oslo", "p1"));

    let letter = |digest: &str, received: &str| {
        format!(
            "insert into shared.dead_letter values ('{}', '{digest}', 0, 'signature', 'x', 'RESULTS', 'x', '', '', 1, {received})",
            acme.id.as_uuid()
        )
    };
    run(&mut superuser, &letter("a", "now()")).await.unwrap();
    run(&mut superuser, &letter("b", "now() - interval '2 hours'")).await.unwrap();
    let since = inspection.clock_ms().await.unwrap() - 3_600_000;
    let expected = DeadLetters { reason: "signature".to_owned(), count: 1 };
    assert_eq!(inspection.dead_letters(&acme, since).await.unwrap(), [expected]);
    assert!(inspection.dead_letters(&xyz, since).await.unwrap().is_empty());
    assert_eq!(inspection.unclaimed_dead_letters(since).await.unwrap(), 0);
    let unclaimed = "insert into platform.unclaimed_dead_letter values ('a', 'A', 'unknown', 'x', '', '')";
    run(&mut superuser, unclaimed).await.unwrap();
    assert_eq!(inspection.unclaimed_dead_letters(since).await.unwrap(), 1);
}

#[tokio::test]
async fn a_database_that_is_away_or_has_no_schemas_is_an_error() {
    let nowhere = "postgres://bulkhead_provision:secret@127.0.0.1:1/bulkhead";
    assert!(Inspection::connect(nowhere).await.is_err());
    let bare = TestDatabase::start_bare().await.unwrap();
    assert!(Inspection::connect(&bare.provision_url()).await.is_err(), "there is no such role yet");
}
