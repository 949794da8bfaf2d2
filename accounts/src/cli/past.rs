//! `bulkhead check` and `bulkhead poller history`: what core says about the past.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bulkhead_bus::payload::{HistoryRow, PollerHistoryRow, Query, UptimeRow};
use bulkhead_bus::{CheckName, CoreVerb, SiteName};
use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};

use super::Scope;
use super::exit::Failure;
use super::number::whole;
use super::query::{about, show};
use crate::tenancy::PollerPath;

const HOUR_MS: i64 = 3_600_000;
const BUCKET_MAX: Duration = Duration::from_secs(7 * 86_400);

#[derive(Debug, Subcommand)]
pub(super) enum CheckCommand {
    /// One check by time and site: how its slots ended, and the least, median, 90th and 99th percentile and most of its latency.
    #[command(
        after_help = "Examples:\n  bulkhead check history web --tenant acme-corp\n  bulkhead check history web --tenant acme-corp --site oslo --hours 2 --bucket 1m\n  bulkhead check history web --tenant acme-corp --since 2026-03-01T00:00:00Z --until 2026-03-08T00:00:00Z --json\n\nTimes are UTC. The window is widened to whole buckets; one without results is not shown. The newest 1000 rows are: what is\nolder is asked for with --until and the oldest one's beginning."
    )]
    History {
        /// Such as web.
        check: CheckName,
        #[command(flatten)]
        scope: Scope,
        /// Only from this site.
        #[arg(long)]
        site: Option<SiteName>,
        #[command(flatten)]
        span: Span,
        #[command(flatten)]
        bucket: Bucket,
    },
    /// How checks did over a time: of the slots that are known, how many were up; down time and outages.
    #[command(
        after_help = "Examples:\n  bulkhead check uptime --tenant acme-corp\n  bulkhead check uptime web --tenant acme-corp --hours 720\n  bulkhead check uptime --tenant acme-corp --site oslo --json\n\nSlots are counted: ok is up and fail is down; error and missed are neither, and lower the coverage."
    )]
    Uptime {
        /// Such as web; all when none is named.
        check: Option<CheckName>,
        #[command(flatten)]
        scope: Scope,
        /// Only from this site.
        #[arg(long)]
        site: Option<SiteName>,
        #[command(flatten)]
        span: Span,
    },
}

#[derive(Debug, Args)]
pub(super) struct PollerHistoryArgs {
    /// Such as acme-corp/oslo/p1.
    poller: PollerPath,
    /// How to reach the hub, and as whom [default: <home>/profiles/ops.toml, a person of the platform].
    #[arg(long, value_name = "FILE", env = "BULKHEAD_PROFILE")]
    profile: Option<PathBuf>,
    #[command(flatten)]
    span: Span,
    #[command(flatten)]
    bucket: Bucket,
}

/// Which time.
#[derive(Debug, Args)]
pub(super) struct Span {
    /// How far back, in hours.
    #[arg(long, default_value_t = 24, value_parser = whole::<u32>(1..=9_600), conflicts_with = "since")]
    hours: u32,
    /// From this moment on (UTC), such as 2026-03-01T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment_ms)]
    since: Option<i64>,
    /// Up to this moment (UTC) and not longer [default: now].
    #[arg(long, value_name = "TIME", value_parser = moment_ms)]
    until: Option<i64>,
}

#[derive(Debug, Args)]
pub(super) struct Bucket {
    /// How long each row's time is, such as 30s, 5m or 1h [default: chosen so that there are about 200 at most].
    #[arg(long = "bucket", value_name = "LENGTH", value_parser = bucket_s)]
    bucket_s: Option<u32>,
}

/// Why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a moment of UTC, such as 2026-03-01T00:00:00Z")]
struct MomentError;

fn moment_ms(text: &str) -> Result<i64, MomentError> {
    let time = humantime::parse_rfc3339_weak(text).map_err(|_| MomentError)?;
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| MomentError)?;
    i64::try_from(since_1970.as_millis()).map_err(|_| MomentError)
}

/// Why a text is no length of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write whole seconds from 1s to 7d, such as 30s, 5m or 1h")]
struct BucketError;

fn bucket_s(text: &str) -> Result<u32, BucketError> {
    let length = humantime::parse_duration(text).map_err(|_| BucketError)?;
    let is_whole = length.subsec_nanos() == 0 && !length.is_zero() && length <= BUCKET_MAX;
    is_whole.then(|| u32::try_from(length.as_secs()).ok()).flatten().ok_or(BucketError)
}

impl Span {
    fn of(&self, asked: Query) -> Query {
        let until_ms = self.until.unwrap_or_else(now_ms);
        let since_ms = self.since.unwrap_or(until_ms - i64::from(self.hours) * HOUR_MS);
        Query { since_ms: Some(since_ms), until_ms: Some(until_ms), ..asked }
    }
}

pub(super) async fn run_check(home: &Path, command: CheckCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        CheckCommand::History { check, scope, site, span, bucket } => {
            let asked = Query { check: Some(check), site, bucket_s: bucket.bucket_s, ..span.of(about(&scope)) };
            show::<HistoryRow>(home, &scope, (CoreVerb::ListHistory, &asked), is_json).await
        }
        CheckCommand::Uptime { check, scope, site, span } => {
            let asked = Query { check, site, ..span.of(about(&scope)) };
            show::<UptimeRow>(home, &scope, (CoreVerb::ListUptime, &asked), is_json).await
        }
    }
}

pub(super) async fn show_poller_history(home: &Path, args: PollerHistoryArgs, is_json: bool) -> Result<(), Failure> {
    let PollerHistoryArgs { poller: path, profile, span, bucket } = args;
    let scope = Scope { tenant: Some(path.tenant), profile };
    let asked =
        Query { site: Some(path.site), poller: Some(path.poller), bucket_s: bucket.bucket_s, ..span.of(about(&scope)) };
    show::<PollerHistoryRow>(home, &scope, (CoreVerb::ListPollerHistory, &asked), is_json).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_whole_seconds_up_to_a_week() {
        assert_eq!(
            ["1s", "90s", "5m", "1h", "7d", "1m 30s"].map(|text| bucket_s(text).ok()),
            [Some(1), Some(90), Some(300), Some(3_600), Some(604_800), Some(90)]
        );
        for bad in ["0s", "500ms", "1500ms", "8d", "5", "", "-5m", "five minutes", "99999999999999999999d"] {
            assert_eq!(bucket_s(bad), Err(BucketError), "{bad:?}");
        }
    }

    #[test]
    fn a_moment_is_of_utc() {
        assert_eq!(moment_ms("1970-01-02T00:00:00Z"), Ok(86_400_000));
        assert_eq!(moment_ms("1970-01-02 00:00:01"), Ok(86_401_000));
        for bad in ["", "yesterday", "2026-13-01T00:00:00Z", "1969-12-31T00:00:00Z", "2026-03-01T00:00:00+02:00"] {
            assert_eq!(moment_ms(bad), Err(MomentError), "{bad:?}");
        }
    }
}
