//! What is registered of a tenant's pollers, for whoever has to know that it was really them.

use std::collections::HashMap;

use bulkhead_bus::{BatchKey, PollerName, SiteName, Tenant};

use crate::store::{StoreError, failed};
use crate::transaction::TenantTx;

/// What is registered for a poller to sign with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    Key(BatchKey),
    /// Its row in the database is damaged, so that nobody can tell a forgery from its results.
    Unreadable,
    /// Nothing in its name is believed any more, whoever has signed it.
    Revoked,
}

/// The batch keys of one tenant's pollers.
pub type BatchKeys = HashMap<(SiteName, PollerName), Registered>;

/// The row of a poller whose site, name or key is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPoller {
    pub site: String,
    pub name: String,
}

/// What is registered of each poller. A damaged row harms nobody but its own poller.
///
/// # Errors
/// When the database refuses.
pub async fn read_batch_keys(
    tx: &mut TenantTx,
    tenant: &Tenant,
) -> Result<(BatchKeys, Vec<DamagedPoller>), StoreError> {
    let sql = "select site, name, batch_key, state from poller where tenant_id = $1";
    let rows = sqlx::query_as(sql).bind(tenant.id.as_uuid()).fetch_all(tx.connection()).await;
    let rows: Vec<(String, String, Option<String>, String)> = rows.map_err(failed("read batch keys"))?;
    let (mut keys, mut damaged) = (BatchKeys::new(), Vec::new());
    for (site, name, key, state) in rows {
        // A state of a later release is none to believe in.
        let key = match state.as_str() {
            "active" => key.and_then(|key| key.parse().ok()).map_or(Registered::Unreadable, Registered::Key),
            _ => Registered::Revoked,
        };
        let is_unreadable = key == Registered::Unreadable;
        // Under a name that is none nobody can send.
        let sender = site.parse().ok().zip(name.parse().ok());
        if is_unreadable || sender.is_none() {
            damaged.push(DamagedPoller { site, name });
        }
        keys.extend(sender.map(|sender| (sender, key)));
    }
    Ok((keys, damaged))
}
