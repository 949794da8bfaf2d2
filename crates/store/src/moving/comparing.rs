//! Whether rows are the same in both places.

use bulkhead_bus::Tenant;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{Span, other};
use crate::isolation::{Isolation, Place};
use crate::provisioning::{ProvisioningError, failed};
use crate::tenant_rows::{RESULT, count};

/// Of what was copied nothing is other than where it came from, but for what has come there since. Everything that is copied later
/// is compared while messages are held; this takes long, and nobody waits for it.
pub(super) async fn compare_history(
    tx: &mut PgConnection,
    tenant: &Tenant,
    from: Isolation,
    span: &Span,
) -> Result<(), ProvisioningError> {
    let (source, target) = (Place::of(tenant, from).schema, Place::of(tenant, other(from)).schema);
    let sql = format!(
        "select count(*) filter (where s.tenant_id is not null), count(*) filter (where is_other) from (
             select s.tenant_id, s.tenant_id is null or s.revision = t.revision and row(s.*) is distinct from row(t.*) as is_other
             from {target}.result t left join {source}.result s using (tenant_id, check_name, slot, vantage)
             where t.tenant_id = $1 and t.slot >= $2 and t.slot < $3) s"
    );
    let row =
        sqlx::query(AssertSqlSafe(sql)).bind(tenant.id.as_uuid()).bind(span.from).bind(span.to).fetch_one(tx).await;
    let row = row.map_err(failed("compare what was moved"))?;
    match row.get(1) {
        0 => Ok(()),
        others => {
            let there: i64 = row.get(0);
            Err(ProvisioningError::NotTheSame { table: RESULT.to_owned(), there, here: there - others })
        }
    }
}

/// How many results both places have, when it is as many.
pub(super) async fn same_count(
    tx: &mut PgConnection,
    tenant: &Tenant,
    (source, target): (&str, &str),
) -> Result<u64, ProvisioningError> {
    let which = format!("tenant_id = '{}'", tenant.id.as_uuid());
    let there = count(tx, &format!("{source}.{RESULT}"), &which).await?;
    let here = count(tx, &format!("{target}.{RESULT}"), &which).await?;
    if there == here {
        return Ok(here);
    }
    let signed = |rows: u64| i64::try_from(rows).unwrap_or(i64::MAX);
    Err(ProvisioningError::NotTheSame { table: RESULT.to_owned(), there: signed(there), here: signed(here) })
}

/// How many rows both places have of a table, when they have the same.
pub(super) async fn compare(
    tx: &mut PgConnection,
    tenant: &Tenant,
    (source, target): (&str, &str),
    (table, which): (&str, &str),
) -> Result<u64, ProvisioningError> {
    let mut found = Vec::new();
    for schema in [source, target] {
        let sql = format!(
            "select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text
             from {schema}.{table} t where tenant_id = $1 and {which}"
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
