//! Which time a question looks back over, and in which buckets: what is not said is chosen, what is too much is refused.

use std::ops::Range;

use bulkhead_bus::payload::Query;

use crate::handlers::store::ASKED_MS;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const WINDOW_DEFAULT_MS: i64 = DAY_MS;
pub const WINDOW_MAX_DAYS: i64 = 400;
pub const BUCKETS_MAX: i64 = 1_000;
/// At most so many buckets where the length of one is not said.
const BUCKETS_CHOSEN: i64 = 200;
pub const BUCKET_MAX_S: u32 = 7 * 86_400;
/// What is chosen from: each divides a day, or is whole days. The longest window is 200 of the last.
const BUCKETS_S: [u32; 16] =
    [1, 5, 10, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400, 2 * 86_400];

/// Why a question about the past is refused: the value, the rule and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    #[error("{field} {ms} is no moment between the years 1970 and 9999: write unix milliseconds")]
    Moment { field: &'static str, ms: i64 },
    #[error("the window ends at {} and begins at {}: it has to end after it begins", shown(*until_ms), shown(*since_ms))]
    Backwards { since_ms: i64, until_ms: i64 },
    #[error("the window is {days} days long, and at most {WINDOW_MAX_DAYS} are looked at: ask for a part of it")]
    TooLong { days: i64 },
    #[error("bucket_s is {0}: write 1 to {BUCKET_MAX_S} seconds, or leave it out")]
    Bucket(u32),
    #[error(
        "a bucket of {bucket_s} s makes {buckets} of this window, and at most {BUCKETS_MAX} are answered: write {least_s} s or \
         more, or ask for a shorter window"
    )]
    TooMany { bucket_s: u32, buckets: i64, least_s: i64 },
}

fn shown(unix_ms: i64) -> String {
    bulkhead_runtime::utc_of_ms(unix_ms).map_or_else(|| unix_ms.to_string(), |moment| moment.to_string())
}

/// From a moment, which is in it, to another one, which is not; unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub since_ms: i64,
    pub until_ms: i64,
}

/// A window of whole buckets. They begin at whole multiples of their length since 1970, so that a bucket is the same in every window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    pub window: Window,
    pub bucket_s: u32,
}

impl Window {
    /// What is asked about; the day up to now when nothing is said.
    ///
    /// # Errors
    /// When a moment is none, or the window is empty or too long.
    pub fn of(asked: &Query, now_ms: i64) -> Result<Self, WindowError> {
        let until_ms = moment("until_ms", asked.until_ms)?.unwrap_or(now_ms);
        let since_ms = moment("since_ms", asked.since_ms)?.unwrap_or(until_ms - WINDOW_DEFAULT_MS);
        if since_ms >= until_ms {
            return Err(WindowError::Backwards { since_ms, until_ms });
        }
        let length_ms = until_ms - since_ms;
        if length_ms > WINDOW_MAX_DAYS * DAY_MS {
            return Err(WindowError::TooLong { days: length_ms.div_euclid(DAY_MS) });
        }
        Ok(Self { since_ms, until_ms })
    }
}

fn moment(field: &'static str, asked_ms: Option<i64>) -> Result<Option<i64>, WindowError> {
    match asked_ms {
        Some(ms) if !ASKED_MS.contains(&ms) => Err(WindowError::Moment { field, ms }),
        Some(_) | None => Ok(asked_ms),
    }
}

/// `window` widened to whole buckets.
fn widened(window: Window, bucket_s: u32) -> Range<i64> {
    let bucket_ms = i64::from(bucket_s) * 1_000;
    window.since_ms.div_euclid(bucket_ms)..-(-window.until_ms).div_euclid(bucket_ms)
}

impl Buckets {
    /// # Errors
    /// As for the window, or when the buckets are too short, too long or too many.
    pub fn of(asked: &Query, now_ms: i64) -> Result<Self, WindowError> {
        let window = Window::of(asked, now_ms)?;
        let count = |bucket_s: u32| {
            let range = widened(window, bucket_s);
            range.end - range.start
        };
        // One more than fit into the window, where it begins in the middle of one.
        let chosen = || BUCKETS_S.into_iter().find(|bucket_s| count(*bucket_s) <= BUCKETS_CHOSEN + 1);
        let bucket_s = asked.bucket_s.or_else(chosen).unwrap_or(BUCKET_MAX_S);
        if !(1..=BUCKET_MAX_S).contains(&bucket_s) {
            return Err(WindowError::Bucket(bucket_s));
        }
        let buckets = count(bucket_s);
        if buckets > BUCKETS_MAX {
            let length_ms = window.until_ms - window.since_ms;
            let least_s = length_ms / 1_000 / (BUCKETS_MAX - 2) + 1;
            return Err(WindowError::TooMany { bucket_s, buckets, least_s });
        }
        let (range, bucket_ms) = (widened(window, bucket_s), i64::from(bucket_s) * 1_000);
        let window = Window { since_ms: range.start * bucket_ms, until_ms: range.end * bucket_ms };
        Ok(Self { window, bucket_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_764_500_000_123;

    fn asked(since_ms: Option<i64>, until_ms: Option<i64>, bucket_s: Option<u32>) -> Query {
        Query { since_ms, until_ms, bucket_s, ..Query::default() }
    }

    #[test]
    fn nothing_said_is_the_last_day_in_buckets_of_ten_minutes() {
        let Buckets { window, bucket_s } = Buckets::of(&Query::default(), NOW).unwrap();
        assert_eq!(bucket_s, 600);
        assert_eq!((window.since_ms % 600_000, window.until_ms % 600_000), (0, 0));
        assert!(window.since_ms <= NOW - DAY_MS && NOW - DAY_MS - window.since_ms < 600_000);
        assert!(window.until_ms >= NOW && window.until_ms - NOW < 600_000);
        let window = Window::of(&Query::default(), NOW).unwrap();
        assert_eq!(window, Window { since_ms: NOW - DAY_MS, until_ms: NOW });
    }

    #[test]
    fn what_is_too_much_is_refused_with_the_value_the_rule_and_the_way_out() {
        let check = |asked: Query, expected: &str| {
            assert_eq!(Buckets::of(&asked, NOW).unwrap_err().to_string(), expected);
        };
        let least_ms = i64::MIN;
        check(
            asked(Some(least_ms), None, None),
            &format!("since_ms {least_ms} is no moment between the years 1970 and 9999: write unix milliseconds"),
        );
        check(
            asked(None, Some(-1), None),
            "until_ms -1 is no moment between the years 1970 and 9999: write unix milliseconds",
        );
        check(
            asked(Some(5), Some(5), None),
            "the window ends at 1970-01-01 0:00:00.005 +00:00:00 and begins at 1970-01-01 0:00:00.005 +00:00:00: it has to end after it begins",
        );
        check(
            asked(Some(0), Some(401 * DAY_MS), None),
            "the window is 401 days long, and at most 400 are looked at: ask for a part of it",
        );
        check(asked(None, None, Some(0)), "bucket_s is 0: write 1 to 604800 seconds, or leave it out");
        check(asked(None, None, Some(604_801)), "bucket_s is 604801: write 1 to 604800 seconds, or leave it out");
        check(
            asked(Some(0), Some(DAY_MS), Some(60)),
            "a bucket of 60 s makes 1440 of this window, and at most 1000 are answered: write 87 s or more, or ask for a shorter \
             window",
        );
    }

    proptest! {
        #[test]
        fn buckets_are_whole_hold_the_window_and_are_never_too_many(
            since_ms in 0..NOW, length_ms in 1..=WINDOW_MAX_DAYS * DAY_MS, asked_s in proptest::option::of(0..700_000_u32)
        ) {
            let question = asked(Some(since_ms), Some(since_ms + length_ms), asked_s);
            match Buckets::of(&question, NOW) {
                Ok(Buckets { window, bucket_s }) => {
                    let bucket_ms = i64::from(bucket_s) * 1_000;
                    prop_assert!(window.since_ms <= since_ms && since_ms + length_ms <= window.until_ms);
                    prop_assert_eq!((window.since_ms % bucket_ms, window.until_ms % bucket_ms), (0, 0));
                    let most = if asked_s.is_some() { BUCKETS_MAX } else { BUCKETS_CHOSEN + 1 };
                    prop_assert!((window.until_ms - window.since_ms) / bucket_ms <= most);
                }
                Err(WindowError::TooMany { least_s, .. }) => {
                    let way_out = asked(Some(since_ms), Some(since_ms + length_ms), Some(u32::try_from(least_s).unwrap()));
                    prop_assert!(Buckets::of(&way_out, NOW).is_ok());
                }
                Err(WindowError::Bucket(_)) => {
                    prop_assert!(asked_s.is_some_and(|asked_s| !(1..=BUCKET_MAX_S).contains(&asked_s)));
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }
}
