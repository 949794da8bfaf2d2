//! One tenant's rows as text: the same text wherever they live and whoever's they become, because it has no tenant in it and
//! an order of its own. What was copied is compared by it, and what is destroyed is witnessed by its checksum.

use std::collections::BTreeMap;

use bulkhead_bus::Tenant;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use time::{Date, OffsetDateTime};

use crate::isolation::{Isolation, Place};
use crate::migrations::expected_versions;
use crate::provisioning::{Provisioning, ProvisioningError, failed};

pub(crate) const RESULT: &str = "result";
/// Every table of a tenant; results are the last, because there are most of them.
pub const TENANT_TABLES: [&str; 14] = [
    "site",
    "poller",
    "poller_seen",
    "check_state",
    "dead_letter",
    "ingest_count",
    "check_definition",
    "sealed_secret",
    "assignment",
    "dispatch_state",
    "run_order",
    "member_event",
    "config_change",
    RESULT,
];
/// Of no use elsewhere: whose the rows are, and whether their place is open.
const LEFT_OUT: [&str; 3] = ["tenant_id", "closed", "moved"];
/// Text that reads the same on every server.
const SPELLING: &str =
    "set local timezone to 'UTC'; set local datestyle to 'ISO, YMD'; set local bytea_output to 'hex'";
/// A move may come in between, not twice in a moment.
const PLACES_LOOKED_AT: usize = 4;

/// What a table adds up to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSum {
    pub rows: u64,
    /// SHA-256 of its parts one after the other, in hexadecimal.
    pub sha256: String,
}

/// What was read of a tenant at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedRows {
    /// Unix milliseconds.
    pub taken_ms: i64,
    pub isolation: Isolation,
    /// Of the tables.
    pub schema_version: i64,
    pub tables: BTreeMap<String, TableSum>,
    /// `site/poller` of each that was registered.
    pub pollers: Vec<String>,
    pub sites: Vec<String>,
}

/// Rows on their way out.
#[derive(Debug, Clone, Copy)]
pub enum RowPiece<'a> {
    /// A part begins: `poller_seen`, or `result/2026-11-30` for the results of one day (UTC).
    Begin(&'a str),
    Bytes(&'a [u8]),
    End,
}

/// Where rows go. Its errors end the export.
pub type RowSink<'a> = dyn FnMut(RowPiece<'_>) -> std::io::Result<()> + Send + 'a;

/// A table as it is read and written: its columns but those that are left out, and what orders its rows.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub table: &'static str,
    pub columns: Vec<String>,
    pub key: Vec<String>,
}

impl Shape {
    /// Of a table in the shared schema: all places have the same.
    pub(crate) async fn of(connection: &mut PgConnection, table: &'static str) -> Result<Self, ProvisioningError> {
        let reading = failed("look at the tables of tenants");
        let sql = "select a.attname::text, coalesce(a.attnum = any(i.indkey[0:i.indnkeyatts - 1]), false)
                   from pg_attribute a left join pg_index i on i.indrelid = a.attrelid and i.indisprimary
                   where a.attrelid = ('shared.' || $1)::regclass and a.attnum > 0 and not a.attisdropped
                   order by a.attnum";
        let rows = sqlx::query(sql).bind(table).fetch_all(connection).await.map_err(reading)?;
        let mut shape = Self { table, columns: vec![], key: vec![] };
        for row in rows {
            let column: String = row.get(0);
            if LEFT_OUT.contains(&column.as_str()) {
                continue;
            }
            if row.get(1) {
                shape.key.push(column.clone());
            }
            shape.columns.push(column);
        }
        Ok(shape)
    }

    pub(crate) fn list(&self) -> String {
        self.columns.join(", ")
    }

    /// A column as it is compared and written out: a row as JSON names its tenant as well, and does not there.
    pub(crate) fn bare(&self, column: &str, of: &str) -> String {
        if self.is_row(column) { format!("({of}{column} - 'tenant_id')") } else { format!("{of}{column}") }
    }

    /// Whether a column holds rows of another table.
    pub(crate) fn is_row(&self, column: &str) -> bool {
        self.table == "config_change" && ["was", "is_now"].contains(&column)
    }

    fn written(&self) -> String {
        let all = self.columns.iter().map(|column| format!("{} as {column}", self.bare(column, "")));
        all.collect::<Vec<_>>().join(", ")
    }

    /// Bytes decide, not a language: the order is the same on every server.
    fn order(&self) -> String {
        match self.key.is_empty() {
            true => String::new(),
            false => {
                let keys = self.key.iter().map(|column| match column.as_str() {
                    "slot" | "at" | "changed_at" | "id" | "row_index" | "digest" | "generation" | "revision" => {
                        column.clone()
                    }
                    text => format!("{text} collate \"C\""),
                });
                format!(" order by {}", keys.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

/// A transaction that sees one moment of one tenant, in the place where its rows are, until it is dropped.
struct Moment<'a> {
    connection: PgConnection,
    tenant: &'a Tenant,
    isolation: Isolation,
    taken_at: OffsetDateTime,
}

impl<'a> Moment<'a> {
    async fn hold(provisioning: &Provisioning, tenant: &'a Tenant) -> Result<Self, ProvisioningError> {
        let holding = failed("hold a moment of a tenant's rows");
        let mut connection = provisioning.alone().await?;
        let isolation = stay(&mut connection, tenant).await?;
        sqlx::raw_sql("begin isolation level repeatable read, read only")
            .execute(&mut connection)
            .await
            .map_err(&holding)?;
        let schema = Place::of(tenant, isolation).schema;
        let sql = "select now(), set_config('app.tenant_id', $1, true), set_config('search_path', $2, true)";
        let named = sqlx::query(sql).bind(tenant.id.as_uuid().to_string()).bind(&*schema);
        let taken_at = named.fetch_one(&mut connection).await.map_err(&holding)?.get(0);
        // No partition is dropped meanwhile.
        let still = format!("{SPELLING}; lock table result in access share mode");
        sqlx::raw_sql(AssertSqlSafe(still)).execute(&mut connection).await.map_err(holding)?;
        Ok(Self { connection, tenant, isolation, taken_at })
    }

    async fn table(&mut self, shape: &Shape, sink: &mut RowSink<'_>) -> Result<TableSum, ProvisioningError> {
        let mut hash = Sha256::new();
        let tenant = format!("tenant_id = '{}'", self.tenant.id.as_uuid());
        if shape.table == RESULT {
            for day in self.days().await? {
                let part = format!("{RESULT}/{day}");
                let range = format!("{tenant} and {}", within_day(day));
                copy_out(&mut self.connection, shape, &range, (&part, &mut hash), sink).await?;
            }
        } else {
            copy_out(&mut self.connection, shape, &tenant, (shape.table, &mut hash), sink).await?;
        }
        let rows = count(&mut self.connection, shape.table, &tenant).await?;
        Ok(TableSum { rows, sha256: hexadecimal(&hash.finalize()) })
    }

    async fn days(&mut self) -> Result<Vec<Date>, ProvisioningError> {
        let sql = "select distinct (slot at time zone 'UTC')::date from result where tenant_id = $1 order by 1";
        let days = sqlx::query_scalar(sql).bind(self.tenant.id.as_uuid()).fetch_all(&mut self.connection).await;
        days.map_err(failed("look for days of results"))
    }

    async fn names(&mut self, sql: &'static str) -> Result<Vec<String>, ProvisioningError> {
        let names = sqlx::query_scalar(sql).bind(self.tenant.id.as_uuid()).fetch_all(&mut self.connection).await;
        names.map_err(failed("read sites and pollers"))
    }
}

/// Keeps a move from taking rows away, for as long as the connection is there; says where they are.
async fn stay(connection: &mut PgConnection, tenant: &Tenant) -> Result<Isolation, ProvisioningError> {
    let holding = failed("hold a tenant's rows where they are");
    let place = "select isolation from platform.tenant where tenant_id = $1";
    let mut held: Option<Isolation> = None;
    for _ in 0..PLACES_LOOKED_AT {
        let found = sqlx::query_scalar(place).bind(tenant.id.as_uuid()).fetch_optional(&mut *connection).await;
        let found: Option<String> = found.map_err(&holding)?;
        let found = found.ok_or_else(|| ProvisioningError::NoTenant { slug: tenant.slug.clone() })?;
        let found: Isolation = found.parse().map_err(|error: crate::UnknownIsolation| {
            let (account, what) = (tenant.slug.to_string(), error.to_string());
            ProvisioningError::Store(crate::StoreError::Row { account, what })
        })?;
        if held == Some(found) {
            return Ok(found);
        }
        let key = Place::of(tenant, found).lock_key(tenant);
        let lock = sqlx::query("select pg_advisory_unlock_all(), pg_advisory_lock_shared($1)");
        lock.bind(key).execute(&mut *connection).await.map_err(&holding)?;
        held = Some(found);
    }
    Err(ProvisioningError::BeingMoved { slug: tenant.slug.clone() })
}

impl Provisioning {
    /// Reads every row of a tenant as of one moment, while everything goes on. Nothing is changed.
    ///
    /// # Errors
    /// When the tenant is not on the list, its rows are being moved, or the sink refuses.
    pub async fn export_tenant(
        &self,
        tenant: &Tenant,
        sink: &mut RowSink<'_>,
    ) -> Result<ExportedRows, ProvisioningError> {
        let mut moment = Moment::hold(self, tenant).await?;
        let mut tables = BTreeMap::new();
        for table in TENANT_TABLES {
            let shape = Shape::of(&mut moment.connection, table).await?;
            tables.insert(table.to_owned(), moment.table(&shape, sink).await?);
        }
        let sites = moment.names("select name from site where tenant_id = $1 order by 1").await?;
        let pollers = "select site || '/' || name from poller where tenant_id = $1 order by 1";
        let pollers = moment.names(pollers).await?;
        let [_, (_, schema_version)] = expected_versions();
        let taken_ms = i64::try_from(moment.taken_at.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
        let Moment { isolation, connection, .. } = moment;
        connection.close().await.map_err(failed("close"))?;
        Ok(ExportedRows { taken_ms, isolation, schema_version, tables, pollers, sites })
    }

    /// What every table of a tenant adds up to, as [`Self::export_tenant`] would have it.
    ///
    /// # Errors
    /// As [`Self::export_tenant`].
    pub async fn sum_tenant(&self, tenant: &Tenant) -> Result<BTreeMap<String, TableSum>, ProvisioningError> {
        self.export_tenant(tenant, &mut |_| Ok(())).await.map(|exported| exported.tables)
    }
}

pub(crate) fn within_day(day: Date) -> String {
    let next = day.next_day().unwrap_or(day);
    format!("slot >= '{day} 00:00:00+00' and slot < '{next} 00:00:00+00'")
}

/// A relation's rows as CSV with a line of column names.
async fn copy_out(
    connection: &mut PgConnection,
    shape: &Shape,
    which: &str,
    (part, hash): (&str, &mut Sha256),
    sink: &mut RowSink<'_>,
) -> Result<(), ProvisioningError> {
    let refused = |source| ProvisioningError::Sink { part: part.to_owned(), source };
    let sql = format!(
        "copy (select {} from {} where {which}{}) to stdout (format csv, header)",
        shape.written(),
        shape.table,
        shape.order()
    );
    sink(RowPiece::Begin(part)).map_err(refused)?;
    let mut rows = connection.copy_out_raw(&sql).await.map_err(failed("read a tenant's rows"))?;
    while let Some(piece) = rows.try_next().await.map_err(failed("read a tenant's rows"))? {
        hash.update(&piece);
        sink(RowPiece::Bytes(&piece)).map_err(refused)?;
    }
    sink(RowPiece::End).map_err(refused)
}

pub(crate) async fn count(
    connection: &mut PgConnection,
    relation: &str,
    which: &str,
) -> Result<u64, ProvisioningError> {
    let sql = format!("select count(*) from {relation} where {which}");
    let rows: i64 =
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await.map_err(failed("count a tenant's rows"))?;
    Ok(u64::try_from(rows).unwrap_or(0))
}

fn hexadecimal(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
