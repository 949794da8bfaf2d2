//! The database's own locks: roles without powers, forced row security on every table of tenants, and no way around it
//! through a partition.

use bulkhead_store::inspection::{RoleState, TableState};
use bulkhead_store::{Inspection, Service};

use super::finding::{Area, Finding, Look, summed};
use super::reach::{Sources, limited};

static ROLE: Look = Look {
    area: Area::Permissions,
    name: "database-role",
    rule: "no role of ours is superuser, bypasses row security or makes roles, but for the one without a login that makes tenants' roles; services own no table and are not in the owner's role",
    meaning: "row security does not hold for that role: it can read and write every tenant's rows",
};
static SECURITY: Look = Look {
    area: Area::Permissions,
    name: "row-security",
    rule: "row security is enabled and forced on every table of tenants and on every partition",
    meaning: "core can read and write rows of every tenant, whichever it has named",
};
static POLICY: Look = Look {
    area: Area::Permissions,
    name: "row-policy",
    rule: "each table of tenants has one policy, by app.tenant_id for reading and writing; a partition has none",
    meaning: "rows of other tenants are visible or can be written",
};
pub(super) const LOOKS: &[&Look] = &[&ROLE, &SECURITY, &POLICY];

const OWNER: &str = "bulkhead_owner";
const PROVISION: &str = "bulkhead_provision";
/// Makes and drops roles of tenants, and nobody can become it.
const ROLES: &str = "bulkhead_roles";
const SETTING: &str = "app.tenant_id";
const MIGRATE: &str = "find out who changed it; then set it right as the migrations in migrations/tenant do";

fn role_finding(role: &RoleState) -> Finding {
    let is_service = role.name != OWNER && role.name != PROVISION;
    let mut found = role.powers.clone();
    if role.name == ROLES {
        found.retain(|power| *power != "createrole");
    }
    if role.owns_tables && role.name != OWNER {
        found.push("owner of tables");
    }
    if role.is_member_of_owner && is_service {
        found.push("member of the owner's role");
    }
    if found.is_empty() {
        return ROLE.ok(&role.name, "without powers");
    }
    let advice = format!(
        "as superuser: alter role {} nosuperuser nobypassrls nocreaterole nocreatedb noreplication; a start of `bulkhead up` does it too",
        role.name
    );
    ROLE.fail(&role.name, found.join(", "), advice)
}

fn missing_role_findings(roles: &[RoleState]) -> Vec<Finding> {
    let is_gone = |name: &&&str| !roles.iter().any(|role| role.name == **name);
    let known: Vec<&str> = [OWNER, PROVISION, ROLES].into_iter().chain(Service::ALL.map(Service::login)).collect();
    known
        .iter()
        .filter(is_gone)
        .map(|name| ROLE.fail(name, "there is no such role", "start `bulkhead up` again"))
        .collect()
}

fn security_findings(tables: &[&TableState]) -> Vec<Finding> {
    let broken = tables.iter().filter(|table| !(table.is_secured && table.is_forced)).map(|table| {
        let found = match (table.is_secured, table.is_forced) {
            (false, _) => "row security is disabled",
            (true, _) => "row security is not forced: the owner is exempt",
        };
        let advice = format!(
            "as bulkhead_owner: alter table {0} enable row level security; alter table {0} force row level security",
            table.name
        );
        SECURITY.fail(&table.name, found, advice)
    });
    summed(&SECURITY, "tables", tables.len(), broken.collect())
}

fn policy_trouble(table: &TableState) -> Option<String> {
    match (table.is_partition, table.policies.as_slice()) {
        (true, []) => None,
        (true, policies) => Some(format!("a partition with {} policies", policies.len())),
        (false, [(read, write)]) if read == write && read.contains(SETTING) && !read.contains(" OR ") => None,
        (false, [(read, write)]) => Some(format!("reading {read:?}, writing {write:?}")),
        (false, policies) => Some(format!("{} policies", policies.len())),
    }
}

fn table_findings(
    look: &'static Look,
    tables: &[&TableState],
    trouble: impl Fn(&TableState) -> Option<String>,
) -> Vec<Finding> {
    let broken = tables.iter().filter_map(|table| Some(look.fail(&table.name, trouble(table)?, MIGRATE)));
    summed(look, "tables", tables.len(), broken.collect())
}

async fn database_findings(database: &Inspection) -> Result<Vec<Finding>, String> {
    let roles = limited(database.roles()).await?;
    let tables = limited(database.tenant_tables()).await?;
    let of_tenants: Vec<&TableState> = tables.iter().filter(|table| table.has_tenant).collect();
    let mut findings: Vec<Finding> = roles.iter().map(role_finding).collect();
    findings.extend(missing_role_findings(&roles));
    findings.extend(security_findings(&of_tenants));
    findings.extend(table_findings(&POLICY, &of_tenants, policy_trouble));
    Ok(findings)
}

pub(super) async fn look(sources: &Sources) -> Vec<Finding> {
    match sources.database.get() {
        None => vec![SECURITY.skip("database", "the database cannot be asked")],
        Some(database) => database_findings(database)
            .await
            .unwrap_or_else(|why| vec![SECURITY.fail("database", why, "look again; read logs/postgres.log")]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    const CORE: &str = "bulkhead_core";

    fn role(name: &str) -> RoleState {
        RoleState {
            name: name.to_owned(),
            powers: vec![],
            owns_tables: false,
            is_member_of_owner: false,
            hindrances: vec![],
        }
    }

    #[test]
    fn roles_have_no_powers_and_services_own_nothing() {
        assert_eq!(role_finding(&role(CORE)).level, Level::Ok);
        for broken in [
            RoleState { powers: vec!["bypassrls"], ..role(CORE) },
            RoleState { owns_tables: true, ..role(CORE) },
            RoleState { is_member_of_owner: true, ..role(CORE) },
            RoleState { powers: vec!["superuser"], ..role(OWNER) },
            RoleState { owns_tables: true, ..role(PROVISION) },
        ] {
            assert_eq!(role_finding(&broken).level, Level::Fail, "{broken:?}");
        }
        assert_eq!(role_finding(&RoleState { owns_tables: true, ..role(OWNER) }).level, Level::Ok);
        assert_eq!(role_finding(&RoleState { is_member_of_owner: true, ..role(PROVISION) }).level, Level::Ok);
        let missing = missing_role_findings(&[role(OWNER), role(CORE)]);
        let missing: Vec<&str> = missing.iter().map(|finding| &*finding.subject).collect();
        assert_eq!(missing, [PROVISION, ROLES, "bulkhead_registry", "bulkhead_dispatch"]);
    }

    fn table() -> TableState {
        let condition = "(tenant_id = ( SELECT current_setting('app.tenant_id')::uuid))".to_owned();
        TableState {
            name: "result".to_owned(),
            has_tenant: true,
            is_secured: true,
            is_forced: true,
            policies: vec![(condition.clone(), condition)],
            ..TableState::default()
        }
    }

    fn partition() -> TableState {
        TableState { name: "result_20260101".to_owned(), is_partition: true, policies: vec![], ..table() }
    }

    #[test]
    fn a_table_or_partition_with_a_gap_is_named() {
        assert_eq!(security_findings(&[&table(), &partition()])[0].level, Level::Ok);
        let open = TableState { is_secured: false, ..partition() };
        assert_eq!(security_findings(&[&table(), &open])[0].subject, "result_20260101");
        let lax = TableState { is_forced: false, ..table() };
        assert!(security_findings(&[&lax])[0].found.contains("not forced"));
        for (good, bad) in [
            (table(), TableState { policies: vec![], ..table() }),
            (table(), TableState { policies: vec![("true".to_owned(), "true".to_owned())], ..table() }),
            (partition(), TableState { policies: table().policies, ..partition() }),
        ] {
            assert_eq!(policy_trouble(&good), None);
            assert!(policy_trouble(&bad).is_some(), "{bad:?}");
        }
    }
}
