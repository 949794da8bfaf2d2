//! The one loop that runs checks: it looks at the clock, starts what is due and gives every slot exactly one result.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::CheckName;
use bulkhead_bus::payload::{Measured, Outcome, Reason};
use bulkhead_checks::{Check, Prober};
use bulkhead_runtime::{Chain, Heart, Readiness, Stop, age_seconds, now_ms};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::job::{Change, Job, Vault};
use crate::lease::Standing;
use crate::live::LiveBoard;
use crate::metrics::{Metrics, count, level};
use crate::reread::Live;
use crate::schedule::{Due as DueOf, MissedBecause, Scheduler, Slot as SlotOf, Term};
use crate::spool::SpoolWriter;

/// After a stop, how long running checks may still end by themselves.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

type Slot = SlotOf<Arc<Job>>;
type Due = DueOf<Arc<Job>>;

/// Runs checks and hands on what they measured.
pub(crate) struct Runner {
    pub(crate) settings: watch::Receiver<Live>,
    /// What becomes of those that are assigned.
    pub(crate) changes: mpsc::Receiver<Vec<Change>>,
    pub(crate) prober: Arc<Prober>,
    pub(crate) vault: Arc<Vault>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) spool: SpoolWriter,
    pub(crate) board: Arc<LiveBoard>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) heart: Heart,
}

/// Runs that go on, and whose they are.
#[derive(Default)]
struct Runs {
    tasks: JoinSet<Measured>,
    slots: HashMap<task::Id, Slot>,
}

impl Runs {
    /// The next run that ends; never when none goes on. `Err` when it panicked or was ended from outside.
    async fn next(&mut self) -> (Slot, Result<Measured, task::JoinError>) {
        loop {
            let (id, ended) = match self.tasks.join_next_with_id().await {
                Some(Ok((id, measured))) => (id, Ok(measured)),
                Some(Err(failure)) => (failure.id(), Err(failure)),
                None => std::future::pending().await,
            };
            if let Some(slot) = self.slots.remove(&id) {
                return (slot, ended);
            }
        }
    }
}

/// Checks of the settings, to be run.
pub(crate) fn local_jobs(checks: Vec<Check>) -> HashMap<CheckName, Arc<Job>> {
    checks.into_iter().map(|check| (check.name.clone(), Arc::new(Job::local(check)))).collect()
}

fn local_term(job: &Arc<Job>, from_ms: i64) -> Term<Arc<Job>> {
    Term { grid: job.check.grid, from_ms, until_ms: None, owed_from_ms: None, job: Arc::clone(job) }
}

/// The checks that are run, local ones where no assigned one has their name.
struct Plan {
    scheduler: Scheduler<Arc<Job>>,
    assigned: BTreeSet<CheckName>,
    /// Of the poller's own settings.
    local: HashMap<CheckName, Arc<Job>>,
}

impl Plan {
    fn new(local: HashMap<CheckName, Arc<Job>>, now_ms: i64) -> Self {
        let mut plan = Self { scheduler: Scheduler::new(now_ms), assigned: BTreeSet::new(), local: HashMap::new() };
        plan.take_local(local, now_ms);
        plan
    }

    /// Runs these and no other local ones; what stays as it is goes on undisturbed.
    fn take_local(&mut self, local: HashMap<CheckName, Arc<Job>>, now_ms: i64) {
        let before = std::mem::replace(&mut self.local, local);
        let is_free = |name: &&CheckName| !self.assigned.contains(*name);
        for name in before.keys().filter(|name| !self.local.contains_key(*name)).filter(is_free) {
            self.scheduler.end(name, now_ms);
        }
        for (name, job) in self.local.iter().filter(|(name, _)| is_free(name)) {
            if before.get(name).is_none_or(|known| known.check != job.check) {
                self.scheduler.put(name, local_term(job, now_ms));
            }
        }
    }

    fn apply(&mut self, change: Change) {
        let (check, ends_ms) = match change {
            Change::Put(term) => {
                let (check, until_ms) = (term.job.check.name.clone(), term.until_ms);
                self.scheduler.put(&check, term);
                self.assigned.insert(check.clone());
                (check, until_ms)
            }
            Change::End { check, until_ms } => {
                self.scheduler.end(&check, until_ms);
                (check, Some(until_ms))
            }
        };
        if let Some(until_ms) = ends_ms {
            self.assigned.remove(&check);
            if let Some(job) = self.local.get(&check) {
                self.scheduler.put(&check, local_term(job, until_ms));
            }
        }
    }
}

impl Runner {
    /// Runs until `stop`, then lets what runs end for a moment.
    pub(crate) async fn run(mut self, readiness: Readiness, stop: Stop) -> anyhow::Result<()> {
        let live = self.settings.borrow_and_update().clone();
        let mut plan = Plan::new(live.checks, now_ms());
        let (mut at_once, mut turns) = (live.checks_at_once, self.turns(live.checks_at_once));
        let mut runs = Runs::default();
        readiness.mark("checks");
        while !stop.is_cancelled() {
            self.heart.beat();
            let due = plan.scheduler.advance(now_ms());
            self.report_gaps(&due);
            for slot in due.runs {
                self.start(slot, &turns, &mut runs);
            }
            let pause = plan.scheduler.pause(now_ms());
            tokio::select! {
                () = stop.cancelled() => break,
                Some(changes) = self.changes.recv() => {
                    changes.into_iter().for_each(|change| plan.apply(change));
                    self.metrics.checks_assigned.set(level(plan.assigned.len()));
                }
                Ok(()) = self.settings.changed() => {
                    let live = self.settings.borrow_and_update().clone();
                    plan.take_local(live.checks, now_ms());
                    if std::mem::replace(&mut at_once, live.checks_at_once) != live.checks_at_once {
                        turns = self.turns(at_once);
                    }
                }
                ended = tokio::time::timeout(pause, runs.next()) => {
                    if let Ok((slot, ended)) = ended {
                        plan.scheduler.finish(&slot.job.check.name, &slot);
                        self.hand_on_ended(&slot, ended);
                    }
                }
            }
            self.metrics.checks_running.set(level(runs.slots.len()));
            self.spool.report_dropped(Instant::now());
        }
        self.finish(runs).await;
        Ok(())
    }

    /// Of so many checks at a time; those that run keep theirs.
    fn turns(&self, checks_at_once: usize) -> Arc<Semaphore> {
        self.metrics.checks_at_once_limit.set(level(checks_at_once));
        Arc::new(Semaphore::new(checks_at_once))
    }

    fn report_gaps(&self, due: &Due) {
        if let Some(back_ms) = due.stepped_back_ms {
            count(&self.metrics.clock_steps_back, 1);
            self.metrics.clock_step_back_seconds.set(age_seconds(0, back_ms));
            warn!(
                clock.back_ms = back_ms,
                "the clock went back by {back_ms} ms: no slot is measured twice within a minute"
            );
        }
        if due.uncounted > 0 {
            count(&self.metrics.slots_uncounted, usize::try_from(due.uncounted).unwrap_or(usize::MAX));
            warn!(slots = due.uncounted, "{} slots passed that get no result of their own", due.uncounted);
        }
        for (slot, because) in &due.missed {
            let reason = match because {
                MissedBecause::StillRunning => Reason::Overrun,
                MissedBecause::Asleep => Reason::Internal,
                MissedBecause::OwnerLost => Reason::OwnerLost,
            };
            let missed = slot.job.without_measurement(slot.start_ms, Outcome::Missed, reason);
            self.hand_on(Measured { island: self.is_island(&slot.job), ..missed });
        }
    }

    /// Whether what is measured now only fills an empty slot: somebody else may have been given the check.
    fn is_island(&self, job: &Job) -> bool {
        job.generation > 0 && self.standing.is_island()
    }

    fn start(&self, slot: Slot, turns: &Arc<Semaphore>, runs: &mut Runs) {
        let (job, start_ms, island) = (Arc::clone(&slot.job), slot.start_ms, self.is_island(&slot.job));
        let (prober, vault, turns) = (Arc::clone(&self.prober), Arc::clone(&self.vault), Arc::clone(turns));
        let took = self.metrics.check_seconds.of(job.check.spec.kind()).clone();
        let run = runs.tasks.spawn(async move {
            let _turn = turns.acquire().await.expect("turns are never closed");
            let began = Instant::now();
            let measured = job.measure(&prober, &vault, start_ms).await;
            took.observe(began.elapsed());
            Measured { island, ..measured }
        });
        runs.slots.insert(run.id(), slot);
    }

    fn hand_on_ended(&self, slot: &Slot, ended: Result<Measured, task::JoinError>) {
        let measured = ended.unwrap_or_else(|failure| {
            let check = &slot.job.check.name;
            let (outcome, island) =
                (if failure.is_cancelled() { Outcome::Missed } else { Outcome::Error }, self.is_island(&slot.job));
            if !failure.is_cancelled() {
                error!(check = %check, error = %Chain(&failure), "check {check} panicked");
            }
            Measured { island, ..slot.job.without_measurement(slot.start_ms, outcome, Reason::Internal) }
        });
        self.hand_on(measured);
    }

    fn hand_on(&self, measured: Measured) {
        self.metrics.count_outcome(measured.outcome);
        self.board.post(&measured);
        self.spool.push(measured);
    }

    async fn finish(&self, mut runs: Runs) {
        let end = Instant::now() + FINISH_LIMIT;
        while !runs.slots.is_empty()
            && let Ok((slot, ended)) = tokio::time::timeout_at(end, runs.next()).await
        {
            self.hand_on_ended(&slot, ended);
        }
        runs.tasks.abort_all();
        while !runs.slots.is_empty() {
            let (slot, ended) = runs.next().await;
            self.hand_on_ended(&slot, ended);
        }
        self.spool.report_dropped(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MemberSettings;
    use crate::spool::{SpoolReader, open_spool};
    use bulkhead_bus::LeaseClass;
    use bulkhead_checks::{Rules, read_settings};
    use bulkhead_runtime::Loops;
    use std::collections::BTreeMap;
    use tokio::net::TcpListener;

    fn check_of(json: &str) -> Check {
        let mut problems = Vec::new();
        let mut checks = read_settings(&[serde_json::from_str(json).unwrap()], &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        checks.remove(0)
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    fn live(checks: Vec<Check>) -> Live {
        let member = MemberSettings { class: LeaseClass::Normal, labels: BTreeMap::new(), capacity: 1, checks_most: 0 };
        Live { checks: local_jobs(checks), checks_at_once: 4, member }
    }

    fn runner(checks: Vec<Check>) -> (Runner, SpoolReader, Arc<Metrics>) {
        let (_, changes) = mpsc::channel(1);
        let metrics = Arc::new(Metrics::default());
        let (spool, reader) = open_spool(1_000, Arc::clone(&metrics));
        let runner = Runner {
            settings: watch::Sender::new(live(checks)).subscribe(),
            changes,
            vault: Arc::new(Vault::open(tempfile::tempdir().unwrap().path()).unwrap()),
            standing: Arc::default(),
            prober: Arc::new(Prober::open(Rules::default())),
            spool,
            board: Arc::default(),
            metrics: Arc::clone(&metrics),
            heart: Loops::default().watch("checks"),
        };
        (runner, reader, metrics)
    }

    #[tokio::test]
    async fn every_slot_gets_one_result_on_its_grid() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let checks: Vec<Check> = (0..8)
            .map(|n| {
                check_of(&format!(
                    r#"{{"name":"c{n}","kind":"tcp","target":"{target}","interval_s":1,"timeout_ms":500}}"#
                ))
            })
            .collect();
        let grids: Vec<_> = checks.iter().map(|check| (check.name.clone(), check.grid)).collect();
        let (runner, reader, metrics) = runner(checks);
        let stop = Stop::new();
        let running = tokio::spawn(runner.run(Readiness::new(&[]), stop.clone()));
        let results = reader.take(24, HOUR).await.unwrap();
        stop.cancel();
        running.await.unwrap().unwrap();
        let page = metrics.page.to_text();
        let measured = page.lines().find_map(|line| line.strip_prefix("poller_check_seconds_count{kind=\"tcp\"} "));
        assert!(measured.is_some_and(|count| count.parse::<u32>().unwrap() >= 24), "{page}");
        let slots: BTreeSet<_> = results.iter().map(|result| (result.check.clone(), result.slot_ms)).collect();
        assert_eq!(slots.len(), 24, "no slot twice");
        for result in &results {
            assert_eq!(result.outcome, Outcome::Ok);
            let (_, grid) = grids.iter().find(|(name, _)| *name == result.check).unwrap();
            assert_eq!(grid.slot_at(result.slot_ms), result.slot_ms);
            assert!(result.started_ms >= result.slot_ms);
        }
    }

    #[tokio::test]
    async fn a_stop_ends_running_checks_and_their_slots_are_missed() {
        // Accepts nothing and answers nothing: an HTTP check hangs on it until its timeout.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let check = check_of(&format!(
            r#"{{"name":"slow","kind":"http","target":"http://{target}/","interval_s":100,"timeout_ms":90000}}"#
        ));
        let (runner, reader, metrics) = runner(vec![check]);
        let mut plan = Plan::new(runner.settings.borrow().checks.clone(), 0);
        let slot = plan.scheduler.advance(100_000).runs.remove(0);
        let mut runs = Runs::default();
        runner.start(slot, &Arc::new(Semaphore::new(1)), &mut runs);
        runner.finish(runs).await;
        let result = reader.take(1, Duration::ZERO).await.unwrap().remove(0);
        assert_eq!((result.outcome, result.reason), (Outcome::Missed, Some(Reason::Internal)));
        assert_eq!(metrics.results.of(Outcome::Missed).get(), 1);
    }

    #[test]
    fn other_settings_change_what_they_name_and_nothing_else() {
        let named = |name: &str, interval_s: u32| {
            check_of(&format!(
                r#"{{"name":"{name}","kind":"icmp","target":"127.0.0.1","interval_s":{interval_s},"timeout_ms":500}}"#
            ))
        };
        let mut plan = Plan::new(local_jobs(vec![named("a", 10), named("b", 10), named("c", 10)]), 0);
        assert_eq!(plan.scheduler.advance(10_000).runs.len(), 3);
        let term = Term { from_ms: 10_000, ..local_term(&Arc::new(Job::local(named("c", 10))), 10_000) };
        plan.apply(Change::Put(term));
        plan.take_local(local_jobs(vec![named("a", 10), named("b", 5), named("c", 1), named("d", 10)]), 10_001);
        let mut names: Vec<String> =
            plan.scheduler.advance(20_000).runs.iter().map(|slot| slot.job.check.name.to_string()).collect();
        names.sort_unstable();
        // Of a the run goes on, c is the assigned one.
        assert_eq!(names, ["b", "c", "d"]);
        plan.take_local(HashMap::new(), 20_001);
        let due = plan.scheduler.advance(40_000);
        let left: BTreeSet<String> = due.missed.iter().map(|(slot, _)| slot.job.check.name.to_string()).collect();
        assert_eq!((due.runs.len(), left), (0, BTreeSet::from(["c".to_owned()])));
    }

    #[tokio::test]
    async fn gaps_become_missed_results_with_their_reason() {
        let check = check_of(r#"{"name":"gap","kind":"icmp","target":"127.0.0.1","interval_s":10,"timeout_ms":500}"#);
        let (runner, reader, metrics) = runner(vec![check]);
        let mut plan = Plan::new(runner.settings.borrow().checks.clone(), 0);
        let slept = plan.scheduler.advance(25_000);
        let running = plan.scheduler.advance(35_000);
        assert_eq!((slept.missed.len(), running.missed.len()), (2, 1), "{slept:?} {running:?}");
        runner.report_gaps(&Due { missed: slept.missed, uncounted: 7, ..Due::default() });
        runner.report_gaps(&running);
        let results = reader.take(3, Duration::ZERO).await.unwrap();
        assert_eq!(results[0].reason, Some(Reason::Internal));
        assert_eq!(results[2].reason, Some(Reason::Overrun));
        assert!(results.iter().all(|result| result.outcome == Outcome::Missed));
        assert_eq!(metrics.slots_uncounted.get(), 7);
        assert_eq!(metrics.clock_steps_back.get(), 0);
        runner.report_gaps(&Due { stepped_back_ms: Some(2_500), ..Due::default() });
        assert_eq!(metrics.clock_steps_back.get(), 1);
        assert!((metrics.clock_step_back_seconds.get() - 2.5).abs() < 1e-9);
    }
}
