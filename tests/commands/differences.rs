//! What should be, what is in the store, and what servers hold.

use std::path::PathBuf;

use anyhow::Context;
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::resolver::{KnownServers, ensure_deleted};
use bulkhead_claims::{KeyKind, ScopedKey, SigningKey};
use bulkhead_runtime::now_ms;
use bulkhead_testkit::TestDeployment;
use bulkhead_tests::operator::Operator;
use serde_json::{Value, json};

use crate::{PLATFORM, nothing_is_to_be_done};

fn is_named(rows: &[Value], account: &str, fields: &[(&str, Value)]) -> bool {
    rows.iter().any(|row| row["account"] == account && fields.iter().all(|(name, value)| row[*name] == *value))
}

/// An account of the store that is not what this release renders; the servers have not heard of it.
pub(crate) async fn every_account_is_compared_with_what_it_is_rendered_to(
    operator: &Operator<'_>,
    deployment: &TestDeployment,
) -> anyhow::Result<()> {
    for name in PLATFORM.into_iter().chain(["acme-corp"]) {
        let mut body = deployment.account(name)?.claims.nats;
        body.limits.conn += 1;
        deployment.up.platform.operator.sign_body(name, body, now_ms() / 1_000)?;
        let (rows, _) = operator.expect(2, &["diff"]).await?;
        let field = json!("limits.conn");
        anyhow::ensure!(is_named(&rows, name, &[("layer", json!("store")), ("field", field)]), "{name}: {rows:?}");
        anyhow::ensure!(rows.iter().all(|row| row["account"] == name), "others are named as well: {rows:?}");
        let (pushed, _) = operator.expect(0, &["push"]).await?;
        let [sent, failed] = [&pushed[0]["in_force"], &pushed[0]["failed"]];
        let unchanged = pushed[0]["unchanged"].as_u64().context("a number")?;
        anyhow::ensure!(*sent == unchanged + 1 && *failed == json!([]), "only {name} differs: {pushed:?}");
    }
    nothing_is_to_be_done(operator).await
}

/// Without anybody having marked it.
pub(crate) async fn a_tenant_whose_live_import_is_missing_is_named(operator: &Operator<'_>) -> anyhow::Result<()> {
    let path: PathBuf = operator.home.join("intake/1.json");
    let before = std::fs::read_to_string(&path)?;
    let mut shard: Value = serde_json::from_str(&before)?;
    let tenants = shard["tenants"].as_object_mut().context("tenants")?;
    tenants.remove("xyz-inc").context("it was there")?;
    let stranger = SigningKey::generate(KeyKind::Account).public().to_owned();
    tenants.insert("nobody-inc".to_owned(), json!(stranger));
    std::fs::write(&path, shard.to_string())?;
    let (rows, _) = operator.expect(2, &["diff"]).await?;
    let gap = [("live_import", json!("missing")), ("where", json!(["the shards"]))];
    anyhow::ensure!(is_named(&rows, "xyz-inc", &gap), "{rows:?}");
    anyhow::ensure!(is_named(&rows, "nobody-inc", &[("live_import", json!("unwanted"))]), "{rows:?}");
    anyhow::ensure!(!rows.iter().any(|row| row["account"] == "acme-corp"), "it has its place: {rows:?}");
    operator.expect(0, &["push"]).await?;
    anyhow::ensure!(std::fs::read_to_string(&path)? == before, "the shard is as it should be");
    nothing_is_to_be_done(operator).await?;
    // The whole shard, as if it had never been written.
    std::fs::remove_file(&path)?;
    let (rows, _) = operator.expect(2, &["diff"]).await?;
    anyhow::ensure!(["acme-corp", "xyz-inc"].iter().all(|slug| is_named(&rows, slug, &gap)), "{rows:?}");
    operator.expect(0, &["push"]).await?;
    anyhow::ensure!(std::fs::read_to_string(&path)? == before, "the shard is back");
    nothing_is_to_be_done(operator).await
}

pub(crate) async fn an_account_that_is_gone_from_the_servers_is_named(
    operator: &Operator<'_>,
    deployment: &TestDeployment,
) -> anyhow::Result<()> {
    let store = &deployment.up.platform.operator;
    let account = deployment.account("xyz-inc")?;
    let known = KnownServers::of(HubSize::One);
    let signer = store.signer()?;
    let gone = ensure_deleted(&deployment.up.system, &account.key, signer.as_ref(), &known).await?;
    anyhow::ensure!(gone.is_gone(), "{gone:?}");
    let (rows, _) = operator.expect(2, &["diff", "xyz-inc"]).await?;
    anyhow::ensure!(is_named(&rows, account.key.as_str(), &[("presence", json!("missing"))]), "{rows:?}");
    operator.expect(0, &["diff", "acme-corp"]).await?;
    // Servers remember the very token as that of a deleted account.
    let (_, said) = operator.expect(5, &["push", "xyz-inc"]).await?;
    anyhow::ensure!(said.contains("signed anew"), "{said}");
    operator.expect(0, &["nsc", "restore", "xyz-inc"]).await?;
    operator.expect(0, &["push", "xyz-inc"]).await?;
    nothing_is_to_be_done(operator).await
}

/// What the system's own roles may do changes, so servers close the connection that tells them.
pub(crate) async fn the_systems_account_is_pushed_over_its_own_connection(
    operator: &Operator<'_>,
    deployment: &TestDeployment,
) -> anyhow::Result<()> {
    let widen = |body: &mut bulkhead_claims::AccountBody| {
        for key in &mut body.signing_keys {
            if let ScopedKey::Scoped(scope) = key {
                scope.template.subscribe.allow.push("witness.>".to_owned());
            }
        }
    };
    deployment.change_account("sys", widen).await?;
    // A push that was refused is refused again: it is no base for the next one.
    for _ in 0..2 {
        let (_, said) = operator.expect(3, &["push"]).await?;
        anyhow::ensure!(said.contains("account sys was changed by somebody else"), "{said}");
    }
    operator.expect(0, &["push", "--force"]).await?;
    nothing_is_to_be_done(operator).await
}
