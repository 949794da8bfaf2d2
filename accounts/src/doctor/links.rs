//! Who is there: processes, hub, database, core, leaves. What is away here is why other areas cannot be looked at.

use bulkhead_bus::payload::{Query, StatusRow};
use bulkhead_bus::question::ServerQuestion;
use bulkhead_bus::{CoreVerb, Role};
use bulkhead_runtime::Bus;
use serde_json::{Value, json};

use super::finding::{Area, Finding, Level, Look};
use super::home::Home;
use super::known::Known;
use super::processes::processes;
use super::reach::{Person, Source, Sources, limited};
use super::servers::{Hub, Said, ask};
use crate::client::query;
use crate::operator::AccountRecord;
use crate::up::{CORE as CORE_ACCOUNT, INTAKE, Site};

static RUNS: Look = Look {
    area: Area::Links,
    name: "deployment-runs",
    rule: "`bulkhead up` runs",
    meaning: "nothing is measured and nothing is stored",
};
static HUB: Look = Look {
    area: Area::Links,
    name: "hub-answers",
    rule: "the hub admits the users of the last start",
    meaning: "leaves keep their results until the hub is back; nobody can be asked",
};
static CORE: Look = Look {
    area: Area::Links,
    name: "core-answers",
    rule: "core answers a person of the platform",
    meaning: "results wait in the hub's streams, then at the leaves, and nobody can look at them",
};
static DATABASE: Look = Look {
    area: Area::Links,
    name: "database-answers",
    rule: "the database admits the role that provisions",
    meaning: "results wait in the hub's streams, then at the leaves, until the database is back",
};
static LEAF: Look = Look {
    area: Area::Links,
    name: "leaf-answers",
    rule: "a site's leaf admits its forwarder",
    meaning: "the site's pollers keep their results in memory and lose the oldest when that is full",
};

static SERVER: Look = Look {
    area: Area::Links,
    name: "hub-server",
    rule: "each hub server that has a folder answers",
    meaning: "one server less: with one hub server nothing is stored, with three the next loss stops everything",
};
static PROCESS: Look = Look {
    area: Area::Links,
    name: "process-runs",
    rule: "each process that a start has made still runs, and is not stopped",
    meaning: "what it did is not done: a poller measures, a leaf keeps, core stores",
};
static LINKED: Look = Look {
    area: Area::Links,
    name: "leaf-linked",
    rule: "each site's leaf is linked to the hub, in its own tenant's account",
    meaning: "the site's results stay at its leaf until the link is back, and are stored late",
};
static CONNECTED: Look = Look {
    area: Area::Links,
    name: "service-connected",
    rule: "core, the registry and poller-dispatch are connected as each of their users",
    meaning: "core does not store, does not answer, or shows no live view; or checks are not shared out",
};

const SYSTEM_USER: &str = "hub as system operator";

pub(super) const LOOKS: &[&Look] = &[&RUNS, &HUB, &CORE, &DATABASE, &LEAF, &SERVER, &PROCESS, &LINKED, &CONNECTED];

fn reached_finding<T>(
    home: &Home,
    look: &'static Look,
    subject: &str,
    source: &Source<T>,
    advice: &str,
) -> Option<Finding> {
    match source {
        Source::Unasked => None,
        Source::Here(_) => Some(look.ok(subject, "it answers")),
        Source::Away(why) if home.up.is_none() => Some(look.skip(subject, format!("nothing runs ({why})"))),
        Source::Away(why) => Some(look.fail(subject, why, advice)),
    }
}

/// One of our users on the hub. That no server is there at all is said once, by `hub-quorum`.
fn hub_finding<T>(home: &Home, sources: &Sources, subject: &str, source: &Source<T>, advice: &str) -> Option<Finding> {
    let finding = reached_finding(home, &HUB, subject, source, advice)?;
    if finding.level != Level::Fail {
        return Some(finding);
    }
    // Of those whom gatekeepers let in: one that is at a server that hangs is asked until that is noticed.
    let is_let_in = subject != SYSTEM_USER;
    Some(match sources.presence.lost() {
        _ if sources.presence.is_all_away() => HUB.skip(subject, "no hub server is there"),
        Some(lost) if is_let_in => HUB.skip(subject, lost),
        Some(_) | None => finding,
    })
}

/// Whether core has answered.
pub(super) fn is_core_there(finding: &Finding) -> bool {
    *finding.look == CORE && finding.level == Level::Ok
}

async fn core_finding(person: &Person, log: &str, lost: Option<String>) -> Finding {
    let everything = Query::default();
    let asked = query::<StatusRow>(&person.bus, &person.user, CoreVerb::ShowStatus, &everything);
    match limited(asked).await {
        Ok(rows) => CORE.ok("core", format!("it knows {} tenants", rows.len())),
        Err(_) if lost.is_some() => CORE.skip("core", lost.unwrap_or_default()),
        Err(why) => CORE.fail("core", why, format!("read {log}; then end `bulkhead up` and start it again")),
    }
}

/// What could be reached of what the selected areas need.
pub(super) async fn reached(home: &Home, sources: &Sources) -> Vec<Finding> {
    let log = |process: &str| home.layout.log(process).display().to_string();
    let restart = home.restart_advice();
    let see = |process: &str| format!("read {}; {restart}", log(process));
    let mut findings = vec![match home.up {
        Some(pid) => RUNS.ok("up", format!("process {pid}")),
        None => RUNS.fail("up", "it does not run", format!("start it: {}", home.start_command())),
    }];
    if sources.is_hub_asked() {
        findings.push(sources.presence.finding(home));
    }
    findings.extend(hub_finding(home, sources, SYSTEM_USER, &sources.system, &see("hub")));
    findings.extend(hub_finding(home, sources, "hub as provisioner", &sources.provisioner, &see("hub")));
    findings.extend(hub_finding(home, sources, "hub as a person", &sources.person, &see("hub")));
    findings.extend(match &sources.person {
        Source::Here(person) => Some(core_finding(person, &log("core"), sources.presence.lost()).await),
        Source::Away(_) => Some(CORE.skip("core", "the hub cannot be asked")),
        Source::Unasked => None,
    });
    findings.extend(reached_finding(home, &DATABASE, "database", &sources.database, &see("postgres")));
    for leaf in &sources.leaves {
        let advice = see(&format!("leaf-{}-{}", leaf.site.tenant, leaf.site.site));
        findings.extend(reached_finding(home, &LEAF, &leaf.name, &leaf.bus, &advice));
    }
    findings
}

/// The hub has admitted us and then did not answer.
pub(super) fn unanswered(home: &Home, why: String) -> Finding {
    HUB.fail(SYSTEM_USER, why, home.restart_advice())
}

/// Connections of one account that are looked through.
const CONNECTIONS_MOST: u32 = 1_024;
/// Users of the services, each with the account that it is in.
const SERVICE_USERS: [(&str, Role); 7] = [
    (CORE_ACCOUNT, Role::CoreStream),
    (CORE_ACCOUNT, Role::CoreRpc),
    (INTAKE, Role::CoreLive),
    (CORE_ACCOUNT, Role::RegistryRpc),
    (CORE_ACCOUNT, Role::RegistryKeep),
    (CORE_ACCOUNT, Role::DispatchRpc),
    (CORE_ACCOUNT, Role::DispatchPush),
];

fn process_findings(home: &Home) -> Vec<Finding> {
    let finding = |process: super::processes::Process| match process.pid {
        Some(pid) if process.is_stopped => {
            let found = format!("process {pid} is stopped by a signal: it is there and does nothing");
            PROCESS.fail(&process.name, found, format!("let it go on with: kill -CONT {pid}; find out who stopped it"))
        }
        Some(pid) => PROCESS.ok(&process.name, format!("process {pid}")),
        None if home.up.is_none() => PROCESS.skip(&process.name, "nothing runs"),
        None => {
            let advice = format!("read {}; {}", home.layout.log(&process.name).display(), home.restart_advice());
            PROCESS.fail(&process.name, "it has ended", advice)
        }
    };
    processes(home).into_iter().map(finding).collect()
}

fn server_findings(home: &Home, hub: &Hub) -> Vec<Finding> {
    let finding = |name: &str| match hub.settings.iter().find(|said| said.server == name) {
        Some(said) => SERVER.ok(name, format!("up for {}", said.data["uptime"].as_str().unwrap_or("some time"))),
        None => SERVER.fail(name, "it does not answer", home.restart_advice()),
    };
    let mut findings: Vec<Finding> = home.hubs.iter().map(|hub| finding(&hub.server_name)).collect();
    let strangers = hub.settings.iter().filter(|said| !home.hubs.iter().any(|hub| hub.server_name == said.server));
    findings.extend(strangers.map(|said| {
        let advice = "find out who runs it: a server joins the hub by a certificate of the route root only";
        SERVER.warn(&said.server, "a server answers that has no folder here", advice)
    }));
    findings
}

fn linked_finding(home: &Home, site: &Site, account: Option<&AccountRecord>, answers: &[Said]) -> Finding {
    let subject = format!("{}/{}", site.tenant, site.site);
    let name = format!("leaf-{}-{}", site.tenant, site.site);
    let leaves = |said: &Said| said.data["leafs"].as_array().cloned().unwrap_or_default();
    let links = answers.iter().flat_map(|said| leaves(said).into_iter().map(|leaf| (said.server.clone(), leaf)));
    let links: Vec<(String, Value)> = links.filter(|(_, leaf)| leaf["name"] == name.as_str()).collect();
    let advice = format!("read {}; {}", home.layout.log(&name).display(), home.restart_advice());
    let Some((server, leaf)) = links.first() else { return LINKED.fail(&subject, "it is not linked", advice) };
    let is_own = account.is_some_and(|account| leaf["account"] == account.key.as_str());
    if !is_own {
        let found = format!("it is linked in account {}", leaf["account"].as_str().unwrap_or("without a name"));
        return LINKED.fail(&subject, found, advice);
    }
    LINKED.ok(&subject, format!("to {server}"))
}

/// Whether somebody is connected whose credentials were signed by the role's key: a name can be chosen, a key cannot.
fn connected_finding(home: &Home, role: Role, key: Option<&str>, answers: &[Said]) -> Finding {
    let connections = answers.iter().flat_map(|said| said.data["connections"].as_array().into_iter().flatten());
    let is_role = |connection: &&Value| key.is_some_and(|key| connection["issuer_key"] == key);
    let count = connections.filter(is_role).count();
    if count > 0 {
        return CONNECTED.ok(role.name(), format!("{count} connected"));
    }
    let log = match role {
        Role::RegistryRpc | Role::RegistryKeep => "registry-1",
        Role::DispatchRpc | Role::DispatchPush => "poller-dispatch-1",
        Role::CoreStream
        | Role::CoreRpc
        | Role::CoreLive
        | Role::Leaf
        | Role::Poller
        | Role::Admin
        | Role::Viewer
        | Role::PlatformAdmin
        | Role::Provisioner
        | Role::Backup
        | Role::SystemOperator
        | Role::Gatekeeper
        | Role::GateWriter
        | Role::GateWatch
        | Role::Sentinel => "core",
    };
    let advice = format!("read {}; {}", home.layout.log(log).display(), home.restart_advice());
    CONNECTED.fail(role.name(), "nobody is connected as this user", advice)
}

async fn connected_findings(home: &Home, system: &Bus, servers: usize, known: &Known) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (account, role) in SERVICE_USERS {
        let Some(record) = known.named(account) else { continue };
        let about = json!({"acc": record.key.as_str(), "auth": true, "limit": CONNECTIONS_MOST});
        findings.push(match ask(system, ServerQuestion::Connections, about, servers).await {
            Ok(answers) => connected_finding(home, role, record.role_key(role), &answers),
            Err(why) => CONNECTED.warn(role.name(), why, "look again"),
        });
    }
    findings
}

/// Who hung on a server that is away looks for another one, and waits for the streams there.
pub(super) fn excused(finding: Finding, lost: Option<&str>) -> Finding {
    match lost {
        Some(why) if finding.level > Level::Skip => finding.look.skip(&finding.subject, why),
        Some(_) | None => finding,
    }
}

pub(super) async fn look(home: &Home, sources: &Sources, hub: &Hub, known: Option<&Known>) -> Vec<Finding> {
    let mut findings = process_findings(home);
    let Some(system) = sources.system.get() else {
        findings.push(LINKED.skip("leaves", "the hub cannot be asked"));
        findings.push(CONNECTED.skip("core", "the hub cannot be asked"));
        return findings;
    };
    findings.extend(server_findings(home, hub));
    let mut connections = Vec::new();
    for site in &home.sites {
        let account = known.and_then(|known| known.named(site.tenant.as_str()));
        let finding = linked_finding(home, site, account, &hub.leaves);
        connections.push(home.excused(finding, site.tenant.as_str()));
    }
    if let Some(known) = known {
        connections.extend(connected_findings(home, system, sources.presence.there(), known).await);
    }
    findings.extend(connections.into_iter().map(|finding| excused(finding, sources.presence.lost().as_deref())));
    findings
}

#[cfg(test)]
mod tests {
    use std::fs;

    use time::OffsetDateTime;

    use super::*;
    use crate::operator::OperatorStore;

    fn said(server: &str, data: Value) -> Said {
        Said { server: server.to_owned(), version: "2.15.1".to_owned(), time: None, data }
    }

    #[test]
    fn a_hub_server_that_is_silent_and_one_that_is_a_stranger_are_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["hub", "hub-2"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("hub.conf"), format!("server_name: \"{name}\"\n")).unwrap();
        }
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        let settings = vec![said("hub", json!({"uptime": "5s"})), said("hub-9", json!({}))];
        let hub = Hub { settings, ..Hub::default() };
        let levels: Vec<(String, Level)> =
            server_findings(&home, &hub).into_iter().map(|finding| (finding.subject, finding.level)).collect();
        let expected = [("hub", Level::Ok), ("hub-2", Level::Fail), ("hub-9", Level::Warn)];
        assert_eq!(levels, expected.map(|(name, level)| (name.to_owned(), level)));
    }

    #[test]
    fn who_is_not_connected_is_excused_while_most_servers_are_away() {
        let finding = || CONNECTED.fail("core-rpc", "nobody is connected as this user", "look");
        assert_eq!(excused(finding(), None).level, Level::Fail);
        assert_eq!(excused(finding(), Some("two of three hub servers are away")).level, Level::Skip);
        assert_eq!(excused(CONNECTED.ok("core-rpc", "1"), Some("away")).level, Level::Ok);
    }

    #[test]
    fn a_leaf_is_linked_in_its_own_account_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        let operator = OperatorStore::open(folder.path().join("nsc"), 1_000).unwrap();
        let account = operator.system().unwrap();
        let site = Site { tenant: "acme-corp".parse().unwrap(), site: "oslo".parse().unwrap(), pollers: vec![] };
        let judge = |leafs: Value| {
            let answers = [said("hub-1", json!({"leafs": leafs}))];
            linked_finding(&home, &site, Some(&account), &answers)
        };
        let own = json!({"name": "leaf-acme-corp-oslo", "account": account.key.as_str()});
        assert_eq!(judge(json!([own])).level, Level::Ok);
        assert_eq!(judge(json!([])).found, "it is not linked");
        let foreign = json!([{"name": "leaf-acme-corp-oslo", "account": "AOTHER"}]);
        assert_eq!(judge(foreign).found, "it is linked in account AOTHER");
    }

    #[test]
    fn core_is_known_by_the_key_that_signed_it_and_not_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        let judge = |connections: Value| {
            connected_finding(&home, Role::CoreRpc, Some("AKEY"), &[said("hub-1", json!({"connections": connections}))])
        };
        assert_eq!(judge(json!([{"issuer_key": "AKEY"}])).level, Level::Ok);
        assert_eq!(judge(json!([{"name": "core-rpc", "issuer_key": "AOTHER"}])).level, Level::Fail);
        assert_eq!(judge(json!([])).level, Level::Fail);
    }
}
