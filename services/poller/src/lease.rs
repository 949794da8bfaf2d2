//! The lease: that this process, and no other, speaks for its name, renewed as long as somebody grants it.
//!
//! Without one it goes on as an island, and says so in its results; when another process has its name it is fenced, stops what
//! it was assigned and asks only now and then. A hub of a release without leases answers nothing, and nothing changes then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_bus::payload::{
    DegradedBecause, Deregister, ErrorCode, LEASE_VERSION, LeaseGrant, Load, MemberInfo, Register, Renew, ReportedState,
};
use bulkhead_bus::{LeaseVerb, MemberName, SiteName, TenantSubject};
use bulkhead_runtime::{Bus, Chain, Stop, Trouble, now_ms};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::condition::Condition;
use crate::config::MemberSettings;
use crate::metrics::{Metrics, count};
use crate::request::{AskError, RequestSigner};
use crate::reread::Live;

/// How long one answer may take: three fit into a lease of the normal class after a heartbeat.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// A lease that ends sooner than this counts as ended here: whoever takes over must not find two at work.
const MARGIN: Duration = Duration::from_secs(2);
/// After a renewal that failed.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// As long as nobody has ever answered.
const UNASKED_MOST: Duration = Duration::from_secs(15);
/// A process that is fenced asks for its name this often.
const FENCED_EVERY: Duration = Duration::from_secs(60);

/// How this process stands to its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Lease {
    /// Nobody has granted one since the start.
    #[default]
    None,
    Held {
        revision: u64,
        is_held_back: bool,
    },
    /// It was granted once and could not be renewed in time.
    Island,
    /// Another process has the name.
    Fenced,
}

/// How this process stands now. What looks at it does not wait for it.
#[derive(Debug)]
pub(crate) struct Standing(watch::Sender<Lease>);

impl Default for Standing {
    fn default() -> Self {
        Self(watch::Sender::new(Lease::None))
    }
}

impl Standing {
    pub(crate) fn now(&self) -> Lease {
        *self.0.borrow()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Lease> {
        self.0.subscribe()
    }

    /// Whether somebody else may have been given what is run here.
    pub(crate) fn is_island(&self) -> bool {
        match self.now() {
            Lease::None | Lease::Island => true,
            Lease::Held { .. } | Lease::Fenced => false,
        }
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.now() == Lease::Fenced
    }

    pub(crate) fn set(&self, lease: Lease) -> bool {
        self.0.send_if_modified(|known| std::mem::replace(known, lease) != lease)
    }
}

/// For whom a lease is kept, and what is said of it.
pub(crate) enum Holder {
    Poller(Arc<Condition>),
    /// The forwarder, for its site's leaf link.
    Leaf(Arc<Metrics>),
}

impl Holder {
    fn report(&self) -> (ReportedState, Vec<DegradedBecause>, Load, i64) {
        match self {
            Self::Poller(condition) => {
                let (state, reasons) = condition.state();
                (state, reasons, condition.load(), condition.applied.load(Ordering::Relaxed))
            }
            Self::Leaf(metrics) => {
                let waiting = bulkhead_bus::Lane::ALL.iter().map(|lane| metrics.leaf_batches.of(*lane).get().max(0));
                let load = Load { waiting: waiting.sum::<i64>().unsigned_abs(), ..Load::default() };
                (ReportedState::Ready, Vec::new(), load, 0)
            }
        }
    }
}

/// Keeps one lease.
pub(crate) struct LeaseKeeper {
    pub(crate) signer: RequestSigner,
    pub(crate) site: SiteName,
    pub(crate) name: MemberName,
    /// What stays as it is as long as the process runs.
    pub(crate) info: MemberInfo,
    pub(crate) settings: watch::Receiver<Live>,
    pub(crate) holder: Holder,
    pub(crate) standing: Arc<Standing>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What was granted last, and when it was asked for.
#[derive(Debug, Clone, Copy)]
struct Granted {
    grant: LeaseGrant,
    asked: Instant,
}

impl Granted {
    /// Until when it is good here.
    fn good_until(&self) -> Instant {
        self.asked + Duration::from_millis(self.grant.ttl_ms).saturating_sub(MARGIN)
    }

    /// A heartbeat, moved by up to a fifth.
    fn pause(&self) -> Duration {
        Duration::from_millis(self.grant.heartbeat_ms.max(100)).mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}

/// What is known between one question and the next.
struct Asking {
    granted: Option<Granted>,
    /// Until when what was granted last is good here.
    good_until: Instant,
    trouble: Trouble,
    /// How long to wait as long as nobody has ever answered.
    next_first: Duration,
    is_absence_said: bool,
}

impl LeaseKeeper {
    /// Says that it drains once `draining` is cancelled. Until `stop`; then waits for `drained`, and gives the lease back.
    pub(crate) async fn run(self, bus: Bus, (draining, stop): (Stop, Stop), drained: Stop) {
        let mut asking = Asking {
            granted: None,
            good_until: Instant::now(),
            trouble: Trouble::new(format!("keep the lease of {}.{}", self.site, self.name)),
            next_first: AGAIN_AFTER,
            is_absence_said: false,
        };
        let mut changed = self.settings.clone();
        let mut said = changed.borrow_and_update().member.clone();
        let mut is_draining = false;
        while !stop.is_cancelled() {
            let asked = tokio::select! {
                asked = self.ask_once(&bus, asking.granted) => asked,
                () = stop.cancelled() => break,
            };
            let pause = match asked {
                Ok(now) => {
                    asking.trouble.end();
                    (asking.granted, asking.good_until) = (Some(now), now.good_until());
                    now.pause()
                }
                Err(error) => self.miss(&error, &mut asking),
            };
            tokio::select! {
                () = self.wait(pause, asking.good_until, &stop) => {}
                () = draining.cancelled(), if !is_draining => {
                    is_draining = true;
                    self.note_draining();
                }
                Ok(()) = changed.changed() => {
                    // It registers anew, as the same process.
                    if changed.borrow_and_update().member != said {
                        said = changed.borrow().member.clone();
                        asking.granted = None;
                    }
                }
            }
        }
        self.give_back(&bus, asking.granted, &drained).await;
    }

    fn info(&self) -> MemberInfo {
        let settings = &self.settings.borrow().member;
        match self.holder {
            Holder::Leaf(_) => self.info.clone(),
            Holder::Poller(_) => MemberInfo {
                labels: settings.labels.clone(),
                capacity: settings.capacity,
                checks_most: settings.checks_most,
                ..self.info.clone()
            },
        }
    }

    async fn ask<Q: Serialize>(&self, bus: &Bus, verb: LeaseVerb, question: &Q) -> Result<LeaseGrant, AskError> {
        let subject = TenantSubject::Lease { site: self.site.clone(), name: self.name.clone(), verb };
        let rows = self.signer.ask(bus, &subject, question, ANSWER_LIMIT).await?;
        let missing = || AskError::Unreadable(serde::de::Error::custom("an answer without a row"));
        rows.into_iter().next().ok_or_else(missing)
    }

    /// Renews, or registers where there is nothing to renew.
    async fn ask_once(&self, bus: &Bus, granted: Option<Granted>) -> Result<Granted, AskError> {
        let (asked, sent_ms) = (Instant::now(), now_ms());
        let (state, reasons, load, applied_generation) = self.holder.report();
        let boot = self.signer.boot();
        let grant = match granted {
            Some(Granted { grant: LeaseGrant { revision, .. }, .. }) => {
                let renew =
                    Renew { version: LEASE_VERSION, boot, revision, state, reasons, applied_generation, load, sent_ms };
                self.ask(bus, LeaseVerb::Renew, &renew).await?
            }
            None => {
                let MemberSettings { class, .. } = self.settings.borrow().member;
                let register = Register { version: LEASE_VERSION, boot, class, info: self.info(), state, sent_ms };
                self.ask(bus, LeaseVerb::Register, &register).await?
            }
        };
        count(&self.metrics.lease_renewals, 1);
        if let Holder::Poller(condition) = &self.holder {
            // The registry looked at its clock about in the middle.
            let middle_ms = sent_ms.saturating_add(now_ms()) / 2;
            condition.see_clock(middle_ms.saturating_sub(grant.now_ms));
        }
        self.stand(Lease::Held { revision: grant.revision, is_held_back: grant.is_held });
        Ok(Granted { grant, asked })
    }

    /// What a question without a grant means, and how long to wait before the next.
    fn miss(&self, error: &AskError, asking: &mut Asking) -> Duration {
        count(&self.metrics.lease_failures, 1);
        let was_granted = self.standing.now() != Lease::None;
        match error {
            AskError::Said(said) if said.code == ErrorCode::Fenced => {
                asking.granted = None;
                self.stand(Lease::Fenced);
                return FENCED_EVERY;
            }
            AskError::Said(said) => {
                if said.code != ErrorCode::Unavailable {
                    // Whatever was known of the lease is not so any more: it is asked for anew.
                    asking.granted = None;
                }
                asking.trouble.begin(Chain(error).to_string());
            }
            AskError::LeafAway | AskError::Request(_) if !was_granted => {
                if !std::mem::replace(&mut asking.is_absence_said, true) {
                    info!(error = %Chain(error), "nobody grants leases at this hub now: going on without");
                }
            }
            AskError::LeafAway
            | AskError::Request(_)
            | AskError::Encode(_)
            | AskError::Sign(_)
            | AskError::Unreadable(_) => {
                asking.trouble.begin(Chain(error).to_string());
            }
        }
        match self.standing.now() {
            Lease::Fenced => FENCED_EVERY,
            Lease::Held { .. } | Lease::Island => AGAIN_AFTER,
            Lease::None => {
                let pause = asking.next_first;
                asking.next_first = (pause * 2).min(UNASKED_MOST);
                pause.mul_f64(0.8 + 0.2 * fastrand::f64())
            }
        }
    }

    /// Waits for the next question; a lease that ends meanwhile makes an island at that moment.
    async fn wait(&self, pause: Duration, good_until: Instant, stop: &Stop) {
        let next = Instant::now() + pause;
        if matches!(self.standing.now(), Lease::Held { .. }) && good_until < next {
            // Passing the limit is what makes the island.
            match tokio::time::timeout_at(good_until, stop.cancelled()).await {
                Ok(()) => return,
                Err(_) => self.stand(Lease::Island),
            }
        }
        let _ = tokio::time::timeout_at(next, stop.cancelled()).await;
    }

    fn stand(&self, lease: Lease) {
        let before = self.standing.now();
        if !self.standing.set(lease) {
            return;
        }
        if let Holder::Poller(_) = self.holder {
            self.metrics.lease_held.set(i64::from(matches!(lease, Lease::Held { .. })));
            self.metrics.fenced.set(i64::from(lease == Lease::Fenced));
        }
        let name = format!("{}.{}", self.site, self.name);
        match (lease, before, &self.holder) {
            (Lease::Held { is_held_back, .. }, before, _) => {
                let was_held_back = matches!(before, Lease::Held { is_held_back: true, .. });
                if !matches!(before, Lease::Held { .. }) {
                    info!("lease of {name} is held");
                }
                if is_held_back && !was_held_back {
                    warn!("{name} is held back by a person: it gets no checks until it is released");
                }
            }
            (Lease::Island, _, Holder::Poller(_)) => {
                warn!("lease of {name} could not be renewed: going on as an island, and results say so");
            }
            (Lease::Fenced, _, Holder::Poller(_)) => {
                error!("another process has the name {name}: assigned checks are stopped here; end one of the two");
            }
            (Lease::Fenced, _, Holder::Leaf(_)) => {
                info!("another forwarder speaks for the leaf link of {name}: forwarding goes on")
            }
            (Lease::Island | Lease::None, _, _) => debug!("lease of {name} is not known"),
        }
    }

    fn note_draining(&self) {
        if let Holder::Poller(condition) = &self.holder {
            condition.is_draining.store(true, Ordering::Relaxed);
        }
    }

    async fn give_back(&self, bus: &Bus, granted: Option<Granted>, drained: &Stop) {
        let Some(granted) = granted.filter(|_| matches!(self.standing.now(), Lease::Held { .. })) else { return };
        self.note_draining();
        // Nobody is told twice: when this fails the lease ends by itself.
        let last = match self.ask_once(bus, Some(granted)).await {
            Ok(last) => last,
            Err(error) => {
                debug!(error = %Chain(&error), "draining was not said");
                granted
            }
        };
        drained.cancelled().await;
        let subject =
            TenantSubject::Lease { site: self.site.clone(), name: self.name.clone(), verb: LeaseVerb::Deregister };
        let (boot, revision) = (self.signer.boot(), last.grant.revision);
        let question = Deregister { version: LEASE_VERSION, boot, revision, reason: "stopped".to_owned() };
        let said: Result<Vec<serde_json::Value>, AskError> =
            self.signer.ask(bus, &subject, &question, ANSWER_LIMIT).await;
        match said {
            Ok(_) => info!("lease of {}.{} is given back", self.site, self.name),
            Err(error) => warn!(error = %Chain(&error), "the lease is not given back: it ends by itself"),
        }
    }
}
