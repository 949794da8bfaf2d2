-- The whole life of a tenant, and word of every change to whoever listens.
-- Run as bulkhead_owner, with search_path set to the schema platform.

alter table tenant drop constraint tenant_state_check;
alter table tenant
    add constraint tenant_state_check check (state in ('active', 'suspended', 'offboarding', 'offboarded')),
    -- By this clock core decides what was accepted before a suspension.
    add column state_since timestamptz not null default now(),
    -- Free text for people; it reaches no subject, path, identifier or template.
    add column display_name text check (length(display_name) between 1 and 200),
    add column plan_version integer check (plan_version >= 1);

-- Says which account changed, and nothing of what: whoever listens reads it under its own rights.
create function tell_account() returns trigger
language plpgsql set search_path = platform, pg_temp
as $$
begin
    if tg_op <> 'INSERT' then
        perform pg_notify('bulkhead_account', old.account_key);
    end if;
    if tg_op <> 'DELETE' then
        perform pg_notify('bulkhead_account', new.account_key);
    end if;
    return null;
end
$$;
revoke all on function tell_account() from public;

create trigger tell_tenant after insert or update or delete on tenant
    for each row execute function tell_account();
create trigger tell_platform_account after insert or update or delete on platform_account
    for each row execute function tell_account();
