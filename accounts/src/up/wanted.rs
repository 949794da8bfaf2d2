//! Which tenants of its list `bulkhead up` still runs: one that was ended by an operator stays ended.

use super::deployment::TenantOptions;
use super::layout::Layout;
use crate::tenancy::{RecordError, Standing, TenantRecord, TenantRecords, TenantStage, purges};

/// Leaves out who was offboarded or purged; says who and how to have them back.
///
/// # Errors
/// When a record is damaged.
pub(super) fn drop_ended(layout: &Layout, tenants: &mut Vec<TenantOptions>) -> Result<Vec<String>, RecordError> {
    let (records, purged) = (TenantRecords::new(layout), purges(layout));
    let mut notes = Vec::new();
    for mut tenant in std::mem::take(tenants) {
        let slug = &tenant.slug;
        let record = records.find(slug)?;
        match record.as_ref().map(|record| record.stage) {
            Some(TenantStage::Offboarded) => {
                notes.push(format!(
                    "tenant {slug} is offboarded and not started: `bulkhead tenant restore {slug}` brings it back"
                ));
            }
            None if purged.iter().any(|purge| purge.tenant == slug.as_str()) => {
                notes.push(format!(
                    "tenant {slug} was purged and is not made anew: `bulkhead tenant add {slug}` does that"
                ));
            }
            Some(TenantStage::Adding | TenantStage::Active | TenantStage::Suspended) | None => {
                if let Some(record) = &record {
                    notes.extend(drop_parts(&mut tenant, record));
                }
                tenants.push(tenant);
            }
        }
    }
    Ok(notes)
}

/// Leaves out sites that were removed, pollers that were revoked, and those that made their keys on a machine of their own.
fn drop_parts(tenant: &mut TenantOptions, record: &TenantRecord) -> Vec<String> {
    let slug = &tenant.slug;
    let mut notes = Vec::new();
    tenant.sites.retain_mut(|(site, pollers)| {
        if record.removed_sites.contains(site) {
            notes.push(format!(
                "site {slug}/{site} was removed and is not started: `bulkhead site add {slug}/{site}` takes it back"
            ));
            return false;
        }
        let known = record.sites.get(site);
        pollers.retain(|poller| {
            let Some(known) = known.and_then(|site| site.pollers.get(poller)) else { return true };
            if known.standing == Standing::Revoked {
                notes.push(format!(
                    "poller {slug}/{site}/{poller} is revoked and not started: `bulkhead poller remove` forgets that"
                ));
            } else if known.is_enrolled {
                notes.push(format!(
                    "poller {slug}/{site}/{poller} has enrolled on a machine of its own and is not started here: \
                     `bulkhead poller remove` takes it back"
                ));
            }
            known.standing == Standing::Active && !known.is_enrolled
        });
        !pollers.is_empty()
    });
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::OperatorStore;
    use crate::plan::{Plan, PlanName};
    use crate::tenancy::purges::tests::write_evidence;

    #[test]
    fn who_was_ended_stays_ended_and_others_with_like_names_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        let operator = OperatorStore::open(layout.operator(), 1_000).unwrap();
        write_evidence(&layout, "acme-corp", true, operator.signer().unwrap().as_ref());
        let slugs = ["acme", "acme-corp", "north", "south"];
        let plan = Plan::of(PlanName::Free).plan_ref();
        for (slug, stage) in [("north", TenantStage::Offboarded), ("south", TenantStage::Suspended)] {
            let record = TenantRecord::new(slug.parse().unwrap(), uuid::Uuid::nil(), plan, 0);
            TenantRecords::new(&layout).write(&TenantRecord { stage, ..record }).unwrap();
        }
        let tenant = |slug: &str| TenantOptions { slug: slug.parse().unwrap(), plan: PlanName::Free, sites: vec![] };
        let mut tenants: Vec<TenantOptions> = slugs.into_iter().map(tenant).collect();
        let notes = drop_ended(&layout, &mut tenants).unwrap();
        let left: Vec<&str> = tenants.iter().map(|tenant| tenant.slug.as_str()).collect();
        assert_eq!(left, ["acme", "south"]);
        assert!(notes[0].contains("acme-corp was purged") && notes[1].contains("tenant restore north"), "{notes:?}");
    }
}
