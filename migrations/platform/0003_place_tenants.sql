-- Where each tenant's rows are, and the schemas that hold one tenant's alone (docs/adr/0015).
-- Run as bulkhead_owner, with search_path set to the schema platform.

alter table tenant
    -- Where its rows are now. Where its plan puts them is isolation_of in crates/store; a move brings them there.
    add column isolation text not null default 'shared' check (isolation in ('shared', 'schema'));

-- Every schema of one tenant, with the version of its tables.
create table tenant_schema (
    tenant_id uuid primary key,
    schema    text not null unique check (schema ~ '^tenant_[a-z0-9_]{1,40}$'),
    version   bigint not null,
    made_at   timestamptz not null default now()
);

-- Moves of a tenant's rows that were begun and not ended: where they go, and since when.
create table tenant_move (
    tenant_id uuid primary key,
    isolation text not null check (isolation in ('shared', 'schema')),
    began_at  timestamptz not null default clock_timestamp()
);

-- No two pollers, of whichever tenants and in whichever schema: a batch that one signed must never be another's.
create table batch_key (
    batch_key text primary key,
    tenant_id uuid not null
);

-- Keeps the list of keys. For the table of pollers of each schema that holds tenants.
create function note_batch_key() returns trigger
language plpgsql set search_path = platform, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        delete from batch_key where batch_key = old.batch_key and tenant_id = old.tenant_id;
    end if;
    if tg_op <> 'DELETE' and new.batch_key is not null then
        insert into batch_key values (new.batch_key, new.tenant_id) on conflict do nothing;
        if not exists (select from batch_key where batch_key = new.batch_key and tenant_id = new.tenant_id) then
            raise exception 'another tenant has this batch key'
                using errcode = 'unique_violation', constraint = 'poller_batch_key_key';
        end if;
    end if;
    return null;
end
$$;
revoke all on function note_batch_key() from public;

-- Extra auditing (pro and enterprise): what was written to a table of configuration, before and after. For the tables of each
-- schema that holds tenants, beside whose own list of changes it writes.
create function note_config_change() returns trigger
language plpgsql set search_path = platform, pg_temp
as $$
declare
    owner_id uuid := coalesce(new.tenant_id, old.tenant_id);
begin
    if (select plan in ('pro', 'enterprise') from tenant where tenant_id = owner_id) then
        execute format(
            'insert into %I.config_change (tenant_id, table_name, act, changed_by, was, is_now)
             values ($1, $2, $3, $4, $5, $6)', tg_table_schema)
        using owner_id, tg_table_name, lower(tg_op),
              coalesce(nullif(current_setting('app.changed_by', true), ''), session_user),
              case when tg_op <> 'INSERT' then to_jsonb(old) end,
              case when tg_op <> 'DELETE' then to_jsonb(new) end;
    end if;
    return null;
end
$$;
revoke all on function note_config_change() from public;

-- What a service must know at least to work with tables that a migration has taken something from. Only such a migration
-- raises it.
create table schema_floor (
    migrations    text primary key check (migrations in ('platform', 'tenant')),
    oldest_reader bigint not null
);
insert into schema_floor values ('platform', 3), ('tenant', 3);

-- The role that a service becomes to reach the tables of the schema that is being migrated.
create function runtime_role(service text) returns text
language sql stable
begin atomic
    select case when current_schema() = 'shared' then 'bulkhead_' || service else current_schema() || '_' || service end;
end;
revoke all on function runtime_role(text) from public;

grant select on tenant_schema, schema_floor to bulkhead_core;
