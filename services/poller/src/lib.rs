//! The process at a site: runs checks, writes signed batches to the site's leaf, and takes the leaf's stream upstream.
//!
//! It goes on measuring while the leaf or the hub is away. It listens for nothing but its own health questions.

mod config;

mod schedule;

mod measure;

mod spool;

mod boot;
mod key;

mod batch;

mod edge;
mod live;

mod enroll;

mod forward;

mod metrics;
mod observe;

mod keeper;
mod renewal;

use std::sync::Arc;

use anyhow::Context;
use bulkhead_checks::{Prober, Rules};
use bulkhead_runtime::{Health, Loops, Readiness, Stop, Supervisor, now_ms, serve_health, stop_on_signals};
use tracing::info;

pub use crate::config::Config;
pub use crate::enroll::run_if_asked;
pub use crate::metrics::Metrics;

use crate::batch::BatchBuilder;
use crate::boot::Boot;
use crate::edge::Edge;
use crate::keeper::Keeper;
use crate::live::LiveBoard;
use crate::measure::Runner;
use crate::observe::watch_disk;
use crate::renewal::Renewal;

/// Runs until `stop`, SIGTERM or SIGINT, then writes what waits and ends.
///
/// # Errors
/// When the state folder cannot be used, or a task fails for a reason that waiting does not cure.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let boot = Boot::begin(&config.state_dir, now_ms()).context("begin a boot")?;
    info!(
        tenant = %config.identity.tenant, site = %config.identity.site, poller = %config.identity.poller,
        boot = boot.number, checks = config.checks.len(), key = config.batch_key.public_key(), "poller starts"
    );
    let (metrics, loops) = (Arc::new(Metrics::default()), Loops::default());
    let board = Arc::new(LiveBoard::default());
    let (writer, reader) = spool::open_spool(config.spool_results_most, Arc::clone(&metrics));
    let lanes: &[&'static str] = if config.forwarder.is_some() { &["results", "backfill"] } else { &[] };
    let readiness = Readiness::new(&[&["checks", "leaf"], lanes].concat());
    let runner = Runner {
        prober: Arc::new(Prober::open(Rules::default())),
        checks: config.checks.into_iter().map(Arc::new).collect(),
        checks_at_once: config.checks_at_once,
        spool: writer,
        board: Arc::clone(&board),
        metrics: Arc::clone(&metrics),
        heart: loops.watch("checks"),
    };
    let batches = BatchBuilder::new(config.identity.clone(), config.batch_key, config.batch.results_most, boot.number);
    let site = config.identity.site.clone();
    let keeper = config.keeper.map(|settings| Arc::new(Keeper { settings, metrics: Arc::clone(&metrics) }));
    let renewal = config.renewal.zip(keeper.clone()).map(|(settings, keeper)| Renewal {
        settings,
        identity: config.identity.clone(),
        keeper,
        metrics: Arc::clone(&metrics),
    });
    let edge = Edge {
        settings: config.leaf,
        identity: config.identity,
        spool: reader,
        linger: config.batch.linger,
        results_most: config.batch.results_most,
        board,
        metrics: Arc::clone(&metrics),
        heart: loops.watch("edge"),
    };

    let mut tasks = Supervisor::new(stop.clone());
    tasks.spawn("signals", stop_on_signals(stop.clone()));
    tasks.spawn("checks", runner.run(readiness.clone(), stop.clone()));
    tasks.spawn("edge", edge.run(batches, readiness.clone(), stop.clone()));
    tasks.spawn("disk", watch_disk(config.state_dir, Arc::clone(&metrics), stop.clone()));
    if let Some(keeper) = keeper {
        tasks.spawn("keeper", keeper.watch(stop.clone()));
    }
    if let Some(renewal) = renewal {
        tasks.spawn("renewal", renewal.run(stop.clone()));
    }
    if let Some(forwarder) = config.forwarder {
        let life = (readiness.clone(), loops.clone(), stop.clone());
        tasks.spawn("forwarder", forward::run_forwarder(forwarder, site, Arc::clone(&metrics), life));
    }
    if let Some(listen) = config.health_listen {
        let health = Health { readiness, loops, page: metrics.page.clone() };
        tasks.spawn("health", serve_health(listen, health, stop));
    }
    let ended = tasks.run().await;
    metrics.log();
    ended
}
