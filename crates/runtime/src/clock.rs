//! The wall clock, read in one place. Rules take the time as an argument.

use time::OffsetDateTime;

/// Unix milliseconds now.
#[must_use]
pub fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// `None` when the milliseconds are outside what a date can be (years -9999 to 9999).
#[must_use]
pub fn utc_of_ms(unix_ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok()
}
