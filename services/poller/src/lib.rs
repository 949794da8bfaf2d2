//! The process at a site: runs checks, writes signed batches to the site's leaf, and takes the leaf's stream upstream.
//!
//! It goes on measuring while the leaf or the hub is away. It listens for nothing but its own health questions.

mod config;

mod schedule;

mod job;
mod keep;
mod measure;

mod spool;
mod thin;

mod boot;
mod key;

mod batch;

mod edge;
mod live;

mod condition;
mod drain;
mod lease;
mod request;

mod assigned;
mod assignment;
mod runs;

mod enroll;

mod by_hand;

mod forward;

mod metrics;
mod observe;
mod reread;

mod keeper;
mod renewal;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use bulkhead_bus::MemberName;
use bulkhead_bus::payload::{Capability, CheckKind, MemberInfo};
use bulkhead_checks::{CAPABILITY_VERSION, Check, Prober};
use bulkhead_runtime::{Health, Loops, Reached, Readiness, Stop, Supervisor, now_ms, serve_health, stop_on_signals};
use tokio::sync::{mpsc, watch};
use tracing::info;

pub use crate::by_hand::check_if_asked;
pub use crate::config::Config;
pub use crate::enroll::run_if_asked;
pub use crate::metrics::Metrics;

use crate::assignment::Assignments;
use crate::batch::{BatchBuilder, Identity};
use crate::boot::Boot;
use crate::condition::Condition;
use crate::drain::Drain;
use crate::edge::{Edge, LeafBus, leaf_bus};
use crate::job::{Change, Vault};
use crate::keeper::Keeper;
use crate::lease::{Holder, Lease, LeaseKeeper, Standing};
use crate::live::LiveBoard;
use crate::measure::Runner;
use crate::observe::watch_disk;
use crate::renewal::Renewal;
use crate::request::RequestSigner;
use crate::reread::{Live, Rereader};
use crate::runs::RunsOnDemand;

/// Changes of the assignment that wait to be put in force.
const CHANGES_WAITING: usize = 16;
/// What the health page calls it when another process has this one's name.
const NAME_IS_OURS: &str = "name (another process has it)";

/// What those share who speak with the hub about what is run.
struct Member {
    identity: Identity,
    signer: RequestSigner,
    settings: watch::Receiver<Live>,
    standing: Arc<Standing>,
    condition: Arc<Condition>,
    prober: Arc<Prober>,
    vault: Arc<Vault>,
    metrics: Arc<Metrics>,
}

impl Member {
    fn info(&self, is_leaf: bool) -> MemberInfo {
        let release = env!("CARGO_PKG_VERSION").to_owned();
        if is_leaf {
            return MemberInfo { release, ..MemberInfo::default() };
        }
        let able = CheckKind::ALL.into_iter().filter(|kind| self.prober.is_able(*kind));
        MemberInfo {
            release,
            capabilities: able.map(|kind| Capability { kind, version: CAPABILITY_VERSION }).collect(),
            sealing_key: Some(self.vault.public().to_owned()),
            ..MemberInfo::default()
        }
    }

    fn lease(&self, name: MemberName) -> LeaseKeeper {
        let is_leaf = name == MemberName::Leaf;
        LeaseKeeper {
            signer: self.signer.clone(),
            site: self.identity.site.clone(),
            name,
            info: self.info(is_leaf),
            settings: self.settings.clone(),
            holder: if is_leaf {
                Holder::Leaf(Arc::clone(&self.metrics))
            } else {
                Holder::Poller(Arc::clone(&self.condition))
            },
            standing: if is_leaf { Arc::default() } else { Arc::clone(&self.standing) },
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Starts what keeps the lease, what follows the assignment and what is run on demand.
    fn start(self: Arc<Self>, tasks: &mut Supervisor, parts: MemberParts, (stop, drained): (Stop, Stop)) {
        let MemberParts { leaf, changes, state_dir, draining } = parts;
        let lease = self.lease(self.identity.poller.clone().into());
        let (mut own_leaf, own_stop) = (leaf.clone(), stop.clone());
        tasks.spawn("lease", async move {
            tokio::select! {
                Some(bus) = own_leaf.get() => lease.run(bus, (draining, own_stop.clone()), drained).await,
                () = own_stop.cancelled() => {}
            }
            own_stop.cancelled().await;
            Ok(())
        });
        let dispatch = self.signer.apart();
        let assignments = Assignments {
            identity: self.identity.clone(),
            signer: dispatch.clone(),
            prober: Arc::clone(&self.prober),
            state_dir,
            standing: Arc::clone(&self.standing),
            condition: Arc::clone(&self.condition),
            metrics: Arc::clone(&self.metrics),
            changes,
        };
        let (own_leaf, own_stop) = (leaf.clone(), stop.clone());
        tasks.spawn("assignments", async move {
            assignments.run(own_leaf, own_stop.clone()).await;
            own_stop.cancelled().await;
            Ok(())
        });
        let runs = RunsOnDemand {
            identity: self.identity.clone(),
            signer: dispatch,
            prober: Arc::clone(&self.prober),
            vault: Arc::clone(&self.vault),
            standing: Arc::clone(&self.standing),
            metrics: Arc::clone(&self.metrics),
        };
        tasks.spawn("runs on demand", async move {
            runs.run(leaf, stop.clone()).await;
            stop.cancelled().await;
            Ok(())
        });
    }
}

struct MemberParts {
    leaf: LeafBus,
    changes: mpsc::Sender<Vec<Change>>,
    state_dir: std::path::PathBuf,
    draining: Stop,
}

/// Shows on the health page whether another process has this one's name.
async fn show_name(readiness: Readiness, standing: Arc<Standing>, stop: Stop) -> anyhow::Result<()> {
    let (is_ours, mut changes) = (Reached::default(), standing.changes());
    is_ours.set(true);
    readiness.require_reached(NAME_IS_OURS, &is_ours);
    loop {
        is_ours.set(*changes.borrow_and_update() != Lease::Fenced);
        tokio::select! {
            changed = changes.changed() => changed?,
            () = stop.cancelled() => return Ok(()),
        }
    }
}

/// Says what this machine does not permit, when it is to be done.
fn look_at_hindrances(prober: &Prober, checks: &[Check], condition: &Condition) {
    let kinds: HashSet<CheckKind> = checks.iter().map(|check| check.spec.kind()).collect();
    let is_hindered = kinds.into_iter().any(|kind| !prober.is_able(kind));
    condition.is_hindered.store(is_hindered, Ordering::Relaxed);
}

/// Runs until `stop`, SIGTERM or SIGINT, then writes what waits and ends.
///
/// # Errors
/// When the state folder cannot be used, or a task fails for a reason that waiting does not cure.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let boot = Boot::begin(&config.state_dir, now_ms()).context("begin a boot")?;
    let vault = Arc::new(Vault::open(&config.state_dir).context("open the sealing key")?);
    info!(
        tenant = %config.identity.tenant, site = %config.identity.site, poller = %config.identity.poller,
        boot = boot.number, checks = config.checks.len(), key = config.batch_key.public_key(), "poller starts"
    );
    let (metrics, loops) = (Arc::new(Metrics::default()), Loops::default());
    let lanes: &[&'static str] = if config.forwarder.is_some() { &["results", "backfill"] } else { &[] };
    let readiness = Readiness::new(&[&["checks", "leaf"], lanes].concat());
    let live = watch::Sender::new(Live::of(&config));
    let member = Arc::new(Member {
        identity: config.identity.clone(),
        signer: RequestSigner::new(Arc::clone(&config.batch_key), boot.number),
        settings: live.subscribe(),
        standing: Arc::default(),
        condition: Arc::new(Condition::new(Arc::clone(&metrics))),
        prober: Arc::new(Prober::open(config.rules.clone())),
        vault,
        metrics: Arc::clone(&metrics),
    });
    look_at_hindrances(&member.prober, &config.checks, &member.condition);
    // Whoever asks for the end begins the hand-over; what ends everything comes after it.
    let (draining, stop) = (stop, Stop::new());
    let mut tasks = Supervisor::new(stop.clone());
    let (first, second) = (stop_on_signals(draining.clone()), stop_on_signals(stop.clone()));
    tasks.spawn("signals", async move {
        first.await?;
        // Whoever says it twice does not wait for the hand-over.
        second.await
    });
    tasks.spawn("drain", drain(&member, draining.clone(), stop.clone()));
    tasks.spawn("disk", watch_disk(config.state_dir.clone(), Arc::clone(&metrics), stop.clone()));
    let rereader = Rereader {
        source: config.source.clone(),
        live,
        prober: Arc::clone(&member.prober),
        condition: Arc::clone(&member.condition),
        metrics: Arc::clone(&metrics),
    };
    tasks.spawn("settings", rereader.run(stop.clone()));
    tasks.spawn("name", show_name(readiness.clone(), Arc::clone(&member.standing), stop.clone()));
    if let Some(listen) = config.health_listen {
        let health = Health { readiness: readiness.clone(), loops: loops.clone(), page: metrics.page.clone() };
        tasks.spawn("health", serve_health(listen, health, stop.clone()));
    }
    start_machine(&config, &metrics, &mut tasks, &stop);
    start_checks(config, (&member, draining), boot.number, &mut tasks, (readiness, loops, stop));
    let ended = tasks.run().await;
    metrics.log();
    ended
}

/// After `draining` hands over what is run, then ends everything.
fn drain(member: &Member, draining: Stop, stop: Stop) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let (condition, standing) = (Arc::clone(&member.condition), Arc::clone(&member.standing));
    let drain = Drain { condition, standing, asked: draining };
    async move {
        tokio::select! {
            () = drain.run() => stop.cancel(),
            () = stop.cancelled() => {}
        }
        Ok(())
    }
}

/// What is done for the machine and its leaf.
fn start_machine(config: &Config, metrics: &Arc<Metrics>, tasks: &mut Supervisor, stop: &Stop) {
    let keeper = config.keeper.clone().map(|settings| Arc::new(Keeper { settings, metrics: Arc::clone(metrics) }));
    let renewal = config.renewal.clone().zip(keeper.clone()).map(|(settings, keeper)| Renewal {
        settings,
        identity: config.identity.clone(),
        keeper,
        metrics: Arc::clone(metrics),
    });
    if let Some(keeper) = keeper {
        tasks.spawn("keeper", keeper.watch(stop.clone()));
    }
    if let Some(renewal) = renewal {
        tasks.spawn("renewal", renewal.run(stop.clone()));
    }
}

/// Checks, where their results go, and what the hub has to say about them.
fn start_checks(
    config: Config,
    (member, draining): (&Arc<Member>, Stop),
    boot: u64,
    tasks: &mut Supervisor,
    (readiness, loops, stop): (Readiness, Loops, Stop),
) {
    let metrics = &member.metrics;
    let board = Arc::new(LiveBoard::default());
    let (writer, reader) = spool::open_spool(config.spool_results_most, Arc::clone(metrics));
    let (changes, coming) = mpsc::channel(CHANGES_WAITING);
    let (connected, leaf) = leaf_bus();
    let drained = Stop::new();
    let runner = Runner {
        settings: member.settings.clone(),
        changes: coming,
        prober: Arc::clone(&member.prober),
        vault: Arc::clone(&member.vault),
        standing: Arc::clone(&member.standing),
        spool: writer,
        board: Arc::clone(&board),
        metrics: Arc::clone(metrics),
        heart: loops.watch("checks"),
    };
    let batches = BatchBuilder::new(config.identity.clone(), config.batch_key, config.batch.results_most, boot);
    let site = config.identity.site.clone();
    let edge = Edge {
        connected,
        condition: Arc::clone(&member.condition),
        settings: config.leaf,
        identity: config.identity,
        spool: reader,
        linger: config.batch.linger,
        results_most: config.batch.results_most,
        board,
        metrics: Arc::clone(metrics),
        heart: loops.watch("edge"),
    };
    let running = runner.run(readiness.clone(), stop.clone());
    let has_drained = drained.clone();
    tasks.spawn("checks", async move {
        let ended = running.await;
        has_drained.cancel();
        ended
    });
    tasks.spawn("edge", edge.run(batches, readiness.clone(), stop.clone()));
    let parts = MemberParts { leaf, changes, state_dir: config.state_dir, draining };
    Arc::clone(member).start(tasks, parts, (stop.clone(), drained));
    if let Some(forwarder) = config.forwarder {
        let lease = member.lease(MemberName::Leaf);
        let life = (readiness, loops, stop);
        tasks.spawn("forwarder", forward::run_forwarder(forwarder, (site, lease), Arc::clone(metrics), life));
    }
}
