//! Core: stores results, keeps current state, answers queries, shows live streams. It provisions nothing.
//!
//! Reading order: settings, what becomes of a batch, which row wins, who is who, SQL, the handlers of each subject, what
//! is shown of all that.

pub mod admission;
pub mod backlog;
pub mod commit;
pub mod config;
pub mod handlers;
pub mod live_shards;
pub mod live_view;
pub mod metrics;
pub mod observe;
pub mod precedence;
pub mod retention;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::Lane;
use bulkhead_directory::{Answers, DatabaseSettings, Directory, open_store, show_connections};
use bulkhead_runtime::{
    Bus, BusSettings, Health, Loops, Reached, Readiness, Said, Stop, Supervisor, reach_hub, run_service, show_hub,
};
use bulkhead_store::{Connections, Service, Store};

use crate::config::Config;
use crate::handlers::ingest::{Hearts, Ingesting};
use crate::handlers::live::LiveReader;
use crate::handlers::query::Answering;
use crate::live_shards::{LiveBuses, LiveShards};
use crate::live_view::LiveView;
use crate::metrics::{Connection, Metrics};
use crate::observe::{Observer, stream_of};
use crate::retention::Retention;

/// Runs core until `stop` or a signal.
///
/// # Errors
/// When it cannot start, or a task fails.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let mut parts = vec!["database", "results", "backfill", "queries"];
    if !config.live_buses.is_empty() || config.live_buses_dir.is_some() {
        parts.push("live");
    }
    let readiness = Readiness::new(&parts);
    let (metrics, loops) = (Arc::new(Metrics::default()), Loops::default());
    let health = Health { readiness, loops, page: metrics.page.clone() };
    let (listen, shown, stopped) = (config.health_listen, health.clone(), stop.clone());
    let start = async move {
        let tasks = Supervisor::new(stop.clone());
        Starting { config: &config, health, metrics, stop: &stop, tasks }.start().await
    };
    run_service("core", listen, shown, stopped, start).await
}

/// What the parts of core are started with.
struct Starting<'a> {
    config: &'a Config,
    health: Health,
    metrics: Arc<Metrics>,
    stop: &'a Stop,
    tasks: Supervisor,
}

/// What everything that asks the database works with.
struct Database {
    store: Store,
    directory: Directory,
    answers: Answers,
}

impl Starting<'_> {
    async fn start(mut self) -> anyhow::Result<Supervisor> {
        let database = self.open_database().await?;
        let view = LiveView::default();
        self.start_lanes(&database).await?;
        self.start_queries(&database, &view).await?;
        // Live streams come after everything that matters (design section 2).
        let metrics = Arc::clone(&self.metrics);
        self.start_live(LiveReader { directory: database.directory, view, metrics }, database.answers.said).await?;
        Ok(self.tasks)
    }

    /// A connection to the hub that core is not ready without.
    async fn join_hub(&self, settings: &BusSettings, name: &'static str, need: &'static str) -> anyhow::Result<Bus> {
        let bus = reach_hub(settings, name, self.stop).await?;
        self.health.readiness.require_connection(need, &bus);
        Ok(bus)
    }

    fn show_hub(&self, connection: Connection, buses: impl Fn() -> Vec<Bus> + Send + Sync + 'static) {
        show_hub(&self.metrics.page, self.metrics.hub_connections.of(connection).clone(), buses);
    }

    async fn open_database(&mut self) -> anyhow::Result<Database> {
        let ingest = &self.config.ingest;
        let database = DatabaseSettings {
            service: Service::Core,
            url_file: &self.config.database_url_file,
            direct_url_file: self.config.database_direct_url_file.as_deref(),
            connections: Connections { shared: ingest.connections, own_schemas: ingest.schema_connections },
        };
        let store = open_store(database, self.stop).await?;
        show_connections(&self.metrics.page, self.metrics.database_connections.clone(), store.clone());
        let answers = self.metrics.answers();
        let directory = Directory::load(store.clone(), answers.clone()).await.context("read tenants")?;
        self.health.readiness.mark("database");
        self.health.readiness.require_reached("database", &answers.reached);
        self.health.readiness.require_reached("database (rights and schema)", &answers.usable);
        self.health.readiness.require_reached("database (writing)", &answers.writable);
        let refresh = Duration::from_secs(self.config.tenants.refresh_s);
        let heart = self.health.loops.watch("tenants");
        let seen = self.metrics.tenants_seen_timestamp_seconds.clone();
        self.tasks.spawn("tenants", directory.clone().keep_fresh(refresh, seen, heart, self.stop.clone()));
        let retention = Retention {
            store: store.clone(),
            directory: directory.clone(),
            metrics: Arc::clone(&self.metrics),
            answers: answers.clone(),
            heart: self.health.loops.watch("retention"),
        };
        let every = Duration::from_secs(self.config.tenants.retention_every_s);
        self.tasks.spawn("retention", retention.run(every, self.stop.clone()));
        Ok(Database { store, directory, answers })
    }

    async fn start_lanes(&mut self, database: &Database) -> anyhow::Result<()> {
        let bus = self.join_hub(&self.config.stream_bus, "core-stream", "hub (core-stream)").await?;
        let shown = bus.clone();
        self.show_hub(Connection::Stream, move || vec![shown.clone()]);
        let held = Some(self.config.ingest.backfill_rows_per_second);
        for (lane, part, rows_per_second) in [(Lane::Results, "results", None), (Lane::Backfill, "backfill", held)] {
            let ingesting = Ingesting {
                store: database.store.clone(),
                directory: database.directory.clone(),
                metrics: Arc::clone(&self.metrics),
                config: self.config.ingest.clone(),
                stream: stream_of(lane),
                lane,
                answers: database.answers.clone(),
                hearts: Arc::new(Hearts::of(lane, self.config.ingest.writers, &self.health.loops)),
                rows_per_second,
            };
            let readiness = self.health.readiness.clone();
            self.tasks.spawn(part, ingesting.run(bus.clone(), readiness, part, self.stop.clone()));
        }
        let observer = Observer {
            bus,
            store: database.store.clone(),
            directory: database.directory.clone(),
            metrics: Arc::clone(&self.metrics),
            answers: database.answers.clone(),
            heart: self.health.loops.watch("observer"),
        };
        self.tasks.spawn("observer", observer.run(self.stop.clone()));
        Ok(())
    }

    async fn start_queries(&mut self, database: &Database, view: &LiveView) -> anyhow::Result<()> {
        let answering = Answering {
            store: database.store.clone(),
            directory: database.directory.clone(),
            view: view.clone(),
            metrics: Arc::clone(&self.metrics),
            dark_after_ms: i64::from(self.config.live.dark_after_s) * 1_000,
            turns: handlers::history::Turns::default(),
        };
        let bus = self.join_hub(&self.config.rpc_bus, "core-rpc", "hub (core-rpc)").await?;
        let shown = bus.clone();
        self.show_hub(Connection::Rpc, move || vec![shown.clone()]);
        let (readiness, heart) = (self.health.readiness.clone(), self.health.loops.watch("queries"));
        self.tasks.spawn("queries", answering.run(bus, readiness, heart, self.stop.clone()));
        Ok(())
    }

    /// One INTAKE account after the other; those of the folder are watched.
    async fn start_live(&mut self, reader: LiveReader, said: Said) -> anyhow::Result<()> {
        let mut buses = Vec::new();
        for settings in &self.config.live_buses {
            let bus = self.join_hub(settings, "core-live", "hub (core-live)").await?;
            buses.push(bus.clone());
            let (readiness, heart) = (self.health.readiness.clone(), self.health.loops.watch("live"));
            self.tasks.spawn("live", reader.clone().run(bus, readiness, heart, self.stop.clone()));
        }
        let shards = LiveBuses::default();
        if let Some(folder) = self.config.live_buses_dir.clone() {
            let reached = Reached::default();
            self.health.readiness.require_reached("hub (core-live)", &reached);
            let (readiness, loops, buses) = (self.health.readiness.clone(), self.health.loops.clone(), shards.clone());
            let watching = LiveShards { folder, reader, readiness, loops, reached, buses, said };
            let heart = self.health.loops.watch("live shards");
            self.tasks.spawn("live shards", watching.run(heart, self.stop.clone()));
        }
        self.show_hub(Connection::Live, move || {
            let shards = shards.lock().expect("no holder panics");
            buses.iter().chain(shards.iter()).cloned().collect()
        });
        Ok(())
    }
}
