//! What is heard: the database says whose checks, pollers or runs changed, and the registry whose members.

use bulkhead_bus::{Account, CoreSubject, Role, TenantId, role_permissions};
use bulkhead_directory::Directory;
use bulkhead_runtime::{Backoff, Bus, Chain, Heart, Stop};
use bulkhead_store::{Change, READ_LIMIT, Store, StoreError, within};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::broadcast;
use tracing::warn;

use anyhow::Context;

use crate::planning::Turns;

const LISTEN_AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Hands on what the database says.
pub struct Following {
    pub store: Store,
    pub directory: Directory,
    pub turns: Turns,
    pub runs: broadcast::Sender<TenantId>,
}

impl Following {
    /// Until `stop`. What was not heard while the connection was lost is planned again after it.
    ///
    /// # Errors
    /// Never.
    pub async fn run(self, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut pace = Backoff::new(LISTEN_AGAIN.0, LISTEN_AGAIN.1);
        let mut is_deaf = false;
        loop {
            let following = async {
                let changes = within("listen for changes", READ_LIMIT, self.store.listen()).await?;
                pace.reset();
                is_deaf = false;
                self.all();
                self.follow(changes).await
            };
            let ended: Result<Infallible, StoreError> = tokio::select! {
                ended = heart.while_waiting(following) => ended,
                () = stop.cancelled() => return Ok(()),
            };
            let Err(error) = ended;
            if !is_deaf {
                warn!(error = %Chain(&error), "changes of checks are not heard");
            }
            is_deaf = true;
            tokio::select! {
                () = pace.pause() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    fn all(&self) {
        self.directory.snapshot().tenants().for_each(|(_, tenant)| self.turns.add(tenant.id));
    }

    async fn follow(&self, mut changes: bulkhead_store::Changes) -> Result<Infallible, StoreError> {
        loop {
            for change in changes.next().await? {
                match change {
                    Change::Checks(tenant) | Change::Pollers(tenant) => self.turns.add(tenant),
                    // Nobody may be waiting for one.
                    Change::Runs(tenant) => drop(self.runs.send(tenant)),
                    Change::Account(account) => {
                        // The directory may hear of it only after this.
                        if let Err(error) = self.directory.look_for(std::iter::once(&account)).await {
                            warn!(error = %Chain(&error), "an account is not looked for");
                        }
                        if let Some(Account::Tenant(tenant)) = self.directory.snapshot().account(&account) {
                            self.turns.add(tenant.id);
                        }
                    }
                }
            }
        }
    }
}

/// Hears whose members changed until `stop`.
///
/// # Errors
/// When the subscription cannot be made at the start.
pub async fn follow_registry(
    bus: Bus,
    directory: Directory,
    turns: Turns,
    heart: Heart,
    stop: Stop,
) -> anyhow::Result<()> {
    let patterns = role_permissions(Role::DispatchPush).subscribe;
    let pattern = patterns.iter().find(|one| one.starts_with("t.")).context("the subject table has an event")?;
    let mut events = bus.listen(pattern).await.context("listen for changes of members")?;
    loop {
        let event = tokio::select! {
            event = heart.while_waiting(events.next()) => event,
            () = stop.cancelled() => return Ok(()),
        };
        let Ok(account) = CoreSubject::account_of(&event.subject) else { continue };
        if let Some(tenant) = directory.snapshot().open_tenant(&account) {
            turns.add(tenant.id);
        }
    }
}
