//! Drift: accounts on the hub against the operator store, the store against what this release renders, tenants against
//! accounts, and the database's schemas against this release's migrations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bulkhead_bus::question::{ServerQuestion, stored_account};
use bulkhead_bus::{Role, TenantSlug};
use bulkhead_runtime::Bus;
use bulkhead_store::inspection::{SchemaState, Unsettled};
use bulkhead_store::{Inspection, Tenants};
use futures_util::StreamExt;
use serde_json::{Value, json};

use super::finding::{Area, Finding, Look, summed};
use super::home::Home;
use super::known::Known;
use super::reach::{QUESTION_LIMIT, Sources, limited};
use super::rights::roles_of;
use super::servers::{Hub, Said, ask, ask_account};
use crate::hub_size::HubSize;
use crate::operator::{AccountRecord, OperatorStore, SYSTEM};
use crate::plan::Plans;
use crate::render::{RoleKey, closed, core_account, intake_account, system_account, tenant_account};
use crate::tenancy::{Intake, Shard, TenantRecords, intake_number, is_intake, purges};
use crate::up::{CORE, OPS, hub_size, ops_plan};
use bulkhead_claims::AccountBody;

static IN_FORCE: Look = Look {
    area: Area::Drift,
    name: "account-in-force",
    rule: "every hub server has each account's token as it is in the operator store",
    meaning: "rights, limits or imports on the hub are not what they should be: too much, or too little",
};
static UNKNOWN: Look = Look {
    area: Area::Drift,
    name: "account-unknown",
    rule: "the hub knows no account that is not in the operator store",
    meaning: "somebody may still connect who was given up, or whom nobody here has made",
};
static RENDERED: Look = Look {
    area: Area::Drift,
    name: "account-rendered",
    rule: "limits, exports and imports of an account are what this release renders from its plan",
    meaning: "a plan or a release is not in force for that account",
};
static TENANT: Look = Look {
    area: Area::Drift,
    name: "tenant-account",
    rule: "each tenant in the database has the account of its name in the operator store, and the reverse",
    meaning: "a tenant's results become unclaimed dead letters, or a tenant that was given up still has an account",
};
static MIGRATION: Look = Look {
    area: Area::Drift,
    name: "migrations",
    rule: "each schema has this release's migrations, unchanged",
    meaning: "services refuse to start, or work on tables that are not what they expect",
};

static PLACE: Look = Look {
    area: Area::Drift,
    name: "tenant-rows",
    rule: "each tenant's rows are where its plan puts them, and no move of rows is under way",
    meaning: "a tenant is without the schema that its plan promises, or its results wait for a move that was cut short",
};

pub(super) const LOOKS: &[&Look] = &[&IN_FORCE, &UNKNOWN, &RENDERED, &TENANT, &MIGRATION, &PLACE];

/// Accounts that are asked about at once.
const AT_ONCE: usize = 16;
const ACCOUNT_LIMIT: Duration = QUESTION_LIMIT;

/// Why a server does not hold the account as it should; `None` when it does.
fn memory_trouble(said: &Said, token: &str) -> Option<String> {
    match said.data["account_detail"]["jwt"].as_str() {
        // Not loaded there yet: the server answers with nothing, or with a placeholder that has no token, and reads the
        // token from its store when somebody needs the account.
        None | Some("") => None,
        Some(found) if found == token => None,
        Some(_) => Some(format!("{} has another token in memory", said.server)),
    }
}

async fn stored_trouble(system: &Bus, record: &AccountRecord) -> Option<String> {
    let subject = stored_account(record.key.as_str());
    match limited(system.request(&subject, Vec::new().into(), ACCOUNT_LIMIT)).await {
        Ok(token) if token.as_ref() == record.token.as_bytes() => None,
        Ok(token) if token.is_empty() => Some("the hub has not stored it".to_owned()),
        Ok(_) => Some("the hub has stored another token".to_owned()),
        Err(why) => Some(format!("its stored token cannot be asked: {why}")),
    }
}

/// What puts an account right.
struct Advice {
    restart: String,
    /// Accounts that another tool changed: a start does not touch them.
    foreign: BTreeSet<String>,
}

impl Advice {
    fn new(home: &Home, records: &[AccountRecord]) -> Self {
        let operator = OperatorStore::read(home.layout.operator()).ok().flatten();
        let is_foreign =
            |name: &str| operator.as_ref().is_some_and(|operator| matches!(operator.foreign_edit(name), Ok(Some(_))));
        let foreign = records.iter().map(|record| record.name.clone()).filter(|name| is_foreign(name));
        Self { restart: home.restart_advice(), foreign: foreign.collect() }
    }

    fn about(&self, account: &str) -> String {
        if self.foreign.contains(account) {
            return format!(
                "another tool changed it in the operator store (`bulkhead nsc check`): `bulkhead nsc import --accept {account}` \
                 takes the change, `bulkhead nsc restore {account}` takes it back; then `bulkhead push`"
            );
        }
        self.restart.clone()
    }
}

async fn in_force_finding(system: &Bus, servers: usize, record: &AccountRecord, advice: &Advice) -> Option<Finding> {
    let mut trouble: Vec<String> = match ask_account(system, record.key.as_str(), servers).await {
        Ok(answers) if answers.len() < servers => vec![format!("{} of {servers} servers answered", answers.len())],
        Ok(answers) => answers.iter().filter_map(|said| memory_trouble(said, &record.token)).collect(),
        Err(why) => vec![why],
    };
    trouble.extend(stored_trouble(system, record).await);
    (!trouble.is_empty()).then(|| IN_FORCE.fail(&record.name, trouble.join("; "), advice.about(&record.name)))
}

/// `servers` is how many answer: one that does not is another look, and waiting for it once an account takes for ever.
async fn hub_findings(home: &Home, system: &Bus, servers: usize, records: &[AccountRecord]) -> Vec<Finding> {
    let advice = Advice::new(home, records);
    let wanted: Vec<&AccountRecord> = records.iter().filter(|record| !home.is_offboarded(&record.name)).collect();
    let asked = wanted.iter().map(|record| in_force_finding(system, servers, record, &advice));
    let answers: Vec<Option<Finding>> = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut findings = summed(&IN_FORCE, "accounts", wanted.len(), answers.into_iter().flatten().collect());
    findings.extend(match ask(system, ServerQuestion::Accounts, json!({}), servers).await {
        Ok(answers) => unknown_findings(home, &answers, records),
        Err(why) => vec![UNKNOWN.fail("hub", why, "look again")],
    });
    findings
}

const IN_MEMORY: &str = "memory of ";

/// Accounts in the servers' memory and in their folders that are not in the store.
fn unknown_findings(home: &Home, answers: &[Said], records: &[AccountRecord]) -> Vec<Finding> {
    let mut known_by: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for said in answers {
        for account in said.data["accounts"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            known_by.entry(account.to_owned()).or_default().push(format!("{IN_MEMORY}{}", said.server));
        }
    }
    for hub in &home.hubs {
        for entry in std::fs::read_dir(hub.folder.join("jwt")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(account) = name.strip_suffix(".jwt") {
                known_by.entry(account.to_owned()).or_default().push(home.shown(&entry.path()));
            }
        }
    }
    let count = known_by.len();
    let purged: BTreeSet<String> = purges(&home.layout).into_iter().map(|purge| purge.account).collect();
    // A server remembers a deleted account, without any right, until it is started again. On a disk it has no place.
    let is_wanted = |account: &str, places: &[String]| {
        let ours = records.iter().find(|record| record.key.as_str() == account);
        let is_given_up = ours.map_or_else(|| purged.contains(account), |record| home.is_offboarded(&record.name));
        if is_given_up { places.iter().all(|place| place.starts_with(IN_MEMORY)) } else { ours.is_some() }
    };
    // The server's own account for clients without one is not an account of ours; nobody is admitted to it.
    let is_unknown =
        |(account, places): &(String, Vec<String>)| account.starts_with('A') && !is_wanted(account, places);
    let unknown = known_by.into_iter().filter(is_unknown);
    let advice = "find out who made it; delete the token from the hub's jwt folder and restart the hub, or restore nsc from a backup";
    let broken = unknown.map(|(account, places)| UNKNOWN.fail(&account, places.join(", "), advice));
    summed(&UNKNOWN, "accounts", count, broken.collect())
}

fn role_keys(record: &AccountRecord) -> Vec<RoleKey> {
    let key = |role: Role| record.role_key(role).map(|public| RoleKey { role, public: public.to_owned() });
    roles_of(&record.name).into_iter().filter_map(key).collect()
}

/// What accounts are rendered from.
struct Wanted {
    hub: HubSize,
    shards: BTreeMap<u32, Shard>,
    tenants: TenantRecords,
    plans: Plans,
}

impl Wanted {
    fn read(home: &Home) -> Self {
        Self {
            // A damaged record of the size is found where the next start would refuse it, and so are damaged shards.
            hub: hub_size(&home.layout).unwrap_or_default(),
            shards: Intake::new(&home.layout).shards().unwrap_or_default(),
            tenants: TenantRecords::new(&home.layout),
            plans: Plans::new(home.layout.plans()),
        }
    }
}

/// What this release renders for an account; `None` where what it is rendered from is not known.
fn rendered(record: &AccountRecord, core: &str, wanted: &Wanted) -> Option<AccountBody> {
    let keys = role_keys(record);
    let own = record.key.as_str();
    Some(match record.name.as_str() {
        SYSTEM => system_account(&keys),
        CORE => core_account(&keys, wanted.hub),
        OPS => tenant_account(&ops_plan(), own, core, &keys),
        shard if is_intake(shard) => {
            let shard = wanted.shards.get(&intake_number(shard)?)?;
            let imported = shard.tenants.iter().map(|(slug, key)| (slug.to_string(), key.to_string()));
            intake_account(&keys, &imported.collect::<Vec<_>>())
        }
        tenant => {
            let tenant = wanted.tenants.find(&tenant.parse().ok()?).ok()??;
            let body = tenant_account(&wanted.plans.get(tenant.plan).ok()?, own, core, &keys);
            if tenant.stage.is_open() { body } else { closed(body) }
        }
    })
}

fn is_tenant(account: &str) -> bool {
    account.parse::<TenantSlug>().is_ok()
}

/// The parts that differ, without signing keys, which are another look.
fn body_trouble(expected: &AccountBody, found: &AccountBody) -> Vec<String> {
    let json = |body: &AccountBody| serde_json::to_value(body).unwrap_or_default();
    let (expected, found) = (json(expected), json(found));
    let mut trouble = Vec::new();
    for part in ["exports", "imports", "default_permissions"] {
        if expected[part] != found[part] {
            trouble.push(format!("{part} differ"));
        }
    }
    let limits = [&expected["limits"], &found["limits"]].map(|limits| limits.as_object().cloned().unwrap_or_default());
    let mut names: Vec<&String> = limits.iter().flat_map(|limits| limits.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let [ours, theirs] = [&limits[0], &limits[1]].map(|limits| limits.get(name).unwrap_or(&Value::Null));
        if ours != theirs {
            trouble.push(format!("limit {name} is {theirs}, not {ours}"));
        }
    }
    trouble
}

fn rendered_findings(home: &Home, records: &[AccountRecord]) -> Vec<Finding> {
    let wanted = Wanted::read(home);
    let core = records.iter().find(|record| record.name == CORE).map_or("", |record| record.key.as_str());
    let judged: Vec<(&AccountRecord, Vec<String>)> = records
        .iter()
        .filter_map(|record| Some((record, body_trouble(&rendered(record, core, &wanted)?, &record.claims.nats))))
        .collect();
    let broken = judged.iter().filter(|(_, trouble)| !trouble.is_empty());
    let advice = Advice::new(home, records);
    let broken =
        broken.map(|(record, trouble)| RENDERED.fail(&record.name, trouble.join("; "), advice.about(&record.name)));
    summed(&RENDERED, "accounts", judged.len(), broken.collect())
}

fn tenant_findings(records: &[AccountRecord], tenants: &Tenants) -> Vec<Finding> {
    let mut broken = Vec::new();
    for (key, tenant) in &tenants.tenants {
        let slug = tenant.slug.as_str();
        match records.iter().find(|record| record.name == slug) {
            Some(record) if record.key == *key => {}
            Some(_) => {
                let advice = "find out which of the two is right: platform.tenant in the database, or nsc";
                broken.push(TENANT.fail(slug, "the database has another account for it", advice));
            }
            None => {
                let advice = "restore nsc from a backup, or remove the tenant from the database";
                broken.push(TENANT.fail(slug, "it is in the database and has no account", advice));
            }
        }
    }
    let is_known = |record: &&AccountRecord| {
        tenants.tenants.iter().any(|(key, tenant)| record.key == *key || record.name == tenant.slug.as_str())
    };
    let orphans = records.iter().filter(|record| is_tenant(&record.name)).filter(|record| !is_known(record));
    let advice = "start `bulkhead up` again: a start that was cut short is finished by the next one";
    broken.extend(
        orphans.map(|record| TENANT.fail(&record.name, "it has an account and is not in the database", advice)),
    );
    summed(&TENANT, "tenants", tenants.tenants.len(), broken)
}

fn migration_finding(home: &Home, state: &SchemaState) -> Finding {
    let missing: Vec<&i64> = state.expected.iter().filter(|version| !state.applied.contains(version)).collect();
    let newer: Vec<&i64> = state.applied.iter().filter(|version| !state.expected.contains(version)).collect();
    if !state.changed.is_empty() {
        let advice = "run the release that made the database, or restore the database from a backup";
        return MIGRATION.fail(&state.schema, format!("{:?} were applied with another text", state.changed), advice);
    }
    if !missing.is_empty() {
        return MIGRATION.fail(&state.schema, format!("{missing:?} are missing"), home.restart_advice());
    }
    if !newer.is_empty() {
        return MIGRATION.warn(&state.schema, format!("{newer:?} are of a newer release"), "run that release");
    }
    MIGRATION.ok(&state.schema, format!("at version {}", state.expected.last().unwrap_or(&0)))
}

fn place_finding(one: &Unsettled) -> Finding {
    let Unsettled { slug, plan, isolation, is_moving } = one;
    let found = match is_moving {
        true => format!("its rows are on their way, and were last in place {isolation:?}"),
        false => format!("its rows are in place {isolation:?}, and its plan is {plan}"),
    };
    let advice = format!(
        "unless somebody is moving them now: `bulkhead tenant plan {slug} {plan}`, which goes on where it stood"
    );
    PLACE.warn(slug, found, &advice)
}

async fn place_findings(database: &Inspection) -> Vec<Finding> {
    match limited(database.unsettled()).await {
        Ok(unsettled) if unsettled.is_empty() => {
            vec![PLACE.ok("tenants", "every tenant's rows are where its plan puts them")]
        }
        Ok(unsettled) => unsettled.iter().map(place_finding).collect(),
        Err(why) => vec![PLACE.fail("tenants", why, "look again; read logs/postgres.log")],
    }
}

async fn migration_findings(home: &Home, database: &Inspection) -> Vec<Finding> {
    match limited(database.schemas()).await {
        Ok(states) => states.iter().map(|state| migration_finding(home, state)).collect(),
        Err(why) => vec![MIGRATION.fail("database", why, home.restart_advice())],
    }
}

pub(super) async fn look(home: &Home, sources: &Sources, hub: &Hub, known: &Result<Known, String>) -> Vec<Finding> {
    let records = match known {
        Ok(known) => &known.accounts[..],
        Err(why) => return vec![RENDERED.fail("operator store", why, "restore nsc from a backup")],
    };
    let mut findings = match sources.system.get() {
        Some(system) if !hub.settings.is_empty() => hub_findings(home, system, hub.settings.len(), records).await,
        Some(_) | None => vec![IN_FORCE.skip("accounts", "the hub cannot be asked")],
    };
    let Some(database) = sources.database.get() else {
        findings.extend(rendered_findings(home, records));
        findings.push(TENANT.skip("tenants", "the database cannot be asked"));
        findings.push(MIGRATION.skip("database", "the database cannot be asked"));
        findings.push(PLACE.skip("tenants", "the database cannot be asked"));
        return findings;
    };
    let tenants = limited(database.tenants()).await;
    findings.extend(rendered_findings(home, records));
    findings.extend(match &tenants {
        Ok(tenants) => tenant_findings(records, tenants),
        Err(why) => vec![TENANT.fail("tenants", why, "look again; read logs/postgres.log")],
    });
    findings.extend(migration_findings(home, database).await);
    findings.extend(place_findings(database).await);
    findings
}

#[cfg(test)]
mod tests {
    use bulkhead_bus::{Tenant, TenantId, TenantState};
    use time::OffsetDateTime;

    use super::super::finding::Level;
    use super::*;
    use crate::plan::{Plan, PlanName};

    fn said(data: Value) -> Said {
        Said { server: "hub-1".to_owned(), version: String::new(), time: None, data }
    }

    #[test]
    fn a_server_holds_the_token_or_none() {
        assert_eq!(memory_trouble(&said(json!({"account_detail": {"jwt": "T"}})), "T"), None);
        assert_eq!(memory_trouble(&said(json!({})), "T"), None, "it is loaded when it is needed");
        assert!(memory_trouble(&said(json!({"account_detail": {"jwt": "U"}})), "T").is_some());
        let placeholder = json!({"account_detail": {"jwt": "", "complete": false, "expired": true}});
        assert_eq!(
            memory_trouble(&said(placeholder), "T"),
            None,
            "another server's accounts are placeholders at first"
        );
        assert_eq!(memory_trouble(&said(json!({"account_detail": {}})), "T"), None);
    }

    #[test]
    fn limits_that_differ_are_named_with_both_values() {
        let expected = tenant_account(&Plan::of(PlanName::Free), "AOWN", "ACORE", &[]);
        assert!(body_trouble(&expected, &expected).is_empty());
        let mut found = expected.clone();
        found.limits.leaf = 9;
        found.exports.clear();
        assert_eq!(body_trouble(&expected, &found), ["exports differ", "limit leaf is 9, not 2"]);
    }

    #[test]
    fn tenants_and_accounts_belong_together() {
        let folder = tempfile::tempdir().unwrap();
        let operator = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
        let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(PlanName::Free), own, "ACORE", keys);
        let account = |name: &str| operator.ensure_account(name, &Role::TENANT, 1_000, render).unwrap();
        let records = [account("acme-corp"), account("orphan"), operator.system().unwrap()];
        let tenant = |slug: &str| Tenant {
            id: TenantId::new(uuid::Uuid::nil()),
            slug: slug.parse().unwrap(),
            plan: "free".to_owned(),
            state: TenantState::Active,
            state_since_ms: 0,
            retention_days: 7,
            allows_unsigned: false,
        };
        let findings = |tenants| {
            let found = tenant_findings(&records, &Tenants { tenants, platform_accounts: vec![] });
            found.into_iter().filter(|finding| finding.level == Level::Fail).map(|finding| finding.subject).collect()
        };
        let both: Vec<String> =
            findings(vec![(records[0].key.clone(), tenant("acme-corp")), (records[1].key.clone(), tenant("orphan"))]);
        assert!(both.is_empty(), "{both:?}");
        let none: Vec<String> = findings(vec![(records[1].key.clone(), tenant("acme-corp"))]);
        assert_eq!(none, ["acme-corp"], "another account's key");
        let ghost: Vec<String> =
            findings(vec![(records[0].key.clone(), tenant("acme-corp")), (records[2].key.clone(), tenant("ghost"))]);
        assert_eq!(ghost, ["ghost", "orphan"]);
    }

    #[test]
    fn migrations_are_all_there_and_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::read(folder.path(), OffsetDateTime::UNIX_EPOCH);
        let judge = |applied: &[i64], changed: &[i64]| {
            let (applied, changed) = (applied.to_vec(), changed.to_vec());
            migration_finding(
                &home,
                &SchemaState { schema: "shared".to_owned(), expected: vec![1, 2], applied, changed },
            )
            .level
        };
        assert_eq!(judge(&[1, 2], &[]), Level::Ok);
        assert_eq!(judge(&[1], &[]), Level::Fail);
        assert_eq!(judge(&[1, 2, 3], &[]), Level::Warn);
        assert_eq!(judge(&[1, 2], &[2]), Level::Fail);
    }
}
