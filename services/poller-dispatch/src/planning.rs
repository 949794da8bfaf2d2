//! Plans whatever changed: asks who is there, shares out, stores it under the leader's epoch, and wakes whom it concerns.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_bus::{
    AccountKey, CoreSubject, PollerName, SiteName, Tenant, TenantId, TenantState, TenantSubject, WakeUp,
};
use bulkhead_directory::{Answers, Directory};
use bulkhead_runtime::{Bus, Chain, Heart, Stop};
use bulkhead_store::{Store, StoreError, read_batch_keys};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::leader::Leading;
use crate::members::{Holds, View, ask_members, departures_of, members_of};
use crate::metrics::{Metrics, Planned};
use crate::plan::{Placement, Situation, Wanted, participants, share_out};
use crate::queue::Queue;
use crate::store::{self, Kept};
use crate::turn::{Because, Making, Open, Turn, turn};

const TICK: Duration = Duration::from_secs(1);
/// The view of leases goes back only when the hub was set up anew: then, after this, it is believed.
const OLDER_LEASES_FOR: Duration = Duration::from_secs(60);

/// Plans tenants.
#[derive(Clone)]
pub struct Planner {
    pub store: Store,
    pub directory: Directory,
    pub answers: Answers,
    pub push: Bus,
    pub metrics: Arc<Metrics>,
    pub holds: Holds,
    pub leading: Leading,
    pub holder: Arc<str>,
    pub turns: Turns,
}

/// Who waits to be planned. Clones share it.
#[derive(Clone, Default)]
pub struct Turns {
    inner: Arc<TurnsInner>,
}

#[derive(Default)]
struct TurnsInner {
    queue: Mutex<Queue>,
    failed: Mutex<Vec<TenantId>>,
    older: Mutex<BTreeMap<TenantId, Instant>>,
    without_poller: Mutex<BTreeMap<TenantId, usize>>,
    is_news: Notify,
}

impl Turns {
    pub fn add(&self, tenant: TenantId) {
        self.inner.queue.lock().expect("no holder panics").add(tenant);
        self.inner.is_news.notify_one();
    }

    fn take(&self) -> Option<TenantId> {
        self.inner.queue.lock().expect("no holder panics").take()
    }

    fn waiting(&self) -> usize {
        self.inner.queue.lock().expect("no holder panics").waiting()
    }
}

/// What a plan came to.
struct Outcome {
    planned: Planned,
    turn: Turn,
    without_poller: usize,
}

impl Planner {
    /// Takes tenants in turn until `stop`.
    ///
    /// # Errors
    /// Never: a plan that fails is tried again.
    pub async fn work(self, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut leading = self.leading.clone();
        loop {
            let epoch = *leading.borrow_and_update();
            let next = epoch.and_then(|epoch| Some((epoch, self.turns.take()?)));
            let Some((epoch, tenant)) = next else {
                tokio::select! {
                    () = heart.while_waiting(self.turns.inner.is_news.notified()) => {}
                    // The election ends before us only when everything does, and says why itself.
                    Ok(()) = leading.changed() => {}
                    () = stop.cancelled() => return Ok(()),
                }
                continue;
            };
            // Whoever else waits may have been told of two at once.
            self.turns.inner.is_news.notify_one();
            heart.while_waiting(self.plan_noted(tenant, epoch)).await;
            self.turns.inner.queue.lock().expect("no holder panics").done(tenant);
        }
    }

    /// Names tenants to be planned: all of them when this replica begins to plan and every so often, those whose hold has
    /// ended, and those whose plan has failed.
    ///
    /// # Errors
    /// Never.
    pub async fn pace(self, every: Duration, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut leading = self.leading.clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut all_at: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = heart.while_waiting(ticks.tick()) => {}
                Ok(()) = leading.changed() => all_at = None,
                () = stop.cancelled() => return Ok(()),
            }
            self.metrics.tenants_waiting.set(i64::try_from(self.turns.waiting()).unwrap_or(i64::MAX));
            self.metrics.tenants_held.set(i64::try_from(self.holds.count()).unwrap_or(i64::MAX));
            if leading.borrow_and_update().is_none() {
                self.turns.inner.queue.lock().expect("no holder panics").clear();
                all_at = None;
                continue;
            }
            if all_at.is_none_or(|at| at.elapsed() >= every) {
                all_at = Some(Instant::now());
                self.directory.snapshot().tenants().for_each(|(_, tenant)| self.turns.add(tenant.id));
            }
            let failed = std::mem::take(&mut *self.turns.inner.failed.lock().expect("no holder panics"));
            self.holds.ended(Instant::now()).into_iter().chain(failed).for_each(|tenant| self.turns.add(tenant));
        }
    }

    async fn plan_noted(&self, id: TenantId, epoch: i64) {
        let snapshot = self.directory.snapshot();
        let found = snapshot.tenants().find(|(_, tenant)| tenant.id == id && tenant.state == TenantState::Active);
        let Some((account, tenant)) = found.map(|(account, tenant)| (account.clone(), tenant.clone())) else { return };
        let began = Instant::now();
        let planned = self.plan(&account, &tenant, epoch).await;
        self.metrics.plan_seconds.observe(began.elapsed());
        self.answers.note_write(&planned);
        match planned {
            Ok(outcome) => {
                self.metrics.plans.of(outcome.planned).inc();
                self.note(&tenant, &outcome);
                self.wake(&account, &outcome.turn).await;
                if outcome.planned == Planned::OlderLeases {
                    self.turns.inner.failed.lock().expect("no holder panics").push(id);
                }
            }
            Err(error) => {
                self.metrics.plans.of(Planned::Failed).inc();
                warn!(error = %Chain(&error), tenant = %tenant.slug, "plan of {} failed, it is made again", tenant.slug);
                self.turns.inner.failed.lock().expect("no holder panics").push(id);
            }
        }
    }

    fn note(&self, tenant: &Tenant, outcome: &Outcome) {
        let Turn { begun, ended, .. } = &outcome.turn;
        if let Planned::Unchanged | Planned::Changed = outcome.planned {
            let mut all = self.turns.inner.without_poller.lock().expect("no holder panics");
            all.insert(tenant.id, outcome.without_poller);
            let sum = all.values().sum::<usize>();
            self.metrics.assignments_without_poller.set(i64::try_from(sum).unwrap_or(i64::MAX));
        }
        if outcome.planned != Planned::Changed {
            return;
        }
        let lost = ended.iter().filter(|row| row.because == Because::PollerLost).count();
        self.metrics.assignments_begun.inc_by(begun.len() as u64);
        self.metrics.assignments_lost.inc_by(lost as u64);
        let (begun, ended, slug) = (begun.len(), ended.len(), &tenant.slug);
        info!(tenant = %slug, begun, ended, lost, "checks of {slug} are shared out anew: {begun} begin and {ended} end");
    }

    async fn plan(&self, account: &AccountKey, tenant: &Tenant, epoch: i64) -> Result<Outcome, StoreError> {
        let view = ask_members(&self.push, account).await;
        let mut tx = self.store.begin_writing(tenant).await?;
        let kept = store::lock_state(&mut tx, tenant).await?;
        // Not what is remembered: a poller may have been registered, or revoked, a moment ago.
        let (batch_keys, _) = read_batch_keys(&mut tx, tenant).await?;
        let members = members_of(&view, &batch_keys);
        let held = self.holds.note(tenant.id, view.unknown.is_none(), &members, Instant::now());
        if let Some(because) = &view.unknown {
            info!(tenant = %tenant.slug, because, "nobody of {} is taken for lost: the registry cannot tell", tenant.slug);
        }
        let ended = |planned| Ok(Outcome { planned, turn: Turn::default(), without_poller: 0 });
        if self.is_older(tenant.id, &view, kept.lease_revision) {
            return ended(Planned::OlderLeases);
        }
        let configured = store::read_checks(&mut tx, tenant).await?;
        let open = store::read_open(&mut tx, tenant).await?;
        let running = configured.values().filter(|check| !check.definition.paused);
        let situation = Situation {
            tenant: tenant.id.as_uuid().to_string(),
            checks: running.map(|check| Wanted::of(&check.definition)).collect(),
            members,
            owners: owners_of(&open),
            known: kept.known(),
            is_held: held.is_all,
            held_sites: held.sites,
        };
        let departures = departures_of(&view, kept.now_ms);
        let now_ms = kept.now_ms;
        let sharing = tokio::task::spawn_blocking(move || {
            let placement = share_out(&situation);
            let (configured, open, departures) = (&configured, &open, &departures);
            let turn = turn(&Making { configured, open, placement: &placement, departures, now_ms });
            (weights_of(&situation, &kept.weights), without_poller(&placement), turn, kept)
        });
        let (weights, without_poller, turn, kept) = sharing.await.expect("sharing out does not panic");
        if turn.is_empty() && weights == kept.weights {
            return Ok(Outcome { planned: Planned::Unchanged, turn, without_poller });
        }
        let generation = kept.generation + i64::from(!turn.is_empty());
        let lease_revision = if view.unknown.is_none() { view.revision } else { kept.lease_revision };
        let next = Kept { generation, epoch, lease_revision, weights, now_ms };
        if !turn.is_empty() {
            store::write_turn(&mut tx, tenant, generation, &turn).await?;
        }
        if !store::commit_plan(tx, tenant, &self.holder, &next).await? {
            return ended(Planned::StaleLeader);
        }
        let planned = if turn.is_empty() { Planned::Unchanged } else { Planned::Changed };
        Ok(Outcome { planned, turn, without_poller })
    }

    /// Whether the view is older than that of the plan before, for as long as that may come from a replica that is behind.
    fn is_older(&self, tenant: TenantId, view: &View, lease_revision: i64) -> bool {
        let mut older = self.turns.inner.older.lock().expect("no holder panics");
        if view.unknown.is_some() || view.revision >= lease_revision {
            older.remove(&tenant);
            return false;
        }
        let since = *older.entry(tenant).or_insert_with(Instant::now);
        let is_believed = since.elapsed() >= OLDER_LEASES_FOR;
        if is_believed {
            warn!(lease_revision, found = view.revision, "leases have gone back and stay so: they are believed");
            older.remove(&tenant);
        }
        !is_believed
    }

    /// A wake-up that is lost costs time: pollers ask every so often.
    async fn wake(&self, account: &AccountKey, turn: &Turn) {
        for (site, poller) in &turn.concerned {
            wake(&self.push, account, (site, poller), WakeUp::Assign, &self.metrics).await;
        }
    }
}

/// Wakes one poller.
pub async fn wake(
    push: &Bus,
    account: &AccountKey,
    (site, poller): (&SiteName, &PollerName),
    verb: WakeUp,
    metrics: &Metrics,
) {
    let subject = TenantSubject::Down { site: site.clone(), poller: poller.clone(), verb };
    let subject = CoreSubject { account: account.clone(), subject }.to_string();
    match push.publish(&subject, bytes::Bytes::new()).await {
        Ok(()) => drop(metrics.wake_ups.inc()),
        Err(error) => warn!(error = %Chain(&error), "a poller is not woken"),
    }
}

fn owners_of(open: &[Open]) -> Placement {
    let mut owners = Placement::new();
    for row in open {
        owners.entry(row.check.clone()).or_default().insert(row.site.clone(), row.poller.clone());
    }
    owners
}

/// Of those who take part; of whom nothing is known now, as before.
fn weights_of(situation: &Situation, before: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let weights: BTreeMap<_, _> =
        situation.members.iter().map(|member| ((&member.site, &member.poller), member.weight)).collect();
    let weight = |(site, poller): (SiteName, PollerName)| {
        let name = format!("{site}/{poller}");
        let weight = weights.get(&(&site, &poller)).or_else(|| before.get(&name)).copied();
        (name, weight.unwrap_or(1))
    };
    participants(situation).into_iter().map(weight).collect()
}

fn without_poller(placement: &Placement) -> usize {
    placement.values().flat_map(BTreeMap::values).filter(|owner| owner.is_none()).count()
}
