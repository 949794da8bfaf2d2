//! Who may use what in the database: what the migrations grant, which is what should be, and what is. Settings and
//! limits of roles as well, since they take away what a grant gives.

use std::collections::BTreeSet;

use crate::admin::{DATABASE_GRANT, TENANT_ROLES};
use crate::isolation::SHARED;
use crate::migrations::{migrations_grant, migrations_text};

/// One privilege on one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// In the words of `grant`: `shared.result`, `function shared.f(date)`, `schema shared`, `database bulkhead`.
    pub object: String,
    /// `PUBLIC` is everybody.
    pub role: String,
    /// Such as `SELECT`.
    pub privilege: String,
}

/// What this release grants, and what is granted; owners are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    pub expected: BTreeSet<Right>,
    pub found: BTreeSet<Right>,
}

/// Words that begin an object that is no table.
const KINDS: [&str; 4] = ["schema ", "function ", "database ", "sequence "];

/// Everything that is granted in the database except to owners. A function without a list may be run by everybody.
/// That everybody may look into the empty schema `public` is how PostgreSQL comes.
pub(crate) const FOUND: &str = "
    with seen (object, owner, acl) as (
        select format('%s.%s', n.nspname, c.relname), c.relowner, c.relacl
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'v', 'm', 'f')
        union all
        select format('sequence %s.%s', n.nspname, c.relname), c.relowner, c.relacl
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'S'
        union all
        select format('%s.%s', n.nspname, c.relname), c.relowner, a.attacl
        from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
        where a.attacl is not null and not a.attisdropped
        union all
        select format('function %s.%s(%s)', n.nspname, p.proname, oidvectortypes(p.proargtypes)), p.proowner,
               coalesce(p.proacl, acldefault('f', p.proowner))
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        union all
        select format('schema %s', n.nspname), n.nspowner, n.nspacl from pg_namespace n where n.nspname <> 'public'
        union all
        select format('database %s', d.datname), d.datdba, coalesce(d.datacl, acldefault('d', d.datdba))
        from pg_database d where d.datname = current_database())
    select s.object, coalesce(g.rolname::text, 'PUBLIC'), acl.privilege_type
    from seen s, aclexplode(s.acl) acl left join pg_roles g on g.oid = acl.grantee
    where acl.grantee <> s.owner
      and regexp_replace(s.object, '^(sequence|function|schema) ', '') !~ '^(pg_|information_schema)'";

/// What the migrations and the preparation of the database grant.
pub(crate) fn expected(own_schemas: &[String]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    apply(&mut rights, "", DATABASE_GRANT);
    apply(&mut rights, "", TENANT_ROLES);
    for (schema, text) in migrations_text() {
        apply(&mut rights, schema, &text);
        let own: Vec<Right> =
            own_schemas.iter().flat_map(|own| rights.iter().filter_map(|right| in_own(right, own))).collect();
        rights.extend(own);
        apply(&mut rights, schema, &migrations_grant(schema));
    }
    rights
}

/// In the schema of one tenant the same is granted as in the shared one, to that tenant's role.
fn in_own(right: &Right, schema: &str) -> Option<Right> {
    let object = if right.object == format!("schema {SHARED}") {
        format!("schema {schema}")
    } else {
        let (kind, object) =
            right.object.rsplit_once(' ').map_or(("", &*right.object), |(kind, object)| (kind, object));
        let rest = object.strip_prefix(SHARED)?.strip_prefix('.')?;
        format!("{kind}{}{schema}.{rest}", if kind.is_empty() { "" } else { " " })
    };
    let service = right.role.strip_prefix("bulkhead_")?;
    Some(Right { object, role: format!("{schema}_{service}"), privilege: right.privilege.clone() })
}

/// Reads the `grant` and `revoke` of one migration, also those that are put together with the schema's name.
fn apply(rights: &mut BTreeSet<Right>, schema: &str, sql: &str) {
    let lines: Vec<&str> = sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    for statement in lines.join(" ").split(';') {
        let statement = &in_shared(statement).replace("%1$I", schema).replace("%I", schema);
        if let Some((granted, _)) = read(statement, "grant ", " to ", schema) {
            rights.extend(granted);
        }
        if let Some((revoked, is_all)) = read(statement, "revoke ", " from ", schema) {
            let is_same = |right: &Right, gone: &Right| {
                right.object == gone.object && right.role == gone.role && (is_all || right.privilege == gone.privilege)
            };
            rights.retain(|right| !revoked.iter().any(|gone| is_same(right, gone)));
        }
    }
}

/// What a statement that is put together for the role of a service says in the shared schema.
fn in_shared(statement: &str) -> String {
    let service = statement.split_once("runtime_role('").and_then(|(_, rest)| rest.split_once('\''));
    let Some((service, _)) = service else { return statement.to_owned() };
    ["%1$I'", "%2$I'", "%I'"].iter().fold(statement.to_owned(), |text, place| {
        text.replace(&format!(" to {place}"), &format!(" to bulkhead_{service}'"))
    })
}

/// Each right of one statement, and whether it is about all privileges.
fn read(statement: &str, verb: &str, between: &str, schema: &str) -> Option<(Vec<Right>, bool)> {
    let (_, rest) = statement.split_once(verb)?;
    let (privileges, rest) = rest.split_once(" on ")?;
    let (objects, roles) = rest.split_once(between)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ',' || c == ' ';
    let roles = roles.split(|c| !is_name(c)).next()?;
    let kind = KINDS.into_iter().find(|kind| objects.trim_start().starts_with(kind)).unwrap_or_default();
    let objects = &objects.trim_start()[kind.len()..];
    // A function's arguments are separated by commas as well: one function a statement.
    let objects: Vec<&str> = if kind == "function " { vec![objects] } else { objects.split(',').collect() };
    let mut rights = Vec::new();
    for object in objects.into_iter().map(str::trim) {
        let is_whole = object.contains('.') || kind == "schema " || kind == "database ";
        let object = if is_whole { format!("{kind}{object}") } else { format!("{kind}{schema}.{object}") };
        for role in roles.split(',').map(str::trim) {
            let role = if role == "public" { "PUBLIC".to_owned() } else { role.to_owned() };
            rights.extend(privileges.split(',').map(|privilege| Right {
                object: object.clone(),
                role: role.clone(),
                privilege: privilege.trim().to_uppercase(),
            }));
        }
    }
    Some((rights, privileges.trim() == "all"))
}

/// A setting that a role of ours, the database or everybody has of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSetting {
    /// `role bulkhead_core`, `role all` or `database bulkhead`, in the words of `alter`.
    pub of: String,
    pub name: String,
    pub value: String,
}

/// Settings that decide whether what was committed is kept, and whether anything can be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    pub own: Vec<OwnSetting>,
    /// What the server says to whoever has no setting of its own.
    pub server: Vec<(String, String)>,
}

pub(crate) const OWN_SETTINGS: &str = "
    select case when d.oid is not null and s.setrole = 0 then 'database ' || d.datname
                else 'role ' || coalesce(r.rolname, 'all') || coalesce(' in database ' || d.datname, '') end,
           split_part(entry, '=', 1), substr(entry, strpos(entry, '=') + 1)
    from pg_db_role_setting s cross join unnest(s.setconfig) entry
    left join pg_roles r on r.oid = s.setrole left join pg_database d on d.oid = s.setdatabase
    where (s.setrole = 0 or r.rolname in ('bulkhead_core', 'bulkhead_registry', 'bulkhead_dispatch', 'bulkhead_provision', 'bulkhead_owner'))
      and (s.setdatabase = 0 or d.datname = current_database()) order by 1, 2";

/// What a session falls back to: what this connection has set for itself is not in it.
pub(crate) const SERVER_SETTINGS: &str = "
    select name, reset_val from pg_settings
    where name in ('fsync', 'full_page_writes', 'synchronous_commit', 'default_transaction_read_only') order by 1";

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rights: &BTreeSet<Right>) -> Vec<String> {
        rights.iter().map(|right| format!("{} {} {}", right.role, right.privilege, right.object)).collect()
    }

    #[test]
    fn grants_are_read_from_the_text_of_a_migration() {
        let sql = "-- Nobody gets a grant on this;\ngrant select, insert on a,\n    b to core;
            do $$ begin execute format('grant usage on schema %I to core', current_schema()); end $$;
            revoke all on function f(date, text) from public;\ngrant execute on function f(date, text) to core;
            grant select on other.c to public; revoke insert on b from core;";
        let mut rights = BTreeSet::new();
        apply(&mut rights, "s", sql);
        let expected = [
            "core EXECUTE function s.f(date, text)",
            "PUBLIC SELECT other.c",
            "core INSERT s.a",
            "core SELECT s.a",
            "core SELECT s.b",
            "core USAGE schema s",
        ];
        assert_eq!(shown(&rights), expected);
        apply(&mut rights, "s", "revoke all on a, b from core");
        assert_eq!(rights.len(), 3, "{rights:?}");
    }

    #[test]
    fn what_services_need_is_expected() {
        let expected = shown(&expected(&["tenant_acme_corp".to_owned()]));
        for right in [
            "bulkhead_core CONNECT database bulkhead",
            "bulkhead_core USAGE schema platform",
            "bulkhead_core USAGE schema shared",
            "bulkhead_core INSERT shared.result",
            "bulkhead_core SELECT shared._migrations",
            "bulkhead_core EXECUTE function shared.ensure_result_partition(date)",
            "bulkhead_core INSERT platform.unclaimed_dead_letter",
            "bulkhead_owner EXECUTE function provisioning.make_role(text)",
            "tenant_acme_corp_core USAGE schema tenant_acme_corp",
            "tenant_acme_corp_core INSERT tenant_acme_corp.result",
            "tenant_acme_corp_core EXECUTE function tenant_acme_corp.ensure_result_partition(date)",
            "bulkhead_registry CONNECT database bulkhead",
            "bulkhead_registry SELECT platform._migrations",
            "bulkhead_registry INSERT shared.member_event",
            "tenant_acme_corp_registry INSERT tenant_acme_corp.member_event",
            "bulkhead_dispatch UPDATE platform.dispatch_leader",
            "bulkhead_dispatch DELETE shared.check_definition",
            "tenant_acme_corp_dispatch USAGE schema tenant_acme_corp",
            "tenant_acme_corp_dispatch UPDATE tenant_acme_corp.run_order",
        ] {
            assert!(expected.iter().any(|one| one == right), "{right} is not in {expected:#?}");
        }
        assert!(!expected.iter().any(|one| one.starts_with("bulkhead_") && one.contains(" tenant_acme_corp")));
        let deletes: Vec<&String> = expected.iter().filter(|one| one.contains("DELETE")).collect();
        assert!(deletes.len() == 4 && deletes.iter().all(|one| one.contains("_dispatch ")), "{deletes:#?}");
        assert!(!expected.iter().any(|one| one.contains("PUBLIC")), "{expected:#?}");
    }
}
