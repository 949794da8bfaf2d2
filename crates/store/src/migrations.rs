//! Brings schemas to this release: the platform's, the shared one, and that of every tenant that has its own. Each has its
//! own table of versions and its own lock, so that many go at once, and one that is killed is gone on with.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures_util::future::join_all;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::admin::{AdminError, connect, failed, run};
use crate::isolation::SHARED;

/// The platform's own tables.
static PLATFORM: Migrator = sqlx::migrate!("../../migrations/platform");
/// A tenant's tables: once for the shared schema, and once for each schema of an enterprise tenant.
static TENANT: Migrator = sqlx::migrate!("../../migrations/tenant");

pub(crate) const PLATFORM_SCHEMA: &str = "platform";
/// Schemas of tenants that are migrated at once: more gains nothing (facts: postgres section 3).
const AT_ONCE: usize = 4;
/// A connection is given up after so many schemas: it keeps something of each.
const SCHEMAS_A_CONNECTION: usize = 100;

/// Services refuse to start on an older schema than theirs, and so have to see which one it is. Of tenants' own schemas
/// they see it in `platform.tenant_schema`.
pub(crate) fn migrations_grant(schema: &str) -> String {
    format!("grant select on {schema}._migrations to bulkhead_core, bulkhead_registry, bulkhead_dispatch")
}

/// What is told of a migration while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationProgress {
    pub done: usize,
    pub all: usize,
}

/// A schema and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaVersion {
    pub schema: String,
    /// 0 before the first migration.
    pub version: i64,
    /// What this release brings it to.
    pub expected: i64,
}

/// Brings every schema to this release.
///
/// # Errors
/// When a migration fails or an applied one was changed. The platform's and the shared schema come first; of the schemas of
/// single tenants one that fails does not stop the others, and the error names them.
pub async fn migrate(provision_url: &str) -> Result<(), AdminError> {
    migrate_all(provision_url, &|_| {}).await
}

/// As [`migrate`]; `progress` hears of every schema of a tenant.
///
/// # Errors
/// As [`migrate`].
pub async fn migrate_all(provision_url: &str, progress: &dyn Fn(MigrationProgress)) -> Result<(), AdminError> {
    let mut connection = connect(provision_url).await?;
    run(&mut connection, "become the owner", "set role bulkhead_owner").await?;
    // Nobody keeps anything in the schema that everybody can look into.
    let close_public = format!("revoke all on schema public from public; {}", migrations_grant(PLATFORM_SCHEMA));
    bring(&mut connection, PLATFORM_SCHEMA, &PLATFORM, &close_public).await?;
    bring(&mut connection, SHARED, &TENANT, &migrations_grant(SHARED)).await?;
    // Newest first: who was just added waits for nobody.
    let sql = "select schema from platform.tenant_schema where version < $1 order by made_at desc";
    let behind = sqlx::query_scalar(sql).bind(newest(&TENANT)).fetch_all(&mut connection).await;
    let behind: Vec<String> = behind.map_err(failed("list the schemas of tenants"))?;
    connection.close().await.map_err(failed("close"))?;
    bring_tenants(provision_url, behind, progress).await
}

async fn bring_tenants(
    url: &str,
    schemas: Vec<String>,
    progress: &dyn Fn(MigrationProgress),
) -> Result<(), AdminError> {
    let all = schemas.len();
    let (left, done) = (Mutex::new(VecDeque::from(schemas)), Mutex::new(0_usize));
    let next = || left.lock().expect("no holder panics").pop_front();
    let worker = async || -> Vec<(String, String)> {
        let mut trouble = Vec::new();
        let mut connection: Option<(PgConnection, usize)> = None;
        while let Some(schema) = next() {
            match bring_tenant(url, &mut connection, &schema).await {
                Ok(()) => {
                    let mut done = done.lock().expect("no holder panics");
                    *done += 1;
                    progress(MigrationProgress { done: *done, all });
                }
                Err(error) => {
                    // What failed has left its session's locks behind (facts: postgres section 3).
                    connection = None;
                    trouble.push((schema, chain(&error)));
                }
            }
        }
        trouble
    };
    let trouble: Vec<_> = join_all((0..AT_ONCE).map(|_| worker())).await.into_iter().flatten().collect();
    if trouble.is_empty() { Ok(()) } else { Err(AdminError::Schemas(trouble)) }
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

async fn bring_tenant(
    url: &str,
    connection: &mut Option<(PgConnection, usize)>,
    schema: &str,
) -> Result<(), AdminError> {
    let (mut own, seen) = match connection.take() {
        Some((own, seen)) if seen < SCHEMAS_A_CONNECTION => (own, seen),
        Some(_) | None => {
            let mut fresh = connect(url).await?;
            run(&mut fresh, "become the owner", "set role bulkhead_owner").await?;
            (fresh, 0)
        }
    };
    bring_schema(&mut own, schema).await?;
    *connection = Some((own, seen + 1));
    Ok(())
}

/// Brings the schema of one tenant to this release, on a connection that is the owner.
pub(crate) async fn bring_schema(connection: &mut PgConnection, schema: &str) -> Result<(), AdminError> {
    let made = sqlx::query("select provisioning.make_role($1)").bind(schema).execute(&mut *connection).await;
    made.map_err(failed("make the role of a tenant"))?;
    let note = format!("update platform.tenant_schema set version = {} where schema = '{schema}'", newest(&TENANT));
    bring(connection, schema, &TENANT, &note).await
}

fn newest(migrator: &Migrator) -> i64 {
    migrator.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Which version of each schema this release works with.
pub(crate) fn expected_versions() -> [(&'static str, i64); 2] {
    [(PLATFORM_SCHEMA, newest(&PLATFORM)), (SHARED, newest(&TENANT))]
}

/// Versions of migrations, each with its checksum.
pub(crate) type Checksums = Vec<(i64, Vec<u8>)>;

/// Every migration of this release, by schema.
pub(crate) fn expected_migrations() -> [(&'static str, Checksums); 2] {
    let all = |migrator: &Migrator| -> Checksums {
        migrator.iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect()
    };
    [(PLATFORM_SCHEMA, all(&PLATFORM)), (SHARED, all(&TENANT))]
}

/// The text of every migration, by schema and in order.
pub(crate) fn migrations_text() -> Vec<(&'static str, String)> {
    let text = |migrator: &Migrator| migrator.iter().map(|one| one.sql.as_str()).collect::<Vec<_>>().join("\n");
    vec![(PLATFORM_SCHEMA, text(&PLATFORM)), (SHARED, text(&TENANT))]
}

fn in_schema(migrator: &Migrator, schema: &str) -> Migrator {
    let mut migrator = Migrator { migrations: migrator.migrations.clone(), locking: false, ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name(format!("{schema}._migrations"));
    migrator
}

/// Under a lock of the schema's own, which a connection that ends gives back: sqlx's is one for the whole database. `finally`
/// is said under the same lock.
async fn bring(
    connection: &mut PgConnection,
    schema: &str,
    migrator: &Migrator,
    finally: &str,
) -> Result<(), AdminError> {
    let action = "prepare a schema";
    let lock = sqlx::query("select pg_advisory_lock(hashtext($1))").bind(schema).execute(&mut *connection).await;
    lock.map_err(failed("lock a schema"))?;
    // Whoever reads a table for long fails the migration, which can be said again; everybody else would wait behind it.
    let there = format!("create schema if not exists {schema}; set search_path to {schema}; set lock_timeout to '5s'");
    run(connection, action, &there).await?;
    let ran = in_schema(migrator, schema).run_direct(None, &mut *connection, false).await;
    ran.map_err(|source| AdminError::Migrate { schema: schema.to_owned(), source })?;
    run(connection, "finish a schema", finally).await?;
    let unlock = sqlx::query("select pg_advisory_unlock(hashtext($1))").bind(schema).execute(&mut *connection).await;
    unlock.map_err(failed("unlock a schema"))?;
    run(connection, action, "reset search_path; reset lock_timeout").await
}

/// How far every schema is: the platform's, the shared one, and those of tenants by name.
///
/// # Errors
/// When the database does not answer or was never migrated.
pub async fn versions(provision_url: &str) -> Result<Vec<SchemaVersion>, AdminError> {
    let mut connection = connect(provision_url).await?;
    run(&mut connection, "become the owner", "set role bulkhead_owner").await?;
    let mut versions = Vec::new();
    for (schema, expected) in expected_versions() {
        let sql = format!("select coalesce(max(version) filter (where success), 0) from {schema}._migrations");
        let version: Result<i64, _> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await;
        let version = match version {
            Ok(version) => version,
            Err(error) if is_missing(&error) => 0,
            Err(error) => return Err(failed("look which version a schema has")(error)),
        };
        versions.push(SchemaVersion { schema: schema.to_owned(), version, expected });
    }
    let (_, expected) = expected_versions()[1];
    let own = sqlx::query("select schema, version from platform.tenant_schema order by schema");
    match own.fetch_all(&mut connection).await {
        Ok(rows) => {
            versions.extend(rows.iter().map(|row| SchemaVersion { schema: row.get(0), version: row.get(1), expected }))
        }
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(failed("list the schemas of tenants")(error)),
    }
    connection.close().await.map_err(failed("close"))?;
    Ok(versions)
}

/// The table or its schema is not there: nothing was migrated yet.
fn is_missing(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "42P01" || code == "3F000")
}
