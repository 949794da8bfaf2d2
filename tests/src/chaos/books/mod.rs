//! The books of one run: what was sent against what is stored, for each tenant, row by row and never by sums alone: one
//! that is missing and one too many must not cancel.

mod foreign;
mod gaps;
mod letters;
mod rows;
mod shares;
mod state;

use std::fmt;

use anyhow::Context;
use sqlx::PgPool;

use self::rows::stored;
use super::ledger::Record;
use super::world::{Own, Tenant, World};

/// Of what is wrong in many places, so many are named.
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
    /// Of checks that are shared out: slots that there should be, and those of them without a measurement.
    pub shared_slots: u64,
    pub shared_gaps: u64,
    pub problems: Vec<String>,
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:9} sent {} acked {} committed {} duplicates {} dead-lettered {} shared slots {} of them empty {}{}",
            self.tenant,
            self.sent,
            self.acked,
            self.committed,
            self.duplicates,
            self.dead_letters,
            self.shared_slots,
            self.shared_gaps,
            if self.problems.is_empty() { " balanced" } else { " NOT BALANCED" }
        )?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n          {problem}"))
    }
}

impl Books {
    /// One problem for all of `places`, and some of them by name.
    fn note<T: fmt::Debug>(&mut self, what: &str, places: &[T]) {
        if !places.is_empty() {
            let named = &places[..places.len().min(NAMED_MOST)];
            self.problems.push(format!("{}: {what}, such as {named:?}", places.len()));
        }
    }
}

/// What the counters of core said before the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    since_ms: i64,
    duplicates: i64,
}

/// What the books of a tenant are added up from, beside the database.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    pub(super) tenant: Tenant,
    pub(super) own: Own,
    pub(super) record: Record,
    pub(super) before: Before,
    /// The real poller's clock was wrong for a while.
    pub(super) has_wrong_clock: bool,
    /// Something was done that makes the real poller miss slots.
    pub(super) is_disturbed: bool,
    /// When everything was mended and nothing waited any more; unix milliseconds.
    pub(super) until_ms: i64,
    /// When the disk of its leaf was replaced in this run.
    pub(super) disk_replaced_ms: Option<(i64, i64)>,
    /// Since then nothing has gone through the second lane, so that one transaction followed the other.
    pub(super) ordered_from_ms: i64,
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
                      (select count(*) from everywhere.result r where r.tenant_id = (select tenant_id from platform.tenant where slug = $1)),
                      (select count(*) from everywhere.dead_letter d where d.tenant_id = (select tenant_id from platform.tenant where slug = $1))
               from everywhere.ingest_count c join platform.tenant t using (tenant_id) where t.slug = $1";
    let row: (i64, i64, i64, i64, i64) =
        sqlx::query_as(sql).bind(tenant.slug()).fetch_one(witness).await.context("read counters")?;
    Ok(Counted { results: row.0, letters: row.1, duplicates: row.2, rows: row.3, kept: row.4 })
}

impl Before {
    /// # Errors
    /// When the database does not answer.
    pub(super) async fn read(witness: &PgPool, tenant: Tenant, since_ms: i64) -> anyhow::Result<Self> {
        Ok(Self { since_ms, duplicates: counted(witness, tenant).await?.duplicates })
    }
}

async fn hold_counters(witness: &PgPool, evidence: &Evidence, books: &mut Books) -> anyhow::Result<()> {
    let counted = counted(witness, evidence.tenant).await?;
    books.duplicates = counted.duplicates - evidence.before.duplicates;
    if counted.results != counted.rows {
        books.problems.push(format!("core counted {} results, and there are {}", counted.results, counted.rows));
    }
    if counted.letters != counted.kept {
        books.problems.push(format!("core counted {} dead letters, and there are {}", counted.letters, counted.kept));
    }
    let repeated = evidence.record.repeated_rows;
    if u64::try_from(books.duplicates).unwrap_or(0) < repeated {
        books.problems.push(format!("{repeated} rows were sent again, {} were refused", books.duplicates));
    }
    Ok(())
}

/// Adds up one tenant's books.
///
/// # Errors
/// When the database does not answer; an imbalance is in the books.
pub(super) async fn balance(world: &World, evidence: &Evidence) -> anyhow::Result<Books> {
    let (record, witness) = (&evidence.record, &world.witness);
    let stored = stored(witness, evidence).await?;
    let mut books = Books {
        tenant: evidence.tenant.slug().to_owned(),
        sent: record.rows.len(),
        acked: record.rows.values().filter(|sent| sent.is_acked).count(),
        attempts: record.attempts,
        committed: stored.values().map(Vec::len).sum(),
        repeated: record.repeated_rows,
        ..Books::default()
    };
    rows::hold(evidence, &stored, &mut books);
    letters::hold(witness, evidence, &mut books).await?;
    foreign::hold(witness, evidence, &mut books).await?;
    state::hold(witness, evidence, &mut books).await?;
    if !evidence.is_disturbed {
        gaps::hold(witness, evidence, &mut books).await?;
    }
    hold_counters(witness, evidence, &mut books).await?;
    shares::hold(world, evidence, &mut books).await?;
    Ok(books)
}
