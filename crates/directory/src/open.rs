//! Waits for the database for a limited time; what waiting cannot cure fails at once.

use std::path::Path;

use anyhow::Context;
use bulkhead_runtime::{Chain, Stop, keep_trying};
use bulkhead_store::{Connections, Service, Store, StoreError, read_database_url};

/// Where a service finds the database, and how many connections it may have.
#[derive(Debug, Clone, Copy)]
pub struct DatabaseSettings<'a> {
    pub service: Service,
    pub url_file: &'a Path,
    /// Of PostgreSQL itself, where a pooler stands before it.
    pub direct_url_file: Option<&'a Path>,
    pub connections: Connections,
}

/// A line for each file that holds no address of a database.
#[must_use]
pub fn address_problems(url_file: &Path, direct_url_file: Option<&Path>) -> Vec<String> {
    let files = [("database_url_file", Some(url_file)), ("database_direct_url_file", direct_url_file)];
    let wrong = files.into_iter().filter_map(|(name, file)| Some((name, read_database_url(file?).err()?)));
    wrong.map(|(name, error)| format!("  {name}: {}", Chain(&error))).collect()
}

/// # Errors
/// When an address is none, the database refuses for good, or is not there in time.
pub async fn open_store(settings: DatabaseSettings<'_>, stop: &Stop) -> anyhow::Result<Store> {
    let url = read_database_url(settings.url_file).context("read database address")?;
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
    let direct_url = settings.direct_url_file.map(read_database_url).transpose();
    let direct_url = direct_url.context("read database address without a pooler")?;
    let (service, connections) = (settings.service, settings.connections);
    let open = async || match &direct_url {
        None => Store::connect(&url, service, connections).await,
        Some(direct_url) => Store::connect_pooled(&url, direct_url, service, connections).await,
    };
    keep_trying("open the database", stop, is_final, open).await
}
