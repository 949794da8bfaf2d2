//! From the token to the first result, on a machine that has nothing but the two programs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use bulkhead_identity::EnrolmentClaims;
use bulkhead_runtime::eventually;
use bulkhead_testkit::LIMIT;
use bulkhead_tests::machine::{Machine, neighbouring_ports};
use bulkhead_tests::operator::Operator;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use sqlx::PgPool;

use crate::device::Ground;

pub(crate) const SITE: &str = "bergen";

pub(crate) async fn results_of(witness: &PgPool, poller: &str) -> anyhow::Result<i64> {
    let sql = "select count(*) from everywhere.result r join platform.tenant t using (tenant_id)
               where t.slug = 'acme-corp' and r.vantage = $1 and r.poller = $2 and r.outcome = 'ok' and r.attested";
    sqlx::query_scalar(sql).bind(SITE).bind(poller).fetch_one(witness).await.context("count results")
}

pub(crate) async fn wait_for_more(witness: &PgPool, machine: &Machine, poller: &str) -> anyhow::Result<()> {
    let had = results_of(witness, poller).await?;
    let more = eventually("results of the poller", LIMIT, || async {
        let now = results_of(witness, poller).await.map_err(|error| error.to_string())?;
        if now > had { Ok(()) } else { Err(format!("{now} results")) }
    });
    more.await.with_context(|| machine.logs())
}

pub(crate) async fn enroll(
    machine: &Machine,
    folder: &Path,
    words: &[&str],
) -> anyhow::Result<(Option<i32>, Value, String)> {
    let to = folder.display().to_string();
    let words = [&["bulkhead-poller", "enroll", "--json", "--to", &to], words].concat();
    std::fs::create_dir_all(&machine.bundle)?;
    let command = machine.command(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())?;
    let output = tokio::process::Command::from(command).output().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said))
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Private keys are the machine's alone: for their owner only there, and nowhere in the platform's home.
fn keys_are_only_there(folder: &Path, home: &Path, poller: &str) -> anyhow::Result<()> {
    let own = format!("pollers/{poller}");
    let secrets = ["tls/leaf.key", "tls/listener.key"]
        .map(str::to_owned)
        .into_iter()
        .chain(["poller.key", "forwarder.key", "batch.nk", "sealing.xk"].map(|name| format!("{own}/{name}")));
    let mut files = Vec::new();
    files_below(home, &mut files)?;
    ensure!(files.len() > 100, "the home holds {} files", files.len());
    for secret in secrets {
        let path = folder.join(&secret);
        let mode = std::fs::metadata(&path).with_context(|| secret.clone())?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{secret} has mode {mode:o}");
        let text = std::fs::read_to_string(&path)?;
        let line = text.lines().find(|line| !line.starts_with("---")).context("a line")?;
        for file in &files {
            let holds =
                std::fs::read(file).is_ok_and(|bytes| bytes.windows(line.len()).any(|part| part == line.as_bytes()));
            ensure!(!holds, "{} holds {secret}", file.display());
        }
    }
    Ok(())
}

/// Of a machine elsewhere the doctor knows what hub and core have of it.
async fn doctor_calls_it(operator: &Operator<'_>, level: &str) -> anyhow::Result<()> {
    let output = operator.run(&["doctor", "--area", "links", "--area", "lag"]).await?;
    let text = String::from_utf8(output.stdout)?;
    let found: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    for (look, subject) in
        [("site-linked", format!("acme-corp/{SITE}")), ("poller-heard", format!("acme-corp/{SITE}/p1"))]
    {
        let row = found.iter().find(|row| row["look"] == look && row["subject"] == subject.as_str());
        let row = row.with_context(|| format!("{look} of {subject}: {text}"))?;
        ensure!(row["level"] == level, "{level}: {row}");
    }
    Ok(())
}

fn batch_seed(machine: &Machine) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(machine.bundle.join("pollers/p1/batch.nk"))?)
}

/// With the token that the machine has used, or with another one.
async fn nobody_else_gets_anything(ground: &Ground, machine: &Machine, token_file: &str) -> anyhow::Result<()> {
    let folder = &machine.bundle;
    // Its answer might have been lost: the same machine may ask again. Another one may not, and is told so.
    let (code, _, error) = enroll(machine, folder, &["--token-file", token_file]).await?;
    ensure!(code == Some(0), "{error}");
    let thief = machine.logs.path().join("thief");
    let (code, _, error) = enroll(machine, &thief, &["--token-file", token_file]).await?;
    ensure!(code == Some(7) && error.contains("used already"), "{code:?} {error}");
    ensure!(!thief.join("MANIFEST.json").exists(), "it got something");
    // Another site's folder is left alone, and so is what is no token.
    let lima = ground.token("xyz-inc/lima/p9").await?;
    let (code, _, error) = enroll(machine, folder, &[&lima]).await?;
    ensure!(code == Some(4) && error.contains("acme-corp/bergen"), "{code:?} {error}");
    let (code, _, error) = enroll(machine, folder, &[&lima[..lima.len() / 2]]).await?;
    ensure!(code == Some(4), "{code:?} {error}");

    // Another platform's root in the token: nothing is said to whoever answers.
    let claims = EnrolmentClaims::read(&std::fs::read_to_string(token_file)?)?;
    let root = bulkhead_testkit::Forger::root("server-root");
    let root = rustls_pki_types::CertificateDer::from_pem_slice(root.pem().as_bytes())?;
    let elsewhere = EnrolmentClaims { root: data_encoding::BASE64.encode(&root), ..claims };
    let elsewhere = format!("e30.{}.e30", data_encoding::BASE64URL_NOPAD.encode(&serde_json::to_vec(&elsewhere)?));
    let (code, _, error) = enroll(machine, folder, &[&elsewhere]).await?;
    ensure!(code == Some(7) && error.contains("invalid peer certificate"), "{code:?} {error}");

    // New keys that nobody gives certificates for leave the old ones in place.
    let seed = batch_seed(machine)?;
    let (code, _, error) = enroll(machine, folder, &["--new-keys", "--token-file", token_file]).await?;
    ensure!(code == Some(7) && batch_seed(machine)? == seed, "{code:?} {error}");
    Ok(())
}

/// A bundle could not be written anew beside a machine that has enrolled, in whichever order they come.
async fn tokens_and_bundles_do_not_mix(ground: &Ground, machine: &Machine) -> anyhow::Result<()> {
    let operator = ground.operator();
    let to = machine.logs.path().join("voss-bundles").display().to_string();
    let token = ground.token("acme-corp/voss/p1").await?;
    let (_, said) = operator.expect(4, &["poller", "add", "acme-corp/voss/p2", "--to", &to]).await?;
    ensure!(said.contains("acme-corp/voss/p1"), "{said}");
    // For itself a poller has the one or the other.
    operator.expect(0, &["poller", "add", "acme-corp/voss/p1", "--to", &to]).await?;
    let (code, _, error) = enroll(machine, &machine.logs.path().join("voss"), &[&token]).await?;
    ensure!(code == Some(7) && error.contains("token_withdrawn"), "{code:?} {error}");
    let (_, said) = operator.expect(4, &["poller", "add", "acme-corp/voss/p2"]).await?;
    ensure!(said.contains("pollers of a bundle (p1)"), "{said}");
    operator.expect(0, &["site", "remove", "acme-corp/voss", "--with-pollers"]).await.map(drop)
}

#[tokio::test]
async fn a_machine_makes_its_keys_enrols_and_measures() -> anyhow::Result<()> {
    let mut ground = Ground::start().await?;
    let witness = ground.deployment.witness().await?;
    let machine = Machine::new("site")?;
    let folder = machine.bundle.clone();
    let ports = [neighbouring_ports(1)?, neighbouring_ports(2)?].map(|port| port.to_string());
    let path = |poller: &str| format!("acme-corp/{SITE}/{poller}");
    let token_file = machine.logs.path().join("p1.token").display().to_string();
    let add = ["poller", "add", &path("p1"), "--leaf-port", &ports[0], "--health-port", &ports[1]];
    let operator = ground.operator();
    let (would, _) = operator.expect(0, &[&add[..], &["--dry-run"]].concat()).await?;
    ensure!(would[0]["token"].is_null(), "{would:?}");
    let (added, _) = operator.expect(0, &[&add[..], &["--token-file", &token_file]].concat()).await?;
    ensure!(added[0]["token"].is_null(), "a token that is in a file is shown: {added:?}");
    let (shown, _) = operator.expect(0, &["poller", "show", &path("p1")]).await?;
    ensure!(shown[0]["token"]["state"] == "open", "{shown:?}");

    let (code, said, error) = enroll(&machine, &folder, &["--token-file", &token_file]).await?;
    ensure!(code == Some(0) && said["enrolled"] == path("p1"), "{code:?} {said} {error}");
    keys_are_only_there(&folder, ground.deployment.home(), "p1")?;
    doctor_calls_it(&operator, "warn").await?;
    let running = machine.start()?;
    wait_for_more(&witness, &machine, "p1").await?;
    doctor_calls_it(&operator, "ok").await?;

    let seed = batch_seed(&machine)?;
    nobody_else_gets_anything(&ground, &machine, &token_file).await?;

    // A bundle would end it, so there is none.
    let to = machine.logs.path().join("bundles").display().to_string();
    let (_, error) = operator.expect(4, &["poller", "add", &path("p2"), "--to", &to]).await?;
    ensure!(error.contains("p1"), "{error}");
    tokens_and_bundles_do_not_mix(&ground, &machine).await?;
    let (_, said) = operator.expect(0, &["poller", "show", &path("p1")]).await?;
    ensure!(!said.contains("was begun"), "an act is open that can never be closed: {said}");

    // A second poller in the same folder: the first one stays who it is.
    let batch_key = async |poller: &str| -> anyhow::Result<Value> {
        let (shown, _) = operator.expect(0, &["poller", "show", &path(poller)]).await?;
        Ok(shown[0]["record"]["batch_key"].clone())
    };
    let first = batch_key("p1").await?;
    let token = ground.token(&path("p2")).await?;
    let (code, _, error) = enroll(&machine, &folder, &[&token]).await?;
    ensure!(code == Some(0), "{error}");
    ensure!(batch_key("p1").await? == first, "the first one has another key now");
    running.kill().await?;
    let running = machine.start()?;
    for poller in ["p1", "p2"] {
        wait_for_more(&witness, &machine, poller).await?;
    }

    // The desk is killed: it is started again, and machines find it.
    let token = ground.token(&path("p1")).await?;
    ground.deployment.up.desk.child.kill()?;
    let mended = eventually("the desk started again", LIMIT, || {
        std::future::ready(match ground.deployment.up.look_after() {
            Ok(notes) if notes.is_empty() => Err("nothing to mend".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
    });
    mended.await?;
    let (code, _, error) = enroll(&machine, &folder, &["--new-keys", &token]).await?;
    ensure!(code == Some(0), "{error}");
    let operator = ground.operator();
    let (shown, _) = operator.expect(0, &["poller", "show", &path("p1")]).await?;
    ensure!(
        shown[0]["record"]["batch_key"] != first && batch_seed(&machine)? != seed,
        "a new key was asked for: {shown:?}"
    );
    ensure!(
        !folder.join("pollers/p1/batch.nk.new").exists() && !folder.join("pollers/p1/.new-keys").exists(),
        "it is half done"
    );
    running.kill().await?;
    let _running = machine.start()?;
    wait_for_more(&witness, &machine, "p1").await?;
    ground.deployment.stop().await
}
