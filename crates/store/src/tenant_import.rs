//! Brings exported rows to a tenant: they are laid beside its tables first, and everything that is decided is decided in one
//! transaction, which ends with a comparison. Who may send is no row's business: sites and pollers are not brought.

mod values;

use std::collections::BTreeMap;

use bulkhead_bus::Tenant;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use time::{Date, OffsetDateTime};
use tokio::sync::mpsc;

use crate::isolation::Isolation;
use crate::isolation::Place;
use crate::moving::{OPEN_SCHEMA, OPEN_SHARED, WRITING_MOST_S, isolation_in};
use crate::provisioning::{Provisioning, ProvisioningError, failed};
use crate::schemas::CLOSE;
use crate::tenant_rows::{RESULT, Shape, TENANT_TABLES, TableSum, count};

/// Rows on their way in; the names are those of [`crate::RowPiece::Begin`].
#[derive(Debug)]
pub enum FedRows {
    Begin(String),
    Bytes(Vec<u8>),
    End,
    /// Nothing follows, and everything before was as it should be. Without it nothing is brought.
    Whole,
}

/// How rows are brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bring {
    /// To a tenant that has none of its own yet; it may be another one's copy.
    Copy,
    /// To the tenant that they were taken from, at this moment (unix milliseconds): what has come since stays.
    Back { taken_ms: i64 },
    /// Nowhere: they are only laid out and compared.
    Rehearse,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStep<'a> {
    /// A part, by its name.
    LayingOut(&'a str),
    /// From here on the tenant's messages wait.
    Holding,
    /// A table.
    Bringing(&'a str),
}

/// Hears of each step.
pub type ImportProgress<'a> = dyn Fn(ImportStep<'_>) + Sync + 'a;

/// What was brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BroughtRows {
    /// Rows that are there now and were in the backup, by table.
    pub rows: BTreeMap<String, u64>,
    /// Of the backup, by table: too old for the plan.
    pub too_old: BTreeMap<String, u64>,
    /// Of the tenant, by table: not in the backup, and gone therefore.
    pub gone: BTreeMap<String, u64>,
    /// Of the backup, by table: otherwise now, because the tenant has received them since.
    pub kept: BTreeMap<String, u64>,
    /// For how long the tenant's messages waited.
    pub held: std::time::Duration,
}

/// Tables whose rows are brought, in the order in which results are stored.
/// Who runs what is the platform's own: poller-dispatch says it anew from the checks. A secret is sealed for pollers that a copy
/// does not have.
const BROUGHT: [&str; 8] = [
    RESULT,
    "dead_letter",
    "config_change",
    "check_state",
    "poller_seen",
    "ingest_count",
    "check_definition",
    "member_event",
];

/// Of the machine that has the database and the one that commands.
const CLOCKS_APART: time::Duration = time::Duration::minutes(5);

fn is_brought(table: &str) -> bool {
    BROUGHT.contains(&table)
}

struct Importer<'a> {
    tenant: &'a Tenant,
    connection: PgConnection,
    isolation: Isolation,
    shapes: BTreeMap<&'static str, Shape>,
    progress: &'a ImportProgress<'a>,
}

impl Provisioning {
    /// Brings the rows that `fed` gives, all of them or none. `expected` is what each table added up to when it was exported.
    ///
    /// # Errors
    /// When the rows are not what was expected, belong to a newer release, or the database refuses; then everything is as
    /// it was.
    pub async fn import_tenant(
        &self,
        tenant: &Tenant,
        how: Bring,
        expected: &BTreeMap<String, TableSum>,
        (fed, progress): (mpsc::Receiver<FedRows>, &ImportProgress<'_>),
    ) -> Result<BroughtRows, ProvisioningError> {
        let mut connection = self.alone_with(tenant).await?;
        let sql = "select isolation, exists (select from platform.tenant_move m where m.tenant_id = t.tenant_id)
                   from platform.tenant t where tenant_id = $1";
        let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_optional(&mut connection).await;
        let row = row.map_err(failed("look where a tenant's rows are"))?;
        // A rehearsal needs no tenant.
        let isolation = match (row, how) {
            (Some(row), _) if row.get(1) => return Err(ProvisioningError::MoveBegun { slug: tenant.slug.clone() }),
            (Some(row), _) => isolation_in(&row)?,
            (None, Bring::Rehearse) => Isolation::Shared,
            (None, Bring::Copy | Bring::Back { .. }) => {
                return Err(ProvisioningError::NoTenant { slug: tenant.slug.clone() });
            }
        };
        let mut shapes = BTreeMap::new();
        for table in TENANT_TABLES {
            shapes.insert(table, Shape::of(&mut connection, table).await?);
        }
        let mut importer = Importer { tenant, connection, isolation, shapes, progress };
        importer.lay_out(fed).await?;
        importer.check_laid_out(expected).await?;
        values::check_values(&mut importer.connection).await?;
        let brought = match how {
            Bring::Rehearse => Ok(importer.counted(expected)),
            Bring::Copy | Bring::Back { .. } => {
                let too_old = importer.prepare().await?;
                let brought = match how {
                    Bring::Back { taken_ms } => importer.bring_back(taken_ms).await,
                    Bring::Copy | Bring::Rehearse => importer.bring(None).await,
                };
                brought.map(|brought| BroughtRows { too_old, ..brought })
            }
        };
        // Closing lets go of the lock and of what was laid out.
        importer.connection.close().await.map_err(failed("close"))?;
        brought
    }
}

impl Importer<'_> {
    fn shape(&self, table: &str) -> Result<&Shape, ProvisioningError> {
        self.shapes.get(table).ok_or_else(|| ProvisioningError::UnknownPart { part: table.to_owned() })
    }

    async fn run(&mut self, action: &'static str, sql: String) -> Result<u64, ProvisioningError> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection).await;
        done.map(|done| done.rows_affected()).map_err(failed(action))
    }

    /// Into tables of this connection's own, which nobody else sees and row security does not concern.
    async fn lay_out(&mut self, mut fed: mpsc::Receiver<FedRows>) -> Result<(), ProvisioningError> {
        for shape in self.shapes.values() {
            let sql = format!(
                "create temp table incoming_{table} (like shared.{table} including defaults including constraints);
                 alter table incoming_{table} drop column tenant_id",
                table = shape.table
            );
            let made = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connection).await;
            made.map_err(failed("make a place for incoming rows"))?;
        }
        loop {
            match fed.recv().await {
                Some(FedRows::Begin(part)) => self.lay_out_part(&part, &mut fed).await?,
                Some(FedRows::Whole) => return Ok(()),
                Some(FedRows::Bytes(_) | FedRows::End) | None => return Err(ProvisioningError::NotWhole),
            }
        }
    }

    async fn lay_out_part(&mut self, part: &str, fed: &mut mpsc::Receiver<FedRows>) -> Result<(), ProvisioningError> {
        let laying = failed("lay out incoming rows");
        (self.progress)(ImportStep::LayingOut(part));
        let table = part.split('/').next().unwrap_or(part);
        let shape = self.shape(table)?;
        let mut first = Vec::new();
        let end = loop {
            if let Some(end) = first.iter().position(|&byte| byte == b'\n') {
                break end;
            }
            match fed.recv().await {
                Some(FedRows::Bytes(bytes)) => first.extend_from_slice(&bytes),
                Some(FedRows::Begin(_) | FedRows::End | FedRows::Whole) | None => {
                    return Err(ProvisioningError::NotWhole);
                }
            }
        };
        let rest = first.split_off(end + 1);
        let columns = columns_of(&first, shape, part)?;
        let sql = format!("copy incoming_{table} ({columns}) from stdin (format csv)");
        let mut copy = self.connection.copy_in_raw(&sql).await.map_err(&laying)?;
        copy.send(rest).await.map_err(&laying)?;
        loop {
            match fed.recv().await {
                Some(FedRows::Bytes(bytes)) => drop(copy.send(bytes).await.map_err(&laying)?),
                Some(FedRows::End) => break,
                Some(FedRows::Begin(_) | FedRows::Whole) | None => {
                    copy.abort("it is not whole").await.map_err(&laying)?;
                    return Err(ProvisioningError::NotWhole);
                }
            }
        }
        copy.finish().await.map(|_| ()).map_err(laying)
    }

    /// As many rows as were exported, and none twice.
    async fn check_laid_out(&mut self, expected: &BTreeMap<String, TableSum>) -> Result<(), ProvisioningError> {
        for shape in self.shapes.clone().values() {
            let table = shape.table;
            let there = expected.get(table).map_or(0, |sum| sum.rows);
            let here = count(&mut self.connection, &format!("incoming_{table}"), "true").await?;
            let key = if shape.key.is_empty() { "1".to_owned() } else { shape.key.join(", ") };
            let distinct = format!("(select distinct {key} from incoming_{table}) d");
            let distinct = count(&mut self.connection, &distinct, "true").await?;
            if here != there || distinct != here {
                return Err(ProvisioningError::NotAsExported {
                    table: table.to_owned(),
                    there,
                    here: distinct.min(here),
                });
            }
            self.run("look at incoming rows", format!("analyze incoming_{table}")).await?;
        }
        Ok(())
    }

    fn counted(&self, expected: &BTreeMap<String, TableSum>) -> BroughtRows {
        let rows = expected.iter().filter(|(table, _)| is_brought(table));
        BroughtRows { rows: rows.map(|(table, sum)| (table.clone(), sum.rows)).collect(), ..BroughtRows::default() }
    }

    async fn bring_back(&mut self, taken_ms: i64) -> Result<BroughtRows, ProvisioningError> {
        let taken = OffsetDateTime::from_unix_timestamp_nanos(i128::from(taken_ms) * 1_000_000);
        let taken = taken.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        if taken > OffsetDateTime::now_utc() + CLOCKS_APART {
            return Err(ProvisioningError::FromTheFuture { taken_ms });
        }
        // Whoever was storing when the backup was taken may have begun so long before.
        let since = taken - time::Duration::seconds(i64::from(WRITING_MOST_S));
        let held = std::time::Instant::now();
        (self.progress)(ImportStep::Holding);
        self.hold(CLOSE).await?;
        let brought = self.bring(Some(since)).await;
        let open = match self.isolation {
            Isolation::Shared => OPEN_SHARED,
            Isolation::Schema => OPEN_SCHEMA,
        };
        let opened = self.hold(open).await;
        let brought = brought?;
        opened.map(|()| BroughtRows { held: held.elapsed(), ..brought })
    }

    /// A statement about the row of counters, for everybody to see at once.
    async fn hold(&mut self, sql: &'static str) -> Result<(), ProvisioningError> {
        let holding = failed("hold a tenant's messages");
        self.begin().await?;
        sqlx::query(sql).bind(self.tenant.id.as_uuid()).execute(&mut self.connection).await.map_err(&holding)?;
        sqlx::raw_sql("commit").execute(&mut self.connection).await.map(|_| ()).map_err(holding)
    }

    async fn begin(&mut self) -> Result<(), ProvisioningError> {
        let beginning = failed("name the tenant");
        sqlx::raw_sql("begin").execute(&mut self.connection).await.map_err(&beginning)?;
        let schema = Place::of(self.tenant, self.isolation).schema;
        let sql = "select set_config('app.tenant_id', $1, true), set_config('search_path', $2, true)";
        let named = sqlx::query(sql).bind(self.tenant.id.as_uuid().to_string()).bind(&*schema);
        named.execute(&mut self.connection).await.map(|_| ()).map_err(beginning)
    }

    /// `since`: what the tenant has received from then on stays.
    async fn bring(&mut self, since: Option<OffsetDateTime>) -> Result<BroughtRows, ProvisioningError> {
        self.begin().await?;
        let brought = self.bring_all(since).await;
        self.end(brought).await
    }

    async fn end<T>(&mut self, done: Result<T, ProvisioningError>) -> Result<T, ProvisioningError> {
        let end = if done.is_ok() { "commit" } else { "rollback" };
        let ended = self.run("bring rows", end.to_owned()).await;
        let done = done?;
        ended.map(|_| done)
    }

    /// In a transaction of its own, before anybody waits: whoever needs a new partition waits for this one.
    async fn prepare(&mut self) -> Result<BTreeMap<String, u64>, ProvisioningError> {
        self.begin().await?;
        let prepared = async {
            let too_old = self.drop_too_old().await?;
            self.make_partitions().await?;
            Ok(too_old)
        };
        let prepared = prepared.await;
        self.end(prepared).await
    }

    async fn bring_all(&mut self, since: Option<OffsetDateTime>) -> Result<BroughtRows, ProvisioningError> {
        let mut brought = BroughtRows::default();
        // Retention removes nothing meanwhile.
        let sql = format!(
            "select pg_advisory_xact_lock(hashtext('remove_old_rows'), hashtext('{}'))",
            self.tenant.id.as_uuid()
        );
        self.run("keep retention away", sql).await?;
        let since = since.map(|since| format!("to_timestamp({})", since.unix_timestamp()));
        if let Some(since) = &since {
            brought.gone = self.remove_others(since).await?;
        }
        for table in BROUGHT {
            (self.progress)(ImportStep::Bringing(table));
            let shape = self.shape(table)?.clone();
            self.run("bring rows", put(&shape, self.tenant)).await?;
            let (missing, kept) = self.missing(&shape, since.as_deref()).await?;
            let there = count(&mut self.connection, &format!("incoming_{table}"), "true").await?;
            if missing > 0 {
                let here = there.saturating_sub(missing);
                return Err(ProvisioningError::NotAsExported { table: table.to_owned(), there, here });
            }
            if kept > 0 && since.is_some() && ["result", "dead_letter"].contains(&table) {
                brought.kept.insert(table.to_owned(), kept);
            }
            let other = brought.kept.get(table).copied().unwrap_or(0);
            brought.rows.insert(table.to_owned(), there.saturating_sub(other));
        }
        Ok(brought)
    }

    /// What the plan keeps no longer would go again within the hour.
    async fn drop_too_old(&mut self) -> Result<BTreeMap<String, u64>, ProvisioningError> {
        let mut gone = BTreeMap::new();
        for (table, column) in [(RESULT, "slot"), ("dead_letter", "received_at"), ("member_event", "at")] {
            let sql = format!(
                "delete from incoming_{table} where {column} < now() - make_interval(days => {})",
                self.tenant.retention_days
            );
            let rows = self.run("leave out what the plan keeps no longer", sql).await?;
            if rows > 0 {
                gone.insert(table.to_owned(), rows);
            }
        }
        Ok(gone)
    }

    async fn make_partitions(&mut self) -> Result<(), ProvisioningError> {
        let making = failed("make partitions for what is brought");
        let sql = "select distinct (slot at time zone 'UTC')::date from incoming_result order by 1";
        let days: Vec<Date> = sqlx::query_scalar(sql).fetch_all(&mut self.connection).await.map_err(&making)?;
        for day in days {
            let made = sqlx::query("select ensure_result_partition($1)").bind(day).execute(&mut self.connection).await;
            made.map_err(&making)?;
        }
        Ok(())
    }

    /// Rows that are not as in the backup, but for what has come since. The log of changes loses nothing.
    async fn remove_others(&mut self, since: &str) -> Result<BTreeMap<String, u64>, ProvisioningError> {
        let id = self.tenant.id.as_uuid();
        let mut gone = BTreeMap::new();
        for table in [RESULT, "dead_letter"] {
            let shape = self.shape(table)?.clone();
            let (key, same) = (pairs(&shape.key, "="), same(&shape));
            let old = format!("delete from {table} mine where tenant_id = '{id}' and received_at < {since}");
            let made_up = format!("{old} and not exists (select from incoming_{table} i where {key})");
            let rows = self.run("remove what the backup does not have", made_up).await?;
            gone.insert(table.to_owned(), rows);
            // Those come back as they were.
            let changed = format!("{old} and exists (select from incoming_{table} i where {key} and not ({same}))");
            self.run("remove what has changed", changed).await?;
        }
        // A state is that of its newest result.
        let sql = format!(
            "delete from check_state mine where tenant_id = '{id}' and not exists (
                 select from result r where r.tenant_id = '{id}' and r.check_name = mine.check_name and r.vantage = mine.vantage
                   and r.slot >= mine.slot and r.received_at >= {since})
             and slot < {since}"
        );
        self.run("remove states that the backup does not have", sql).await?;
        gone.retain(|_, rows| *rows > 0);
        Ok(gone)
    }

    /// Rows of the backup that the tenant does not have now, or has otherwise than because of what has come since; and those that
    /// it has otherwise because of that.
    async fn missing(&mut self, shape: &Shape, since: Option<&str>) -> Result<(u64, u64), ProvisioningError> {
        let id = self.tenant.id.as_uuid();
        let table = shape.table;
        let newer = newer(shape, since).unwrap_or_else(|| "false".to_owned());
        let key = if shape.key.is_empty() { "true".to_owned() } else { pairs(&shape.key, "=") };
        let sql = format!(
            "select count(*) filter (where is_there is null or not ({same} or {newer})),
                    count(*) filter (where is_there and not ({same}))
             from incoming_{table} i
             left join (select true as is_there, o.* from {table} o where tenant_id = '{id}') mine on {key}",
            same = same(shape)
        );
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.connection).await;
        let row = row.map_err(failed("compare what was brought"))?;
        let number = |place: usize| u64::try_from(row.get::<i64, _>(place)).unwrap_or(0);
        Ok((number(0), number(1)))
    }
}

/// When a row of the tenant stands for the one of the backup although it is another. Counters only grow.
fn newer(shape: &Shape, since: Option<&str>) -> Option<String> {
    match shape.table {
        "check_state" => Some("mine.slot >= i.slot".to_owned()),
        "poller_seen" => Some("mine.last_batch_at >= i.last_batch_at".to_owned()),
        "ingest_count" => Some(pairs(&shape.columns, ">=")),
        "config_change" => None,
        // One that was removed and made again has a revision that is not greater.
        "check_definition" => Some("(mine.changed_at, mine.revision) >= (i.changed_at, i.revision)".to_owned()),
        // Revisions of leases begin again with a new hub: what was told since stands.
        "member_event" => Some("true".to_owned()),
        _received => since.map(|since| format!("mine.received_at >= {since}")),
    }
}

/// `mine.a = i.a and mine.b = i.b`
fn pairs(columns: &[String], operator: &str) -> String {
    let pair = |column: &String| format!("mine.{column} {operator} i.{column}");
    columns.iter().map(pair).collect::<Vec<_>>().join(" and ")
}

/// Whether two rows say the same.
fn same(shape: &Shape) -> String {
    let pair =
        |column: &String| format!("{} is not distinct from {}", shape.bare(column, "mine."), shape.bare(column, "i."));
    let all: Vec<String> = shape.columns.iter().map(pair).collect();
    format!("({})", all.join(" and "))
}

/// Brings what was laid out. Where something newer is, that stays.
fn put(shape: &Shape, tenant: &Tenant) -> String {
    let (table, list, id) = (shape.table, shape.list(), tenant.id.as_uuid());
    let all = shape.columns.iter().filter(|one| !shape.key.contains(one));
    let all: Vec<String> = all.map(|one| format!("{one} = excluded.{one}")).collect();
    let replaced = format!("do update set {}", all.join(", "));
    let newest = |columns: &[&str]| {
        let of = |row: &str| columns.iter().map(|column| format!("{row}.{column}")).collect::<Vec<_>>().join(", ");
        format!("{replaced} where ({}) < ({})", of("mine"), of("excluded"))
    };
    let conflict = match table {
        "check_state" => newest(&["slot"]),
        "poller_seen" => newest(&["last_batch_at"]),
        "check_definition" => newest(&["changed_at", "revision"]),
        // Nobody changes it: what is otherwise was changed by hand.
        "config_change" => replaced,
        "ingest_count" => {
            let greatest = |column: &String| format!("{column} = greatest(mine.{column}, excluded.{column})");
            format!("do update set {}", shape.columns.iter().map(greatest).collect::<Vec<_>>().join(", "))
        }
        _history => "do nothing".to_owned(),
    };
    let mut key = vec!["tenant_id".to_owned()];
    key.extend(shape.key.iter().cloned());
    let value = |column: &String| match shape.is_row(column) {
        true => format!("{column} || jsonb_build_object('tenant_id', '{id}')"),
        false => column.clone(),
    };
    let values = shape.columns.iter().map(value).collect::<Vec<_>>().join(", ");
    format!(
        "insert into {table} as mine (tenant_id, {list}) select '{id}', {values} from incoming_{table}
         on conflict ({}) {conflict}",
        key.join(", ")
    )
}

/// The columns that a part names in its first line, as this release knows them.
fn columns_of(line: &[u8], shape: &Shape, part: &str) -> Result<String, ProvisioningError> {
    let unknown = |what: &str| ProvisioningError::UnknownColumn { part: part.to_owned(), column: what.to_owned() };
    let line = std::str::from_utf8(line).map_err(|_| unknown("which is no text"))?;
    let names: Vec<&str> = line.trim_end().split(',').collect();
    match names.iter().find(|name| !shape.columns.iter().any(|column| column == *name)) {
        Some(name) => Err(unknown(&name.chars().take(60).collect::<String>())),
        None => Ok(names.join(", ")),
    }
}
