//! `bulkhead check`: a tenant's checks. What is wanted goes to poller-dispatch as it was written, which judges all of it at once;
//! what is there and how it went is asked of core.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_bus::payload::{
    AssignmentRow, ChangeChecks, ChangedCheck, CheckChange, CheckRow, Outcome, Query, RUN_DEADLINE_MS_MOST, RunCheck,
    RunRow,
};
use bulkhead_bus::{CheckName, CoreVerb, DispatchVerb, SiteName, TenantSubject};
use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::desk::say;
use super::exit::{Failure, INVALID, WARNINGS};
use super::past::{GapsArgs, HistoryArgs, UptimeArgs, show_gaps, show_history, show_uptime};
use super::query::{Session, about, show};
use super::show::{print_rows, print_rows_or};
use super::{Filter, Scope};
use crate::client::{ANSWER_LIMIT, ask};

/// What dispatch may take beyond the deadline of a run.
const RUN_SLACK: Duration = Duration::from_secs(5);
const FILE_BYTES_MOST: u64 = 8 << 20;
/// What a server of ours takes in one message, less what goes with it.
const REQUEST_BYTES_MOST: usize = 1_000_000;

#[derive(Debug, Subcommand)]
pub(super) enum CheckCommand {
    /// Add a check. Everything that is wrong with it is said at once.
    #[command(
        after_help = "Examples:\n  bulkhead check add web --tenant acme-corp --type http --target https://example.com/ --interval 30s --site oslo\n  bulkhead check add ssh --tenant acme-corp --type tcp --target 10.0.0.5:22 --interval 1m --label zone=dmz --vantages 2\n  bulkhead check add dns --tenant acme-corp --type dns --target example.com --interval 1m --site oslo --option record=MX\n  bulkhead check add api --tenant acme-corp --type http --target https://api.example.com/ --interval 1m --site oslo --option 'headers={\"authorization\":{\"secret\":\"api-token\"}}'\n\nA check runs at each --site, or where pollers have all --label, at as many sites as --vantages says. The value of an --option\nis JSON, or text where it is none. Defaults: timeout 5s, or less where the interval is short; no retries."
    )]
    Add(AddArgs),
    /// The checks that there are.
    #[command(
        after_help = "Examples:\n  bulkhead check list --tenant acme-corp\n  bulkhead check list --tenant acme-corp --json"
    )]
    List {
        #[command(flatten)]
        filter: Filter,
    },
    /// One check: how it is defined, and who runs it where.
    #[command(after_help = "Example:\n  bulkhead check show web --tenant acme-corp")]
    Show {
        check: CheckName,
        #[command(flatten)]
        scope: Scope,
    },
    /// Change some of a check and leave the rest; an option without a value goes back to its default.
    #[command(
        after_help = "Examples:\n  bulkhead check edit web --tenant acme-corp --interval 10s\n  bulkhead check edit web --tenant acme-corp --site oslo --site lima --option expect_status="
    )]
    Edit(AddArgs),
    /// Remove a check; what it has measured stays.
    #[command(after_help = "Example:\n  bulkhead check remove web --tenant acme-corp")]
    Remove(NamedArgs),
    /// Stop running a check and keep it.
    #[command(after_help = "Example:\n  bulkhead check pause web --tenant acme-corp")]
    Pause(NamedArgs),
    /// Go on with a check that was paused.
    #[command(after_help = "Example:\n  bulkhead check resume web --tenant acme-corp")]
    Resume(NamedArgs),
    /// Bring a tenant's checks to what a file says, all of it or nothing.
    #[command(
        after_help = "Examples:\n  bulkhead check apply --tenant acme-corp -f checks.yaml --dry-run\n  bulkhead check apply --tenant acme-corp -f checks.yaml --prune\n  cat checks.yaml | bulkhead check apply --tenant acme-corp -f -\n\nThe file:\n  checks:\n    - name: web\n      type: http\n      target: https://example.com/\n      interval: 30s\n      timeout: 5s\n      retries: 1\n      sites: [oslo, lima]\n      expect_status: [200, 204]\n    - name: ssh\n      type: tcp\n      target: 10.0.0.5:22\n      interval: 1m\n      labels: {zone: dmz}\n      vantages: 2"
    )]
    Apply(ApplyArgs),
    /// Run a check once, now, at each of its vantages, and show what was measured. It is not stored as a result.
    #[command(
        after_help = "Examples:\n  bulkhead check run web --tenant acme-corp\n  bulkhead check run web --tenant acme-corp --site oslo --deadline 30s --json\n  bulkhead check run --tenant acme-corp --type tcp --target 10.0.0.5:22 --site oslo\n\nEnds with 2 when it did not go well everywhere."
    )]
    Run(RunArgs),
    /// Slots without a measurement, and why: what a check has missed, what nobody could run, what is still to come.
    #[command(
        after_help = "Examples:\n  bulkhead check gaps --tenant acme-corp --hours 2\n  bulkhead check gaps web --tenant acme-corp --site oslo --json\n\nA slot ends as one result or as missed with a reason. One that has neither is silent: then this ends with 2."
    )]
    Gaps(GapsArgs),
    /// One check by time and site: how its slots ended, and the least, median, 90th and 99th percentile and most of its latency.
    #[command(
        after_help = "Examples:\n  bulkhead check history web --tenant acme-corp\n  bulkhead check history web --tenant acme-corp --site oslo --hours 2 --bucket 1m\n  bulkhead check history web --tenant acme-corp --since 2026-03-01T00:00:00Z --until 2026-03-08T00:00:00Z --json\n\nTimes are UTC. The window is widened to whole buckets; one without results is not shown. The newest 1000 rows are: what is\nolder is asked for with --until and the oldest one's beginning."
    )]
    History(HistoryArgs),
    /// How checks did over a time: of the slots that are known, how many were up; down time and outages.
    #[command(
        after_help = "Examples:\n  bulkhead check uptime --tenant acme-corp\n  bulkhead check uptime web --tenant acme-corp --hours 720\n  bulkhead check uptime --tenant acme-corp --site oslo --json\n\nSlots are counted: ok is up and fail is down; error and missed are neither, and lower the coverage."
    )]
    Uptime(UptimeArgs),
}

/// A definition, as far as it is said.
#[derive(Debug, Args)]
struct DefinitionArgs {
    /// What is run: icmp, tcp, http or dns.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Such as https://example.com/, 10.0.0.5:22, 10.0.0.5 or example.com, as the type wants it.
    #[arg(long)]
    target: Option<String>,
    /// From one run to the next, such as 30s or 5m.
    #[arg(long)]
    interval: Option<String>,
    /// How long a run may take, such as 3s or 500ms.
    #[arg(long)]
    timeout: Option<String>,
    /// How often a run that fails is tried again within its slot.
    #[arg(long)]
    retries: Option<String>,
    /// Run it at this site. May be repeated.
    #[arg(long = "site", value_name = "SITE", conflicts_with = "labels")]
    sites: Vec<String>,
    /// Run it where pollers have this label. May be repeated: all of them.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// At how many sites at most.
    #[arg(long)]
    vantages: Option<String>,
    /// An option of its type, such as expect_status=[200] or record=MX. May be repeated.
    #[arg(long = "option", value_name = "NAME=VALUE", value_parser = pair)]
    options: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Such as web; unique in its tenant.
    check: String,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    definition: DefinitionArgs,
    /// Do not run it yet.
    #[arg(long)]
    paused: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct NamedArgs {
    /// Such as web.
    check: String,
    #[command(flatten)]
    scope: Scope,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// The file with the checks; - is standard input.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    scope: Scope,
    /// Remove the checks that the file does not name.
    #[arg(long)]
    prune: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// A check that is there; without one, what --type and --target say is run.
    check: Option<CheckName>,
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    definition: DefinitionArgs,
    /// How long to wait for all vantages, such as 30s; 60s at most.
    #[arg(long, value_name = "LENGTH", default_value = "20s", value_parser = deadline)]
    deadline: Duration,
    /// Only say what would be run.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let shown: String = text.chars().take(60).collect();
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| format!("{shown:?} is not NAME=VALUE"))
}

fn deadline(text: &str) -> Result<Duration, String> {
    let most = Duration::from_millis(RUN_DEADLINE_MS_MOST);
    let length = humantime::parse_duration(text).ok().filter(|length| !length.is_zero() && *length <= most);
    length.ok_or_else(|| "write a length of up to 60s, such as 20s".to_owned())
}

/// A value as JSON, or as text where it is none.
fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

/// A number where it is one: whoever judges it says what is wrong with anything else.
fn number_of(text: &str) -> Value {
    text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from)
}

impl DefinitionArgs {
    /// What was said, as a file would say it. An option without a value is `null`.
    fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let texts = [("type", &self.kind), ("target", &self.target), ("timeout", &self.timeout)];
        fields.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text.as_ref()?)))));
        let numbers = [("interval", &self.interval), ("retries", &self.retries), ("vantages", &self.vantages)];
        fields
            .extend(numbers.into_iter().filter_map(|(name, text)| Some((name.to_owned(), number_of(text.as_ref()?)))));
        if !self.sites.is_empty() {
            fields.insert("sites".to_owned(), json!(self.sites));
        }
        if !self.labels.is_empty() {
            let labels: BTreeMap<_, _> = self.labels.iter().cloned().collect();
            fields.insert("labels".to_owned(), json!(labels));
        }
        for (name, text) in &self.options {
            fields.insert(name.clone(), if text.is_empty() { Value::Null } else { value_of(text) });
        }
        fields
    }
}

impl AddArgs {
    fn fields(&self) -> Map<String, Value> {
        let mut fields = self.definition.fields();
        if self.paused {
            fields.insert("paused".to_owned(), true.into());
        }
        fields
    }
}

/// `checks.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChecksFile {
    /// As the file has them: a field that is there twice is an error, and not the last of both.
    checks: Vec<serde_yaml_ng::Value>,
}

fn read_file(path: &Path) -> Result<Vec<Value>, Failure> {
    let shown = path.display().to_string();
    let failed = |error| Failure::invalid(&format!("read {shown}"), error);
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MOST).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MOST).read_to_string(&mut text))
    };
    read.map_err(failed)?;
    let file: ChecksFile = serde_yaml_ng::from_str(&text)
        .map_err(|error| Failure::invalid(&format!("{shown} is no list of checks (checks: [..])"), error))?;
    let checks = file.checks.into_iter().map(serde_json::to_value).collect::<Result<_, _>>();
    checks.map_err(|error| Failure::invalid(&format!("{shown} is no list of checks (checks: [..])"), error))
}

/// What a change is called where something would only be done.
fn told(rows: &[ChangedCheck], is_rehearsal: bool, is_json: bool) -> Result<(), Failure> {
    if is_rehearsal && !is_json {
        say(false, "nothing is changed; this would be:", &())?;
    }
    print_rows_or("nothing to change", rows, is_json, now_ms())
}

async fn change(
    home: &Path,
    scope: &Scope,
    (changes, removes_others): (Vec<CheckChange>, bool),
    is_rehearsal: bool,
    is_json: bool,
) -> Result<(), Failure> {
    let session = Session::open(home, scope).await?;
    let asked =
        ChangeChecks { tenant: scope.tenant.as_ref().map(ToString::to_string), changes, removes_others, is_rehearsal };
    let bytes = serde_json::to_vec(&asked).map_or(0, |bytes| bytes.len());
    if bytes > REQUEST_BYTES_MOST {
        let count = asked.changes.len();
        let problem = format!(
            "{count} checks take {bytes} bytes, and one request holds {REQUEST_BYTES_MOST}: apply them in parts, without --prune"
        );
        return Err(Failure::with(INVALID, problem));
    }
    let subject = TenantSubject::Dispatch { user: session.user.clone(), verb: DispatchVerb::ChangeChecks };
    let rows: Vec<ChangedCheck> = ask(&session.bus, &subject, &asked, ANSWER_LIMIT).await?;
    told(&rows, is_rehearsal, is_json)
}

fn with_name(name: &str, mut fields: Map<String, Value>) -> Value {
    fields.insert("name".to_owned(), name.into());
    // Of a new check there is nothing to take back.
    fields.retain(|_, value| !value.is_null());
    Value::Object(fields)
}

async fn show_check(home: &Path, check: CheckName, scope: &Scope, is_json: bool) -> Result<(), Failure> {
    let session = Session::open(home, scope).await?;
    let asked = Query { check: Some(check.clone()), ..about(scope) };
    let checks: Vec<CheckRow> = session.ask(CoreVerb::ListChecks, &asked).await?;
    let assigned: Vec<AssignmentRow> = session.ask(CoreVerb::ListAssignments, &asked).await?;
    if checks.is_empty() {
        return Err(Failure::refused_change(format!(
            "there is no check {check}: `bulkhead check list` shows those that there are"
        )));
    }
    if is_json {
        let value: Vec<Value> = checks
            .iter()
            .map(|row| {
                let own: Vec<&AssignmentRow> = assigned.iter().filter(|one| one.tenant == row.tenant).collect();
                json!({"check": row, "assignments": own})
            })
            .collect();
        return value.iter().try_for_each(|one| say(true, "", one));
    }
    for row in &checks {
        let text = serde_yaml_ng::to_string(&row.definition).map_err(Failure::failed)?;
        let head = format!("{} of {}, revision {}", row.definition.probe.name, row.tenant, row.revision);
        say(false, &format!("{head}\n{}", text.trim_end()), &())?;
    }
    say(false, "", &())?;
    print_rows_or("nobody runs it", &assigned, false, now_ms())
}

async fn run_now(home: &Path, args: RunArgs, is_json: bool) -> Result<(), Failure> {
    let RunArgs { check, scope, definition, deadline, dry_run } = args;
    let sites = definition.sites.iter().map(|site| site.parse::<SiteName>());
    let sites: Vec<SiteName> = sites.collect::<Result<_, _>>().map_err(|error| Failure::invalid("--site", error))?;
    let written = check.is_none().then(|| {
        let mut fields = definition.fields();
        fields.entry("interval").or_insert_with(|| "1m".into());
        with_name("run", fields)
    });
    let asked = RunCheck {
        tenant: scope.tenant.as_ref().map(ToString::to_string),
        check,
        definition: written,
        sites,
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(RUN_DEADLINE_MS_MOST),
    };
    if dry_run {
        return say(is_json, "nothing is run; this would be asked of poller-dispatch:", &asked)
            .and_then(|()| if is_json { Ok(()) } else { say(true, "", &asked) });
    }
    let session = Session::open(home, &scope).await?;
    let subject = TenantSubject::Dispatch { user: session.user.clone(), verb: DispatchVerb::RunCheck };
    let rows: Vec<RunRow> = ask(&session.bus, &subject, &asked, deadline + RUN_SLACK).await?;
    print_rows(&rows, is_json, now_ms())?;
    let bad = rows.iter().filter(|row| row.outcome != Outcome::Ok).count();
    if bad == 0 { Ok(()) } else { Err(Failure::silent(WARNINGS)) }
}

pub(super) async fn run(home: &Path, command: CheckCommand, is_json: bool) -> Result<(), Failure> {
    let named = async |args: NamedArgs, made: fn(String) -> CheckChange| {
        let NamedArgs { check, scope, dry_run } = args;
        change(home, &scope, (vec![made(check)], false), dry_run, is_json).await
    };
    match command {
        CheckCommand::Add(args) => {
            let made = CheckChange::Add { definition: with_name(&args.check, args.fields()) };
            change(home, &args.scope, (vec![made], false), args.dry_run, is_json).await
        }
        CheckCommand::Edit(args) => {
            let fields: BTreeMap<String, Value> = args.fields().into_iter().collect();
            let made = CheckChange::Edit { name: args.check, fields };
            change(home, &args.scope, (vec![made], false), args.dry_run, is_json).await
        }
        CheckCommand::Remove(args) => named(args, |name| CheckChange::Remove { name }).await,
        CheckCommand::Pause(args) => named(args, |name| CheckChange::Pause { name }).await,
        CheckCommand::Resume(args) => named(args, |name| CheckChange::Resume { name }).await,
        CheckCommand::Apply(args) => {
            let puts = read_file(&args.file)?.into_iter().map(|definition| CheckChange::Put { definition });
            change(home, &args.scope, (puts.collect(), args.prune), args.dry_run, is_json).await
        }
        CheckCommand::List { filter } => {
            let asked = Query { site: filter.site.clone(), check: filter.check.clone(), ..about(&filter.scope) };
            show::<CheckRow>(home, &filter.scope, (CoreVerb::ListChecks, &asked), is_json).await
        }
        CheckCommand::Show { check, scope } => show_check(home, check, &scope, is_json).await,
        CheckCommand::Run(args) => run_now(home, args, is_json).await,
        CheckCommand::Gaps(args) => show_gaps(home, args, is_json).await,
        CheckCommand::History(args) => show_history(home, args, is_json).await,
        CheckCommand::Uptime(args) => show_uptime(home, args, is_json).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &[&str]) -> DefinitionArgs {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            definition: DefinitionArgs,
        }
        <Line as clap::Parser>::try_parse_from([&["x"], line].concat()).unwrap().definition
    }

    #[test]
    fn what_is_said_on_the_line_is_what_a_file_would_say() {
        let line =
            ["--type", "http", "--target", "https://h/", "--interval", "30s", "--retries", "1", "--site", "oslo"];
        let more = ["--option", "expect_status=[200]", "--option", "method=HEAD", "--option", "tls_warn_days="];
        let fields = Value::Object(args(&[&line[..], &more[..]].concat()).fields());
        assert_eq!(
            fields,
            json!({"type": "http", "target": "https://h/", "interval": "30s", "retries": 1, "sites": ["oslo"],
                "expect_status": [200], "method": "HEAD", "tls_warn_days": null})
        );
        assert_eq!(with_name("web", fields.as_object().unwrap().clone()).get("tls_warn_days"), None);
        let fields = args(&["--label", "zone=dmz", "--label", "os=bsd", "--vantages", "many"]).fields();
        assert_eq!(Value::Object(fields), json!({"labels": {"zone": "dmz", "os": "bsd"}, "vantages": "many"}));
    }

    #[test]
    fn a_file_is_a_list_of_checks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checks.yaml");
        std::fs::write(&path, "checks:\n  - {name: web, type: http}\n  - 3\n").unwrap();
        assert_eq!(read_file(&path).unwrap(), [json!({"name": "web", "type": "http"}), json!(3)]);
        for bad in ["", "checks: 3", "check: []", "\t"] {
            std::fs::write(&path, bad).unwrap();
            assert!(read_file(&path).unwrap_err().message().contains("is no list of checks"), "{bad:?}");
        }
        assert!(read_file(Path::new("/nowhere/checks.yaml")).unwrap_err().message().contains("/nowhere/checks.yaml"));
    }

    #[test]
    fn lengths_and_pairs_have_a_rule() {
        assert_eq!(deadline("20s"), Ok(Duration::from_secs(20)));
        for bad in ["", "0s", "61s", "soon"] {
            assert!(deadline(bad).is_err(), "{bad}");
        }
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("=b").is_err() && pair("a").is_err());
    }
}
