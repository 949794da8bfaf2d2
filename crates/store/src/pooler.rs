//! What may stand between us and PostgreSQL. A pooler that lends a server's connection for one transaction takes no settings at
//! the start and knows no prepared statements, so each transaction sets what it needs and each statement is said anew.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Execute, Executor, PgConnection, Postgres, SqlStr};

use crate::store::{StoreError, failed};

const STATEMENT_LIMIT_MS: &str = "30000";
/// A setting that only a connection of PostgreSQL's own keeps from its start.
const MARK: (&str, &str) = ("bulkhead.session", "own");

/// Whether something that lends connections by the transaction stands in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooler {
    None,
    /// PgBouncer with `pool_mode = transaction`.
    Transaction,
}

impl Pooler {
    /// What a connection says at its start.
    pub(crate) fn options(self, to: PgConnectOptions) -> PgConnectOptions {
        match self {
            Self::None => to.options([
                ("jit", "off"),
                ("statement_timeout", STATEMENT_LIMIT_MS),
                // What is committed is acknowledged, and comes from nowhere again: a setting of the server or the role
                // must not make a commit a promise for later.
                ("synchronous_commit", "on"),
                MARK,
            ]),
            Self::Transaction => to.extra_float_digits(None),
        }
    }

    /// What a transaction says after it has begun: the same.
    pub(crate) fn settings(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Transaction => format!(
                "; set local jit = off; set local statement_timeout = {STATEMENT_LIMIT_MS}; set local synchronous_commit = on"
            ),
        }
    }
}

/// As [`Pooler::options`] for whoever needs a session and nothing else.
pub(crate) fn marked(to: PgConnectOptions) -> PgConnectOptions {
    // A machine that vanishes is given up within a minute: its session may hold a tenant's messages.
    to.options([MARK, ("tcp_keepalives_idle", "30"), ("tcp_keepalives_interval", "10"), ("tcp_keepalives_count", "3")])
}

/// Makes sure that a connection is PostgreSQL's own, and not one that a pooler lends.
pub(crate) async fn check_own(connection: impl Executor<'_, Database = Postgres>) -> Result<(), StoreError> {
    let sql = "select coalesce(current_setting('bulkhead.session', true), '') = 'own'";
    let row = connection.fetch_one(sqlx::raw_sql(sql)).await.map_err(failed("look whether a pooler is in between"))?;
    if sqlx::Row::get(&row, 0) { Ok(()) } else { Err(StoreError::Pooled) }
}

/// Whether a pooler refused to connect us: it does so for settings that it does not know.
pub(crate) fn is_poolers(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|said| said.message().contains("unsupported startup parameter"))
}

/// What a failure to connect means.
pub(crate) fn refused(error: sqlx::Error) -> StoreError {
    if is_poolers(&error) { StoreError::Pooled } else { failed("connect to the database")(error) }
}

/// A connection, said to as what stands in between understands it.
#[derive(Debug)]
pub struct Link<'c> {
    connection: &'c mut PgConnection,
    pooler: Pooler,
}

impl<'c> Link<'c> {
    pub(crate) fn new(connection: &'c mut PgConnection, pooler: Pooler) -> Self {
        Self { connection, pooler }
    }

    /// For one statement of several.
    pub(crate) fn again(&mut self) -> Link<'_> {
        Link { connection: self.connection, pooler: self.pooler }
    }
}

impl std::ops::Deref for Link<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection
    }
}

impl std::ops::DerefMut for Link<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection
    }
}

/// A statement that is kept by its name only where nothing stands in between.
struct Said<E> {
    statement: E,
    pooler: Pooler,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Said<E> {
    fn sql(self) -> SqlStr {
        self.statement.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.statement.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.statement.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.pooler == Pooler::None && self.statement.persistent()
    }
}

impl<'c> Executor<'c> for Link<'c> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.connection.fetch_many(Said { statement: query, pooler: self.pooler })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.connection.fetch_optional(Said { statement: query, pooler: self.pooler })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.connection.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        self.connection.describe(sql)
    }
}
