//! A platform with two tenants on paper: keys, accounts and certificates, and no server yet.

use std::path::Path;

use bulkhead_accounts::certificates::{Authority, TrustDomain};
use bulkhead_accounts::hub_size::HubSize;
use bulkhead_accounts::operator::OperatorStore;
use bulkhead_accounts::plan::{Plan, PlanName};
use bulkhead_accounts::tenancy::{PlatformSettings, Tenancy, TenantRecord};
use bulkhead_accounts::up::{Accounts, Layout, Platform};
use time::OffsetDateTime;
use uuid::Uuid;

/// The tenants, and their plans.
const TENANTS: [(&str, PlanName); 2] = [("acme-corp", PlanName::Enterprise), ("xyz-inc", PlanName::Free)];

/// Made in `folder` by the product's own code.
///
/// # Errors
/// When something cannot be made or written.
pub async fn platform_on_paper(folder: &Path, now: OffsetDateTime) -> anyhow::Result<(Platform, Accounts)> {
    let now_s = now.unix_timestamp();
    let layout = Layout::new(folder.to_owned());
    let operator = OperatorStore::open(layout.operator(), now_s)?;
    let authority = Authority::new(layout.authority(), TrustDomain::default());
    authority.ensure_roots(now)?;
    let platform = Platform { layout, operator, authority, hub_urls: vec![], now };
    let settings = PlatformSettings {
        trust_domain: TrustDomain::default().to_string(),
        hub_servers: HubSize::One,
        hub_urls: vec![],
        leaf_urls: vec![],
        enrolment_urls: vec![],
        database_url_file: None,
    };
    let tenancy = Tenancy::of(platform, settings);
    for (slug, plan) in TENANTS {
        let record = TenantRecord::new(slug.parse()?, Uuid::new_v4(), Plan::of(plan).plan_ref(), now_s);
        tenancy.records.write(&record)?;
    }
    let mut accounts = tenancy.render_all()?;
    tenancy.place_all(&mut accounts).await?;
    Ok((tenancy.platform, accounts))
}
