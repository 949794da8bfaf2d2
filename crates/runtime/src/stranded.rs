//! Messages that a work queue holds and its consumer will never hand out: below what it says is acknowledged, and still
//! there. A server whose disk was full can leave one behind (measured on nats-server 2.15.1, tests/chaos).
//!
//! The consumer is made anew: then everything in the queue is handed out once more, which every reader here can take.
//! Nothing is deleted that somebody has not acknowledged, so no right to delete messages is needed.

use std::time::Duration;

use bulkhead_bus::StreamName;
use serde::Deserialize;
use tracing::{info, warn};

use crate::bus::{Bus, EnsureError, RequestError};
use crate::{Chain, Stop};

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Seen so often in a row at one place, it is stranded and not on its way out.
const LOOKS: u32 = 3;

#[derive(Deserialize)]
struct ConsumerInfo {
    #[serde(default)]
    ack_floor: Position,
}

#[derive(Default, Deserialize)]
struct Position {
    #[serde(default)]
    stream_seq: u64,
}

#[derive(Deserialize)]
struct StreamInfo {
    #[serde(default)]
    state: State,
}

#[derive(Default, Deserialize)]
struct State {
    #[serde(default)]
    messages: u64,
    #[serde(default)]
    first_seq: u64,
}

impl Bus {
    /// The first message that is still there although it is below what the consumer has acknowledged.
    async fn below_floor(&self, stream: StreamName) -> Result<Option<u64>, RequestError> {
        let (name, consumer) = (stream.as_str(), stream.consumer().name);
        // The floor first: it only grows, so what is below it now was below it when the stream is looked at.
        let consumer: ConsumerInfo =
            self.ask(format!("$JS.API.CONSUMER.INFO.{name}.{consumer}"), String::new()).await?;
        let StreamInfo { state } = self.ask(format!("$JS.API.STREAM.INFO.{name}"), String::new()).await?;
        let is_below = state.messages > 0 && state.first_seq <= consumer.ack_floor.stream_seq;
        Ok(is_below.then_some(state.first_seq))
    }

    /// Looks again and again until `stop`, and has what is stranded handed out once more. Calls `freed` each time.
    pub async fn free_stranded(&self, stream: StreamName, stop: &Stop, freed: impl Fn()) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen: Option<(u64, u32)> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            // A server that does not answer is somebody else's news.
            let found = self.below_floor(stream).await.unwrap_or_default();
            seen = match (found, seen) {
                (Some(place), Some((last, times))) if last == place => Some((place, times + 1)),
                (Some(place), _) => Some((place, 1)),
                (None, _) => None,
            };
            let Some((place, times)) = seen else { continue };
            if times < LOOKS {
                continue;
            }
            warn!(stream = stream.as_str(), sequence = place, "message {place} is stranded: making the consumer anew");
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
        if let Err(error) = self.jetstream.delete_consumer_from_stream(name, stream.as_str()).await {
            info!(error = %Chain(&error), "the consumer was not deleted");
        }
        self.ensure_consumer(stream).await
    }
}
