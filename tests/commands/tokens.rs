//! Tokens in the operator's store that are cut short, altered, another operator's, or not valid yet.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bulkhead_claims::{Claims, KeyKind, SigningKey, encode};
use bulkhead_runtime::now_ms;
use bulkhead_testkit::TestDeployment;
use bulkhead_tests::operator::Operator;
use serde_json::{Value, json};

use crate::nothing_is_to_be_done;

const VICTIM: &str = "xyz-inc";
const DAY_S: i64 = 86_400;
/// One that cannot be read, one that is not to be believed, and one that only somebody else has signed.
const WHOLE_STORIES: [&str; 3] = ["cut short", "another operator's", "valid from tomorrow"];

/// A token, and words of what is said about it.
struct Bad {
    about: &'static str,
    token: Vec<u8>,
    /// What `validate` and what `nsc check` say.
    validate: &'static str,
    check: &'static str,
}

fn token_file(home: &Path, name: &str) -> PathBuf {
    home.join(format!("nsc/stores/bulkhead/accounts/{name}/{name}.jwt"))
}

fn now_s() -> i64 {
    now_ms() / 1_000
}

/// The account signed by somebody else, or for another time.
fn signed(
    deployment: &TestDeployment,
    signer: &dyn bulkhead_claims::Signer,
    change: impl FnOnce(&mut Claims<bulkhead_claims::AccountBody>),
) -> anyhow::Result<Vec<u8>> {
    let account = deployment.account(VICTIM)?;
    let mut claims = Claims::new(account.key.to_string(), VICTIM.to_owned(), now_s(), account.claims.nats);
    change(&mut claims);
    Ok(encode(&mut claims, signer)?.into_bytes())
}

fn bad_tokens(deployment: &TestDeployment) -> anyhow::Result<Vec<Bad>> {
    let token = deployment.account(VICTIM)?.token.into_bytes();
    let mut altered = token.clone();
    let middle = altered.len() / 2;
    altered[middle] = if altered[middle] == b'A' { b'B' } else { b'A' };
    let stranger = SigningKey::generate(KeyKind::Operator);
    let signer = deployment.up.platform.operator.signer()?;
    let bad = |about, token, validate, check| Bad { about, token, validate, check };
    Ok(vec![
        bad("cut short", token[..token.len() / 2].to_vec(), "not readable", "unreadable"),
        bad("cut short by a byte", token[..token.len() - 1].to_vec(), "not readable", "un"),
        bad("altered", altered, "not readable", "un"),
        bad("garbage", b"\x00\xff nothing of ours".to_vec(), "read ", "unreadable"),
        bad("empty", vec![], "not readable", "unreadable"),
        bad("another operator's", signed(deployment, &stranger, |_| ())?, "not readable", "untrusted"),
        bad(
            "valid from tomorrow",
            signed(deployment, signer.as_ref(), |claims| claims.nbf = Some(now_s() + DAY_S))?,
            "begins at",
            "foreign_edit",
        ),
        bad(
            "issued tomorrow",
            signed(deployment, signer.as_ref(), |claims| claims.iat = now_s() + DAY_S)?,
            "issued at",
            "foreign_edit",
        ),
    ])
}

async fn check_named(operator: &Operator<'_>, bad: &Bad) -> anyhow::Result<()> {
    let (rows, _) = operator.expect(2, &["validate"]).await?;
    let about = |row: &Value| row["token"] == VICTIM && row["message"].to_string().contains(bad.validate);
    anyhow::ensure!(rows.iter().any(about) && rows.iter().all(|row| row["token"] == VICTIM), "{rows:?}");
    let (rows, _) = operator.expect(2, &["nsc", "check"]).await?;
    let kind = rows[0]["kind"].as_str().unwrap_or_default();
    anyhow::ensure!(rows.len() == 1 && rows[0]["subject"] == VICTIM && kind.starts_with(bad.check), "{rows:?}");
    anyhow::ensure!(rows[0]["advice"].to_string().contains("nsc restore"), "no way out: {rows:?}");
    let (pushed, said) = operator.expect(3, &["push"]).await?;
    anyhow::ensure!(pushed[0]["in_force"] != 0, "the others stay in force: {pushed:?}");
    anyhow::ensure!(pushed[0]["failed"] == json!([VICTIM]) && said.contains(VICTIM), "{pushed:?} {said}");
    anyhow::ensure!(pushed[0]["in_force"] == pushed[0]["unchanged"], "{pushed:?}");
    Ok(())
}

/// Whoever looks at the account is told, and whoever changes it is refused.
async fn check_refused(operator: &Operator<'_>, bad: &Bad) -> anyhow::Result<()> {
    let (shown, _) = operator.expect(0, &["tenant", "show", VICTIM]).await?;
    anyhow::ensure!(shown[0]["trouble"].is_string() && shown[0]["tenant"]["slug"] == VICTIM, "{shown:?}");
    let (shown, _) = operator.expect(0, &["tenant", "show", "acme-corp"]).await?;
    anyhow::ensure!(shown[0]["trouble"].is_null(), "{shown:?}");
    let (rows, _) = operator.expect(2, &["diff"]).await?;
    anyhow::ensure!(rows.iter().any(|row| row["account"] == VICTIM && row["trouble"].is_string()), "{rows:?}");
    anyhow::ensure!(rows.iter().all(|row| row["account"] == VICTIM), "others are named as well: {rows:?}");
    // Nothing of a change is begun: not its record, not its row, not its line in the journal.
    let (_, said) = operator.expect(1, &["tenant", "plan", VICTIM, "pro"]).await?;
    anyhow::ensure!(said.contains(VICTIM), "{said}");
    let (listed, _) = operator.expect(0, &["tenant", "list", "--tenant", VICTIM]).await?;
    anyhow::ensure!(listed[0]["plan"] == "free", "{listed:?}");
    operator.expect(1, &["tenant", "suspend", VICTIM]).await?;
    anyhow::ensure!(operator.state_of(VICTIM).await?.is_some_and(|(state, _)| state == "active"), "half suspended");
    // Others go their way.
    operator.expect(0, &["tenant", "edit", "acme-corp", "--name", bad.about]).await.map(drop)
}

pub(crate) async fn bad_tokens_are_named_and_reach_no_server(
    operator: &Operator<'_>,
    deployment: &TestDeployment,
) -> anyhow::Result<()> {
    let path = token_file(operator.home, VICTIM);
    let good = std::fs::read(&path)?;
    for bad in bad_tokens(deployment)? {
        std::fs::write(&path, &bad.token)?;
        check_named(operator, &bad).await.context(bad.about)?;
        if WHOLE_STORIES.contains(&bad.about) {
            check_refused(operator, &bad).await.context(bad.about)?;
        }
        anyhow::ensure!(std::fs::read(&path)? == bad.token, "{}: somebody's token was overwritten", bad.about);
        std::fs::write(&path, &good)?;
        let (pushed, _) = operator.expect(0, &["push"]).await.context(bad.about)?;
        anyhow::ensure!(pushed[0]["in_force"] == pushed[0]["unchanged"], "it has reached a server: {pushed:?}");
    }
    // The way out that is named.
    std::fs::write(&path, &good[..good.len() / 2])?;
    operator.expect(0, &["nsc", "restore", VICTIM]).await?;
    operator.expect(0, &["push"]).await?;
    nothing_is_to_be_done(operator).await
}

/// Our own, of a clock that was ahead: servers take it, and what is signed next is later still.
pub(crate) async fn a_token_from_the_future_is_named_and_overtaken(
    operator: &Operator<'_>,
    deployment: &TestDeployment,
) -> anyhow::Result<()> {
    operator.expect(0, &["tenant", "add", "ahead-inc"]).await?;
    let mut body = deployment.account("ahead-inc")?.claims.nats;
    body.limits.conn += 1;
    let ahead = deployment.up.platform.operator.sign_body("ahead-inc", body, now_s() + DAY_S)?;
    operator.expect(0, &["push"]).await?;
    let (rows, _) = operator.expect(2, &["validate"]).await?;
    anyhow::ensure!(rows.len() == 1 && rows[0]["token"] == "ahead-inc" && rows[0]["path"] == "iat", "{rows:?}");
    operator.expect(0, &["tenant", "plan", "ahead-inc", "pro"]).await?;
    operator.expect(0, &["diff"]).await?;
    let now = deployment.account("ahead-inc")?;
    anyhow::ensure!(now.claims.iat > ahead.claims.iat, "a server that was away would bring the later one back");
    operator.expect(0, &["tenant", "offboard", "ahead-inc", "--purge", "--no-export", "--yes"]).await?;
    nothing_is_to_be_done(operator).await
}
