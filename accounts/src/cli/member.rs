//! `bulkhead poller status|select|watch|events|hold|release`: who is there, as the registry knows it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_bus::payload::{CheckKind, MemberEventRow, MemberHold, MemberQuery, MemberRow, MemberState, Pick};
use bulkhead_bus::{MemberName, RegistryVerb, SiteName, TenantSubject};
use bulkhead_runtime::now_ms;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::Scope;
use super::desk::say;
use super::exit::Failure;
use super::number::whole;
use super::query::Session;
use super::show::{json_lines, print_rows_or, table, write_lines};
use crate::client::{ANSWER_LIMIT, ask};
use crate::tenancy::PollerPath;

/// How long the registry holds a question until something changes.
const WAIT: Duration = Duration::from_secs(25);

/// Which members.
#[derive(Debug, Args)]
pub(super) struct MemberFilter {
    #[command(flatten)]
    scope: Scope,
    /// Only at this site.
    #[arg(long)]
    site: Option<SiteName>,
    /// Only this poller; fwd is the site's leaf link.
    #[arg(long)]
    name: Option<MemberName>,
    /// Only those with this label. May be repeated: all of them.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = super::check::pair)]
    labels: Vec<(String, String)>,
    /// Only those that can run this kind of check: icmp, tcp, http, dns. May be repeated.
    #[arg(long = "can", value_name = "TYPE", value_parser = kind_of)]
    capabilities: Vec<CheckKind>,
    /// Only those in this state, such as ready, lost or unknown. May be repeated.
    #[arg(long = "state", value_name = "STATE", value_parser = state_of)]
    states: Vec<MemberState>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    All,
    First,
    Rendezvous,
    Spread,
}

#[derive(Debug, Args)]
pub(super) struct SelectArgs {
    #[command(flatten)]
    filter: MemberFilter,
    /// How to choose among those that fit.
    #[arg(long, value_enum, default_value = "all")]
    pick: Way,
    /// How many.
    #[arg(long, default_value_t = 1, value_parser = whole::<u32>(1..=1_000))]
    count: u32,
    /// For rendezvous: of one key always the same are chosen. For spread: the label (or site) over whose values they are spread.
    #[arg(long, default_value = "site")]
    key: String,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    filter: MemberFilter,
    /// How far back, in hours.
    #[arg(long, default_value_t = 24, value_parser = whole::<u32>(1..=9_600))]
    hours: u32,
    /// Rows at most.
    #[arg(long, default_value_t = 100, value_parser = whole::<u32>(1..=1_000))]
    limit: u32,
}

#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    /// Such as acme-corp/oslo/p1.
    poller: PollerPath,
    /// Why, for whoever asks later.
    #[arg(long)]
    reason: Option<String>,
    /// How to reach the hub, and as whom [default: <home>/profiles/ops.toml, a person of the platform].
    #[arg(long, value_name = "FILE", env = "BULKHEAD_PROFILE")]
    profile: Option<PathBuf>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

fn state_of(text: &str) -> Result<MemberState, String> {
    let found = MemberState::ALL.into_iter().find(|state| state.as_str() == text);
    let words: Vec<&str> = MemberState::ALL.iter().map(|state| state.as_str()).collect();
    found.ok_or_else(|| format!("write one of {}", words.join(", ")))
}

fn kind_of(text: &str) -> Result<CheckKind, String> {
    serde_json::from_value(json!(text)).map_err(|_| "write icmp, tcp, http or dns".to_owned())
}

impl MemberFilter {
    fn query(&self) -> MemberQuery {
        MemberQuery {
            tenant: self.scope.tenant.as_ref().map(ToString::to_string),
            site: self.site.clone(),
            name: self.name.clone(),
            labels: self.labels.iter().cloned().collect(),
            capabilities: self.capabilities.clone(),
            states: self.states.clone(),
            ..MemberQuery::default()
        }
    }
}

async fn asked<T: serde::de::DeserializeOwned>(
    session: &Session,
    verb: RegistryVerb,
    query: &MemberQuery,
) -> Result<Vec<T>, Failure> {
    let subject = TenantSubject::Registry { user: session.user.clone(), verb };
    let limit = query.wait_ms.map_or(ANSWER_LIMIT, |wait_ms| Duration::from_millis(wait_ms) + ANSWER_LIMIT);
    Ok(ask(&session.bus, &subject, query, limit).await?)
}

pub(super) async fn show_members(home: &Path, filter: &MemberFilter, is_json: bool) -> Result<(), Failure> {
    let session = Session::open(home, &filter.scope).await?;
    let rows: Vec<MemberRow> = asked(&session, RegistryVerb::ListMembers, &filter.query()).await?;
    print_rows_or("nobody is on the list", &rows, is_json, now_ms())
}

pub(super) async fn select(home: &Path, args: SelectArgs, is_json: bool) -> Result<(), Failure> {
    let SelectArgs { filter, pick, count, key } = args;
    let pick = match pick {
        Way::All => Pick::All,
        Way::First => Pick::First(count),
        Way::Rendezvous => Pick::Rendezvous { key, count },
        Way::Spread => Pick::Spread { label: key, count },
    };
    let session = Session::open(home, &filter.scope).await?;
    let query = MemberQuery { pick: Some(pick), ..filter.query() };
    let rows: Vec<MemberRow> = asked(&session, RegistryVerb::SelectMembers, &query).await?;
    print_rows_or("nobody fits", &rows, is_json, now_ms())
}

/// Shows who is there, and whoever changes, until Ctrl-C.
pub(super) async fn watch(home: &Path, filter: &MemberFilter, is_json: bool) -> Result<(), Failure> {
    let session = Session::open(home, &filter.scope).await?;
    let mut query = filter.query();
    let mut rows: Vec<MemberRow> = asked(&session, RegistryVerb::ListMembers, &query).await?;
    let mut shown: Vec<MemberRow> = Vec::new();
    let mut is_first = true;
    query.wait_ms = Some(u64::try_from(WAIT.as_millis()).unwrap_or(0));
    loop {
        let is_news = |row: &&MemberRow| !shown.iter().any(|old| is_same(old, row));
        let news: Vec<MemberRow> = rows.iter().filter(is_news).cloned().collect();
        if is_json {
            write_lines(&json_lines(&news)?)?;
        } else if !news.is_empty() {
            let text = table(&news, now_ms());
            write_lines(if is_first { &text } else { text.split_once('\n').map_or("", |(_, body)| body) })?;
        }
        is_first = is_first && news.is_empty();
        for row in news {
            shown.retain(|old| (&old.tenant, &old.site, &old.name) != (&row.tenant, &row.site, &row.name));
            shown.push(row);
        }
        query.after_revision = rows.iter().filter_map(|row| row.revision).max().or(query.after_revision);
        rows = asked(&session, RegistryVerb::WatchMembers, &query).await?;
    }
}

/// Whether nothing changed that people look for: renewals alone are no news.
fn is_same(old: &MemberRow, new: &MemberRow) -> bool {
    let told =
        |row: &MemberRow| (row.state, row.boot, row.applied_generation, row.reasons.clone(), row.because.clone());
    (&old.tenant, &old.site, &old.name) == (&new.tenant, &new.site, &new.name) && told(old) == told(new)
}

pub(super) async fn show_events(home: &Path, args: &EventsArgs, is_json: bool) -> Result<(), Failure> {
    let session = Session::open(home, &args.filter.scope).await?;
    let since_ms = now_ms() - i64::from(args.hours) * 3_600_000;
    let query = MemberQuery { since_ms: Some(since_ms), limit: Some(args.limit), ..args.filter.query() };
    let rows: Vec<MemberEventRow> = asked(&session, RegistryVerb::ListMemberEvents, &query).await?;
    print_rows_or("nothing has happened", &rows, is_json, now_ms())
}

async fn set_hold(home: &Path, args: HoldArgs, verb: RegistryVerb, is_json: bool) -> Result<(), Failure> {
    let HoldArgs { poller: path, reason, profile, dry_run } = args;
    let what = if verb == RegistryVerb::HoldMember { "held" } else { "released" };
    if dry_run {
        let text = format!("poller {path} would be {what}");
        return say(is_json, &text, &json!({"poller": path.to_string(), "would": text}));
    }
    let scope = Scope { tenant: Some(path.tenant.clone()), profile };
    let session = Session::open(home, &scope).await?;
    let subject = TenantSubject::Registry { user: session.user.clone(), verb };
    let asked = MemberHold {
        tenant: Some(path.tenant.to_string()),
        site: path.site.clone(),
        poller: path.poller.clone(),
        reason,
    };
    let rows: Vec<Value> = ask(&session.bus, &subject, &asked, ANSWER_LIMIT).await?;
    if is_json { write_lines(&json_lines(&rows)?) } else { say(false, &format!("poller {path} is {what}"), &()) }
}

pub(super) async fn hold(home: &Path, args: HoldArgs, is_json: bool) -> Result<(), Failure> {
    set_hold(home, args, RegistryVerb::HoldMember, is_json).await
}

pub(super) async fn release(home: &Path, args: HoldArgs, is_json: bool) -> Result<(), Failure> {
    set_hold(home, args, RegistryVerb::ReleaseMember, is_json).await
}

/// One member, where the registry can be asked within a moment.
pub(super) async fn member_of(home: &Path, path: &PollerPath) -> Result<Option<MemberRow>, Failure> {
    let scope = Scope { tenant: Some(path.tenant.clone()), profile: None };
    let session = Session::open(home, &scope).await?;
    let query = MemberQuery {
        tenant: Some(path.tenant.to_string()),
        site: Some(path.site.clone()),
        name: Some(path.poller.clone().into()),
        ..MemberQuery::default()
    };
    Ok(asked::<MemberRow>(&session, RegistryVerb::ListMembers, &query).await?.into_iter().next())
}

/// A state for people, with why.
pub(super) fn state_words(row: &MemberRow) -> String {
    let mut words = row.state.as_str().to_owned();
    let reasons: Vec<String> = row.reasons.iter().map(|reason| format!("{reason:?}")).collect();
    let why = row.because.clone().or_else(|| (!reasons.is_empty()).then(|| reasons.join(", ")));
    if let Some(why) = why {
        words.push_str(&format!(" ({why})"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::show::Row;
    use super::*;

    #[test]
    fn words_of_the_line_are_those_of_the_wire() {
        assert_eq!(state_of("lost"), Ok(MemberState::Lost));
        assert!(state_of("dead").unwrap_err().contains("never, unknown"));
        assert_eq!(kind_of("tcp"), Ok(CheckKind::Tcp));
        assert!(kind_of("snmp").is_err());
        assert_eq!(MemberRow::HEADER.len(), 9);
    }
}
