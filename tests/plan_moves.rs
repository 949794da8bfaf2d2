//! A plan that moves a tenant's rows, as an operator gives it: while pollers measure, and killed in the middle.

use anyhow::Context;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{LIMIT, TestDeployment};
use bulkhead_tests::operator::Operator;
use bulkhead_tests::slots::Slots;
use sqlx::PgPool;

/// Rows of old days, so that a move takes long enough to be killed in its middle.
const OLD_ROWS: i64 = 120_000;
/// Slots of what pollers measure.
const REAL: Slots = Slots { without: "old", ..Slots::ALL };

async fn rows_in(witness: &PgPool, schema: &str, check: &str) -> anyhow::Result<i64> {
    let sql = format!(
        "select count(*) from {schema}.result join platform.tenant t using (tenant_id)
         where t.slug = 'xyz-inc' and (check_name = 'old') = ($1 = 'old')"
    );
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(check).fetch_one(witness).await.context("count rows")
}

/// What the command line shows, and whether its newest row is newer than `since_ms`.
async fn is_current(operator: &Operator<'_>, since_ms: i64) -> Result<(), String> {
    let asked = operator.expect(0, &["results", "list", "--tenant", "xyz-inc", "--limit", "5"]).await;
    let (rows, _) = asked.map_err(|error| format!("{error:#}"))?;
    let newest = rows.iter().filter_map(|row| row["slot_ms"].as_i64()).max().unwrap_or(0);
    if newest >= since_ms { Ok(()) } else { Err(format!("the newest row is {} ms old", now_ms() - newest)) }
}

async fn shown_isolation(operator: &Operator<'_>) -> anyhow::Result<String> {
    let profile = operator.home.join("profiles/ops.toml").display().to_string();
    let (rows, _) = operator.expect(0, &["tenant", "list", "--profile", &profile]).await?;
    let row = rows.iter().find(|row| row["tenant"] == "xyz-inc").context("xyz-inc is listed")?;
    Ok(row["isolation"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_plan_moves_rows_while_results_arrive_and_is_killed_in_the_middle() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    let operator = Operator { home: deployment.home() };
    deployment.wait_for_results(&witness).await?;
    let fill = "select shared.ensure_result_partition(current_date - n) from generate_series(1, 3) n;
                insert into shared.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                           island, attested, received_at)
                select tenant_id, 'old', date_trunc('day', now()) - interval '1 second' * n, 'lima', 'p1', 'tcp', 'ok', now(), 0,
                       false, true, now() - interval '1 day'
                from platform.tenant, generate_series(1, 120000) n where slug = 'xyz-inc'";
    sqlx::raw_sql(fill).execute(&witness).await.context("fill old days")?;

    // Killed while history is copied, and while messages are held.
    operator.kill_when_it_says(&["tenant", "plan", "xyz-inc", "enterprise"], "copying results").await?;
    assert_eq!(shown_isolation(&operator).await?, "shared");
    deployment.wait_for_results(&witness).await.context("after a kill while copying")?;
    operator.kill_when_it_says(&["tenant", "plan", "xyz-inc", "enterprise"], "are the same in both places").await?;
    // Whoever is not there any more holds nothing: results go on, wherever they are by now.
    let killed = now_ms();
    eventually("results go on after a kill", LIMIT, || is_current(&operator, killed)).await?;
    let before = now_ms();
    let (rows, said) = operator.expect(0, &["tenant", "plan", "xyz-inc", "enterprise"]).await?;
    anyhow::ensure!(rows[0]["tenant"] == "xyz-inc", "{rows:?} {said}");
    eventually("results go on", LIMIT, || is_current(&operator, before)).await?;
    assert_eq!(shown_isolation(&operator).await?, "schema");
    assert_eq!(rows_in(&witness, "tenant_xyz_inc", "old").await?, OLD_ROWS);
    assert_eq!((rows_in(&witness, "shared", "old").await?, rows_in(&witness, "shared", "new").await?), (0, 0));
    REAL.wait_until_gapless(&witness).await?;

    // And back, with the other tenant's schema where it was.
    let before = now_ms();
    operator.expect(0, &["tenant", "plan", "xyz-inc", "free"]).await?;
    eventually("results go on", LIMIT, || is_current(&operator, before)).await?;
    assert_eq!(shown_isolation(&operator).await?, "shared");
    assert_eq!(rows_in(&witness, "shared", "old").await?, OLD_ROWS);
    let schemas: Vec<String> =
        sqlx::query_scalar("select schema from platform.tenant_schema").fetch_all(&witness).await?;
    assert_eq!(schemas, ["tenant_acme_corp"]);
    REAL.wait_until_gapless(&witness).await?;
    // Control: a slot that is taken away is found missing.
    let middle = "delete from shared.result where slot = (
                      select slot from shared.result where check_name <> 'old' order by slot offset 12 limit 1)";
    sqlx::query(middle).execute(&witness).await?;
    anyhow::ensure!(!REAL.gaps(&witness).await?.is_empty(), "a missing slot goes unseen");

    let (versions, _) = operator.expect(0, &["db", "status"]).await?;
    let shown: Vec<&str> = versions.iter().filter_map(|row| row["schema"].as_str()).collect();
    assert_eq!(shown, ["platform", "shared", "tenant_acme_corp"]);
    operator.expect(0, &["doctor", "--area", "permissions", "--area", "drift"]).await?;
    deployment.stop().await
}
