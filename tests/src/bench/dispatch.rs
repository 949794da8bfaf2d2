//! Sharing checks out: how long a large plan takes and how much it moves, how evenly slots are spread, how soon a change is on the
//! poller, and how soon a lost one is taken over.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_bus::payload::CheckKind;
use bulkhead_bus::{CheckName, Grid, PollerName, SiteName};
use bulkhead_poller_dispatch::plan::{
    Kinds, Labels, Member, Placement, Situation, Standing, Wanted, participants, share_out,
};
use bulkhead_runtime::eventually;
use bulkhead_testkit::{LIMIT, TestDeployment, scrape};
use serde_json::json;
use sqlx::PgPool;

use super::report::machine;
use crate::operator::Operator;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct DispatchPlan {
    pub checks: usize,
    pub pollers: usize,
    /// Changes whose way to the poller is timed.
    pub changes: usize,
    /// Pollers that are killed, in each class of lease.
    pub losses: usize,
}

/// A plan from nothing, again, without one poller and with one more.
#[derive(Debug, Clone)]
pub struct Planned {
    pub first: Duration,
    pub again: Duration,
    pub moved_again: usize,
    pub lost: Duration,
    pub moved_lost: usize,
    pub joined: Duration,
    pub moved_joined: usize,
    /// The largest load over the mean.
    pub most_to_mean: f64,
}

#[derive(Debug, Clone)]
pub struct DispatchMeasured {
    pub plan: DispatchPlan,
    pub planned: Planned,
    /// Slots of 10,000 checks of 10 s by tenth of a second: the most over the mean.
    pub spread: f64,
    pub changed: Vec<Duration>,
    /// By class: from the kill to the plan, and to the first slot that another one measured.
    pub failovers: BTreeMap<&'static str, Vec<(Duration, Duration)>>,
}

fn site() -> SiteName {
    "oslo".parse().expect("a site's name")
}

fn poller(number: usize) -> PollerName {
    format!("p{number}").parse().expect("a poller's name")
}

fn member(number: usize) -> Member {
    Member {
        site: site(),
        poller: poller(number),
        weight: 64,
        kinds: Kinds::of(CheckKind::Tcp),
        labels: Labels::new(),
        checks_most: 0,
        standing: Standing::Takes,
    }
}

fn moved(before: &Placement, after: &Placement) -> usize {
    let differs =
        |(check, places): &(&CheckName, &BTreeMap<SiteName, Option<PollerName>>)| after.get(*check) != Some(*places);
    before.iter().filter(differs).count()
}

fn most_to_mean(placement: &Placement, pollers: usize) -> f64 {
    let mut counts: BTreeMap<&PollerName, usize> = BTreeMap::new();
    for owner in placement.values().flat_map(BTreeMap::values).flatten() {
        *counts.entry(owner).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    most as f64 * pollers as f64 / placement.len().max(1) as f64
}

fn timed(situation: &Situation) -> (Duration, Placement) {
    let began = Instant::now();
    let placement = share_out(situation);
    (began.elapsed(), placement)
}

fn measure_planning(plan: DispatchPlan) -> Planned {
    let check = |number: usize| Wanted {
        name: format!("c{number}").parse().expect("a check's name"),
        kinds: Kinds::of(CheckKind::Tcp),
        target: format!("10.{}.{}.{}:22", number >> 16 & 255, number >> 8 & 255, number & 255),
        interval_s: 10,
        sites: vec![site()],
        labels: Labels::new(),
        vantages: None,
    };
    let mut situation = Situation {
        tenant: "acme-corp".to_owned(),
        checks: (0..plan.checks).map(check).collect(),
        members: (0..plan.pollers).map(member).collect(),
        ..Situation::default()
    };
    let (first, placed) = timed(&situation);
    let most_to_mean = most_to_mean(&placed, plan.pollers);
    situation.known = participants(&situation);
    situation.owners = placed.clone();
    let (again, placed_again) = timed(&situation);
    let mut smaller = situation.clone();
    smaller.members[0].standing = Standing::Lost;
    let (lost, placed_lost) = timed(&smaller);
    let mut larger = situation;
    larger.members.push(member(plan.pollers));
    let (joined, placed_joined) = timed(&larger);
    Planned {
        first,
        again,
        moved_again: moved(&placed, &placed_again),
        lost,
        moved_lost: moved(&placed, &placed_lost),
        joined,
        moved_joined: moved(&placed, &placed_joined),
        most_to_mean,
    }
}

/// The most slots in a tenth of a second over the mean.
fn measure_spread() -> f64 {
    const CHECKS: usize = 10_000;
    const BUCKETS: usize = 100;
    let mut buckets = [0_usize; BUCKETS];
    for number in 0..CHECKS {
        let name = format!("check-{number}").parse().expect("a check's name");
        let phase = Grid::new(&name, Duration::from_secs(10)).phase_ms();
        buckets[usize::try_from(phase / 100).unwrap_or(0)] += 1;
    }
    let most = buckets.iter().copied().max().unwrap_or(0);
    most as f64 * BUCKETS as f64 / CHECKS as f64
}

async fn applied(deployment: &TestDeployment, who: &str) -> Result<i64, String> {
    let page = deployment.metrics(who).await.map_err(|error| format!("{error:#}"))?;
    let found = page.value("poller_assignment_generation", &[]).ok_or("it shows no generation")?;
    Ok(found as i64)
}

async fn generation(witness: &PgPool) -> anyhow::Result<i64> {
    let sql = "select coalesce((select generation from tenant_acme_corp.dispatch_state), 0)";
    Ok(sqlx::query_scalar(sql).fetch_one(witness).await?)
}

/// From the end of the command that changes a check to when its poller has applied that.
async fn measure_changes(
    deployment: &TestDeployment,
    witness: &PgPool,
    changes: usize,
) -> anyhow::Result<Vec<Duration>> {
    let operator = Operator { home: deployment.home() };
    let mut taken = Vec::new();
    for number in 0..changes {
        let before = generation(witness).await?;
        let interval = format!("{}s", 5 + number % 2);
        operator.expect(0, &["check", "edit", "c0", "--tenant", "acme-corp", "--interval", &interval]).await?;
        let began = Instant::now();
        eventually("the poller has applied the change", LIMIT, || async {
            let wanted = generation(witness).await.map_err(|error| format!("{error:#}"))?;
            let owner = "select poller from tenant_acme_corp.assignment where check_name = 'c0' and vantage = 'oslo'
                         order by generation desc limit 1";
            let owner: String =
                sqlx::query_scalar(owner).fetch_one(witness).await.map_err(|error| error.to_string())?;
            let have = applied(deployment, &format!("acme-corp/oslo/{owner}")).await?;
            // Before it is planned the wanted one is the old one.
            if wanted > before && have >= wanted { Ok(()) } else { Err(format!("{have} of {wanted}")) }
        })
        .await?;
        taken.push(began.elapsed());
    }
    Ok(taken)
}

/// Kills p2 of oslo so often, and times the plan and the first slot of another one.
async fn measure_failover(
    deployment: &mut TestDeployment,
    witness: &PgPool,
    losses: usize,
) -> anyhow::Result<Vec<(Duration, Duration)>> {
    let mut taken = Vec::new();
    for _ in 0..losses {
        wait_until_believed(deployment).await?;
        let owned = "select count(*) from tenant_acme_corp.assignment
                     where vantage = 'oslo' and poller = 'p2' and ended_generation is null";
        eventually("both have their share", LIMIT, || async {
            let count: i64 = sqlx::query_scalar(owned).fetch_one(witness).await.map_err(|error| error.to_string())?;
            if count > 0 { Ok(()) } else { Err("p2 has none".to_owned()) }
        })
        .await?;
        let names = "select check_name from tenant_acme_corp.assignment
                     where vantage = 'oslo' and poller = 'p2' and ended_generation is null";
        let names: Vec<String> = sqlx::query_scalar(names).fetch_all(witness).await?;
        let victim = deployment.up.pollers.iter_mut().find(|(_, name, _)| name.as_str() == "p2").context("p2 runs")?;
        victim.2.kill()?;
        let began = Instant::now();
        eventually("nobody waits for p2", LIMIT, || async {
            let count: i64 = sqlx::query_scalar(owned).fetch_one(witness).await.map_err(|error| error.to_string())?;
            if count == 0 { Ok(()) } else { Err(format!("p2 has {count}")) }
        })
        .await?;
        let planned = began.elapsed();
        let measured = "select count(*) from tenant_acme_corp.check_state
                        where vantage = 'oslo' and check_name = any($1) and poller <> 'p2' and outcome <> 'missed'";
        eventually("the others measure what was p2's", LIMIT, || async {
            let count = sqlx::query_scalar::<_, i64>(measured).bind(&names).fetch_one(witness).await;
            let count = count.map_err(|error| error.to_string())?;
            if usize::try_from(count).is_ok_and(|count| count >= names.len()) {
                Ok(())
            } else {
                Err(format!("{count}"))
            }
        })
        .await?;
        taken.push((planned, began.elapsed()));
        victim_restart(deployment)?;
    }
    Ok(taken)
}

fn victim_restart(deployment: &mut TestDeployment) -> anyhow::Result<()> {
    let victim = deployment.up.pollers.iter_mut().find(|(_, name, _)| name.as_str() == "p2").context("p2 runs")?;
    Ok(victim.2.restart()?)
}

/// # Errors
/// When a deployment does not start, or something does not happen in time.
pub async fn run_dispatch(plan: DispatchPlan, say: &dyn Fn(&str)) -> anyhow::Result<DispatchMeasured> {
    say(&format!("planning {} checks for {} pollers", plan.checks, plan.pollers));
    let planned = measure_planning(plan);
    let spread = measure_spread();
    let lines = [
        "acme-corp enterprise oslo/p1 oslo/p2 oslo/p3 oslo/p4 oslo/p5 bergen/p1 bergen/p2 bergen/p3 bergen/p4 bergen/p5",
    ];
    let (mut changed, mut failovers) = (Vec::new(), BTreeMap::new());
    for class in ["normal", "fast"] {
        say(&format!("starting five pollers at each of two sites, leases of class {class}"));
        let mut deployment = TestDeployment::start_with(&lines, &[]).await?;
        let witness = deployment.witness().await?;
        if class == "fast" {
            make_fast(&deployment).await?;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        add_checks(&deployment, port).await?;
        if class == "normal" {
            say("changing a check, again and again");
            changed = measure_changes(&deployment, &witness, plan.changes).await?;
        }
        say("killing a poller, again and again");
        failovers.insert(class, measure_failover(&mut deployment, &witness, plan.losses).await?);
        deployment.stop().await?;
    }
    Ok(DispatchMeasured { plan, planned, spread, changed, failovers })
}

async fn add_checks(deployment: &TestDeployment, port: u16) -> anyhow::Result<()> {
    let check = |number: usize| {
        json!({"name": format!("c{number}"), "type": "tcp", "interval": "1s", "timeout": "500ms",
            "target": format!("127.0.0.{}:{port}", number + 1), "sites": ["oslo", "bergen"]})
    };
    let file = deployment.home().join("checks.yaml");
    let checks: Vec<_> = (0..100).map(check).collect();
    std::fs::write(&file, serde_json::to_string(&json!({"checks": checks}))?)?;
    let path = file.display().to_string();
    Operator { home: deployment.home() }.expect(0, &["check", "apply", "--tenant", "acme-corp", "-f", &path]).await?;
    Ok(())
}

/// Gives every poller the fast class, which it takes up as it runs.
async fn make_fast(deployment: &TestDeployment) -> anyhow::Result<()> {
    for (_, _, child) in &deployment.up.pollers {
        let path = child.spec().args.last().cloned().context("a settings file")?;
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, format!("{text}\n[lease]\nclass = \"fast\"\n"))?;
    }
    let operator = Operator { home: deployment.home() };
    eventually("all leases are fast", LIMIT, || async {
        let asked = operator.expect(0, &["poller", "status", "--tenant", "acme-corp"]).await;
        let (rows, _) = asked.map_err(|error| format!("{error:#}"))?;
        let is_fast = |row: &serde_json::Value| row["class"] == "fast" && row["state"] == "ready";
        if rows.iter().all(is_fast) { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await?;
    Ok(())
}

/// A registry that is in doubt takes nobody for lost: that is another figure.
async fn wait_until_believed(deployment: &TestDeployment) -> anyhow::Result<()> {
    let registries = deployment.up.health_ports.iter().filter(|(name, _)| name.starts_with("registry"));
    for (_, port) in registries {
        eventually("the registry knows who is there", LIMIT, || async {
            let (_, page) = scrape::get(*port, "/metrics").await.map_err(|error| format!("{error:#}"))?;
            if page.lines().any(|line| line == "registry_view_known 1") { Ok(()) } else { Err("in doubt".to_owned()) }
        })
        .await?;
    }
    Ok(())
}

fn at(times: &[Duration], share: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let place = (times.len() as f64 * share).ceil() as usize;
    times.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

/// The section of the page.
#[must_use]
pub fn render_dispatch(measured: &DispatchMeasured) -> String {
    let DispatchMeasured { plan, planned, spread, changed, failovers } = measured;
    let mut page = String::new();
    let _ = writeln!(page, "Machine: {}.\n", machine());
    let share = |moved: usize| 100.0 * moved as f64 / plan.checks as f64;
    let allowed = |pollers: usize| 100.0 / pollers as f64 + 10.0;
    let _ = writeln!(page, "| What | Measured | Goal |\n|---|---|---|");
    let _ = writeln!(
        page,
        "| {} checks to {} pollers, from nothing | {:.0?} | – |",
        plan.checks, plan.pollers, planned.first
    );
    let _ = writeln!(
        page,
        "| the same again: time, checks that move | {:.0?}, {} | 0 |",
        planned.again, planned.moved_again
    );
    let lost = (share(planned.moved_lost), allowed(plan.pollers));
    let _ = writeln!(
        page,
        "| one poller lost: time, moved | {:.0?}, {:.2} % | at most {:.1} % |",
        planned.lost, lost.0, lost.1
    );
    let joined = (share(planned.moved_joined), allowed(plan.pollers + 1));
    let _ = writeln!(
        page,
        "| one poller more: time, moved | {:.0?}, {:.2} % | at most {:.1} % |",
        planned.joined, joined.0, joined.1
    );
    let _ = writeln!(page, "| the most loaded poller over the mean | {:.3} | at most 1.1 |", planned.most_to_mean);
    let _ = writeln!(
        page,
        "| slots of 10,000 checks of 10 s in a tenth of a second, the most over the mean | {spread:.2} | at most 1.5 |"
    );
    let _ = writeln!(
        page,
        "| a change is on the poller: p50, p99, most of {} | {:.0?}, {:.0?}, {:.0?} | p99 at most 1 s |",
        changed.len(),
        at(changed, 0.5),
        at(changed, 0.99),
        at(changed, 1.0)
    );
    for (class, goal) in [("normal", "16 s"), ("fast", "7 s")] {
        let times = failovers.get(class).cloned().unwrap_or_default();
        let (planned, stored): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        let _ = writeln!(
            page,
            "| a poller is killed, class {class}: others have its checks, p50 and most of {}; results of all of them stored | {:.1?}, {:.1?}; {:.1?}, {:.1?} | at most {goal} |",
            planned.len(),
            at(&planned, 0.5),
            at(&planned, 1.0),
            at(&stored, 0.5),
            at(&stored, 1.0)
        );
    }
    page
}
