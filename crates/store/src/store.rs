//! Connections of services, and what they read that is no tenant's.

use std::time::Duration;

use bulkhead_bus::{Account, AccountKey, Tenant, TenantId, TenantSnapshot};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool, Postgres, Row};

pub use crate::error::StoreError;
pub(crate) use crate::error::failed;
use crate::migrations;
use crate::own_pool::OwnPool;
use crate::pooler::{Link, Pooler, check_own, refused};
use crate::self_test;
use crate::service::Service;
use crate::transaction::{Door, Purpose, TenantTx, begin};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A backend that has seen many schemas never gives its memory back (facts: postgres section 3).
const CONNECTION_LIFE: Duration = Duration::from_secs(30 * 60);

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
    service: Service,
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

fn options_of(url: &str, service: Service) -> Result<PgConnectOptions, StoreError> {
    let options: PgConnectOptions = url.parse().map_err(failed("read database address"))?;
    Ok(options.application_name(service.application()).disable_statement_logging())
}

impl Store {
    /// Connects and makes sure that row security holds for this role and that the schemas are there.
    ///
    /// # Errors
    /// When the database is away, the role is privileged, the migrations have not run, or a pooler stands in between.
    pub async fn connect(url: &str, service: Service, connections: Connections) -> Result<Self, StoreError> {
        let direct = Pooler::None.options(options_of(url, service)?);
        let store = Self::open(service, (Pooler::None, direct.clone()), direct, connections).await?;
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
        service: Service,
        connections: Connections,
    ) -> Result<Self, StoreError> {
        let direct = Pooler::None.options(options_of(direct_url, service)?);
        let pooled = Pooler::Transaction.options(options_of(url, service)?);
        let mut session = direct.connect().await.map_err(refused)?;
        check_own(&mut session).await?;
        session.close().await.map_err(failed("close"))?;
        Self::open(service, (Pooler::Transaction, pooled), direct, connections).await?.check().await
    }

    async fn open(
        service: Service,
        (pooler, options): (Pooler, PgConnectOptions),
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
        Ok(Self { service, pool, own, pooler, direct })
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

    pub(crate) fn service(&self) -> Service {
        self.service
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
        begin(self.door(Purpose::Serving), tenant).await
    }

    /// The same, to write anything but results: it waits for a move of the tenant's rows, or a move for it.
    ///
    /// # Errors
    /// When the tenant leaves, or the database does not answer.
    pub async fn begin_writing(&self, tenant: &Tenant) -> Result<TenantTx, StoreError> {
        begin(self.door(Purpose::Writing), tenant).await
    }

    fn door(&self, purpose: Purpose) -> Door<'_> {
        Door::Service { service: self.service, shared: &self.pool, own: &self.own, pooler: self.pooler, purpose }
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
