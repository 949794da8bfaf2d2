//! How often a check runs and how long it may take: read in the units that people write, and judged together.

use std::time::Duration;

use serde_json::Value;

use crate::fields::{Fields, Origin};

const INTERVAL_S: std::ops::RangeInclusive<u64> = 1..=86_400;
const RETRIES_MOST: u8 = 5;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT_LEAST: Duration = Duration::from_millis(10);
/// A plain number below is rather meant as seconds.
const PLAIN_TIMEOUT_LEAST_MS: u64 = 100;
/// What of an interval a timeout may take, in percent.
const TIMEOUT_SHARE: u32 = 80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) interval_s: u64,
    pub(crate) timeout: Duration,
    pub(crate) retries: u8,
}

fn duration_of(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

fn read_interval(fields: &mut Fields<'_>) -> Option<u64> {
    let (name, value) = match (fields.take("interval"), fields.take("interval_s")) {
        (None, None) => {
            fields.say("interval", None, "is missing: write for example \"30s\" or \"5m\"");
            return None;
        }
        (Some(_), Some(value)) => {
            fields.say("interval_s", Some(value), "is given beside interval: leave one out");
            return None;
        }
        (Some(value), None) => ("interval", value),
        (None, Some(value)) => ("interval_s", value),
    };
    let from_text =
        |text: &str| duration_of(text).filter(|found| found.subsec_nanos() == 0).map(|found| found.as_secs());
    let seconds = match value.as_str() {
        Some(text) if name == "interval" => from_text(text),
        Some(_) | None => value.as_u64(),
    };
    let seconds = seconds.filter(|seconds| INTERVAL_S.contains(seconds));
    if seconds.is_none() {
        let (least, most) = (INTERVAL_S.start(), INTERVAL_S.end());
        let rule = match name {
            "interval" => {
                format!("is not {least} to {most} whole seconds: write a number, or text such as \"30s\" or \"5m\"")
            }
            _ => format!("is not a whole number from {least} to {most}"),
        };
        fields.say(name, Some(value), rule);
    }
    seconds
}

/// The timeout, and how it was written, where it was.
fn read_timeout<'a>(fields: &mut Fields<'a>) -> Option<(Duration, Option<(&'static str, &'a Value)>)> {
    let (name, value) = match (fields.take("timeout"), fields.take("timeout_ms")) {
        (None, None) => return Some((DEFAULT_TIMEOUT, None)),
        (Some(_), Some(value)) => {
            fields.say("timeout_ms", Some(value), "is given beside timeout: leave one out");
            return None;
        }
        (Some(value), None) => ("timeout", value),
        (None, Some(value)) => ("timeout_ms", value),
    };
    let (found, rule) = match (value.as_str(), name) {
        (Some(text), "timeout") => {
            let found = duration_of(text).filter(|found| *found >= TIMEOUT_LEAST);
            (found, "is not a time of at least 10ms: write for example \"3s\" or \"500ms\"")
        }
        (_, "timeout") => {
            let found = value.as_u64().filter(|ms| *ms >= PLAIN_TIMEOUT_LEAST_MS).map(Duration::from_millis);
            (found, "is not a time: a plain number is milliseconds, at least 100; write \"3s\" for seconds")
        }
        _ => {
            let least = TIMEOUT_LEAST.as_millis();
            let found = value.as_u64().filter(|ms| u128::from(*ms) >= least).map(Duration::from_millis);
            (found, "is not a whole number of at least 10")
        }
    };
    if found.is_none() {
        fields.say(name, Some(value), rule);
    }
    found.map(|found| (found, Some((name, value))))
}

fn read_retries(fields: &mut Fields<'_>) -> Option<u8> {
    let Some(value) = fields.take("retries") else { return Some(0) };
    let retries = value.as_u64().and_then(|number| u8::try_from(number).ok()).filter(|number| *number <= RETRIES_MOST);
    if retries.is_none() {
        fields.say("retries", Some(value), format_args!("is not a whole number from 0 to {RETRIES_MOST}"));
    }
    retries
}

/// Interval, timeout and retries as people write them.
pub(crate) fn read_pace(fields: &mut Fields<'_>) -> Option<Pace> {
    let interval_s = read_interval(fields);
    let timeout = read_timeout(fields);
    let retries = read_retries(fields);
    // Without an interval it is judged by the longest that there is.
    let interval = Duration::from_secs(interval_s.unwrap_or(*INTERVAL_S.end()));
    let most = interval * TIMEOUT_SHARE / 100;
    let (timeout, written) = timeout?;
    // A default is nobody's mistake.
    let timeout = if written.is_none() { timeout.min(most) } else { timeout };
    if let Some((name, value)) = written.filter(|_| timeout > most) {
        let (interval, most) = (humantime::format_duration(interval), humantime::format_duration(most));
        let rule = format!("is more than {TIMEOUT_SHARE} % of the interval of {interval}: write at most {most}");
        fields.say(name, Some(value), rule);
    } else if let Some(retries) = retries.filter(|retries| timeout * (u32::from(*retries) + 1) >= interval) {
        let rule = format!(
            "of {} each take as long as the interval of {}: write fewer, or a shorter timeout",
            humantime::format_duration(timeout),
            humantime::format_duration(interval)
        );
        fields.say("retries", Some(&retries.into()), rule);
    }
    Some(Pace { interval_s: interval_s?, timeout, retries: retries? })
}

/// The same of a poller's own settings, where both are required and the timeout only has to end before the next slot; and of
/// what was judged before.
pub(crate) fn read_own_pace(fields: &mut Fields<'_>) -> Option<Pace> {
    let interval = fields.require("interval_s", "write seconds from 1 to 86400");
    let timeout = fields.require("timeout_ms", "write milliseconds, below the interval");
    let retries = read_retries(fields);
    let interval_s = interval?.as_u64().unwrap_or(0);
    if !INTERVAL_S.contains(&interval_s) {
        let rule = format!("is not between {} and {}", INTERVAL_S.start(), INTERVAL_S.end());
        fields.say("interval_s", interval, rule);
    }
    let limit = Duration::from_millis(timeout?.as_u64().unwrap_or(0));
    let tries = u32::from(retries?) + 1;
    if limit.is_zero() || limit.saturating_mul(tries) >= Duration::from_secs(interval_s) {
        let rule = format!(
            "is not above 0 and below the interval of {interval_s} s: a run must end before the next begins, its \
             retries included"
        );
        fields.say("timeout_ms", timeout, rule);
    }
    debug_assert!(fields.origin != Origin::Definition, "definitions are read by read_pace");
    Some(Pace { interval_s, timeout: limit, retries: retries? })
}
