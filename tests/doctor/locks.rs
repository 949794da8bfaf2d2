//! The database's locks, each opened and closed again.

use crate::patient::Patient;

/// What opens a lock, what closes it again, and what is found meanwhile. PARTITION is one of the results' partitions.
const LOCKS: [[&str; 3]; 12] = [
    [
        "alter table shared.result disable row level security",
        "alter table shared.result enable row level security",
        "fail row-security shared.result",
    ],
    [
        "alter table shared.PARTITION no force row level security",
        "alter table shared.PARTITION force row level security",
        "fail row-security shared.PARTITION",
    ],
    [
        "create policy everybody on shared.site using (true)",
        "drop policy everybody on shared.site",
        "fail row-policy shared.site",
    ],
    [
        "grant delete on shared.site to bulkhead_core",
        "revoke delete on shared.site from bulkhead_core",
        "fail table-grants shared.site",
    ],
    [
        "grant select on shared.PARTITION to public",
        "revoke all on shared.PARTITION from public",
        "fail table-grants shared.PARTITION",
    ],
    [
        "revoke insert on shared.result from bulkhead_core",
        "grant insert on shared.result to bulkhead_core",
        "fail table-grants shared.result",
    ],
    [
        "revoke all on platform.unclaimed_dead_letter from bulkhead_core",
        "grant select, insert on platform.unclaimed_dead_letter to bulkhead_core",
        "fail table-grants platform.unclaimed_dead_letter",
    ],
    [
        "revoke execute on function shared.ensure_result_partition(date) from bulkhead_core",
        "grant execute on function shared.ensure_result_partition(date) to bulkhead_core",
        "fail table-grants function shared.ensure_result_partition(date)",
    ],
    [
        "alter role bulkhead_core set default_transaction_read_only = on",
        "alter role bulkhead_core reset default_transaction_read_only",
        "fail role-settings role bulkhead_core",
    ],
    [
        "alter role bulkhead_core connection limit 0",
        "alter role bulkhead_core connection limit -1",
        "fail role-settings role bulkhead_core",
    ],
    ["alter role bulkhead_core bypassrls", "alter role bulkhead_core nobypassrls", "fail database-role bulkhead_core"],
    [
        "grant bulkhead_owner to bulkhead_core",
        "revoke bulkhead_owner from bulkhead_core",
        "fail database-role bulkhead_core",
    ],
];

pub(crate) async fn row_security_roles_and_grants(patient: &Patient) -> anyhow::Result<()> {
    let partition: String = sqlx::query_scalar(
        "select relname::text from pg_class where relispartition and relkind = 'r' and relnamespace = 'shared'::regnamespace limit 1",
    )
    .fetch_one(&patient.witness)
    .await?;
    for lock in LOCKS {
        let [open, close, expected] = lock.map(|text| text.replace("PARTITION", &partition));
        run(patient, &open).await?;
        patient.has(&["permissions"], &[&expected]).await?;
        run(patient, &close).await?;
        patient.is_well(&["permissions"]).await?;
    }
    Ok(())
}

/// What is committed may be forgotten: `alter system` is for the superuser, outside of a transaction.
pub(crate) async fn a_database_that_forgets(patient: &Patient) -> anyhow::Result<()> {
    for (open, close, expected) in [
        ("alter system set fsync = off", "alter system reset fsync", "fail database-durability server"),
        (
            "alter system set full_page_writes = off",
            "alter system reset full_page_writes",
            "fail database-durability server",
        ),
        (
            "alter system set synchronous_commit = off",
            "alter system reset synchronous_commit",
            "warn database-durability server",
        ),
        (
            "alter role bulkhead_core set synchronous_commit = off",
            "alter role bulkhead_core reset synchronous_commit",
            "warn database-durability role bulkhead_core",
        ),
    ] {
        run(patient, open).await?;
        run(patient, "select pg_reload_conf()").await?;
        let said = patient.has(&["disks"], &[expected]).await;
        run(patient, close).await?;
        run(patient, "select pg_reload_conf()").await?;
        said?;
        patient.is_well(&["disks"]).await?;
    }
    Ok(())
}

/// Results that came from the future, and batches that were refused.
pub(crate) async fn clocks_and_dead_letters(patient: &Patient) -> anyhow::Result<()> {
    let of_acme = "select tenant_id from platform.tenant where slug = 'acme-corp'";
    let ahead = format!(
        "insert into tenant_acme_corp.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select ({of_acme}), 'ahead', date_trunc('second', now()), 'oslo', 'p1', 'tcp', 'ok', now() + interval '30 s', 0,
                false, true;
         insert into tenant_acme_corp.check_state (tenant_id, check_name, vantage, poller, kind, slot, outcome, since)
         select tenant_id, check_name, vantage, poller, kind, slot, outcome, slot from tenant_acme_corp.result
         where check_name = 'ahead'"
    );
    let dead = format!(
        "insert into tenant_acme_corp.dead_letter values (({of_acme}), 'x', 0, 'signature', '', 'RESULTS', 'x', '', '', 1, now());
         insert into platform.unclaimed_dead_letter values ('x', 'A', 'unknown', 'x', '', '')"
    );
    for (open, close, area, expected) in [
        (
            ahead.as_str(),
            "delete from tenant_acme_corp.check_state where check_name = 'ahead'; delete from tenant_acme_corp.result where check_name = 'ahead'",
            "clock",
            &["warn clock-poller acme-corp/oslo/p1"][..],
        ),
        (
            &dead,
            "delete from tenant_acme_corp.dead_letter; delete from platform.unclaimed_dead_letter",
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
