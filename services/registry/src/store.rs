//! All SQL of the registry: the history of members.

use bulkhead_bus::Tenant;
use bulkhead_bus::payload::{MemberEventRow, MemberQuery};
use bulkhead_store::{StoreError, TenantTx};
use sqlx::Row;
use time::OffsetDateTime;

use crate::members::Event;

fn failed(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { action, source }
}

fn utc(unix_ms: i64) -> OffsetDateTime {
    bulkhead_runtime::utc_of_ms(unix_ms).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// What a database takes of a number that is never near its end.
fn bigint(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Writes what became of members of one tenant; how many were not there yet. Every replica tells of the same.
///
/// # Errors
/// When the database refuses.
pub async fn write_events(tx: &mut TenantTx, tenant: &Tenant, events: &[Event]) -> Result<u64, StoreError> {
    let sql = "insert into member_event (tenant_id, site, name, revision, event, at, boot, state, reason)
               select $1, * from unnest($2::text[], $3::text[], $4::bigint[], $5::text[], $6::timestamptz[], $7::bigint[],
                                        $8::text[], $9::text[])
               on conflict do nothing";
    let of = |read: fn(&Event) -> String| events.iter().map(read).collect::<Vec<_>>();
    let written = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(of(|event| event.key.site.to_string()))
        .bind(of(|event| event.key.name.to_string()))
        .bind(events.iter().map(|event| bigint(event.revision)).collect::<Vec<_>>())
        .bind(of(|event| event.what.as_str().to_owned()))
        .bind(events.iter().map(|event| utc(event.at_ms)).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.boot.map(bigint)).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.state.map(|state| state.as_str().to_owned())).collect::<Vec<_>>())
        // The database refuses NUL.
        .bind(events.iter().map(|event| event.reason.as_ref().map(|text| text.replace('\0', ""))).collect::<Vec<_>>())
        .execute(tx.connection())
        .await;
    written.map(|done| done.rows_affected()).map_err(failed("write events of members"))
}

/// The newest of them that a query asks for.
///
/// # Errors
/// When the database refuses.
pub async fn list_events(
    tx: &mut TenantTx,
    tenant: &Tenant,
    query: &MemberQuery,
    limit: u32,
) -> Result<Vec<MemberEventRow>, StoreError> {
    let sql = "select site, name, event, at, state, reason from member_event
               where tenant_id = $1 and ($2::text is null or site = $2) and ($3::text is null or name = $3) and at >= $4
               order by at desc, revision desc limit $5";
    let rows = sqlx::query(sql)
        .bind(tenant.id.as_uuid())
        .bind(query.site.as_ref().map(|site| site.as_str()))
        .bind(query.name.as_ref().map(|name| name.as_str()))
        .bind(utc(query.since_ms.unwrap_or(0)))
        .bind(i64::from(limit))
        .fetch_all(tx.connection())
        .await
        .map_err(failed("list events of members"))?;
    let unreadable = |what| StoreError::Sql { action: what, source: sqlx::Error::RowNotFound };
    let read = |row: &sqlx::postgres::PgRow| {
        Ok(MemberEventRow {
            tenant: tenant.slug.clone(),
            site: row.get::<&str, _>(0).parse().map_err(|_| unreadable("site"))?,
            name: row.get::<&str, _>(1).parse().map_err(|_| unreadable("name"))?,
            event: row.get(2),
            at_ms: i64::try_from(row.get::<OffsetDateTime, _>(3).unix_timestamp_nanos() / 1_000_000)
                .unwrap_or(i64::MAX),
            state: row.get(4),
            reason: row.get(5),
        })
    };
    rows.iter().map(read).collect()
}
