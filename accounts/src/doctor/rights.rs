//! Rights on the bus: each role's signing key grants what this release says and no more, and so do a leaf's local users.

use bulkhead_bus::Role;

use super::finding::{Area, Finding, Look, summed};
use super::home::Home;
use super::known::Known;
use crate::gate::{AUTH, SENT};
use crate::nats_config::LeafUser;
use crate::operator::{AccountRecord, SYSTEM};
use crate::render::scoped_key;
use crate::tenancy::is_intake;
use crate::up::{CORE, OPS, Site, keeper, leaf_users};
use bulkhead_claims::ScopedKey;

static KEYS: Look = Look {
    area: Area::Permissions,
    name: "signing-keys",
    rule: "an account's signing keys are those of its roles, each scoped to exactly what the role may do, never to everything",
    meaning: "users signed by that key may say or hear more, or less, than their role",
};
static LEAF_USERS: Look = Look {
    area: Area::Permissions,
    name: "leaf-users",
    rule: "the local users of a leaf are its forwarder and its pollers, with exactly their rights",
    meaning: "somebody at the site may speak for another poller, or results are refused",
};

pub(super) const LOOKS: &[&Look] = &[&KEYS, &LEAF_USERS];

const RESTORE: &str = "restore nsc from a backup";

/// The roles of an account, by its name.
pub(super) fn roles_of(account: &str) -> Vec<Role> {
    match account {
        SYSTEM => Role::SYSTEM.to_vec(),
        CORE => Role::CORE.to_vec(),
        AUTH => Role::AUTH.to_vec(),
        SENT => vec![Role::Sentinel],
        OPS => vec![Role::PlatformAdmin],
        shard if is_intake(shard) => vec![Role::CoreLive],
        _ => Role::TENANT.to_vec(),
    }
}

fn key_trouble(record: &AccountRecord) -> Vec<String> {
    let roles = roles_of(&record.name);
    let mut trouble = Vec::new();
    for key in &record.claims.nats.signing_keys {
        let ScopedKey::Scoped(scope) = key else {
            trouble.push("a signing key without a scope, which may sign any user".to_owned());
            continue;
        };
        let Some(role) = roles.iter().find(|role| role.name() == scope.role) else {
            trouble.push(format!("a signing key for role {:?}, which it does not have", scope.role));
            continue;
        };
        if *key != scoped_key(*role, scope.key.clone()) {
            trouble.push(format!("role {}: {}", scope.role, difference(*role, scope)));
        }
    }
    let is_gone = |role: &&Role| record.role_key(**role).is_none();
    trouble.extend(roles.iter().filter(is_gone).map(|role| format!("role {} has no key", role.name())));
    trouble
}

/// Which subjects a template has too many or too few.
fn difference(role: Role, scope: &bulkhead_claims::Scope) -> String {
    let ScopedKey::Scoped(expected) = scoped_key(role, scope.key.clone()) else { return "another kind".to_owned() };
    let sides = [
        ("publish", &scope.template.publish, &expected.template.publish),
        ("subscribe", &scope.template.subscribe, &expected.template.subscribe),
    ];
    let mut parts = Vec::new();
    for (side, found, expected) in sides {
        let more = found.allow.iter().filter(|subject| !expected.allow.contains(subject));
        parts.extend(more.map(|subject| format!("may {side} {subject} too")));
        let less = expected.allow.iter().filter(|subject| !found.allow.contains(subject));
        parts.extend(less.map(|subject| format!("may not {side} {subject}")));
    }
    if parts.is_empty() { "limits, denials or kinds of connection differ".to_owned() } else { parts.join(", ") }
}

fn key_findings(home: &Home, known: &Known) -> Vec<Finding> {
    let renew = home.restart_advice();
    let wrong = known.accounts.iter().filter_map(|record| {
        let trouble = key_trouble(record);
        let plain = record.claims.nats.signing_keys.iter().find(|key| matches!(key, ScopedKey::Plain(_)));
        // One that nsc made and that was taken over with its account: a start keeps it.
        let advice = plain.map_or_else(
            || renew.clone(),
            |key| {
                format!(
                    "take it out with nsc: `nsc edit account {0} --rm-sk {1}`, then `bulkhead nsc import --accept {0}` and \
                     `bulkhead push {0}`",
                    record.name,
                    key.key()
                )
            },
        );
        (!trouble.is_empty()).then(|| KEYS.fail(&record.name, trouble.join("; "), advice))
    });
    let unreadable = known.unreadable.iter().map(|(name, why)| KEYS.fail(name, why, RESTORE));
    summed(&KEYS, "accounts", known.accounts.len() + known.unreadable.len(), wrong.chain(unreadable).collect())
}

/// Reads what `nats-config/leaf.conf` renders for each user.
fn users_of(config: &str) -> Vec<LeafUser> {
    let mut users: Vec<LeafUser> = Vec::new();
    let list = |line: &str, side: &str| -> Option<Vec<String>> {
        let value = line.strip_prefix(side)?.strip_prefix(": { allow: ")?.strip_suffix(" }")?;
        serde_json::from_str(value).ok()
    };
    for line in config.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("user: ").and_then(|value| serde_json::from_str(value).ok()) {
            users.push(LeafUser { name, publish: vec![], subscribe: vec![] });
        }
        let Some(user) = users.last_mut() else { continue };
        user.publish.extend(list(line, "publish").unwrap_or_default());
        user.subscribe.extend(list(line, "subscribe").unwrap_or_default());
    }
    users
}

fn user_trouble(expected: &[LeafUser], found: &[LeafUser]) -> Vec<String> {
    let by_name = |users: &[LeafUser], name: &str| users.iter().find(|user| user.name == name).cloned();
    let mut trouble = Vec::new();
    for user in found {
        match by_name(expected, &user.name) {
            None => trouble.push(format!("user {} is nobody's", user.name)),
            Some(own) if own != *user => trouble.push(format!("user {} has other rights", user.name)),
            Some(_) => {}
        }
    }
    let gone = expected.iter().filter(|user| by_name(found, &user.name).is_none());
    trouble.extend(gone.map(|user| format!("user {} is missing", user.name)));
    trouble
}

fn leaf_findings(home: &Home) -> Vec<Finding> {
    let authority = home.authority();
    let finding = |site: &Site| {
        let subject = format!("{}/{}", site.tenant, site.site);
        let path = home.layout.site(&site.tenant, &site.site).join("leaf.conf");
        let config = match std::fs::read_to_string(&path) {
            Ok(config) => config,
            Err(error) => return LEAF_USERS.fail(&subject, error.to_string(), home.restart_advice()),
        };
        let mut expected = leaf_users(&authority, site);
        expected.push(keeper(&authority, site));
        let trouble = user_trouble(&expected, &users_of(&config));
        if trouble.is_empty() {
            return LEAF_USERS.ok(&subject, format!("{} users", site.pollers.len() + 1));
        }
        LEAF_USERS.fail(&subject, trouble.join("; "), home.restart_advice())
    };
    home.sites.iter().map(finding).collect()
}

pub(super) fn look(home: &Home, known: &Result<Known, String>) -> Vec<Finding> {
    let mut findings = match known {
        Ok(known) => key_findings(home, known),
        Err(why) => vec![KEYS.fail("operator store", why, RESTORE)],
    };
    findings.extend(leaf_findings(home));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{Authority, TrustDomain};
    use crate::operator::OperatorStore;
    use crate::plan::{Plan, PlanName};
    use crate::render::{RoleKey, tenant_account};

    #[test]
    fn a_key_that_grants_more_or_less_is_named_with_the_subject() {
        let folder = tempfile::tempdir().unwrap();
        let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
        let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(PlanName::Free), own, "ACORE", keys);
        let mut record = store.ensure_account("acme-corp", &Role::TENANT, 1_000, render).unwrap();
        assert!(key_trouble(&record).is_empty(), "{:?}", key_trouble(&record));
        assert!(key_trouble(&store.system().unwrap()).is_empty());

        let ScopedKey::Scoped(leaf) = &mut record.claims.nats.signing_keys[0] else { panic!("a plain key") };
        leaf.template.publish.allow.push(">".to_owned());
        leaf.template.subscribe.allow.remove(0);
        let trouble = key_trouble(&record);
        assert!(trouble[0].contains("may publish > too") && trouble[0].contains("may not subscribe"), "{trouble:?}");
        leaf_key_without_scope(&mut record);
        let trouble = key_trouble(&record).join("; ");
        assert!(trouble.contains("without a scope") && trouble.contains("role leaf has no key"), "{trouble}");
    }

    fn leaf_key_without_scope(record: &mut AccountRecord) {
        let key = record.claims.nats.signing_keys[0].key().to_owned();
        record.claims.nats.signing_keys[0] = ScopedKey::Plain(key);
    }

    #[test]
    fn a_leafs_users_are_read_and_compared() {
        let site = Site {
            tenant: "acme-corp".parse().unwrap(),
            site: "oslo".parse().unwrap(),
            pollers: vec!["p1".parse().unwrap()],
        };
        let expected = leaf_users(&Authority::new("".into(), TrustDomain::default()), &site);
        let rendered = |users: &[LeafUser]| {
            let quoted = |list: &[String]| serde_json::to_string(list).unwrap().replace("\",\"", "\", \"");
            let user = |user: &LeafUser| {
                format!(
                    "      {{\n        user: {:?}\n        permissions: {{\n          publish: {{ allow: {} }}\n          subscribe: {{ allow: {} }}\n",
                    user.name,
                    quoted(&user.publish),
                    quoted(&user.subscribe)
                )
            };
            users.iter().map(user).collect::<String>()
        };
        assert_eq!(users_of(&rendered(&expected)), expected);
        assert!(user_trouble(&expected, &expected).is_empty());
        let mut more = expected.clone();
        more[1].publish.push("results.p2".to_owned());
        more.push(LeafUser { name: "guest".to_owned(), ..more[0].clone() });
        assert_eq!(
            user_trouble(&expected, &more),
            ["user p1.oslo.acme-corp.serviceradar has other rights", "user guest is nobody's"]
        );
        assert_eq!(user_trouble(&expected, &expected[..1]), ["user p1.oslo.acme-corp.serviceradar is missing"]);
    }
}
