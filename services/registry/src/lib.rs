//! The registry: leases, states and capabilities of pollers and leaf links, for each tenant. It stores no results and assigns
//! nothing. Any number of replicas answer; what is true is in two buckets that only they write.
//!
//! Reading order: settings, what is kept of a member, who gets a lease, what is seen of everybody and whether that may be
//! believed, who is picked, writing, watching, history, SQL, the handlers of each subject.

pub mod config;
pub mod document;
pub mod events;
pub mod handlers;
pub mod keep;
pub mod lease;
pub mod members;
pub mod metrics;
pub mod pick;
pub mod store;
pub mod trust;
pub mod view;
pub mod watching;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bulkhead_directory::{Answers, DatabaseSettings, Directory, open_store, show_connections};
use bulkhead_runtime::{
    Bus, BusSettings, Health, Loops, Readiness, Stop, Supervisor, reach_hub, run_service, show_hub,
};
use bulkhead_store::{Connections, Service, Store};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::events::{EventQueue, EventWriter};
use crate::handlers::{Answering, Waits};
use crate::keep::Keeper;
use crate::metrics::{Connection, Metrics};
use crate::view::View;
use crate::watching::{Watching, tell};

/// Losses that wait to be written down.
const LOSSES_MOST: usize = 10_000;

/// Runs the registry until `stop` or a signal.
///
/// # Errors
/// When it cannot start, or a task fails.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let readiness = Readiness::new(&["database", "leases", "requests"]);
    let (metrics, loops) = (Arc::new(Metrics::default()), Loops::default());
    let health = Health { readiness, loops, page: metrics.page.clone() };
    let (listen, shown, stopped) = (config.health_listen, health.clone(), stop.clone());
    let start = async move {
        let tasks = Supervisor::new(stop.clone());
        Starting { config: &config, health, metrics, stop: &stop, tasks }.start().await
    };
    run_service("registry", listen, shown, stopped, start).await
}

/// What the parts of the registry are started with.
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
        let keep = self.join_hub(&self.config.keep_bus, "registry-keep", Connection::Keep).await?;
        let view = View::new(Arc::clone(&self.metrics));
        self.metrics.show_members(view.clone());
        let keeper = Keeper { bus: keep.clone(), view: view.clone(), metrics: Arc::clone(&self.metrics) };
        self.start_watching(&database, keep, &keeper);
        let rpc = self.join_hub(&self.config.rpc_bus, "registry-rpc", Connection::Rpc).await?;
        let answers = self.config.answers;
        let waiting = self.metrics.questions_waiting.clone();
        let answering = Answering {
            store: database.store,
            directory: database.directory,
            view,
            keeper,
            metrics: Arc::clone(&self.metrics),
            config: answers,
            waits: Waits::new(waiting, answers.waiting_most, answers.waiting_of_tenant_most),
        };
        let (readiness, heart) = (self.health.readiness.clone(), self.health.loops.watch("requests"));
        self.tasks.spawn("requests", answering.run(rpc, readiness, heart, self.stop.clone()));
        Ok(self.tasks)
    }

    /// A connection to the hub that the registry is not ready without.
    async fn join_hub(&self, settings: &BusSettings, name: &'static str, what: Connection) -> anyhow::Result<Bus> {
        let bus = reach_hub(settings, name, self.stop).await?;
        let need = match what {
            Connection::Rpc => "hub (registry-rpc)",
            Connection::Keep => "hub (registry-keep)",
        };
        self.health.readiness.require_connection(need, &bus);
        let shown = bus.clone();
        show_hub(&self.metrics.page, self.metrics.hub_connections.of(what).clone(), move || vec![shown.clone()]);
        Ok(bus)
    }

    /// Leases go on while the database is away: the registry is ready without it once it has read who is who.
    async fn open_database(&mut self) -> anyhow::Result<Database> {
        let wanted = self.config.database;
        let settings = DatabaseSettings {
            service: Service::Registry,
            url_file: &self.config.database_url_file,
            direct_url_file: self.config.database_direct_url_file.as_deref(),
            connections: Connections { shared: wanted.connections, own_schemas: wanted.schema_connections },
        };
        let store = open_store(settings, self.stop).await?;
        show_connections(&self.metrics.page, self.metrics.database_connections.clone(), store.clone());
        let answers = self.metrics.answers();
        let directory = Directory::load(store.clone(), answers.clone()).await.context("read tenants")?;
        self.health.readiness.mark("database");
        let (refresh, heart) = (Duration::from_secs(wanted.refresh_s), self.health.loops.watch("tenants"));
        let seen = self.metrics.tenants_seen_timestamp_seconds.clone();
        self.tasks.spawn("tenants", directory.clone().keep_fresh(refresh, seen, heart, self.stop.clone()));
        Ok(Database { store, directory, answers })
    }

    fn start_watching(&mut self, database: &Database, keep: Bus, keeper: &Keeper) {
        let (loops, metrics, stop) = (&self.health.loops, &self.metrics, self.stop);
        let (events, receiver) = EventQueue::new(self.config.database.events_waiting_most, Arc::clone(metrics));
        let writer = EventWriter {
            store: database.store.clone(),
            directory: database.directory.clone(),
            answers: database.answers.clone(),
            metrics: Arc::clone(metrics),
            receiver,
        };
        self.tasks.spawn("events", writer.run(loops.watch("events"), stop.clone()));
        let (lost, losses) = mpsc::channel(LOSSES_MOST);
        self.tasks.spawn("losses", keeper.clone().note_losses(losses, loops.watch("losses"), stop.clone()));
        let told = metrics.changes_told.clone();
        let view = keeper.view.clone();
        self.tasks.spawn("news", tell(keep.clone(), view.clone(), told, loops.watch("news"), stop.clone()));
        let watching = Watching { bus: keep, view, events, lost };
        let readiness = self.health.readiness.clone();
        self.tasks.spawn("leases", watching.run(readiness, loops.watch("leases"), stop.clone()));
    }
}
