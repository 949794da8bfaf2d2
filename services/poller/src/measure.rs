//! The one loop that runs checks: it looks at the clock, starts what is due and gives every slot exactly one result.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::payload::{Measured, Outcome, Reason};
use bulkhead_checks::{Check, Detail, Prober, Secrets};
use bulkhead_runtime::{Chain, Heart, Readiness, Stop, age_seconds, now_ms};
use tokio::sync::Semaphore;
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::live::LiveBoard;
use crate::metrics::{Metrics, count, level};
use crate::schedule::{Due, MissedBecause, Scheduler, Slot};
use crate::spool::SpoolWriter;

/// After a stop, how long running checks may still end by themselves.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// Runs checks and hands on what they measured.
pub(crate) struct Runner {
    pub(crate) checks: Vec<Arc<Check>>,
    pub(crate) prober: Arc<Prober>,
    pub(crate) checks_at_once: usize,
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

/// The result of a slot in which nothing was measured.
fn without_measurement(check: &Check, slot_ms: i64, outcome: Outcome, reason: Reason) -> Measured {
    Measured {
        check: check.name.clone(),
        kind: check.spec.kind(),
        slot_ms,
        started_ms: now_ms(),
        outcome,
        reason: Some(reason),
        latency_us: None,
        generation: 0,
        island: false,
        detail: Detail::new(),
    }
}

impl Runner {
    /// Runs until `stop`, then lets what runs end for a moment.
    pub(crate) async fn run(self, readiness: Readiness, stop: Stop) -> anyhow::Result<()> {
        let mut scheduler = Scheduler::new(self.checks.iter().map(|check| check.grid).collect(), now_ms());
        let turns = Arc::new(Semaphore::new(self.checks_at_once));
        let mut runs = Runs::default();
        self.metrics.checks_at_once_limit.set(level(self.checks_at_once));
        readiness.mark("checks");
        while !stop.is_cancelled() {
            self.heart.beat();
            let due = scheduler.advance(now_ms());
            self.report_gaps(&due);
            for slot in due.runs {
                self.start(slot, &turns, &mut runs);
            }
            let pause = scheduler.pause(now_ms());
            tokio::select! {
                () = stop.cancelled() => break,
                ended = tokio::time::timeout(pause, runs.next()) => {
                    if let Ok((slot, ended)) = ended {
                        scheduler.finish(slot.check);
                        self.hand_on_ended(slot, ended);
                    }
                }
            }
            self.metrics.checks_running.set(level(runs.slots.len()));
            self.spool.report_dropped(Instant::now());
        }
        self.finish(runs).await;
        Ok(())
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
            };
            let check = &self.checks[slot.check];
            self.hand_on(without_measurement(check, slot.start_ms, Outcome::Missed, reason));
        }
    }

    fn start(&self, slot: Slot, turns: &Arc<Semaphore>, runs: &mut Runs) {
        let check = Arc::clone(&self.checks[slot.check]);
        let (prober, turns) = (Arc::clone(&self.prober), Arc::clone(turns));
        let took = self.metrics.check_seconds.of(check.spec.kind()).clone();
        let run = runs.tasks.spawn(async move {
            let _turn = turns.acquire().await.expect("turns are never closed");
            let began = Instant::now();
            let measured = prober.measure(&check, slot.start_ms, &Secrets::new()).await;
            took.observe(began.elapsed());
            measured
        });
        runs.slots.insert(run.id(), slot);
    }

    fn hand_on_ended(&self, slot: Slot, ended: Result<Measured, task::JoinError>) {
        let check = &self.checks[slot.check];
        let measured = ended.unwrap_or_else(|failure| {
            if failure.is_cancelled() {
                return without_measurement(check, slot.start_ms, Outcome::Missed, Reason::Internal);
            }
            error!(check = %check.name, error = %Chain(&failure), "check {} panicked", check.name);
            without_measurement(check, slot.start_ms, Outcome::Error, Reason::Internal)
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
            self.hand_on_ended(slot, ended);
        }
        runs.tasks.abort_all();
        while !runs.slots.is_empty() {
            let (slot, ended) = runs.next().await;
            self.hand_on_ended(slot, ended);
        }
        self.spool.report_dropped(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{SpoolReader, open_spool};
    use bulkhead_checks::{Rules, read_settings};
    use bulkhead_runtime::Loops;
    use std::collections::BTreeSet;
    use tokio::net::TcpListener;

    fn check_of(json: &str) -> Check {
        let mut problems = Vec::new();
        let mut checks = read_settings(&[serde_json::from_str(json).unwrap()], &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        checks.remove(0)
    }

    const HOUR: Duration = Duration::from_secs(3_600);

    fn runner(checks: Vec<Check>) -> (Runner, SpoolReader, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::default());
        let (spool, reader) = open_spool(1_000, Arc::clone(&metrics));
        let runner = Runner {
            checks: checks.into_iter().map(Arc::new).collect(),
            prober: Arc::new(Prober::open(Rules::default())),
            checks_at_once: 4,
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
        let slot = Slot { start_ms: 0, check: 0 };
        let mut runs = Runs::default();
        runner.start(slot, &Arc::new(Semaphore::new(1)), &mut runs);
        runner.finish(runs).await;
        let result = reader.take(1, Duration::ZERO).await.unwrap().remove(0);
        assert_eq!((result.outcome, result.reason), (Outcome::Missed, Some(Reason::Internal)));
        assert_eq!(metrics.results.of(Outcome::Missed).get(), 1);
    }

    #[tokio::test]
    async fn gaps_become_missed_results_with_their_reason() {
        let check = check_of(r#"{"name":"gap","kind":"icmp","target":"127.0.0.1","interval_s":10,"timeout_ms":500}"#);
        let (runner, reader, metrics) = runner(vec![check]);
        let slots = [10_000, 20_000].map(|start_ms| Slot { start_ms, check: 0 });
        let missed = vec![(slots[0], MissedBecause::Asleep), (slots[1], MissedBecause::StillRunning)];
        runner.report_gaps(&Due { missed, uncounted: 7, ..Due::default() });
        let results = reader.take(2, Duration::ZERO).await.unwrap();
        assert_eq!(results[0].reason, Some(Reason::Internal));
        assert_eq!(results[1].reason, Some(Reason::Overrun));
        assert!(results.iter().all(|result| result.outcome == Outcome::Missed));
        assert_eq!(metrics.slots_uncounted.get(), 7);
        assert_eq!(metrics.clock_steps_back.get(), 0);
        runner.report_gaps(&Due { stepped_back_ms: Some(2_500), ..Due::default() });
        assert_eq!(metrics.clock_steps_back.get(), 1);
        assert!((metrics.clock_step_back_seconds.get() - 2.5).abs() < 1e-9);
    }
}
