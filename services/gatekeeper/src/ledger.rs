//! Makes decisions durable before anybody is answered: in their stream, or while that does not take them in the spool,
//! from where they follow.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_bus::payload::{ADMITTED, Decision};
use bulkhead_runtime::{Bus, Chain, Headers, Heart, Repeats, Stop, StoreError};
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
    repeats: Mutex<Repeats>,
}

impl Ledger {
    #[must_use]
    pub fn new(bus: Bus, subject: String, spool: Spool, metrics: Arc<Metrics>) -> Self {
        Self { bus, subject, spool, metrics, failed: Mutex::default(), repeats: Mutex::default() }
    }

    fn is_held_off(&self) -> bool {
        let failed = *self.failed.lock().expect("no holder panics");
        !self.bus.is_connected() || failed.is_some_and(|at| at.elapsed() < HOLD_OFF)
    }

    async fn send(&self, text: String, limit: Duration) -> Result<(), StoreError> {
        self.bus.store(&self.subject, Headers::default(), text.into(), limit).await.map(drop)
    }

    /// Returns when the decision is durable, or left out because many refusals like it are.
    ///
    /// # Errors
    /// When neither stream nor spool has it: then nobody may be let in by it.
    ///
    /// # Panics
    /// Never: a decision serializes.
    pub async fn record(&self, decision: &Decision) -> Result<(), Arc<SpoolError>> {
        let mut decision = decision.clone();
        if decision.outcome != ADMITTED {
            let whose = decision.fingerprint.as_ref().unwrap_or(&decision.connection.host);
            let kind = format!("{} {whose}", decision.outcome);
            let noted = self.repeats.lock().expect("no holder panics").note(&kind, Instant::now());
            let Some(repeats) = noted else {
                add(&self.metrics.decisions_left_out, 1);
                return Ok(());
            };
            decision.repeats = repeats;
        }
        let text = serde_json::to_string(&decision).expect("a decision serializes");
        if !self.is_held_off() {
            match self.send(text.clone(), STREAM_LIMIT).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // Many may have waited for it together.
                    if !self.is_held_off() {
                        warn!(error = %Chain(&error), "decisions go to the spool: their stream does not take them");
                    }
                    *self.failed.lock().expect("no holder panics") = Some(Instant::now());
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
            let passing = async {
                let files = self.spool.close().await?;
                self.pass_on(&files).await
            };
            let passed = heart.while_waiting(passing).await;
            if let Err(error) = passed {
                warn!(error = %Chain(&error), "decisions that wait cannot be read");
            }
        }
    }

    /// Stops where the stream stops taking them. One that is sent twice carries the same id.
    async fn pass_on(&self, files: &[impl AsRef<Path>]) -> Result<(), SpoolError> {
        for path in files.iter().map(AsRef::as_ref) {
            let failed = |source| SpoolError::Write { path: path.display().to_string(), source };
            let bytes = tokio::fs::read(path).await.map_err(failed)?;
            let mut passed = 0;
            for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                let Ok(line) = read_line(line) else {
                    // A crash cut it off before anybody was answered.
                    warn!(file = %path.display(), "a decision in the spool is cut off");
                    continue;
                };
                if let Err(error) = self.send(line, DRAIN_LIMIT).await {
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

/// A line as it was written, whole.
fn read_line(line: &[u8]) -> Result<String, serde_json::Error> {
    let decision: Decision = serde_json::from_slice(line)?;
    serde_json::to_string(&decision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_none_and_a_whole_one_is_as_it_was() {
        let decision = Decision { id: "1".to_owned(), detail: "d\u{fc}".to_owned(), ..Decision::default() };
        let text = serde_json::to_string(&decision).unwrap();
        assert_eq!(read_line(text.as_bytes()).unwrap(), text);
        for end in 0..text.len() {
            assert!(read_line(&text.as_bytes()[..end]).is_err(), "{end}");
        }
    }
}
