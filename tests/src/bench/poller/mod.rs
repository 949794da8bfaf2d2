//! What a check costs: our poller beside blackbox_exporter and cloudprober, in one run, on the same targets at the same rate.
//!
//! CPU is that of the process that checks and of nobody else; a figure is only given when the rate was reached and the checks
//! were well.

mod blackbox;
mod cloudprober;
mod ours;
mod page;
mod spread;
mod target;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_testkit::{GoTool, go_tool};

use self::blackbox::Blackbox;
use self::cloudprober::Cloudprober;
use self::ours::Ours;
pub use self::page::render_poller;
pub use self::spread::Spread;
use self::spread::measure_spread;
use self::target::Target;
use super::cpu::{Machine, Spent, Used, difference, used};

/// cloudprober begins with its targets a millisecond after one another, and shows its counts every ten seconds.
const WARM_UP: Duration = Duration::from_secs(21);
const INTERVAL_S: u64 = 1;
const TIMEOUT_MS: u64 = 800;
/// Of what was wanted.
const REACHED_LEAST: f64 = 0.99;
const FAILED_MOST: f64 = 0.01;
/// Of the checks that the target has seen; counts are not taken at the same moment as the target's.
const COUNTED_LEAST: f64 = 0.95;

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum ProbeKind {
    Tcp,
    Http,
    Icmp,
}

impl ProbeKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Icmp => "icmp",
        }
    }
}

/// Who checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prober {
    Ours,
    Blackbox,
    Cloudprober,
}

impl Prober {
    const ALL: [Self; 3] = [Self::Ours, Self::Blackbox, Self::Cloudprober];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "bulkhead-poller",
            Self::Blackbox => "blackbox_exporter",
            Self::Cloudprober => "cloudprober",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct PollerPlan {
    pub kinds: Vec<ProbeKind>,
    /// How many checks of one second, one figure each.
    pub checks: Vec<usize>,
    pub lasts: Duration,
    /// Checks of ten seconds whose starts are spread; none are measured when it is 0.
    pub spread_checks: usize,
}

/// One program at one rate.
#[derive(Debug, Clone)]
pub struct PollerCell {
    pub kind: ProbeKind,
    pub prober: Prober,
    pub checks: usize,
    /// `Err` says why there is no figure.
    pub figures: Result<Figures, String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub per_second: f64,
    pub failed_share: f64,
    pub per_cpu_second: f64,
    pub resident_bytes: u64,
    /// CPU of our leaf for a check, beside the poller's own.
    pub leaf_us: Option<f64>,
    pub idle_share: f64,
}

#[derive(Debug, Clone)]
pub struct PollerMeasured {
    pub plan: PollerPlan,
    pub cells: Vec<PollerCell>,
    pub spread: Option<Result<Spread, String>>,
}

/// What somebody is to check.
struct Work<'a> {
    kind: ProbeKind,
    /// Checks are numbered from here.
    first: usize,
    checks: usize,
    interval_s: u64,
    timeout_ms: u64,
    target: &'a Target,
}

/// Checks since the start, by what a program says itself.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    ok: u64,
    failed: u64,
}

enum Running {
    Ours(Ours),
    Blackbox(Blackbox),
    Cloudprober(Cloudprober),
}

impl Running {
    fn parts(&self) -> Vec<(&'static str, u32)> {
        match self {
            Self::Ours(ours) => vec![("prober", ours.pid()), ("leaf", ours.leaf_pid())],
            Self::Blackbox(blackbox) => vec![("prober", blackbox.pid())],
            Self::Cloudprober(cloudprober) => vec![("prober", cloudprober.pid())],
        }
    }

    async fn counts(&self) -> anyhow::Result<Counts> {
        match self {
            Self::Ours(ours) => ours.counts().await,
            Self::Blackbox(blackbox) => Ok(blackbox.counts()),
            Self::Cloudprober(cloudprober) => cloudprober.counts().await,
        }
    }

    async fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Ours(ours) => ours.stop().await,
            Self::Blackbox(blackbox) => blackbox.stop().await,
            Self::Cloudprober(cloudprober) => cloudprober.stop().await,
        }
    }
}

/// Where the others are, or why they are not.
struct Others {
    blackbox: Result<PathBuf, String>,
    cloudprober: Result<PathBuf, String>,
}

fn build(tool: GoTool, name: &str, say: &dyn Fn(&str)) -> Result<PathBuf, String> {
    say(&format!("building {name} from its Go module"));
    let missing = match go_tool(tool) {
        Ok(Some(program)) => return Ok(program),
        Ok(None) => "there is no Go here".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    say(&format!("NOT COMPARED WITH {name}: it could not be built: {missing}"));
    Err(format!("it could not be built: {missing}"))
}

/// What was seen from one moment to another.
struct Window {
    lasted: Duration,
    seen: u64,
    counts: Counts,
    used: Used,
    resident_bytes: u64,
    spent: Spent,
}

pub(super) async fn pause(length: Duration) {
    let mut pace = tokio::time::interval(length);
    pace.tick().await;
    pace.tick().await;
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the state of a process")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the memory of a process")?;
    let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().context("the memory of a process")?;
    Ok(kilobytes * 1_024)
}

async fn watch(running: &Running, work: &Work<'_>, lasts: Duration) -> anyhow::Result<Window> {
    let parts = running.parts();
    pause(WARM_UP).await;
    let counts_before = running.counts().await.context("counts at the beginning")?;
    let (machine, began, seen) = (Machine::now(), Instant::now(), work.target.seen(work.kind)?);
    let used_before = used(&parts);
    pause(lasts).await;
    let (seen, lasted) = (work.target.seen(work.kind)? - seen, began.elapsed());
    let used_since = difference(&used_before, &used(&parts));
    let spent = machine.until(Machine::now());
    let resident_bytes = resident_bytes(parts[0].1)?;
    let counts = running.counts().await.context("counts at the end")?;
    let counts = Counts { ok: counts.ok - counts_before.ok, failed: counts.failed - counts_before.failed };
    Ok(Window { lasted, seen, counts, used: used_since, resident_bytes, spent })
}

/// No figure where the checks were not those that were wanted.
fn judge(window: &Window, checks_per_second: f64) -> Result<Figures, String> {
    let Window { lasted, seen, counts, used, resident_bytes, spent } = window;
    let per_second = *seen as f64 / lasted.as_secs_f64();
    let failed_share = counts.failed as f64 / (counts.ok + counts.failed).max(1) as f64;
    if failed_share > FAILED_MOST {
        return Err(format!("{:.1} % failed", 100.0 * failed_share));
    }
    if per_second < REACHED_LEAST * checks_per_second {
        return Err(format!("{per_second:.0} checks/s reached"));
    }
    if (counts.ok as f64) < COUNTED_LEAST * *seen as f64 {
        return Err(format!("{} counted of {seen} that the target saw", counts.ok));
    }
    let seconds = |part: &str| used.get(part).map(Duration::as_secs_f64);
    let cpu_seconds = seconds("prober").filter(|seconds| *seconds > 0.0).ok_or("no CPU time was seen")?;
    Ok(Figures {
        per_second,
        failed_share,
        per_cpu_second: *seen as f64 / cpu_seconds,
        resident_bytes: *resident_bytes,
        leaf_us: seconds("leaf").map(|seconds| 1e6 * seconds / (*seen).max(1) as f64),
        idle_share: spent.idle_share,
    })
}

async fn measure(prober: Prober, work: &Work<'_>, others: &Others, lasts: Duration) -> Result<Figures, String> {
    let started = async {
        Ok::<_, String>(match prober {
            Prober::Ours => Running::Ours(Ours::start(work).await.map_err(|error| format!("{error:#}"))?),
            Prober::Blackbox => {
                let program = others.blackbox.clone()?;
                Running::Blackbox(Blackbox::start(&program, work).await.map_err(|error| format!("{error:#}"))?)
            }
            Prober::Cloudprober => {
                let program = others.cloudprober.clone()?;
                Running::Cloudprober(Cloudprober::start(&program, work).await.map_err(|error| format!("{error:#}"))?)
            }
        })
    };
    let running = started.await?;
    let window = watch(&running, work, lasts).await;
    running.stop().await.map_err(|error| format!("{error:#}"))?;
    judge(&window.map_err(|error| format!("{error:#}"))?, work.checks as f64 / work.interval_s as f64)
}

/// # Errors
/// When there is no target to check; why somebody gives no figure is in its cell.
pub async fn run_poller(plan: PollerPlan, say: &dyn Fn(&str)) -> anyhow::Result<PollerMeasured> {
    let others = Others {
        blackbox: build(GoTool::BlackboxExporter, Prober::Blackbox.name(), say),
        cloudprober: build(GoTool::Cloudprober, Prober::Cloudprober.name(), say),
    };
    let target = Target::start()?;
    let mut cells = Vec::new();
    for kind in &plan.kinds {
        for checks in &plan.checks {
            let work = Work {
                kind: *kind,
                first: 0,
                checks: *checks,
                interval_s: INTERVAL_S,
                timeout_ms: TIMEOUT_MS,
                target: &target,
            };
            for prober in Prober::ALL {
                say(&format!("{}, {checks} checks/s: {}", kind.as_str(), prober.name()));
                let figures = measure(prober, &work, &others, plan.lasts).await;
                match &figures {
                    Ok(figures) => say(&format!("  {:.0} checks per CPU-second", figures.per_cpu_second)),
                    Err(why) => say(&format!("  NO FIGURE: {why}")),
                }
                cells.push(PollerCell { kind: *kind, prober, checks: *checks, figures });
            }
        }
    }
    let spread = match plan.spread_checks {
        0 => None,
        checks => {
            say(&format!("how {checks} checks of 10 s are spread"));
            let spread = measure_spread(checks, &target).await.map_err(|error| format!("{error:#}"));
            if let Err(why) = &spread {
                say(&format!("  NO FIGURE: {why}"));
            }
            Some(spread)
        }
    };
    target.stop().await?;
    Ok(PollerMeasured { plan, cells, spread })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(seen: u64, ok: u64, failed: u64) -> Window {
        Window {
            lasted: Duration::from_secs(10),
            seen,
            counts: Counts { ok, failed },
            used: [("prober", Duration::from_secs(2))].into(),
            resident_bytes: 0,
            spent: Spent { busy: Duration::ZERO, idle_share: 0.5, disk_share: 0.0 },
        }
    }

    #[test]
    fn only_checks_that_were_well_and_in_time_are_counted() {
        let found = judge(&window(10_000, 10_000, 100), 1_000.0).map(|figures| figures.per_cpu_second);
        assert_eq!(found, Ok(5_000.0));
        for (window, why) in [
            (window(10_000, 9_800, 200), "2.0 % failed"),
            (window(9_000, 9_000, 0), "900 checks/s reached"),
            (window(10_000, 9_000, 0), "9000 counted of 10000 that the target saw"),
        ] {
            assert_eq!(judge(&window, 1_000.0), Err(why.to_owned()));
        }
    }
}
