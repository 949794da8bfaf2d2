//! Who a backlog is of, as far as a page of metrics may tell: the plan of the tenant, and never which tenant.

use bulkhead_bus::{Account, CoreSubject, TenantSnapshot};

use crate::metrics::PlanClass;

/// How many messages each class has, of all classes.
#[must_use]
pub fn by_class(counts: &[(String, u64)], snapshot: &TenantSnapshot) -> Vec<(PlanClass, u64)> {
    let mut classes: Vec<(PlanClass, u64)> = PlanClass::ALL.iter().map(|&class| (class, 0)).collect();
    for (subject, count) in counts {
        let own = class_of(subject, snapshot);
        for (_, total) in classes.iter_mut().filter(|(class, _)| *class == own) {
            *total += count;
        }
    }
    classes
}

fn class_of(subject: &str, snapshot: &TenantSnapshot) -> PlanClass {
    let account = CoreSubject::account_of(subject).ok();
    match account.and_then(|account| snapshot.account(&account).cloned()) {
        Some(Account::Tenant(tenant)) => PlanClass::of_plan(&tenant.plan),
        Some(Account::Platform) | None => PlanClass::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::{AccountKey, Lane, Tenant, TenantSubject};
    use bulkhead_testkit::database::{account_key, tenant};

    fn of_plan(plan: &str) -> (AccountKey, Account) {
        (account_key(), Account::Tenant(Tenant { plan: plan.to_owned(), ..tenant("acme-corp") }))
    }

    #[test]
    fn messages_are_counted_under_the_plan_of_their_tenant_and_strangers_as_unknown() {
        let accounts = [of_plan("free"), of_plan("free"), of_plan("enterprise"), (account_key(), Account::Platform)];
        let subject = |key: &AccountKey| {
            let subject = TenantSubject::Forwarded { site: "oslo".parse().unwrap(), lane: Lane::Results };
            CoreSubject { account: key.clone(), subject }.to_string()
        };
        let mut counts: Vec<(String, u64)> = accounts.iter().zip(1..).map(|((key, _), n)| (subject(key), n)).collect();
        counts.push((subject(&account_key()), 10));
        counts.push(("no subject of ours".to_owned(), 100));
        let classes = by_class(&counts, &accounts.into_iter().collect());
        let expected =
            [(PlanClass::Free, 3), (PlanClass::Pro, 0), (PlanClass::Enterprise, 3), (PlanClass::Unknown, 114)];
        assert_eq!(classes, expected);
        assert!(by_class(&[], &TenantSnapshot::default()).iter().all(|(_, count)| *count == 0));
    }
}
