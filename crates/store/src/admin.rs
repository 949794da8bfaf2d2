//! Makes the database: roles, ownership, migrations. The one place that is given a superuser, and only to begin with.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::isolation::Isolation;

/// The platform's own tables.
static PLATFORM: Migrator = sqlx::migrate!("../../migrations/platform");
/// A tenant's tables: once for the shared schema, and once for each schema of an enterprise tenant.
static TENANT: Migrator = sqlx::migrate!("../../migrations/tenant");

const DATABASE: &str = "bulkhead";
const PLATFORM_SCHEMA: &str = "platform";
pub(crate) const DATABASE_GRANT: &str = "grant connect on database bulkhead to bulkhead_provision, bulkhead_core";

/// Services refuse to start on an older schema than theirs, and so have to see which one it is.
pub(crate) fn migrations_grant(schema: &str) -> String {
    format!("grant select on {schema}._migrations to bulkhead_core")
}

/// Why the database is not ready.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("{action}")]
    Sql { action: &'static str, source: sqlx::Error },
    #[error("migrate schema {schema}")]
    Migrate { schema: &'static str, source: MigrateError },
    #[error("password of {0} is not letters and digits only: choose another one")]
    Password(&'static str),
}

impl AdminError {
    /// Whether the database is up and does not take the password.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        let Self::Sql { source, .. } = self else { return false };
        source.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "28P01")
    }
}

/// Of the login roles; letters and digits only.
#[derive(Debug, Clone)]
pub struct Passwords {
    pub provision: String,
    pub core: String,
}

fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> AdminError {
    move |source| AdminError::Sql { action, source }
}

async fn connect(url: &str) -> Result<PgConnection, AdminError> {
    let options: sqlx::postgres::PgConnectOptions = url.parse().map_err(failed("read database address"))?;
    options.disable_statement_logging().connect().await.map_err(failed("connect to the database"))
}

async fn run(connection: &mut PgConnection, action: &'static str, sql: &str) -> Result<(), AdminError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|_| ()).map_err(failed(action))
}

/// Whether the database answers.
///
/// # Errors
/// When it does not.
pub async fn ping(url: &str) -> Result<(), AdminError> {
    let mut connection = connect(url).await?;
    sqlx::query("select 1").execute(&mut connection).await.map_err(failed("ask the database"))?;
    connection.close().await.map_err(failed("close"))
}

/// Makes the roles and the database unless they are there, and sets the passwords.
///
/// # Errors
/// When the superuser may not, or a password is not letters and digits.
pub async fn prepare_database(superuser_url: &str, passwords: &Passwords) -> Result<(), AdminError> {
    let logins = [("bulkhead_provision", &passwords.provision), ("bulkhead_core", &passwords.core)];
    // Passwords cannot be bound as parameters, so what could end the string is refused.
    let is_good = |password: &str| !password.is_empty() && password.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some((role, _)) = logins.iter().find(|(_, password)| !is_good(password)) {
        return Err(AdminError::Password(role));
    }
    let mut connection = connect(superuser_url).await?;
    for (role, password) in logins {
        ensure_role(&mut connection, role).await?;
        let rights = "login nosuperuser nobypassrls nocreatedb nocreaterole noinherit";
        run(&mut connection, "set up role", &format!("alter role {role} {rights} password '{password}'")).await?;
    }
    ensure_role(&mut connection, "bulkhead_owner").await?;
    run(&mut connection, "set up owner", "alter role bulkhead_owner nologin nosuperuser nobypassrls noinherit").await?;
    run(&mut connection, "grant ownership", "grant bulkhead_owner to bulkhead_provision").await?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(DATABASE)
        .fetch_one(&mut connection)
        .await
        .map_err(failed("look for the database"))?;
    if !exists {
        run(&mut connection, "create database", "create database bulkhead owner bulkhead_owner").await?;
    }
    // Said only once: two who say it at the same time disturb each other.
    let sql = "select has_database_privilege('public', $1, 'connect')
                   or not has_database_privilege('bulkhead_provision', $1, 'connect')
                   or not has_database_privilege('bulkhead_core', $1, 'connect')";
    let is_open: bool = sqlx::query_scalar(sql)
        .bind(DATABASE)
        .fetch_one(&mut connection)
        .await
        .map_err(failed("look who may connect"))?;
    if is_open {
        run(&mut connection, "close database", "revoke all on database bulkhead from public").await?;
        run(&mut connection, "open database to its roles", DATABASE_GRANT).await?;
    }
    connection.close().await.map_err(failed("close"))
}

async fn ensure_role(connection: &mut PgConnection, role: &'static str) -> Result<(), AdminError> {
    let exists: bool = sqlx::query_scalar("select exists (select from pg_roles where rolname = $1)")
        .bind(role)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("look for a role"))?;
    if exists { Ok(()) } else { run(connection, "create role", &format!("create role {role}")).await }
}

/// Brings the platform's schema and the shared schema to this release.
///
/// # Errors
/// When a migration fails or an applied one was changed.
pub async fn migrate(provision_url: &str) -> Result<(), AdminError> {
    run_migrations(provision_url, PLATFORM_SCHEMA, &PLATFORM).await?;
    run_migrations(provision_url, Isolation::Shared.schema(), &TENANT).await
}

/// Which version of each schema this release works with.
pub(crate) fn expected_versions() -> [(&'static str, i64); 2] {
    let newest = |migrator: &Migrator| migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    [(PLATFORM_SCHEMA, newest(&PLATFORM)), (Isolation::Shared.schema(), newest(&TENANT))]
}

/// Versions of migrations, each with its checksum.
pub(crate) type Checksums = Vec<(i64, Vec<u8>)>;

/// Every migration of this release, by schema.
pub(crate) fn expected_migrations() -> [(&'static str, Checksums); 2] {
    let all = |migrator: &Migrator| -> Checksums {
        migrator.iter().map(|migration| (migration.version, migration.checksum.to_vec())).collect()
    };
    [(PLATFORM_SCHEMA, all(&PLATFORM)), (Isolation::Shared.schema(), all(&TENANT))]
}

/// The text of every migration, by schema and in order.
pub(crate) fn migrations_text() -> Vec<(&'static str, String)> {
    let text = |migrator: &Migrator| migrator.iter().map(|one| one.sql.as_str()).collect::<Vec<_>>().join("\n");
    vec![(PLATFORM_SCHEMA, text(&PLATFORM)), (Isolation::Shared.schema(), text(&TENANT))]
}

fn in_schema(migrator: &Migrator, schema: &str) -> Migrator {
    let mut migrator = Migrator { migrations: migrator.migrations.clone(), locking: false, ..Migrator::DEFAULT };
    migrator.dangerous_set_table_name(format!("{schema}._migrations"));
    migrator
}

/// On a connection of its own: a migration that fails leaves its session's locks behind (facts: postgres, section 3).
async fn run_migrations(url: &str, schema: &'static str, migrator: &Migrator) -> Result<(), AdminError> {
    let mut connection = connect(url).await?;
    let action = "prepare a schema";
    run(&mut connection, action, "set role bulkhead_owner").await?;
    sqlx::query("select pg_advisory_lock(hashtext($1))")
        .bind(schema)
        .execute(&mut connection)
        .await
        .map_err(failed("lock a schema"))?;
    if schema == PLATFORM_SCHEMA {
        // Nobody keeps anything in the schema that everybody can look into.
        run(&mut connection, action, "revoke all on schema public from public").await?;
    }
    run(&mut connection, action, &format!("create schema if not exists {schema}")).await?;
    run(&mut connection, action, &format!("set search_path to {schema}")).await?;
    let ran = in_schema(migrator, schema).run_direct(None, &mut connection, false).await;
    ran.map_err(|source| AdminError::Migrate { schema, source })?;
    run(&mut connection, action, &migrations_grant(schema)).await?;
    connection.close().await.map_err(failed("close"))
}
