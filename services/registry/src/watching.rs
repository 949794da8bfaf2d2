//! Watches both buckets, and notices when it hears nothing any more: whoever only waits for entries cannot tell a quiet
//! bucket from a dead watch, so the bucket is asked every second how far it has come.

use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_bus::members::{INFO_BUCKET, LEASE_BUCKET};
use bulkhead_bus::{AccountKey, CoreSubject, RegistryEvent, TenantSubject};
use bulkhead_runtime::{Backoff, Bus, Chain, Heart, Readiness, Stop, Trouble};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::events::EventQueue;
use crate::members::{Event, What};
use crate::trust::Standing;
use crate::view::{Read, View};

const READ_LIMIT: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_secs(1);
const ASK_LIMIT: Duration = Duration::from_secs(2);
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MOST: Duration = Duration::from_secs(1);
/// News of one tenant that come together are told once.
const TELL_EVERY: Duration = Duration::from_millis(25);

/// What watching works with.
pub struct Watching {
    pub bus: Bus,
    pub view: View,
    pub events: EventQueue,
    /// Whose loss is to be written down.
    pub lost: mpsc::Sender<Event>,
}

impl Watching {
    /// Watches until `stop`.
    ///
    /// # Errors
    /// Never: it is watched anew when watching ends.
    pub async fn run(self, readiness: Readiness, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(AGAIN_FIRST, AGAIN_MOST);
        let mut trouble = Trouble::new("watch the leases".to_owned());
        loop {
            let watched = heart.while_waiting(self.watch(&readiness, &mut trouble, &mut backoff));
            tokio::select! {
                ended = watched => {
                    self.view.note_loss();
                    if let Err(error) = ended {
                        trouble.begin(Chain(error.as_ref()).to_string());
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
            tokio::select! {
                () = backoff.pause() => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Ends when everything is to be read anew. After a lost connection a bucket may be another one, which the library's
    /// watch does not see.
    async fn watch(&self, readiness: &Readiness, trouble: &mut Trouble, backoff: &mut Backoff) -> anyhow::Result<()> {
        let mut losses = self.bus.losses();
        losses.mark_unchanged();
        let asked = Instant::now();
        let revision = self.bus.bucket_revision(LEASE_BUCKET).await?;
        let (infos, mut info_watch) = self.bus.watch_bucket(INFO_BUCKET, READ_LIMIT).await?;
        let (leases, mut lease_watch) = self.bus.watch_bucket(LEASE_BUCKET, READ_LIMIT).await?;
        let events = self.view.take_read(Read { asked, revision, leases, infos });
        self.pass_on(events);
        readiness.mark("leases");
        trouble.end();
        backoff.reset();
        let asking = self.ask();
        let mut asking = std::pin::pin!(asking);
        loop {
            let events = tokio::select! {
                entry = lease_watch.next() => self.view.take(LEASE_BUCKET, &entry?.context("it ended")?),
                entry = info_watch.next() => self.view.take(INFO_BUCKET, &entry?.context("it ended")?),
                Ok(()) = losses.changed() => anyhow::bail!("the connection was lost"),
                ended = &mut asking => return ended,
            };
            self.pass_on(events);
        }
    }

    /// Asks how far the bucket has come, until nothing of it has been heard for too long.
    async fn ask(&self) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let asked = Instant::now();
            // What is not answered now is asked again; how long that goes on is what standing tells.
            if let Ok(Ok(revision)) = tokio::time::timeout(ASK_LIMIT, self.bus.bucket_revision(LEASE_BUCKET)).await {
                anyhow::ensure!(self.view.note_asked(asked, revision), "another bucket has taken its place");
            }
            if let Standing::Blind(because) = self.view.look_again() {
                anyhow::bail!("{because}");
            }
        }
    }

    fn pass_on(&self, events: Vec<Event>) {
        for event in events {
            if event.what == What::Lost {
                // A loss that is not written down is told by whoever sees the server's word meanwhile.
                let _ = self.lost.try_send(event.clone());
            }
            self.events.put(event);
        }
    }
}

/// Tells services of whose members there is news, until `stop`.
///
/// # Errors
/// Never: what cannot be told now is told again.
pub async fn tell(
    bus: Bus,
    view: View,
    told: bulkhead_runtime::Counter,
    heart: Heart,
    stop: Stop,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = Trouble::new("tell of changed members".to_owned());
    loop {
        tokio::select! {
            _ = ticks.tick() => heart.beat(),
            () = stop.cancelled() => return Ok(()),
        }
        if !bus.is_connected() {
            continue;
        }
        for account in view.take_news() {
            let subject = changed_subject(&account);
            match bus.publish(&subject, Bytes::new()).await {
                Ok(()) => {
                    told.inc();
                    trouble.end();
                }
                Err(error) => {
                    if trouble.begin(Chain(&error).to_string()) {
                        warn!("news of members wait");
                    }
                    view.give_back([account]);
                }
            }
        }
    }
}

fn changed_subject(account: &AccountKey) -> String {
    let subject = TenantSubject::Event { event: RegistryEvent::Changed };
    CoreSubject { account: account.clone(), subject }.to_string()
}
