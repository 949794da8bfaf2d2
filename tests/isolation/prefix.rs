//! The prefix is the server's to write. An account that is signed with another tenant's prefix, as by a mistake of the
//! platform, reaches nothing because of `account_token_position`; without that the same probe does reach.

use bulkhead_claims::{AccountBody, ExportKind};
use bulkhead_testkit::{RawLeaf, TestDeployment};

use crate::batch::{batch_body, key_of_poller, signed_headers};
use crate::bodies::expect_dead;
use crate::watch::{ACME, TENANTS, Watch, XYZ, begins, hostile_leaf, settle_leaf, unique};

/// Under which subjects CORE hears what acme-corp's leaf at oslo says on its own subject.
async fn heard_of_leaf(leaf: &RawLeaf, core: &Watch) -> anyhow::Result<Vec<String>> {
    let body = unique("probe-");
    leaf.lmsg("up.oslo.fwd.results", None, body.as_bytes()).await?;
    settle_leaf(leaf).await?;
    core.catch_up().await?;
    // The hub says it twice in CORE: as it comes in, and as it is delivered to core.
    let mut subjects = core.heard(|message| begins(message, &body));
    subjects.dedup();
    Ok(subjects)
}

/// Gives the service import of `body` the subject `subject`.
fn import_as(body: &mut AccountBody, subject: &str) {
    for import in body.imports.iter_mut().filter(|import| import.kind == ExportKind::Service) {
        import.subject = subject.to_owned();
    }
}

/// Where the key of the importing account must be in what CORE exports as a service.
fn put_position(body: &mut AccountBody, position: Option<u32>) {
    for export in body.exports.iter_mut().filter(|export| export.kind == ExportKind::Service) {
        export.account_token_position = position;
    }
}

#[tokio::test]
async fn a_forged_prefix_reaches_core_only_without_account_token_position() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&TENANTS, &[]).await?;
    let witness = deployment.witness().await?;
    let core = Watch::place(&deployment, "core").await?;
    let (acme, xyz) = (deployment.key_of(ACME)?, deployment.key_of(XYZ)?);
    let as_acme = [format!("t.{acme}.up.oslo.fwd.results")];
    let as_xyz = [format!("t.{xyz}.up.oslo.fwd.results")];
    let leaf = hostile_leaf(&deployment, ACME, "oslo").await?;
    assert_eq!(heard_of_leaf(&leaf, &core).await?, as_acme);

    // As the product signs CORE, another tenant's prefix leads nowhere.
    deployment.change_account(ACME, |body| import_as(body, &format!("t.{xyz}.up.>"))).await?;
    assert_eq!(heard_of_leaf(&leaf, &core).await?, Vec::<String>::new());

    // Control: without the position the probe finds the hole.
    deployment.change_account("core", |body| put_position(body, None)).await?;
    deployment.change_account(ACME, |_| {}).await?;
    assert_eq!(heard_of_leaf(&leaf, &core).await?, as_xyz);

    // Even then the guard and the keys stand: what acme-corp signs is not stored under xyz-inc.
    let key = key_of_poller(&deployment, ACME, "oslo/p1")?;
    for (tenant, reason) in [(Some(ACME), "tenant_mismatch"), (None, "foreign_key"), (Some(XYZ), "foreign_key")] {
        let check = unique("forged-prefix-");
        let body = batch_body(tenant, "oslo/p1", &check)?;
        leaf.lmsg_with_headers("up.oslo.fwd.results", None, Some(&signed_headers(&key, &body)?), &body).await?;
        expect_dead(&witness, &check, XYZ, reason).await?;
    }

    // With the position back, the hole is closed while the forged import stays.
    deployment.change_account("core", |body| put_position(body, Some(2))).await?;
    deployment.change_account(ACME, |_| {}).await?;
    assert_eq!(heard_of_leaf(&leaf, &core).await?, Vec::<String>::new());
    deployment.change_account(ACME, |body| import_as(body, &format!("t.{acme}.up.>"))).await?;
    assert_eq!(heard_of_leaf(&leaf, &core).await?, as_acme);
    Ok(())
}
