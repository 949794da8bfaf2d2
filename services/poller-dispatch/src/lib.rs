//! Poller-dispatch: keeps tenants' checks, shares them out over pollers, and has them run on demand. It measures nothing and
//! stores no results.
//!
//! Reading order: settings, who runs what, what changes when, what people may change, who is there, who plans, whose turn it is,
//! SQL, what is heard, the handlers of each subject.

pub mod change;
pub mod config;
pub mod follow;
pub mod handlers;
pub mod leader;
pub mod members;
pub mod metrics;
pub mod plan;
pub mod planning;
pub mod queue;
pub mod replays;
pub mod store;
pub mod turn;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::TenantId;
use bulkhead_directory::{Answers, DatabaseSettings, Directory, open_store, show_connections};
use bulkhead_runtime::{
    Bus, BusSettings, Health, Loops, Readiness, Stop, Supervisor, reach_hub, run_service, show_hub,
};
use bulkhead_store::{Connections, Service, Store};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use crate::config::Config;
use crate::follow::{Following, follow_registry};
use crate::handlers::Desk;
use crate::leader::{Election, Leading};
use crate::members::Holds;
use crate::metrics::{HubConnection, Metrics};
use crate::planning::{Planner, Turns};
use crate::replays::Replays;

/// Tenants whose runs changed that a waiter may be behind; then it looks whether one is its own.
const RUNS_HEARD: usize = 1_024;

/// Runs poller-dispatch until `stop` or a signal.
///
/// # Errors
/// When it cannot start, or a task fails.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let readiness = Readiness::new(&["database", "requests"]);
    let (metrics, loops) = (Arc::new(Metrics::default()), Loops::default());
    let health = Health { readiness, loops, page: metrics.page.clone() };
    let (listen, shown, stopped) = (config.health_listen, health.clone(), stop.clone());
    let start = async move {
        let tasks = Supervisor::new(stop.clone());
        Starting { config: &config, health, metrics, stop: &stop, tasks }.start().await
    };
    run_service("poller-dispatch", listen, shown, stopped, start).await
}

/// What the parts are started with.
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
        let push = self.join_hub(&self.config.push_bus, "dispatch-push", HubConnection::DispatchPush).await?;
        let rpc = self.join_hub(&self.config.rpc_bus, "dispatch-rpc", HubConnection::DispatchRpc).await?;
        let (turns, runs) = (Turns::default(), broadcast::Sender::<TenantId>::new(RUNS_HEARD));
        self.start_following(&database, &push, &turns, &runs);
        self.start_planning(&database, &push, turns);
        let desk = Desk {
            store: database.store,
            directory: database.directory,
            answers: database.answers,
            push,
            metrics: Arc::clone(&self.metrics),
            replays: Arc::new(Replays::default()),
            runs,
        };
        let (readiness, heart) = (self.health.readiness.clone(), self.health.loops.watch("requests"));
        self.tasks.spawn("requests", desk.serve(rpc, readiness, heart, self.stop.clone()));
        Ok(self.tasks)
    }

    /// A connection to the hub that the service is not ready without.
    async fn join_hub(
        &self,
        settings: &BusSettings,
        name: &'static str,
        connection: HubConnection,
    ) -> anyhow::Result<Bus> {
        let bus = reach_hub(settings, name, self.stop).await?;
        let need = match connection {
            HubConnection::DispatchRpc => "hub (dispatch-rpc)",
            HubConnection::DispatchPush => "hub (dispatch-push)",
        };
        self.health.readiness.require_connection(need, &bus);
        let shown = bus.clone();
        let gauge = self.metrics.hub_connections.of(connection).clone();
        show_hub(&self.metrics.page, gauge, move || vec![shown.clone()]);
        Ok(bus)
    }

    async fn open_database(&mut self) -> anyhow::Result<Database> {
        let limits = &self.config.database;
        let database = DatabaseSettings {
            service: Service::Dispatch,
            url_file: &self.config.database_url_file,
            direct_url_file: self.config.database_direct_url_file.as_deref(),
            connections: Connections { shared: limits.connections, own_schemas: limits.schema_connections },
        };
        let store = open_store(database, self.stop).await?;
        show_connections(&self.metrics.page, self.metrics.database_connections.clone(), store.clone());
        let answers = self.metrics.answers();
        let directory = Directory::load(store.clone(), answers.clone()).await.context("read tenants")?;
        self.health.readiness.mark("database");
        self.health.readiness.require_reached("database", &answers.reached);
        let refresh = Duration::from_secs(self.config.tenants.refresh_s);
        let heart = self.health.loops.watch("tenants");
        let seen = self.metrics.tenants_seen_timestamp_seconds.clone();
        self.tasks.spawn("tenants", directory.clone().keep_fresh(refresh, seen, heart, self.stop.clone()));
        Ok(Database { store, directory, answers })
    }

    fn start_following(&mut self, database: &Database, push: &Bus, turns: &Turns, runs: &broadcast::Sender<TenantId>) {
        let following = Following {
            store: database.store.clone(),
            directory: database.directory.clone(),
            turns: turns.clone(),
            runs: runs.clone(),
        };
        let loops = &self.health.loops;
        self.tasks.spawn("changes", following.run(loops.watch("changes"), self.stop.clone()));
        let (directory, turns, heart) = (database.directory.clone(), turns.clone(), loops.watch("members"));
        self.tasks.spawn("members", follow_registry(push.clone(), directory, turns, heart, self.stop.clone()));
    }

    fn start_planning(&mut self, database: &Database, push: &Bus, turns: Turns) {
        let (leading, follow): (watch::Sender<Option<i64>>, Leading) = watch::channel(None);
        let holder: Arc<str> = Uuid::new_v4().to_string().into();
        let election = Election {
            store: database.store.clone(),
            answers: database.answers.clone(),
            metrics: Arc::clone(&self.metrics),
            holder: Arc::clone(&holder),
            leading,
            heart: self.health.loops.watch("election"),
        };
        self.tasks.spawn("election", election.run(self.stop.clone()));
        let planner = Planner {
            store: database.store.clone(),
            directory: database.directory.clone(),
            answers: database.answers.clone(),
            push: push.clone(),
            metrics: Arc::clone(&self.metrics),
            holds: Holds::new(self.config.planning.hold()),
            leading: follow,
            holder,
            turns,
        };
        for _ in 0..self.config.planning.workers {
            let heart = self.health.loops.watch("planning");
            self.tasks.spawn("planning", planner.clone().work(heart, self.stop.clone()));
        }
        let (every, heart) = (self.config.planning.every(), self.health.loops.watch("pace"));
        self.tasks.spawn("pace", planner.pace(every, heart, self.stop.clone()));
    }
}
