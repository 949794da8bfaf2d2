//! The books of one run: what was sent against what is stored, for each tenant, row by row.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use sqlx::PgPool;

use super::ledger::{CHECKS, Record, Sent, Slot, check_name};
use super::world::{LEDGER, Tenant};

/// Letters that a poller with a wrong clock may cause; anything else is a fault of ours.
const CLOCK_REASONS: [&str; 3] = ["slot_in_future", "slot_too_old", "bad_start"];
/// Lost rows that are named.
const NAMED_MOST: usize = 5;

/// One tenant's books.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Books {
    pub tenant: String,
    pub sent: usize,
    pub acked: usize,
    pub attempts: u64,
    pub committed: usize,
    /// Rows that came again and changed nothing, in this run.
    pub duplicates: i64,
    pub repeated: u64,
    pub dead_letters: usize,
    pub problems: Vec<String>,
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:9} sent {} acked {} committed {} duplicates {} dead-lettered {}{}",
            self.tenant,
            self.sent,
            self.acked,
            self.committed,
            self.duplicates,
            self.dead_letters,
            if self.problems.is_empty() { " balanced" } else { " NOT BALANCED" }
        )?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n          {problem}"))
    }
}

/// What the counters of core said before the run.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    pub since_ms: i64,
    duplicates: i64,
}

/// The counters of one tenant, and what they count, seen at one moment.
struct Counted {
    results: i64,
    rows: i64,
    letters: i64,
    kept: i64,
    duplicates: i64,
}

async fn counted(witness: &PgPool, tenant: Tenant) -> anyhow::Result<Counted> {
    let sql = "select coalesce(max(c.results), 0), coalesce(max(c.dead_letters), 0), coalesce(max(c.duplicates), 0),
                      (select count(*) from shared.result r where r.tenant_id = (select tenant_id from platform.tenant where slug = $1)),
                      (select count(*) from shared.dead_letter d where d.tenant_id = (select tenant_id from platform.tenant where slug = $1))
               from shared.ingest_count c join platform.tenant t using (tenant_id) where t.slug = $1";
    let row: (i64, i64, i64, i64, i64) =
        sqlx::query_as(sql).bind(tenant.slug()).fetch_one(witness).await.context("read counters")?;
    Ok(Counted { results: row.0, letters: row.1, duplicates: row.2, rows: row.3, kept: row.4 })
}

impl Before {
    /// # Errors
    /// When the database does not answer.
    pub async fn read(witness: &PgPool, tenant: Tenant, since_ms: i64) -> anyhow::Result<Self> {
        Ok(Self { since_ms, duplicates: counted(witness, tenant).await?.duplicates })
    }
}

async fn stored(witness: &PgPool, tenant: Tenant, since_ms: i64) -> anyhow::Result<BTreeMap<Slot, (String, i64)>> {
    let sql = "select r.check_name, (extract(epoch from r.slot) * 1000)::int8, r.outcome, coalesce(r.latency_us, 0)
               from shared.result r join platform.tenant t using (tenant_id)
               where t.slug = $1 and r.poller = $2 and r.slot >= to_timestamp($3::float8 / 1000)";
    let rows: Vec<(String, i64, String, i64)> = sqlx::query_as(sql)
        .bind(tenant.slug())
        .bind(LEDGER)
        .bind(since_ms as f64)
        .fetch_all(witness)
        .await
        .context("read what is stored")?;
    Ok(rows.into_iter().map(|(check, slot, outcome, latency)| ((check, slot), (outcome, latency))).collect())
}

fn hold_rows(record: &Record, stored: &BTreeMap<Slot, (String, i64)>, books: &mut Books) {
    let is_lost = |slot: &&Slot| !stored.contains_key(*slot);
    let lost: Vec<&Slot> =
        record.rows.iter().filter(|(_, sent)| sent.is_acked).map(|(slot, _)| slot).filter(is_lost).collect();
    if !lost.is_empty() {
        let named = &lost[..lost.len().min(NAMED_MOST)];
        books.problems.push(format!("{} acknowledged results are not stored, such as {named:?}", lost.len()));
    }
    for (slot, (outcome, latency_us)) in stored {
        match record.rows.get(slot) {
            None => books.problems.push(format!("{slot:?} is stored and was never sent")),
            Some(Sent { outcome: sent, latency_us: was, .. }) if sent != outcome || was != latency_us => {
                books
                    .problems
                    .push(format!("{slot:?} was sent as {sent} {was} and is stored as {outcome} {latency_us}"));
            }
            Some(_) => {}
        }
    }
}

async fn hold_letters(
    witness: &PgPool,
    tenant: Tenant,
    (record, since_ms, has_wrong_clock): (&Record, i64, bool),
    books: &mut Books,
) -> anyhow::Result<()> {
    let sql = "select d.reason, convert_from(d.payload, 'UTF8') from shared.dead_letter d
               join platform.tenant t using (tenant_id)
               where t.slug = $1 and d.received_at >= to_timestamp($2::float8 / 1000)";
    let found: Vec<(String, String)> = sqlx::query_as(sql)
        .bind(tenant.slug())
        .bind(since_ms as f64)
        .fetch_all(witness)
        .await
        .context("read dead letters")?;
    books.dead_letters = found.len();
    let (own, other): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, payload)| payload.contains(LEDGER));
    for expected in &record.letters {
        let times =
            own.iter().filter(|(reason, payload)| reason == expected.reason && payload.contains(&expected.mark));
        let times = times.count();
        if times != 1 {
            books.problems.push(format!("{expected:?} is there {times} times"));
        }
    }
    if own.len() != record.letters.len() {
        books.problems.push(format!(
            "{} dead letters, {} were to be expected: {own:?}",
            own.len(),
            record.letters.len()
        ));
    }
    let is_ours = |reason: &str| !(has_wrong_clock && CLOCK_REASONS.contains(&reason));
    for (reason, payload) in other.iter().filter(|(reason, _)| is_ours(reason)) {
        let shown: String = payload.chars().take(200).collect();
        books.problems.push(format!("an honest poller's result is dead-lettered: {reason}: {shown}"));
    }
    Ok(())
}

/// Rows with one tenant's check names under the other.
async fn foreign(witness: &PgPool, tenant: Tenant) -> anyhow::Result<i64> {
    let names: Vec<String> = (0..CHECKS).map(|number| check_name(tenant, number)).collect();
    let sql = "select count(*) from shared.result r join platform.tenant t using (tenant_id)
               where t.slug <> $1 and r.check_name = any($2)";
    sqlx::query_scalar(sql).bind(tenant.slug()).bind(names).fetch_one(witness).await.context("look for foreign rows")
}

/// Adds up one tenant's books.
///
/// # Errors
/// When the database does not answer; an imbalance is in the books.
pub async fn balance(
    witness: &PgPool,
    tenant: Tenant,
    (record, before, has_wrong_clock): (&Record, Before, bool),
) -> anyhow::Result<Books> {
    let stored = stored(witness, tenant, before.since_ms).await?;
    let mut books = Books {
        tenant: tenant.slug().to_owned(),
        sent: record.rows.len(),
        acked: record.rows.values().filter(|sent| sent.is_acked).count(),
        attempts: record.attempts,
        committed: stored.len(),
        repeated: record.repeated_rows,
        ..Books::default()
    };
    hold_rows(record, &stored, &mut books);
    hold_letters(witness, tenant, (record, before.since_ms, has_wrong_clock), &mut books).await?;
    let foreign = foreign(witness, tenant).await?;
    if foreign > 0 {
        books.problems.push(format!("{foreign} rows of this tenant are under the other"));
    }
    let counted = counted(witness, tenant).await?;
    books.duplicates = counted.duplicates - before.duplicates;
    if counted.results != counted.rows {
        books.problems.push(format!("core counted {} results, and there are {}", counted.results, counted.rows));
    }
    if counted.letters != counted.kept {
        books.problems.push(format!("core counted {} dead letters, and there are {}", counted.letters, counted.kept));
    }
    if u64::try_from(books.duplicates).unwrap_or(0) < record.repeated_rows {
        books
            .problems
            .push(format!("{} rows were sent again, {} were refused", record.repeated_rows, books.duplicates));
    }
    Ok(books)
}
