//! The store between two tools: what nsc made is taken over, changed and used by nsc again, and the other way round.
//! Everything is asked of the real nsc and of a real nats-server.

#[path = "nsc/disk.rs"]
mod disk;
#[path = "nsc/server.rs"]
mod server;
#[path = "nsc/tool.rs"]
mod tool;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use bulkhead_accounts::operator::{OperatorError, OperatorStore, UserRequest};
use bulkhead_accounts::plan::{Plan, PlanName};
use bulkhead_accounts::render::{RoleKey, tenant_account};
use bulkhead_bus::Role;
use bulkhead_testkit::deployment::program;
use bulkhead_testkit::{GoTool, go_tool};
use serde_json::Value;
use time::OffsetDateTime;

use tool::Nsc;

fn now_s() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// Renders a tenant as provisioning does.
fn ensure_tenant(store: &OperatorStore, name: &str, plan: PlanName) -> Result<(), OperatorError> {
    let core = store.system()?.key;
    let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(plan), own, core.as_str(), keys);
    store.ensure_account(name, &Role::TENANT, now_s(), render).map(|_| ())
}

/// A home with our own store and one tenant.
fn own_home(folder: &Path) -> anyhow::Result<(PathBuf, OperatorStore)> {
    let home = folder.join("home");
    let store = OperatorStore::open(home.join("nsc"), now_s())?;
    ensure_tenant(&store, "acme-corp", PlanName::Free)?;
    Ok((home, store))
}

/// Puts credentials of a new user where a deployment keeps them.
fn issue(store: &OperatorStore, home: &Path, account: &str, role: Role, name: &str) -> anyhow::Result<()> {
    let user = UserRequest { account, role, name, site: None, expires: now_s() + 3_600 };
    let folder = home.join("profiles").join(account);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(format!("{name}.creds")), store.issue_user(&user, now_s())?.text.as_bytes())?;
    Ok(())
}

/// Runs the real `bulkhead`: its exit code, its rows, and what it said.
fn bulkhead(home: &Path, args: &[&str]) -> anyhow::Result<(i32, Vec<Value>, String)> {
    let output = Command::new(program("bulkhead")?).arg("--json").arg("--home").arg(home).args(args).output()?;
    let text = String::from_utf8(output.stdout)?;
    let rows = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().with_context(|| text.clone())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code().context("an exit code")?, rows, said))
}

/// What was done with each account, by its name: what, and whether it is rendered by us.
fn states(rows: &[Value]) -> Vec<(&str, &str, bool)> {
    let mut states: Vec<_> = rows
        .iter()
        .map(|row| {
            let word = |field: &str| row[field].as_str().unwrap_or_default();
            (word("account"), word("state"), row["managed"].as_bool().unwrap_or_default())
        })
        .collect();
    states.sort_unstable();
    states
}

/// A store as an operator of nsc makes one: an account with limits, an export, a scoped key and users.
fn made_by_nsc(folder: &Path, program: &Path) -> anyhow::Result<Nsc> {
    let nsc = Nsc::new(program, &folder.join("made"))?;
    nsc.run(&["add", "operator", "MyOp", "--sys", "-s", "--generate-signing-key"])?;
    nsc.run(&["add", "account", "Orders"])?;
    nsc.run(&["edit", "account", "Orders", "--conns", "10", "--description", "made by hand", "--sk", "generate"])?;
    nsc.run(&["add", "export", "--account", "Orders", "--name", "events", "--subject", "orders.>"])?;
    nsc.run(&[
        "edit",
        "signing-key",
        "--account",
        "Orders",
        "--sk",
        "generate",
        "--role",
        "reader",
        "--allow-sub",
        "x",
    ])?;
    nsc.run(&["add", "user", "--account", "Orders", "--name", "clerk"])?;
    nsc.validate_clean().context("nsc's own store")?;
    Ok(nsc)
}

#[tokio::test]
async fn a_store_of_nsc_is_taken_over_changed_and_used_by_nsc_again() -> anyhow::Result<()> {
    let Some(program) = go_tool(GoTool::Nsc)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let made = made_by_nsc(folder.path(), &program)?;
    let home = folder.path().join("home");
    let from = made.data().display().to_string();

    let (code, rows, said) = bulkhead(&home, &["nsc", "import", &from])?;
    assert_eq!((code, states(&rows)), (0, vec![("Orders", "taken", false), ("sys", "taken", true)]), "{said}");
    let mut store = OperatorStore::read(home.join("nsc"))?.context("the store")?;
    let orders = store.account("Orders")?.context("the account of nsc")?;
    assert!(matches!(ensure_tenant(&store, "Orders", PlanName::Free), Err(OperatorError::Unmanaged(_))));
    assert_eq!(store.account("Orders")?.context("it")?.token, orders.token, "it was touched");
    assert_eq!(bulkhead(&home, &["nsc", "check"])?.0, 0);

    // Ours: a tenant, the system account with a role of ours, and another operator key for all of them.
    ensure_tenant(&store, "acme-corp", PlanName::Pro)?;
    store.ensure_system(now_s())?;
    let key = store.add_signing_key(None, now_s())?;
    store.use_signing_key(&key)?;
    let outcome = store.resign_all(now_s(), |_, _| ())?;
    assert_eq!((outcome.signed, outcome.failed.len()), (3, 0), "{outcome:?}");
    let signed = store.account("Orders")?.context("the account of nsc")?;
    assert_eq!((&signed.claims.nats, &signed.claims.iss), (&orders.claims.nats, &key), "only the signature is new");
    issue(&store, &home, "acme-corp", Role::Admin, "ada")?;

    // nsc again, on a copy that it is told of by two variables.
    let to = folder.path().join("copy");
    let (code, rows, said) = bulkhead(&home, &["nsc", "export", "--to", &to.display().to_string()])?;
    assert_eq!((code, rows[0]["users"].as_u64()), (0, Some(1)), "{said}");
    let nsc = Nsc::of_copy(&program, &to)?;
    nsc.validate_clean()?;
    let described = nsc.run(&["describe", "account", "Orders"])?;
    ensure!(described.contains("made by hand") && described.contains("reader"), "{described}");
    nsc.run(&["edit", "account", "acme-corp", "--description", "edited by nsc"])?;
    nsc.run(&["add", "user", "--account", "Orders", "--name", "packer", "-K", "reader"])?;
    nsc.validate_clean()?;
    let server = server::start(&folder.path().join("server"), &store, &nsc).await?;
    let pushed = nsc.run(&["push", "--all", "-u", &server.url])?;
    ensure!(pushed.contains("jwt updated") && !pushed.contains("error"), "{pushed}");
    for (account, user) in [("Orders", "clerk"), ("Orders", "packer"), ("acme-corp", "ada")] {
        nsc.can_connect(account, user, &server.url).with_context(|| format!("{account}/{user}"))?;
    }

    // Control: it is the server that lets them in.
    nsc.run(&["revocations", "add-user", "--account", "Orders", "--name", "packer"])?;
    nsc.run(&["push", "--account", "Orders", "-u", &server.url])?;
    ensure!(nsc.can_connect("Orders", "packer", &server.url).is_err(), "a revoked user was let in");

    // And back: what nsc did to the copy is said, and taken when it is accepted.
    let back = nsc.data().display().to_string();
    let (code, rows, _) = bulkhead(&home, &["nsc", "import", &back])?;
    assert_eq!((code, states(&rows)[1]), (2, ("acme-corp", "differs", true)), "{rows:?}");
    let (code, rows, _) = bulkhead(&home, &["nsc", "import", &back, "--accept", "acme-corp"])?;
    let open = [("Orders", "differs", false), ("acme-corp", "taken", true)];
    assert_eq!((code, &states(&rows)[..2]), (2, &open[..]), "{rows:?}");
    let (code, rows, _) = bulkhead(&home, &["nsc", "import", &back, "--accept", "Orders"])?;
    assert_eq!((code, states(&rows)[0]), (0, ("Orders", "taken", false)), "it stays nsc's: {rows:?}");
    ensure_tenant(&store, "acme-corp", PlanName::Pro)?;
    let body = store.account("acme-corp")?.context("the tenant")?.claims.nats;
    assert_eq!(body.description, "", "the plan says what a tenant is");
    let (code, rows, _) = bulkhead(&home, &["nsc", "import", "--adopt", "Orders"])?;
    assert_eq!((code, states(&rows)[0]), (0, ("Orders", "taken", true)), "{rows:?}");
    ensure_tenant(&store, "Orders", PlanName::Free)?;
    let body = store.account("Orders")?.context("the account of nsc")?.claims.nats;
    ensure!(body.revocations.len() == 1 && body.signing_keys.len() == 6, "its keys and revocations last: {body:?}");
    Ok(())
}

/// The way back: what we made is pushed by nsc, once the system account has a key that no role binds.
#[tokio::test]
async fn a_store_of_ours_is_pushed_by_nsc() -> anyhow::Result<()> {
    let Some(program) = go_tool(GoTool::Nsc)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (home, store) = own_home(folder.path())?;
    store.ensure_system(now_s())?;
    issue(&store, &home, "acme-corp", Role::Admin, "ada")?;
    let to = folder.path().join("copy");
    assert_eq!(bulkhead(&home, &["nsc", "export", "--to", &to.display().to_string()])?.0, 0);
    let nsc = Nsc::of_copy(&program, &to)?;
    let server = server::start(&folder.path().join("before"), &store, &nsc).await?;
    let refused = nsc.run(&["push", "--all", "-u", &server.url]);
    ensure!(refused.is_err(), "nsc pushes with a scoped key: {refused:?}");
    nsc.run(&["edit", "account", "sys", "--sk", "generate"])?;
    nsc.validate_clean()?;
    let server = server::start(&folder.path().join("after"), &store, &nsc).await?;
    let pushed = nsc.run(&["push", "--all", "-u", &server.url])?;
    ensure!(pushed.contains("jwt updated") && !pushed.contains("error"), "{pushed}");
    nsc.can_connect("acme-corp", "ada", &server.url)?;
    // Taken back, the key stays through the next rendering, so that nsc can push as long as the operator likes.
    let back = nsc.data().display().to_string();
    assert_eq!(bulkhead(&home, &["nsc", "import", &back, "--accept", "sys"])?.0, 0);
    let keys = |store: &OperatorStore| store.system().map(|system| system.claims.nats.signing_keys.len());
    // Those of its two roles, and the key that nsc made.
    assert_eq!(keys(&store)?, 3);
    store.ensure_system(now_s())?;
    assert_eq!(keys(&store)?, 3, "the key is gone");
    Ok(())
}

#[tokio::test]
async fn what_nsc_does_to_our_store_is_noticed_and_not_overwritten() -> anyhow::Result<()> {
    let Some(program) = go_tool(GoTool::Nsc)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (home, store) = own_home(folder.path())?;
    let nsc = Nsc::of_store(&program, &home.join("nsc"), &folder.path().join("config"))?;
    nsc.validate_clean()?;
    // Control: nsc does find what is wrong.
    let path = home.join("nsc/stores/bulkhead/accounts/acme-corp/acme-corp.jwt");
    let token = std::fs::read(&path)?;
    let (_, stranger) = own_home(&folder.path().join("elsewhere"))?;
    std::fs::write(&path, stranger.account("acme-corp")?.context("another operator's account")?.token)?;
    ensure!(nsc.validate_clean().is_err(), "nsc takes another operator's account");
    ensure!(bulkhead(&home, &["nsc", "check"])?.0 == 2, "so do we");
    std::fs::write(&path, token)?;
    store.rotate_role("acme-corp", Role::Poller, now_s())?;
    store.revoke_user("acme-corp", "*", now_s() - 60)?;
    nsc.validate_clean().context("two keys of a role, and a revocation")?;
    assert_eq!(bulkhead(&home, &["nsc", "check"])?, (0, vec![], String::new()));

    nsc.run(&["edit", "account", "acme-corp", "--conns", "3"])?;
    let edited = store.account("acme-corp")?.context("the tenant")?.token;
    let error = ensure_tenant(&store, "acme-corp", PlanName::Pro).unwrap_err().to_string();
    ensure!(error.contains("limits.conn is 3"), "{error}");
    assert_eq!(store.account("acme-corp")?.context("it")?.token, edited, "the edit is gone");
    let (code, rows, _) = bulkhead(&home, &["nsc", "check"])?;
    assert_eq!((code, rows[0]["kind"].as_str(), rows.len()), (2, Some("foreign_edit"), 1), "{rows:?}");
    let (code, rows, _) = bulkhead(&home, &["nsc", "restore", "acme-corp"])?;
    ensure!(code == 0 && rows[0]["differences"].to_string().contains("limits.conn"), "{rows:?}");
    assert_eq!(bulkhead(&home, &["nsc", "check"])?.0, 0);
    let restored = store.account("acme-corp")?.context("it")?.claims;
    ensure!(restored.nats.limits.conn != 3 && restored.nats.revocations.contains_key("*"), "{restored:?}");

    // A revocation by nsc that was accepted outlives the next rendering.
    let user = bulkhead_claims::SigningKey::generate(bulkhead_claims::KeyKind::User).public().to_owned();
    nsc.run(&["revocations", "add-user", "--account", "acme-corp", "--user-public-key", &user])?;
    assert_eq!(bulkhead(&home, &["nsc", "import", "--accept", "acme-corp"])?.0, 0);
    ensure_tenant(&store, "acme-corp", PlanName::Pro)?;
    ensure!(store.account("acme-corp")?.context("it")?.claims.nats.revocations.contains_key(&user));
    nsc.validate_clean()?;

    nsc.run(&["add", "account", "By-Hand"])?;
    let (code, rows, _) = bulkhead(&home, &["nsc", "check"])?;
    assert_eq!((code, rows[0]["kind"].as_str()), (0, Some("unmanaged")), "{rows:?}");
    nsc.run(&["delete", "account", "acme-corp", "--force"])?;
    ensure!(bulkhead(&home, &["nsc", "check"])?.0 == 2);
    assert!(matches!(ensure_tenant(&store, "acme-corp", PlanName::Pro), Err(OperatorError::ForeignEdit { .. })));
    assert_eq!(bulkhead(&home, &["nsc", "restore", "acme-corp"])?.0, 0);
    nsc.validate_clean()?;

    // A removed tenant leaves nothing that nsc stumbles over.
    store.remove_account("acme-corp", now_s())?;
    nsc.run(&["edit", "account", "By-Hand", "--sk", "generate"])?;
    nsc.run(&["add", "user", "--account", "By-Hand", "--name", "somebody"])?;
    nsc.validate_clean()
}

#[test]
fn seeds_go_between_both_tools_and_a_wrong_one_is_refused() -> anyhow::Result<()> {
    let Some(program) = go_tool(GoTool::Nsc)? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let made = made_by_nsc(folder.path(), &program)?;
    let (home, store) = own_home(folder.path())?;
    let out = folder.path().join("exported");
    made.run(&["export", "keys", "--all", "--dir", &out.display().to_string()])?;
    let (code, rows, said) = bulkhead(&home, &["keys", "import", &out.display().to_string()])?;
    ensure!(code == 0 && rows.len() > 4, "{rows:?} {said}");
    let (_, orphans, _) = bulkhead(&home, &["keys", "list", "--orphans"])?;
    assert_eq!(orphans.len(), rows.len(), "{orphans:?}");
    let ours = folder.path().join("ours");
    let identity = store.claims().sub.clone();
    let args = ["keys", "export", "--to", &ours.display().to_string(), "--key", &identity];
    assert_eq!(bulkhead(&home, &args)?.0, 0);
    assert_eq!(bulkhead(&home, &args)?.0, 4, "a folder that is there is not written into");
    made.run(&["import", "keys", "--dir", &ours.display().to_string()])?;
    // A seed under the name of another key.
    let seed = std::fs::read(ours.join(format!("{identity}.nk")))?;
    let other = orphans[0]["public"].as_str().context("a key")?;
    std::fs::write(ours.join(format!("{other}.nk")), seed)?;
    let (code, _, said) = bulkhead(&home, &["keys", "import", &ours.display().to_string()])?;
    ensure!(code == 4 && said.contains(other) && said.contains(&identity), "{code} {said}");
    Ok(())
}

#[test]
fn two_programs_at_once_lose_nothing() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (home, store) = own_home(folder.path())?;
    let before = store.account("acme-corp")?.context("the tenant")?.claims.iat;
    let start = |_| {
        let mut command = Command::new(program("bulkhead")?);
        command.arg("--home").arg(&home).args(["nsc", "restore", "acme-corp"]);
        anyhow::Ok(command.stdout(std::process::Stdio::null()).spawn()?)
    };
    let running = (0..8).map(start).collect::<Result<Vec<_>, _>>()?;
    for mut child in running {
        ensure!(child.wait()?.success());
    }
    // Each of them signed a token of its own.
    let after = store.account("acme-corp")?.context("the tenant")?.claims.iat;
    ensure!(after >= before + 8, "{before} {after}");
    assert_eq!(bulkhead(&home, &["nsc", "check"])?.0, 0);
    Ok(())
}
