//! Core: stores results, keeps current state, answers queries, shows live streams. It provisions nothing.
//!
//! Reading order: settings, what becomes of a batch, which row wins, who is who, SQL, the handlers of each subject, what
//! is shown of all that.

pub mod admission;
pub mod backlog;
pub mod commit;
pub mod config;
pub mod directory;
pub mod handlers;
pub mod live_view;
pub mod metrics;
pub mod observe;
pub mod precedence;
mod start;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::Lane;
use bulkhead_runtime::{Health, Loops, Readiness, Stop, Supervisor, serve_health, stop_on_signals};
use tracing::info;

use crate::config::Config;
use crate::directory::Directory;
use crate::handlers::ingest::{Hearts, Ingesting};
use crate::handlers::live::LiveReader;
use crate::handlers::query::Answering;
use crate::live_view::LiveView;
use crate::metrics::{Connection, Metrics};
use crate::observe::{Answers, Observer, show_connections, show_hub, stream_of};
use crate::start::{connect, open_store};

/// Runs core until `stop` or a signal.
///
/// # Errors
/// When it cannot start, or a task fails.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let mut parts = vec!["database", "results", "backfill", "queries"];
    if !config.live_buses.is_empty() {
        parts.push("live");
    }
    let readiness = Readiness::new(&parts);
    let mut supervisor = Supervisor::new(stop.clone());
    supervisor.spawn("signals", stop_on_signals(stop.clone()));
    let (metrics, loops) = (Arc::new(Metrics::default()), Loops::default());
    let health = Health { readiness, loops, page: metrics.page.clone() };
    if let Some(listen) = config.health_listen {
        supervisor.spawn("health", serve_health(listen, health.clone(), stop.clone()));
    }
    supervisor.spawn("core", serve(config, health, Arc::clone(&metrics), stop));
    let ended = supervisor.run().await;
    info!("{}", metrics.page.counters());
    ended
}

/// A stop that comes while core still waits for something is a stop and not a failure.
async fn serve(config: Config, health: Health, metrics: Arc<Metrics>, stop: Stop) -> anyhow::Result<()> {
    match start(config, &health, metrics, &stop).await {
        Ok(tasks) => tasks.run().await,
        Err(_) if stop.is_cancelled() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn start(config: Config, health: &Health, metrics: Arc<Metrics>, stop: &Stop) -> anyhow::Result<Supervisor> {
    let Health { readiness, loops, .. } = health;
    let store = open_store(&config, stop).await?;
    show_connections(&metrics, store.clone());
    let answers = Answers::new(&metrics);
    let directory = Directory::load(store.clone(), answers.clone()).await.context("read tenants")?;
    readiness.mark("database");
    readiness.require_reached("database", &answers.reached);
    let view = LiveView::default();
    let mut tasks = Supervisor::new(stop.clone());
    let refresh = Duration::from_secs(config.tenants.refresh_s);
    tasks.spawn("tenants", directory.clone().keep_fresh(refresh, loops.watch("tenants"), stop.clone()));
    let stream_bus = connect(&config.stream_bus, "core-stream", stop).await?;
    readiness.require_connection("hub (core-stream)", &stream_bus);
    show_hub(&metrics, Connection::Stream, vec![stream_bus.clone()]);
    let lanes =
        [(Lane::Results, "results", None), (Lane::Backfill, "backfill", Some(config.ingest.backfill_rows_per_second))];
    for (lane, part, rows_per_second) in lanes {
        let ingesting = Ingesting {
            store: store.clone(),
            directory: directory.clone(),
            metrics: Arc::clone(&metrics),
            config: config.ingest.clone(),
            stream: stream_of(lane),
            lane,
            answers: answers.clone(),
            hearts: Arc::new(Hearts::of(lane, loops)),
            rows_per_second,
        };
        tasks.spawn(part, ingesting.run(stream_bus.clone(), readiness.clone(), part, stop.clone()));
    }
    let observer = Observer {
        bus: stream_bus,
        store: store.clone(),
        directory: directory.clone(),
        metrics: Arc::clone(&metrics),
        answers,
        heart: loops.watch("observer"),
    };
    tasks.spawn("observer", observer.run(stop.clone()));
    let answering = Answering {
        store,
        directory: directory.clone(),
        view: view.clone(),
        metrics: Arc::clone(&metrics),
        dark_after_ms: i64::from(config.live.dark_after_s) * 1_000,
    };
    let rpc_bus = connect(&config.rpc_bus, "core-rpc", stop).await?;
    readiness.require_connection("hub (core-rpc)", &rpc_bus);
    show_hub(&metrics, Connection::Rpc, vec![rpc_bus.clone()]);
    tasks.spawn("queries", answering.run(rpc_bus, readiness.clone(), loops.watch("queries"), stop.clone()));
    let reader = LiveReader { directory, view, metrics: Arc::clone(&metrics) };
    start_live(&config, health, &reader, (&mut tasks, stop)).await?;
    Ok(tasks)
}

/// Live streams come after everything that matters, one INTAKE account after the other (design section 2).
async fn start_live(
    config: &Config,
    health: &Health,
    reader: &LiveReader,
    (tasks, stop): (&mut Supervisor, &Stop),
) -> anyhow::Result<()> {
    let mut buses = Vec::new();
    for settings in &config.live_buses {
        let bus = connect(settings, "core-live", stop).await?;
        health.readiness.require_connection("hub (core-live)", &bus);
        buses.push(bus.clone());
        let heart = health.loops.watch("live");
        tasks.spawn("live", reader.clone().run(bus, health.readiness.clone(), heart, stop.clone()));
    }
    show_hub(&reader.metrics, Connection::Live, buses);
    Ok(())
}
