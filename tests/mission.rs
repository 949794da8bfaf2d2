//! The two sentences of the mission. In CORE and INTAKE every subject that concerns a tenant begins with `t.<T>.`, which
//! only the server writes; and core shows live streams by an import that can be taken away without touching results.

use std::collections::BTreeSet;

use anyhow::Context;
use bulkhead_bus::members::BUCKETS;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, RawClient, TestDeployment};

/// What is spoken beside the tenants' subjects: JetStream and the server's own record of who asked it, reply subjects made by
/// the server, private inboxes.
const LISTED: [&str; 5] = ["$JS.API.", "$JS.ACK.", "$JS.EVENT.ADVISORY.API", "_R_.", "_INBOX_"];
const SERVICES: [&str; 4] = ["RESULTS", "BACKFILL", "KV_REG_INFO", "KV_REG_LEASE"];

/// Subjects that nobody should have spoken.
fn strangers(subjects: &BTreeSet<String>, tenants: &[String]) -> Vec<String> {
    let is_known = |subject: &&String| {
        let of_tenant = tenants.iter().any(|key| subject.starts_with(&format!("t.{key}.")));
        let of_streams = subject.starts_with("$JS.EVENT.ADVISORY.") && SERVICES.iter().any(|s| subject.contains(s));
        // What the registry keeps begins with whose it is as well.
        let of_members = BUCKETS.iter().any(|bucket| {
            let key = subject.strip_prefix(&format!("$KV.{bucket}.")).and_then(|rest| rest.split('.').next());
            key.is_some_and(|key| tenants.iter().any(|known| known == key))
        });
        of_tenant || of_streams || of_members || LISTED.iter().any(|head| subject.starts_with(head))
    };
    subjects.iter().filter(|subject| !is_known(subject)).cloned().collect()
}

fn heard(wiretap: &RawClient) -> BTreeSet<String> {
    wiretap.received().into_iter().map(|message| message.subject).collect()
}

#[tokio::test]
async fn a_wiretap_in_core_and_intake_hears_only_prefixed_subjects() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    let keys = [deployment.key_of("acme-corp")?, deployment.key_of("xyz-inc")?, deployment.key_of("ops")?];
    let core = deployment.wiretap("core").await?;
    let intake = deployment.wiretap("intake-1").await?;
    deployment.wait_for_results(&witness).await?;
    deployment.rows(&["status"]).await?;
    deployment.rows(&["results", "list", "--tenant", "acme-corp"]).await?;

    // A deaf wiretap would prove nothing: it must have heard the durable way, queries and live streams of both.
    let expected = [
        (&core, format!("t.{}.up.oslo.fwd.results", keys[0])),
        (&core, format!("t.{}.up.lima.fwd.results", keys[1])),
        (&core, format!("t.{}.up._user.admin.rpc.core.show_status", keys[2])),
        (&intake, format!("t.{}.live.oslo.p1.results", keys[0])),
        (&intake, format!("t.{}.live.lima.p1.results", keys[1])),
    ];
    for (wiretap, subject) in &expected {
        wiretap.wait_for(LIMIT, |message| message.subject == *subject).await.with_context(|| subject.clone())?;
    }
    for wiretap in [&core, &intake] {
        assert_eq!(strangers(&heard(wiretap), &keys), Vec::<String>::new());
    }
    // In INTAKE there is nothing but live streams.
    assert!(heard(&intake).iter().all(|subject| subject.contains(".live.")), "{:?}", heard(&intake));

    // Control: a stray subject, and another tenant's prefix in the wrong place, are found.
    let stray = RawClient::connect(&deployment.hub(), &deployment.unrestricted_identity("core").await?).await?;
    for subject in ["results.p1", "acme-corp.results"] {
        stray.publish(subject, None, None, b"stray").await?;
        core.wait_for(LIMIT, |message| message.subject == subject).await?;
        assert!(strangers(&heard(&core), &keys).iter().any(|found| found == subject), "{subject} passed unseen");
    }
    deployment.stop().await
}

async fn live_of(deployment: &TestDeployment, tenant: &str) -> Result<Option<i64>, String> {
    let rows = deployment.rows(&["status", "--tenant", tenant]).await.map_err(|error| format!("{error:#}"))?;
    let row = rows.first().ok_or("no row")?;
    Ok(row["live_ms"].as_i64())
}

async fn wait_for_live(
    deployment: &TestDeployment,
    tenant: &str,
    is_lit: impl Fn(Option<i64>) -> bool,
) -> anyhow::Result<()> {
    let waited = eventually("the live view to change", LIMIT, || async {
        let live = live_of(deployment, tenant).await?;
        if is_lit(live) { Ok(()) } else { Err(format!("live view of {tenant}: {live:?}")) }
    });
    waited.await.context("wait for the live view")
}

#[tokio::test]
async fn without_its_import_a_tenants_live_view_goes_dark_while_its_results_go_on() -> anyhow::Result<()> {
    let deployment = TestDeployment::start().await?;
    let witness = deployment.witness().await?;
    for tenant in ["acme-corp", "xyz-inc"] {
        wait_for_live(&deployment, tenant, |live| live.is_some()).await?;
    }
    let acme = deployment.key_of("acme-corp")?;
    let imports = deployment.account("intake-1")?.claims.nats.imports;
    deployment.change_account("intake-1", |body| body.imports.retain(|import| import.account != acme)).await?;
    wait_for_live(&deployment, "acme-corp", |live| live.is_none()).await?;

    // Dark for acme-corp alone; the durable way of both goes on.
    assert!(live_of(&deployment, "xyz-inc").await.map_err(anyhow::Error::msg)?.is_some());
    deployment.wait_for_results(&witness).await?;
    assert!(live_of(&deployment, "acme-corp").await.map_err(anyhow::Error::msg)?.is_none());

    deployment.change_account("intake-1", |body| body.imports = imports).await?;
    wait_for_live(&deployment, "acme-corp", |live| live.is_some()).await?;
    deployment.stop().await
}
