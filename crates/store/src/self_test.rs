//! What a service makes sure of before it serves anybody: that the database keeps tenants apart, for this very role.

use bulkhead_bus::TenantId;
use sqlx::{AssertSqlSafe, Connection, Row};
use uuid::Uuid;

use crate::isolation::SHARED;
use crate::pooler::Link;
use crate::store::{PlatformConnection, StoreError, failed};

/// Of this role and every role that it may become.
const OWN_ROLES: &str = "
    select case when r.rolname = 'bulkhead_owner' then current_user else r.rolname end::text,
           case when r.rolsuper then 'a superuser'
                when r.rolbypassrls then 'exempt from row security'
                when r.rolcreaterole then 'a maker of roles'
                when r.rolname = 'bulkhead_owner' then 'a member of the role that owns the tables'
                when exists (select from pg_class c where c.relkind in ('r', 'p') and c.relowner = r.oid)
                    then 'an owner of tables'
           end as what
    from pg_roles r where pg_has_role(current_user, r.oid, 'member')
    order by r.rolname = current_user desc, 1";

/// What is wrong with a table of tenants or a partition, in every schema that holds tenants.
const OPEN_TABLES: &str = "
    with place (schema) as (select 'shared' union all select schema from platform.tenant_schema),
    policy (relid, count, good) as (
        select p.polrelid, count(*), count(*) filter (where p.polcmd = '*' and p.polpermissive
                   and pg_get_expr(p.polqual, p.polrelid)
                       = '(tenant_id = ( SELECT (current_setting(''app.tenant_id''::text))::uuid AS current_setting))'
                   and pg_get_expr(p.polwithcheck, p.polrelid) = pg_get_expr(p.polqual, p.polrelid))
        from pg_policy p group by 1)
    select n.nspname || '.' || c.relname || ': ' || concat_ws(', ',
               case when not c.relrowsecurity then 'row security is disabled' end,
               case when not c.relforcerowsecurity then 'row security is not forced' end,
               case when not c.relispartition and (p.good is distinct from 1 or p.count <> 1)
                    then 'its policy is not the one for tenants, for reading and writing' end,
               case when c.relispartition and p.count > 0 then 'a partition with a policy of its own' end,
               case when c.relispartition and exists (
                        select from aclexplode(c.relacl) acl where acl.grantee <> c.relowner) then 'a partition that is granted' end,
               case when n.nspname <> 'shared' and exists (
                        select from aclexplode(c.relacl) acl where acl.grantee in (0, current_user::regrole))
                    then 'granted to a role that is not the tenant''s' end)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join place on place.schema = n.nspname
    left join policy p on p.relid = c.oid
    where c.relkind in ('r', 'p')
      and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
      and (not c.relrowsecurity or not c.relforcerowsecurity
           or not c.relispartition and (p.good is distinct from 1 or p.count <> 1)
           or c.relispartition and (p.count > 0 or exists (
                  select from aclexplode(c.relacl) acl where acl.grantee <> c.relowner))
           or n.nspname <> 'shared' and exists (
                  select from aclexplode(c.relacl) acl where acl.grantee in (0, current_user::regrole)))
    order by 1";

/// Makes sure that row security holds for this role and every one that it may become.
pub(crate) async fn check_roles(platform: &mut PlatformConnection) -> Result<(), StoreError> {
    let looking = failed("look at our own role");
    for row in sqlx::query(OWN_ROLES).fetch_all(platform.connection()).await.map_err(&looking)? {
        if let Some(what) = row.get::<Option<String>, _>(1) {
            return Err(StoreError::Privileged { role: row.get(0), what });
        }
    }
    Ok(())
}

/// Makes sure that every table of tenants is locked, and that a tenant that does not exist sees nothing.
pub(crate) async fn check_tables(platform: &mut PlatformConnection) -> Result<(), StoreError> {
    let looking = failed("make sure that tenants are kept apart");
    let open: Vec<String> = sqlx::query_scalar(OPEN_TABLES).fetch_all(platform.connection()).await.map_err(&looking)?;
    if !open.is_empty() {
        return Err(StoreError::NotApart(open));
    }
    see_nothing(platform).await
}

/// What the catalogue says is one thing, and what is seen another.
async fn see_nothing(platform: &mut PlatformConnection) -> Result<(), StoreError> {
    let looking = failed("make sure that a stranger sees nothing");
    let tables = "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where n.nspname = $1 and c.relkind in ('r', 'p') and not c.relispartition
                    and has_table_privilege(c.oid, 'select')
                    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id')";
    let tables: Vec<String> =
        sqlx::query_scalar(tables).bind(SHARED).fetch_all(platform.connection()).await.map_err(&looking)?;
    let nobody = TenantId::new(Uuid::new_v4());
    let pooler = platform.pooler();
    let mut connection = platform.connection();
    let mut tx = connection.begin().await.map_err(&looking)?;
    let name = sqlx::query("select set_config('app.tenant_id', $1, true)").bind(nobody.as_uuid().to_string());
    name.execute(Link::new(&mut tx, pooler)).await.map_err(&looking)?;
    for table in tables {
        let sql = format!("select exists (select from {SHARED}.{table})");
        let seen = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(Link::new(&mut tx, pooler)).await;
        if seen.map_err(&looking)? {
            return Err(StoreError::NotApart(vec![format!(
                "{SHARED}.{table}: a tenant that does not exist sees rows"
            )]));
        }
    }
    Ok(())
}
