//! The current state of each check follows from the rows of its history.
//!
//! The newest slot's row, whole. And `since`: the first slot of the run of one outcome that the newest row is in, of
//! the rows that came in order. A row that comes after a newer one of its check neither begins nor breaks a run: core
//! sees the state that is there, not the history. That holds as long as one transaction follows the other; while the
//! second lane is in use it has a writer of its own, and then `since` is only a slot of that outcome. So it is where rows
//! took the place of others, as after a clock that was ahead: the slot that it is since may have another outcome by now.

use anyhow::Context;
use sqlx::PgPool;

use super::{Books, Evidence};

/// Of each check of `$1` and vantage: what its state says, and what its rows say.
const STATES: &str = "
with r as (
    select r.* from everywhere.result r join platform.tenant t using (tenant_id) where t.slug = $1
), s as (
    select s.* from everywhere.check_state s join platform.tenant t using (tenant_id) where t.slug = $1
), newest as (
    select distinct on (check_name, vantage) * from r order by check_name, vantage, slot desc
), written as (
    -- What one transaction stored has one time.
    select check_name, vantage, received_at, max(max(slot)) over (
        partition by check_name, vantage order by received_at rows between unbounded preceding and 1 preceding
    ) as newer from r group by check_name, vantage, received_at
), in_order as (
    select r.* from r join written w using (check_name, vantage, received_at) where w.newer is null or r.slot >= w.newer
), change as (
    select check_name, vantage, max(i.slot) filter (where i.outcome <> n.outcome) as slot
    from in_order i join newest n using (check_name, vantage) group by check_name, vantage
), run as (
    select check_name, vantage, min(i.slot) as since from in_order i join change c using (check_name, vantage)
    where c.slot is null or i.slot > c.slot group by check_name, vantage
)
select coalesce(n.check_name, s.check_name) || ' at ' || coalesce(n.vantage, s.vantage),
       format('%s %s %s %s %L %L', s.slot, s.poller, s.kind, s.outcome, s.reason, s.latency_us),
       format('%s %s %s %s %L %L', n.slot, n.poller, n.kind, n.outcome, n.reason, n.latency_us),
       s.since::text, run.since::text,
       s.since <= s.slot and exists (
           -- A row in another's place may have another outcome than that one had.
           select from r where r.check_name = s.check_name and r.vantage = s.vantage and r.slot = s.since
                           and (r.outcome = s.outcome or r.revision > 0)),
       -- A row in another's place says when it came itself, not when that one came.
       run.since >= to_timestamp($2::float8 / 1000) and not exists (
           select from r where r.check_name = s.check_name and r.vantage = s.vantage and r.revision > 0)
from newest n full join s using (check_name, vantage) left join run using (check_name, vantage)";

/// One line of [`STATES`].
#[derive(sqlx::FromRow)]
struct Line(String, String, String, Option<String>, Option<String>, Option<bool>, Option<bool>);

pub(super) async fn hold(witness: &PgPool, evidence: &Evidence, books: &mut Books) -> anyhow::Result<()> {
    let lines = sqlx::query_as(STATES).bind(evidence.tenant.slug()).bind(evidence.ordered_from_ms as f64);
    let lines = lines.fetch_all(witness).await;
    let lines: Vec<Line> = lines.context("read states")?;
    let (mut wrong, mut wrong_since) = (Vec::new(), Vec::new());
    for Line(whose, found, expected, since, expected_since, is_of_its_outcome, is_exact) in lines {
        if found != expected {
            wrong.push(format!("{whose}: {found}, its newest row is {expected}"));
        }
        let is_right = if is_exact == Some(true) { since == expected_since } else { is_of_its_outcome == Some(true) };
        if !is_right {
            wrong_since.push(format!("{whose}: since {since:?}, its rows say {expected_since:?}"));
        }
    }
    books.note("the current state is not the newest row", &wrong);
    books.note("the current state is since another slot than the rows say", &wrong_since);
    Ok(())
}
