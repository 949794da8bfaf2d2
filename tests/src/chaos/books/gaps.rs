//! Where nobody touched the real poller, each slot of the checks in its settings is there, and none between them. Those that are
//! shared out may be handed over meanwhile; they have a book of their own.

use anyhow::Context;
use sqlx::PgPool;

use super::{Books, Evidence};

/// Between the first and the last slot of each check since `$3`: those that are missing, and those that are none. A check
/// that has no row at all is named too.
const GAPS: &str = "
with r as (
    select check_name, slot from everywhere.result r join platform.tenant t using (tenant_id)
    where t.slug = $1 and r.vantage || '/' || r.poller || ' ' || r.check_name = any($2)
      and r.vantage || '/' || r.poller = $5
      and r.slot between to_timestamp($3::float8 / 1000) and now()
), due as (
    select check_name, generate_series(min(slot), max(slot), make_interval(secs => $4)) as slot from r group by check_name
)
select format('%s misses %s', check_name, slot) from (select * from due except select * from r) missing
union all
select format('%s has %s', check_name, slot) from (select * from r except select * from due) more
union all
select format('%s has none', own) from unnest($2) own
where not exists (select from r where own = $5 || ' ' || r.check_name)";

pub(super) async fn hold(witness: &PgPool, evidence: &Evidence, books: &mut Books) -> anyhow::Result<()> {
    let own = &evidence.own;
    let gaps: Vec<String> = sqlx::query_scalar(GAPS)
        .bind(evidence.tenant.slug())
        .bind(own.settled_measurements())
        .bind(evidence.before.since_ms as f64)
        .bind(own.interval_s)
        .bind(own.real_poller())
        .fetch_all(witness)
        .await
        .context("look for gaps")?;
    books.note("slots of the real poller are not as its interval says", &gaps);
    Ok(())
}
