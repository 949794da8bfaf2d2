-- What the platform knows of its tenants. Services read it; only provisioning writes it.
-- Run as bulkhead_owner, with search_path set to the schema platform.

create table tenant (
    tenant_id       uuid primary key,
    account_key     text not null unique check (account_key ~ '^A[A-Z2-7]{55}$'),
    slug            text not null unique check (slug ~ '^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$'),
    plan            text not null,
    state           text not null check (state in ('active', 'suspended')),
    retention_days  integer not null check (retention_days between 1 and 3660),
    allows_unsigned boolean not null,
    created_at      timestamptz not null default now()
);

-- Accounts whose people may name a target tenant.
create table platform_account (
    account_key text primary key check (account_key ~ '^A[A-Z2-7]{55}$'),
    name        text not null unique
);

-- Messages from an account that is no tenant, for example one that was offboarded meanwhile.
create table unclaimed_dead_letter (
    digest      bytea primary key,
    account_key text not null,
    reason      text not null,
    subject     text not null,
    headers     text not null,
    payload     bytea not null,
    received_at timestamptz not null default now()
);

grant usage on schema platform to bulkhead_core;
grant select on tenant, platform_account to bulkhead_core;
grant select, insert on unclaimed_dead_letter to bulkhead_core;
