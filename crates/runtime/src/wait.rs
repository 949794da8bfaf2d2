//! Waiting for states instead of times, and pacing what must be tried again.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The state did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("{what} did not happen within {limit:?}; last seen: {last}")]
pub struct LimitReached {
    pub what: String,
    pub limit: Duration,
    pub last: String,
}

/// Looks until `look` gives a value. An `Err` says what was seen instead, and the last one is in the error.
///
/// # Errors
/// [`LimitReached`] when `limit` has passed.
pub async fn eventually<T, F, E>(what: &str, limit: Duration, mut look: impl FnMut() -> F) -> Result<T, LimitReached>
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let end = Instant::now() + limit;
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = "nothing yet".to_owned();
    loop {
        ticks.tick().await;
        match tokio::time::timeout_at(end, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) if Instant::now() < end => last = seen.to_string(),
            Ok(Err(seen)) => return Err(LimitReached { what: what.to_owned(), limit, last: seen.to_string() }),
            Err(_) => return Err(LimitReached { what: what.to_owned(), limit, last }),
        }
    }
}

/// Doubling pauses with jitter between attempts, from `first` to `most`.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    most: Duration,
}

impl Backoff {
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { next: first, first, most }
    }

    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to pause now; three quarters to all of the step, so that many processes spread out.
    pub fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (self.next * 2).min(self.most);
        let spread = u32::from(std::time::SystemTime::now().elapsed_nanos_low()) % 256;
        step * 3 / 4 + step / 4 * spread / 256
    }

    #[expect(clippy::disallowed_methods, reason = "this is the named pace that the rule asks for")]
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}

/// The low bits of the clock are random enough to spread retries.
trait LowNanos {
    fn elapsed_nanos_low(self) -> u8;
}

impl LowNanos for std::time::SystemTime {
    fn elapsed_nanos_low(self) -> u8 {
        let nanos = self.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        u8::try_from((nanos / 1_000) % 256).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_thing_seen_is_in_the_error() {
        let mut looks = 0;
        let error = eventually("a state", Duration::from_millis(80), || {
            looks += 1;
            std::future::ready(Err::<(), _>(format!("look {looks}")))
        })
        .await
        .unwrap_err();
        assert!(error.last.starts_with("look "), "{error}");
    }

    #[test]
    fn pauses_double_up_to_the_most() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for most in [100, 200, 400, 400] {
            let step = backoff.step();
            assert!(step <= Duration::from_millis(most) && step >= Duration::from_millis(most * 3 / 4), "{step:?}");
        }
    }
}
