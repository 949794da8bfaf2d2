//! Moves all rows of a tenant between the shared tables and a schema of its own, while results keep arriving: history is
//! copied, the tenant's messages are held, the rest is copied and compared, and one transaction says where the rows are now.
//! Killed at any moment, the same call goes on (docs/adr/0015).

mod comparing;
mod tables;

use std::collections::BTreeSet;

use bulkhead_bus::{Tenant, TenantId};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, Transaction};
use time::OffsetDateTime;

use crate::isolation::{Isolation, Place, isolation_of};
use crate::provisioning::{Provisioning, ProvisioningError, failed};
use crate::schemas::CLOSE;
use crate::tenant_rows::RESULT;
use crate::transaction::writing_lock;
use comparing::{compare, compare_history, same_count};
use tables::{COMPARED, SMALL};

/// A transaction that stores results may have begun so long before the copy, and have said so.
pub(crate) const WRITING_MOST_S: i32 = 180;

/// Whoever was killed may be at its last statement, and readers may take so long.
pub(crate) const LOCK_LIMIT_S: u32 = 120;
pub(crate) const OPEN_SHARED: &str =
    "update ingest_count set closed = false, moved = false where tenant_id = $1 and moved
    and exists (select from platform.tenant t where t.tenant_id = $1 and isolation = 'shared')";
pub(crate) const OPEN_SCHEMA: &str =
    "update ingest_count set closed = false, moved = false where tenant_id = $1 and moved
    and exists (select from platform.tenant t where t.tenant_id = $1 and isolation = 'schema')";
/// How often a move is tried that the database takes back for another transaction's sake.
const TRIES_MOST: u32 = 10;

/// Where the rows of every tenant are that is there.
pub(crate) const UNSETTLED: &str = "
    select tenant_id, slug, plan, isolation,
           exists (select from platform.tenant_move m where m.tenant_id = t.tenant_id) as is_moving
    from platform.tenant t where state in ('active', 'suspended') order by slug";

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveStep {
    /// Partitions of results that are copied, and all of them; `rows` is how many were copied so far.
    Copying { done: usize, all: usize, rows: u64 },
    /// From here on the tenant's messages wait.
    Holding,
    /// Rows of both places are the same, and are counted.
    Compared { rows: u64 },
    /// The rows are where they should be, and messages go on.
    Switched,
    /// Whoever still reads in the old place is waited for.
    Removing,
}

/// What a move came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MovedRows {
    pub to: Isolation,
    /// Of all tables.
    pub rows: u64,
    /// How long the tenant's messages waited.
    pub held: std::time::Duration,
}

/// A move that was begun.
struct Begun {
    to: Isolation,
    began_at: OffsetDateTime,
}

/// A part of the results: one partition of the place they are in.
struct Span {
    from: OffsetDateTime,
    to: OffsetDateTime,
}

/// A move on one connection, which holds a lock of its session: nobody else moves this tenant's rows, and whoever was killed
/// is over when its last statement is.
struct Mover<'a> {
    provisioning: &'a Provisioning,
    tenant: &'a Tenant,
    connection: PgConnection,
    progress: &'a (dyn Fn(MoveStep) + Sync),
}

impl Provisioning {
    /// Brings a tenant's rows where its plan puts them; `None` when they are there. Results keep arriving meanwhile, and
    /// whoever reads sees one place. A move that was cut short is gone on with, or taken back when the plan says so by now.
    ///
    /// # Errors
    /// When the tenant is not on the list or leaves, somebody else is moving it, the database has no room for one more schema, or
    /// the rows of both places are not the same; then they stay where they were, and messages go on.
    pub async fn move_tenant(
        &self,
        tenant: &Tenant,
        progress: &(dyn Fn(MoveStep) + Sync),
    ) -> Result<Option<MovedRows>, ProvisioningError> {
        let (mut tries, mut moved) = (1, None);
        loop {
            let connection = self.alone_with(tenant).await?;
            let mut mover = Mover { provisioning: self, tenant, connection, progress };
            match mover.run(&mut moved).await {
                Ok(()) => return Ok(moved),
                // Somebody who has not heard of the move was storing where the rows are not, and is refused: both cannot be first.
                Err(error) if error.is_rollback() && tries < TRIES_MOST => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// A connection of nobody else's that keeps everybody from moving, or purging, this tenant's rows until it ends.
    ///
    /// # Errors
    /// When somebody else keeps it.
    pub(crate) async fn alone_with(&self, tenant: &Tenant) -> Result<PgConnection, ProvisioningError> {
        let mut connection = self.alone().await?;
        let locking = failed("keep others from moving the same rows");
        let limit = format!("set lock_timeout to '{LOCK_LIMIT_S}s'");
        sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut connection).await.map_err(&locking)?;
        let lock = sqlx::query("select pg_advisory_lock(hashtext('move'), hashtext($1))");
        match lock.bind(tenant.id.as_uuid().to_string()).execute(&mut connection).await {
            Ok(_) => Ok(connection),
            Err(error)
                if error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "55P03") =>
            {
                Err(ProvisioningError::BeingMoved { slug: tenant.slug.clone() })
            }
            Err(error) => Err(locking(error)),
        }
    }

    /// Every tenant that is there and whose rows are not where its plan puts them, or whose move was begun and not ended.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unsettled(&self) -> Result<BTreeSet<TenantId>, ProvisioningError> {
        let rows =
            sqlx::query(UNSETTLED).fetch_all(&self.pool).await.map_err(failed("look where tenants' rows are"))?;
        let is_settled = |row: &PgRow| {
            let isolation = isolation_of(row.get("plan"));
            row.get::<&str, _>("isolation") == isolation.as_str() && !row.get::<bool, _>("is_moving")
        };
        let unsettled = rows.iter().filter(|row| !is_settled(row));
        Ok(unsettled.map(|row| TenantId::new(row.get("tenant_id"))).collect())
    }
}

impl Mover<'_> {
    async fn run(&mut self, moved: &mut Option<MovedRows>) -> Result<(), ProvisioningError> {
        let to = isolation_of(&self.tenant.plan);
        let from = self.open_place().await?;
        match self.begun().await? {
            Some(begun) if begun.to == from => self.finish(other(from)).await?,
            Some(begun) if begun.to != to => self.take_back(from).await?,
            Some(_) | None => {}
        }
        if from == to {
            return Ok(());
        }
        if to == Isolation::Schema {
            self.provisioning.make_schema(self.tenant).await?;
        }
        let begun = self.begin(to).await?;
        self.copy_history(from).await?;
        let held = std::time::Instant::now();
        (self.progress)(MoveStep::Holding);
        self.say(from, CLOSE).await?;
        let rows = match self.switch(from, &begun).await {
            Ok(rows) => rows,
            Err(error) => {
                self.release(from).await?;
                return Err(error);
            }
        };
        *moved = Some(MovedRows { to, rows, held: held.elapsed() });
        (self.progress)(MoveStep::Switched);
        self.finish(from).await
    }

    /// Where the rows of a tenant are that may be moved.
    async fn open_place(&mut self) -> Result<Isolation, ProvisioningError> {
        let slug = || self.tenant.slug.clone();
        let sql = "select isolation, state from platform.tenant where tenant_id = $1";
        let row = sqlx::query(sql).bind(self.tenant.id.as_uuid()).fetch_optional(&mut self.connection).await;
        let row = row.map_err(failed("look where a tenant's rows are"))?;
        let row = row.ok_or_else(|| ProvisioningError::NoTenant { slug: slug() })?;
        if !["active", "suspended"].contains(&row.get::<&str, _>(1)) {
            return Err(ProvisioningError::Leaves { slug: slug() });
        }
        isolation_in(&row)
    }

    async fn begun(&mut self) -> Result<Option<Begun>, ProvisioningError> {
        let sql = "select isolation, began_at from platform.tenant_move where tenant_id = $1";
        let row = sqlx::query(sql).bind(self.tenant.id.as_uuid()).fetch_optional(&mut self.connection).await;
        let row = row.map_err(failed("look for a move that was begun"))?;
        row.map(|row| Ok(Begun { to: isolation_in(&row)?, began_at: row.get(1) })).transpose()
    }

    /// One that was begun before keeps its time: what has come since then has to be looked at again. When this returns nobody
    /// removes what plans keep no longer, in either place, and nobody begins to.
    async fn begin(&mut self, to: Isolation) -> Result<Begun, ProvisioningError> {
        let beginning = failed("begin a move");
        let id = self.tenant.id.as_uuid();
        let sql = "insert into platform.tenant_move (tenant_id, isolation) values ($1, $2) on conflict do nothing";
        let put = sqlx::query(sql).bind(id).bind(to.as_str()).execute(&mut self.connection).await;
        put.map_err(&beginning)?;
        let mut tx = self.connection.begin().await.map_err(&beginning)?;
        let sql = "select pg_advisory_xact_lock(hashtext('remove_old_rows'), hashtext($1)),
                          pg_advisory_xact_lock(hashtext('drop_old_partitions of shared')),
                          pg_advisory_xact_lock(hashtext('drop_old_partitions of ' || $2))";
        let own = Isolation::Schema.schema_of(&self.tenant.slug);
        sqlx::query(sql).bind(id.to_string()).bind(&*own).execute(&mut *tx).await.map_err(&beginning)?;
        tx.commit().await.map_err(beginning)?;
        let begun = self.begun().await?;
        begun.ok_or_else(|| ProvisioningError::NoTenant { slug: self.tenant.slug.clone() })
    }

    /// A partition at a time, so that nothing waits long and what is copied stays copied.
    async fn copy_history(&mut self, from: Isolation) -> Result<(), ProvisioningError> {
        let spans = spans(&mut self.connection, &Place::of(self.tenant, from)).await?;
        let (all, mut rows) = (spans.len(), 0);
        for (done, span) in spans.iter().enumerate() {
            (self.progress)(MoveStep::Copying { done, all, rows });
            self.ensure_partitions(from, span).await?;
            let mut tx = name_tenant(&mut self.connection, self.tenant).await?;
            let which = "slot >= $2 and slot < $3";
            rows += copy_results(&mut tx, self.tenant, from, which, (span.from, span.to)).await?;
            tx.commit().await.map_err(failed("copy results"))?;
            let mut tx = name_tenant(&mut self.connection, self.tenant).await?;
            compare_history(&mut tx, self.tenant, from, span).await?;
            tx.commit().await.map_err(failed("compare what was moved"))?;
        }
        (self.progress)(MoveStep::Copying { done: all, all, rows });
        let mut tx = name_tenant(&mut self.connection, self.tenant).await?;
        copy_letters(&mut tx, self.tenant, from).await?;
        tx.commit().await.map_err(failed("copy dead letters"))
    }

    /// In a transaction of its own: whoever writes results waits for it.
    async fn ensure_partitions(&mut self, from: Isolation, span: &Span) -> Result<(), ProvisioningError> {
        let mut tx = name_tenant(&mut self.connection, self.tenant).await?;
        ensure_partitions(&mut tx, self.tenant, from, span).await?;
        tx.commit().await.map_err(failed("make partitions for what is moved"))
    }

    /// Messages go on where they went before; nowhere, if the rows are not there any more.
    async fn release(&mut self, place: Isolation) -> Result<(), ProvisioningError> {
        let sql = match place {
            Isolation::Shared => OPEN_SHARED,
            Isolation::Schema => OPEN_SCHEMA,
        };
        self.say(place, sql).await
    }

    /// One statement about the tenant's row of counters in a place.
    async fn say(&mut self, place: Isolation, sql: &'static str) -> Result<(), ProvisioningError> {
        let holding = failed("hold a tenant's messages");
        let schema = Place::of(self.tenant, place).schema;
        let mut tx = name_tenant(&mut self.connection, self.tenant).await?;
        let there = sqlx::query("select set_config('search_path', $1, true)").bind(&*schema).execute(&mut *tx).await;
        there.map_err(&holding)?;
        sqlx::query(sql).bind(self.tenant.id.as_uuid()).execute(&mut *tx).await.map_err(&holding)?;
        tx.commit().await.map_err(holding)
    }

    /// All of the rest in one transaction, the word where the rows are included.
    async fn switch(&mut self, from: Isolation, begun: &Begun) -> Result<u64, ProvisioningError> {
        let (tenant, moving) = (self.tenant, failed("move the rest of a tenant's rows"));
        let (source, target) = (Place::of(tenant, from).schema, Place::of(tenant, begun.to).schema);
        for span in spans(&mut self.connection, &Place::of(tenant, from)).await? {
            self.ensure_partitions(from, &span).await?;
        }
        let mut tx = name_tenant(&mut self.connection, tenant).await?;
        // Whoever configures the tenant has done so before this, or sees where it is afterwards.
        let sql =
            "select from platform.tenant where tenant_id = $1 and isolation = $2 and state in ('active', 'suspended')
                   for update";
        let here = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(from.as_str()).fetch_optional(&mut *tx).await;
        if here.map_err(&moving)?.is_none() {
            return Err(ProvisioningError::Leaves { slug: tenant.slug.clone() });
        }
        // So has every service that writes anything but results.
        let alone = format!("select pg_advisory_xact_lock({})", writing_lock(tenant));
        sqlx::raw_sql(AssertSqlSafe(alone)).execute(&mut *tx).await.map_err(&moving)?;
        // What came while history was copied may be of any day.
        let since = begun.began_at - time::Duration::seconds(i64::from(WRITING_MOST_S));
        copy_results(&mut tx, tenant, from, "received_at >= greatest($2, $3)", (since, since)).await?;
        copy_letters(&mut tx, tenant, from).await?;
        copy_small(&mut tx, tenant, (&source, &target)).await?;
        let mut rows = 0;
        for table in COMPARED {
            rows += compare(&mut tx, tenant, (&source, &target), (table, "true")).await?;
        }
        let since = format!("received_at >= to_timestamp({})", since.unix_timestamp());
        compare(&mut tx, tenant, (&source, &target), (RESULT, &since)).await?;
        rows += same_count(&mut tx, tenant, (&source, &target)).await?;
        (self.progress)(MoveStep::Compared { rows });
        let sql = "update platform.tenant set isolation = $2 where tenant_id = $1";
        let said = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(begun.to.as_str()).execute(&mut *tx).await;
        said.map_err(&moving)?;
        tx.commit().await.map_err(moving)?;
        Ok(rows)
    }

    /// Removes what is left in the place that the tenant has left, once nobody reads there any more.
    async fn finish(&mut self, old: Isolation) -> Result<(), ProvisioningError> {
        (self.progress)(MoveStep::Removing);
        // Whoever is in the old place holds this lock, and whoever comes now is sent on.
        let key = Place::of(self.tenant, old).lock_key(self.tenant);
        let waiting = failed("wait for those who read in the old place");
        let sql = "select pg_advisory_lock($1), pg_advisory_unlock($1)";
        sqlx::query(sql).bind(key).execute(&mut self.connection).await.map_err(waiting)?;
        self.remove_rows(old).await?;
        self.end().await
    }

    /// As if it had never been begun.
    async fn take_back(&mut self, from: Isolation) -> Result<(), ProvisioningError> {
        self.release(from).await?;
        self.remove_rows(other(from)).await?;
        self.end().await
    }

    async fn end(&mut self) -> Result<(), ProvisioningError> {
        let sql = "delete from platform.tenant_move where tenant_id = $1";
        let ended = sqlx::query(sql).bind(self.tenant.id.as_uuid()).execute(&mut self.connection).await;
        ended.map(|_| ()).map_err(failed("end a move"))
    }

    /// In the shared tables one row stays, which says that nothing is to be written there.
    async fn remove_rows(&mut self, place: Isolation) -> Result<(), ProvisioningError> {
        if place == Isolation::Schema {
            return self.provisioning.drop_schema(self.tenant).await;
        }
        let removing = failed("remove rows that were moved");
        let (tenant, id) = (self.tenant, self.tenant.id.as_uuid());
        let schema = Place::of(tenant, place).schema;
        for Span { from, to } in spans(&mut self.connection, &Place::of(tenant, place)).await? {
            let mut tx = name_tenant(&mut self.connection, tenant).await?;
            let sql = format!("delete from {schema}.result where tenant_id = $1 and slot >= $2 and slot < $3");
            let gone = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(from).bind(to).execute(&mut *tx).await;
            gone.map_err(&removing)?;
            tx.commit().await.map_err(&removing)?;
        }
        let mut tx = name_tenant(&mut self.connection, tenant).await?;
        for table in COMPARED.into_iter().chain([RESULT]) {
            let sql = format!("delete from {schema}.{table} where tenant_id = $1");
            sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *tx).await.map_err(&removing)?;
        }
        let sql = format!(
            "update {schema}.ingest_count
             set batches = 0, results = 0, replaced = 0, duplicates = 0, dead_letters = 0 where tenant_id = $1"
        );
        sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *tx).await.map_err(&removing)?;
        // What is removed here is registered in the other place.
        let now = Place::of(tenant, other(place)).schema;
        let sql = format!(
            "insert into platform.batch_key select batch_key, tenant_id from {now}.poller where tenant_id = $1
             on conflict do nothing"
        );
        sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *tx).await.map_err(&removing)?;
        tx.commit().await.map_err(removing)
    }
}

/// Days in the shared tables, and months in a schema of one's own.
async fn spans(connection: &mut PgConnection, place: &Place) -> Result<Vec<Span>, ProvisioningError> {
    let sql = "select (d::text || ' 00:00:00+00')::timestamptz,
                      ((d + case when length(c.relname) = 13 then interval '1 month' else interval '1 day' end)::date::text
                       || ' 00:00:00+00')::timestamptz
               from pg_inherits i join pg_class c on c.oid = i.inhrelid
               cross join lateral (select to_date(rpad(substr(c.relname, 8), 8, '01'), 'YYYYMMDD')) as day (d)
               where i.inhparent = ($1 || '.result')::regclass and c.relname ~ '^result_[0-9]{6}([0-9]{2})?$'
               order by 1";
    let rows = sqlx::query(sql).bind(&*place.schema).fetch_all(connection).await;
    let rows = rows.map_err(failed("look for partitions of results"))?;
    Ok(rows.iter().map(|row| Span { from: row.get(0), to: row.get(1) }).collect())
}

/// The small tables whole, and the row of counters, open.
async fn copy_small(
    tx: &mut PgConnection,
    tenant: &Tenant,
    (source, target): (&str, &str),
) -> Result<(), ProvisioningError> {
    let (id, moving) = (tenant.id.as_uuid(), failed("move the rest of a tenant's rows"));
    for table in SMALL {
        let sql = format!(
            "delete from {target}.{table} where tenant_id = '{id}';
             insert into {target}.{table} select * from {source}.{table} where tenant_id = '{id}'"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.map_err(&moving)?;
    }
    let sql = format!(
        "insert into {target}.ingest_count as c
         select (jsonb_populate_record(s, '{{\"closed\": false, \"moved\": false}}')).*
         from {source}.ingest_count s where tenant_id = $1
         on conflict (tenant_id) do update set batches = excluded.batches, results = excluded.results,
             replaced = excluded.replaced, duplicates = excluded.duplicates, dead_letters = excluded.dead_letters,
             closed = false, moved = false"
    );
    sqlx::query(AssertSqlSafe(sql)).bind(id).execute(tx).await.map(|_| ()).map_err(moving)
}

fn other(isolation: Isolation) -> Isolation {
    match isolation {
        Isolation::Shared => Isolation::Schema,
        Isolation::Schema => Isolation::Shared,
    }
}

pub(crate) fn isolation_in(row: &PgRow) -> Result<Isolation, ProvisioningError> {
    let text: &str = row.get(0);
    let unknown = |error: crate::UnknownIsolation| {
        ProvisioningError::Store(crate::StoreError::Row { account: text.to_owned(), what: error.to_string() })
    };
    text.parse().map_err(unknown)
}

/// A transaction of the owner in which only this tenant's rows exist, in all schemas; tables are named with theirs.
async fn name_tenant<'a>(
    connection: &'a mut PgConnection,
    tenant: &Tenant,
) -> Result<Transaction<'a, Postgres>, ProvisioningError> {
    let mut tx = connection.begin().await.map_err(failed("begin"))?;
    let named = sqlx::query("select set_config('app.tenant_id', $1, true)").bind(tenant.id.as_uuid().to_string());
    named.execute(&mut *tx).await.map_err(failed("name the tenant"))?;
    Ok(tx)
}

async fn ensure_partitions(
    tx: &mut PgConnection,
    tenant: &Tenant,
    from: Isolation,
    span: &Span,
) -> Result<(), ProvisioningError> {
    let (source, target) = (Place::of(tenant, from).schema, Place::of(tenant, other(from)).schema);
    // Only of days that have rows: in a month of one's own there are others.
    let sql = format!(
        "select {target}.ensure_result_partition(day.d)
         from generate_series(($2 at time zone 'UTC')::date, ($3 at time zone 'UTC')::date - 1, '1 day') with ordinality n (day_at, n)
         cross join lateral (select n.day_at::date) as day (d)
         where exists (select from {source}.result where tenant_id = $1
                       and slot >= (day.d::text || ' 00:00:00+00')::timestamptz
                       and slot < ((day.d + 1)::text || ' 00:00:00+00')::timestamptz)"
    );
    let made =
        sqlx::query(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).bind(span.from).bind(span.to).execute(tx).await;
    made.map(|_| ()).map_err(failed("make partitions for what is moved"))
}

/// A row that is there is replaced by what has become of it since.
async fn copy_results(
    tx: &mut PgConnection,
    tenant: &Tenant,
    from: Isolation,
    which: &'static str,
    (first, second): (OffsetDateTime, OffsetDateTime),
) -> Result<u64, ProvisioningError> {
    let (source, target) = (Place::of(tenant, from).schema, Place::of(tenant, other(from)).schema);
    let sql = format!(
        "insert into {target}.result as r select * from {source}.result s where tenant_id = $1 and {which}
         on conflict (tenant_id, check_name, slot, vantage) do update set
             poller = excluded.poller, kind = excluded.kind, outcome = excluded.outcome, reason = excluded.reason,
             latency_us = excluded.latency_us, started_at = excluded.started_at, generation = excluded.generation,
             island = excluded.island, attested = excluded.attested, revision = excluded.revision,
             detail = excluded.detail, received_at = excluded.received_at
         where row(r.*) is distinct from row(excluded.*)"
    );
    let copied = sqlx::query(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).bind(first).bind(second).execute(tx).await;
    Ok(copied.map_err(failed("copy results"))?.rows_affected())
}

/// A dead letter never changes.
async fn copy_letters(tx: &mut PgConnection, tenant: &Tenant, from: Isolation) -> Result<(), ProvisioningError> {
    let (source, target) = (Place::of(tenant, from).schema, Place::of(tenant, other(from)).schema);
    let sql = format!(
        "insert into {target}.dead_letter select * from {source}.dead_letter where tenant_id = $1 on conflict do nothing"
    );
    let copied = sqlx::query(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).execute(tx).await;
    copied.map(|_| ()).map_err(failed("copy dead letters"))
}
