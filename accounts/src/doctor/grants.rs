//! Rights in the database, compared with what the migrations grant in both directions, and what takes a right away that
//! was granted: a role that cannot connect, and settings that no migration makes.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_store::Inspection;
use bulkhead_store::inspection::RoleState;
use bulkhead_store::rights::{OwnSetting, Right, Rights, Settings};

use super::durability::DURABLE;
use super::finding::{Area, Finding, Level, Look, summed};
use super::reach::{Sources, limited};

static GRANT: Look = Look {
    area: Area::Permissions,
    name: "table-grants",
    rule: "core may use exactly the tables, functions and schemas that the migrations grant it; nobody else may use any, and nobody a partition",
    meaning: "too much: somebody can reach rows past the policies, or take them away; too little: core cannot store or answer",
};
static SETTING: Look = Look {
    area: Area::Permissions,
    name: "role-settings",
    rule: "logins of ours may connect without a limit, and no role of ours and no database has settings of its own; transactions may write",
    meaning: "core cannot connect or store, or works by other rules than it was tested with",
};

pub(super) const LOOKS: &[&Look] = &[&GRANT, &SETTING];

/// Roles that are no logins: others become the first, and the functions of the second are called.
const NO_LOGINS: [&str; 2] = ["bulkhead_owner", "bulkhead_roles"];
const READ_ONLY: &str = "default_transaction_read_only";
/// How a setting that is true may be written.
pub(super) const TRUE: [&str; 4] = ["on", "true", "yes", "1"];

/// What is too much and too little of one object.
#[derive(Default)]
struct Difference<'a> {
    more: Vec<&'a Right>,
    less: Vec<&'a Right>,
}

fn differences(rights: &Rights) -> BTreeMap<&str, Difference<'_>> {
    let mut by_object: BTreeMap<&str, Difference<'_>> = BTreeMap::new();
    for right in rights.found.difference(&rights.expected) {
        by_object.entry(&right.object).or_default().more.push(right);
    }
    for right in rights.expected.difference(&rights.found) {
        by_object.entry(&right.object).or_default().less.push(right);
    }
    by_object
}

fn grant_findings(rights: &Rights) -> Vec<Finding> {
    let broken = differences(rights).into_iter().map(|(object, Difference { more, less })| {
        let found: Vec<String> = more
            .iter()
            .map(|right| format!("{} may {}", right.role, right.privilege))
            .chain(less.iter().map(|right| format!("{} may not {}", right.role, right.privilege)))
            .collect();
        let statement = |verb: &str, between: &str, right: &&Right| {
            format!("{verb} {} on {object} {between} {}", right.privilege.to_lowercase(), right.role.to_lowercase())
        };
        let mending: Vec<String> = more
            .iter()
            .map(|right| statement("revoke", "from", right))
            .chain(less.iter().map(|right| statement("grant", "to", right)))
            .collect();
        let advice = format!("as bulkhead_owner: {}; find out who changed it", mending.join("; "));
        GRANT.fail(object, found.join(", "), advice)
    });
    let objects: BTreeSet<&str> = rights.expected.union(&rights.found).map(|right| right.object.as_str()).collect();
    summed(&GRANT, "tables, functions and schemas", objects.len(), broken.collect())
}

fn hindrance_findings(roles: &[RoleState]) -> Vec<Finding> {
    let broken = roles.iter().filter(|role| !NO_LOGINS.contains(&role.name.as_str()) && !role.hindrances.is_empty());
    let finding = |role: &RoleState| {
        let advice = format!("as superuser: alter role {} login connection limit -1 valid until 'infinity'", role.name);
        SETTING.fail(&format!("role {}", role.name), role.hindrances.join(", "), advice)
    };
    broken.map(finding).collect()
}

fn own_finding(setting: &OwnSetting) -> Finding {
    let OwnSetting { of, name, value } = setting;
    let found = format!("{name} is {value}");
    let advice =
        format!("as superuser: alter {of} reset {name}; then end the sessions that have it, or start core again");
    let is_hurting = name == READ_ONLY && TRUE.contains(&value.as_str());
    SETTING.at(if is_hurting { Level::Fail } else { Level::Warn }, of, found, &advice)
}

fn setting_findings(settings: &Settings, roles: &[RoleState]) -> Vec<Finding> {
    let mut broken = hindrance_findings(roles);
    // What decides whether commits are kept is another look.
    let others = settings.own.iter().filter(|setting| !DURABLE.contains(&setting.name.as_str()));
    broken.extend(others.map(own_finding));
    let server = settings.server.iter().find(|(name, _)| name == READ_ONLY);
    let is_overruled = settings.own.iter().any(|setting| setting.name == READ_ONLY);
    if let Some((_, value)) = server.filter(|(_, value)| TRUE.contains(&value.as_str()) && !is_overruled) {
        let advice = format!(
            "as superuser: alter system reset {READ_ONLY}; select pg_reload_conf(); or take it out of postgresql.conf"
        );
        broken.push(SETTING.fail("server", format!("{READ_ONLY} is {value}"), advice));
    }
    summed(&SETTING, "roles", roles.len(), broken)
}

async fn database_findings(database: &Inspection) -> Result<Vec<Finding>, String> {
    let mut findings = grant_findings(&limited(database.rights()).await?);
    let roles = limited(database.roles()).await?;
    findings.extend(setting_findings(&limited(database.settings()).await?, &roles));
    Ok(findings)
}

pub(super) async fn look(sources: &Sources) -> Vec<Finding> {
    match sources.database.get() {
        None => LOOKS.iter().map(|look| look.skip("database", "the database cannot be asked")).collect(),
        Some(database) => database_findings(database)
            .await
            .unwrap_or_else(|why| vec![GRANT.fail("database", why, "look again; read logs/postgres.log")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(object: &str, role: &str, privilege: &str) -> Right {
        let [object, role, privilege] = [object, role, privilege].map(str::to_owned);
        Right { object, role, privilege }
    }

    #[test]
    fn a_right_too_many_and_one_too_few_are_named_with_the_statement_that_mends_it() {
        let read = right("shared.site", "bulkhead_core", "SELECT");
        let run = right("function shared.f(date)", "bulkhead_core", "EXECUTE");
        let expected = BTreeSet::from([read.clone(), run]);
        let well = Rights { found: expected.clone(), expected: expected.clone() };
        assert_eq!(grant_findings(&well)[0].found, "all 2 are right");
        let found = BTreeSet::from([read, right("shared.site", "PUBLIC", "DELETE")]);
        let findings = grant_findings(&Rights { expected, found });
        let [function, table] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((table.subject.as_str(), table.found.as_str()), ("shared.site", "PUBLIC may DELETE"));
        assert!(table.advice.contains("revoke delete on shared.site from public"), "{}", table.advice);
        assert_eq!(function.found, "bulkhead_core may not EXECUTE");
        assert!(function.advice.contains("grant execute on function shared.f(date) to bulkhead_core"));
    }

    fn role(name: &str, hindrances: Vec<&'static str>) -> RoleState {
        RoleState { name: name.into(), powers: vec![], owns_tables: false, is_member_of_owner: false, hindrances }
    }

    fn levels(own: &[(&str, &str)], read_only: &str) -> Vec<Level> {
        let one = |(name, value): &(&str, &str)| OwnSetting {
            of: "role bulkhead_core".to_owned(),
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        let server = vec![(READ_ONLY.to_owned(), read_only.to_owned())];
        let settings = Settings { own: own.iter().map(one).collect(), server };
        setting_findings(&settings, &[role("bulkhead_core", vec![])]).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn what_keeps_core_from_writing_fails_and_any_other_setting_warns() {
        assert_eq!(levels(&[], "off"), [Level::Ok]);
        assert_eq!(levels(&[(READ_ONLY, "on")], "off"), [Level::Fail]);
        assert_eq!(levels(&[], "on"), [Level::Fail], "the server says it to everybody");
        assert_eq!(levels(&[("work_mem", "1GB")], "off"), [Level::Warn]);
        assert_eq!(levels(&[("synchronous_commit", "off")], "off"), [Level::Ok], "another look");
        let owner = role(NO_LOGINS[0], vec!["it may not log in"]);
        assert_eq!(hindrance_findings(&[owner]), []);
        let core = role("bulkhead_core", vec!["its connections are limited"]);
        assert_eq!(hindrance_findings(&[core])[0].level, Level::Fail);
    }
}
