//! A planned end: what is assigned is run on until the others of the site have it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead_runtime::{Stop, now_ms};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::info;

use crate::condition::Condition;
use crate::lease::{Lease, Standing};

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Checks that have no end by then stay here: nobody else can run them, or nobody is there to say so.
const UNHEARD: Duration = Duration::from_secs(2);
/// Less than whoever stops a process waits before it kills.
const LIMIT: Duration = Duration::from_secs(8);

/// Hands over.
pub(crate) struct Drain {
    pub(crate) condition: Arc<Condition>,
    pub(crate) standing: Arc<Standing>,
    /// Cancelled when it is to begin; the lease says so to the registry.
    pub(crate) asked: Stop,
}

impl Drain {
    /// After `asked`, until nothing is left to hand over.
    pub(crate) async fn run(self) {
        self.asked.cancelled().await;
        let (lasting, _) = self.left();
        if lasting == 0 || !matches!(self.standing.now(), Lease::Held { .. }) {
            return;
        }
        info!(checks = lasting, "handing over {lasting} checks");
        let began = Instant::now();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let ((lasting, ends_ms), waited) = (self.left(), began.elapsed());
            let is_heard = lasting == 0 || waited > UNHEARD;
            if waited > LIMIT || is_heard && ends_ms < now_ms() {
                if lasting > 0 {
                    info!(checks = lasting, "nobody takes over {lasting} checks");
                }
                return;
            }
        }
    }

    fn left(&self) -> (usize, i64) {
        (self.condition.lasting.load(Ordering::Relaxed), self.condition.ends_ms.load(Ordering::Relaxed))
    }
}
