//! The database's locks, each opened and closed again.

use crate::patient::Patient;

pub(crate) async fn row_security_roles_and_grants(patient: &Patient) -> anyhow::Result<()> {
    let partition: String = sqlx::query_scalar(
        "select relname::text from pg_class where relispartition and relkind = 'r' and relname like 'result\\_%' limit 1",
    )
    .fetch_one(&patient.witness)
    .await?;
    let on_partition = |sql: &str| sql.replace("PARTITION", &format!("shared.{partition}"));
    let cases = [
        (
            "alter table shared.result disable row level security".to_owned(),
            "alter table shared.result enable row level security".to_owned(),
            "fail row-security result".to_owned(),
        ),
        (
            on_partition("alter table PARTITION no force row level security"),
            on_partition("alter table PARTITION force row level security"),
            format!("fail row-security {partition}"),
        ),
        (
            "create policy everybody on shared.site using (true)".to_owned(),
            "drop policy everybody on shared.site".to_owned(),
            "fail row-policy site".to_owned(),
        ),
        (
            "grant delete on shared.site to bulkhead_core".to_owned(),
            "revoke delete on shared.site from bulkhead_core".to_owned(),
            "fail table-grants site".to_owned(),
        ),
        (
            on_partition("grant select on PARTITION to public"),
            on_partition("revoke all on PARTITION from public"),
            format!("fail table-grants {partition}"),
        ),
        (
            "alter role bulkhead_core bypassrls".to_owned(),
            "alter role bulkhead_core nobypassrls".to_owned(),
            "fail database-role bulkhead_core".to_owned(),
        ),
        (
            "grant bulkhead_owner to bulkhead_core".to_owned(),
            "revoke bulkhead_owner from bulkhead_core".to_owned(),
            "fail database-role bulkhead_core".to_owned(),
        ),
    ];
    for (open, close, expected) in cases {
        run(patient, &open).await?;
        patient.has(&["permissions"], &[&expected]).await?;
        run(patient, &close).await?;
        patient.is_well(&["permissions"]).await?;
    }
    Ok(())
}

async fn run(patient: &Patient, sql: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&patient.witness).await?;
    Ok(())
}
