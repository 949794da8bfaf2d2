//! Seeds of the wrong kind, and seeds that others can read.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bulkhead_bus::Role;
use bulkhead_claims::{KeyKind, SigningKey};
use bulkhead_testkit::TestDeployment;
use bulkhead_tests::operator::Operator;

use crate::nothing_is_to_be_done;

const TENANT: &str = "xyz-inc";

fn seed_file(home: &Path, public: &str) -> PathBuf {
    home.join("nsc/keys/keys").join(&public[..1]).join(&public[1..3]).join(format!("{public}.nk"))
}

/// What is wrong with a seed file: its text and mode, and what is said about it.
struct Harm {
    text: String,
    mode: u32,
    said: &'static str,
    /// What `nsc check` calls it.
    kind: &'static str,
}

fn harms(good: &str, kind: KeyKind) -> anyhow::Result<Vec<Harm>> {
    let seed = |kind| anyhow::Ok(SigningKey::generate(kind).seed()?.to_string());
    let wrong = if kind == KeyKind::Account { "not an account seed" } else { "not an operator seed" };
    let harm = |text: String, mode, said, kind| Harm { text, mode, said, kind };
    Ok(vec![
        harm(seed(KeyKind::User)?, 0o600, wrong, "seed"),
        harm(seed(kind)?, 0o600, "a seed file is named by its public key", "seed"),
        harm(good[..20].to_owned(), 0o600, "what seed file", "seed"),
        harm(good.to_owned(), 0o644, "chmod 600", "mode"),
    ])
}

struct Signed<'a> {
    path: PathBuf,
    kind: KeyKind,
    /// A command that signs with it.
    line: &'a [&'a str],
}

async fn check_refused(operator: &Operator<'_>, signed: &Signed<'_>) -> anyhow::Result<()> {
    let good = std::fs::read_to_string(&signed.path)?;
    for harm in harms(&good, signed.kind)? {
        std::fs::write(&signed.path, &harm.text)?;
        std::fs::set_permissions(&signed.path, Permissions::from_mode(harm.mode))?;
        let (rows, said) = operator.expect(1, signed.line).await.context(harm.said)?;
        let file = signed.path.display().to_string();
        anyhow::ensure!(rows.is_empty() && said.contains(harm.said) && said.contains(&file), "{}: {said}", harm.said);
        anyhow::ensure!(!said.contains(&harm.text) && !said.contains(&good), "a seed is shown");
        let (found, _) = operator.expect(2, &["nsc", "check"]).await?;
        anyhow::ensure!(found.len() == 1 && found[0]["kind"] == harm.kind, "{found:?}");
        anyhow::ensure!(std::fs::read_to_string(&signed.path)? == harm.text, "the seed file was written");
        std::fs::write(&signed.path, &good)?;
        std::fs::set_permissions(&signed.path, Permissions::from_mode(0o600))?;
        operator.expect(0, &["diff"]).await.context(harm.said)?;
    }
    Ok(())
}

pub(crate) async fn seeds_of_the_wrong_kind_or_mode_sign_nothing(
    operator: &Operator<'_>,
    deployment: &TestDeployment,
) -> anyhow::Result<()> {
    let account = deployment.account(TENANT)?;
    let role_key = account.role_key(Role::Viewer).context("the viewer's key")?;
    // The gatekeepers get all keys of an account together.
    let line = ["role", "rotate", TENANT, "admin"];
    let path = seed_file(operator.home, role_key);
    check_refused(operator, &Signed { path, kind: KeyKind::Account, line: &line }).await?;
    anyhow::ensure!(deployment.account(TENANT)?.token == account.token, "something was signed");
    operator.expect(0, &line).await?;
    operator.expect(0, &[&line[..], &["--finish"]].concat()).await?;
    nothing_is_to_be_done(operator).await?;

    let path = seed_file(operator.home, &account.claims.iss);
    let plan = ["tenant", "plan", TENANT, "pro"];
    check_refused(operator, &Signed { path: path.clone(), kind: KeyKind::Operator, line: &plan }).await?;
    let (listed, _) = operator.expect(0, &["tenant", "list", "--tenant", TENANT]).await?;
    anyhow::ensure!(listed[0]["plan"] == "free", "{listed:?}");
    let add = ["tenant", "add", "new-inc"];
    check_refused(operator, &Signed { path, kind: KeyKind::Operator, line: &add }).await?;
    anyhow::ensure!(operator.state_of("new-inc").await?.is_none(), "half added");
    nothing_is_to_be_done(operator).await?;
    // The control: with the right seed all of it works.
    operator.expect(0, &plan).await?;
    operator.expect(0, &["tenant", "plan", TENANT, "free"]).await?;
    operator.expect(0, &add).await?;
    nothing_is_to_be_done(operator).await
}
