//! Words of what goes fast and often, so that those of what takes long are still seen.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(1);

/// Says the first word, and then one a second at most.
pub(super) struct Sparing<'a> {
    announce: &'a (dyn Fn(&str) + Sync),
    said: Mutex<Option<Instant>>,
}

impl<'a> Sparing<'a> {
    pub(super) fn new(announce: &'a (dyn Fn(&str) + Sync)) -> Self {
        Self { announce, said: Mutex::new(None) }
    }

    pub(super) fn say(&self, word: &str) {
        let Ok(mut said) = self.said.lock() else { return };
        if said.is_none_or(|said| said.elapsed() >= EVERY) {
            *said = Some(Instant::now());
            (self.announce)(word);
        }
    }
}
