//! Connections of services, and what they read that is no tenant's.

use std::time::Duration;

use bulkhead_bus::{Account, AccountKey, Tenant, TenantId, TenantSlug, TenantSnapshot};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool, Postgres, Row};

use crate::migrations;
use crate::own_pool::OwnPool;
use crate::pooler::{Link, Pooler, check_own, refused};
use crate::self_test;
use crate::transaction::{Door, TenantTx, begin};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A backend that has seen many schemas never gives its memory back (facts: postgres section 3).
const CONNECTION_LIFE: Duration = Duration::from_secs(30 * 60);

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{action}")]
    Sql { action: &'static str, source: sqlx::Error },
    #[error("{action}: no answer of the database within {limit:?}")]
    TimedOut { action: &'static str, limit: Duration },
    #[error("database role {role} is {what}: services must use a role that row security holds for")]
    Privileged { role: String, what: String },
    #[error("tenants are not kept apart: {}; `bulkhead doctor --area permissions` says how to mend it", .0.join("; "))]
    NotApart(Vec<String>),
    #[error("database schemas are not there: run `bulkhead db migrate` first")]
    NotMigrated(#[source] sqlx::Error),
    #[error("schema {schema} has version {found}, and this release needs {expected}: run `bulkhead db migrate` first")]
    Outdated { schema: &'static str, expected: i64, found: i64 },
    #[error("schema {schema} has version {found}, and this release needs {expected}: run `bulkhead db migrate` first")]
    OutdatedTenant { schema: String, expected: i64, found: i64 },
    #[error("tenant setting is {found:?} after it was set to {expected}")]
    Setting { expected: String, found: String },
    #[error("tenant row {account} is not readable: {what}")]
    Row { account: String, what: String },
    #[error(
        "schema {schema} has version {found}, which needs services that know {floor} at least, and this release knows {known}: run a newer release"
    )]
    TooNew { schema: &'static str, found: i64, floor: i64, known: i64 },
    #[error("tenant {slug} leaves: nothing is written for it any more")]
    TenantClosed { slug: TenantSlug },
    #[error(
        "a connection pooler stands between us and the database and keeps no session: give the address of PostgreSQL itself, or, \
         for core, set database_direct_url_file beside that of the pooler"
    )]
    Pooled,
    #[error("the rows of tenant {slug} are being moved or were: try again")]
    Moved { slug: TenantSlug },
}

impl StoreError {
    /// Whether trying again may help: the database is away, not the data wrong.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Sql { source, .. } | Self::NotMigrated(source) => is_transient(source),
            Self::TimedOut { .. } => true,
            Self::Moved { .. }
            | Self::Pooled
            | Self::TooNew { .. }
            | Self::Privileged { .. }
            | Self::NotApart(_)
            | Self::Outdated { .. }
            | Self::OutdatedTenant { .. }
            | Self::Setting { .. }
            | Self::Row { .. }
            | Self::TenantClosed { .. } => false,
        }
    }

    /// Whether the database refused the very values that it was given, so that it will refuse them for ever. Everything
    /// else (a right, a column or a partition that is missing, say) is for the operator to mend, and the values are good.
    #[must_use]
    pub fn is_the_datas_fault(&self) -> bool {
        match self {
            Self::Sql { source: sqlx::Error::Database(refused), .. } => {
                refused.code().is_some_and(|code| blames_data(&code, refused.constraint()))
            }
            // Beyond what the protocol can carry, such as a time of another age.
            Self::Sql { source: sqlx::Error::Encode(_), .. } => true,
            Self::Sql { .. }
            | Self::NotMigrated(_)
            | Self::TimedOut { .. }
            | Self::Moved { .. }
            | Self::Pooled
            | Self::TooNew { .. }
            | Self::Privileged { .. }
            | Self::NotApart(_)
            | Self::Outdated { .. }
            | Self::OutdatedTenant { .. }
            | Self::Setting { .. }
            | Self::Row { .. }
            | Self::TenantClosed { .. } => false,
        }
    }
}

/// Whether an SQLSTATE is about the values. In doubt it is not: what waits can still be stored, what is buried may not.
fn blames_data(code: &str, constraint: Option<&str>) -> bool {
    match code {
        // A parameter of the server or of a function, and none of the values that are stored.
        "22023" => false,
        // A check has a name. A day without a partition is reported under the same code, and has none.
        "23514" => constraint.is_some(),
        // Of the other constraints none is ours to break: we meet our own keys, name no row of another table and send null
        // only where it is welcome. Who is refused by one has a schema that is not this release's.
        _ => code.starts_with("22"),
    }
}

pub(crate) fn is_transient(error: &sqlx::Error) -> bool {
    match error.as_database_error() {
        // Connection exceptions, rollbacks, resources (disk full among them), operator intervention, system errors.
        Some(error) => {
            error.code().is_some_and(|code| ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class)))
        }
        None => matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_)
                | sqlx::Error::Tls(_)
        ),
    }
}

pub(crate) fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { action, source }
}

/// Every tenant and platform account, as read at one moment.
#[derive(Debug, Clone, Default)]
pub struct Tenants {
    pub tenants: Vec<(AccountKey, Tenant)>,
    pub platform_accounts: Vec<AccountKey>,
}

impl Tenants {
    /// What the guard decides by.
    #[must_use]
    pub fn into_snapshot(self) -> TenantSnapshot {
        self.into_accounts().collect()
    }

    /// Each account with what it is.
    pub fn into_accounts(self) -> impl Iterator<Item = (AccountKey, Account)> {
        let tenants = self.tenants.into_iter().map(|(key, tenant)| (key, Account::Tenant(tenant)));
        tenants.chain(self.platform_accounts.into_iter().map(|key| (key, Account::Platform)))
    }
}

/// The connections of one service. The pools are nobody else's.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    own: OwnPool,
    pooler: Pooler,
    /// Of PostgreSQL itself, whatever stands before it.
    direct: PgConnectOptions,
}

/// How many connections a service may have.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// For the platform's tables and the shared ones of tenants.
    pub shared: u32,
    /// For schemas of single tenants: few, because a backend remembers every schema that it has seen.
    pub own_schemas: u32,
}

/// A connection for tables that are no tenant's. Of tenants' tables it reaches none: no tenant is named. What it writes is
/// there once it was committed.
#[derive(Debug)]
pub struct PlatformConnection {
    connection: PoolConnection<Postgres>,
    pooler: Pooler,
}

impl PlatformConnection {
    pub fn connection(&mut self) -> Link<'_> {
        Link::new(&mut self.connection, self.pooler)
    }

    pub(crate) fn pooler(&self) -> Pooler {
        self.pooler
    }

    /// # Errors
    /// When the database does not confirm.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        match self.pooler {
            // Each statement was a transaction of its own.
            Pooler::None => Ok(()),
            Pooler::Transaction => {
                let ended = sqlx::raw_sql("commit").execute(&mut *self.connection).await;
                ended.map(|_| ()).map_err(failed("commit"))
            }
        }
    }
}

fn options_of(url: &str, service: &str) -> Result<PgConnectOptions, StoreError> {
    let options: PgConnectOptions = url.parse().map_err(failed("read database address"))?;
    Ok(options.application_name(service).disable_statement_logging())
}

impl Store {
    /// Connects and makes sure that row security holds for this role and that the schemas are there.
    ///
    /// # Errors
    /// When the database is away, the role is privileged, the migrations have not run, or a pooler stands in between.
    pub async fn connect(url: &str, service: &'static str, connections: Connections) -> Result<Self, StoreError> {
        let direct = Pooler::None.options(options_of(url, service)?);
        let store = Self::open(Pooler::None, direct.clone(), direct, connections).await?;
        check_own(&store.pool).await?;
        store.check().await
    }

    /// As [`Store::connect`], through a pooler that lends connections by the transaction. What needs a session has a connection
    /// to PostgreSQL itself, by `direct_url`.
    ///
    /// # Errors
    /// As [`Store::connect`].
    pub async fn connect_pooled(
        url: &str,
        direct_url: &str,
        service: &'static str,
        connections: Connections,
    ) -> Result<Self, StoreError> {
        let direct = Pooler::None.options(options_of(direct_url, service)?);
        let pooled = Pooler::Transaction.options(options_of(url, service)?);
        let mut session = direct.connect().await.map_err(refused)?;
        check_own(&mut session).await?;
        session.close().await.map_err(failed("close"))?;
        Self::open(Pooler::Transaction, pooled, direct, connections).await?.check().await
    }

    async fn open(
        pooler: Pooler,
        options: PgConnectOptions,
        direct: PgConnectOptions,
        connections: Connections,
    ) -> Result<Self, StoreError> {
        let pooled = |most| {
            let options = PgPoolOptions::new().max_connections(most);
            options.acquire_timeout(CONNECT_LIMIT).max_lifetime(CONNECTION_LIFE)
        };
        let own = OwnPool::new(pooled(connections.own_schemas), options.clone(), pooler);
        let pool = pooled(connections.shared)
            .after_release(|connection, _| {
                // A begin that was cancelled may have begun. Beginning first, because a rollback of nothing is a warning each time.
                Box::pin(
                    async move { sqlx::raw_sql("begin; rollback; reset all").execute(connection).await.map(|_| true) },
                )
            })
            .connect_with(options)
            .await
            .map_err(refused)?;
        Ok(Self { pool, own, pooler, direct })
    }

    async fn check(self) -> Result<Self, StoreError> {
        let mut platform = self.platform().await?;
        self_test::check_roles(&mut platform).await?;
        check_schemas(&mut platform).await?;
        self_test::check_tables(&mut platform).await?;
        drop(platform);
        Ok(self)
    }

    /// Every tenant and platform account.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenants(&self) -> Result<Tenants, StoreError> {
        read_tenants(self.platform().await?.connection()).await
    }

    /// Those of `accounts` that are tenants or the platform's, whatever number of others there is.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn accounts(&self, accounts: &[AccountKey]) -> Result<Tenants, StoreError> {
        let keys: Vec<&str> = accounts.iter().map(AccountKey::as_str).collect();
        let sql = format!("{READ_TENANT} where account_key = any($1)");
        let mut platform = self.platform().await?;
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(&keys).fetch_all(platform.connection()).await;
        let tenants = rows.map_err(failed("read accounts"))?.iter().map(tenant_of_row).collect::<Result<_, _>>()?;
        let sql = "select account_key from platform.platform_account where account_key = any($1)";
        let found = sqlx::query_scalar(sql).bind(&keys).fetch_all(platform.connection()).await;
        let found: Vec<String> = found.map_err(failed("read platform accounts"))?;
        Ok(Tenants { tenants, platform_accounts: parsed_keys(found)? })
    }

    /// Of a connection that keeps a session.
    pub(crate) fn own_options(&self) -> PgConnectOptions {
        self.direct.clone()
    }

    /// A transaction in which only `tenant`'s rows exist.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn begin(&self, tenant: &Tenant) -> Result<TenantTx, StoreError> {
        begin(Door::Service { shared: &self.pool, own: &self.own, pooler: self.pooler }, tenant).await
    }

    /// Whether the database answers, and nothing else.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::raw_sql("select 1").execute(&self.pool).await.map(|_| ()).map_err(failed("ask the database"))
    }

    /// How much disk the database takes, on its own machine.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn database_bytes(&self) -> Result<u64, StoreError> {
        let mut platform = self.platform().await?;
        let asked = sqlx::query_scalar("select pg_database_size(current_database())");
        let bytes = asked.fetch_one(platform.connection()).await;
        bytes.map(|bytes: i64| u64::try_from(bytes).unwrap_or(0)).map_err(failed("measure the database"))
    }

    /// Open connections: those in use, and those that wait to be used.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        let pools = [&self.pool, self.own.pool()];
        let open: usize = pools.iter().map(|pool| usize::try_from(pool.size()).unwrap_or(usize::MAX)).sum();
        let idle: usize = pools.iter().map(|pool| pool.num_idle()).sum();
        (open.saturating_sub(idle), idle)
    }

    /// A connection for tables that are no tenant's, such as unclaimed dead letters.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn platform(&self) -> Result<PlatformConnection, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(failed("take a connection"))?;
        if self.pooler == Pooler::Transaction {
            let begin = format!("begin{}", self.pooler.settings());
            sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await.map_err(failed("begin"))?;
        }
        Ok(PlatformConnection { connection, pooler: self.pooler })
    }
}

/// A schema that is newer than this release is fine unless it says that it is not: migrations first add, and what takes
/// something away, a release later, raises the floor.
async fn check_schemas(platform: &mut PlatformConnection) -> Result<(), StoreError> {
    for (migrations, (schema, expected)) in ["platform", "tenant"].into_iter().zip(migrations::expected_versions()) {
        let sql = format!("select coalesce(max(version) filter (where success), 0) from {schema}._migrations");
        let found: Result<i64, _> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(platform.connection()).await;
        let found = found.map_err(|error| match error.as_database_error() {
            Some(_) => StoreError::NotMigrated(error),
            None => failed("look at the schemas")(error),
        })?;
        if found < expected {
            return Err(StoreError::Outdated { schema, expected, found });
        }
        let sql = "select oldest_reader from platform.schema_floor where migrations = $1";
        let floor = sqlx::query_scalar(sql).bind(migrations).fetch_one(platform.connection()).await;
        let floor: i64 = floor.map_err(failed("look at the schemas"))?;
        if floor > expected {
            return Err(StoreError::TooNew { schema, found, floor, known: expected });
        }
    }
    let (_, expected) = migrations::expected_versions()[1];
    let sql = "select schema, version from platform.tenant_schema where version < $1 order by version limit 1";
    let behind = sqlx::query(sql).bind(expected).fetch_optional(platform.connection()).await;
    match behind.map_err(failed("look at the schemas of tenants"))? {
        None => Ok(()),
        Some(row) => Err(StoreError::OutdatedTenant { schema: row.get(0), expected, found: row.get(1) }),
    }
}

/// What [`tenant_of_row`] reads.
pub(crate) const READ_TENANT: &str = "select tenant_id, account_key, slug, plan, state,
    (extract(epoch from state_since) * 1000)::int8 as state_since_ms, retention_days, allows_unsigned from platform.tenant";

pub(crate) async fn read_tenants(mut link: Link<'_>) -> Result<Tenants, StoreError> {
    let rows = sqlx::query(READ_TENANT).fetch_all(link.again()).await.map_err(failed("read tenants"))?;
    let tenants = rows.iter().map(tenant_of_row).collect::<Result<_, _>>()?;
    let sql = "select account_key from platform.platform_account";
    let keys: Vec<String> = sqlx::query_scalar(sql).fetch_all(link).await.map_err(failed("read platform accounts"))?;
    Ok(Tenants { tenants, platform_accounts: parsed_keys(keys)? })
}

fn parsed_keys(keys: Vec<String>) -> Result<Vec<AccountKey>, StoreError> {
    keys.into_iter().map(|key| key.parse().map_err(|error| row_error(&key, &error))).collect()
}

fn row_error(account: &str, what: &dyn std::fmt::Display) -> StoreError {
    StoreError::Row { account: account.to_owned(), what: what.to_string() }
}

pub(crate) fn tenant_of_row(row: &PgRow) -> Result<(AccountKey, Tenant), StoreError> {
    let account: String = row.get("account_key");
    let key = account.parse().map_err(|error| row_error(&account, &error))?;
    let slug: String = row.get("slug");
    let slug = slug.parse().map_err(|error| row_error(&account, &error))?;
    let state = row.get::<&str, _>("state").parse().map_err(|error| row_error(&account, &error))?;
    let tenant = Tenant {
        id: TenantId::new(row.get("tenant_id")),
        slug,
        plan: row.get("plan"),
        state,
        state_since_ms: row.get("state_since_ms"),
        retention_days: u32::try_from(row.get::<i32, _>("retention_days")).unwrap_or(1),
        allows_unsigned: row.get("allows_unsigned"),
    };
    Ok((key, tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(source: sqlx::Error) -> StoreError {
        failed("write results")(source)
    }

    #[test]
    fn only_what_is_about_the_values_is_the_datas_fault() {
        for (code, constraint, expected) in [
            ("22003", None, true),
            ("22021", None, true),
            ("22P02", None, true),
            ("22P05", None, true),
            ("23514", Some("latency_is_not_negative"), true),
            // No partition of the day.
            ("23514", None, false),
            ("22023", None, false),
            ("23502", None, false),
            ("23503", Some("site_is_known"), false),
            ("23505", Some("result_pkey"), false),
            ("0A000", None, false),
            ("25006", None, false),
            ("28P01", None, false),
            ("3F000", None, false),
            ("42501", None, false),
            ("42703", None, false),
            ("42804", None, false),
            ("42883", None, false),
            ("42P01", None, false),
            ("42P10", None, false),
            ("53100", None, false),
            ("54000", None, false),
            ("57P01", None, false),
            ("P0001", None, false),
            ("XX001", None, false),
            ("", None, false),
        ] {
            assert_eq!(blames_data(code, constraint), expected, "{code} of {constraint:?}");
        }
    }

    #[test]
    fn what_the_database_did_not_refuse_is_the_datas_fault_only_where_it_cannot_be_sent() {
        assert!(sql(sqlx::Error::Encode("a year beyond all".into())).is_the_datas_fault());
        let (expected, found) = (String::new(), String::new());
        for error in [
            sql(sqlx::Error::RowNotFound),
            sql(sqlx::Error::ColumnNotFound("slot".to_owned())),
            sql(sqlx::Error::Decode("no text".into())),
            sql(sqlx::Error::TypeNotFound { type_name: "jsonb".to_owned() }),
            sql(sqlx::Error::PoolTimedOut),
            StoreError::TimedOut { action: "write results", limit: CONNECT_LIMIT },
            StoreError::Setting { expected, found },
            StoreError::Row { account: String::new(), what: String::new() },
        ] {
            assert!(!error.is_the_datas_fault(), "{error:?}");
        }
    }
}
