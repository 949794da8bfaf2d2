//! A database that refuses what is good, because a right, a column or a row that it needs is not as it should be: core
//! says so, nothing is buried, and everything is stored once it is mended.

use std::fs;

use anyhow::Context;
use bulkhead_runtime::eventually;
use bulkhead_testkit::database::batch_key;
use bulkhead_testkit::{LIMIT, TestDeployment};
use sqlx::{AssertSqlSafe, PgPool};

use crate::HONEST;

const CORE: &str = "core";
/// How often core shall have tried in vain before the database is mended.
const REFUSALS_LEAST: f64 = 10.0;

/// What is done to the database, how it is mended, and what core's log says of it.
struct Fault {
    breaks: &'static str,
    mends: &'static str,
    said: &'static str,
}

/// Waits for results of the tenant whose key is whole.
async fn wait_for_more(deployment: &TestDeployment, witness: &PgPool) -> anyhow::Result<()> {
    let before = deployment.stored(witness, "xyz-inc").await?;
    let waited = eventually("results of the other tenant", LIMIT, || async {
        let more = deployment.stored(witness, "xyz-inc").await.map_err(|error| format!("{error:#}"))? - before;
        if more >= 10 { Ok(()) } else { Err(more.to_string()) }
    });
    Ok(waited.await?)
}

/// One poller's key is damaged: its batches wait, and nobody else's do.
async fn damage_a_key(deployment: &TestDeployment, witness: &PgPool) -> anyhow::Result<()> {
    let change = |from: &str, to: &str| {
        format!(
            "update tenant_acme_corp.poller p set batch_key = {to} || substr(batch_key, {from}) from platform.tenant t
             where t.tenant_id = p.tenant_id and t.slug = 'acme-corp'"
        )
    };
    let stored = async |tenant| deployment.stored(witness, tenant).await;
    sqlx::raw_sql(AssertSqlSafe(change("1", "'no key: '"))).execute(witness).await.context("damage a key")?;
    // The keys that core knows are a second old at most.
    let said = "batch key of acme-corp/oslo/p1 is not readable";
    let log = || fs::read_to_string(deployment.up.layout.log("core")).map_err(|error| error.to_string());
    let waited = eventually("a word in the log", LIMIT, || async {
        log().and_then(|log| if log.contains(said) { Ok(()) } else { Err("nothing".to_owned()) })
    });
    waited.await.context("wait for the log")?;
    // What was decided about before is stored.
    wait_for_more(deployment, witness).await?;
    let acme = stored("acme-corp").await?;
    wait_for_more(deployment, witness).await.context("one damaged row stops others")?;
    assert_eq!((stored("acme-corp").await?, dead_letters(witness).await?), (acme, 0));
    sqlx::raw_sql(AssertSqlSafe(change("9", "''"))).execute(witness).await.context("mend the key")?;
    deployment.wait_for_results(witness).await?;
    HONEST.wait_until_gapless(witness).await?;
    assert_eq!(dead_letters(witness).await?, 0, "good results are buried");
    let log = log().map_err(anyhow::Error::msg)?;
    assert_eq!(log.matches(said).count(), 1, "said once: {log}");
    Ok(())
}

const FAULTS: [Fault; 4] = [
    Fault {
        breaks: "revoke insert on SCHEMA.result from ROLE",
        mends: "grant insert on SCHEMA.result to ROLE",
        said: "permission denied for table result",
    },
    Fault {
        breaks: "alter table SCHEMA.result rename column latency_us to latency",
        mends: "alter table SCHEMA.result rename column latency to latency_us",
        said: "column \"latency_us\"",
    },
    Fault {
        breaks: "alter table SCHEMA.poller_seen rename to poller_was_seen",
        mends: "alter table SCHEMA.poller_was_seen rename to poller_seen",
        said: "relation \"poller_seen\" does not exist",
    },
    Fault {
        breaks: "alter table SCHEMA.ingest_count add column ours integer not null default 1;
                 alter table SCHEMA.ingest_count alter column ours drop default;
                 delete from SCHEMA.ingest_count",
        mends: "alter table SCHEMA.ingest_count drop column ours",
        said: "null value in column \"ours\"",
    },
];

/// A statement about every schema that has rows of a tenant, SCHEMA, and core's role there, ROLE.
fn everywhere(sql: &str) -> String {
    let places = [("shared", "bulkhead_core"), ("tenant_acme_corp", "tenant_acme_corp_core")];
    let each = places.map(|(schema, role)| sql.replace("SCHEMA", schema).replace("ROLE", role));
    each.join("; ")
}

async fn refusals(deployment: &TestDeployment) -> anyhow::Result<f64> {
    let page = deployment.metrics(CORE).await?;
    page.value("core_database_errors_total", &[("failure", "misconfigured")]).context("refusals of what is good")
}

async fn wait_for_readiness(deployment: &TestDeployment, status: u16, body: &str) -> anyhow::Result<()> {
    let waited = eventually("readiness", LIMIT, || async {
        let answer = deployment.health(CORE, "/readyz").await.map_err(|error| format!("{error:#}"))?;
        if answer.0 == status && answer.1.contains(body) { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    waited.await.with_context(|| format!("wait for {status} {body}"))
}

async fn dead_letters(witness: &PgPool) -> anyhow::Result<i64> {
    let sql =
        "select (select count(*) from everywhere.dead_letter) + (select count(*) from platform.unclaimed_dead_letter)";
    sqlx::query_scalar(sql).fetch_one(witness).await.context("count dead letters")
}

impl Fault {
    async fn pass(&self, deployment: &TestDeployment, witness: &PgPool) -> anyhow::Result<()> {
        let before = refusals(deployment).await?;
        sqlx::raw_sql(AssertSqlSafe(everywhere(self.breaks))).execute(witness).await.context("break the database")?;
        wait_for_readiness(deployment, 503, "away now: database (rights and schema)").await?;
        let waited = eventually("refusals", LIMIT, || async {
            let found = refusals(deployment).await.map_err(|error| format!("{error:#}"))? - before;
            if found >= REFUSALS_LEAST { Ok(()) } else { Err(found.to_string()) }
        });
        waited.await.context("wait for refusals")?;
        assert_eq!(dead_letters(witness).await?, 0, "good results are buried");
        sqlx::raw_sql(AssertSqlSafe(everywhere(self.mends))).execute(witness).await.context("mend the database")?;
        deployment.wait_for_results(witness).await?;
        HONEST.wait_until_gapless(witness).await?;
        wait_for_readiness(deployment, 200, "ready").await?;
        assert_eq!(dead_letters(witness).await?, 0, "good results are buried");
        let log = fs::read_to_string(deployment.up.layout.log("core")).context("read core's log")?;
        let lines = log.lines().filter(|line| line.contains("batches not stored: the database refuses what is good"));
        assert_eq!(lines.filter(|line| line.contains(self.said)).count(), 1, "said once: {log}");
        Ok(())
    }
}

/// A key that is registered while its first batch is on the way: core's keys are up to a second old.
async fn register_late(deployment: &TestDeployment, witness: &PgPool) -> anyhow::Result<()> {
    let sql =
        "select batch_key from everywhere.poller p join platform.tenant t using (tenant_id) where t.slug = 'acme-corp'";
    let key: String = sqlx::query_scalar(sql).fetch_one(witness).await.context("read the key")?;
    let register = async |key: &str| {
        let sql = "update tenant_acme_corp.poller p set batch_key = $1 from platform.tenant t
                   where t.tenant_id = p.tenant_id and t.slug = 'acme-corp'";
        sqlx::query(sql).bind(key).execute(witness).await.context("register a key")
    };
    let retried = async || {
        let page = deployment.metrics(CORE).await?;
        page.value("core_deliveries_retried_total", &[]).context("retried deliveries")
    };
    let before = retried().await?;
    register(batch_key().as_str()).await?;
    let waited = eventually("a batch that waits", LIMIT, || async {
        let found = retried().await.map_err(|error| format!("{error:#}"))?;
        if found > before { Ok(()) } else { Err("none".to_owned()) }
    });
    waited.await?;
    register(&key).await?;
    deployment.wait_for_results(witness).await?;
    HONEST.wait_until_gapless(witness).await?;
    assert_eq!(dead_letters(witness).await?, 0, "good results are buried");
    Ok(())
}

#[tokio::test]
async fn a_misconfigured_database_is_said_and_buries_nothing() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    for fault in &FAULTS {
        fault.pass(&deployment, &witness).await.context(fault.breaks)?;
    }
    deployment.stop().await
}

#[tokio::test]
async fn a_key_that_is_damaged_or_late_buries_nothing() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    damage_a_key(&deployment, &witness).await.context("damage a key")?;
    register_late(&deployment, &witness).await.context("register a key late")?;
    deployment.stop().await
}

/// A database that answers every question and stores nothing.
#[tokio::test]
async fn a_locked_table_is_said_and_loses_nothing() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    let mut lock = witness.begin().await?;
    let both = everywhere("lock table SCHEMA.result in access exclusive mode");
    sqlx::raw_sql(AssertSqlSafe(both)).execute(&mut *lock).await.context("lock")?;
    wait_for_readiness(&deployment, 503, "database (writing)").await?;
    lock.rollback().await?;
    wait_for_readiness(&deployment, 200, "ready").await?;
    HONEST.wait_until_gapless(&witness).await?;
    assert_eq!(dead_letters(&witness).await?, 0);
    deployment.stop().await
}
