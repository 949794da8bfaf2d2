//! Whether a result is missing: every slot of a check, from its first to its last, has a row.

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::LIMIT;
use sqlx::PgPool;

/// How far apart the slots of the checks are that `up` sets up.
const INTERVAL_S: i32 = 5;
/// Checks that only tests send results of have names that begin so.
pub(crate) const FORGED: &str = "raw-";

type Gap = (String, String, String, String, String);

/// Places in the database where a slot has no row: tenant, site, check, the slots before and after.
async fn find_gaps(witness: &PgPool) -> anyhow::Result<Vec<Gap>> {
    let sql = "with step as (
                 select t.slug, r.vantage, r.check_name, r.slot, lead(r.slot) over (
                   partition by t.slug, r.vantage, r.check_name order by r.slot) as next
                 from everywhere.result r join platform.tenant t using (tenant_id)
                 where not starts_with(r.check_name, $1))
               select slug, vantage, check_name, slot::text, next::text from step
               where next - slot <> make_interval(secs => $2)";
    sqlx::query_as(sql).bind(FORGED).bind(f64::from(INTERVAL_S)).fetch_all(witness).await.context("look for gaps")
}

/// Waits until no slot is missing: what was late is stored by then, whichever way it took.
pub(crate) async fn wait_until_gapless(witness: &PgPool) -> anyhow::Result<()> {
    let waited = eventually("a row for every slot", LIMIT, || async {
        let gaps = find_gaps(witness).await.map_err(|error| format!("{error:#}"))?;
        if gaps.is_empty() { Ok(()) } else { Err(format!("{} gaps, such as {:?}", gaps.len(), gaps[0])) }
    });
    waited.await.context("wait until no slot is missing")
}
