-- Extra auditing, keys of pollers that are nobody else's, retention, and what is different in a schema of one tenant: a service reaches
-- it as that tenant's role and not as its own, and a partition holds a month (docs/adr/0015).
-- Run as bulkhead_owner, with search_path set to the schema that holds tenants.

-- Closed here because the tenant's rows are, or are being brought, elsewhere: whoever still writes here is to look again.
alter table ingest_count add column moved boolean not null default false;

-- Every write to a table of configuration, for plans with extra auditing. Nobody changes or removes a row while its tenant is
-- there.
create table config_change (
    tenant_id  uuid not null,
    changed_at timestamptz not null default clock_timestamp(),
    id         uuid not null default gen_random_uuid(),
    table_name text not null,
    act        text not null check (act in ('insert', 'update', 'delete')),
    changed_by text not null,
    was        jsonb,
    is_now     jsonb,
    primary key (tenant_id, changed_at, id)
);
alter table config_change enable row level security;
alter table config_change force row level security;
create policy tenant on config_change
    using (tenant_id = (select current_setting('app.tenant_id')::uuid))
    with check (tenant_id = (select current_setting('app.tenant_id')::uuid));

create trigger note_config_change after insert or update or delete on site
    for each row execute function platform.note_config_change();
create trigger note_config_change after insert or update or delete on poller
    for each row execute function platform.note_config_change();

-- The keys of pollers that are there, of all tenants: for this one statement the owner is exempt from row security.
alter table poller no force row level security;
insert into platform.batch_key select batch_key, tenant_id from poller on conflict do nothing;
alter table poller force row level security;
create trigger note_batch_key after insert or update or delete on poller
    for each row execute function platform.note_batch_key();
grant select on config_change to bulkhead_core;

-- What a plan keeps no longer. Run by core, in a transaction that has named its tenant; both say how much went. Of several
-- that come at once one does it.
do $body$
begin
    execute format($create$
        create function remove_old_rows(most integer) returns bigint
        language plpgsql security definer set search_path = %1$I, pg_temp
        as $function$
        declare
            owner_id uuid := current_setting('app.tenant_id')::uuid;
            kept_from timestamptz := (select now() - make_interval(days => retention_days) from platform.tenant
                                      where tenant_id = owner_id);
            gone bigint;
            letters bigint;
        begin
            if kept_from is null or not pg_try_advisory_xact_lock(hashtext('remove_old_rows'), hashtext(owner_id::text)) then
                return 0;
            end if;
            -- What is being moved is the same in both places, or it is not moved.
            if exists (select from platform.tenant_move m where m.tenant_id = owner_id) then
                return 0;
            end if;
            delete from result r using (
                select check_name, slot, vantage from result where tenant_id = owner_id and slot < kept_from limit most) old
            where r.tenant_id = owner_id and r.slot < kept_from
              and r.check_name = old.check_name and r.slot = old.slot and r.vantage = old.vantage;
            get diagnostics gone = row_count;
            delete from dead_letter d using (
                select digest, row_index from dead_letter where tenant_id = owner_id and received_at < kept_from limit most) old
            where d.tenant_id = owner_id and d.digest = old.digest and d.row_index = old.row_index;
            get diagnostics letters = row_count;
            return greatest(gone, letters);
        end
        $function$
    $create$, current_schema());
    -- A partition goes when no tenant whose rows are here keeps anything of it, and a day more: somebody may be storing the last
    -- of it. Whoever reads in it is not waited for.
    execute format($create$
        create function drop_old_partitions() returns integer
        language plpgsql security definer set search_path = %1$I, pg_temp set lock_timeout = '500ms'
        as $function$
        declare
            kept_from timestamptz;
            partition record;
            dropped integer := 0;
        begin
            if not pg_try_advisory_xact_lock(hashtext('drop_old_partitions of %1$s')) then
                return 0;
            end if;
            if exists (select from platform.tenant_move) then
                return 0;
            end if;
            select now() - make_interval(days => max(retention_days) + 1) into kept_from from platform.tenant t
            where case when '%1$s' = 'shared' then isolation = 'shared'
                       else tenant_id = (select tenant_id from platform.tenant_schema where schema = '%1$s') end;
            for partition in
                select c.oid::regclass as name, pg_get_expr(c.relpartbound, c.oid) as bound
                from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'result'::regclass
            loop
                if substring(partition.bound from 'TO \(''([^'']+)''\)')::timestamptz <= kept_from then
                    execute format('drop table %%s', partition.name);
                    dropped := dropped + 1;
                end if;
            end loop;
            return dropped;
        end
        $function$
    $create$, current_schema());
end
$body$;
-- Opens what a move holds that was killed: while one is under way its session has a lock. True when messages go on.
do $body$
begin
    execute format($create$
        create function reopen_place() returns boolean
        language plpgsql security definer set search_path = %1$I, pg_temp
        as $function$
        declare
            owner_id uuid := current_setting('app.tenant_id')::uuid;
            place text := case when '%1$s' = 'shared' then 'shared' else 'schema' end;
        begin
            if not pg_try_advisory_xact_lock(hashtext('move'), hashtext(owner_id::text)) then
                return false;
            end if;
            update ingest_count set closed = false, moved = false
            where tenant_id = owner_id and moved
              and exists (select from platform.tenant t where t.tenant_id = owner_id and t.isolation = place
                          and t.state in ('active', 'suspended'));
            return found;
        end
        $function$
    $create$, current_schema());
end
$body$;
revoke all on function reopen_place() from public;
grant execute on function reopen_place() to bulkhead_core;
revoke all on function remove_old_rows(integer) from public;
revoke all on function drop_old_partitions() from public;
grant execute on function remove_old_rows(integer) to bulkhead_core;
grant execute on function drop_old_partitions() to bulkhead_core;

-- A partition is attached, which stops neither readers nor writers; one that is created as a partition waits for all of them, and
-- everybody who comes waits behind it. It holds a day in the shared tables and a month in a schema of one tenant, where days would
-- multiply the catalogue.
do $body$
begin
    execute format($create$
        create or replace function ensure_result_partition(day date) returns void
        language plpgsql security definer set search_path = %1$I, pg_temp
        as $function$
        declare
            is_shared boolean := '%1$s' = 'shared';
            first date := case when is_shared then day else date_trunc('month', day::timestamp)::date end;
            next date := (first + case when is_shared then interval '1 day' else interval '1 month' end)::date;
            partition text := 'result_' || to_char(first, case when is_shared then 'YYYYMMDD' else 'YYYYMM' end);
        begin
            if day < current_date - 3700 or day > current_date + 10 then
                raise exception 'day %% is outside what results may be kept for', day;
            end if;
            if to_regclass(partition) is not null then
                return;
            end if;
            perform pg_advisory_xact_lock(hashtext('ensure_result_partition of %1$s'));
            -- What was looked for before the lock is remembered as missing: the catalogue itself is asked.
            if not exists (select from pg_class where relname = partition
                           and relnamespace = current_schema()::regnamespace) then
                execute format('create table %%I (like result including defaults)', partition);
                execute format('alter table %%I enable row level security', partition);
                execute format('alter table %%I force row level security', partition);
                execute format(
                    'alter table result attach partition %%I for values from (%%L) to (%%L)', partition,
                    (first::text || ' 00:00:00+00')::timestamptz, (next::text || ' 00:00:00+00')::timestamptz);
            end if;
        end
        $function$
    $create$, current_schema());
end
$body$;

-- In a schema of one tenant core is that tenant's role.
do $body$
begin
    if current_schema() = 'shared' then
        return;
    end if;
    execute format('revoke all on all tables in schema %1$I from bulkhead_core', current_schema());
    execute format('revoke all on all functions in schema %1$I from bulkhead_core', current_schema());
    execute format('revoke all on schema %1$I from bulkhead_core', current_schema());
    execute format('grant usage on schema %1$I to %2$I', current_schema(), platform.runtime_role('core'));
    execute format('grant select on site, poller, config_change to %1$I', platform.runtime_role('core'));
    execute format('grant select, insert, update on poller_seen, result, check_state, ingest_count to %1$I',
                   platform.runtime_role('core'));
    execute format('grant select, insert on dead_letter to %1$I', platform.runtime_role('core'));
    execute format('grant execute on function ensure_result_partition(date) to %1$I', platform.runtime_role('core'));
    execute format('grant execute on function remove_old_rows(integer) to %1$I', platform.runtime_role('core'));
    execute format('grant execute on function drop_old_partitions() to %1$I', platform.runtime_role('core'));
    execute format('grant execute on function reopen_place() to %1$I', platform.runtime_role('core'));
end
$body$;
