//! Refusals that are alike: some are written down, the others are counted, so that whoever knocks without end neither fills
//! the stream nor drives out what audit has not read.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(10);
const WRITTEN_MOST: u32 = 10;
/// Kinds of refusals that are told apart; beyond it counting begins anew.
const KINDS_MOST: usize = 10_000;

#[derive(Debug)]
struct Window {
    began: Instant,
    written: u32,
    left_out: u64,
}

/// What was refused lately, by what makes refusals alike.
#[derive(Debug, Default)]
pub struct Repeats(HashMap<String, Window>);

impl Repeats {
    /// How many like it were left out before, when this one is to be written down; `None` when it is left out, too.
    pub fn note(&mut self, kind: &str, now: Instant) -> Option<u64> {
        if self.0.len() >= KINDS_MOST {
            self.0.clear();
        }
        let window = self.0.entry(kind.to_owned()).or_insert_with(|| Window { began: now, written: 0, left_out: 0 });
        if now.saturating_duration_since(window.began) >= WINDOW {
            (window.began, window.written) = (now, 0);
        }
        if window.written >= WRITTEN_MOST {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_written_and_the_next_window_says_how_many_were_not() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        for _ in 0..WRITTEN_MOST {
            assert_eq!(repeats.note("one", now), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(repeats.note("one", now), None);
        }
        assert_eq!(repeats.note("two", now), Some(0), "another kind");
        assert_eq!(repeats.note("one", now + WINDOW), Some(5));
        assert_eq!(repeats.note("one", now + WINDOW), Some(0));
    }
}
