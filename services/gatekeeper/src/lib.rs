//! The gatekeeper: decides which account a connection enters, by its certificate and by nothing that it says of itself.
//! It needs no database, and holds keys that sign for scoped roles only.
//!
//! Reading order: settings, what a server asks, what is known, the rules, what is answered, how decisions become durable,
//! how what is known comes here, who looks behind it.

pub mod answer;
pub mod barred;
pub mod config;
pub mod copy;
pub mod decide;
pub mod detective;
pub mod gate;
pub mod handlers;
pub mod judge;
pub mod knowledge;
pub mod ledger;
pub mod metrics;
pub mod probe;
pub mod request;
pub mod servers;
pub mod spool;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::gate::decision_subject;
use bulkhead_runtime::{
    Backoff, Bus, BusSettings, Chain, Health, Loops, Readiness, Stop, Supervisor, serve_health, stop_on_signals,
};
use tracing::info;

use crate::answer::Answering;
use crate::barred::Barred;
use crate::config::Config;
use crate::detective::Detective;
use crate::handlers::Deciding;
use crate::knowledge::Knowledge;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::servers::{ServerKeys, Servers};
use crate::spool::Spool;

const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MOST: Duration = Duration::from_secs(1);

/// Runs the gatekeeper until `stop` or a signal.
///
/// # Errors
/// When it cannot start, or a task fails.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let readiness = Readiness::new(&["questions"]);
    let mut supervisor = Supervisor::new(stop.clone());
    supervisor.spawn("signals", stop_on_signals(stop.clone()));
    let (metrics, loops) = (Arc::new(Metrics::default()), Loops::default());
    let health = Health { readiness, loops, page: metrics.page.clone() };
    if let Some(listen) = config.health_listen {
        supervisor.spawn("health", serve_health(listen, health.clone(), stop.clone()));
    }
    supervisor.spawn("gatekeeper", serve(config, health, Arc::clone(&metrics), stop));
    let ended = supervisor.run().await;
    info!(counters = metrics.page.counters(), "gatekeeper stopped");
    ended
}

/// Connects however long that takes: it is started before, or with, the hub, and is of no use without.
async fn connect(settings: &BusSettings, name: &str, stop: &Stop) -> anyhow::Result<Bus> {
    let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
    let mut last = String::new();
    loop {
        let error = tokio::select! {
            connected = Bus::connect(settings, name) => match connected {
                Ok(bus) => return Ok(bus),
                Err(error) => error,
            },
            () = stop.cancelled() => anyhow::bail!("{name}: stopped before it was connected"),
        };
        let cause = Chain(&error).to_string();
        if cause != last {
            info!(cause, "waiting: connect {name} to the hub");
            last = cause;
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = stop.cancelled() => {}
        }
    }
}

/// A stop that comes while something is still waited for is a stop and not a failure.
async fn serve(config: Config, health: Health, metrics: Arc<Metrics>, stop: Stop) -> anyhow::Result<()> {
    match start(config, &health, metrics, &stop).await {
        Ok(tasks) => tasks.run().await,
        Err(_) if stop.is_cancelled() => Ok(()),
        Err(error) => Err(error),
    }
}

/// How what is known comes here.
fn keep_knowing(
    tasks: &mut Supervisor,
    (knowledge, barred): (&Arc<Knowledge>, Arc<Barred>),
    (bus, gatekeeper): (&Bus, &str),
    (health, stop): (&Health, &Stop),
) {
    let beat = |name| health.loops.watch(name);
    let (following, watching, heart, end) = (Arc::clone(knowledge), bus.clone(), beat("bucket"), stop.clone());
    tasks.spawn("bucket", async move { following.follow(watching, heart, end).await });
    let (hearing, listening, heart, end) = (Arc::clone(knowledge), bus.clone(), beat("records"), stop.clone());
    tasks.spawn("records", async move { hearing.hear(listening, heart, end).await });
    let (passing, saying, heart, end) = (Arc::clone(knowledge), bus.clone(), beat("pass on"), stop.clone());
    let name = gatekeeper.to_owned();
    tasks.spawn("pass on", async move { passing.pass_on(saying, &name, heart, end).await });
    let (listening, heart, end) = (bus.clone(), beat("barred"), stop.clone());
    let name = gatekeeper.to_owned();
    tasks.spawn("barred", async move { barred.follow(listening, &name, heart, end).await });
    let (following, heart, end) = (Arc::clone(knowledge), beat("files"), stop.clone());
    tasks.spawn("files", async move { following.follow_files(heart, end).await });
}

async fn start(config: Config, health: &Health, metrics: Arc<Metrics>, stop: &Stop) -> anyhow::Result<Supervisor> {
    let own = Arc::new(config.xkey().map_err(anyhow::Error::msg)?);
    let files = config.trust_files().map_err(anyhow::Error::msg)?;
    let cache = config.cache_dir.clone();
    let barred = Arc::new(Barred::open(&cache));
    let (knowledge, narrowed) =
        Knowledge::open(files, cache, own, Arc::clone(&metrics)).context("open what is known")?;
    let knowledge = Arc::new(knowledge);
    let spool = Spool::open(&config.spool_dir, config.spool_bytes).context("open the spool")?;
    let bus = connect(&config.bus, &config.name, stop).await?;
    let system = connect(&config.system_bus, &config.name, stop).await?;
    health.readiness.require_connection("hub (AUTH)", &bus);
    health.readiness.require_connection("hub (SYS)", &system);
    let subject = decision_subject(&config.name);
    let ledger = Arc::new(Ledger::new(bus.clone(), subject, spool, Arc::clone(&metrics)));
    let answering = Answering {
        xkey: config.xkey().map_err(anyhow::Error::msg)?,
        signer: config.answer_key().map_err(anyhow::Error::msg)?,
        sentinel_account: config.sentinel_account.clone(),
    };
    let detective = Arc::new(Detective {
        gatekeeper: config.name.clone(),
        system: system.clone(),
        known: Arc::clone(&knowledge.known),
        direct: config.direct_accounts().map_err(anyhow::Error::msg)?,
        own_certificate: config.bus.tls.cert_file.clone(),
        ledger: Arc::clone(&ledger),
        barred: Arc::clone(&barred),
        bus: bus.clone(),
        reviews: knowledge.reviews(),
        servers: AtomicUsize::new(0),
        has_missed: AtomicBool::new(false),
        finds_leaves: ServerKeys::default(),
        metrics: Arc::clone(&metrics),
    });
    let deciding = Arc::new(Deciding {
        gatekeeper: config.name.clone(),
        known: Arc::clone(&knowledge.known),
        answering,
        servers: Servers::new(system),
        ledger: Arc::clone(&ledger),
        barred: Arc::clone(&barred),
        session: config.session(),
        metrics,
    });
    let mut tasks = Supervisor::new(stop.clone());
    let beat = |name| health.loops.watch(name);
    keep_knowing(&mut tasks, (&knowledge, barred), (&bus, &config.name), (health, stop));
    let (heart, end) = (beat("spool"), stop.clone());
    tasks.spawn("spool", async move { ledger.drain(heart, end).await });
    let (probing, asking, name, end) = (bus.clone(), detective.system.clone(), config.name.clone(), stop.clone());
    tasks.spawn("pulse", async move { probe::keep_pulse(probing, asking, &name, end).await });
    tasks.spawn("detective", Arc::clone(&detective).follow(beat("detective"), stop.clone()));
    tasks.spawn("review", Arc::clone(&detective).review(narrowed, beat("review"), stop.clone()));
    tasks.spawn("sweep", detective.sweep(beat("sweep"), stop.clone()));
    let (readiness, heart, end) = (health.readiness.clone(), beat("questions"), stop.clone());
    tasks.spawn("questions", async move {
        tokio::select! {
            () = heart.while_waiting(knowledge.until_known()) => {}
            () = end.cancelled() => return Ok(()),
        }
        deciding.run(bus, readiness, heart, end).await
    });
    Ok(tasks)
}
