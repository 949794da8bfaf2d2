//! Core: stores results, keeps current state, answers queries, shows live streams. It provisions nothing.
//!
//! Reading order: settings, what becomes of a batch, which row wins, who is who, SQL, the handlers of each subject.

pub mod admission;
pub mod commit;
pub mod config;
pub mod directory;
pub mod handlers;
pub mod live_view;
pub mod metrics;
pub mod precedence;
mod start;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::StreamName;
use bulkhead_runtime::{Health, Loops, Readiness, Stop, Supervisor, serve_health, stop_on_signals};
use tracing::info;

use crate::config::Config;
use crate::directory::Directory;
use crate::handlers::ingest::Ingesting;
use crate::handlers::live::LiveReader;
use crate::handlers::query::Answering;
use crate::live_view::LiveView;
use crate::metrics::Metrics;
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
    let metrics = Arc::new(Metrics::default());
    if let Some(listen) = config.health_listen {
        let health = Health { readiness: readiness.clone(), loops: Loops::default(), page: metrics.page.clone() };
        supervisor.spawn("health", serve_health(listen, health, stop.clone()));
    }
    supervisor.spawn("core", serve(config, readiness, Arc::clone(&metrics), stop));
    let ended = supervisor.run().await;
    info!("{}", metrics.page.counters());
    ended
}

/// A stop that comes while core still waits for something is a stop and not a failure.
async fn serve(config: Config, readiness: Readiness, metrics: Arc<Metrics>, stop: Stop) -> anyhow::Result<()> {
    match start(config, readiness, metrics, &stop).await {
        Ok(tasks) => tasks.run().await,
        Err(_) if stop.is_cancelled() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn start(config: Config, readiness: Readiness, metrics: Arc<Metrics>, stop: &Stop) -> anyhow::Result<Supervisor> {
    let store = open_store(&config, stop).await?;
    let directory = Directory::load(store.clone()).await.context("read tenants")?;
    readiness.mark("database");
    let view = LiveView::default();
    let mut tasks = Supervisor::new(stop.clone());
    let refresh = Duration::from_secs(config.tenants.refresh_s);
    tasks.spawn("tenants", directory.clone().keep_fresh(refresh, stop.clone()));
    let stream_bus = connect(&config.stream_bus, "core-stream", stop).await?;
    let lanes = [
        (StreamName::Results, "results", None),
        (StreamName::Backfill, "backfill", Some(config.ingest.backfill_rows_per_second)),
    ];
    for (stream, part, rows_per_second) in lanes {
        let ingesting = Ingesting {
            store: store.clone(),
            directory: directory.clone(),
            metrics: Arc::clone(&metrics),
            config: config.ingest.clone(),
            stream,
            rows_per_second,
        };
        tasks.spawn(part, ingesting.run(stream_bus.clone(), readiness.clone(), part, stop.clone()));
    }
    // Live streams come after everything that matters, one INTAKE account after the other (design section 2).
    let answering = Answering {
        store,
        directory: directory.clone(),
        view: view.clone(),
        metrics: Arc::clone(&metrics),
        dark_after_ms: i64::from(config.live.dark_after_s) * 1_000,
    };
    let rpc_bus = connect(&config.rpc_bus, "core-rpc", stop).await?;
    tasks.spawn("queries", answering.run(rpc_bus, readiness.clone(), stop.clone()));
    let reader = LiveReader { directory, view, metrics };
    for settings in &config.live_buses {
        let bus = connect(settings, "core-live", stop).await?;
        tasks.spawn("live", reader.clone().run(bus, readiness.clone(), stop.clone()));
    }
    Ok(tasks)
}
