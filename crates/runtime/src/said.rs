//! What the log was told already: trouble that lasts is said once, and again now and then, not at each attempt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long trouble lasts before it is said again.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// Causes that are remembered; beyond it all are forgotten, and each is said once more.
const CAUSES_MOST: usize = 256;

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Said(Arc<Mutex<HashMap<String, Instant>>>);

impl Said {
    /// Whether the log should be told of `cause` at `now`; it counts as told then.
    #[must_use]
    pub fn is_news(&self, cause: String, now: Instant) -> bool {
        let mut causes = self.0.lock().expect("no holder panics");
        if causes.get(&cause).is_some_and(|said| now.duration_since(*said) < AGAIN_AFTER) {
            return false;
        }
        if causes.len() >= CAUSES_MOST {
            causes.clear();
        }
        causes.insert(cause, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_said_once_and_again_when_it_lasts() {
        let (said, now) = (Said::default(), Instant::now());
        let is_news = |cause: &str, later: Duration| said.is_news(cause.to_owned(), now + later);
        assert!(is_news("no right", Duration::ZERO));
        assert!(!is_news("no right", AGAIN_AFTER / 2));
        assert!(is_news("no column", AGAIN_AFTER / 2));
        assert!(is_news("no right", AGAIN_AFTER));
        assert!(!is_news("no right", AGAIN_AFTER));
    }

    #[test]
    fn ever_new_causes_take_no_more_memory() {
        let (said, now) = (Said::default(), Instant::now());
        for number in 0..CAUSES_MOST * 3 {
            assert!(said.is_news(number.to_string(), now));
            assert!(said.0.lock().unwrap().len() <= CAUSES_MOST);
        }
    }
}
