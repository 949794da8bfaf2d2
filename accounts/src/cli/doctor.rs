//! `bulkhead doctor`: what was found, grouped by area, with what to do; a line that adds up, and the exit code.

use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;

use super::DoctorArgs;
use super::exit::{DONE, FAILURES, Failure, WARNINGS};
use super::progress::Progress;
use super::show::{json_lines, write_lines};
use super::up::programs;
use crate::doctor::{Area, Finding, Level, Options, Report, examine};

/// What takes longer shows what it does.
const PATIENCE: Duration = Duration::from_secs(1);
const LEVELS: [Level; 4] = [Level::Ok, Level::Warn, Level::Fail, Level::Skip];

pub(super) async fn run(home: PathBuf, args: &DoctorArgs, is_json: bool) -> Result<(), Failure> {
    let areas = Area::ALL.into_iter().filter(|area| args.areas.is_empty() || args.areas.contains(area)).collect();
    let options = Options { home, areas, programs: programs()?, now: OffsetDateTime::now_utc() };
    let progress = Progress::quiet();
    let announce = |step: &str| progress.say(step);
    let mut examined = std::pin::pin!(examine(&options, &announce));
    let report = match tokio::time::timeout(PATIENCE, &mut examined).await {
        Ok(report) => report,
        Err(_) => {
            progress.speak();
            examined.await
        }
    };
    progress.clear();
    let report = report.map_err(|error| Failure::invalid("nothing to look at", error))?;
    let text = if is_json { json_lines(&report.findings)? } else { human(&report, args.verbose) };
    write_lines(&text)?;
    match code(&report) {
        DONE => Ok(()),
        code => Err(Failure::silent(code)),
    }
}

fn code(report: &Report) -> u8 {
    match report.worst() {
        Level::Ok | Level::Skip => DONE,
        Level::Warn => WARNINGS,
        Level::Fail => FAILURES,
    }
}

fn word(level: Level, count: usize) -> String {
    let word = match (level, count) {
        (Level::Ok, _) => "ok",
        (Level::Warn, 1) => "warning",
        (Level::Warn, _) => "warnings",
        (Level::Fail, 1) => "failure",
        (Level::Fail, _) => "failures",
        (Level::Skip, _) => "not looked at",
    };
    format!("{count} {word}")
}

/// `3 ok, 1 warning`.
fn summed<'a>(findings: impl Iterator<Item = &'a Finding> + Clone) -> String {
    let count = |level: Level| findings.clone().filter(|finding| finding.level == level).count();
    let counts = LEVELS.map(|level| (level, count(level)));
    let shown: Vec<String> = counts.into_iter().filter(|(_, count)| *count > 0).map(|(l, c)| word(l, c)).collect();
    shown.join(", ")
}

fn entry(finding: &Finding) -> String {
    let look = finding.look;
    let head = format!("  {:<5}{:<23} {}: {}\n", finding.level.as_str(), look.name, finding.subject, finding.found);
    match finding.level {
        Level::Ok | Level::Skip => head,
        Level::Warn | Level::Fail => {
            format!(
                "{head}       rule   {}\n       means  {}\n       do     {}\n",
                look.rule, look.meaning, finding.advice
            )
        }
    }
}

fn human(report: &Report, is_verbose: bool) -> String {
    let mut text = String::new();
    for area in Area::ALL {
        let found = report.of(area);
        if found.is_empty() {
            continue;
        }
        text.push_str(&format!("{area}: {}\n", summed(found.iter().copied())));
        let shown = found.into_iter().filter(|finding| is_verbose || finding.level != Level::Ok);
        text.extend(shown.map(entry));
    }
    let all = &report.findings;
    text.push_str(&format!("\n{} looks: {}\n", all.len(), summed(all.iter())));
    text
}
