//! No row is a tenant's that its own pollers did not send: of none, at any time.

use anyhow::Context;
use sqlx::PgPool;

use super::{Books, Evidence};

/// Rows of `$1` beside its own, and rows that are nobody's.
const FOREIGN: &str = "
with row_of as (
    select 'result' as what, tenant_id, format('%s/%s %s', vantage, poller, check_name) as whose,
           vantage || '/' || poller || ' ' || check_name = any($2) as is_own from everywhere.result
    union all
    select 'check_state', tenant_id, format('%s/%s %s', vantage, poller, check_name),
           vantage || '/' || poller || ' ' || check_name = any($2) from everywhere.check_state
    union all
    select 'poller_seen', tenant_id, format('%s/%s', site, poller),
           site || '/' || poller = any($3) from everywhere.poller_seen
    union all
    select 'dead_letter', tenant_id, subject,
           subject = any(select format('t.%s.%s', account_key, own)
                         from platform.tenant cross join unnest($4) own where slug = $1) from everywhere.dead_letter
)
select format('%s of %s (%s rows)', what, whose, count(*)) from row_of r left join platform.tenant t using (tenant_id)
where t.slug is null or (t.slug = $1 and not is_own) group by what, whose
union all
select format('unclaimed dead letter: %s %s', reason, subject) from platform.unclaimed_dead_letter";

pub(super) async fn hold(witness: &PgPool, evidence: &Evidence, books: &mut Books) -> anyhow::Result<()> {
    let own = &evidence.own;
    let found: Vec<String> = sqlx::query_scalar(FOREIGN)
        .bind(evidence.tenant.slug())
        .bind(own.measurements())
        .bind(own.pollers())
        .bind(own.subjects())
        .fetch_all(witness)
        .await
        .context("look for foreign rows")?;
    books.note("rows are under this tenant that are not its own", &found);
    Ok(())
}
