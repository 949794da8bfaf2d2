//! What a leaf calls itself: `leaf-<tenant>-<site>`, and for another one beside it a dot and anything behind that.

use bulkhead_bus::{SiteName, TenantSlug};

/// What the leaf of a site calls itself.
#[must_use]
pub fn leaf_name(tenant: &TenantSlug, site: &SiteName) -> String {
    format!("leaf-{tenant}-{site}")
}

/// The site that a leaf of this tenant names; `None` when it names none.
#[must_use]
pub fn site_of_leaf(tenant: &TenantSlug, name: &str) -> Option<SiteName> {
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    name.strip_prefix(&format!("leaf-{tenant}-"))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_names_its_site_and_may_have_another_one_beside_it() {
        let (tenant, site): (TenantSlug, SiteName) = ("acme-corp".parse().unwrap(), "oslo".parse().unwrap());
        let own = leaf_name(&tenant, &site);
        assert_eq!(own, "leaf-acme-corp-oslo");
        for name in [own.as_str(), "leaf-acme-corp-oslo.2", "leaf-acme-corp-oslo.a.b"] {
            assert_eq!(site_of_leaf(&tenant, name).as_ref(), Some(&site), "{name}");
        }
        for name in ["", "oslo", "leaf-xyz-inc-oslo", "leaf-acme-corp-", "leaf-acme-corp-*", "leaf-acme-corp.oslo"] {
            assert_eq!(site_of_leaf(&tenant, name), None, "{name}");
        }
        assert_ne!(site_of_leaf(&tenant, "leaf-acme-corp-oslo-2"), Some(site));
    }
}
