//! What the live streams showed last. In memory only, bounded for each tenant, and never a source of state.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bulkhead_bus::payload::{DETAIL_BYTES_MAX, LiveRow, Measured};
use bulkhead_bus::{CheckName, PollerName, SiteName, Tenant, TenantId};

use crate::admission::detail_bytes;

/// Checks of one tenant that are shown.
const ROWS_PER_TENANT_MAX: usize = 10_000;
/// After this a row makes room for another one, when there is none left.
const KEPT_MS: i64 = 60_000;

type RowKey = (SiteName, PollerName, CheckName);

/// Shared by the live readers and the queries.
#[derive(Debug, Clone, Default)]
pub struct LiveView {
    rows: Arc<Mutex<HashMap<TenantId, HashMap<RowKey, LiveRow>>>>,
}

impl LiveView {
    /// Shows what was measured; returns how many rows had no place.
    pub fn show(
        &self,
        tenant: &Tenant,
        (site, poller): (&SiteName, &PollerName),
        results: Vec<Measured>,
        now_ms: i64,
    ) -> usize {
        let mut rows = self.rows.lock().expect("no holder panics");
        let own = rows.entry(tenant.id).or_default();
        if own.len() >= ROWS_PER_TENANT_MAX {
            // Nobody may have looked for a long time: what is dark anyway makes room.
            own.retain(|_, row| row.received_ms >= now_ms - KEPT_MS);
        }
        let mut dropped = 0;
        for measured in results {
            if detail_bytes(&measured) > DETAIL_BYTES_MAX {
                dropped += 1;
                continue;
            }
            let key = (site.clone(), poller.clone(), measured.check.clone());
            if own.len() >= ROWS_PER_TENANT_MAX && !own.contains_key(&key) {
                dropped += 1;
                continue;
            }
            let row = LiveRow {
                tenant: tenant.slug.clone(),
                site: site.clone(),
                poller: poller.clone(),
                received_ms: now_ms,
                measured,
            };
            own.insert(key, row);
        }
        dropped
    }

    /// A tenant's rows that came in at or after `since_ms`, by site, poller and check; older ones are forgotten.
    #[must_use]
    pub fn rows(&self, tenant: &Tenant, since_ms: i64) -> Vec<LiveRow> {
        let mut rows = self.rows.lock().expect("no holder panics");
        let Some(own) = rows.get_mut(&tenant.id) else { return vec![] };
        own.retain(|_, row| row.received_ms >= since_ms);
        let mut shown: Vec<LiveRow> = own.values().cloned().collect();
        shown.sort_by(|a, b| (&a.site, &a.poller, &a.measured.check).cmp(&(&b.site, &b.poller, &b.measured.check)));
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precedence::beats;
    use bulkhead_bus::TenantState;
    use bulkhead_bus::payload::{CheckKind, Outcome};

    fn tenant(slug: &str) -> Tenant {
        Tenant {
            id: TenantId::new(uuid::Uuid::new_v4()),
            slug: slug.parse().unwrap(),
            plan: "free".to_owned(),
            state: TenantState::Active,
            state_since_ms: 0,
            retention_days: 1,
            allows_unsigned: false,
        }
    }

    fn measured(check: &str) -> Measured {
        Measured {
            check: check.parse().unwrap(),
            kind: CheckKind::Tcp,
            slot_ms: 0,
            started_ms: 0,
            outcome: Outcome::Ok,
            reason: None,
            latency_us: None,
            generation: 0,
            island: false,
            detail: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_tenant_sees_its_own_rows_until_they_are_dark() {
        let (view, acme, xyz) = (LiveView::default(), tenant("acme-corp"), tenant("xyz-inc"));
        let place = ("oslo".parse().unwrap(), "p1".parse().unwrap());
        view.show(&acme, (&place.0, &place.1), vec![measured("web"), measured("dns")], 1_000);
        assert_eq!(view.rows(&acme, 500).len(), 2);
        assert!(view.rows(&xyz, 0).is_empty());
        assert!(view.rows(&acme, 1_001).is_empty(), "dark");
        assert!(!beats(&measured("web"), &measured("web")), "live rows decide nothing");
    }

    #[test]
    fn a_tenant_cannot_fill_the_memory() {
        let (view, acme) = (LiveView::default(), tenant("acme-corp"));
        let place = ("oslo".parse().unwrap(), "p1".parse().unwrap());
        let many: Vec<Measured> = (0..=ROWS_PER_TENANT_MAX).map(|n| measured(&format!("c{n}"))).collect();
        assert_eq!(view.show(&acme, (&place.0, &place.1), many, 0), 1);
        let mut large = measured("c0");
        large.detail.insert("text".to_owned(), "x".repeat(DETAIL_BYTES_MAX).into());
        assert_eq!(view.show(&acme, (&place.0, &place.1), vec![large], 0), 1);
        assert_eq!(view.show(&acme, (&place.0, &place.1), vec![measured("new")], KEPT_MS), 1, "still shown");
        assert_eq!(view.show(&acme, (&place.0, &place.1), vec![measured("new")], KEPT_MS + 1), 0, "dark makes room");
        assert_eq!(view.rows(&acme, 0).len(), 1);
    }
}
