//! What is away is a finding, and the rest of the looks go on.

use crate::patient::{Patient, Said};

/// Every finding of these, and no other.
fn wrong_only(said: &Said, expected: &[&str]) {
    let mut wrong = said.wrong();
    wrong.sort();
    let mut expected: Vec<String> = expected.iter().map(|&finding| finding.to_owned()).collect();
    expected.sort();
    assert_eq!(wrong, expected);
}

pub(crate) async fn leaf_core_database_and_hub(patient: &mut Patient) -> anyhow::Result<()> {
    a_leaf(patient).await?;
    the_desk(patient).await?;
    core(patient).await?;
    database(patient).await?;
    everything_hangs(patient).await?;
    a_hub_that_is_dead(patient).await
}

async fn a_leaf(patient: &mut Patient) -> anyhow::Result<()> {
    patient.deployment.up.leaves[0].1.kill()?;
    let expected = [
        "fail leaf-answers acme-corp/oslo",
        "fail process-runs leaf-acme-corp-oslo",
        "fail leaf-linked acme-corp/oslo",
    ];
    let said = patient.has(&["links", "certificates", "streams", "disks"], &expected).await?;
    assert_eq!(said.level("leaf-answers", "xyz-inc/lima")?, "ok");
    assert_eq!(said.level("stream-configuration", "acme-corp/oslo")?, "skip");
    assert_eq!(said.level("certificate-served", "leaf acme-corp/oslo")?, "skip");
    patient.deployment.up.leaves[0].1.restart()?;
    patient.is_well(&[]).await?;
    Ok(())
}

async fn the_desk(patient: &mut Patient) -> anyhow::Result<()> {
    patient.deployment.up.desk.child.kill()?;
    let said = patient.has(&["links", "certificates"], &["fail process-runs enrolment-desk"]).await?;
    assert_eq!(said.level("certificate-served", "enrolment desk")?, "skip");
    patient.deployment.up.desk.child.restart()?;
    let said = patient.is_well(&[]).await?;
    assert_eq!(said.level("certificate-served", "enrolment desk")?, "ok");
    Ok(())
}

async fn core(patient: &mut Patient) -> anyhow::Result<()> {
    patient.deployment.up.core.kill()?;
    let expected = [
        "fail core-answers core",
        "fail process-runs core",
        "fail service-connected core-stream",
        "fail service-connected core-rpc",
        "fail service-connected core-live",
    ];
    patient.has(&["links"], &expected).await?;
    let said = patient.ask(&["lag"]).await?;
    assert_eq!(said.level("core-ready", "core")?, "fail");
    for site in ["acme-corp/oslo", "xyz-inc/lima"] {
        assert_eq!(said.level("newest-slot", site)?, "skip", "core cannot be asked");
    }
    patient.deployment.up.core.restart()?;
    patient.is_well(&[]).await?;
    Ok(())
}

async fn database(patient: &mut Patient) -> anyhow::Result<()> {
    patient.deployment.up.postgres.child.kill()?;
    let said = patient.ask(&["links", "versions", "clock", "drift", "permissions"]).await?;
    for (look, subject, level) in [
        ("database-answers", "database", "fail"),
        ("process-runs", "postgres", "fail"),
        ("postgres-version", "database", "skip"),
        ("clock-database", "database", "skip"),
        ("migrations", "database", "skip"),
        ("row-security", "database", "skip"),
        // What the database has nothing to do with is looked at all the same.
        ("hub-answers", "hub as provisioner", "ok"),
        ("clock-hub", "hub-1", "ok"),
        ("account-in-force", "accounts", "ok"),
        ("secret-owner", "secrets", "ok"),
    ] {
        assert_eq!(said.level(look, subject)?, level, "{look} {subject}");
    }
    patient.deployment.up.postgres.restart().await?;
    patient.witness = patient.deployment.witness().await?;
    patient.is_well(&[]).await?;
    Ok(())
}

/// They take connections and never say a word: the worst that servers can do to whoever waits.
async fn everything_hangs(patient: &mut Patient) -> anyhow::Result<()> {
    let up = &patient.deployment.up;
    let children = [&up.hub_servers[0].child, &up.core, &up.postgres.child, &up.leaves[0].1];
    children.iter().try_for_each(|child| child.pause())?;
    let said = patient.ask(&[]).await;
    children.iter().try_for_each(|child| child.resume())?;
    let said = said?;
    for (look, subject, level) in [
        ("hub-answers", "hub as system operator", "fail"),
        ("database-answers", "database", "fail"),
        ("leaf-answers", "acme-corp/oslo", "fail"),
        ("certificate-served", "hub-1 for clients", "skip"),
        ("process-runs", "core", "fail"),
        ("newest-slot", "acme-corp/oslo", "skip"),
        ("newest-slot", "xyz-inc/lima", "skip"),
        ("core-ready", "core", "fail"),
        ("row-security", "database", "skip"),
        ("leaf-answers", "xyz-inc/lima", "ok"),
        ("stream-configuration", "xyz-inc/lima RESULTS_EDGE", "ok"),
        ("secret-mode", "secrets", "ok"),
    ] {
        assert_eq!(said.level(look, subject)?, level, "{look} {subject}");
    }
    patient.is_well(&[]).await?;
    Ok(())
}

async fn a_hub_that_is_dead(patient: &mut Patient) -> anyhow::Result<()> {
    patient.deployment.up.hub().kill()?;
    let said = patient.ask(&["links", "disks", "streams", "drift"]).await?;
    let users = ["system operator", "provisioner", "a person"].map(|user| format!("fail hub-answers hub as {user}"));
    let [one, two, three] = &users;
    wrong_only(&said, &[one, two, three, "fail process-runs hub"]);
    for (look, subject) in [
        ("core-answers", "core"),
        ("leaf-linked", "leaves"),
        ("jetstream-writes", "hub"),
        ("stream-configuration", "RESULTS"),
        ("account-in-force", "accounts"),
    ] {
        assert_eq!(said.level(look, subject)?, "skip", "{look}");
    }
    patient.deployment.up.hub().restart()?;
    patient.is_well(&[]).await?;
    Ok(())
}

/// The home of a deployment that was ended: its files can be looked at, and it says that nothing runs.
pub(crate) async fn nothing_runs(patient: Patient) -> anyhow::Result<()> {
    let Patient { deployment, .. } = patient;
    let home = deployment.stop_and_keep().await?;
    let program = bulkhead_testkit::deployment::program("bulkhead")?;
    let output = tokio::process::Command::new(program).arg("--home").arg(home.path()).arg("doctor").output().await?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(3), "{text}");
    let failures = text.lines().filter(|line| line.starts_with("  fail ")).collect::<Vec<_>>();
    assert!(failures.len() == 1 && failures[0].contains("deployment-runs"), "{text}");
    assert!(text.contains("start it: bulkhead --home") && text.contains("what they need is away"), "{text}");
    for command in ["status", "hub"] {
        says_once_why_nothing_is_reached(home.path(), command).await?;
    }
    refuses_what_is_no_home().await
}

/// Whoever asks a deployment that does not run is told why, once, and what looks further.
async fn says_once_why_nothing_is_reached(home: &std::path::Path, command: &str) -> anyhow::Result<()> {
    let program = bulkhead_testkit::deployment::program("bulkhead")?;
    let args: &[&str] = if command == "hub" { &["hub", "status"] } else { &[command] };
    let output = tokio::process::Command::new(program).arg("--home").arg(home).args(args).output().await?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.matches("Connection refused").count() == 1 && said.contains("`bulkhead doctor`"), "{said}");
    Ok(())
}

async fn refuses_what_is_no_home() -> anyhow::Result<()> {
    let empty = tempfile::tempdir()?;
    let program = bulkhead_testkit::deployment::program("bulkhead")?;
    for (args, part) in
        [(["doctor", "--json", "--verbose"], "bulkhead up"), (["doctor", "--area", "disk"], "choose links, versions")]
    {
        let mut command = tokio::process::Command::new(&program);
        let output = command.arg("--home").arg(empty.path()).args(args).output().await?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains(part) && output.stdout.is_empty(), "{said}");
    }
    Ok(())
}
