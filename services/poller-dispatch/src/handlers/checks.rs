//! `change_checks`: people change what a tenant has checked, all of it or nothing.

use bulkhead_bus::payload::{ChangeChecks, ChangedCheck};

use super::{Desk, Order, Undone, answer_rows, store};
use crate::change::{Act, Judging, Step, judge};

impl Desk {
    pub(super) async fn change_checks(&self, order: Order<ChangeChecks>) -> Result<Vec<u8>, Undone> {
        let Order { tenant, acting, body, .. } = order;
        let quota = self.store.quota(&tenant).await?;
        let mut tx = self.store.begin_writing(&tenant).await?;
        store::lock_checks(&mut tx, &tenant).await?;
        let there = crate::store::read_checks(&mut tx, &tenant).await?;
        let sites = store::read_sites(&mut tx, &tenant).await?;
        let steps = judge(&Judging { there: &there, sites: &sites, quota }, &body.changes, body.removes_others)?;
        let rows = steps.iter().map(|step| ChangedCheck {
            tenant: tenant.slug.clone(),
            check: step.check.clone(),
            act: step.act.as_str().to_owned(),
            revision: step.now.as_ref().map_or(0, |now| now.revision),
        });
        let rows: Vec<ChangedCheck> = rows.collect();
        let changing: Vec<Step> = steps.into_iter().filter(|step| step.act != Act::Unchanged).collect();
        if !body.is_rehearsal && !changing.is_empty() {
            store::act_as(&mut tx, &acting).await?;
            store::write_steps(&mut tx, &tenant, &changing).await?;
            tx.commit().await?;
            self.metrics.checks_changed.inc_by(changing.len() as u64);
        }
        Ok(answer_rows(rows))
    }
}
