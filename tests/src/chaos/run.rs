//! One run: results flow, things go wrong and are mended, everything that waited passes, the books are added up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_bus::StreamName;
use bulkhead_runtime::{Stop, eventually, now_ms};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::books::{Before, Books, Evidence, balance};
use super::faults::{self, DRAIN_LIMIT, Orders};
use super::ledger::{Ledger, Record};
use super::plan::{Fault, Plan};
use super::world::{Tenant, World};

/// What flows before the first fault and after the last is part of the run.
const CALM: Duration = Duration::from_secs(1);
const LEDGERS_END_LIMIT: Duration = Duration::from_secs(60);

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Report {
    pub plan: Plan,
    pub books: Vec<Books>,
    /// What did not come right again, beside the books.
    pub failures: Vec<String>,
    /// From the last thing that was mended until nothing waited anywhere.
    pub drained_in: Duration,
    pub took: Duration,
    evidence: BTreeMap<Tenant, Evidence>,
}

impl Report {
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.failures.is_empty() && self.books.iter().all(|books| books.problems.is_empty())
    }

    /// Holds what was sent against the database as it is now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_up_again(&self, world: &World, tenant: Tenant) -> anyhow::Result<Books> {
        balance(world, &self.evidence[&tenant]).await
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.plan)?;
        for books in &self.books {
            writeln!(f, "  {books}")?;
        }
        for failure in &self.failures {
            writeln!(f, "  NOT WELL: {failure}")?;
        }
        write!(f, "  drained in {:.1} s, took {:.1} s", self.drained_in.as_secs_f32(), self.took.as_secs_f32())
    }
}

/// The two ledgers of a run.
struct Ledgers {
    tasks: JoinSet<anyhow::Result<()>>,
    orders: Orders,
    records: BTreeMap<Tenant, Arc<Mutex<Record>>>,
    stop: Stop,
}

impl Ledgers {
    fn start(world: &World) -> anyhow::Result<Self> {
        let mut ledgers =
            Self { tasks: JoinSet::new(), orders: Orders::new(), records: BTreeMap::new(), stop: Stop::new() };
        for tenant in Tenant::ALL {
            let ledger = Ledger::new(world.ledger_place(tenant)?);
            let (sender, receiver) = mpsc::channel(16);
            ledgers.orders.insert(tenant, sender);
            ledgers.records.insert(tenant, ledger.record());
            ledgers.tasks.spawn(ledger.run(receiver, ledgers.stop.clone()));
        }
        Ok(ledgers)
    }

    /// Lets them finish what they are sending.
    async fn finish(mut self) -> anyhow::Result<BTreeMap<Tenant, Record>> {
        self.stop.cancel();
        let ended = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a ledger panicked")??;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(LEDGERS_END_LIMIT, ended)
            .await
            .context("the leaf does not take a ledger's last batch")??;
        let record = |record: Arc<Mutex<Record>>| record.lock().expect("no holder panics").clone();
        Ok(self.records.into_iter().map(|(tenant, shared)| (tenant, record(shared))).collect())
    }
}

/// A step of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Begin,
    End,
}

async fn wait_until(at: Instant) {
    // The plan's time is the thing that is waited for.
    let _ = tokio::time::timeout_at(at.into(), std::future::pending::<()>()).await;
}

async fn break_things(world: &mut World, orders: &Orders, plan: &Plan) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut steps: Vec<(Duration, Step, Fault)> = Vec::new();
    for planned in &plan.overlapping {
        steps.push((planned.begins, Step::Begin, planned.fault));
        steps.push((planned.ends(), Step::End, planned.fault));
    }
    // Stable: of two steps at one time, the one that was planned first comes first.
    steps.sort_by_key(|(at, step, _)| (*at, *step));
    for (at, step, fault) in steps {
        wait_until(began + at).await;
        match step {
            Step::Begin => faults::begin(world, orders, fault).await.with_context(|| format!("begin {fault}"))?,
            Step::End => faults::end(world, fault).await.with_context(|| format!("end {fault}"))?,
        }
    }
    wait_until(Instant::now() + CALM).await;
    for &fault in &plan.quiet {
        for tenant in Tenant::ALL {
            faults::drain_leaf(world, tenant).await?;
        }
        faults::begin(world, orders, fault).await.with_context(|| format!("{fault}"))?;
        faults::end(world, fault).await?;
        wait_until(Instant::now() + CALM).await;
    }
    Ok(())
}

/// Waits until nothing that was sent before now waits anywhere.
async fn drain(world: &World) -> anyhow::Result<()> {
    for tenant in Tenant::ALL {
        faults::drain_leaf(world, tenant).await?;
    }
    let since_ms = now_ms();
    let drained = eventually("everything at the hub stored", DRAIN_LIMIT, || async {
        let waiting = world.hub_waiting().await.map_err(|error| format!("{error:#}"))?;
        if waiting.iter().all(|stream| stream.is_drained(since_ms)) { Ok(()) } else { Err(format!("{waiting:?}")) }
    });
    drained.await.context("messages are stranded at the hub")
}

/// Whoever watches is there again, and watches everything.
async fn wait_until_working(world: &World) -> anyhow::Result<()> {
    for tenant in Tenant::ALL {
        world.wait_until_ready(tenant).await?;
        world.wait_for_results(tenant).await?;
    }
    Ok(())
}

/// How much has ever gone through the second lane.
async fn backfilled(world: &World) -> anyhow::Result<u64> {
    let waiting = world.hub_waiting().await?;
    let backfill = waiting.iter().find(|stream| stream.stream == StreamName::Backfill.as_str());
    Ok(backfill.context("the hub has the second lane")?.last_sequence)
}

/// Carries out one plan and adds up.
///
/// # Errors
/// When something cannot be broken or mended, or what waits does not pass; an imbalance is in the report.
pub async fn run(world: &mut World, plan: Plan) -> anyhow::Result<Report> {
    let began = Instant::now();
    let since_ms = now_ms();
    let mut before = BTreeMap::new();
    for tenant in Tenant::ALL {
        before.insert(tenant, Before::read(&world.witness, tenant, since_ms).await?);
    }
    let backfilled_before = backfilled(world).await?;
    let ledgers = Ledgers::start(world)?;
    break_things(world, &ledgers.orders, &plan).await?;
    let mended = Instant::now();
    let mut records = ledgers.finish().await?;
    let drained = drain(world).await;
    let drained_in = mended.elapsed();
    // The database may have been started again since.
    world.witness = world.deployment.witness().await?;
    let working = match &drained {
        // Whoever was broken works again.
        Ok(()) => wait_until_working(world).await,
        Err(_) => Ok(()),
    };
    let running = world.deployment.up.check_running().map_err(anyhow::Error::from);
    let running = running.and_then(|()| world.check_sharers_running()).context("a process has ended by itself");
    let until_ms = now_ms();
    // A hub that does not answer is among the failures.
    if backfilled(world).await.is_ok_and(|now| now != backfilled_before) {
        world.ordered_from_ms = now_ms();
    }
    let (mut all, mut evidence) = (Vec::new(), BTreeMap::new());
    for tenant in Tenant::ALL {
        let has_wrong_clock =
            plan.faults().any(|fault| matches!(fault, Fault::ClockStep(stepped, _) if stepped == tenant));
        let seen = Evidence {
            tenant,
            own: world.own(tenant)?,
            record: records.remove(&tenant).context("each tenant has a ledger")?,
            before: before[&tenant],
            has_wrong_clock,
            until_ms,
            disk_replaced_ms: world.disks_replaced.remove(&tenant),
            is_disturbed: plan.faults().any(|fault| fault.disturbs_slots(tenant)),
            ordered_from_ms: world.ordered_from_ms,
        };
        all.push(balance(world, &seen).await?);
        evidence.insert(tenant, seen);
    }
    let failures = [drained, working, running].into_iter().filter_map(Result::err);
    let failures = failures.map(|failure| format!("{failure:#}")).collect();
    Ok(Report { plan, books: all, failures, drained_in, took: began.elapsed(), evidence })
}
