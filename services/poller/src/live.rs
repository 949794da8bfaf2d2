//! What is shown live: the newest result of each check, at most once, never in the way of the durable path.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_bus::payload::{BATCH_VERSION, LiveResults, Measured};
use bulkhead_bus::{CheckName, LiveKind, MAX_BATCH_BYTES, TenantSubject};
use bulkhead_runtime::{Bus, Chain};
use bytes::Bytes;
use tokio::time::MissedTickBehavior;
use tracing::debug;

use crate::batch::{Identity, count_fitting, measure_sizes};
use crate::metrics::{Metrics, count};

const SHOW_EVERY: Duration = Duration::from_millis(500);
/// Results of one message.
const RESULTS_MOST: usize = 100;
/// Room for what is around the results.
const ENVELOPE_BYTES: usize = 64;

/// The newest result of each check since the last publication: never more than there are checks.
#[derive(Debug, Default)]
pub(crate) struct LiveBoard(Mutex<BTreeMap<CheckName, Measured>>);

impl LiveBoard {
    pub(crate) fn post(&self, measured: &Measured) {
        let mut newest = self.0.lock().expect("no holder panics");
        let is_newer = newest.get(&measured.check).is_none_or(|known| known.slot_ms <= measured.slot_ms);
        if is_newer {
            newest.insert(measured.check.clone(), measured.clone());
        }
    }

    fn take(&self) -> Vec<Measured> {
        std::mem::take(&mut *self.0.lock().expect("no holder panics")).into_values().collect()
    }
}

/// The results as messages of at most [`RESULTS_MOST`] and the size that travels.
fn encode_messages(mut results: Vec<Measured>) -> Result<Vec<Bytes>, serde_json::Error> {
    let sizes = measure_sizes(&results)?;
    let mut sizes = sizes.as_slice();
    let room = MAX_BATCH_BYTES.unsigned_abs() as usize - ENVELOPE_BYTES;
    let mut messages = Vec::new();
    while !results.is_empty() {
        let fitting = count_fitting(sizes, room, RESULTS_MOST);
        let rest = results.split_off(fitting);
        sizes = &sizes[fitting..];
        let message = LiveResults { version: BATCH_VERSION, results: std::mem::replace(&mut results, rest) };
        messages.push(serde_json::to_vec(&message)?.into());
    }
    Ok(messages)
}

/// Publishes what is new until it is dropped. Failures are the reader's loss only: the durable path has the results.
pub(crate) async fn show_live(bus: &Bus, identity: &Identity, board: Arc<LiveBoard>, metrics: &Metrics) {
    let (site, poller) = (identity.site.clone(), identity.poller.clone());
    let subject = TenantSubject::Live { site, poller, kind: LiveKind::Results }.to_string();
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A client that is not connected queues what is published, and stale results would come in a burst.
        if !bus.is_connected() {
            continue;
        }
        let messages = match encode_messages(board.take()) {
            Ok(messages) => messages,
            Err(error) => {
                debug!(error = %Chain(&error), "live results not encoded");
                continue;
            }
        };
        for message in messages {
            match bus.publish(&subject, message).await {
                Ok(()) => count(&metrics.live_published, 1),
                Err(error) => debug!(error = %Chain(&error), "live results not published"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tests::measured;

    #[test]
    fn only_the_newest_of_each_check_is_shown_once() {
        let board = LiveBoard::default();
        for (check, slot) in [("web", 1), ("dns", 5), ("web", 3), ("web", 2)] {
            board.post(&measured(check, slot));
        }
        let shown: Vec<_> = board.take().into_iter().map(|result| (result.check.to_string(), result.slot_ms)).collect();
        assert_eq!(shown, [("dns".to_owned(), 5), ("web".to_owned(), 3)]);
        assert!(board.take().is_empty());
    }

    #[test]
    fn messages_are_bounded_in_number_and_bytes() {
        let board = LiveBoard::default();
        for check in 0..250 {
            let mut result = measured(&format!("check-{check}"), 1);
            result.detail.insert("text".to_owned(), "x".repeat(if check < 60 { 2_000 } else { 0 }).into());
            board.post(&result);
        }
        let messages = encode_messages(board.take()).unwrap();
        let mut shown = 0;
        for message in messages {
            assert!(message.len() < MAX_BATCH_BYTES.unsigned_abs() as usize);
            let live: LiveResults = serde_json::from_slice(&message).unwrap();
            assert!(live.results.len() <= RESULTS_MOST);
            shown += live.results.len();
        }
        assert_eq!(shown, 250);
    }
}
