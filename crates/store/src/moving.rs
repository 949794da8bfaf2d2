//! Moves all rows of a tenant between the shared tables and a schema of its own, while results keep arriving: history is
//! copied, the tenant's messages are held, the rest is copied and compared, and one transaction says where the rows are now.
//! Killed at any moment, the same call goes on (docs/adr/0015).

use std::collections::BTreeSet;

use bulkhead_bus::{Tenant, TenantId};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, Transaction};
use time::OffsetDateTime;

use crate::isolation::{Isolation, Place, isolation_of};
use crate::provisioning::{Provisioning, ProvisioningError, failed};
use crate::schemas::CLOSE;

/// Tables that are copied whole while messages are held; `result` and `dead_letter` are copied before, and what came since.
/// What was written to them is listed in `config_change`, which so comes last: a copy is no change.
/// Otherwise in the order in which results are stored: somebody who has not heard of the move may be at it in the other place.
const SMALL: [&str; 5] = ["check_state", "poller_seen", "site", "poller", "config_change"];
/// What is compared before the rows are said to be elsewhere.
const COMPARED: [&str; 7] = ["site", "poller", "poller_seen", "check_state", "dead_letter", "result", "config_change"];
/// A transaction that stores results may have begun so long before the copy, and have said so.
const WRITING_MOST_S: i32 = 180;

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

impl Provisioning {
    /// Brings a tenant's rows where its plan puts them; `None` when they are there. Results keep arriving meanwhile, and
    /// whoever reads sees one place. A move that was cut short is gone on with, or taken back when the plan says so by now.
    ///
    /// # Errors
    /// When the tenant is not on the list or leaves, the database has no room for one more schema, or the rows of both places
    /// are not the same; then they stay where they were, and messages go on.
    pub async fn move_tenant(
        &self,
        tenant: &Tenant,
        progress: &(dyn Fn(MoveStep) + Sync),
    ) -> Result<Option<MovedRows>, ProvisioningError> {
        let (mut tries, mut moved) = (1, None);
        loop {
            match self.move_once(tenant, progress, &mut moved).await {
                Ok(()) => return Ok(moved),
                // Somebody who has not heard of the move was storing where the rows are not, and is refused: both cannot be first.
                Err(error) if error.is_rollback() && tries < TRIES_MOST => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn move_once(
        &self,
        tenant: &Tenant,
        progress: &(dyn Fn(MoveStep) + Sync),
        moved: &mut Option<MovedRows>,
    ) -> Result<(), ProvisioningError> {
        let to = isolation_of(&tenant.plan);
        let from = self.open_place(tenant).await?;
        match self.begun_move(tenant).await? {
            Some(begun) if begun.to == from => self.finish_move(tenant, other(from), progress).await?,
            Some(begun) if begun.to != to => self.take_back_move(tenant, from).await?,
            Some(_) | None => {}
        }
        if from == to {
            return Ok(());
        }
        if to == Isolation::Schema {
            self.make_schema(tenant).await?;
        }
        let begun = self.begin_move(tenant, to).await?;
        self.copy_history(tenant, from, progress).await?;
        let held = std::time::Instant::now();
        progress(MoveStep::Holding);
        self.hold(tenant, from).await?;
        let rows = match self.switch(tenant, from, &begun, progress).await {
            Ok(rows) => rows,
            Err(error) => {
                self.release(tenant, from).await?;
                return Err(error);
            }
        };
        *moved = Some(MovedRows { to, rows, held: held.elapsed() });
        progress(MoveStep::Switched);
        self.finish_move(tenant, from, progress).await
    }

    /// Where the rows of a tenant are that may be moved.
    async fn open_place(&self, tenant: &Tenant) -> Result<Isolation, ProvisioningError> {
        let sql = "select isolation, state from platform.tenant where tenant_id = $1";
        let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_optional(&self.pool).await;
        let row = row.map_err(failed("look where a tenant's rows are"))?;
        let row = row.ok_or_else(|| ProvisioningError::NoTenant { slug: tenant.slug.clone() })?;
        if !["active", "suspended"].contains(&row.get::<&str, _>(1)) {
            return Err(ProvisioningError::Leaves { slug: tenant.slug.clone() });
        }
        isolation_in(&row)
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

    async fn begun_move(&self, tenant: &Tenant) -> Result<Option<Begun>, ProvisioningError> {
        let sql = "select isolation, began_at from platform.tenant_move where tenant_id = $1";
        let row = sqlx::query(sql).bind(tenant.id.as_uuid()).fetch_optional(&self.pool).await;
        let row = row.map_err(failed("look for a move that was begun"))?;
        row.map(|row| Ok(Begun { to: isolation_in(&row)?, began_at: row.get(1) })).transpose()
    }

    /// One that was begun before keeps its time: what has come since then has to be looked at again.
    async fn begin_move(&self, tenant: &Tenant, to: Isolation) -> Result<Begun, ProvisioningError> {
        let sql = "insert into platform.tenant_move (tenant_id, isolation) values ($1, $2) on conflict do nothing";
        let put = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(to.as_str()).execute(&self.pool).await;
        put.map_err(failed("begin a move"))?;
        let begun = self.begun_move(tenant).await?;
        begun.ok_or_else(|| ProvisioningError::NoTenant { slug: tenant.slug.clone() })
    }

    /// A partition at a time, so that nothing waits long and what is copied stays copied.
    async fn copy_history(
        &self,
        tenant: &Tenant,
        from: Isolation,
        progress: &(dyn Fn(MoveStep) + Sync),
    ) -> Result<(), ProvisioningError> {
        let mut connection = self.alone().await?;
        let spans = self.spans(&mut connection, &Place::of(tenant, from)).await?;
        let (all, mut rows) = (spans.len(), 0);
        for (done, span) in spans.iter().enumerate() {
            progress(MoveStep::Copying { done, all, rows });
            let mut tx = name_tenant(&mut connection, tenant).await?;
            ensure_partitions(&mut tx, tenant, from, span).await?;
            rows += copy_results(&mut tx, tenant, from, "slot >= $2 and slot < $3", (span.from, span.to)).await?;
            tx.commit().await.map_err(failed("copy results"))?;
        }
        progress(MoveStep::Copying { done: all, all, rows });
        let mut tx = name_tenant(&mut connection, tenant).await?;
        copy_letters(&mut tx, tenant, from).await?;
        tx.commit().await.map_err(failed("copy dead letters"))?;
        connection.close().await.map_err(failed("close"))
    }

    /// Days in the shared tables, and months in a schema of one's own.
    async fn spans(&self, connection: &mut PgConnection, place: &Place) -> Result<Vec<Span>, ProvisioningError> {
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

    /// From here on nothing is written for the tenant: whoever was at it has ended, and whoever comes is told to come again.
    async fn hold(&self, tenant: &Tenant, place: Isolation) -> Result<(), ProvisioningError> {
        self.say(tenant, place, CLOSE).await
    }

    /// Messages go on where they went before.
    async fn release(&self, tenant: &Tenant, place: Isolation) -> Result<(), ProvisioningError> {
        let sql = "update ingest_count set closed = false, moved = false where tenant_id = $1 and moved";
        self.say(tenant, place, sql).await
    }

    async fn say(&self, tenant: &Tenant, place: Isolation, sql: &'static str) -> Result<(), ProvisioningError> {
        let holding = failed("hold a tenant's messages");
        let mut connection = self.alone().await?;
        let mut tx = name_tenant(&mut connection, tenant).await?;
        let schema = Place::of(tenant, place).schema;
        let there = sqlx::query("select set_config('search_path', $1, true)").bind(&*schema).execute(&mut *tx).await;
        there.map_err(&holding)?;
        sqlx::query(sql).bind(tenant.id.as_uuid()).execute(&mut *tx).await.map_err(&holding)?;
        tx.commit().await.map_err(&holding)?;
        connection.close().await.map_err(holding)
    }

    /// All of the rest in one transaction, the word where the rows are included.
    async fn switch(
        &self,
        tenant: &Tenant,
        from: Isolation,
        begun: &Begun,
        progress: &(dyn Fn(MoveStep) + Sync),
    ) -> Result<u64, ProvisioningError> {
        let mut connection = self.alone().await?;
        let moving = failed("move the rest of a tenant's rows");
        let (source, target) = (Place::of(tenant, from).schema, Place::of(tenant, begun.to).schema);
        let mut tx = name_tenant(&mut connection, tenant).await?;
        // What came while history was copied may be of any day.
        let since = begun.began_at - time::Duration::seconds(i64::from(WRITING_MOST_S));
        for span in self.spans(&mut tx, &Place::of(tenant, from)).await? {
            ensure_partitions(&mut tx, tenant, from, &span).await?;
        }
        copy_results(&mut tx, tenant, from, "received_at >= greatest($2, $3)", (since, since)).await?;
        copy_letters(&mut tx, tenant, from).await?;
        for table in SMALL {
            let sql = format!(
                "delete from {target}.{table} where tenant_id = '{id}';
                 insert into {target}.{table} select * from {source}.{table} where tenant_id = '{id}'",
                id = tenant.id.as_uuid()
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
        sqlx::query(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).execute(&mut *tx).await.map_err(&moving)?;
        let mut rows = 0;
        for table in COMPARED {
            rows += compare(&mut tx, tenant, (&source, &target), table).await?;
        }
        progress(MoveStep::Compared { rows });
        let sql = "update platform.tenant set isolation = $2 where tenant_id = $1";
        let said = sqlx::query(sql).bind(tenant.id.as_uuid()).bind(begun.to.as_str()).execute(&mut *tx).await;
        said.map_err(&moving)?;
        tx.commit().await.map_err(&moving)?;
        connection.close().await.map_err(moving)?;
        Ok(rows)
    }

    /// Removes what is left in the place that the tenant has left, once nobody reads there any more.
    async fn finish_move(
        &self,
        tenant: &Tenant,
        old: Isolation,
        progress: &(dyn Fn(MoveStep) + Sync),
    ) -> Result<(), ProvisioningError> {
        progress(MoveStep::Removing);
        let mut connection = self.alone().await?;
        // Whoever is in the old place holds this lock, and whoever comes now is sent on.
        let key = Place::of(tenant, old).lock_key(tenant);
        let wait = sqlx::query("select pg_advisory_lock($1)").bind(key).execute(&mut connection).await;
        wait.map_err(failed("wait for those who read in the old place"))?;
        connection.close().await.map_err(failed("close"))?;
        self.remove_rows(tenant, old).await?;
        self.end_move(tenant).await
    }

    /// As if it had never been begun.
    async fn take_back_move(&self, tenant: &Tenant, from: Isolation) -> Result<(), ProvisioningError> {
        self.release(tenant, from).await?;
        self.remove_rows(tenant, other(from)).await?;
        self.end_move(tenant).await
    }

    async fn end_move(&self, tenant: &Tenant) -> Result<(), ProvisioningError> {
        let sql = "delete from platform.tenant_move where tenant_id = $1";
        let ended = sqlx::query(sql).bind(tenant.id.as_uuid()).execute(&self.pool).await;
        ended.map(|_| ()).map_err(failed("end a move"))
    }

    /// In the shared tables one row stays, which says that nothing is to be written there.
    async fn remove_rows(&self, tenant: &Tenant, place: Isolation) -> Result<(), ProvisioningError> {
        if place == Isolation::Schema {
            return self.drop_schema(tenant).await;
        }
        let removing = failed("remove rows that were moved");
        let mut connection = self.alone().await?;
        let (id, schema) = (tenant.id.as_uuid(), Place::of(tenant, place).schema);
        for Span { from, to } in self.spans(&mut connection, &Place::of(tenant, place)).await? {
            let mut tx = name_tenant(&mut connection, tenant).await?;
            let sql = format!("delete from {schema}.result where tenant_id = $1 and slot >= $2 and slot < $3");
            let gone = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(from).bind(to).execute(&mut *tx).await;
            gone.map_err(&removing)?;
            tx.commit().await.map_err(&removing)?;
        }
        let mut tx = name_tenant(&mut connection, tenant).await?;
        for table in COMPARED {
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
        tx.commit().await.map_err(&removing)?;
        connection.close().await.map_err(removing)
    }
}

fn other(isolation: Isolation) -> Isolation {
    match isolation {
        Isolation::Shared => Isolation::Schema,
        Isolation::Schema => Isolation::Shared,
    }
}

fn isolation_in(row: &PgRow) -> Result<Isolation, ProvisioningError> {
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
         where r.revision <> excluded.revision"
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

/// How many rows both places have of a table, when they have the same.
async fn compare(
    tx: &mut PgConnection,
    tenant: &Tenant,
    (source, target): (&str, &str),
    table: &str,
) -> Result<u64, ProvisioningError> {
    let mut found = Vec::new();
    for schema in [source, target] {
        let sql = format!(
            "select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text
             from {schema}.{table} t where tenant_id = $1"
        );
        let row = sqlx::query(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).fetch_one(&mut *tx).await;
        let row = row.map_err(failed("compare what was moved"))?;
        found.push((row.get::<i64, _>(0), row.get::<String, _>(1)));
    }
    if found[0] != found[1] {
        let (there, here) = (found[0].0, found[1].0);
        return Err(ProvisioningError::NotTheSame { table: table.to_owned(), there, here });
    }
    Ok(u64::try_from(found[0].0).unwrap_or(0))
}
