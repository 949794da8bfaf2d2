-- A tenant's data. Run as bulkhead_owner, with search_path set to the schema that it goes to: the shared one, where
-- forced row security keeps tenants apart, or one tenant's own.

create table site (
    tenant_id  uuid not null,
    name       text not null,
    created_at timestamptz not null default now(),
    primary key (tenant_id, name)
);

create table poller (
    tenant_id  uuid not null,
    site       text not null,
    name       text not null,
    -- No two pollers, of whichever tenants: a batch that one signed must never be another's.
    batch_key  text not null unique,
    state      text not null default 'active' check (state in ('active', 'revoked')),
    created_at timestamptz not null default now(),
    primary key (tenant_id, site, name)
);

-- What core last stored of a poller; apart from the poller's own row, which only provisioning writes.
create table poller_seen (
    tenant_id       uuid not null,
    site            text not null,
    poller          text not null,
    last_batch_at   timestamptz not null,
    sequence_boot   bigint,
    sequence_number bigint,
    primary key (tenant_id, site, poller)
);

-- One row a slot of a check at a vantage. No foreign keys: they double the cost of a row (docs/adr/0005).
create table result (
    tenant_id   uuid not null,
    check_name  text not null,
    slot        timestamptz not null,
    vantage     text not null,
    poller      text not null,
    kind        text not null,
    outcome     text not null,
    reason      text,
    latency_us  bigint,
    started_at  timestamptz not null,
    generation  bigint not null,
    island      boolean not null,
    attested    boolean not null,
    -- 0 as first stored; how often a better row has replaced it.
    revision    integer not null default 0,
    detail      jsonb,
    received_at timestamptz not null default now(),
    primary key (tenant_id, check_name, slot, vantage) include (outcome, latency_us)
) partition by range (slot);

create table check_state (
    tenant_id  uuid not null,
    check_name text not null,
    vantage    text not null,
    poller     text not null,
    kind       text not null,
    slot       timestamptz not null,
    outcome    text not null,
    reason     text,
    latency_us bigint,
    since      timestamptz not null,
    primary key (tenant_id, check_name, vantage)
) with (fillfactor = 60);

-- What could not be stored as results, with the reason. The digest makes a redelivery harmless.
create table dead_letter (
    tenant_id   uuid not null,
    digest      bytea not null,
    row_index   integer not null,
    reason      text not null,
    detail      text not null,
    stream      text not null,
    subject     text not null,
    headers     text not null,
    payload     bytea not null,
    delivered   bigint not null,
    received_at timestamptz not null default now(),
    primary key (tenant_id, digest, row_index)
);

-- Written with the rows that it counts, so that the books balance.
create table ingest_count (
    tenant_id    uuid primary key,
    batches      bigint not null,
    results      bigint not null,
    replaced     bigint not null,
    duplicates   bigint not null,
    dead_letters bigint not null
);

do $$
declare
    name text;
begin
    foreach name in array array['site', 'poller', 'poller_seen', 'result', 'check_state', 'dead_letter', 'ingest_count']
    loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        -- The sub-select is evaluated once a statement and not once a row. Without a tenant it is an error.
        execute format(
            'create policy tenant on %I '
            'using (tenant_id = (select current_setting(''app.tenant_id'')::uuid)) '
            'with check (tenant_id = (select current_setting(''app.tenant_id'')::uuid))', name);
    end loop;
end
$$;

-- Partitions are made by the owner when a day is first written. They have row security without a policy and no
-- grants: policies of the parent do not hold for a partition that is named directly.
do $body$
begin
    execute format($create$
        create function ensure_result_partition(day date) returns void
        language plpgsql security definer set search_path = %1$I, pg_temp
        as $function$
        declare
            partition text := 'result_' || to_char(day, 'YYYYMMDD');
        begin
            if day < current_date - 3700 or day > current_date + 10 then
                raise exception 'day %% is outside what results may be kept for', day;
            end if;
            perform pg_advisory_xact_lock(hashtext('ensure_result_partition'));
            if to_regclass(partition) is null then
                execute format(
                    'create table %%I partition of result for values from (%%L) to (%%L)',
                    partition, (day::text || ' 00:00:00+00')::timestamptz,
                    ((day + 1)::text || ' 00:00:00+00')::timestamptz);
                execute format('alter table %%I enable row level security', partition);
                execute format('alter table %%I force row level security', partition);
            end if;
        end
        $function$
    $create$, current_schema());
end
$body$;

revoke all on function ensure_result_partition(date) from public;
grant execute on function ensure_result_partition(date) to bulkhead_core;

do $$
begin
    execute format('grant usage on schema %I to bulkhead_core', current_schema());
end
$$;
grant select on site, poller to bulkhead_core;
grant select, insert, update on poller_seen, result, check_state, ingest_count to bulkhead_core;
grant select, insert on dead_letter to bulkhead_core;
