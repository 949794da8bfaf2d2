//! How long one thing took, again and again.

use std::fmt;
use std::time::Duration;

/// Times of one thing, sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times(Vec<Duration>);

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort_unstable();
        Self(times)
    }
}

impl Times {
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The nearest one to a share of all, in percent; nothing was measured: no time.
    fn at(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    #[must_use]
    pub fn median(&self) -> Duration {
        self.at(50)
    }

    /// Of fewer than a hundred this is the slowest.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.at(99)
    }
}

/// Milliseconds, as tables show them.
pub(super) fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1_000.0)
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("–");
        }
        write!(f, "{}, {}", ms(self.median()), ms(self.p99()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_slowest_are_those_of_a_sorted_list() {
        let times = |ms: &[u64]| ms.iter().copied().map(Duration::from_millis).collect::<Times>();
        for (given, median, p99) in [(&[][..], 0, 0), (&[7], 7, 7), (&[3, 1, 2], 2, 3), (&[4, 1, 3, 2], 2, 4)] {
            let all = times(given);
            let expected = (Duration::from_millis(median), Duration::from_millis(p99));
            assert_eq!((all.median(), all.p99()), expected, "{given:?}");
        }
        let hundred: Vec<u64> = (1..=200).collect();
        assert_eq!(times(&hundred).p99(), Duration::from_millis(198));
    }
}
