-- The history of members when the hub's bucket of leases was lost: its revisions begin anew, and what happened then is told by
-- its time, which all replicas have from the hub.
-- Run as bulkhead_owner, with search_path set to the schema that holds tenants.

-- The table is as new as the migration before: it holds some rows for each poller, its index takes no time worth the name, and
-- whoever writes says `on conflict do nothing` of whatever key there is.
-- squawk-ignore ban-drop-constraint
alter table member_event drop constraint member_event_pkey;
-- squawk-ignore constraint-missing-not-valid, adding-serial-primary-key-field
alter table member_event add primary key (tenant_id, site, name, revision, event, at);
