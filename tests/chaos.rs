//! A short fixed set of what `cargo xtask chaos` does at any length: no acknowledged result is lost, whatever breaks.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use bulkhead_tests::chaos::{Disks, Plan, Storm, World, ledger_of, run};
use tokio::process::Command;

/// Every kind of fault once, one after the other, takes some minutes.
const CHAOS_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs the program as `cargo xtask chaos` does: in a mount namespace of its own where that is allowed.
async fn chaos(args: &[&str]) -> anyhow::Result<()> {
    let program = env!("CARGO_BIN_EXE_bulkhead-chaos");
    let namespace = ["--mount", "--propagation", "private"];
    let probe = Command::new("unshare").args(namespace).arg("true").stderr(Stdio::null()).status().await;
    let mut command = if probe.is_ok_and(|status| status.success()) {
        let mut command = Command::new("unshare");
        command.args(namespace).arg(program).arg("--small-disks");
        command
    } else {
        Command::new(program)
    };
    let output = command.args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        tokio::time::timeout(CHAOS_LIMIT, output).await.context("chaos takes too long")?.context("run chaos")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{said}");
    anyhow::ensure!(said.contains("runs balanced"), "{said}");
    // What an ordinary user may not do is said and left out; root may do everything.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0);
    anyhow::ensure!(!is_root || !said.contains("SKIPPED"), "{said}");
    Ok(())
}

#[tokio::test]
async fn every_fault_once_and_the_books_balance() -> anyhow::Result<()> {
    chaos(&["--everything", "--runs", "1", "--seed", "11"]).await
}

#[tokio::test]
async fn faults_at_once_and_the_books_balance() -> anyhow::Result<()> {
    chaos(&["--runs", "3", "--seed", "100", "--faults", "4"]).await
}

/// Changes one row of the ledger in the database, and what the books must say then.
const DAMAGES: [(&str, &str); 4] = [
    (
        "delete from shared.result where (check_name, slot) in (
             select check_name, slot from shared.result where poller = 'ledger' and check_name like $1 limit 1)",
        "are not stored",
    ),
    (
        "update shared.result set latency_us = latency_us + 1 where (check_name, slot) in (
             select check_name, slot from shared.result where poller = 'ledger' and check_name like $1 limit 1)",
        "and is stored as",
    ),
    (
        "insert into shared.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select tenant_id, check_name, slot + interval '7 minutes', vantage, poller, kind, outcome, started_at,
                generation, island, attested
         from shared.result where poller = 'ledger' and check_name like $1 limit 1",
        "was never sent",
    ),
    ("delete from shared.dead_letter where $1 <> '' and strpos(convert_from(payload, 'UTF8'), 'ledger') > 0", "0 times"),
];

/// Control: the books see a row that is lost, one that is altered, one that nobody sent and a letter that is gone.
#[tokio::test]
async fn books_that_do_not_balance_say_so() -> anyhow::Result<()> {
    let mut world = World::start(1, Disks::Shared).await?;
    let mut plan = Plan::draw(1, Storm::Everything, world.surface());
    plan.keep_only("malformed");
    let tenant = plan.faults().find_map(ledger_of).context("a malformed batch is planned")?;
    let report = run(&mut world, plan).await?;
    assert!(report.is_balanced(), "{report}");
    for (damage, expected) in DAMAGES {
        let name = format!("ledger-{}-%", tenant.slug());
        let changed = sqlx::query(damage).bind(name).execute(&world.witness).await?.rows_affected();
        assert!(changed > 0, "{damage}");
        let books = report.add_up_again(&world, tenant).await?;
        assert!(books.problems.iter().any(|problem| problem.contains(expected)), "{expected}: {books}");
    }
    world.deployment.stop().await
}
