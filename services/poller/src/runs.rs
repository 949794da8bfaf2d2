//! Runs on demand: fetched when this poller is woken, run at once, a bounded number at a time, and reported. They are nobody's
//! slot, and no results.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::payload::{FetchRuns, LEASE_VERSION, ReportRun, RunOrder};
use bulkhead_bus::{AssignmentVerb, TenantSubject, WakeUp};
use bulkhead_checks::{CheckSpec, Prober};
use bulkhead_runtime::{Backoff, Bus, Chain, Stop, now_ms};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::assignment::listen;
use crate::batch::Identity;
use crate::edge::LeafBus;
use crate::job::{Job, Vault};
use crate::lease::Standing;
use crate::metrics::{Metrics, count};
use crate::request::{AskError, RequestSigner};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Runs at the same time; whoever orders more is told nothing in time.
const RUNS_MOST: usize = 16;
/// Orders that are remembered, so that none is run twice.
const REMEMBERED: usize = 1_000;
const PAUSE_LEAST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// Runs what is ordered.
#[derive(Clone)]
pub(crate) struct RunsOnDemand {
    pub(crate) identity: Identity,
    pub(crate) signer: RequestSigner,
    pub(crate) prober: Arc<Prober>,
    pub(crate) vault: Arc<Vault>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) metrics: Arc<Metrics>,
}

impl RunsOnDemand {
    /// Until `stop`.
    pub(crate) async fn run(self, mut bus: LeafBus, stop: Stop) {
        let follow = async {
            let Some(bus) = bus.get().await else { return };
            self.follow(&bus).await;
        };
        tokio::select! {
            () = follow => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow(&self, bus: &Bus) {
        let mut woken = listen(bus, &self.identity, WakeUp::Run).await;
        let (mut runs, mut seen) = (JoinSet::new(), VecDeque::new());
        loop {
            tokio::select! {
                _ = woken.next() => {}
                Some(ended) = runs.join_next() => {
                    if let Err(error) = ended {
                        warn!(error = %Chain(&error), "a run on demand panicked");
                    }
                    continue;
                }
            }
            if self.standing.is_fenced() {
                continue;
            }
            let orders = match self.fetch(bus).await {
                Ok(orders) => orders,
                Err(error) => {
                    warn!(error = %Chain(&error), "runs on demand are not fetched");
                    continue;
                }
            };
            for order in orders {
                if seen.contains(&order.id) || runs.len() >= RUNS_MOST {
                    continue;
                }
                seen.push_back(order.id);
                seen.drain(..seen.len().saturating_sub(REMEMBERED));
                count(&self.metrics.runs_on_demand, 1);
                let (this, bus) = (self.clone(), bus.clone());
                runs.spawn(async move { this.run_one(&bus, order).await });
            }
        }
    }

    fn subject(&self, verb: AssignmentVerb) -> TenantSubject {
        TenantSubject::Assignment { site: self.identity.site.clone(), poller: self.identity.poller.clone(), verb }
    }

    async fn fetch(&self, bus: &Bus) -> Result<Vec<RunOrder>, AskError> {
        let question = FetchRuns { version: LEASE_VERSION, boot: self.signer.boot() };
        self.signer.ask(bus, &self.subject(AssignmentVerb::FetchRuns), &question, ANSWER_LIMIT).await
    }

    async fn run_one(&self, bus: &Bus, order: RunOrder) {
        let end = Instant::now() + Duration::from_millis(order.left_ms);
        let check = match CheckSpec::of_probe(&order.probe) {
            Ok(check) => check,
            Err(problems) => {
                warn!(check = %order.probe.name, ?problems, "a run on demand is not one that this release can do");
                return;
            }
        };
        let job = Job { check, generation: 0, secrets: order.secrets };
        let measured = job.measure(&self.prober, &self.vault, now_ms());
        // Whoever asked has gone by then.
        let Ok(measured) = tokio::time::timeout_at(end, measured).await else { return };
        let report = ReportRun { version: LEASE_VERSION, id: order.id, measured };
        let mut backoff = Backoff::new(PAUSE_LEAST, PAUSE_MOST);
        let tell = async {
            loop {
                let subject = self.subject(AssignmentVerb::ReportRun);
                let told: Result<Vec<serde_json::Value>, _> =
                    self.signer.ask(bus, &subject, &report, ANSWER_LIMIT).await;
                match told {
                    Ok(_) | Err(AskError::Said(_)) => return,
                    Err(error) => debug!(error = %Chain(&error), "a run on demand is not reported yet"),
                }
                backoff.pause().await;
            }
        };
        if tokio::time::timeout_at(end, tell).await.is_err() {
            warn!(check = %job.check.name, "a run on demand was not reported in time");
        }
    }
}
