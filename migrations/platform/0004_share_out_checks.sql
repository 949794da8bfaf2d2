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

grant usage on schema platform to bulkhead_registry, bulkhead_dispatch;
grant select on tenant, platform_account, tenant_schema, schema_floor to bulkhead_registry, bulkhead_dispatch;
grant select on tenant_quota to bulkhead_dispatch, bulkhead_core;
grant select, update on dispatch_leader to bulkhead_dispatch;
