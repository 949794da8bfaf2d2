//! Says what goes wrong once for each cause, and that it ended: a leaf that is away for a day is two log lines.

use tracing::{info, warn};

/// Different causes that are said before the end of one trouble.
const CAUSES_MOST: usize = 8;

/// What keeps one thing from working, as logged since it last worked.
#[derive(Debug)]
pub struct Trouble {
    what: String,
    seen: Vec<String>,
}

impl Trouble {
    #[must_use]
    pub fn new(what: String) -> Self {
        Self { what, seen: Vec::new() }
    }

    /// Logs `cause` unless it was logged already. Returns whether it logged.
    pub fn begin(&mut self, cause: String) -> bool {
        if self.seen.contains(&cause) || self.seen.len() >= CAUSES_MOST {
            return false;
        }
        warn!(cause, "{}: trying again", self.what);
        self.seen.push(cause);
        true
    }

    /// Logs that it works again, if it did not.
    pub fn end(&mut self) -> bool {
        let was_seen = !self.seen.is_empty();
        self.seen.clear();
        if was_seen {
            info!("{}: works again", self.what);
        }
        was_seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_said() {
        let mut trouble = Trouble::new("store a batch".to_owned());
        assert!(!trouble.end());
        assert!(trouble.begin("refused".to_owned()));
        assert!(!trouble.begin("refused".to_owned()));
        assert!(trouble.begin("timeout".to_owned()));
        assert!(!trouble.begin("refused".to_owned()), "two causes in turn are not news");
        assert!(trouble.end() && !trouble.end());
    }
}
