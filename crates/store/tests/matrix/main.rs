//! Every table that carries a tenant's id, in both strategies, times every kind of statement, times whoever says it. Controls
//! take a lock away and see the same check fail, on that very table.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cells;
mod table;
mod world;

use std::collections::BTreeSet;

use bulkhead_store::{Inspection, Service, TENANT_TABLES};
use bulkhead_testkit::sql::{count, refusal, run};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Row};

use cells::{Report, Way, check_platform_connection, check_unnamed};
use table::{Kind, Table};
use world::World;

const PLACES: [&str; 3] = ["shared", "tenant_big_bank", "tenant_cargo_line"];

#[tokio::test]
async fn every_table_times_every_statement_times_everybody() {
    let world = World::start().await;
    let names: BTreeSet<&str> = world.tables.iter().map(|table| table.name.as_str()).collect();
    for place in PLACES {
        for known in TENANT_TABLES {
            assert!(names.contains(&*format!("{place}.{known}")), "{place}.{known} is not in {names:?}");
        }
        let partitions = world.tables.iter().filter(|table| table.schema == place && table.is_partition).count();
        assert!(partitions >= 1, "{place} has no partition to look at");
    }
    // Nothing but what is told apart by the policy may be done by a service, whatever a migration grants.
    for (service, expected) in [
        (Service::Core, &["INSERT", "SELECT", "UPDATE"][..]),
        (Service::Registry, &["INSERT", "SELECT"]),
        (Service::Dispatch, &["DELETE", "INSERT", "SELECT", "UPDATE"]),
    ] {
        let rights: BTreeSet<&str> =
            world.tables.iter().flat_map(|table| table.rights(service)).map(String::as_str).collect();
        assert_eq!(rights, expected.iter().copied().collect(), "{service:?}");
    }
    let mut report = Report::default();
    for table in &world.tables {
        world.check(&mut report, table, &Way::ALL).await;
    }
    assert_eq!(report.violations, Vec::<String>::new());
    // Services and the owner name three each, the owner truncates nothing, and four tenants go every way in each service.
    let (kinds, services) = (Kind::ALL.len(), Service::ALL.len());
    let expected = world.tables.len() * (3 * ((services + 1) * kinds - 1) + services * 4 * Way::ALL.len() * kinds);
    assert_eq!(report.cells, expected);
}

/// A connection on which a tenant was named once, by the store: nobody is named any more.
#[tokio::test]
async fn a_connection_that_comes_back_has_named_nobody() {
    let world = World::start().await;
    for (how, is_committed) in [("committed", true), ("dropped", false)] {
        for service in Service::ALL {
            for tenant in &world.tenants {
                let tx = world.store(service).begin(tenant).await.unwrap();
                if is_committed {
                    tx.commit().await.unwrap();
                }
            }
            let mut report = Report::default();
            check_platform_connection(&mut report, &world, service).await;
            assert_eq!(report.violations, Vec::<String>::new(), "{how} of {service:?}");
        }
    }
    // Whoever forgets LOCAL on a connection of ours has done so for nobody else.
    let set = format!("set app.tenant_id = '{}'", world.tenants[0].id.as_uuid());
    let mut held = Vec::new();
    for _ in 0..bulkhead_testkit::database::CONNECTIONS.shared {
        let mut connection = world.store(Service::Core).platform().await.unwrap();
        run(&mut connection.connection(), &set).await.unwrap();
        held.push(connection);
    }
    drop(held);
    let mut report = Report::default();
    check_platform_connection(&mut report, &world, Service::Core).await;
    assert_eq!(report.violations, Vec::<String>::new());
    // Control: the same on a pool that takes no care.
    let naive = PgPoolOptions::new().max_connections(1).connect(&world.database.core_url()).await.unwrap();
    run(&mut naive.acquire().await.unwrap(), &set).await.unwrap();
    let mut report = Report::default();
    check_unnamed(&mut report, (Service::Core, &mut naive.acquire().await.unwrap()), &world).await;
    for table in world.parents() {
        let is_seen = report.violations.iter().any(|line| line.starts_with(&format!("{}: Select ", table.name)));
        assert!(is_seen, "{} is not in {:?}", table.name, report.violations);
    }
}

/// Takes a lock of each table away, in a place of either strategy, and sees that table blamed: the same check holds for it before,
/// as another test shows.
async fn see_each_table_blamed(open: impl Fn(&Table) -> String) {
    let world = World::start().await;
    let mut superuser = world.database.superuser().await.unwrap();
    for table in world.parents().filter(|table| PLACES[..2].contains(&table.schema.as_str())) {
        run(&mut superuser, &open(table)).await.unwrap();
        let mut report = Report::default();
        world.check(&mut report, table, &[Way::Name]).await;
        assert!(report.blames(&table.name), "{}: {:?}", open(table), report.violations);
    }
}

#[tokio::test]
async fn control_a_policy_that_lets_all_through_is_seen() {
    see_each_table_blamed(|table| format!("alter policy tenant on {} using (true)", table.name)).await;
}

#[tokio::test]
async fn control_a_policy_that_takes_all_rows_is_seen() {
    // Of what services only read, the owner's statements are those that write; and the list of changes, which a trigger keeps,
    // would refuse a row of somebody else as well.
    let open = |table: &Table| {
        format!("alter policy tenant on {0} with check (true); alter table {0} disable trigger user", table.name)
    };
    see_each_table_blamed(open).await;
}

#[tokio::test]
async fn control_a_table_without_its_policy_is_seen() {
    see_each_table_blamed(|table| format!("drop policy tenant on {}", table.name)).await;
}

#[tokio::test]
async fn control_row_security_that_is_not_forced_is_seen_by_its_owner() {
    see_each_table_blamed(|table| format!("alter table {} no force row level security", table.name)).await;
}

#[tokio::test]
async fn control_row_security_that_is_off_is_seen() {
    see_each_table_blamed(|table| format!("alter table {} disable row level security", table.name)).await;
}

#[tokio::test]
async fn control_a_right_too_many_is_seen() {
    let world = World::start().await;
    let mut superuser = world.database.superuser().await.unwrap();
    let partitions: Vec<&Table> = world.tables.iter().filter(|table| table.is_partition).collect();
    let others = ["shared.site", "tenant_big_bank.site"].map(|name| world.table(name));
    let tables: Vec<&Table> = partitions.into_iter().chain(others).collect();
    for (service, table) in
        Service::ALL.into_iter().flat_map(|service| tables.iter().map(move |table| (service, *table)))
    {
        let role = table::role_of(service, &table.schema);
        for privilege in ["select", "insert", "delete", "truncate"] {
            if table.rights(service).contains(&privilege.to_uppercase()) {
                continue;
            }
            run(&mut superuser, &format!("grant {privilege}, select on {} to {role}", table.name)).await.unwrap();
            let mut report = Report::default();
            world.check(&mut report, table, &[Way::Name]).await;
            assert!(report.blames(&table.name), "{privilege}: {:?}", report.violations);
            run(&mut superuser, &format!("revoke {privilege} on {} from {role}", table.name)).await.unwrap();
            if table.rights(service).is_empty() {
                run(&mut superuser, &format!("revoke select on {} from {role}", table.name)).await.unwrap();
            }
        }
        let mut report = Report::default();
        world.check(&mut report, table, &[Way::Name]).await;
        assert_eq!(report.violations, Vec::<String>::new());
    }
}

/// What a service may do with the tables of the platform, tried, beside what it should.
async fn platform_violations(
    world: &World,
    service: Service,
    expected: &BTreeSet<(String, String)>,
) -> (usize, Vec<String>) {
    let mut superuser = world.database.superuser().await.unwrap();
    let sql = "select 'platform.' || c.relname, min(a.attname)::text from pg_class c
               join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
               where c.relnamespace = 'platform'::regnamespace and c.relkind in ('r', 'p') group by 1";
    let tables = sqlx::query(sql).fetch_all(&mut superuser).await.unwrap();
    let (mut cells, mut violations) = (0, Vec::new());
    for row in tables {
        let (table, column): (String, String) = (row.get(0), row.get(1));
        for (privilege, sql) in [
            ("SELECT", format!("select from {table}")),
            ("INSERT", format!("insert into {table} default values")),
            ("UPDATE", format!("update {table} set {column} = {column}")),
            ("DELETE", format!("delete from {table}")),
            ("TRUNCATE", format!("truncate {table}")),
        ] {
            let is_granted = expected.contains(&(table.clone(), privilege.to_owned()));
            // As its login, and from within a transaction of either strategy.
            let mut bare = world.database.bare(service).await.unwrap();
            let mut shared = world.store(service).begin(&world.tenants[0]).await.unwrap();
            let mut own = world.store(service).begin(&world.tenants[2]).await.unwrap();
            for (door, connection, is_granted) in [
                ("login", &mut bare, is_granted),
                ("shared", &mut shared.connection(), is_granted),
                ("schema", &mut own.connection(), false),
            ] {
                cells += 1;
                let code = match run(connection, &sql).await {
                    Ok(_) => None,
                    Err(error) => Some(error.as_database_error().unwrap().code().unwrap().into_owned()),
                };
                if (code.as_deref() == Some("42501")) == is_granted {
                    violations.push(format!("{sql} by {door}: {code:?}, and granted is {is_granted}"));
                }
            }
        }
    }
    (cells, violations)
}

#[tokio::test]
async fn a_service_writes_no_table_of_another() {
    let world = World::start().await;
    let inspection = Inspection::connect(&world.database.provision_url()).await.unwrap();
    let rights = inspection.rights().await.unwrap().expected;
    let mut superuser = world.database.superuser().await.unwrap();
    for (service, writes) in [
        (Service::Core, &[("platform.unclaimed_dead_letter", "INSERT")][..]),
        (Service::Registry, &[]),
        (Service::Dispatch, &[("platform.dispatch_leader", "UPDATE")]),
    ] {
        let of_service = rights.iter().filter(|right| right.role == service.login());
        let of_platform = of_service.filter(|right| right.object.starts_with("platform."));
        let expected: BTreeSet<(String, String)> =
            of_platform.map(|right| (right.object.clone(), right.privilege.clone())).collect();
        let pairs = expected.iter().map(|(object, privilege)| (&**object, &**privilege));
        assert_eq!(pairs.filter(|(_, privilege)| *privilege != "SELECT").collect::<Vec<_>>(), writes);
        let (cells, violations) = platform_violations(&world, service, &expected).await;
        assert_eq!(violations, Vec::<String>::new(), "{service:?}");
        assert!(cells >= 9 * 5 * 3, "{cells}");
        // Control: a right too many.
        let role = service.login();
        run(&mut superuser, &format!("grant update on platform.tenant to {role}")).await.unwrap();
        let (_, violations) = platform_violations(&world, service, &expected).await;
        assert!(!violations.is_empty() && violations.iter().all(|line| line.starts_with("update platform.tenant ")));
    }
}

/// Whoever makes a service say what it likes becomes nobody who sees more, and names another tenant at most: the policy is a lock
/// against what is forgotten, and no sandbox.
#[tokio::test]
async fn no_role_that_a_service_may_become_sees_more_than_the_tenant_that_is_named() {
    let world = World::start().await;
    for service in Service::ALL {
        check_roles_of(&world, service).await;
    }
}

async fn check_roles_of(world: &World, service: Service) {
    let mut bare = world.database.bare(service).await.unwrap();
    let sql = "select r.rolname::text from pg_roles r where r.rolname !~ '^pg_' order by 1";
    let roles: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut bare).await.unwrap();
    let mut became = BTreeSet::new();
    for role in &roles {
        for tenant in &world.tenants {
            let mut tx = world.store(service).begin(tenant).await.unwrap();
            match run(&mut tx.connection(), &format!("set local role {role}")).await {
                Ok(_) => became.insert(role.as_str()),
                Err(_) => continue,
            };
            for table in world.parents() {
                let may = format!(
                    "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
                     where n.nspname || '.' || c.relname = '{}'
                       and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')",
                    table.name
                );
                if count(&mut tx.connection(), &may).await == 0 {
                    continue;
                }
                let strangers =
                    format!("select count(*) from {} where tenant_id <> '{}'", table.name, tenant.id.as_uuid());
                let seen: i64 = sqlx::query_scalar(AssertSqlSafe(strangers)).fetch_one(tx.connection()).await.unwrap();
                assert_eq!(seen, 0, "{} as {role} for {}", table.name, tenant.slug);
            }
        }
    }
    let own = PLACES.map(|place| table::role_of(service, place));
    assert_eq!(became, own.iter().map(String::as_str).collect());
    for sql in ["set role bulkhead_owner", "set session authorization bulkhead_admin", "set role bulkhead_provision"] {
        assert_eq!(refusal(&mut bare, sql).await, "42501", "{sql}");
    }
}
