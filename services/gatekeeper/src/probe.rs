//! Ends the process when it hangs: a replica that takes questions and does not answer them is worse than none, because
//! servers go on asking it.
//!
//! The pulse is a message of its own, there and back through the server: however late it comes back, what hangs sends none.
//! In a storm of connections a server takes seconds for it, and ending the replicas then would keep everybody out. Whoever
//! watches it is a thread, which goes on when the runtime does not. A server that says nothing at all is not our hang: nobody would be asked through it either,
//! and ending all replicas at it would only make its return later.

use std::process::abort;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_bus::gate::probe_subject;
use bulkhead_bus::question::ServerQuestion;
use bulkhead_runtime::{Bus, Chain, Stop};
use tokio::time::MissedTickBehavior;
use tracing::{error, warn};

const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// Longer than a hub that is busy for a moment, and shorter than a server takes to give up a client that is silent.
const HUNG_AFTER: Duration = Duration::from_secs(8);

/// When the last probe came back.
#[derive(Debug)]
struct Pulse {
    began: Instant,
    last_ms: AtomicU64,
}

impl Pulse {
    fn beat(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}

/// Probes until `stop`.
///
/// # Errors
/// When the connection cannot be listened on.
pub async fn keep_pulse(bus: Bus, system: Bus, gatekeeper: &str, stop: Stop) -> anyhow::Result<()> {
    let subject = probe_subject(gatekeeper);
    let mut heard = bus.listen(&subject).await.context("listen for own probes")?;
    let pulse = Arc::new(Pulse { began: Instant::now(), last_ms: AtomicU64::new(0) });
    watch(Arc::downgrade(&pulse))?;
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        // Without a connection no server asks us anything.
        if !bus.is_connected() {
            pulse.beat();
            continue;
        }
        // Those that came late do not stand for those to come.
        while tokio::time::timeout(Duration::ZERO, heard.next()).await.is_ok() {
            pulse.beat();
        }
        if let Err(error) = bus.publish(&subject, "".into()).await {
            warn!(error = %Chain(&error), "probe not sent");
            continue;
        }
        if tokio::time::timeout(PROBE_LIMIT, heard.next()).await.is_ok() || !is_there(&system).await {
            pulse.beat();
        }
    }
}

/// Whether the server answers anything.
async fn is_there(system: &Bus) -> bool {
    let question = r#"{"limit":1}"#;
    system.request(ServerQuestion::Connections.subject(), question.into(), PROBE_LIMIT).await.is_ok()
}

/// Ends the process after a silence. The thread ends with the pulse.
fn watch(pulse: std::sync::Weak<Pulse>) -> anyhow::Result<()> {
    let watching = move || {
        while let Some(pulse) = pulse.upgrade() {
            let silence = pulse.silence();
            if silence > HUNG_AFTER {
                error!(
                    silence_ms = silence.as_millis(),
                    "no probe came back: ending this replica, so that others are asked"
                );
                // Whatever hangs would hold up an orderly end.
                abort();
            }
            drop(pulse);
            thread::park_timeout(PROBE_EVERY);
        }
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(watching).map(drop).context("start the watchdog")
}
