//! One moment of the whole database, held still for a dump: what is counted here is exactly what the dump holds.
//!
//! It sees every tenant's rows, as a superuser, counts them and reads nothing else of them.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};

use crate::isolation::{OWN_SCHEMAS, SHARED};
use crate::store::{StoreError, failed};

/// How many rows there are, by table such as `shared.result`, and stored results by tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowCounts {
    pub tables: BTreeMap<String, i64>,
    pub results: BTreeMap<String, i64>,
}

/// An open transaction that keeps one moment of the database in sight.
pub struct HeldSnapshot {
    connection: PgConnection,
    /// For `pg_dump --snapshot`.
    pub id: String,
    pub counts: RowCounts,
}

impl HeldSnapshot {
    /// Holds this moment of the database at `url`, which is entered as a superuser.
    ///
    /// # Errors
    /// When the database does not answer or refuses.
    pub async fn hold(url: &str) -> Result<Self, StoreError> {
        let mut connection = begin(url).await?;
        let id = sqlx::query_scalar("select pg_export_snapshot()").fetch_one(&mut connection).await;
        let id = id.map_err(failed("hold a moment of the database"))?;
        let counts = count(&mut connection).await?;
        Ok(Self { connection, id, counts })
    }

    /// Lets go of it.
    ///
    /// # Errors
    /// When the connection was lost, and with it the moment.
    pub async fn release(mut self) -> Result<(), StoreError> {
        run(&mut self.connection, "commit").await?;
        self.connection.close().await.map_err(failed("close"))
    }
}

/// How many rows the database at `url` has now.
///
/// # Errors
/// When the database does not answer or refuses.
pub async fn count_rows(url: &str) -> Result<RowCounts, StoreError> {
    let mut connection = begin(url).await?;
    let counts = count(&mut connection).await?;
    connection.close().await.map_err(failed("close"))?;
    Ok(counts)
}

/// Makes the roles of tenants that have a schema of their own, before a dump that names them is restored into the database at
/// `url`, which is entered as a superuser. `tables` are those that the dump holds, such as `tenant_acme_corp.result`.
///
/// # Errors
/// When the database does not answer or refuses.
pub async fn make_tenant_roles<'a>(url: &str, tables: impl Iterator<Item = &'a str>) -> Result<(), StoreError> {
    let making = failed("make the roles of tenants");
    let schemas = tables.filter_map(|table| table.split_once('.')).map(|(schema, _)| schema);
    let own: BTreeSet<&str> = schemas.filter(|schema| schema.starts_with(OWN_SCHEMAS)).collect();
    let options: sqlx::postgres::PgConnectOptions = url.parse().map_err(failed("read database address"))?;
    let mut connection = options.disable_statement_logging().connect().await.map_err(&making)?;
    for schema in own {
        let made = sqlx::query("select provisioning.make_role($1)").bind(schema).execute(&mut connection).await;
        made.map_err(&making)?;
    }
    connection.close().await.map_err(making)
}

async fn begin(url: &str) -> Result<PgConnection, StoreError> {
    let options: sqlx::postgres::PgConnectOptions = url.parse().map_err(failed("read database address"))?;
    let options = options.application_name("bulkhead backup").disable_statement_logging();
    let mut connection = options.connect().await.map_err(failed("connect to the database"))?;
    run(&mut connection, "begin isolation level repeatable read, read only").await?;
    Ok(connection)
}

async fn run(connection: &mut PgConnection, sql: &'static str) -> Result<(), StoreError> {
    sqlx::query(sql).execute(connection).await.map(|_| ()).map_err(failed("hold a moment of the database"))
}

async fn count(connection: &mut PgConnection) -> Result<RowCounts, StoreError> {
    // Tables as they are told apart by people: a partition counts as part of its table.
    let sql = "select quote_ident(n.nspname), quote_ident(c.relname)
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where c.relkind in ('r', 'p') and not c.relispartition
                 and n.nspname not in ('pg_catalog', 'information_schema')";
    let tables = sqlx::query(sql).fetch_all(&mut *connection).await.map_err(failed("list the tables"))?;
    let mut counts = RowCounts::default();
    for table in tables {
        let name: (String, String) = (table.get(0), table.get(1));
        let name = format!("{}.{}", name.0, name.1);
        let sql = format!("select count(*) from {name}");
        let rows = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut *connection).await;
        counts.tables.insert(name, rows.map_err(failed("count rows"))?);
    }
    let sql = "select schema from platform.tenant_schema order by 1";
    let own: Result<Vec<String>, _> = sqlx::query_scalar(sql).fetch_all(&mut *connection).await;
    let own = own.map_err(failed("list the schemas of tenants"))?;
    for schema in std::iter::once(SHARED.to_owned()).chain(own) {
        let sql = format!(
            "select t.slug, count(r.slot) from platform.tenant t left join {schema}.result r using (tenant_id) group by 1"
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *connection).await;
        for row in rows.map_err(failed("count results"))? {
            *counts.results.entry(row.get(0)).or_default() += row.get::<i64, _>(1);
        }
    }
    Ok(counts)
}
