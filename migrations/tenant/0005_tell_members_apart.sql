-- The history of members when the hub's bucket of leases was lost: its revisions begin anew, and what happened then is told by
-- its time, which all replicas have from the hub.
-- Run as bulkhead_owner, with search_path set to the schema that holds tenants.

alter table member_event drop constraint member_event_pkey;
alter table member_event add primary key (tenant_id, site, name, revision, event, at);
