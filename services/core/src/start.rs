//! Waits for what core needs, the hub and the database, for a limited time; what waiting cannot cure fails at once.

use std::error::Error;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_runtime::{Backoff, Bus, BusSettings, Chain, ConnectError, Stop};
use bulkhead_store::{Connections, Store, StoreError, read_database_url};
use tracing::info;

use crate::config::Config;

/// Our name in the database's list of connections.
const SERVICE: &str = "bulkhead-core";
/// How long a start waits for the hub and the database before it fails and is started again.
const START_LIMIT: Duration = Duration::from_secs(60);

async fn keep_trying<T, E, F>(
    what: &'static str,
    stop: &Stop,
    is_final: fn(&E) -> bool,
    attempt: impl Fn() -> F,
) -> anyhow::Result<T>
where
    E: Error + Send + Sync + 'static,
    F: Future<Output = Result<T, E>>,
{
    let end = Instant::now() + START_LIMIT;
    let mut pace = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut last = String::new();
    loop {
        let tried = tokio::select! {
            tried = attempt() => tried,
            () = stop.cancelled() => anyhow::bail!("{what}: stopped before it was there"),
        };
        let error = match tried {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if is_final(&error) || Instant::now() >= end {
            return Err(error).context(what);
        }
        let cause = Chain(&error).to_string();
        if cause != last {
            info!(cause, "waiting: {what}");
            last = cause;
        }
        tokio::select! {
            () = pace.pause() => {}
            () = stop.cancelled() => {}
        }
    }
}

pub(crate) async fn connect(settings: &BusSettings, name: &'static str, stop: &Stop) -> anyhow::Result<Bus> {
    let is_final = |error: &ConnectError| match error {
        ConnectError::Address(_) | ConnectError::NoAddress | ConnectError::Tls(_) | ConnectError::Credentials(_) => {
            true
        }
        ConnectError::Connect { .. } => false,
    };
    keep_trying("connect to the hub", stop, is_final, || Bus::connect(settings, name)).await.context(name)
}

pub(crate) async fn open_store(config: &Config, stop: &Stop) -> anyhow::Result<Store> {
    let url = read_database_url(&config.database_url_file).context("read database address")?;
    let is_final = |error: &StoreError| match error {
        StoreError::Privileged { .. }
        | StoreError::Pooled
        | StoreError::Setting { .. }
        | StoreError::Row { .. }
        | StoreError::TooNew { .. }
        | StoreError::TenantClosed { .. } => true,
        // Migrations may be running at this moment.
        StoreError::Sql { .. }
        | StoreError::TimedOut { .. }
        | StoreError::NotMigrated(_)
        | StoreError::NotApart(_)
        | StoreError::Moved { .. }
        | StoreError::OutdatedTenant { .. }
        | StoreError::Outdated { .. } => false,
    };
    let connections = Connections { shared: config.ingest.connections, own_schemas: config.ingest.schema_connections };
    let direct_url = config.database_direct_url_file.as_deref().map(read_database_url).transpose();
    let direct_url = direct_url.context("read database address without a pooler")?;
    let open = async || match &direct_url {
        None => Store::connect(&url, SERVICE, connections).await,
        Some(direct_url) => Store::connect_pooled(&url, direct_url, SERVICE, connections).await,
    };
    keep_trying("open the database", stop, is_final, open).await
}
