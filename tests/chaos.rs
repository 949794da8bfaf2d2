//! A short fixed set of what `cargo xtask chaos` does at any length: no acknowledged result is lost, whatever breaks.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use bulkhead_tests::chaos::books::Books;
use bulkhead_tests::chaos::{Disks, Plan, Storm, World, ledger_of, run};
use sqlx::AssertSqlSafe;
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
    anyhow::ensure!(said.contains("balanced, seeds"), "{said}");
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

/// Changes the rows, in the schema PLACE, of the tenant whose ledger's checks are like `$1`, and what the books must say then and did not
/// before. One comes on top of the other.
const DAMAGES: [(&str, &str); 16] = [
    (
        "update PLACE.check_state set latency_us = latency_us + 1 where (check_name, vantage) in (
             select check_name, vantage from PLACE.check_state where check_name like $1 limit 1)",
        "the current state is not the newest row",
    ),
    (
        "update PLACE.check_state set since = since - interval '1 millisecond' where (check_name, vantage) in (
             select check_name, vantage from PLACE.check_state where check_name like $1 limit 1)",
        "the current state is since another slot",
    ),
    (
        "insert into PLACE.check_state select tenant_id, 'resolver-2', vantage, 'p1', kind, slot, outcome, reason, latency_us, since
         from PLACE.check_state where check_name like $1 limit 1",
        "check_state of ",
    ),
    (
        "update PLACE.poller_seen set site = 'elsewhere' where poller = 'p1' and tenant_id = (
             select tenant_id from PLACE.result where check_name like $1 limit 1)",
        "poller_seen of elsewhere/p1",
    ),
    ("update PLACE.dead_letter set subject = subject || '.more' where $1 <> ''", "dead_letter of "),
    (
        "insert into PLACE.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select tenant_id, check_name, slot, 'elsewhere', poller, kind, outcome, started_at, generation, island, attested
         from PLACE.result where poller = 'p1' and check_name not like 'shared-%' and tenant_id = (
             select tenant_id from PLACE.result where check_name like $1 limit 1) limit 1",
        "result of elsewhere/p1",
    ),
    (
        "insert into PLACE.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select tenant_id, check_name, slot - interval '1 second', vantage, poller, kind, outcome, started_at, generation,
                island, attested
         from PLACE.result where poller = 'p1' and vantage <> 'elsewhere' and check_name not like 'shared-%' and tenant_id = (
             select tenant_id from PLACE.result where check_name like $1 limit 1) order by slot desc limit 1",
        "slots of the real poller",
    ),
    (
        "delete from PLACE.result where (check_name, slot) in (
             select check_name, slot from PLACE.result where poller = 'ledger' and check_name like $1 limit 1)",
        "acknowledged results are not stored",
    ),
    (
        "update PLACE.result set latency_us = latency_us + 1 where (check_name, slot) in (
             select check_name, slot from PLACE.result where poller = 'ledger' and check_name like $1 limit 1)",
        "is stored otherwise than it was sent",
    ),
    (
        "insert into PLACE.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, latency_us, started_at,
                                    generation, island, attested)
         select tenant_id, check_name, slot, 'elsewhere', poller, kind, outcome, latency_us, started_at, generation,
                island, attested
         from PLACE.result where poller = 'ledger' and check_name like $1 limit 1",
        "is stored more than once",
    ),
    (
        "insert into PLACE.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select tenant_id, check_name, slot + interval '7 minutes', vantage, poller, kind, outcome, started_at,
                generation, island, attested
         from PLACE.result where poller = 'ledger' and check_name like $1 limit 1",
        "was never sent",
    ),
    ("delete from PLACE.dead_letter where $1 <> '' and strpos(encode(payload, 'escape'), 'ledger') > 0", "0 times"),
    (
        "insert into PLACE.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select tenant_id, check_name, slot, 'elsewhere', poller, kind, outcome, started_at, generation, island, attested
         from PLACE.result r where check_name = 'shared-0' and SHARED limit 1",
        "slots of a shared check are there twice",
    ),
    (
        "insert into PLACE.result (tenant_id, check_name, slot, vantage, poller, kind, outcome, started_at, generation,
                                    island, attested)
         select tenant_id, check_name, slot + interval '1 millisecond', vantage, poller, kind, outcome, started_at, generation,
                island, attested
         from PLACE.result r where check_name = 'shared-1' and SHARED limit 1",
        "measurements and gaps of a shared check are not its slots",
    ),
    (
        "update PLACE.result set outcome = 'missed', reason = null where (tenant_id, check_name, slot) in (
             select tenant_id, check_name, slot from PLACE.result r where check_name = 'shared-2' and SHARED limit 1)",
        "missed shared-2",
    ),
    (
        "delete from PLACE.result where (tenant_id, check_name, slot) in (
             select tenant_id, check_name, slot from PLACE.result r where check_name = 'shared-3' and SHARED limit 1)",
        "silent shared-3",
    ),
];

/// Of a row `r`: it is the tenant's, and of the time of the run, in which its ledger was written.
const SHARED: &str = "exists (
    select from PLACE.result l where l.poller = 'ledger' and l.check_name like $1
    group by l.tenant_id having l.tenant_id = r.tenant_id and r.slot between min(l.slot) and max(l.slot))";

/// Control: the books see each of the damages, and nothing that is none.
#[tokio::test]
async fn books_that_do_not_balance_say_so() -> anyhow::Result<()> {
    let mut world = World::start(1, Disks::Shared).await?;
    let mut plan = Plan::draw(1, Storm::Everything, world.surface());
    plan.keep_only("malformed");
    // Nothing else happens between them.
    plan.overlapping.iter_mut().for_each(|planned| planned.begins = Duration::from_secs(1));
    let tenant = plan.faults().find_map(ledger_of).context("a malformed batch is planned")?;
    let report = run(&mut world, plan).await?;
    assert!(report.is_balanced(), "{report}");
    let sql = "select coalesce((select schema from platform.tenant_schema join platform.tenant using (tenant_id) where slug = $1),
                        'shared')";
    let place: String = sqlx::query_scalar(sql).bind(tenant.slug()).fetch_one(&world.witness).await?;
    for (damage, expected) in DAMAGES {
        let says_so = |books: &Books| books.problems.iter().any(|problem| problem.contains(expected));
        let books = report.add_up_again(&world, tenant).await?;
        assert!(!says_so(&books), "{expected}: {books}");
        let name = format!("ledger-{}-%", tenant.slug());
        let damage = damage.replace("SHARED", SHARED).replace("PLACE", &place);
        let changed =
            sqlx::query(AssertSqlSafe(damage.clone())).bind(name).execute(&world.witness).await?.rows_affected();
        assert!(changed > 0, "{damage}");
        let books = report.add_up_again(&world, tenant).await?;
        assert!(says_so(&books), "{expected}: {books}");
    }
    world.deployment.stop().await
}
