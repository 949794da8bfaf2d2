//! Makes decisions durable before anybody is answered: in their stream, or while that does not take them in the spool,
//! from where they follow.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_bus::payload::Decision;
use bulkhead_runtime::{Bus, Chain, Headers, Heart, Stop, StoreError};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::metrics::{Metrics, add};
use crate::spool::{Spool, SpoolError};

/// A stream that is well answers within milliseconds; the connection that asks waits meanwhile.
const STREAM_LIMIT: Duration = Duration::from_millis(150);
/// After the stream did not take one, the next go to the spool at once for so long.
const HOLD_OFF: Duration = Duration::from_secs(1);
const DRAIN_EVERY: Duration = Duration::from_secs(1);
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Where decisions are written down.
pub struct Ledger {
    bus: Bus,
    subject: String,
    spool: Spool,
    metrics: Arc<Metrics>,
    /// When the stream last did not take one.
    failed: Mutex<Option<Instant>>,
}

impl Ledger {
    #[must_use]
    pub fn new(bus: Bus, subject: String, spool: Spool, metrics: Arc<Metrics>) -> Self {
        Self { bus, subject, spool, metrics, failed: Mutex::default() }
    }

    fn is_held_off(&self) -> bool {
        let failed = *self.failed.lock().expect("no holder panics");
        !self.bus.is_connected() || failed.is_some_and(|at| at.elapsed() < HOLD_OFF)
    }

    async fn send(&self, text: String, limit: Duration) -> Result<(), StoreError> {
        self.bus.store(&self.subject, Headers::default(), text.into(), limit).await.map(drop)
    }

    /// Returns when the decision is durable.
    ///
    /// # Errors
    /// When neither stream nor spool has it: then nobody may be let in by it.
    ///
    /// # Panics
    /// Never: a decision serializes.
    pub async fn record(&self, decision: &Decision) -> Result<(), Arc<SpoolError>> {
        let text = serde_json::to_string(decision).expect("a decision serializes");
        if !self.is_held_off() {
            match self.send(text.clone(), STREAM_LIMIT).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    *self.failed.lock().expect("no holder panics") = Some(Instant::now());
                    warn!(error = %Chain(&error), "decisions go to the spool: their stream does not take them");
                }
            }
        }
        self.spool.keep(text).await?;
        add(&self.metrics.decisions_spooled, 1);
        Ok(())
    }

    /// Passes on what waits in the spool, until `stop`.
    ///
    /// # Errors
    /// Never: what does not go now is tried again.
    pub async fn drain(&self, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(DRAIN_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => heart.beat(),
                () = stop.cancelled() => return Ok(()),
            }
            if self.is_held_off() {
                continue;
            }
            let passed = match self.spool.close().await {
                Ok(files) => self.pass_on(&files).await,
                Err(error) => Err(error),
            };
            if let Err(error) = passed {
                warn!(error = %Chain(&error), "decisions that wait cannot be read");
            }
        }
    }

    /// Stops where the stream stops taking them. One that is sent twice carries the same id.
    async fn pass_on(&self, files: &[impl AsRef<Path>]) -> Result<(), SpoolError> {
        for path in files.iter().map(AsRef::as_ref) {
            let failed = |source| SpoolError::Write { path: path.display().to_string(), source };
            let text = tokio::fs::read_to_string(path).await.map_err(failed)?;
            let mut passed = 0;
            for line in text.lines() {
                if serde_json::from_str::<Decision>(line).is_err() {
                    // A crash cut it off before anybody was answered.
                    warn!(file = %path.display(), "a decision in the spool is cut off");
                    continue;
                }
                if let Err(error) = self.send(line.to_owned(), DRAIN_LIMIT).await {
                    info!(error = %Chain(&error), "the stream of decisions does not take those that wait yet");
                    *self.failed.lock().expect("no holder panics") = Some(Instant::now());
                    return Ok(());
                }
                passed += 1;
            }
            tokio::fs::remove_file(path).await.map_err(failed)?;
            info!(passed, "passed on {passed} decisions from the spool");
        }
        Ok(())
    }
}
