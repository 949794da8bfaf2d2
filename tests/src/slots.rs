//! Whether a result is missing: every slot of a check, from its first to its last, has a row.

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::LIMIT;
use sqlx::PgPool;

/// How far apart the slots of the checks are that `up` sets up.
const INTERVAL_S: i32 = 5;

/// Tenant, site, check, and the slots before and after what is missing.
pub type Gap = (String, String, String, String, String);

/// Which slots are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Slots {
    /// Checks whose names begin so are left out; empty: none.
    pub without: &'static str,
    /// In unix milliseconds, from and to.
    pub period_ms: (i64, i64),
}

impl Slots {
    /// Every slot of every check.
    pub const ALL: Self = Self { without: "", period_ms: (0, 253_402_300_799_000) };

    /// Places in the database where a slot has no row.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn gaps(self, witness: &PgPool) -> anyhow::Result<Vec<Gap>> {
        let sql = "with step as (
                     select t.slug, r.vantage, r.check_name, r.slot, lead(r.slot) over (
                       partition by t.slug, r.vantage, r.check_name order by r.slot) as next
                     from everywhere.result r join platform.tenant t using (tenant_id)
                     where ($1 = '' or not starts_with(r.check_name, $1))
                       and extract(epoch from r.slot) * 1000 between $3 and $4)
                   select slug, vantage, check_name, slot::text, next::text from step
                   where next - slot <> make_interval(secs => $2)";
        let (since_ms, until_ms) = self.period_ms;
        let gaps = sqlx::query_as(sql)
            .bind(self.without)
            .bind(f64::from(INTERVAL_S))
            .bind(since_ms as f64)
            .bind(until_ms as f64)
            .fetch_all(witness)
            .await;
        gaps.context("look for gaps")
    }

    /// Waits until no slot is missing: what was late is stored by then, whichever way it took.
    ///
    /// # Errors
    /// When that takes too long; the error names a gap.
    pub async fn wait_until_gapless(self, witness: &PgPool) -> anyhow::Result<()> {
        let waited = eventually("a row for every slot", LIMIT, || async {
            let gaps = self.gaps(witness).await.map_err(|error| format!("{error:#}"))?;
            if gaps.is_empty() { Ok(()) } else { Err(format!("{} gaps, such as {:?}", gaps.len(), gaps[0])) }
        });
        waited.await.context("wait until no slot is missing")
    }
}
