//! Who is there: processes, hub, database, core, leaves. What is away here is why other areas cannot be looked at.

use bulkhead_bus::CoreVerb;
use bulkhead_bus::payload::{Query, StatusRow};

use super::finding::{Area, Finding, Look};
use super::home::Home;
use super::reach::{Person, Source, Sources, limited};
use crate::client::query;

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

pub(super) const LOOKS: &[&Look] = &[&RUNS, &HUB, &CORE, &DATABASE, &LEAF];

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

async fn core_finding(person: &Person, log: &str) -> Finding {
    let everything = Query::default();
    let asked = query::<StatusRow>(&person.bus, &person.user, CoreVerb::ShowStatus, &everything);
    match limited(asked).await {
        Ok(rows) => CORE.ok("core", format!("it knows {} tenants", rows.len())),
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
    findings.extend(reached_finding(home, &HUB, "hub as system operator", &sources.system, &see("hub")));
    findings.extend(reached_finding(home, &HUB, "hub as provisioner", &sources.provisioner, &see("hub")));
    findings.extend(reached_finding(home, &HUB, "hub as a person", &sources.person, &see("hub")));
    findings.extend(match &sources.person {
        Source::Here(person) => Some(core_finding(person, &log("core")).await),
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
