//! Whether the loops of a process go on: each says so again and again, and the one that has stopped saying it is named.
//!
//! A hub or a database that is away is no reason to start again: every wait for one has a limit of its own, or is marked
//! as a wait ([`Heart::while_waiting`]).

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Beyond every wait that a loop may make without saying so; the longest is one transaction, with 60 s.
pub const STUCK_AFTER: Duration = Duration::from_secs(120);
/// How often a loop that waits says that it goes on.
const BEAT_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Loop {
    name: &'static str,
    /// `None` when it has ended, which the supervisor sees.
    seen: Option<Instant>,
}

/// The loops of one process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Loops(Arc<Mutex<Vec<Loop>>>);

/// What one loop says that it goes on with. Dropping it takes the loop off the list.
#[derive(Debug)]
pub struct Heart {
    loops: Loops,
    place: usize,
}

impl Loops {
    fn list(&self) -> MutexGuard<'_, Vec<Loop>> {
        self.0.lock().expect("no holder panics")
    }

    /// A loop that begins now.
    #[must_use]
    pub fn watch(&self, name: &'static str) -> Heart {
        let mut list = self.list();
        list.push(Loop { name, seen: Some(Instant::now()) });
        Heart { loops: self.clone(), place: list.len() - 1 }
    }

    /// The loops that have said nothing for longer than `limit`, and for how long.
    #[must_use]
    pub fn stuck(&self, now: Instant, limit: Duration) -> Vec<(&'static str, Duration)> {
        let list = self.list();
        let silent = list.iter().filter_map(|one| Some((one.name, now.saturating_duration_since(one.seen?))));
        silent.filter(|(_, silence)| *silence > limit).collect()
    }
}

impl Heart {
    /// The loop goes on.
    pub fn beat(&self) {
        self.loops.list()[self.place].seen = Some(Instant::now());
    }

    /// Beats while `wait` goes on: for waits that may rightly last for ever, such as for the next message.
    pub async fn while_waiting<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        loop {
            tokio::select! {
                biased;
                value = &mut wait => {
                    self.beat();
                    return value;
                }
                _ = ticks.tick() => self.beat(),
            }
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        // A lock poisoned by a panic elsewhere must not abort the process while it unwinds.
        if let Ok(mut list) = self.loops.0.lock() {
            list[self.place].seen = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_silent_loop_is_stuck_until_it_beats_or_ends() {
        let loops = Loops::default();
        let (quiet, busy) = (loops.watch("quiet"), loops.watch("busy"));
        let began = Instant::now();
        assert!(loops.stuck(began + STUCK_AFTER / 2, STUCK_AFTER).is_empty());
        let later = began + STUCK_AFTER + Duration::from_secs(1);
        busy.loops.list()[busy.place].seen = Some(later);
        let stuck = loops.stuck(later, STUCK_AFTER);
        assert_eq!(stuck.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["quiet"]);
        assert!(stuck[0].1 > STUCK_AFTER);
        quiet.loops.list()[quiet.place].seen = Some(later);
        assert!(loops.stuck(later, STUCK_AFTER).is_empty());
        drop(quiet);
        let much_later = later + 2 * STUCK_AFTER;
        assert_eq!(loops.stuck(much_later, STUCK_AFTER).len(), 1, "an ended loop is nobody's business here");
    }

    #[tokio::test]
    async fn a_marked_wait_is_progress_and_another_is_not() {
        let loops = Loops::default();
        let heart = loops.watch("waits");
        let limit = Duration::from_millis(100);
        let long = || tokio::time::timeout(2 * limit, std::future::pending::<()>());
        let _ = long().await;
        assert_eq!(loops.stuck(Instant::now(), limit).len(), 1, "it said nothing meanwhile");
        let _ = heart.while_waiting(long()).await;
        assert!(loops.stuck(Instant::now(), limit).is_empty());
    }
}
