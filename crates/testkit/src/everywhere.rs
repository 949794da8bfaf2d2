//! Tenants' rows wherever they are, for a witness: `everywhere.result` is `shared.result` and that table of every tenant's own
//! schema together. Only for looking; whoever changes rows names the schema.

use anyhow::Context;
use sqlx::{AssertSqlSafe, PgPool};

/// A schema that is just being made or dropped has no rows to show.
const MAKE: &str = "
begin;
select pg_advisory_xact_lock(hashtext('everywhere'));
create schema if not exists everywhere;
create or replace function everywhere.rows(sample anyelement, name text) returns setof anyelement
language plpgsql as $$
declare
    place text;
begin
    for place in select 'shared' union all select schema from platform.tenant_schema order by 1 loop
        begin
            return query execute format('select * from %I.%I', place, name);
        exception when undefined_table or invalid_schema_name or datatype_mismatch then
            null;
        end;
    end loop;
end
$$;
revoke all on function everywhere.rows(anyelement, text) from public;
";

const TABLES: [&str; 6] = ["site", "poller", "poller_seen", "result", "check_state", "dead_letter"];

pub(crate) async fn make(pool: &PgPool) -> anyhow::Result<()> {
    let view = |table: &&str| {
        format!(
            "create or replace view everywhere.{table} as select * from everywhere.rows(null::shared.{table}, '{table}');\n"
        )
    };
    let views: String = TABLES.iter().map(view).collect();
    // A tenant's row in the place where it is not only says so.
    let counts = "create or replace view everywhere.ingest_count as
                  select * from everywhere.rows(null::shared.ingest_count, 'ingest_count') where not moved; commit";
    let sql = format!("{MAKE}{views}{counts}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map(|_| ()).context("make what shows rows everywhere")
}
