//! The database alone: what storing costs with tenants kept apart, beside UNNEST without any of it; a schema more; what people
//! ask of a large history; and a plan that moves rows.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_bus::payload::{CheckKind, Measured as Row, Outcome, Query};
use bulkhead_bus::{AccountKey, Tenant};
use bulkhead_core::commit::{Seen, Shares, Writer};
use bulkhead_core::handlers::history::store::{list_history, list_poller_history, list_uptime};
use bulkhead_core::handlers::history::window::{Buckets, Window};
use bulkhead_core::handlers::store::{glance_at, list_results, list_states};
use bulkhead_core::precedence::Candidate;
use bulkhead_runtime::now_ms;
use bulkhead_store::{MovedRows, Provisioning, SCHEMAS_MOST, Store, migrate};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_keys, tenant};
use sqlx::{AssertSqlSafe, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::accounts::Times;
use super::cpu;
use super::report::machine;

/// Rows of one transaction of several tenants.
const ROWS_AT_ONCE: usize = 5_000;
const CELL_LASTS: Duration = Duration::from_secs(4);
/// Schemas that are made one by one and timed, the last ones that there is room for.
const SCHEMAS_TIMED: usize = 20;
const QUERIES: usize = 300;
const HISTORY: &str = "24 h of one check in buckets of 5 min";
const UPTIME: &str = "uptime of 20 checks over 24 h";
const POLLER: &str = "what a poller delivered in 24 h";
const QUESTIONS: [&str; 6] =
    ["state of all checks", "newest 100 of one check", "a tenant at a glance", HISTORY, UPTIME, POLLER];
const DAY_MS: i64 = 86_400_000;

/// What the ratios are of: one statement, one table, everybody's rows.
const REFERENCE: &str = "UNNEST alone";
const REFERENCE_STATE: &str = "UNNEST and state";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct StorePlan {
    /// Rows of the history that is asked; of 200 tenants with 20 checks.
    pub history: u64,
    /// Rows of the tenant that is moved.
    pub moved: u64,
}

/// One way to store, by how many rows a tenant has in a transaction.
#[derive(Debug, Clone)]
pub struct Stored {
    pub place: &'static str,
    pub rows_each: usize,
    pub rows_per_second: f64,
    /// CPU of the database's server a row.
    pub cpu_us: f64,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct StoreMeasured {
    pub stored: Vec<Stored>,
    pub schemas: Times,
    pub history: u64,
    pub queries: Vec<(&'static str, Times)>,
    pub moved: MovedRows,
    pub move_took: Duration,
}

struct Bench {
    database: TestDatabase,
    provisioning: Provisioning,
    store: Store,
    witness: PgPool,
}

fn utc(ms: i64) -> OffsetDateTime {
    bulkhead_runtime::utc_of_ms(ms).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Rows of one tenant that no other pass has.
fn rows(count: usize, pass: i64) -> impl Iterator<Item = Candidate> {
    let start = now_ms() / DAY_MS * DAY_MS - DAY_MS;
    (0..count).map(move |row| {
        let slot_ms = start + pass * 100;
        Candidate {
            measured: Row {
                check: format!("check-{row}").parse().expect("a check's name"),
                kind: CheckKind::Http,
                slot_ms,
                started_ms: slot_ms,
                outcome: Outcome::Ok,
                reason: None,
                latency_us: Some(1_234),
                generation: 0,
                island: false,
                detail: BTreeMap::new(),
            },
            vantage: "oslo".to_owned(),
            poller: "p1".to_owned(),
            attested: true,
        }
    })
}

impl Bench {
    async fn start() -> anyhow::Result<Self> {
        let database = TestDatabase::start().await?;
        let (provisioning, store) = (database.provisioning().await?, database.store().await?);
        let witness = PgPool::connect(&database.superuser_url()).await.context("connect as witness")?;
        Ok(Self { database, provisioning, store, witness })
    }

    async fn add(&self, tenants: &[Tenant]) -> anyhow::Result<Vec<AccountKey>> {
        let keys = account_keys(tenants.len());
        for (key, tenant) in keys.iter().zip(tenants) {
            self.provisioning.put_tenant(key, tenant).await?;
        }
        Ok(keys)
    }

    /// Passes over all tenants until `CELL_LASTS`, and what each row cost.
    async fn timed<F: Future<Output = anyhow::Result<()>>>(
        &self,
        mut pass: impl FnMut(i64) -> F,
        rows_a_pass: usize,
    ) -> anyhow::Result<(f64, f64)> {
        // Partitions, plans and caches.
        pass(0).await?;
        let server = [("database", self.database.pid())];
        let (began, before) = (Instant::now(), cpu::used(&server));
        let mut passes = 0;
        while began.elapsed() < CELL_LASTS {
            passes += 1;
            pass(passes).await?;
        }
        let lasted = began.elapsed().as_secs_f64();
        let used: Duration = cpu::difference(&before, &cpu::used(&server)).values().sum();
        let rows = passes as f64 * rows_a_pass as f64;
        Ok((rows / lasted, used.as_secs_f64() * 1e6 / rows))
    }

    async fn store_path(&self, place: &'static str, tenants: &[Tenant], rows_each: usize) -> anyhow::Result<Stored> {
        let writer = tokio::sync::Mutex::new(Writer::new(self.store.clone()));
        let (oslo, p1) = ("oslo".parse()?, "p1".parse()?);
        let pass = async |pass: i64| -> anyhow::Result<()> {
            let fill = |tenants: &[Tenant]| {
                let mut shares = Shares::default();
                for tenant in tenants {
                    let share = shares.of(tenant);
                    share.rows.extend(rows(rows_each, pass));
                    share.seen.push(Seen { site: Clone::clone(&oslo), poller: Clone::clone(&p1), sequence: None });
                }
                shares.ready()
            };
            let mut writer = writer.lock().await;
            if place == "shared" {
                writer.write(&fill(tenants)).await?;
            } else {
                for tenant in tenants {
                    writer.write(&fill(std::slice::from_ref(tenant))).await?;
                }
            }
            Ok(())
        };
        let (rows_per_second, cpu_us) = self.timed(pass, tenants.len() * rows_each).await?;
        Ok(Stored { place, rows_each, rows_per_second, cpu_us })
    }

    /// The same rows by one statement, without tenants being kept apart or counts; `and_state`: with the current state of each.
    async fn unnest(&self, tenants: &[Tenant], rows_each: usize, and_state: bool) -> anyhow::Result<Stored> {
        let table = "create schema if not exists bench; drop table if exists bench.result, bench.check_state;
                     create table bench.result (like shared.result including defaults,
                         primary key (tenant_id, check_name, slot, vantage) include (outcome, latency_us));
                     create table bench.check_state (like shared.check_state including defaults,
                         primary key (tenant_id, check_name, vantage)) with (fillfactor = 60)";
        sqlx::raw_sql(table).execute(&self.witness).await.context("make a table")?;
        let alone = "insert into bench.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, latency_us,
                                             started_at, generation, island, attested)
                   select i.tenant_id, i.check_name, i.slot, 'oslo', 'p1', 'http', 'ok', 1234, i.slot, 0, false, true
                   from unnest($1::uuid[], $2::text[], $3::timestamptz[]) as i (tenant_id, check_name, slot)
                   on conflict do nothing";
        let with_state = format!(
            "with stored as ({alone} returning *)
             insert into bench.check_state as s
                 (tenant_id, check_name, vantage, poller, kind, slot, outcome, latency_us, since)
             select tenant_id, check_name, vantage, poller, kind, slot, outcome, latency_us, slot from stored
             on conflict (tenant_id, check_name, vantage) do update set
                 poller = excluded.poller, kind = excluded.kind, slot = excluded.slot, outcome = excluded.outcome,
                 latency_us = excluded.latency_us,
                 since = case when s.outcome = excluded.outcome then s.since else excluded.since end
             where s.slot <= excluded.slot"
        );
        let (place, sql) = if and_state { (REFERENCE_STATE, &*with_state) } else { (REFERENCE, alone) };
        let pass = async |pass: i64| -> anyhow::Result<()> {
            let all: Vec<(Uuid, Candidate)> =
                tenants.iter().flat_map(|tenant| rows(rows_each, pass).map(|row| (tenant.id.as_uuid(), row))).collect();
            let put = sqlx::query(AssertSqlSafe(sql))
                .bind(all.iter().map(|(id, _)| *id).collect::<Vec<_>>())
                .bind(all.iter().map(|(_, row)| row.measured.check.to_string()).collect::<Vec<_>>())
                .bind(all.iter().map(|(_, row)| utc(row.measured.slot_ms)).collect::<Vec<_>>())
                .execute(&self.witness)
                .await;
            put.map(|_| ()).context("insert by UNNEST")
        };
        let (rows_per_second, cpu_us) = self.timed(pass, tenants.len() * rows_each).await?;
        Ok(Stored { place, rows_each, rows_per_second, cpu_us })
    }

    /// Schemas reserved up to the last few, made together, and the last few one by one.
    async fn schemas(&self, there_are: usize) -> anyhow::Result<Times> {
        let most = usize::try_from(SCHEMAS_MOST)?;
        let fill = "insert into platform.tenant_schema (tenant_id, schema, version)
                    select gen_random_uuid(), 'tenant_filler' || n, 0 from generate_series(1, $1) n";
        let fillers = i32::try_from(most.saturating_sub(there_are + SCHEMAS_TIMED))?;
        sqlx::query(fill).bind(fillers).execute(&self.witness).await.context("reserve schemas")?;
        migrate(&self.database.provision_url()).await?;
        let mut times = Vec::new();
        for (number, key) in account_keys(SCHEMAS_TIMED).iter().enumerate() {
            let late = Tenant { plan: "enterprise".to_owned(), ..tenant(&format!("late-{number}")) };
            let began = Instant::now();
            self.provisioning.put_tenant(key, &late).await?;
            times.push(began.elapsed());
        }
        Ok(times.into_iter().collect())
    }

    /// So many rows of each tenant, 20 checks over two days.
    async fn fill(&self, tenants: &[Tenant], rows_each: u64) -> anyhow::Result<()> {
        let days = "select shared.ensure_result_partition(current_date - n) from generate_series(0, 3) n";
        sqlx::raw_sql(days).execute(&self.witness).await.context("make partitions")?;
        for tenant in tenants {
            let sql = format!(
                "insert into shared.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, latency_us, started_at,
                                            generation, island, attested, received_at)
                 select '{id}', 'check-' || n % 20, date_trunc('day', now()) + interval '12 hours'
                            - interval '2 days' * (n::float8 / {rows_each}), 'oslo', 'p1', 'tcp',
                        case when n % 50 = 0 then 'fail' else 'ok' end, n % 100000, now(), 0, false, true,
                        date_trunc('day', now()) + interval '12 hours' - interval '2 days' * (n::float8 / {rows_each})
                 from generate_series(1, {rows_each}) n;
                 insert into shared.check_state (tenant_id, check_name, vantage, poller, kind, slot, outcome, since)
                 select distinct on (check_name) tenant_id, check_name, vantage, poller, kind, slot, outcome, slot
                 from shared.result where tenant_id = '{id}' order by check_name, slot desc;
                 insert into shared.ingest_count values ('{id}', 1, {rows_each}, 0, 0, 0)",
                id = tenant.id.as_uuid()
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.witness).await.context("fill a history")?;
        }
        sqlx::raw_sql("vacuum analyze shared.result, shared.check_state")
            .execute(&self.witness)
            .await
            .context("vacuum")?;
        Ok(())
    }

    async fn queries(&self, tenant: &Tenant) -> anyhow::Result<Vec<(&'static str, Times)>> {
        let one_check = Query { check: Some("check-7".parse()?), ..Query::default() };
        let since_ms = now_ms() - DAY_MS;
        // Where the history is that was filled: it ends at noon, whatever the time is.
        let until_ms = now_ms() / DAY_MS * DAY_MS + DAY_MS / 2;
        let window = Window { since_ms: until_ms - DAY_MS, until_ms };
        let buckets = Buckets { window, bucket_s: 300 };
        let check_7 = "check-7".parse()?;
        let (oslo, p1) = ("oslo".parse()?, "p1".parse()?);
        let mut all = Vec::new();
        for what in QUESTIONS {
            let mut times = Vec::new();
            for _ in 0..QUERIES {
                let began = Instant::now();
                let mut tx = self.store.begin(tenant).await?;
                match what {
                    HISTORY => drop(list_history(&mut tx, tenant, (&check_7, None), buckets, 1_000).await?),
                    UPTIME => drop(list_uptime(&mut tx, tenant, &Query::default(), (window, until_ms), 1_000).await?),
                    POLLER => drop(list_poller_history(&mut tx, tenant, (&oslo, &p1), buckets, 1_000).await?),
                    "state of all checks" => drop(list_states(&mut tx, tenant, &Query::default()).await?),
                    "newest 100 of one check" => drop(list_results(&mut tx, tenant, &one_check, since_ms, 100).await?),
                    _glance => drop(glance_at(&mut tx, tenant).await?),
                }
                drop(tx);
                times.push(began.elapsed());
            }
            all.push((what, times.into_iter().collect()));
        }
        Ok(all)
    }
}

/// Measures all of it on a database of its own.
///
/// # Errors
/// When the database does not do what it should.
pub async fn run_store(plan: StorePlan, say: &dyn Fn(&str)) -> anyhow::Result<StoreMeasured> {
    let bench = Bench::start().await?;
    let mut stored = Vec::new();
    let named = |kind: &str, number: usize, plan: &str| Tenant {
        plan: plan.to_owned(),
        retention_days: 30,
        ..tenant(&format!("{kind}-{number}"))
    };
    let most = ROWS_AT_ONCE / 10;
    let shared: Vec<Tenant> = (0..most).map(|number| named("shared", number, "pro")).collect();
    let own: Vec<Tenant> = (0..most).map(|number| named("own", number, "enterprise")).collect();
    say("adding tenants, half of them with a schema");
    bench.add(&shared).await?;
    bench.add(&own).await?;
    for rows_each in [10, 100, 1_000] {
        let count = ROWS_AT_ONCE / rows_each;
        say(&format!("storing {rows_each} rows a tenant"));
        stored.push(bench.unnest(&shared[..count], rows_each, false).await?);
        stored.push(bench.unnest(&shared[..count], rows_each, true).await?);
        stored.push(bench.store_path("shared", &shared[..count], rows_each).await?);
        stored.push(bench.store_path("schema", &own[..count], rows_each).await?);
    }
    say("making schemas until there is no room");
    let schemas = bench.schemas(most).await?;
    say(&format!("filling a history of {} rows", plan.history));
    let asked: Vec<Tenant> = (0..200).map(|number| named("asked", number, "pro")).collect();
    bench.add(&asked).await?;
    bench.fill(&asked, plan.history / 200).await?;
    say("asking it");
    let queries = bench.queries(&asked[100]).await?;
    say(&format!("moving {} rows", plan.moved));
    let mover = named("mover", 0, "pro");
    // A place for it: there is no room for one schema more.
    sqlx::query("delete from platform.tenant_schema where schema = 'tenant_filler1'").execute(&bench.witness).await?;
    let key = bench.add(std::slice::from_ref(&mover)).await?;
    bench.fill(std::slice::from_ref(&mover), plan.moved).await?;
    let mover = Tenant { plan: "enterprise".to_owned(), ..mover };
    bench.provisioning.put_tenant(&key[0], &mover).await?;
    let began = Instant::now();
    let moved = bench.provisioning.move_tenant(&mover, &|_| {}).await?.context("it was moved")?;
    Ok(StoreMeasured { stored, schemas, history: plan.history, queries, moved, move_took: began.elapsed() })
}

/// The section of the page.
#[must_use]
pub fn render_store(all: &StoreMeasured) -> String {
    let mut page = format!("Machine: {}.\n\n", machine());
    page.push_str("| Rows a tenant | Place | Rows/s | Server CPU µs/row | of UNNEST alone |\n|---|---|---|---|---|\n");
    for one in &all.stored {
        let alone = all.stored.iter().find(|other| other.rows_each == one.rows_each);
        let ratio = one.cpu_us / alone.map_or(one.cpu_us, |alone| alone.cpu_us);
        let Stored { place, rows_each, rows_per_second, cpu_us } = one;
        let _ = writeln!(page, "| {rows_each} | {place} | {rows_per_second:.0} | {cpu_us:.1} | {ratio:.2}x |");
    }
    let _ = writeln!(
        page,
        "\nThe last {SCHEMAS_TIMED} of {SCHEMAS_MOST} schemas, each made with its tenant, ms (median, p99): {}.\n",
        all.schemas
    );
    let _ = writeln!(page, "Of {} rows, ms (median, p99), with the transaction that names the tenant:\n", all.history);
    for (what, times) in &all.queries {
        let _ = writeln!(page, "- {what}: {times}");
    }
    let MovedRows { rows, held, .. } = all.moved;
    let seconds = all.move_took.as_secs_f64();
    let _ = writeln!(
        page,
        "\nA plan that moves {rows} rows to a schema: {seconds:.1} s, of which its messages waited {:.1} s.",
        held.as_secs_f64()
    );
    page
}
