//! Each cell of the matrix: a statement that is made, what comes of it, and what must come of it.

use bulkhead_bus::Tenant;
use bulkhead_store::Service;
use bulkhead_testkit::sql::run;
use futures_util::TryStreamExt;
use sqlx::PgConnection;

use crate::table::{Kind, Table, role_of};
use crate::world::World;

/// Whom a statement names before it looks at the rows of a table's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Nobody,
    Other,
    Own,
}

impl Who {
    pub(crate) const ALL: [Self; 3] = [Self::Nobody, Self::Other, Self::Own];
}

/// Who says it on a connection without the store's care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// As its login role, or as the role that it becomes for a schema of one tenant.
    Service(Service),
    /// For whom grants do not count.
    Owner,
}

/// How a transaction of the store gets at a table of another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By its whole name.
    Name,
    SearchPath,
    /// As the role for whom it is there.
    Role,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Name, Self::SearchPath, Self::Role];
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// So many rows were seen or changed.
    Rows(u64),
    Refused(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Some,
    Nothing,
    /// With one of these codes.
    Refused(&'static [&'static str]),
}

const DENIED: Expected = Expected::Refused(&["42501"]);
/// The setting was never made in this session, or is empty since.
const NO_TENANT: Expected = Expected::Refused(&["42704", "22P02"]);
/// `COPY FROM` is not there for tables with row security.
const NOT_SUPPORTED: Expected = Expected::Refused(&["0A000"]);
/// A path leaves out what may not be looked into.
const NOT_FOUND: Expected = Expected::Refused(&["42P01"]);

/// What must come of it where the right is there: the policy alone decides.
fn by_policy(table: &Table, kind: Kind, who: Who) -> Expected {
    match (kind, who) {
        // Under row security such a copy is of the parent only, which has no rows itself.
        (Kind::CopyTo, _) if table.is_partitioned => Expected::Nothing,
        (Kind::CopyFrom, _) => NOT_SUPPORTED,
        // Truncating looks at no row, so that no policy could hold it back: nobody has that right.
        (Kind::Truncate, _) => DENIED,
        (_, Who::Nobody) => NO_TENANT,
        (Kind::Insert | Kind::Upsert | Kind::MergeInsert, Who::Other) | (Kind::GiveAway, Who::Own) => DENIED,
        (Kind::SelectStrangers, Who::Own)
        | (
            Kind::Select
            | Kind::SelectStrangers
            | Kind::SelectForUpdate
            | Kind::Update
            | Kind::GiveAway
            | Kind::Delete
            | Kind::CopyTo
            | Kind::CopyQueryTo
            | Kind::MergeUpdate
            | Kind::MergeDelete,
            Who::Other,
        ) => Expected::Nothing,
        (
            Kind::Select
            | Kind::SelectForUpdate
            | Kind::Insert
            | Kind::Upsert
            | Kind::Update
            | Kind::Delete
            | Kind::CopyTo
            | Kind::CopyQueryTo
            | Kind::MergeUpdate
            | Kind::MergeInsert
            | Kind::MergeDelete,
            Who::Own,
        ) => Expected::Some,
    }
}

/// What must come of it for a service, where it is as the role that has `table`'s rights.
fn for_service(service: Service, table: &Table, kind: Kind, who: Who) -> Expected {
    let has_rights = kind.needs().iter().all(|needed| table.rights(service).contains(*needed));
    if has_rights { by_policy(table, kind, who) } else { DENIED }
}

/// What was looked at, and where it was not as it must be.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) cells: usize,
    pub(crate) violations: Vec<String>,
}

impl Report {
    fn note(&mut self, table: &Table, what: &str, expected: Expected, outcome: &Outcome) {
        self.cells += 1;
        let is_met = match (expected, outcome) {
            (Expected::Some, Outcome::Rows(rows)) => *rows > 0,
            // Both locks were passed, and the row is there already.
            (Expected::Some, Outcome::Refused(code)) => code == "23505" && table.holds_one_row(),
            (Expected::Nothing, outcome) => *outcome == Outcome::Rows(0),
            (Expected::Refused(codes), Outcome::Refused(code)) => codes.contains(&code.as_str()),
            (Expected::Refused(_), Outcome::Rows(_)) => false,
        };
        if !is_met {
            self.violations.push(format!("{}: {what}: {outcome:?} and not {expected:?}", table.name));
        }
    }

    /// Whether something is wrong with `table`.
    pub(crate) fn blames(&self, table: &str) -> bool {
        let prefix = format!("{table}: ");
        self.violations.iter().any(|line| line.starts_with(&prefix))
    }
}

async fn attempt(connection: &mut PgConnection, kind: Kind, sql: &str, owner: &Tenant) -> Outcome {
    let done = match kind {
        Kind::CopyTo | Kind::CopyQueryTo => copied(connection, sql, owner).await,
        Kind::CopyFrom => match connection.copy_in_raw(sql).await {
            Ok(copy) => copy.abort("it was let in").await.map(|()| 1),
            Err(refused) => Err(refused),
        },
        Kind::Select
        | Kind::SelectStrangers
        | Kind::SelectForUpdate
        | Kind::Insert
        | Kind::Upsert
        | Kind::Update
        | Kind::GiveAway
        | Kind::Delete
        | Kind::Truncate
        | Kind::MergeUpdate
        | Kind::MergeInsert
        | Kind::MergeDelete => run(connection, sql).await,
    };
    match done {
        Ok(rows) => Outcome::Rows(rows),
        Err(error) => Outcome::Refused(
            error.as_database_error().and_then(|error| error.code()).unwrap_or_else(|| panic!("{sql}: {error}")).into(),
        ),
    }
}

/// How many of the rows that come are `owner`'s.
async fn copied(connection: &mut PgConnection, sql: &str, owner: &Tenant) -> Result<u64, sqlx::Error> {
    // sqlx reads on from the wrong place when a copy is refused before it begins: it is tried as a statement first, and is
    // refused like one, or begins, which a statement does not.
    run(connection, "savepoint copy").await?;
    if let Err(sqlx::Error::Database(refused)) = run(connection, sql).await {
        return Err(sqlx::Error::Database(refused));
    }
    // What has come of it is read away, and an error among it is told once.
    if run(connection, "rollback to savepoint copy").await.is_err() {
        run(connection, "rollback to savepoint copy").await?;
    }
    let rows: Vec<_> = connection.copy_out_raw(sql).await?.try_collect().await?;
    let text = String::from_utf8(rows.concat()).unwrap();
    Ok(text.lines().filter(|line| *line == owner.id.as_uuid().to_string()).count().try_into().unwrap())
}

fn name_tenant(tenant: &Tenant) -> String {
    format!("select set_config('app.tenant_id', '{}', true)", tenant.id.as_uuid())
}

/// Every kind of statement about one table, by `who` through `door`.
pub(crate) async fn check_raw(
    report: &mut Report,
    connection: &mut PgConnection,
    world: &World,
    table: &Table,
    (door, who): (Door, Who),
) {
    let (owner, other) = world.owners(table);
    let named = match who {
        Who::Nobody => None,
        Who::Other => Some(other),
        Who::Own => Some(owner),
    };
    let role = match door {
        Door::Service(service) => role_of(service, &table.schema),
        Door::Owner => "bulkhead_owner".to_owned(),
    };
    for kind in Kind::ALL {
        let expected = match door {
            Door::Service(service) => for_service(service, table, kind, who),
            // It may, as whoever owns a table always may, and nobody logs in as it.
            Door::Owner if kind == Kind::Truncate => continue,
            // A partition has no policy, and what no policy lets through is not there, whoever is named.
            Door::Owner if table.is_partition => by_policy(table, kind, Who::Other),
            Door::Owner => by_policy(table, kind, who),
        };
        run(connection, &format!("begin; set local role {role}")).await.unwrap();
        if let Some(named) = named {
            run(connection, &name_tenant(named)).await.unwrap();
        }
        let outcome = attempt(connection, kind, &kind.sql(table, &table.name, owner, named), owner).await;
        run(connection, "rollback").await.unwrap();
        report.note(table, &format!("{kind:?} by {door:?}, {who:?} named"), expected, &outcome);
    }
}

/// Every kind of statement about one table in a transaction of the store for `from`, which gets at it in that `way`.
pub(crate) async fn check_tx(
    report: &mut Report,
    world: &World,
    table: &Table,
    (service, from, way): (Service, &Tenant, Way),
) {
    let (owner, _) = world.owners(table);
    let is_there = world.schema_of(from) == table.schema;
    let who = if from.id == owner.id { Who::Own } else { Who::Other };
    for kind in Kind::ALL {
        let expected = match way {
            Way::Name | Way::SearchPath | Way::Role if is_there => for_service(service, table, kind, who),
            // Its login may become each of these roles, and so may whoever has got the service to say it: the second lock is
            // what is left, and holds.
            Way::Role => for_service(service, table, kind, Who::Other),
            Way::Name => DENIED,
            Way::SearchPath => NOT_FOUND,
        };
        let mut tx = world.store(service).begin(from).await.unwrap();
        let bare = table.name.trim_start_matches(&table.schema).trim_start_matches('.');
        let (said, name) = match way {
            Way::Name => (String::new(), table.name.as_str()),
            Way::SearchPath => (format!("set local search_path = {}", table.schema), bare),
            Way::Role if table.schema == "shared" => ("reset role".to_owned(), table.name.as_str()),
            Way::Role => (format!("set local role {}", role_of(service, &table.schema)), table.name.as_str()),
        };
        run(&mut tx.connection(), &said).await.unwrap();
        let sql = kind.sql(table, name, owner, Some(from));
        let outcome = attempt(&mut tx.connection(), kind, &sql, owner).await;
        report.note(
            table,
            &format!("{kind:?} of {service:?} by {way:?} in a transaction of {}", from.slug),
            expected,
            &outcome,
        );
    }
}

/// Every kind of statement about one table on a connection on which nobody has named a tenant.
pub(crate) async fn check_unnamed(
    report: &mut Report,
    (service, connection): (Service, &mut PgConnection),
    world: &World,
) {
    for table in &world.tables {
        check_raw(report, connection, world, table, (Door::Service(service), Who::Nobody)).await;
    }
}

/// What a connection of the store for no tenant's tables makes of tables of tenants, after one was named on it.
pub(crate) async fn check_platform_connection(report: &mut Report, world: &World, service: Service) {
    let mut connection = world.store(service).platform().await.unwrap();
    check_unnamed(report, (service, &mut connection.connection()), world).await;
}
