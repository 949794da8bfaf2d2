//! Fetches what this poller is assigned: when it has registered, when it is woken, when its connection is back, and now and
//! then. A wake-up carries nothing that would be believed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_bus::payload::{AssignmentPage, FetchAssignment, LEASE_VERSION};
use bulkhead_bus::{AssignmentVerb, TenantSubject, WakeUp};
use bulkhead_checks::Prober;
use bulkhead_runtime::{Bus, Chain, Listener, Stop, Trouble, now_ms};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use crate::assigned::{Assigned, Pages, note_alive};
use crate::batch::Identity;
use crate::condition::Condition;
use crate::job::Change;
use crate::lease::{Lease, Standing};
use crate::metrics::{Metrics, level};
use crate::request::{AskError, RequestSigner};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const FETCH_EVERY: Duration = Duration::from_secs(60);
/// After a fetch that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// Before it is said that nothing can be fetched: the one who grants leases may be there a little earlier.
const FAILURES_UNSAID: u32 = 3;
/// At most five a second, however often it is woken.
const PAUSE_LEAST: Duration = Duration::from_millis(200);
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// A poller's checks fit into far fewer.
const PAGES_MOST: usize = 1_000;

/// Keeps what is run in step with what is assigned.
pub(crate) struct Assignments {
    pub(crate) identity: Identity,
    pub(crate) signer: RequestSigner,
    pub(crate) prober: Arc<Prober>,
    pub(crate) state_dir: PathBuf,
    pub(crate) standing: Arc<Standing>,
    pub(crate) condition: Arc<Condition>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) changes: mpsc::Sender<Vec<Change>>,
}

/// Listens for wake-ups, as soon as that can be done.
pub(crate) async fn listen(bus: &Bus, identity: &Identity, verb: WakeUp) -> Listener {
    let (site, poller) = (identity.site.clone(), identity.poller.clone());
    let subject = TenantSubject::Down { site, poller, verb }.to_string();
    let mut backoff = bulkhead_runtime::Backoff::new(PAUSE_LEAST, AGAIN_AFTER);
    loop {
        match bus.listen(&subject).await {
            Ok(listener) => return listener,
            Err(_) => backoff.pause().await,
        }
    }
}

impl Assignments {
    /// What the process before had is put in force at once, whoever can be asked. Then until `stop`.
    pub(crate) async fn run(self, mut bus: crate::edge::LeafBus, stop: Stop) {
        let (mut assigned, recovered) = Assigned::recover(&self.state_dir, now_ms());
        if !assigned.is_empty() {
            info!(generation = assigned.generation(), "starting with the assignment of before");
            self.condition.has_joined.store(true, Ordering::Relaxed);
        }
        self.show(&assigned);
        if self.changes.send(recovered).await.is_err() {
            return;
        }
        let lives = self.stay_alive(&stop);
        let follows = async {
            let Some(bus) = bus.get().await else { return };
            self.follow(&bus, &mut assigned).await;
        };
        tokio::select! {
            () = lives => {}
            () = follows => {}
            () = stop.cancelled() => {}
        }
    }

    async fn stay_alive(&self, stop: &Stop) {
        let mut ticks = tokio::time::interval(ALIVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trouble = Trouble::new("note that this process lives".to_owned());
        while !stop.is_cancelled() {
            ticks.tick().await;
            match note_alive(&self.state_dir, now_ms()) {
                Ok(()) => drop(trouble.end()),
                Err(error) => {
                    self.condition.is_disk_full.store(true, Ordering::Relaxed);
                    trouble.begin(Chain(&error).to_string());
                    continue;
                }
            }
            self.condition.is_disk_full.store(false, Ordering::Relaxed);
        }
    }

    async fn follow(&self, bus: &Bus, assigned: &mut Assigned) {
        let mut woken = listen(bus, &self.identity, WakeUp::Assign).await;
        let (mut leases, mut losses) = (self.standing.changes(), bus.losses());
        let mut trouble = Trouble::new("fetch the assignment".to_owned());
        let (mut was_fenced, mut failures) = (false, 0_u32);
        loop {
            let lease = *leases.borrow_and_update();
            let pause = match lease {
                Lease::None => FETCH_EVERY,
                Lease::Fenced => {
                    if !std::mem::replace(&mut was_fenced, true)
                        && self.hand_on(assigned.suspend(now_ms())).await.is_err()
                    {
                        return;
                    }
                    FETCH_EVERY
                }
                Lease::Held { .. } | Lease::Island => {
                    if std::mem::take(&mut was_fenced) && self.hand_on(assigned.resume(now_ms())).await.is_err() {
                        return;
                    }
                    match self.fetch(bus, assigned).await {
                        Ok(changes) => {
                            failures = 0;
                            trouble.end();
                            if self.put_in_force(assigned, changes).await.is_err() {
                                return;
                            }
                            FETCH_EVERY
                        }
                        Err(error) => {
                            failures = failures.saturating_add(1);
                            if failures > FAILURES_UNSAID {
                                trouble.begin(Chain(&error).to_string());
                            }
                            AGAIN_AFTER
                        }
                    }
                }
            };
            let begun = Instant::now();
            let wait = async {
                loop {
                    tokio::select! {
                        _ = woken.next() => return,
                        changed = losses.changed() => {
                            if changed.is_ok() {
                                bus.until_connected().await;
                            }
                            return;
                        }
                        changed = leases.changed() => {
                            let now = *leases.borrow_and_update();
                            // A renewal alone is no reason to ask.
                            if changed.is_err() || std::mem::discriminant(&now) != std::mem::discriminant(&lease) {
                                return;
                            }
                        }
                    }
                }
            };
            // Passing the limit is normal: then nothing was said.
            let _ = tokio::time::timeout(pause, wait).await;
            let _ = tokio::time::timeout_at(begun + PAUSE_LEAST, std::future::pending::<()>()).await;
        }
    }

    async fn fetch(&self, bus: &Bus, assigned: &mut Assigned) -> Result<Vec<Change>, AskError> {
        let verb = AssignmentVerb::FetchAssignment;
        let subject =
            TenantSubject::Assignment { site: self.identity.site.clone(), poller: self.identity.poller.clone(), verb };
        let mut question = FetchAssignment {
            version: LEASE_VERSION,
            boot: self.signer.boot(),
            have: assigned.generation(),
            at: None,
            after: None,
        };
        let (mut pages, mut is_first) = (Pages::default(), true);
        for _ in 0..PAGES_MOST {
            let rows: Vec<AssignmentPage> = self.signer.ask(bus, &subject, &question, ANSWER_LIMIT).await?;
            let missing = || AskError::Unreadable(serde::de::Error::custom("an answer without a page"));
            let page = rows.into_iter().next().ok_or_else(missing)?;
            let has_more = page.has_more;
            if pages.add(page, is_first).is_err() {
                // It has changed meanwhile: from the beginning.
                (pages, is_first, question.at, question.after) = (Pages::default(), true, None, None);
                continue;
            }
            is_first = false;
            (question.at, question.after) = (Some(pages.generation), pages.last_name());
            if !has_more {
                return Ok(assigned.apply(pages, now_ms()));
            }
        }
        Err(AskError::Unreadable(serde::de::Error::custom("an assignment without an end")))
    }

    /// Notes when something is to be run that this machine does not permit.
    fn look_at_hindrances(&self, changes: &[Change]) {
        let is_hindered = changes.iter().any(|change| match change {
            Change::Put(term) => !self.prober.is_able(term.job.check.spec.kind()),
            Change::End { .. } => false,
        });
        self.condition.is_hindered.fetch_or(is_hindered, Ordering::Relaxed);
    }

    async fn hand_on(&self, changes: Vec<Change>) -> Result<(), mpsc::error::SendError<Vec<Change>>> {
        self.changes.send(changes).await
    }

    async fn put_in_force(
        &self,
        assigned: &Assigned,
        changes: Vec<Change>,
    ) -> Result<(), mpsc::error::SendError<Vec<Change>>> {
        let generation = assigned.generation();
        let is_new = self.condition.applied.load(Ordering::Relaxed) != generation || !changes.is_empty();
        self.look_at_hindrances(&changes);
        if !changes.is_empty() {
            info!(generation, changes = changes.len(), "assignment {generation} is in force");
            self.hand_on(changes).await?;
        }
        self.show(assigned);
        self.condition.has_joined.store(true, Ordering::Relaxed);
        if is_new && let Err(error) = assigned.save() {
            self.condition.is_disk_full.store(error.is_full(), Ordering::Relaxed);
            warn!(error = %Chain(&error), "the assignment is not kept: without the hub the next start would begin with an older one");
        }
        Ok(())
    }

    fn show(&self, assigned: &Assigned) {
        let (lasting, ends_ms) = assigned.lasting();
        self.condition.lasting.store(lasting, Ordering::Relaxed);
        self.condition.ends_ms.store(ends_ms, Ordering::Relaxed);
        self.condition.applied.store(assigned.generation(), Ordering::Relaxed);
        self.metrics.assignment_generation.set(assigned.generation());
        self.metrics.checks_refused.set(level(assigned.refused()));
    }
}
