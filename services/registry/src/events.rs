//! What became of members, on its way into the database. Nobody waits for that: what the queue has no room for is counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::AccountKey;
use bulkhead_directory::{Answers, Directory};
use bulkhead_runtime::{Backoff, Chain, Heart, Stop};
use bulkhead_store::{READ_LIMIT, Store, StoreError, within};
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::members::Event;
use crate::metrics::Metrics;
use crate::store::write_events;

const TOGETHER_MOST: usize = 500;

/// Takes events in, and never waits.
#[derive(Clone)]
pub struct EventQueue {
    sender: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
}

/// Writes them.
pub struct EventWriter {
    pub store: Store,
    pub directory: Directory,
    pub answers: Answers,
    pub metrics: Arc<Metrics>,
    pub receiver: mpsc::Receiver<Event>,
}

impl EventQueue {
    /// With room for so many.
    #[must_use]
    pub fn new(most: usize, metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(most);
        (Self { sender, metrics }, receiver)
    }

    pub fn put(&self, event: Event) {
        if self.sender.try_send(event).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

impl EventWriter {
    /// Writes until `stop`.
    ///
    /// # Errors
    /// Never: while the database is away they wait.
    pub async fn run(mut self, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut events = Vec::new();
        loop {
            tokio::select! {
                count = heart.while_waiting(self.receiver.recv_many(&mut events, TOGETHER_MOST)) => {
                    if count == 0 {
                        return Ok(());
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
            let mut by_account: HashMap<AccountKey, Vec<Event>> = HashMap::new();
            for event in events.drain(..) {
                by_account.entry(event.key.account.clone()).or_default().push(event);
            }
            for (account, events) in by_account {
                self.write(&account, &events, &heart, &stop).await;
            }
        }
    }

    async fn write(&self, account: &AccountKey, events: &[Event], heart: &Heart, stop: &Stop) {
        let mut pace = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        while !stop.is_cancelled() {
            heart.beat();
            let snapshot = self.directory.snapshot();
            let count = u64::try_from(events.len()).unwrap_or(u64::MAX);
            // Nothing is written for a tenant that is gone.
            let Some(tenant) = snapshot.open_tenant(account) else {
                self.metrics.events_dropped.inc_by(count);
                return;
            };
            let written = within("write events of members", READ_LIMIT, async {
                let mut tx = self.store.begin_writing(tenant).await?;
                let written = write_events(&mut tx, tenant, events).await?;
                tx.commit().await?;
                Ok(written)
            });
            let written = heart.while_waiting(written).await;
            self.answers.note(&written);
            match written {
                Ok(written) => {
                    self.metrics.events_written.inc_by(written);
                    return;
                }
                // It began to leave a moment ago.
                Err(StoreError::TenantClosed { .. }) => {
                    self.metrics.events_dropped.inc_by(count);
                    return;
                }
                Err(failure) if failure.is_transient() => {
                    warn!(error = %Chain(&failure), "events of members wait: the database is away");
                }
                Err(failure) => {
                    error!(tenant = %tenant.slug, error = %Chain(&failure), "events of members are not written");
                    self.metrics.events_dropped.inc_by(count);
                    return;
                }
            }
            tokio::select! {
                () = pace.pause() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}
