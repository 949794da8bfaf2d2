//! Sites whose machines are elsewhere, by enrolment or bundle: nothing of them lies here but what was issued, so they are
//! judged by what the hub and core have of them.

use std::collections::BTreeMap;

use bulkhead_bus::payload::{PollerRow, Query};
use bulkhead_bus::{CoreVerb, PollerName, SiteName, TenantSlug};
use bulkhead_identity::leaf_name;
use bulkhead_runtime::now_ms;
use serde_json::Value;

use super::finding::{Area, Finding, Look};
use super::home::Home;
use super::known::Known;
use super::links::excused;
use super::reach::{Person, Sources, limited};
use super::servers::{Hub, Said};
use crate::client::query;
use crate::tenancy::{Standing, TenantRecord, TenantRecords};
use crate::up::Layout;

static LINKED: Look = Look {
    area: Area::Links,
    name: "site-linked",
    rule: "each site whose machines are elsewhere has a leaf at the hub, in its own tenant's account",
    meaning: "its results stay there until the link is back, and are stored late; or nobody has set it up yet",
};
static HEARD: Look = Look {
    area: Area::Lag,
    name: "poller-heard",
    rule: "of each poller elsewhere a batch was stored within the last 10 min; an hour is a failure",
    meaning: "its results are late or missing, or it measures nothing",
};

pub(super) const LOOKS: &[&Look] = &[&LINKED, &HEARD];

const WARN_MS: i64 = 10 * 60 * 1_000;
const FAIL_MS: i64 = 60 * 60 * 1_000;

/// A site with the pollers that are let in and do not run on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FarSite {
    tenant: TenantSlug,
    site: SiteName,
    pollers: Vec<PollerName>,
}

impl FarSite {
    fn subject(&self) -> String {
        format!("{}/{}", self.tenant, self.site)
    }
}

fn far_sites_of(layout: &Layout, record: &TenantRecord) -> Vec<FarSite> {
    let far = |(site, held): (&SiteName, &crate::tenancy::SiteRecord)| {
        let is_far = |name: &&PollerName| !layout.poller(&record.slug, site, name).exists();
        let active = held.pollers.iter().filter(|(_, poller)| poller.standing == Standing::Active);
        let pollers: Vec<PollerName> = active.map(|(name, _)| name).filter(is_far).cloned().collect();
        (!pollers.is_empty()).then(|| FarSite { tenant: record.slug.clone(), site: site.clone(), pollers })
    };
    record.sites.iter().filter_map(far).collect()
}

/// Of every tenant whose record can be read.
pub(super) fn far_sites(layout: &Layout) -> Vec<FarSite> {
    let records = TenantRecords::new(layout);
    let slugs = records.slugs().unwrap_or_default();
    slugs.iter().filter_map(|slug| records.find(slug).ok()?).flat_map(|record| far_sites_of(layout, &record)).collect()
}

/// By the names of leaves at the hub: a machine that has enrolled adds something of its own.
fn linked_finding(site: &FarSite, account: Option<&str>, answers: &[Said]) -> Finding {
    let (subject, name) = (site.subject(), leaf_name(&site.tenant, &site.site));
    let is_its = |leaf: &Value| {
        let said = leaf["name"].as_str().and_then(|said| said.strip_prefix(&name));
        said.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && leaf["account"].as_str() == account
    };
    let on = |said: &Said| said.data["leafs"].as_array().is_some_and(|leaves| leaves.iter().any(is_its));
    let servers: Vec<&str> = answers.iter().filter(|said| on(said)).map(|said| said.server.as_str()).collect();
    if !servers.is_empty() {
        return LINKED.ok(&subject, format!("to {}", servers.join(", ")));
    }
    let advice = "see there whether the leaf runs, and what its log says; the gatekeepers' logs say whom they refuse";
    LINKED.warn(&subject, "no leaf of it is linked", advice)
}

fn heard_finding(subject: &str, last_ms: Option<i64>, now_ms: i64) -> Finding {
    let advice = "see there whether poller and leaf run; here `site-linked`, core-ready and the gatekeepers' logs";
    let Some(last_ms) = last_ms else {
        return HEARD.warn(subject, "nothing of it was ever stored", advice);
    };
    let age_ms = (now_ms - last_ms).max(0);
    let found = format!("{} s ago", age_ms / 1_000);
    match age_ms {
        age if age > FAIL_MS => HEARD.fail(subject, found, advice),
        age if age > WARN_MS => HEARD.warn(subject, found, advice),
        _ => HEARD.ok(subject, found),
    }
}

/// Which of these sites have a leaf at the hub.
pub(super) fn look_at_links(home: &Home, sources: &Sources, hub: &Hub, known: Option<&Known>) -> Vec<Finding> {
    if home.far_sites.is_empty() {
        return vec![LINKED.ok("sites elsewhere", "there is none")];
    }
    if sources.system.get().is_none() {
        return vec![LINKED.skip("sites elsewhere", "the hub cannot be asked")];
    }
    let finding = |site: &FarSite| {
        let tenant = site.tenant.as_str();
        let account = known.and_then(|known| known.named(tenant)).map(|account| account.key.as_str());
        let finding = home.excused(linked_finding(site, account, &hub.leaves), tenant);
        excused(finding, sources.presence.lost().as_deref())
    };
    home.far_sites.iter().map(finding).collect()
}

async fn last_batches(person: &Person) -> Result<BTreeMap<String, Option<i64>>, String> {
    let rows = limited(query::<PollerRow>(&person.bus, &person.user, CoreVerb::ListPollers, &Query::default())).await?;
    Ok(rows.into_iter().map(|row| (format!("{}/{}/{}", row.tenant, row.site, row.poller), row.last_batch_ms)).collect())
}

/// When core has last stored something of their pollers.
pub(super) async fn look_at_lag(home: &Home, sources: &Sources, core_answers: bool) -> Vec<Finding> {
    if home.far_sites.is_empty() {
        return vec![HEARD.ok("pollers elsewhere", "there is none")];
    }
    let Some(person) = sources.person.get().filter(|_| core_answers) else {
        return vec![HEARD.skip("pollers elsewhere", "core cannot be asked")];
    };
    let last = match last_batches(person).await {
        Ok(last) => last,
        Err(why) => return vec![HEARD.warn("pollers elsewhere", why, "see links, and logs/core.log")],
    };
    let mut findings = Vec::new();
    for site in &home.far_sites {
        for poller in &site.pollers {
            let subject = format!("{}/{poller}", site.subject());
            let finding = heard_finding(&subject, last.get(&subject).copied().flatten(), now_ms());
            findings.push(home.excused(finding, site.tenant.as_str()));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_site_is_known_by_its_leafs_name_and_account() {
        let site = FarSite { tenant: "acme-corp".parse().unwrap(), site: "oslo".parse().unwrap(), pollers: Vec::new() };
        let judge = |name: &str, account: &str| {
            let data = json!({"leafs": [{"name": name, "account": account}]});
            let said = Said { server: "hub-1".to_owned(), version: String::new(), time: None, data };
            linked_finding(&site, Some("AOWN"), &[said]).level
        };
        for good in ["leaf-acme-corp-oslo", "leaf-acme-corp-oslo.1f2e"] {
            assert_eq!(judge(good, "AOWN"), Level::Ok, "{good}");
            assert_eq!(judge(good, "AOTHER"), Level::Warn, "{good}");
        }
        for other in ["leaf-acme-corp-oslo2", "leaf-acme-corp-rome", ""] {
            assert_eq!(judge(other, "AOWN"), Level::Warn, "{other}");
        }
    }

    #[test]
    fn who_was_not_heard_for_long_is_named() {
        let judge = |age_s: i64| heard_finding("a/b/c", Some(-age_s * 1_000), 0).level;
        assert_eq!([judge(600), judge(601), judge(3_601)], [Level::Ok, Level::Warn, Level::Fail]);
        assert_eq!(heard_finding("a/b/c", None, 0).level, Level::Warn);
    }
}
