//! Secrets of checks: sealed by whoever sets them for each poller, and never read here.

use std::collections::BTreeSet;

use bulkhead_bus::payload::{ErrorCode, SealingKeyRow, SecretQuery, SetSecret};
use bulkhead_runtime::refused;
use bulkhead_store::Registered;

use super::{Desk, Order, Undone, answer_rows, store};
use crate::members::ask_members;

const COPIES_MOST: usize = 1_000;
/// Of one sealed copy.
const SEALED_BYTES_MOST: usize = 16 * 1024;

impl Desk {
    /// Whoever has ever said its key, whether it is there now or not.
    pub(super) async fn list_sealing_keys(&self, order: Order<SecretQuery>) -> Result<Vec<u8>, Undone> {
        let view = ask_members(&self.push, &order.account).await;
        if let (Some(because), true) = (&view.unknown, view.rows.is_empty()) {
            return Err(refused(ErrorCode::Unavailable, format!("nobody can tell now who is there: {because}")).into());
        }
        let keys = self.directory.recent_batch_keys(&order.tenant).await?;
        let rows = view.rows.into_iter().filter_map(|row| {
            let poller = row.name.poller()?.clone();
            let is_active = matches!(keys.get(&(row.site.clone(), poller.clone())), Some(Registered::Key(_)));
            let sealing_key = row.info?.sealing_key.filter(|_| is_active)?;
            Some(SealingKeyRow { tenant: order.tenant.slug.clone(), site: row.site, poller, sealing_key })
        });
        Ok(answer_rows(rows.take(COPIES_MOST).collect()))
    }

    pub(super) async fn set_secret(&self, order: Order<SetSecret>) -> Result<Vec<u8>, Undone> {
        let SetSecret { name, copies, .. } = &order.body;
        if copies.len() > COPIES_MOST {
            let message = format!("{} copies: a secret has at most {COPIES_MOST}", copies.len());
            return Err(refused(ErrorCode::Invalid, message).into());
        }
        let keys = self.directory.recent_batch_keys(&order.tenant).await?;
        let (mut problems, mut seen) = (Vec::new(), BTreeSet::new());
        for copy in copies {
            let (who, shown) = ((copy.site.clone(), copy.poller.clone()), format!("{}/{}", copy.site, copy.poller));
            if !matches!(keys.get(&who), Some(Registered::Key(_))) {
                problems.push(format!("{shown} is no active poller of this tenant"));
            }
            let is_text = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
            if copy.sealed.len() > SEALED_BYTES_MOST || !is_text(&copy.sealed) || !is_text(&copy.sealing_key) {
                problems.push(format!("the copy for {shown} is not sealed text of at most {SEALED_BYTES_MOST} bytes"));
            }
            if !seen.insert(who) {
                problems.push(format!("{shown} has two copies: send one"));
            }
        }
        if !problems.is_empty() {
            return Err(refused(ErrorCode::Invalid, problems.join("\n")).into());
        }
        let mut tx = self.store.begin_writing(&order.tenant).await?;
        store::lock_checks(&mut tx, &order.tenant).await?;
        store::act_as(&mut tx, &order.acting).await?;
        store::set_secret(&mut tx, &order.tenant, (name, &order.acting), copies).await?;
        let mut rows = store::list_secrets(&mut tx, &order.tenant).await?;
        tx.commit().await?;
        rows.retain(|row| row.name == *name);
        Ok(answer_rows(rows))
    }

    pub(super) async fn list_secrets(&self, order: Order<SecretQuery>) -> Result<Vec<u8>, Undone> {
        let mut tx = self.store.begin(&order.tenant).await?;
        Ok(answer_rows(store::list_secrets(&mut tx, &order.tenant).await?))
    }
}
