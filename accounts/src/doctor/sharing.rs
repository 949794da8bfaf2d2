//! Who shares checks out: whether the registry knows who is there, and whether somebody runs each check.

use bulkhead_bus::payload::{AssignmentRow, MemberQuery, MemberRow, MemberState, Query};
use bulkhead_bus::{CoreVerb, RegistryVerb, TenantSubject};

use super::finding::{Area, Finding, Look};
use super::home::Home;
use super::lag::ask_health;
use super::links::excused;
use super::reach::{Person, QUESTION_LIMIT, Sources, limited};
use crate::client::{ask, query};

static SHARING: Look = Look {
    area: Area::Links,
    name: "registry-answers",
    rule: "the registry answers a person of the platform, and knows who is there",
    meaning: "pollers go on with what they have; who comes, goes or dies is not noticed",
};
static MEMBER: Look = Look {
    area: Area::Links,
    name: "member-there",
    rule: "each poller and leaf link that has reported is there and says that it is well; one that has never reported is not waited for",
    meaning: "what it ran is taken over by others of its site, or is not run",
};
static ASSIGNED: Look = Look {
    area: Area::Links,
    name: "check-assigned",
    rule: "somebody runs each check at each of its vantages",
    meaning: "the check is not run there, and its gaps say no_poller",
};
static SHARER: Look = Look {
    area: Area::Lag,
    name: "sharer-ready",
    rule: "each replica of the registry and of poller-dispatch says that it is ready",
    meaning: "one replica less; with none, checks are neither changed nor handed over",
};

pub(super) const LOOKS: &[&Look] = &[&SHARING, &MEMBER, &ASSIGNED, &SHARER];

/// Replicas that a start may have made.
const SHARERS: [&str; 4] = ["registry-1", "registry-2", "poller-dispatch-1", "poller-dispatch-2"];

fn judge_member(row: &MemberRow) -> Finding {
    let who = format!("{}/{}/{}", row.tenant, row.site, row.name);
    let state = row.state.as_str();
    let reasons: Vec<String> = row.reasons.iter().map(|reason| format!("{reason:?}")).collect();
    match row.state {
        MemberState::Joining | MemberState::Ready | MemberState::Gone | MemberState::Draining => MEMBER.ok(&who, state),
        MemberState::Never => MEMBER.skip(&who, "it has never reported"),
        MemberState::Unknown => {
            MEMBER.warn(&who, state, "the registry says so itself for half a minute after it was blind: look again")
        }
        MemberState::Quarantined => {
            let why = row.because.as_deref().unwrap_or("no reason was given");
            MEMBER.warn(&who, format!("held: {why}"), format!("let it go with: bulkhead poller release {who}"))
        }
        MemberState::Degraded => MEMBER.warn(&who, format!("{state}: {}", reasons.join(", ")), "read its log"),
        MemberState::Lost => {
            let advice = format!(
                "see whether it runs and is linked; what became of it: bulkhead poller events --tenant {}",
                row.tenant
            );
            MEMBER.fail(&who, state, advice)
        }
    }
}

fn judge_assignments(rows: &[AssignmentRow]) -> Vec<Finding> {
    let unowned: Vec<&AssignmentRow> = rows.iter().filter(|row| row.poller.is_none()).collect();
    if unowned.is_empty() {
        return vec![ASSIGNED.ok("checks", format!("{} are run", rows.len()))];
    }
    let finding = |row: &&AssignmentRow| {
        let subject = format!("{}/{} at {}", row.tenant, row.check, row.site);
        let advice = format!("bulkhead poller status --tenant {} --site {}", row.tenant, row.site);
        ASSIGNED.warn(&subject, "nobody can run it", advice)
    };
    unowned.iter().map(finding).collect()
}

async fn ask_members(person: &Person) -> Result<Vec<MemberRow>, String> {
    let subject = TenantSubject::Registry { user: person.user.clone(), verb: RegistryVerb::ListMembers };
    limited(ask::<MemberRow>(&person.bus, &subject, &MemberQuery::default(), QUESTION_LIMIT)).await
}

pub(super) async fn look_at_links(home: &Home, sources: &Sources) -> Vec<Finding> {
    let Some(person) = sources.person.get() else {
        return vec![SHARING.skip("registry", "the hub cannot be asked")];
    };
    let lost = sources.presence.lost();
    let members = match (ask_members(person).await, &lost) {
        (Ok(members), _) => members,
        (Err(_), Some(lost)) => return vec![SHARING.skip("registry", lost)],
        (Err(why), None) => return vec![SHARING.fail("registry", why, home.restart_advice())],
    };
    let mut findings = vec![SHARING.ok("registry", format!("it knows {} pollers and leaf links", members.len()))];
    let judge = |row: &MemberRow| home.excused(excused(judge_member(row), lost.as_deref()), row.tenant.as_str());
    findings.extend(members.iter().map(judge));
    let everything = Query::default();
    let asked = query::<AssignmentRow>(&person.bus, &person.user, CoreVerb::ListAssignments, &everything);
    findings.extend(match limited(asked).await {
        Ok(rows) => judge_assignments(&rows),
        Err(why) => vec![ASSIGNED.skip("checks", why)],
    });
    findings
}

#[derive(serde::Deserialize)]
struct SharerSettings {
    health_listen: String,
}

/// `lost` is why nobody can have what they need of the hub.
pub(super) async fn look_at_lag(home: &Home, lost: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in SHARERS {
        let path = home.layout.home().join(name).join("settings.toml");
        // A hub of one has one replica of each.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let Ok(settings) = toml::from_str::<SharerSettings>(&text) else {
            findings.push(SHARER.fail(name, format!("{} is not readable", home.shown(&path)), home.restart_advice()));
            continue;
        };
        let advice = format!("read {}", home.layout.log(name).display());
        let finding = match ask_health(&settings.health_listen).await {
            Ok((200, _)) => SHARER.ok(name, "ready"),
            Ok((code, text)) => SHARER.fail(name, format!("{code}: {text}"), advice),
            Err(why) if home.up.is_none() => SHARER.skip(name, format!("nothing runs ({why})")),
            Err(why) => SHARER.fail(name, why, advice),
        };
        findings.push(excused(finding, lost));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn member(state: MemberState) -> MemberRow {
        serde_json::from_value(serde_json::json!({
            "tenant": "acme-corp", "site": "oslo", "name": "p1", "state": state.as_str(), "because": "disk"
        }))
        .unwrap()
    }

    #[test]
    fn who_is_lost_is_a_failure_and_who_never_came_is_none() {
        let level = |state| judge_member(&member(state)).level;
        assert_eq!(level(MemberState::Ready), Level::Ok);
        assert_eq!([level(MemberState::Unknown), level(MemberState::Degraded)], [Level::Warn, Level::Warn]);
        assert_eq!([level(MemberState::Lost), level(MemberState::Never)], [Level::Fail, Level::Skip]);
        let held = judge_member(&member(MemberState::Quarantined));
        assert!(held.found.contains("disk") && held.level == Level::Warn);
    }

    #[test]
    fn a_check_that_nobody_runs_is_named() {
        let row = |poller: Option<&str>| AssignmentRow {
            tenant: "acme-corp".parse().unwrap(),
            site: "oslo".parse().unwrap(),
            check: "web".parse().unwrap(),
            poller: poller.map(|name| name.parse().unwrap()),
            generation: 1,
            revision: 1,
            from_ms: 0,
        };
        assert_eq!(judge_assignments(&[row(Some("p1"))])[0].level, Level::Ok);
        let found = judge_assignments(&[row(Some("p1")), row(None)]);
        assert_eq!((found.len(), found[0].level), (1, Level::Warn));
        assert!(found[0].subject.contains("acme-corp/web at oslo"));
    }
}
