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

/// One line for an area's skipped looks, which have their cause elsewhere.
fn skipped_together(skipped: &[&Finding]) -> String {
    let mut names: Vec<&str> = skipped.iter().map(|finding| finding.look.name).collect();
    names.sort_unstable();
    names.dedup();
    format!("  skip {}: what they need is away (--verbose says why)\n", names.join(", "))
}

fn human(report: &Report, is_verbose: bool) -> String {
    let mut text = String::new();
    for area in Area::ALL {
        let found = report.of(area);
        if found.is_empty() {
            continue;
        }
        text.push_str(&format!("{area}: {}\n", summed(found.iter().copied())));
        let (skipped, looked): (Vec<&Finding>, Vec<&Finding>) =
            found.into_iter().partition(|finding| finding.level == Level::Skip);
        text.extend(looked.into_iter().filter(|finding| is_verbose || finding.level != Level::Ok).map(entry));
        match skipped.as_slice() {
            [] => {}
            [_, _, ..] if !is_verbose => text.push_str(&skipped_together(&skipped)),
            each => text.extend(each.iter().copied().map(entry)),
        }
    }
    let all = &report.findings;
    text.push_str(&format!("\n{} looks: {}\n", all.len(), summed(all.iter())));
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::doctor::Look;

    static SPACE: Look = Look { area: Area::Disks, name: "disk-space", rule: "some is free", meaning: "streams stop" };
    static SECRET: Look =
        Look { area: Area::Permissions, name: "secret-mode", rule: "secrets are 600", meaning: "others can read it" };

    fn finding(look: &'static Look, level: Level, subject: &str, found: &str, advice: &str) -> Finding {
        let [subject, found, advice] = [subject, found, advice].map(str::to_owned);
        Finding { look, subject, level, found, advice }
    }

    fn report() -> Report {
        let findings = vec![
            finding(&SECRET, Level::Ok, "secrets", "all 9 are right", ""),
            finding(&SECRET, Level::Fail, "a.key", "mode 644", "chmod 600 a.key"),
            finding(&SPACE, Level::Ok, "hub", "80 % free", ""),
            finding(&SPACE, Level::Warn, "state", "9 % free", "make room"),
            finding(&SPACE, Level::Skip, "leaf", "it cannot be asked", ""),
        ];
        Report { findings }
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do_and_the_last_line_adds_up() {
        expect![[r#"
            disks: 1 ok, 1 warning, 1 not looked at
              warn disk-space              state: 9 % free
                   rule   some is free
                   means  streams stop
                   do     make room
              skip disk-space              leaf: it cannot be asked
            permissions: 1 ok, 1 failure
              fail secret-mode             a.key: mode 644
                   rule   secrets are 600
                   means  others can read it
                   do     chmod 600 a.key

            5 looks: 2 ok, 1 warning, 1 failure, 1 not looked at
        "#]]
        .assert_eq(&human(&report(), false));
        let mut more = report();
        more.findings.push(finding(&SPACE, Level::Skip, "other leaf", "it cannot be asked", ""));
        assert!(human(&more, false).contains("  skip disk-space: what they need is away (--verbose says why)\n"));
        assert!(human(&more, true).contains("other leaf: it cannot be asked\n"));
        let all = human(&report(), true);
        assert!(all.contains("  ok   disk-space              hub: 80 % free\n"), "{all}");
    }

    #[test]
    fn the_code_is_that_of_the_worst() {
        let mut report = report();
        assert_eq!(code(&report), FAILURES);
        report.findings.retain(|finding| finding.level != Level::Fail);
        assert_eq!(code(&report), WARNINGS);
        report.findings.retain(|finding| finding.level != Level::Warn);
        assert_eq!(code(&report), DONE, "what is skipped has its cause elsewhere");
        assert_eq!(code(&Report::default()), DONE);
    }
}
