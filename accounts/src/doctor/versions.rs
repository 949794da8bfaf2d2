//! Versions: servers that are new enough and have no known hole, and programs of one release.

use std::collections::BTreeSet;
use std::path::Path;

use super::finding::{Area, Finding, Look};
use super::home::Home;
use super::processes::{Process, output_of, processes};
use super::reach::{Sources, limited};
use super::servers::Hub;
use crate::up::{NATS_SERVER_MIN, POSTGRES_MIN, Programs, Version};

/// The release that this program is of.
const OWN: &str = env!("CARGO_PKG_VERSION");

static NATS_SERVER: Look = Look {
    area: Area::Versions,
    name: "nats-server-version",
    rule: "every nats-server is 2.14.4 or newer",
    meaning: "tenants may reach each other's subjects, or one leaf can stop the hub for all",
};
static HUB_SERVERS: Look = Look {
    area: Area::Versions,
    name: "hub-versions-equal",
    rule: "all hub servers run one version of nats-server",
    meaning: "an upgrade has stopped half way: streams may not be able to move to every server",
};
static POSTGRES: Look = Look {
    area: Area::Versions,
    name: "postgres-version",
    rule: "PostgreSQL is 15 or newer, and of a minor release without a known hole in row security",
    meaning: "migrations fail, or row security can be sidestepped",
};
static PROGRAM: Look = Look {
    area: Area::Versions,
    name: "program-version",
    rule: "bulkhead, bulkhead-core, bulkhead-gatekeeper and bulkhead-poller are of one release",
    meaning: "the next start runs programs that were not tested together",
};
static RUNNING: Look = Look {
    area: Area::Versions,
    name: "running-program",
    rule: "what runs is the program that is installed, of this release",
    meaning: "an upgrade is installed but not in force",
};

pub(super) const LOOKS: &[&Look] = &[&NATS_SERVER, &HUB_SERVERS, &POSTGRES, &PROGRAM, &RUNNING];

/// Releases up to (not including) the second version that have a hole which matters here.
const NATS_HOLES: [(Version, Version, &str); 2] = [
    (Version(0, 0, 0), Version(2, 14, 0), "what a leaf publishes is not held to its permissions"),
    (Version(2, 14, 0), Version(2, 14, 4), "a leaf's forged answer to a consumer request stops the hub"),
];
const POSTGRES_HOLE: &str = "planner statistics of partitions show rows that row security hides (CVE-2025-8713)";
const POSTGRES_HOLES: [(Version, Version, &str); 3] = [
    (Version(15, 0, 0), Version(15, 14, 0), POSTGRES_HOLE),
    (Version(16, 0, 0), Version(16, 10, 0), POSTGRES_HOLE),
    (Version(17, 0, 0), Version(17, 6, 0), POSTGRES_HOLE),
];

fn hole(version: Version, holes: &[(Version, Version, &'static str)]) -> Option<&'static str> {
    holes.iter().find(|(from, before, _)| (*from..*before).contains(&version)).map(|(_, _, why)| *why)
}

fn with_reason(version: Version, why: Option<&str>) -> String {
    why.map_or_else(|| version.to_string(), |why| format!("{version}: {why}"))
}

fn judge_nats(server: &str, said: &str) -> Finding {
    let advice = format!("install nats-server {NATS_SERVER_MIN} or newer for {server} and start it again");
    match Version::in_text(said) {
        None => NATS_SERVER.warn(server, format!("it says {said:?}, which is no version"), advice),
        Some(version) if version < NATS_SERVER_MIN => {
            NATS_SERVER.fail(server, with_reason(version, hole(version, &NATS_HOLES)), advice)
        }
        Some(version) => NATS_SERVER.ok(server, version.to_string()),
    }
}

fn judge_equal(versions: &BTreeSet<&str>) -> Finding {
    let shown: Vec<&str> = versions.iter().copied().collect();
    let shown = shown.join(", ");
    if versions.len() <= 1 {
        return HUB_SERVERS.ok("hub", shown);
    }
    HUB_SERVERS.warn("hub", shown, "finish the upgrade: the same nats-server for each hub server, one after the other")
}

/// `number` is PostgreSQL's own, such as 150018 for 15.18.
fn judge_postgres(number: u32) -> Finding {
    let version = Version(number / 10_000, number % 10_000, 0);
    let shown = format!("{}.{}", version.0, version.1);
    if version < POSTGRES_MIN {
        let advice = format!("install PostgreSQL {} or newer and move the data with pg_upgrade", POSTGRES_MIN.0);
        return POSTGRES.fail("database", shown, advice);
    }
    match hole(version, &POSTGRES_HOLES) {
        None => POSTGRES.ok("database", shown),
        Some(why) => {
            let advice = format!("install the newest minor release of PostgreSQL {} and restart it", version.0);
            POSTGRES.warn("database", format!("{shown}: {why}"), advice)
        }
    }
}

/// `said` is what a program printed when asked for its version: `bulkhead-core 0.1.0`.
fn judge_program(look: &'static Look, subject: &str, said: Result<String, String>, advice: &str) -> Finding {
    match said {
        Ok(said) if said.split_whitespace().last() == Some(OWN) => look.ok(subject, OWN),
        Ok(said) => look.warn(subject, format!("it says {:?}, and this is {OWN}", said.trim()), advice),
        Err(why) => look.fail(subject, format!("it does not say its version: {why}"), advice),
    }
}

async fn program_findings(programs: &Programs) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, path) in [
        ("bulkhead-core", &programs.core),
        ("bulkhead-gatekeeper", &programs.gatekeeper),
        ("bulkhead-poller", &programs.poller),
        ("bulkhead-registry", &programs.registry),
        ("bulkhead-poller-dispatch", &programs.poller_dispatch),
    ] {
        let said = output_of(path, &["--version"]).await;
        let advice = format!("install {name} {OWN} as {}", path.display());
        findings.push(judge_program(&PROGRAM, name, said, &advice));
    }
    findings
}

async fn running_findings(home: &Home, programs: &Programs) -> Vec<Finding> {
    let mut findings = Vec::new();
    for process in processes(home) {
        let Some(program) = process.program() else { continue };
        let is_service =
            process.name == "core" || ["poller-", "registry-"].iter().any(|start| process.name.starts_with(start));
        let installed = match process.name.as_str() {
            "core" => &programs.core,
            name if name.starts_with("gatekeeper-") => &programs.gatekeeper,
            name if name.starts_with("registry-") => &programs.registry,
            // A poller's name says its tenant, site and own name besides.
            "poller-dispatch-1" | "poller-dispatch-2" => &programs.poller_dispatch,
            _ => &programs.poller,
        };
        let advice = home.restart_advice();
        if process.is_replaced() {
            findings.push(RUNNING.warn(&process.name, "its program was replaced since it started", advice));
        } else if is_service && !is_same(&process, installed) {
            let said = output_of(&program, &["--version"]).await;
            findings.push(judge_program(&RUNNING, &process.name, said, &advice));
        } else {
            findings.push(RUNNING.ok(&process.name, "as installed"));
        }
    }
    findings
}

fn is_same(process: &Process, installed: &Path) -> bool {
    let runs = process.program().and_then(|program| std::fs::read_link(program).ok());
    runs.is_some() && runs == installed.canonicalize().ok()
}

pub(super) async fn look(home: &Home, sources: &Sources, hub: &Hub, programs: &Programs) -> Vec<Finding> {
    let mut findings: Vec<Finding> = hub.settings.iter().map(|said| judge_nats(&said.server, &said.version)).collect();
    match sources.system.get() {
        None => findings.push(NATS_SERVER.skip("hub", "the hub cannot be asked")),
        Some(_) => findings.push(judge_equal(&hub.settings.iter().map(|said| said.version.as_str()).collect())),
    }
    for leaf in &sources.leaves {
        findings.push(match leaf.bus.get() {
            Some(bus) => judge_nats(&leaf.name, &bus.server_version()),
            None => NATS_SERVER.skip(&leaf.name, "the leaf cannot be asked"),
        });
    }
    findings.push(match sources.database.get() {
        None => POSTGRES.skip("database", "the database cannot be asked"),
        Some(database) => match limited(database.version()).await {
            Ok(number) => judge_postgres(number),
            Err(why) => POSTGRES.warn("database", why, "ask again; then look at logs/postgres.log"),
        },
    });
    findings.extend(program_findings(programs).await);
    findings.extend(running_findings(home, programs).await);
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn the_rules_name_the_floors_of_up() {
        assert!(NATS_SERVER.rule.contains(&NATS_SERVER_MIN.to_string()));
        assert!(POSTGRES.rule.contains(&format!("{} or newer", POSTGRES_MIN.0)));
    }

    #[test]
    fn old_servers_are_named_with_what_is_wrong_with_them() {
        for (said, level, part) in [
            ("2.15.1", Level::Ok, "2.15.1"),
            ("2.14.4", Level::Ok, "2.14.4"),
            ("2.14.3", Level::Fail, "forged answer"),
            ("2.10.7", Level::Fail, "held to its permissions"),
            ("new", Level::Warn, "no version"),
        ] {
            let finding = judge_nats("hub-1", said);
            assert_eq!(finding.level, level, "{said}");
            assert!(finding.found.contains(part), "{said}: {}", finding.found);
            assert_eq!(finding.advice.is_empty(), level == Level::Ok);
        }
    }

    #[test]
    fn hub_servers_are_compared_with_each_other() {
        assert_eq!(judge_equal(&BTreeSet::from(["2.15.1"])).level, Level::Ok);
        let finding = judge_equal(&BTreeSet::from(["2.14.5", "2.15.1"]));
        assert_eq!((finding.level, finding.found.as_str()), (Level::Warn, "2.14.5, 2.15.1"));
    }

    #[test]
    fn an_old_database_fails_and_one_with_a_known_hole_warns() {
        for (number, level) in [
            (140_023, Level::Fail),
            (150_013, Level::Warn),
            (150_014, Level::Ok),
            (160_009, Level::Warn),
            (170_006, Level::Ok),
            (180_000, Level::Ok),
        ] {
            assert_eq!(judge_postgres(number).level, level, "{number}");
        }
        assert!(judge_postgres(170_005).found.contains("CVE-2025-8713"));
    }

    #[test]
    fn a_program_of_another_release_is_named_with_both() {
        let judge = |said: Result<String, String>| judge_program(&PROGRAM, "bulkhead-core", said, "install it");
        assert_eq!(judge(Ok(format!("bulkhead-core {OWN}\n"))).level, Level::Ok);
        let finding = judge(Ok("bulkhead-core 0.0.9\n".to_owned()));
        assert_eq!(finding.level, Level::Warn);
        assert!(finding.found.contains("0.0.9") && finding.found.contains(OWN), "{}", finding.found);
        assert_eq!(judge(Err("no such file".to_owned())).level, Level::Fail);
        assert_eq!(judge(Ok(String::new())).level, Level::Warn);
    }
}
