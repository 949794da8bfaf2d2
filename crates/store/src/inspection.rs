//! What an operator's tool may see of the database: versions, clock, roles, row security, migrations, and of tenants'
//! rows only counts and ages. Every connection is read-only and every statement has a limit; nothing is ever changed.

use std::collections::BTreeMap;
use std::time::Duration;

use bulkhead_bus::Tenant;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgPool, Row};

use crate::isolation::{SHARED, isolation_of};
use crate::migrations;
use crate::moving::UNSETTLED;
use crate::pooler::{Link, Pooler, check_own, marked, refused};
use crate::rights::{self, OwnSetting, Right, Rights, Settings};
use crate::store::{StoreError, Tenants, failed, read_tenants};
use crate::transaction::{Door, begin};

const STATEMENT_LIMIT_MS: u32 = 3_000;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CONNECTIONS: u32 = 2;

/// A login or owner role and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleState {
    pub name: String,
    /// Such as `superuser`; empty for a role that is held by everything.
    pub powers: Vec<&'static str>,
    pub owns_tables: bool,
    pub is_member_of_owner: bool,
    /// What keeps a login from connecting, such as `it may not log in`.
    pub hindrances: Vec<&'static str>,
}

/// A table of a schema that holds tenants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableState {
    /// With its schema: `shared.result`.
    pub name: String,
    pub is_partition: bool,
    pub has_tenant: bool,
    pub is_secured: bool,
    pub is_forced: bool,
    pub owner: String,
    /// Conditions of its policies, those for reading and for writing.
    pub policies: Vec<(String, String)>,
}

/// Which migrations of a schema are in force, and which this release has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaState {
    pub schema: String,
    pub expected: Vec<i64>,
    pub applied: Vec<i64>,
    /// Applied with another text than this release has.
    pub changed: Vec<i64>,
}

/// A tenant whose rows are not where its plan puts them, or whose move was begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    pub slug: String,
    pub plan: String,
    /// Where the rows are, as rows spell it.
    pub isolation: String,
    pub is_moving: bool,
}

/// How far a poller's clock is ahead of the database's, by the newest results of its checks.
#[derive(Debug, Clone, PartialEq)]
pub struct PollerClock {
    pub site: String,
    pub poller: String,
    pub ahead_s: f64,
}

/// Dead letters of one tenant that came in lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetters {
    pub reason: String,
    pub count: i64,
}

/// A read-only connection as the role that provisions.
#[derive(Debug, Clone)]
pub struct Inspection {
    pool: PgPool,
}

impl Inspection {
    /// # Errors
    /// When the database cannot be reached in time or refuses.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let connecting = failed("connect to the database");
        let options: PgConnectOptions = url.parse().map_err(&connecting)?;
        let limit = STATEMENT_LIMIT_MS.to_string();
        let options = options
            .application_name("bulkhead doctor")
            .options([("statement_timeout", limit.as_str())])
            .disable_statement_logging();
        // A pool would try until its limit and then forget why: whoever is woken wants the reason, and at once.
        let options = marked(options);
        let mut first = options.connect().await.map_err(refused)?;
        check_own(&mut first).await?;
        first.close().await.map_err(&connecting)?;
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_LIMIT).after_connect(
            // As the owner, under forced row security: the login role itself inherits nothing. Read-only is set here and
            // not at the start of the session, where it would hide what the server says to others.
            |connection, _| {
                let sql = "set default_transaction_read_only = on; set role bulkhead_owner";
                Box::pin(async move { sqlx::raw_sql(sql).execute(connection).await.map(|_| ()) })
            },
        );
        let pool = pool.connect_with(options).await.map_err(&connecting)?;
        Ok(Self { pool })
    }

    /// The server's version as a number, such as 150018 for 15.18.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn version(&self) -> Result<u32, StoreError> {
        let sql = "select current_setting('server_version_num')::int4";
        let version: i32 = sqlx::query_scalar(sql).fetch_one(&self.pool).await.map_err(failed("ask its version"))?;
        Ok(u32::try_from(version).unwrap_or(0))
    }

    /// The database's clock, unix milliseconds.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn clock_ms(&self) -> Result<i64, StoreError> {
        let sql = "select (extract(epoch from clock_timestamp()) * 1000)::int8";
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.map_err(failed("ask its clock"))
    }

    /// Every tenant and platform account.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenants(&self) -> Result<Tenants, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(failed("take a connection"))?;
        read_tenants(Link::new(&mut connection, Pooler::None)).await
    }

    /// The roles that this project makes.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn roles(&self) -> Result<Vec<RoleState>, StoreError> {
        let sql =
            "select r.rolname::text, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
                          exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                                  where c.relkind in ('r', 'p') and c.relowner = r.oid and n.nspname <> 'pg_catalog'),
                          exists (select from pg_roles o where o.rolname = 'bulkhead_owner' and o.oid <> r.oid
                                  and pg_has_role(r.oid, o.oid, 'member')),
                          not r.rolcanlogin, r.rolconnlimit >= 0, coalesce(r.rolvaliduntil <= now(), false)
                   from pg_roles r where r.rolname like 'bulkhead\\_%' and r.rolname <> 'bulkhead_admin' order by 1";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await.map_err(failed("look at roles"))?;
        let powers = ["superuser", "bypassrls", "createrole", "createdb", "replication"];
        let hindrances = ["it may not log in", "its connections are limited", "its password has ended"];
        let which = |row: &sqlx::postgres::PgRow, first: usize, names: &[&'static str]| {
            let named = (first..).zip(names).filter(|(column, _)| row.get::<bool, _>(*column));
            named.map(|(_, name)| *name).collect()
        };
        let role = |row: &sqlx::postgres::PgRow| RoleState {
            name: row.get(0),
            powers: which(row, 1, &powers),
            owns_tables: row.get(6),
            is_member_of_owner: row.get(7),
            hindrances: which(row, 8, &hindrances),
        };
        Ok(rows.iter().map(role).collect())
    }

    /// Every table and partition of the schemas that hold tenants.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenant_tables(&self) -> Result<Vec<TableState>, StoreError> {
        let looking = failed("look at tables");
        let schemas = self.tenant_schemas().await?;
        let sql = "select n.nspname || '.' || c.relname, c.relispartition, c.relrowsecurity, c.relforcerowsecurity, o.rolname::text,
                          exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id')
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_roles o on o.oid = c.relowner
                   where n.nspname = any($1) and c.relkind in ('r', 'p') order by 1";
        let rows = sqlx::query(sql).bind(&schemas).fetch_all(&self.pool).await.map_err(&looking)?;
        let table = |row: &sqlx::postgres::PgRow| TableState {
            name: row.get(0),
            is_partition: row.get(1),
            is_secured: row.get(2),
            is_forced: row.get(3),
            owner: row.get(4),
            has_tenant: row.get(5),
            ..TableState::default()
        };
        let mut tables: BTreeMap<String, TableState> =
            rows.iter().map(table).map(|table| (table.name.clone(), table)).collect();
        let sql = "select schemaname || '.' || tablename, coalesce(qual, ''), coalesce(with_check, '') from pg_policies
                   where schemaname = any($1)";
        for row in sqlx::query(sql).bind(&schemas).fetch_all(&self.pool).await.map_err(&looking)? {
            if let Some(table) = tables.get_mut(&row.get::<String, _>(0)) {
                table.policies.push((row.get(1), row.get(2)));
            }
        }
        Ok(tables.into_values().collect())
    }

    /// Every tenant that is there and whose rows are not where its plan puts them; none that is settled.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unsettled(&self) -> Result<Vec<Unsettled>, StoreError> {
        let rows =
            sqlx::query(UNSETTLED).fetch_all(&self.pool).await.map_err(failed("look where tenants' rows are"))?;
        let found = rows.iter().map(|row| Unsettled {
            slug: row.get("slug"),
            plan: row.get("plan"),
            isolation: row.get("isolation"),
            is_moving: row.get("is_moving"),
        });
        Ok(found.filter(|one| one.is_moving || one.isolation != isolation_of(&one.plan).as_str()).collect())
    }

    /// The shared schema and those of single tenants.
    async fn tenant_schemas(&self) -> Result<Vec<String>, StoreError> {
        let sql = "select schema from platform.tenant_schema order by 1";
        let own: Result<Vec<String>, _> = sqlx::query_scalar(sql).fetch_all(&self.pool).await;
        let mut schemas = own.map_err(failed("list the schemas of tenants"))?;
        schemas.push(SHARED.to_owned());
        Ok(schemas)
    }

    /// What is granted, beside what this release grants.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rights(&self) -> Result<Rights, StoreError> {
        let rows = sqlx::query(rights::FOUND).fetch_all(&self.pool).await.map_err(failed("look at rights"))?;
        let right = |row: &sqlx::postgres::PgRow| Right { object: row.get(0), role: row.get(1), privilege: row.get(2) };
        let own: Vec<String> = self.tenant_schemas().await?.into_iter().filter(|schema| schema != SHARED).collect();
        Ok(Rights { expected: rights::expected(&own), found: rows.iter().map(right).collect() })
    }

    /// Settings of the server and of the roles of this project.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn settings(&self) -> Result<Settings, StoreError> {
        let looking = failed("look at settings");
        let own = sqlx::query(rights::OWN_SETTINGS).fetch_all(&self.pool).await.map_err(&looking)?;
        let server = sqlx::query(rights::SERVER_SETTINGS).fetch_all(&self.pool).await.map_err(&looking)?;
        let setting = |row: &sqlx::postgres::PgRow| OwnSetting { of: row.get(0), name: row.get(1), value: row.get(2) };
        Ok(Settings {
            own: own.iter().map(setting).collect(),
            server: server.iter().map(|row| (row.get(0), row.get(1))).collect(),
        })
    }

    /// The platform's schema, the shared one, and those of single tenants that are not at this release's version.
    ///
    /// # Errors
    /// When the database does not answer, or has no schemas yet.
    pub async fn schemas(&self) -> Result<Vec<SchemaState>, StoreError> {
        let mut states = Vec::new();
        for (schema, expected) in migrations::expected_migrations() {
            let sql = format!("select version, checksum from {schema}._migrations where success order by 1");
            let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&self.pool).await;
            let rows = rows.map_err(failed("look at migrations"))?;
            let applied: Vec<(i64, Vec<u8>)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            let is_changed = |(version, checksum): &&(i64, Vec<u8>)| {
                expected.iter().any(|(known, ours)| known == version && ours != checksum)
            };
            states.push(SchemaState {
                schema: schema.to_owned(),
                changed: applied.iter().filter(is_changed).map(|(version, _)| *version).collect(),
                expected: expected.iter().map(|(version, _)| *version).collect(),
                applied: applied.iter().map(|(version, _)| *version).collect(),
            });
        }
        let [_, (_, expected)] = migrations::expected_migrations();
        let expected: Vec<i64> = expected.iter().map(|(version, _)| *version).collect();
        let sql = "select schema, version from platform.tenant_schema where version <> $1 order by 1";
        let others = sqlx::query(sql).bind(expected.last().unwrap_or(&0)).fetch_all(&self.pool).await;
        for row in others.map_err(failed("look at the schemas of tenants"))? {
            let applied = (1..=row.get::<i64, _>(1)).collect();
            states.push(SchemaState { schema: row.get(0), expected: expected.clone(), applied, changed: vec![] });
        }
        Ok(states)
    }

    /// One row a poller of `tenant`, from the newest result of each of its checks.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn poller_clocks(&self, tenant: &Tenant) -> Result<Vec<PollerClock>, StoreError> {
        let sql = "select r.vantage, r.poller,
                          max(extract(epoch from greatest(r.slot, r.started_at) - r.received_at))::float8
                   from check_state s join result r
                     on r.tenant_id = s.tenant_id and r.check_name = s.check_name and r.slot = s.slot
                    and r.vantage = s.vantage
                   group by 1, 2 order by 1, 2";
        let mut tx = begin(Door::Owner(&self.pool), tenant).await?;
        let rows = sqlx::query(sql).fetch_all(tx.connection()).await.map_err(failed("look at pollers' clocks"))?;
        let clock =
            |row: &sqlx::postgres::PgRow| PollerClock { site: row.get(0), poller: row.get(1), ahead_s: row.get(2) };
        Ok(rows.iter().map(clock).collect())
    }

    /// Dead letters of `tenant` that came in after `since_ms`, by reason.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn dead_letters(&self, tenant: &Tenant, since_ms: i64) -> Result<Vec<DeadLetters>, StoreError> {
        let sql = "select reason, count(*) from dead_letter where received_at > to_timestamp($1::float8 / 1000)
                   group by 1 order by 1";
        let mut tx = begin(Door::Owner(&self.pool), tenant).await?;
        let rows = sqlx::query(sql).bind(since_ms as f64).fetch_all(tx.connection()).await;
        let rows = rows.map_err(failed("look at dead letters"))?;
        Ok(rows.iter().map(|row| DeadLetters { reason: row.get(0), count: row.get(1) }).collect())
    }

    /// Dead letters of accounts that are no tenants, after `since_ms`.
    ///
    /// # Errors
    /// When the database does not answer in time.
    pub async fn unclaimed_dead_letters(&self, since_ms: i64) -> Result<i64, StoreError> {
        let sql = "select count(*) from platform.unclaimed_dead_letter
                   where received_at > to_timestamp($1::float8 / 1000)";
        let count = sqlx::query_scalar(sql).bind(since_ms as f64).fetch_one(&self.pool).await;
        count.map_err(failed("look at unclaimed dead letters"))
    }
}
