-- What tenants may have of checks, who plans, and what the two services see of tenants.
-- Run as bulkhead_owner, with search_path set to the schema platform.

-- As the plan says. A tenant without a row has no checks of its own yet: provisioning writes the row with the tenant.
create table tenant_quota (
    tenant_id            uuid primary key,
    checks               integer not null check (checks >= 0),
    -- Runs of all its checks at all vantages.
    runs_per_minute      integer not null check (runs_per_minute >= 0),
    interval_s_least     integer not null check (interval_s_least between 1 and 86400),
    vantages             integer not null check (vantages >= 1),
    on_demand_per_minute integer not null check (on_demand_per_minute >= 0)
);

-- Who plans, for as long as it says so again. The epoch grows whenever somebody else takes over, and a plan is only stored under the
-- epoch of now.
create table dispatch_leader (
    only_one boolean primary key default true check (only_one),
    epoch    bigint not null,
    holder   text not null,
    until    timestamptz not null
);
insert into dispatch_leader (epoch, holder, until) values (0, '', now());

-- As it was, and run as the owner: checks are written by a service, whose role neither reads the platform's tables from a schema of
-- one tenant nor writes what lists its changes.
create or replace function note_config_change() returns trigger
language plpgsql security definer set search_path = platform, pg_temp
as $$
declare
    owner_id uuid := coalesce(new.tenant_id, old.tenant_id);
    named text := coalesce(current_setting('app.tenant_id', true), '');
begin
    if (select plan in ('pro', 'enterprise') from tenant where tenant_id = owner_id) then
        -- Row security holds for the owner as well, and whoever changes a row by hand has named nobody.
        perform set_config('app.tenant_id', owner_id::text, true);
        execute format(
            'insert into %I.config_change (tenant_id, table_name, act, changed_by, was, is_now)
             values ($1, $2, $3, $4, $5, $6)', tg_table_schema)
        using owner_id, tg_table_name, lower(tg_op),
              coalesce(nullif(current_setting('app.changed_by', true), ''), session_user),
              case when tg_op <> 'INSERT' then to_jsonb(old) end,
              case when tg_op <> 'DELETE' then to_jsonb(new) end;
        perform set_config('app.tenant_id', named, true);
    end if;
    return null;
end
$$;

grant usage on schema platform to bulkhead_registry, bulkhead_dispatch;
grant select on tenant, platform_account, tenant_schema, schema_floor to bulkhead_registry, bulkhead_dispatch;
grant select on tenant_quota to bulkhead_dispatch, bulkhead_core;
grant select, update on dispatch_leader to bulkhead_dispatch;
