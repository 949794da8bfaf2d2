//! A body can only agree with the subject that the server wrote: any other is dead-lettered under its real sender.

use anyhow::Context;
use bulkhead_bus::header;
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, RawLeaf, TestDeployment, header_block};
use sqlx::PgPool;

use crate::batch::{batch_body, key_of_poller, send_batch, signed_headers};
use crate::watch::{ACME, XYZ, hostile_leaf, unique};

/// The tenant and the reason of every dead letter that holds `text`.
async fn dead_letters(witness: &PgPool, text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let sql = "select t.slug, d.reason from everywhere.dead_letter d join platform.tenant t using (tenant_id)
               where position($1::bytea in d.payload) > 0";
    sqlx::query_as(sql).bind(text.as_bytes()).fetch_all(witness).await.context("read dead letters")
}

/// Who has results of `check`: tenant, site, poller.
async fn owners_of(witness: &PgPool, check: &str) -> anyhow::Result<Vec<(String, String, String)>> {
    let sql = "select t.slug, r.vantage, r.poller from everywhere.result r join platform.tenant t using (tenant_id)
               where r.check_name = $1";
    sqlx::query_as(sql).bind(check).fetch_all(witness).await.context("read results")
}

/// Waits until core has dead-lettered what holds `text`, once, under `tenant` and for `reason`; no row may come of it.
pub(crate) async fn expect_dead(witness: &PgPool, text: &str, tenant: &str, reason: &str) -> anyhow::Result<()> {
    let waited = eventually("a dead letter", LIMIT, || async {
        let letters = dead_letters(witness, text).await.map_err(|error| format!("{error:#}"))?;
        if letters.is_empty() { Err("none".to_owned()) } else { Ok(letters) }
    });
    let letters = waited.await.with_context(|| text.to_owned())?;
    assert_eq!(letters, [(tenant.to_owned(), reason.to_owned())], "{text}");
    assert_eq!(owners_of(witness, text).await?, [], "{text}");
    Ok(())
}

async fn expect_stored(witness: &PgPool, check: &str, place: (&str, &str)) -> anyhow::Result<()> {
    let waited = eventually("a stored result", LIMIT, || async {
        let owners = owners_of(witness, check).await.map_err(|error| format!("{error:#}"))?;
        if owners.is_empty() { Err("none".to_owned()) } else { Ok(owners) }
    });
    let owners = waited.await.with_context(|| check.to_owned())?;
    assert_eq!(owners, [(ACME.to_owned(), place.0.to_owned(), place.1.to_owned())], "{check}");
    assert_eq!(dead_letters(witness, check).await?, [], "{check}");
    Ok(())
}

/// What a forged batch says of itself and whose key signed it.
struct Forgery {
    tenant: Option<&'static str>,
    place: &'static str,
    signer: (&'static str, &'static str),
    reason: &'static str,
}

const OWN: (&str, &str) = (ACME, "oslo/p1");

/// All sent from acme-corp's leaf at oslo.
const FORGERIES: [Forgery; 9] = [
    Forgery { tenant: Some(XYZ), place: "oslo/p1", signer: OWN, reason: "tenant_mismatch" },
    Forgery { tenant: Some(XYZ), place: "lima/p1", signer: OWN, reason: "tenant_mismatch" },
    // A genuine batch of xyz-inc, copied and sent by acme-corp.
    Forgery { tenant: Some(XYZ), place: "lima/p1", signer: (XYZ, "lima/p1"), reason: "tenant_mismatch" },
    Forgery { tenant: Some("nobody"), place: "oslo/p1", signer: OWN, reason: "tenant_mismatch" },
    Forgery { tenant: Some(ACME), place: "bergen/p1", signer: OWN, reason: "sender_mismatch" },
    Forgery { tenant: None, place: "bergen/p1", signer: (ACME, "bergen/p1"), reason: "sender_mismatch" },
    Forgery { tenant: Some(ACME), place: "oslo/p2", signer: OWN, reason: "foreign_key" },
    Forgery { tenant: Some(ACME), place: "oslo/p1", signer: (ACME, "bergen/p1"), reason: "foreign_key" },
    Forgery { tenant: None, place: "oslo/p1", signer: (XYZ, "lima/p1"), reason: "foreign_key" },
];

async fn send_forgeries(deployment: &TestDeployment, witness: &PgPool, leaf: &RawLeaf) -> anyhow::Result<()> {
    for forgery in &FORGERIES {
        let check = unique("forged-");
        let body = batch_body(forgery.tenant, forgery.place, &check)?;
        let key = key_of_poller(deployment, forgery.signer.0, forgery.signer.1)?;
        send_batch(leaf, "oslo", Some(&signed_headers(&key, &body)?), &body).await?;
        expect_dead(witness, &check, ACME, forgery.reason).await?;
    }
    Ok(())
}

/// The body is honest; what should prove it is not.
async fn send_unproved(deployment: &TestDeployment, witness: &PgPool, leaf: &RawLeaf) -> anyhow::Result<()> {
    let key = key_of_poller(deployment, OWN.0, OWN.1)?;
    let honest = |check: &str| batch_body(Some(ACME), OWN.1, check);

    let check = unique("flipped-");
    let body = honest(&check)?;
    let headers = signed_headers(&key, &body)?;
    let text = String::from_utf8(body)?;
    let flipped = text.replace("\"latency_us\":1000", "\"latency_us\":1001");
    assert_ne!(text, flipped);
    send_batch(leaf, "oslo", Some(&headers), flipped.as_bytes()).await?;
    expect_dead(witness, &check, ACME, "bad_signature").await?;

    let check = unique("renumbered-");
    let body = honest(&check)?;
    let renumbered = signed_headers(&key, &body)?.replace(": 1.1\r\n", ": 1.2\r\n");
    send_batch(leaf, "oslo", Some(&renumbered), &body).await?;
    expect_dead(witness, &check, ACME, "bad_signature").await?;

    let check = unique("half-signed-");
    let half = header_block(&[(header::KEY, &key.public_key())]);
    send_batch(leaf, "oslo", Some(&half), &honest(&check)?).await?;
    expect_dead(witness, &check, ACME, "bad_signature").await?;

    let check = unique("unsigned-");
    send_batch(leaf, "oslo", None, &honest(&check)?).await?;
    expect_dead(witness, &check, ACME, "unsigned").await
}

#[tokio::test]
async fn a_body_that_says_anything_but_the_truth_is_dead_lettered_under_its_sender() -> anyhow::Result<()> {
    let tenants = ["acme-corp enterprise oslo/p1 oslo/p2 bergen/p1", "xyz-inc free lima/p1"];
    let deployment = TestDeployment::start_with(&tenants, &[]).await?;
    let witness = deployment.witness().await?;
    let leaf = hostile_leaf(&deployment, ACME, "oslo").await?;
    leaf.subscribe("_INBOX_oslo.>").await?;

    // Control: the very same way with the truth in it is stored, and ten times is once.
    let key = key_of_poller(&deployment, OWN.0, OWN.1)?;
    let check = unique("honest-");
    let body = batch_body(Some(ACME), OWN.1, &check)?;
    let headers = signed_headers(&key, &body)?;
    for _ in 0..10 {
        send_batch(&leaf, "oslo", Some(&headers), &body).await?;
    }
    // One queue, in order: when the next is stored, the ten have been decided about.
    let next = unique("honest-");
    let body = batch_body(None, OWN.1, &next)?;
    send_batch(&leaf, "oslo", Some(&signed_headers(&key, &body)?), &body).await?;
    expect_stored(&witness, &next, ("oslo", "p1")).await?;
    expect_stored(&witness, &check, ("oslo", "p1")).await?;

    send_forgeries(&deployment, &witness, &leaf).await?;
    send_unproved(&deployment, &witness, &leaf).await?;
    expect_untouched(&deployment, &witness).await?;
    deployment.stop().await
}

/// Nothing under xyz-inc but what its own poller measured, nothing that belongs to nobody, and its results go on.
pub(crate) async fn expect_untouched(deployment: &TestDeployment, witness: &PgPool) -> anyhow::Result<()> {
    let before = deployment.stored(witness, XYZ).await?;
    let waited = eventually("more results of xyz-inc", LIMIT, || async {
        let now = deployment.stored(witness, XYZ).await.map_err(|error| format!("{error:#}"))?;
        if now > before { Ok(()) } else { Err(format!("still {now}")) }
    });
    waited.await?;
    let sql =
        "select count(*) from everywhere.dead_letter d join platform.tenant t using (tenant_id) where t.slug = $1";
    let dead: i64 = sqlx::query_scalar(sql).bind(XYZ).fetch_one(witness).await.context("count dead letters")?;
    let sql = "select count(*) from platform.unclaimed_dead_letter";
    let unclaimed: i64 = sqlx::query_scalar(sql).fetch_one(witness).await.context("count unclaimed dead letters")?;
    let sql = "select count(*) from everywhere.result r join platform.tenant t using (tenant_id)
               where t.slug = $1 and (r.vantage, r.poller) is distinct from ('lima', 'p1')";
    let foreign: i64 = sqlx::query_scalar(sql).bind(XYZ).fetch_one(witness).await.context("count foreign results")?;
    assert_eq!((dead, unclaimed, foreign), (0, 0, 0), "dead letters of {XYZ}, unclaimed, foreign results");
    Ok(())
}
