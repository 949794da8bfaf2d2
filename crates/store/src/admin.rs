//! Makes the database: roles and ownership. The one place that is given a superuser, and only to begin with.

use sqlx::migrate::MigrateError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::pooler::{check_own, is_poolers, marked};
use crate::service::Service;
use crate::store::StoreError;

const DATABASE: &str = "bulkhead";
pub(crate) const DATABASE_GRANT: &str =
    "grant connect on database bulkhead to bulkhead_provision, bulkhead_core, bulkhead_registry, bulkhead_dispatch";

/// Makes and drops the roles of single tenants, and nothing else: the role that may do so cannot log in, and only its two
/// functions speak for it. A name is that of a tenant's schema, so that no other role can be meant.
pub(crate) const TENANT_ROLES: &str = "
create schema if not exists provisioning authorization bulkhead_roles;
create or replace function provisioning.make_role(schema_name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    service text;
    role_name text;
begin
    if schema_name !~ '^tenant_[a-z0-9_]{1,40}$' then
        raise exception '% is no schema of a tenant', schema_name using errcode = 'invalid_parameter_value';
    end if;
    perform pg_advisory_xact_lock(hashtext('provisioning'));
    foreach service in array array['core', 'registry', 'dispatch'] loop
        role_name := schema_name || '_' || service;
        if not exists (select from pg_roles where rolname = role_name) then
            execute format('create role %I nologin noinherit', role_name);
        end if;
        if not pg_has_role('bulkhead_' || service, role_name, 'member') then
            execute format('grant %I to %I', role_name, 'bulkhead_' || service);
        end if;
    end loop;
end
$$;
create or replace function provisioning.drop_role(schema_name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if schema_name !~ '^tenant_[a-z0-9_]{1,40}$' then
        raise exception '% is no schema of a tenant', schema_name using errcode = 'invalid_parameter_value';
    end if;
    perform pg_advisory_xact_lock(hashtext('provisioning'));
    execute format('drop role if exists %I, %I, %I',
                   schema_name || '_core', schema_name || '_registry', schema_name || '_dispatch');
end
$$;
alter function provisioning.make_role(text) owner to bulkhead_roles;
alter function provisioning.drop_role(text) owner to bulkhead_roles;
revoke all on function provisioning.make_role(text) from public;
revoke all on function provisioning.drop_role(text) from public;
grant usage on schema provisioning to bulkhead_owner;
grant execute on function provisioning.make_role(text) to bulkhead_owner;
grant execute on function provisioning.drop_role(text) to bulkhead_owner";

/// Why the database is not ready.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("{action}")]
    Sql { action: &'static str, source: sqlx::Error },
    #[error(transparent)]
    Session(StoreError),
    #[error("migrate schema {schema}")]
    Migrate { schema: String, source: MigrateError },
    #[error("{} schemas of tenants could not be migrated: {}; mend what each says, and run `bulkhead db migrate` again", .0.len(), shown(.0))]
    Schemas(Vec<(String, String)>),
    #[error("password of {0} is not letters and digits only: choose another one")]
    Password(&'static str),
}

/// The first few, so that one line says what is wrong.
fn shown(failed: &[(String, String)]) -> String {
    let lines: Vec<String> = failed.iter().take(3).map(|(schema, why)| format!("{schema}: {why}")).collect();
    lines.join("; ")
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
    pub registry: String,
    pub dispatch: String,
}

pub(crate) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> AdminError {
    move |source| AdminError::Sql { action, source }
}

pub(crate) async fn connect(url: &str) -> Result<PgConnection, AdminError> {
    let options: sqlx::postgres::PgConnectOptions = url.parse().map_err(failed("read database address"))?;
    let connected = marked(options.disable_statement_logging()).connect().await;
    let mut connection = connected.map_err(|error| match is_poolers(&error) {
        true => AdminError::Session(StoreError::Pooled),
        false => failed("connect to the database")(error),
    })?;
    // Migrations hold locks of their session.
    check_own(&mut connection).await.map_err(AdminError::Session)?;
    Ok(connection)
}

pub(crate) async fn run(connection: &mut PgConnection, action: &'static str, sql: &str) -> Result<(), AdminError> {
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
    let logins = [
        ("bulkhead_provision", &passwords.provision),
        (Service::Core.login(), &passwords.core),
        (Service::Registry.login(), &passwords.registry),
        (Service::Dispatch.login(), &passwords.dispatch),
    ];
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
    ensure_role(&mut connection, "bulkhead_roles").await?;
    let rights = "alter role bulkhead_roles nologin nosuperuser nobypassrls nocreatedb createrole noinherit";
    run(&mut connection, "set up the role that makes tenants' roles", rights).await?;
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
                   or not has_database_privilege('bulkhead_core', $1, 'connect')
                   or not has_database_privilege('bulkhead_registry', $1, 'connect')
                   or not has_database_privilege('bulkhead_dispatch', $1, 'connect')";
    let is_open: bool = sqlx::query_scalar(sql)
        .bind(DATABASE)
        .fetch_one(&mut connection)
        .await
        .map_err(failed("look who may connect"))?;
    if is_open {
        run(&mut connection, "close database", "revoke all on database bulkhead from public").await?;
        run(&mut connection, "open database to its roles", DATABASE_GRANT).await?;
    }
    connection.close().await.map_err(failed("close"))?;
    prepare_tenant_roles(superuser_url).await
}

async fn prepare_tenant_roles(superuser_url: &str) -> Result<(), AdminError> {
    let options: PgConnectOptions = superuser_url.parse().map_err(failed("read database address"))?;
    let options = options.database(DATABASE).disable_statement_logging();
    let mut connection = options.connect().await.map_err(failed("connect to the new database"))?;
    let action = "make what makes tenants' roles";
    // Two who say it at the same time would disturb each other.
    let sql = format!("begin; select pg_advisory_xact_lock(hashtext('provisioning')); {TENANT_ROLES}; commit");
    run(&mut connection, action, &sql).await?;
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
