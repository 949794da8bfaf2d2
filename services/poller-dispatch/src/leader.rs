//! Who plans: one of the replicas, for as long as it says so again. It refuses to go on when the database does not confirm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_directory::Answers;
use bulkhead_runtime::{Chain, Heart, Stop};
use bulkhead_store::{Store, StoreError};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::store::{claim_leadership, give_up_leadership};

/// So often a leader says that it goes on.
const RENEW_EVERY: Duration = Duration::from_millis(1_500);
/// So often others look whether there is one.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const CLAIM_LIMIT: Duration = Duration::from_secs(2);
/// Less than what the database gives a leader, so that two never believe that they are.
const BELIEVED: Duration = Duration::from_millis(4_500);

/// The epoch under which this replica plans; `None` while another does.
pub type Leading = watch::Receiver<Option<i64>>;

/// Takes part in the election of the one who plans.
pub struct Election {
    pub store: Store,
    pub answers: Answers,
    pub metrics: Arc<Metrics>,
    /// Of this start of this process.
    pub holder: Arc<str>,
    pub leading: watch::Sender<Option<i64>>,
    pub heart: Heart,
}

impl Election {
    async fn claim(&self) -> Result<Option<i64>, StoreError> {
        let limit = StoreError::TimedOut { action: "claim leadership", limit: CLAIM_LIMIT };
        let claimed = timeout(CLAIM_LIMIT, claim_leadership(&self.store, &self.holder)).await.unwrap_or(Err(limit));
        self.answers.note(&claimed);
        claimed
    }

    /// Until `stop`; then another may plan at once.
    ///
    /// # Errors
    /// Never: a database that is away leaves nobody planning.
    pub async fn run(self, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut confirmed: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = self.heart.while_waiting(ticks.tick()) => {}
                () = stop.cancelled() => break,
            }
            let is_due = confirmed.is_none_or(|at| at.elapsed() >= RENEW_EVERY);
            if !is_due {
                continue;
            }
            let asked = Instant::now();
            match self.claim().await {
                Ok(Some(epoch)) => {
                    confirmed = Some(asked);
                    self.set(Some(epoch));
                }
                Ok(None) => {
                    confirmed = None;
                    self.set(None);
                }
                Err(error) => {
                    if confirmed.is_some_and(|at| at.elapsed() >= BELIEVED) {
                        warn!(error = %Chain(&error), "this replica plans no more: the database does not confirm it");
                        confirmed = None;
                        self.set(None);
                    }
                }
            }
        }
        self.set(None);
        if let Ok(Err(error)) = timeout(CLAIM_LIMIT, give_up_leadership(&self.store, &self.holder)).await {
            info!(error = %Chain(&error), "leadership not given up, it ends within seconds");
        }
        Ok(())
    }

    fn set(&self, epoch: Option<i64>) {
        self.leading.send_if_modified(|now| {
            let is_news = *now != epoch;
            if is_news {
                self.metrics.is_leader.set(i64::from(epoch.is_some()));
                self.metrics.elections.inc_by(u64::from(epoch.is_some()));
                match epoch {
                    Some(epoch) => info!(epoch, "this replica plans, under epoch {epoch}"),
                    None => info!("this replica does not plan any more"),
                }
            }
            *now = epoch;
            is_news
        });
    }
}
