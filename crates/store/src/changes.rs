//! Word of what changed in the rows that services go by, as the database sends it. It says whose rows changed and nothing
//! of what is in them: whoever listens reads them again, under its own rights.

use std::time::Duration;

use bulkhead_bus::{AccountKey, TenantId};
use sqlx::postgres::{PgListener, PgNotification, PgPoolOptions};
use tokio::time::timeout;
use uuid::Uuid;

use crate::pooler::check_own;
use crate::service::Service;
use crate::store::{Store, StoreError, failed};

const ACCOUNTS: &str = "bulkhead_account";
const POLLERS: &str = "bulkhead_pollers";
const CHECKS: &str = "bulkhead_checks";
const RUNS: &str = "bulkhead_runs";
/// How long the database may be silent before it is asked whether it is still there.
const PROVE_EVERY: Duration = Duration::from_millis(300);
const PROVE_LIMIT: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Changes that come together are read together.
const TOGETHER: Duration = Duration::from_millis(10);
const TOGETHER_MAX: usize = 1_000;

/// Whose rows changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A tenant, or an account of the platform.
    Account(AccountKey),
    /// The pollers of a tenant.
    Pollers(TenantId),
    /// The checks of a tenant, or its secrets.
    Checks(TenantId),
    /// Runs on demand of a tenant: asked for, or ended.
    Runs(TenantId),
}

/// A connection that listens. Once it fails it is of no use any more, and what happened meanwhile must be read.
#[derive(Debug)]
pub struct Changes {
    listener: PgListener,
}

impl Store {
    /// From here on every change is heard; what was before has to be read after this.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn listen(&self) -> Result<Changes, StoreError> {
        let listening = failed("listen for changes");
        // A connection of its own: it is never given back, and the pool is for asking.
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT_LIMIT).max_lifetime(None);
        let pool = pool.connect_lazy_with(self.own_options());
        let mut listener = PgListener::connect_with(&pool).await.map_err(&listening)?;
        // A connection that came back by itself would hide that something may have been missed.
        listener.eager_reconnect(false);
        check_own(&mut listener).await?;
        // Nobody else does anything about the others.
        let channels = match self.service() {
            Service::Core | Service::Registry => vec![ACCOUNTS, POLLERS],
            Service::Dispatch => vec![ACCOUNTS, POLLERS, CHECKS, RUNS],
        };
        listener.listen_all(channels).await.map_err(&listening)?;
        Ok(Changes { listener })
    }
}

impl Changes {
    /// The next changes, those together that come together; none when the database had nothing to say for a moment and
    /// has just proved that it is there.
    ///
    /// # Errors
    /// When the connection is lost: then changes may have been missed.
    pub async fn next(&mut self) -> Result<Vec<Change>, StoreError> {
        let Ok(heard) = timeout(PROVE_EVERY, self.hear()).await else {
            self.prove().await?;
            let came = std::iter::from_fn(|| self.listener.next_buffered());
            return Ok(came.filter_map(|heard| change_of(&heard)).collect());
        };
        let mut changes: Vec<Change> = change_of(&heard?).into_iter().collect();
        while changes.len() < TOGETHER_MAX
            && let Ok(more) = timeout(TOGETHER, self.hear()).await
        {
            let more = change_of(&more?);
            changes.extend(more.filter(|change| !changes.contains(change)));
        }
        Ok(changes)
    }

    async fn hear(&mut self) -> Result<PgNotification, StoreError> {
        let heard = self.listener.try_recv().await.map_err(failed("listen for changes"))?;
        heard.ok_or_else(|| failed("listen for changes")(sqlx::Error::WorkerCrashed))
    }

    /// A network that swallows everything says nothing either.
    async fn prove(&mut self) -> Result<(), StoreError> {
        let action = "ask the connection that listens";
        let asked = timeout(PROVE_LIMIT, sqlx::query("select 1").execute(&mut self.listener)).await;
        let answered = asked.map_err(|_| StoreError::TimedOut { action, limit: PROVE_LIMIT })?;
        answered.map(|_| ()).map_err(failed(action))
    }
}

/// Anybody who may connect may send; what is not ours is nobody's.
fn change_of(heard: &PgNotification) -> Option<Change> {
    match heard.channel() {
        ACCOUNTS => heard.payload().parse().ok().map(Change::Account),
        POLLERS => tenant_of(heard).map(Change::Pollers),
        CHECKS => tenant_of(heard).map(Change::Checks),
        RUNS => tenant_of(heard).map(Change::Runs),
        _ => None,
    }
}

fn tenant_of(heard: &PgNotification) -> Option<TenantId> {
    heard.payload().parse::<Uuid>().ok().map(TenantId::new)
}
