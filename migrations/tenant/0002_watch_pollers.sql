-- Word of every change of a poller to whoever listens, and an end to writing for a tenant that leaves.
-- Run as bulkhead_owner, with search_path set to the schema that holds tenants.

-- Every transaction of results writes this row, so that whoever closes it waits for those under way, and those that come
-- later store nothing. It outlives the tenant: a process that has not heard of the end must not write for it either.
alter table ingest_count add column closed boolean not null default false;

-- Says whose pollers changed, and nothing of what: whoever listens reads them under its own rights.
do $body$
begin
    execute format($create$
        create function tell_pollers() returns trigger
        language plpgsql set search_path = %1$I, pg_temp
        as $function$
        begin
            if tg_op <> 'INSERT' then
                perform pg_notify('bulkhead_pollers', old.tenant_id::text);
            end if;
            if tg_op <> 'DELETE' then
                perform pg_notify('bulkhead_pollers', new.tenant_id::text);
            end if;
            return null;
        end
        $function$
    $create$, current_schema());
end
$body$;
revoke all on function tell_pollers() from public;

create trigger tell_pollers after insert or update or delete on poller
    for each row execute function tell_pollers();
