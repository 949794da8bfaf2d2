//! Whose request is next: askers in turn, each in the order of its own requests, and none with more than its share at a time. Pure.

use std::collections::{HashMap, VecDeque};

#[derive(Debug)]
struct Asker<T> {
    waiting: VecDeque<(T, usize)>,
    bytes: usize,
    answered_now: usize,
}

impl<T> Default for Asker<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, answered_now: 0 }
    }
}

/// Requests that wait for a place.
#[derive(Debug)]
pub(crate) struct Line<T> {
    askers: HashMap<String, Asker<T>>,
    /// Whoever has something that waits and may be answered, once each.
    turns: VecDeque<String>,
    at_once: usize,
    bytes_most: usize,
}

impl<T> Line<T> {
    /// Of one asker `at_once` are answered at the same time, and `bytes_most` wait.
    pub(crate) fn new(at_once: usize, bytes_most: usize) -> Self {
        Self { askers: HashMap::new(), turns: VecDeque::new(), at_once: at_once.max(1), bytes_most }
    }

    /// # Errors
    /// What does not fit in beside what waits of this asker.
    pub(crate) fn add(&mut self, name: &str, request: T, bytes: usize) -> Result<(), T> {
        let asker = self.askers.entry(name.to_owned()).or_default();
        if !asker.waiting.is_empty() && asker.bytes.saturating_add(bytes) > self.bytes_most {
            return Err(request);
        }
        asker.waiting.push_back((request, bytes));
        asker.bytes = asker.bytes.saturating_add(bytes);
        if asker.waiting.len() == 1 && asker.answered_now < self.at_once {
            self.turns.push_back(name.to_owned());
        }
        Ok(())
    }

    /// The next one, and who asks; it is answered until [`Self::done`].
    pub(crate) fn take(&mut self) -> Option<(String, T)> {
        let name = self.turns.pop_front()?;
        let asker = self.askers.get_mut(&name)?;
        let (request, bytes) = asker.waiting.pop_front()?;
        asker.bytes -= bytes;
        asker.answered_now += 1;
        if !asker.waiting.is_empty() && asker.answered_now < self.at_once {
            self.turns.push_back(name.clone());
        }
        Some((name, request))
    }

    pub(crate) fn done(&mut self, name: &str) {
        let Some(asker) = self.askers.get_mut(name) else { return };
        let was_full = asker.answered_now == self.at_once;
        asker.answered_now -= 1;
        if asker.waiting.is_empty() {
            if asker.answered_now == 0 {
                self.askers.remove(name);
            }
        } else if was_full {
            self.turns.push_back(name.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &mut Line<u32>) -> Vec<(String, u32)> {
        std::iter::from_fn(|| line.take()).collect()
    }

    fn named(all: &[(&str, u32)]) -> Vec<(String, u32)> {
        all.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    #[test]
    fn askers_take_turns_and_none_has_more_than_its_share() {
        let mut line = Line::new(2, 1_000);
        for number in 0..5 {
            line.add("large", number, 1).unwrap();
        }
        line.add("small", 10, 1).unwrap();
        assert_eq!(taken(&mut line), named(&[("large", 0), ("small", 10), ("large", 1)]));
        line.add("small", 11, 1).unwrap();
        line.done("large");
        assert_eq!(taken(&mut line), named(&[("small", 11), ("large", 2)]));
        line.done("large");
        line.done("large");
        assert_eq!(taken(&mut line), named(&[("large", 3), ("large", 4)]));
        for name in ["large", "large", "small", "small"] {
            line.done(name);
        }
        assert!(line.askers.is_empty() && line.turns.is_empty(), "nobody is remembered: {line:?}");
    }

    #[test]
    fn what_waits_of_one_has_a_limit_and_one_request_always_fits() {
        let mut line = Line::new(1, 100);
        assert_eq!(line.add("one", 1, 500), Ok(()));
        assert_eq!(line.add("one", 2, 1), Err(2));
        assert_eq!(line.add("other", 3, 60), Ok(()));
        assert_eq!(line.add("other", 4, 60), Err(4));
        assert_eq!(line.take(), Some(("one".to_owned(), 1)));
        assert_eq!(line.add("one", 5, 100), Ok(()));
        assert_eq!(taken(&mut line), named(&[("other", 3)]));
    }
}
