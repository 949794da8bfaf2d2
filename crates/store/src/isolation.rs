//! Where a tenant's rows live: what its plan says, and the schema and role by which they are reached (docs/adr/0015).

use std::borrow::Cow;
use std::str::FromStr;

use bulkhead_bus::{Tenant, TenantSlug};

use crate::service::Service;

/// The schema of all tenants that have none of their own.
pub(crate) const SHARED: &str = "shared";
/// How the names of schemas of one tenant begin, and of no other schema.
pub(crate) const OWN_SCHEMAS: &str = "tenant_";
/// The plan whose tenants have a schema of their own.
const APART: &str = "enterprise";

/// How a tenant's rows are kept apart. Row security is forced in both: in a schema of one tenant it is the second lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// In the shared tables.
    Shared,
    /// In `tenant_<slug>`, whose tables no other role than that tenant's reaches.
    Schema,
}

/// A word that names no isolation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no isolation: it is shared or schema")]
pub struct UnknownIsolation(String);

impl Isolation {
    /// As rows and answers spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Schema => "schema",
        }
    }

    /// The schema of a tenant that is kept apart in this way.
    #[must_use]
    pub fn schema_of(self, slug: &TenantSlug) -> Cow<'static, str> {
        match self {
            Self::Shared => Cow::Borrowed(SHARED),
            Self::Schema => Cow::Owned(own_schema(slug)),
        }
    }
}

impl FromStr for Isolation {
    type Err = UnknownIsolation;

    fn from_str(text: &str) -> Result<Self, UnknownIsolation> {
        let known = [Self::Shared, Self::Schema].into_iter().find(|isolation| isolation.as_str() == text);
        known.ok_or_else(|| UnknownIsolation(text.chars().take(40).collect()))
    }
}

/// Where a plan puts a tenant's rows. Until a tenant whose plan has changed is moved, they are where they were.
#[must_use]
pub fn isolation_of(plan: &str) -> Isolation {
    if plan == APART { Isolation::Schema } else { Isolation::Shared }
}

/// The schema of one tenant. Two slugs never have the same: a slug has no underscore.
pub(crate) fn own_schema(slug: &TenantSlug) -> String {
    format!("{OWN_SCHEMAS}{}", slug.as_str().replace('-', "_"))
}

/// What a service has to say to be where a tenant's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub isolation: Isolation,
    pub schema: Cow<'static, str>,
}

impl Place {
    pub(crate) fn of(tenant: &Tenant, isolation: Isolation) -> Self {
        Self { isolation, schema: isolation.schema_of(&tenant.slug) }
    }

    /// The role that a service becomes there; `None` where it is its own.
    pub(crate) fn role_of(&self, service: Service) -> Option<String> {
        match self.isolation {
            Isolation::Shared => None,
            Isolation::Schema => Some(format!("{}_{}", self.schema, service.token())),
        }
    }

    /// What everybody who is there with a transaction holds in common, and a move waits for.
    pub(crate) fn lock_key(&self, tenant: &Tenant) -> i64 {
        let (high, low) = tenant.id.as_uuid().as_u64_pair();
        let mixed = (high ^ low.rotate_left(32)) & !1;
        i64::from_ne_bytes((mixed | u64::from(self.isolation == Isolation::Schema)).to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enterprise_is_apart() {
        for (plan, expected) in [
            ("enterprise", Isolation::Schema),
            ("pro", Isolation::Shared),
            ("free", Isolation::Shared),
            ("Enterprise", Isolation::Shared),
            ("", Isolation::Shared),
        ] {
            assert_eq!(isolation_of(plan), expected, "{plan}");
        }
        for isolation in [Isolation::Shared, Isolation::Schema] {
            assert_eq!(isolation.as_str().parse(), Ok(isolation));
        }
        assert!("own".parse::<Isolation>().unwrap_err().to_string().contains("shared or schema"));
    }

    #[test]
    fn no_two_slugs_share_a_schema() {
        let schema = |slug: &str| own_schema(&slug.parse().unwrap());
        assert_eq!(schema("acme-corp"), "tenant_acme_corp");
        assert_ne!(schema("a-b"), schema("ab"));
        let longest = format!("a{}z", "-".repeat(38));
        assert!(schema(&longest).len() + "_poller_dispatch".len() <= 63, "PostgreSQL would cut it");
    }
}
