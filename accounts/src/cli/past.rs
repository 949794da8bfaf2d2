//! `bulkhead check` and `bulkhead poller history`: what core says about the past.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bulkhead_bus::payload::{CheckRow, GapKind, GapRow, HistoryRow, PollerHistoryRow, Query, UptimeRow};
use bulkhead_bus::{CheckName, CoreVerb, SiteName};
use bulkhead_runtime::now_ms;
use clap::Args;

use super::Scope;
use super::exit::{Failure, WARNINGS};
use super::number::whole;
use super::query::{Session, about, show};
use super::show::print_rows_or;
use crate::tenancy::PollerPath;

const HOUR_MS: i64 = 3_600_000;
/// A change is shared out long before.
const UNPLANNED_MS: i64 = 10_000;
const BUCKET_MAX: Duration = Duration::from_secs(7 * 86_400);

#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
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
}

#[derive(Debug, Args)]
pub(super) struct UptimeArgs {
    /// Such as web; all when none is named.
    check: Option<CheckName>,
    #[command(flatten)]
    scope: Scope,
    /// Only from this site.
    #[arg(long)]
    site: Option<SiteName>,
    #[command(flatten)]
    span: Span,
}

#[derive(Debug, Args)]
pub(super) struct GapsArgs {
    /// Such as web; all when none is named.
    check: Option<CheckName>,
    #[command(flatten)]
    scope: Scope,
    /// Only at this site.
    #[arg(long)]
    site: Option<SiteName>,
    #[command(flatten)]
    span: Span,
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

pub(super) async fn show_history(home: &Path, args: HistoryArgs, is_json: bool) -> Result<(), Failure> {
    let HistoryArgs { check, scope, site, span, bucket } = args;
    let asked = Query { check: Some(check), site, bucket_s: bucket.bucket_s, ..span.of(about(&scope)) };
    show::<HistoryRow>(home, &scope, (CoreVerb::ListHistory, &asked), is_json).await
}

pub(super) async fn show_uptime(home: &Path, args: UptimeArgs, is_json: bool) -> Result<(), Failure> {
    let UptimeArgs { check, scope, site, span } = args;
    let asked = Query { check, site, ..span.of(about(&scope)) };
    show::<UptimeRow>(home, &scope, (CoreVerb::ListUptime, &asked), is_json).await
}

/// Ends with [`WARNINGS`] when there are slots that nobody accounts for.
pub(super) async fn show_gaps(home: &Path, args: GapsArgs, is_json: bool) -> Result<(), Failure> {
    let GapsArgs { check, scope, site, span } = args;
    let asked = Query { check, site, ..span.of(about(&scope)) };
    let session = Session::open(home, &scope).await?;
    let rows: Vec<GapRow> = session.ask(CoreVerb::ListGaps, &asked).await?;
    print_rows_or("no gaps: every slot that somebody was to run has a measurement", &rows, is_json, now_ms())?;
    let silent: u64 = rows.iter().filter(|row| row.kind == GapKind::Silent).map(|row| row.slots).sum();
    match silent {
        0 => Ok(()),
        silent => Err(Failure::with(WARNINGS, format!("{silent} slots have neither a result nor a reason"))),
    }?;
    // Such a check has no vantage, and so no slots that could be missed.
    let named = Query { check: asked.check.clone(), ..about(&scope) };
    let checks: Vec<CheckRow> = session.ask(CoreVerb::ListChecks, &named).await?;
    let is_nobodys = |row: &&CheckRow| {
        let is_new = now_ms() - row.changed_ms < UNPLANNED_MS;
        row.vantages_assigned == 0 && !row.definition.paused && !row.definition.labels.is_empty() && !is_new
    };
    let nobodys: Vec<&str> = checks.iter().filter(is_nobodys).map(|row| row.definition.probe.name.as_str()).collect();
    if nobodys.is_empty() {
        return Ok(());
    }
    let because = format!("no poller has the labels of {}: nobody runs it", nobodys.join(", "));
    Err(Failure::with(WARNINGS, because))
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
