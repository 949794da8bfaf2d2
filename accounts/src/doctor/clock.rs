//! Clocks: this machine against the hub's servers, the database and the pollers, and whether anything sets it right.

use std::fs;
use std::path::Path;

use bulkhead_runtime::now_ms;
use bulkhead_store::Inspection;
use bulkhead_store::inspection::PollerClock;

use super::finding::{Area, Finding, Level, Look};
use super::reach::{Sources, limited};
use super::servers::{Hub, SaidTime};

static HUB: Look = Look {
    area: Area::Clock,
    name: "clock-hub",
    rule: "a hub server's clock differs from this machine's by at most 2 s; more than 60 s is a failure",
    meaning: "certificates and credentials count as not yet or no longer good, and ages of messages are wrong",
};
static DATABASE: Look = Look {
    area: Area::Clock,
    name: "clock-database",
    rule: "the database's clock differs from this machine's by at most 2 s; more than 60 s is a failure",
    meaning: "results are stored with a wrong time of arrival, and in time for the wrong day",
};
static POLLER: Look = Look {
    area: Area::Clock,
    name: "clock-poller",
    rule: "no result of a poller is more than 2 s ahead of its arrival; more than 60 s is a failure",
    meaning: "its results lie in the future; more than 5 minutes ahead they become dead letters",
};
static SYNCHRONISED: Look = Look {
    area: Area::Clock,
    name: "clock-synchronised",
    rule: "something keeps this machine's clock right",
    meaning: "it drifts until certificates, credentials and results no longer fit together",
};

pub(super) const LOOKS: &[&Look] = &[&HUB, &DATABASE, &POLLER, &SYNCHRONISED];

const WARN_MS: i64 = 2_000;
const FAIL_MS: i64 = 60_000;
/// Programs that set clocks, as the kernel shortens their names.
const SYNCHRONISERS: [&str; 6] = ["chronyd", "ntpd", "openntpd", "systemd-timesyn", "ptp4l", "phc2sys"];

fn level_of(ahead_ms: i64) -> Level {
    match ahead_ms.abs() {
        0..=WARN_MS => Level::Ok,
        ms if ms <= FAIL_MS => Level::Warn,
        _ => Level::Fail,
    }
}

fn judge(look: &'static Look, subject: &str, ahead_ms: i64, than: &str) -> Finding {
    let seconds = format!("{}.{} s", ahead_ms.abs() / 1_000, ahead_ms.abs() % 1_000 / 100);
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let found = if ahead_ms == 0 { format!("as {than}") } else { format!("{seconds} {side} {than}") };
    let advice = "find out which of the two is wrong (`date -u` on both), and set up chrony or systemd-timesyncd there";
    look.at(level_of(ahead_ms), subject, found, advice)
}

fn judge_poller(tenant: &str, clock: &PollerClock) -> Finding {
    let subject = format!("{tenant}/{}/{}", clock.site, clock.poller);
    // The cast saturates, and a result that is years ahead is ahead all the same.
    let ahead_ms = (clock.ahead_s * 1_000.0) as i64;
    // A result that arrived late says nothing about a clock.
    judge(&POLLER, &subject, ahead_ms.max(0), "the database's when its newest results came")
}

/// What keeps the clock right, if that can be seen.
#[derive(Debug, PartialEq, Eq)]
enum Synchroniser {
    Runs(String),
    /// It runs and has not reached a time server yet.
    Waits,
    Unknown,
}

fn synchroniser(proc: &Path, run: &Path) -> Synchroniser {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    let mut running = names.filter(|name| SYNCHRONISERS.contains(&name.trim()));
    match running.next() {
        None => Synchroniser::Unknown,
        Some(name) if name.trim() == "systemd-timesyn" && !run.join("systemd/timesync/synchronized").exists() => {
            Synchroniser::Waits
        }
        Some(name) => Synchroniser::Runs(name.trim().to_owned()),
    }
}

fn judge_synchroniser(found: &Synchroniser) -> Finding {
    match found {
        Synchroniser::Runs(name) => SYNCHRONISED.ok("this machine", format!("{name} runs")),
        Synchroniser::Waits => {
            let found = "systemd-timesyncd runs and has not reached a time server";
            SYNCHRONISED.warn("this machine", found, "see `timedatectl timesync-status`")
        }
        // In a container or a virtual machine it is the host's business.
        Synchroniser::Unknown => SYNCHRONISED.skip("this machine", "unknown: no program for it is seen here"),
    }
}

async fn database_finding(database: &Inspection) -> Finding {
    let asked_ms = now_ms();
    match limited(database.clock_ms()).await {
        Err(why) => DATABASE.warn("database", why, "look again; then read logs/postgres.log"),
        Ok(said_ms) => {
            let time = SaidTime { asked_ms, said_ms, received_ms: now_ms() };
            judge(&DATABASE, "database", time.ahead_ms(), "this machine")
        }
    }
}

async fn poller_findings(database: &Inspection) -> Result<Vec<Finding>, String> {
    let mut findings = Vec::new();
    for (_, tenant) in limited(database.tenants()).await?.tenants {
        let clocks = limited(database.poller_clocks(&tenant)).await?;
        findings.extend(clocks.iter().map(|clock| judge_poller(tenant.slug.as_str(), clock)));
    }
    Ok(findings)
}

pub(super) async fn look(sources: &Sources, hub: &Hub) -> Vec<Finding> {
    let times = hub.settings.iter().filter_map(|said| said.time.map(|time| (said.server.as_str(), time)));
    let mut findings: Vec<Finding> =
        times.map(|(server, time)| judge(&HUB, server, time.ahead_ms(), "this machine")).collect();
    if findings.is_empty() {
        findings.push(HUB.skip("hub", "the hub cannot be asked"));
    }
    match sources.database.get() {
        None => findings.push(DATABASE.skip("database", "the database cannot be asked")),
        Some(database) => {
            findings.push(database_finding(database).await);
            findings.extend(
                poller_findings(database)
                    .await
                    .unwrap_or_else(|why| vec![POLLER.warn("pollers", why, "look again; then read logs/postgres.log")]),
            );
        }
    }
    findings.push(judge_synchroniser(&synchroniser(Path::new("/proc"), Path::new("/run"))));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seconds_are_fine_and_a_minute_is_too_much() {
        for (ahead_ms, level, found) in [
            (0, Level::Ok, "as this machine"),
            (2_000, Level::Ok, "2.0 s ahead of this machine"),
            (2_100, Level::Warn, "2.1 s ahead of this machine"),
            (-60_000, Level::Warn, "60.0 s behind this machine"),
            (60_001, Level::Fail, "60.0 s ahead of this machine"),
            (-3_600_000, Level::Fail, "3600.0 s behind this machine"),
        ] {
            let finding = judge(&HUB, "hub-1", ahead_ms, "this machine");
            assert_eq!((finding.level, finding.found.as_str()), (level, found));
            assert_eq!(finding.advice.is_empty(), level == Level::Ok);
        }
    }

    #[test]
    fn a_poller_is_judged_by_results_from_the_future_only() {
        let judge =
            |ahead_s| judge_poller("acme-corp", &PollerClock { site: "oslo".into(), poller: "p1".into(), ahead_s });
        assert_eq!(judge(-4_000.0).level, Level::Ok);
        assert_eq!(judge(1.5).level, Level::Ok);
        assert_eq!(judge(7.0).level, Level::Warn);
        assert_eq!(judge(290.0).level, Level::Fail);
        assert_eq!(judge(290.0).subject, "acme-corp/oslo/p1");
    }

    #[test]
    fn what_sets_the_clock_is_seen_by_its_process() {
        let (proc, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let process = |pid: &str, name: &str| {
            fs::create_dir_all(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("comm"), format!("{name}\n")).unwrap();
        };
        let look = || synchroniser(proc.path(), run.path());
        process("1", "init");
        assert_eq!(look(), Synchroniser::Unknown);
        assert_eq!(judge_synchroniser(&look()).level, Level::Skip);
        process("7", "systemd-timesyn");
        assert_eq!(judge_synchroniser(&look()).level, Level::Warn);
        fs::create_dir_all(run.path().join("systemd/timesync")).unwrap();
        fs::write(run.path().join("systemd/timesync/synchronized"), "").unwrap();
        assert_eq!(judge_synchroniser(&look()).level, Level::Ok);
        process("7", "chronyd");
        assert_eq!(look(), Synchroniser::Runs("chronyd".to_owned()));
    }
}
