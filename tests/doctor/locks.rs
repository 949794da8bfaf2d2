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

/// Results that came from the future, and batches that were refused.
pub(crate) async fn clocks_and_dead_letters(patient: &Patient) -> anyhow::Result<()> {
    let of_acme = "select tenant_id from platform.tenant where slug = 'acme-corp'";
    let ahead = format!(
        "insert into shared.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select ({of_acme}), 'ahead', date_trunc('second', now()), 'oslo', 'p1', 'tcp', 'ok', now() + interval '30 s', 0,
                false, true;
         insert into shared.check_state (tenant_id, check_name, vantage, poller, kind, slot, outcome, since)
         select tenant_id, check_name, vantage, poller, kind, slot, outcome, slot from shared.result
         where check_name = 'ahead'"
    );
    let dead = format!(
        "insert into shared.dead_letter values (({of_acme}), 'x', 0, 'signature', '', 'RESULTS', 'x', '', '', 1, now());
         insert into platform.unclaimed_dead_letter values ('x', 'A', 'unknown', 'x', '', '')"
    );
    for (open, close, area, expected) in [
        (
            ahead.as_str(),
            "delete from shared.check_state where check_name = 'ahead'; delete from shared.result where check_name = 'ahead'",
            "clock",
            &["warn clock-poller acme-corp/oslo/p1"][..],
        ),
        (
            &dead,
            "delete from shared.dead_letter; delete from platform.unclaimed_dead_letter",
            "streams",
            &["warn dead-letters acme-corp", "warn dead-letters accounts that are no tenants"],
        ),
    ] {
        run(patient, open).await?;
        let said = patient.has(&[area], expected).await?;
        assert_eq!(said.code, 2, "warnings only");
        run(patient, close).await?;
        patient.is_well(&[area]).await?;
    }
    Ok(())
}

async fn run(patient: &Patient, sql: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&patient.witness).await?;
    Ok(())
}
