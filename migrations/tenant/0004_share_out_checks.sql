-- A tenant's checks, who runs which of them since when, runs on demand, sealed secrets, and what became of its pollers.
-- Run as bulkhead_owner, with search_path set to the schema that holds tenants.

create table check_definition (
    tenant_id  uuid not null,
    name       text not null,
    kind       text not null,
    -- As people wrote it, judged: crates/checks.
    definition jsonb not null,
    paused     boolean not null default false,
    -- Grows with every change of this check.
    revision   bigint not null default 1,
    created_at timestamptz not null default clock_timestamp(),
    changed_at timestamptz not null default clock_timestamp(),
    primary key (tenant_id, name)
);

-- Who has run, runs and will run a check at a vantage: one row for each time that this changed. The rows without an end are the
-- assignment of now; a poller that has applied a generation fetches what began or ended since. No poller: nobody can run it.
create table assignment (
    tenant_id        uuid not null,
    check_name       text not null,
    vantage          text not null,
    generation       bigint not null,
    poller           text,
    -- What is run, so that a plan is what it was whatever becomes of the definition.
    definition       jsonb not null,
    revision         bigint not null,
    interval_ms      bigint not null,
    -- The first slot that is this row's begins at or after it, and the last before until_ms. Unix milliseconds.
    from_ms          bigint not null,
    until_ms         bigint,
    -- Slots from here on that the one before may have left without a result: whoever begins says missed for them.
    owed_from_ms     bigint,
    ended_generation bigint,
    ended_because    text check (ended_because in ('changed', 'removed', 'paused', 'moved', 'poller_lost', 'found_poller')),
    primary key (tenant_id, check_name, vantage, generation)
);
create index assignment_of_now on assignment (tenant_id, vantage, poller, check_name) where ended_generation is null;
create index assignment_since on assignment (tenant_id, vantage, poller, generation);
create index assignment_until on assignment (tenant_id, vantage, poller, ended_generation) where ended_generation is not null;

create table dispatch_state (
    tenant_id      uuid primary key,
    generation     bigint not null,
    epoch          bigint not null,
    -- Of the leases that this plan took into account: an older view never takes the place of a newer one.
    lease_revision bigint not null,
    -- site/poller: weight, quantised.
    weights        jsonb not null,
    -- Ends of assignments up to this generation may have been removed: who has an older one is told everything anew.
    forgotten      bigint not null default 0,
    planned_at     timestamptz not null default clock_timestamp()
);

-- One run on demand at one vantage.
create table run_order (
    tenant_id  uuid not null,
    id         uuid not null,
    site       text not null,
    poller     text not null,
    definition jsonb not null,
    asked_by   text not null,
    asked_at   timestamptz not null default clock_timestamp(),
    deadline   timestamptz not null,
    taken_at   timestamptz,
    done_at    timestamptz,
    result     jsonb,
    primary key (tenant_id, id, site)
);
create index run_order_open on run_order (tenant_id, site, poller) where done_at is null;

-- A secret, sealed for one poller's key; nobody else can read it.
create table sealed_secret (
    tenant_id   uuid not null,
    name        text not null,
    site        text not null,
    poller      text not null,
    sealing_key text not null,
    sealed      text not null,
    set_by      text not null,
    set_at      timestamptz not null default clock_timestamp(),
    primary key (tenant_id, name, site, poller)
);

-- What became of a poller or a leaf link, each told by the revision of its lease. Several replicas tell of the same.
create table member_event (
    tenant_id uuid not null,
    site      text not null,
    -- A poller, or fwd for the site's leaf link.
    name      text not null,
    revision  bigint not null,
    event     text not null check (event in ('joined', 'renewed_state', 'fenced', 'gone', 'lost', 'quarantined', 'released')),
    at        timestamptz not null default clock_timestamp(),
    boot      bigint,
    state     text,
    reason    text,
    primary key (tenant_id, site, name, revision, event)
);
create index member_event_newest on member_event (tenant_id, at desc);

do $$
declare
    name text;
begin
    foreach name in array array['check_definition', 'assignment', 'dispatch_state', 'run_order', 'sealed_secret', 'member_event']
    loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format(
            'create policy tenant on %I '
            'using (tenant_id = (select current_setting(''app.tenant_id'')::uuid)) '
            'with check (tenant_id = (select current_setting(''app.tenant_id'')::uuid))', name);
    end loop;
end
$$;

create trigger note_config_change after insert or update or delete on check_definition
    for each row execute function platform.note_config_change();

-- Says whose checks, or whose runs on demand, changed, and nothing of what.
do $body$
begin
    execute format($create$
        create function tell_dispatch() returns trigger
        language plpgsql set search_path = %1$I, pg_temp
        as $function$
        begin
            perform pg_notify(tg_argv[0], coalesce(new.tenant_id, old.tenant_id)::text);
            return null;
        end
        $function$
    $create$, current_schema());
end
$body$;
revoke all on function tell_dispatch() from public;
create trigger tell_checks after insert or update or delete on check_definition
    for each row execute function tell_dispatch('bulkhead_checks');
create trigger tell_secrets after insert or update or delete on sealed_secret
    for each row execute function tell_dispatch('bulkhead_checks');
create trigger tell_runs after insert or update of done_at on run_order
    for each row execute function tell_dispatch('bulkhead_runs');

-- What a plan keeps no longer, of the new tables as well: what has ended, was done or expired, and what became of members. Of what
-- is in force nothing is removed, whatever its age.
do $body$
begin
    execute format($create$
        create or replace function remove_old_rows(most integer) returns bigint
        language plpgsql security definer set search_path = %1$I, pg_temp
        as $function$
        declare
            owner_id uuid := current_setting('app.tenant_id')::uuid;
            kept_from timestamptz := (select now() - make_interval(days => retention_days) from platform.tenant
                                      where tenant_id = owner_id);
            kept_from_ms bigint := extract(epoch from kept_from) * 1000;
            gone bigint;
            more bigint;
            newest bigint;
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
            get diagnostics more = row_count;
            gone := greatest(gone, more);
            with removed as (
                delete from assignment a where a.tenant_id = owner_id and a.ended_generation is not null and a.until_ms < kept_from_ms
                  and a.ctid = any (array(select ctid from assignment where tenant_id = owner_id and ended_generation is not null
                                          and until_ms < kept_from_ms limit most))
                returning a.ended_generation)
            select count(*), max(ended_generation) into more, newest from removed;
            if more > 0 then
                update dispatch_state set forgotten = greatest(forgotten, newest) where tenant_id = owner_id;
            end if;
            gone := greatest(gone, more);
            delete from run_order o where o.tenant_id = owner_id and greatest(o.deadline, o.done_at) < kept_from
              and o.ctid = any (array(select ctid from run_order where tenant_id = owner_id
                                      and greatest(deadline, done_at) < kept_from limit most));
            get diagnostics more = row_count;
            gone := greatest(gone, more);
            delete from member_event e where e.tenant_id = owner_id and e.at < kept_from
              and e.ctid = any (array(select ctid from member_event where tenant_id = owner_id and at < kept_from limit most));
            get diagnostics more = row_count;
            return greatest(gone, more);
        end
        $function$
    $create$, current_schema());
end
$body$;

-- In the shared schema a service is itself; in a schema of one tenant it is that tenant's role for it.
do $body$
begin
    execute format('grant usage on schema %1$I to %2$I', current_schema(), platform.runtime_role('registry'));
    execute format('grant usage on schema %1$I to %2$I', current_schema(), platform.runtime_role('dispatch'));
    execute format('grant select on site, poller to %1$I', platform.runtime_role('registry'));
    execute format('grant select on site, poller to %1$I', platform.runtime_role('dispatch'));
    execute format('grant select, insert on member_event to %1$I', platform.runtime_role('registry'));
    execute format('grant select, insert, update, delete on check_definition, sealed_secret to %1$I',
                   platform.runtime_role('dispatch'));
    execute format('grant select, insert, update on assignment, dispatch_state, run_order to %1$I',
                   platform.runtime_role('dispatch'));
    execute format('grant select on check_definition, assignment, dispatch_state, member_event to %1$I',
                   platform.runtime_role('core'));
end
$body$;
