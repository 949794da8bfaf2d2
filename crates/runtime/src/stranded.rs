//! Messages that a work queue holds and its consumer will never hand out: it believes that they are acknowledged, and they
//! are still there. A server whose disk was full can leave one behind (measured on nats-server 2.15.1, tests/chaos).
//!
//! The consumer is made anew: then everything in the queue is handed out once more, which every reader here can take.
//! Nothing is deleted that somebody has not acknowledged, so no right to delete messages is needed.

use std::time::Duration;

use bulkhead_bus::StreamName;
use bulkhead_bus::question::{consumer_info, stream_info};
use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};

use crate::bus::{Bus, EnsureError, RequestError};
use crate::{Chain, Heart, Stop};

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Seen so often in a row, it is stranded and not on its way out.
const LOOKS: u32 = 3;

/// How far a consumer is, as the server says it.
#[derive(Default, Deserialize)]
pub(crate) struct ConsumerInfo {
    pub(crate) delivered: Position,
    pub(crate) ack_floor: Position,
    /// Not handed out yet.
    num_pending: u64,
    /// Handed out and not acknowledged yet.
    pub(crate) num_ack_pending: u64,
}

#[derive(Default, Deserialize)]
pub(crate) struct Position {
    pub(crate) stream_seq: u64,
}

#[derive(Deserialize)]
struct StreamInfo {
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
struct State {
    messages: u64,
    first_seq: u64,
    last_seq: u64,
}

/// Whether the consumer will never hand out something that is in the queue; `before` and `after` are the queue's states
/// around the look at the consumer.
fn is_stranded(before: State, consumer: &ConsumerInfo, after: State) -> bool {
    // The floor only grows, so what is below it now was below it when the queue was looked at afterwards.
    let is_below = after.messages > 0 && after.first_seq <= consumer.ack_floor.stream_seq;
    // Above the floor one shows only where nothing came or went meanwhile: then the numbers are of one moment.
    let known = consumer.num_pending + consumer.num_ack_pending;
    is_below || (before == after && after.messages > known)
}

impl Bus {
    async fn state_of(&self, stream: StreamName) -> Result<State, RequestError> {
        let info: StreamInfo = self.ask(stream_info(stream), &json!({})).await?;
        Ok(info.state)
    }

    /// Where the queue begins, if something in it is stranded.
    async fn find_stranded(&self, stream: StreamName) -> Result<Option<u64>, RequestError> {
        let before = self.state_of(stream).await?;
        let consumer: ConsumerInfo = self.ask(consumer_info(stream), &json!({})).await?;
        let after = self.state_of(stream).await?;
        Ok(is_stranded(before, &consumer, after).then_some(after.first_seq))
    }

    /// Looks again and again until `stop`, and has what is stranded handed out once more. Calls `freed` each time.
    pub async fn free_stranded(&self, stream: StreamName, heart: &Heart, stop: &Stop, freed: impl Fn()) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen: Option<(u64, u32)> = None;
        loop {
            heart.beat();
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            // A server that does not answer is somebody else's news.
            let found = self.find_stranded(stream).await.unwrap_or_default();
            seen = match (found, seen) {
                (Some(place), Some((last, times))) if last == place => Some((place, times + 1)),
                (Some(place), _) => Some((place, 1)),
                (None, _) => None,
            };
            let Some((place, times)) = seen else { continue };
            if times < LOOKS {
                continue;
            }
            warn!(
                stream = stream.as_str(),
                sequence = place,
                "a message of {} is stranded at {place} or above: making the consumer anew",
                stream.as_str()
            );
            match self.remake_consumer(stream).await {
                Ok(()) => {
                    info!(stream = stream.as_str(), "what was stranded is handed out again");
                    freed();
                }
                Err(error) => warn!(error = %Chain(&error), "what is stranded stays so for now"),
            }
            seen = None;
        }
    }

    async fn remake_consumer(&self, stream: StreamName) -> Result<(), EnsureError> {
        let name = stream.consumer().name;
        // One that is gone already is as good; one that stays is found again. Whoever pulls makes one that is missing.
        if let Err(error) = self.jetstream().delete_consumer_from_stream(name, stream.as_str()).await {
            info!(error = %Chain(&error), "the consumer was not deleted");
        }
        self.ensure_consumer(stream).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Said;

    fn state(messages: u64, first_seq: u64, last_seq: u64) -> State {
        State { messages, first_seq, last_seq }
    }

    fn consumer(floor: u64, num_pending: u64, num_ack_pending: u64) -> ConsumerInfo {
        let ack_floor = Position { stream_seq: floor };
        ConsumerInfo { ack_floor, num_pending, num_ack_pending, ..ConsumerInfo::default() }
    }

    #[test]
    fn a_server_that_cannot_tell_is_not_one_that_knows_of_nothing() {
        let away = r#"{"type":"x","error":{"code":503,"description":"JetStream system temporarily unavailable"}}"#;
        assert!(matches!(serde_json::from_str(away), Ok(Said::<ConsumerInfo>::Error { .. })));
        assert!(matches!(serde_json::from_str(away), Ok(Said::<StreamInfo>::Error { .. })));
        assert!(serde_json::from_str::<ConsumerInfo>("{}").is_err());
    }

    #[test]
    fn what_the_consumer_has_forgotten_is_stranded_and_what_moves_is_not() {
        let empty = state(0, 11, 10);
        assert!(!is_stranded(empty, &consumer(10, 0, 0), empty));
        let one = state(1, 5, 10);
        assert!(is_stranded(one, &consumer(10, 0, 0), one), "below the floor");
        let held = state(2, 5, 10);
        assert!(is_stranded(held, &consumer(4, 0, 1), held), "5 is held, and the consumer knows nothing of the other");
        assert!(!is_stranded(held, &consumer(4, 1, 1), held));
        assert!(!is_stranded(state(3, 5, 10), &consumer(4, 0, 1), held), "one was acknowledged meanwhile");
        assert!(!is_stranded(held, &consumer(4, 0, 1), state(2, 5, 11)), "one came meanwhile and one went");
        assert!(is_stranded(held, &consumer(10, 0, 0), state(1, 5, 11)), "below the floor, whatever moves");
    }
}
