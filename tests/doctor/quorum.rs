//! A hub of three servers of which two are frozen: one finding says so, and what follows from it is no finding.

use bulkhead_testkit::TestDeployment;
use bulkhead_testkit::deployment::TRIAL;

use crate::patient::{Patient, Said};

/// Looks that see what is away itself, and results that are late because of it.
const CAUSES: [&str; 5] = ["hub-quorum", "hub-server", "process-runs", "newest-slot", "oldest-message"];

fn says_once_what_is_away(said: &Said) -> anyhow::Result<()> {
    let first = said.lines.iter().find(|line| line["level"] == "fail").map(|line| &line["found"]);
    let expected = "two of three are away: nothing is stored until one is back (hub-2, hub-3)";
    assert_eq!(first, Some(&expected.into()), "the cause comes first");
    let others: Vec<String> = said.wrong().into_iter().filter(|one| !CAUSES.iter().any(|c| one.contains(c))).collect();
    assert_eq!(others, Vec::<String>::new(), "what follows from it");
    for (look, subject, level) in [
        ("hub-server", "hub-1", "ok"),
        ("hub-server", "hub-2", "fail"),
        ("process-runs", "hub-3", "fail"),
        ("process-runs", "hub", "ok"),
        ("jetstream-writes", "hub-1", "skip"),
        ("stream-copies", "hub RESULTS", "skip"),
        ("stream-configuration", "hub RESULTS", "skip"),
        ("consumer-configuration", "hub BACKFILL", "skip"),
        ("certificate-served", "hub-1 for clients", "ok"),
        ("certificate-served", "hub-2 for clients", "skip"),
        ("certificate-served", "hub-3 for leaves", "skip"),
        ("account-in-force", "accounts", "ok"),
    ] {
        assert_eq!(said.level(look, subject)?, level, "{look} {subject}");
    }
    let stopped = said.of("process-runs", "hub-2")?;
    assert!(stopped["found"].to_string().contains("stopped"), "{stopped}");
    assert!(stopped["advice"].to_string().contains("kill -CONT"), "{stopped}");
    Ok(())
}

pub(crate) async fn two_of_three_are_frozen() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_cluster(&TRIAL).await?;
    let witness = deployment.witness().await?;
    deployment.wait_for_results(&witness).await?;
    let patient = Patient { deployment, witness };
    let said = patient.is_well(&[]).await?;
    assert_eq!(said.of("hub-quorum", "hub")?["found"], "three of three are there");

    let frozen = &patient.deployment.up.hub_servers[1..];
    frozen.iter().try_for_each(|server| server.child.pause())?;
    // Once just after it, and once when results are late, long after the last server has noticed.
    let soon = patient.ask(&[]).await;
    let late = bulkhead_runtime::eventually("results that are late", bulkhead_testkit::LIMIT, || async {
        let said = patient.ask(&["lag"]).await.map_err(|error| format!("{error:#}"))?;
        let level = said.level("newest-slot", "acme-corp/oslo").map_err(|error| format!("{error:#}"))?;
        if level == "ok" { Err("they are not late".to_owned()) } else { Ok(()) }
    });
    let late = late.await;
    let later = patient.ask(&[]).await;
    frozen.iter().try_for_each(|server| server.child.resume())?;
    says_once_what_is_away(&soon?)?;
    late?;
    says_once_what_is_away(&later?)?;
    patient.is_well(&[]).await?;
    Ok(())
}
