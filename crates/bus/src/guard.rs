//! `TenantGuard` by type: a handler takes [`Guarded<T>`], and the only way to one is [`TenantSnapshot::admit`].
//!
//! The tenant comes from the prefix that the server wrote and a snapshot of known tenants. A body may repeat who it is
//! from; when it says something else, that is a violation and the body is refused, never corrected.

use std::collections::HashMap;

use uuid::Uuid;

use crate::{AccountKey, CoreSubject, PollerName, SiteName, TenantSlug, TenantSubject};

/// A tenant's key in the database; never on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Uuid);

impl TenantId {
    #[must_use]
    pub fn new(id: Uuid) -> Self {
        Self(id)
    }

    #[must_use]
    pub fn as_uuid(self) -> Uuid {
        self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantState {
    Active,
    Suspended,
}

/// What the guard knows of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub id: TenantId,
    pub slug: TenantSlug,
    pub plan: String,
    pub state: TenantState,
    /// How long results are kept; older slots are dead-lettered.
    pub retention_days: u32,
    /// Whether batches without a signature are stored, marked as not attested.
    pub allows_unsigned: bool,
}

/// Whose account a prefix is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    Tenant(Tenant),
    /// OPS: its people may name a target tenant.
    Platform,
}

/// Who is believed to have sent a message, and about whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Tenant(Tenant),
    Platform { target: Option<Tenant> },
}

/// Whom a handler listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    Tenants,
    TenantsAndPlatform,
}

/// What a body says about its own sender; `None` says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claimed<'a> {
    pub tenant: Option<&'a str>,
    pub site: Option<&'a SiteName>,
    pub poller: Option<&'a PollerName>,
}

pub trait Claim {
    fn claimed(&self) -> Claimed<'_>;
}

/// Why the guard refuses. Closed: [`Refusal::code`] is a label and a dead-letter reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("account {0} is not a known tenant")]
    UnknownAccount(AccountKey),
    #[error("tenant {0} is suspended")]
    Suspended(TenantSlug),
    #[error("the body names tenant {claimed:?}, but it came from {actual}")]
    TenantMismatch { claimed: String, actual: TenantSlug },
    #[error("the body names {claimed}, but it came from {actual}")]
    SenderMismatch { claimed: String, actual: String },
    #[error("the platform does not send this")]
    NotForPlatform,
    #[error("there is no tenant {0:?}")]
    UnknownTarget(String),
}

impl Refusal {
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownAccount(_) => "unknown_account",
            Self::Suspended(_) => "tenant_suspended",
            Self::TenantMismatch { .. } => "tenant_mismatch",
            Self::SenderMismatch { .. } => "sender_mismatch",
            Self::NotForPlatform => "not_for_platform",
            Self::UnknownTarget(_) => "unknown_target",
        }
    }
}

/// A message that has passed the guard. It cannot be made in any other way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded<T> {
    scope: Scope,
    subject: TenantSubject,
    body: T,
}

impl<T> Guarded<T> {
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The tenant that this concerns: the sender, or the platform's target.
    #[must_use]
    pub fn tenant(&self) -> Option<&Tenant> {
        match &self.scope {
            Scope::Tenant(tenant) => Some(tenant),
            Scope::Platform { target } => target.as_ref(),
        }
    }

    #[must_use]
    pub fn subject(&self) -> &TenantSubject {
        &self.subject
    }

    #[must_use]
    pub fn body(&self) -> &T {
        &self.body
    }
}

/// The tenants that are known at one moment.
#[derive(Debug, Clone, Default)]
pub struct TenantSnapshot {
    accounts: HashMap<AccountKey, Account>,
}

impl FromIterator<(AccountKey, Account)> for TenantSnapshot {
    fn from_iter<I: IntoIterator<Item = (AccountKey, Account)>>(accounts: I) -> Self {
        Self { accounts: accounts.into_iter().collect() }
    }
}

impl TenantSnapshot {
    #[must_use]
    pub fn account(&self, key: &AccountKey) -> Option<&Account> {
        self.accounts.get(key)
    }

    /// Every tenant, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = (&AccountKey, &Tenant)> {
        self.accounts.iter().filter_map(|(key, account)| match account {
            Account::Tenant(tenant) => Some((key, tenant)),
            Account::Platform => None,
        })
    }

    /// Admits a decoded message by the subject on which the server delivered it.
    ///
    /// # Errors
    /// A [`Refusal`] names what the message is and what it claims to be.
    pub fn admit<T: Claim>(&self, subject: CoreSubject, audience: Audience, body: T) -> Result<Guarded<T>, Refusal> {
        let account = self.accounts.get(&subject.account);
        let account = account.ok_or_else(|| Refusal::UnknownAccount(subject.account.clone()))?;
        let claimed = body.claimed();
        let scope = match account {
            Account::Tenant(tenant) => Scope::Tenant(self.admitted_tenant(tenant, claimed)?),
            Account::Platform if audience == Audience::Tenants => return Err(Refusal::NotForPlatform),
            Account::Platform => Scope::Platform { target: self.target(claimed)? },
        };
        check_sender(&subject.subject, claimed)?;
        Ok(Guarded { scope, subject: subject.subject, body })
    }

    fn admitted_tenant(&self, tenant: &Tenant, claimed: Claimed<'_>) -> Result<Tenant, Refusal> {
        if let Some(claimed) = claimed.tenant.filter(|claimed| *claimed != tenant.slug.as_str()) {
            let claimed = claimed.chars().take(60).collect();
            return Err(Refusal::TenantMismatch { claimed, actual: tenant.slug.clone() });
        }
        match tenant.state {
            TenantState::Active => Ok(tenant.clone()),
            TenantState::Suspended => Err(Refusal::Suspended(tenant.slug.clone())),
        }
    }

    fn target(&self, claimed: Claimed<'_>) -> Result<Option<Tenant>, Refusal> {
        let Some(slug) = claimed.tenant else { return Ok(None) };
        let found = self.tenants().find(|(_, tenant)| tenant.slug.as_str() == slug);
        match found {
            Some((_, tenant)) => Ok(Some(tenant.clone())),
            None => Err(Refusal::UnknownTarget(slug.chars().take(60).collect())),
        }
    }
}

fn check_sender(subject: &TenantSubject, claimed: Claimed<'_>) -> Result<(), Refusal> {
    let (site, poller) = match subject {
        TenantSubject::Forwarded { site, .. } => (Some(site), None),
        TenantSubject::Live { site, poller, .. } | TenantSubject::Down { site, poller, .. } => {
            (Some(site), Some(poller))
        }
        TenantSubject::Query { .. } => (None, None),
    };
    let mismatch = |claimed: &str, actual: &str| {
        Err(Refusal::SenderMismatch { claimed: claimed.to_owned(), actual: actual.to_owned() })
    };
    if let (Some(claimed), Some(actual)) = (claimed.site, site)
        && claimed != actual
    {
        return mismatch(claimed.as_str(), actual.as_str());
    }
    if let (Some(claimed), Some(actual)) = (claimed.poller, poller)
        && claimed != actual
    {
        return mismatch(claimed.as_str(), actual.as_str());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::{Query, ResultBatch};
    use crate::{CoreVerb, Lane};

    fn key() -> AccountKey {
        nkeys::KeyPair::new_account().public_key().parse().unwrap()
    }

    fn tenant(slug: &str, state: TenantState) -> Tenant {
        Tenant {
            id: TenantId::new(Uuid::new_v4()),
            slug: slug.parse().unwrap(),
            plan: "free".to_owned(),
            state,
            retention_days: 7,
            allows_unsigned: false,
        }
    }

    struct World {
        acme: AccountKey,
        xyz: AccountKey,
        ops: AccountKey,
        snapshot: TenantSnapshot,
    }

    fn world() -> World {
        let (acme, xyz, ops) = (key(), key(), key());
        let snapshot = TenantSnapshot::from_iter([
            (acme.clone(), Account::Tenant(tenant("acme-corp", TenantState::Active))),
            (xyz.clone(), Account::Tenant(tenant("xyz-inc", TenantState::Suspended))),
            (ops.clone(), Account::Platform),
        ]);
        World { acme, xyz, ops, snapshot }
    }

    fn batch(tenant: Option<&str>, site: &str) -> ResultBatch {
        let poller = "p1".parse().unwrap();
        ResultBatch {
            version: 1,
            tenant: tenant.map(str::to_owned),
            site: site.parse().unwrap(),
            poller,
            results: vec![],
        }
    }

    fn forwarded(account: &AccountKey) -> CoreSubject {
        let subject = TenantSubject::Forwarded { site: "oslo".parse().unwrap(), lane: Lane::Results };
        CoreSubject { account: account.clone(), subject }
    }

    fn query(account: &AccountKey) -> CoreSubject {
        let subject = TenantSubject::Query { user: "alice".parse().unwrap(), verb: CoreVerb::ListResults };
        CoreSubject { account: account.clone(), subject }
    }

    fn check_batch(account: &AccountKey, body: ResultBatch, world: &World, expected: Result<(), &str>) {
        let admitted = world.snapshot.admit(forwarded(account), Audience::Tenants, body);
        assert_eq!(admitted.as_ref().map(|_| ()).map_err(Refusal::code), expected, "{admitted:?}");
    }

    #[test]
    fn identity_is_the_prefix_and_a_body_can_only_agree() {
        let world = world();
        check_batch(&world.acme, batch(None, "oslo"), &world, Ok(()));
        check_batch(&world.acme, batch(Some("acme-corp"), "oslo"), &world, Ok(()));
        check_batch(&world.acme, batch(Some("xyz-inc"), "oslo"), &world, Err("tenant_mismatch"));
        check_batch(&world.acme, batch(None, "bergen"), &world, Err("sender_mismatch"));
        check_batch(&world.xyz, batch(None, "oslo"), &world, Err("tenant_suspended"));
        check_batch(&world.ops, batch(None, "oslo"), &world, Err("not_for_platform"));
        check_batch(&key(), batch(None, "oslo"), &world, Err("unknown_account"));
    }

    #[test]
    fn only_the_platform_names_a_target() {
        let world = world();
        let ask = |account: &AccountKey, tenant: Option<&str>| {
            let body = Query { tenant: tenant.map(str::to_owned), ..Query::default() };
            world.snapshot.admit(query(account), Audience::TenantsAndPlatform, body)
        };
        let slug = |guarded: &Guarded<Query>| guarded.tenant().map(|tenant| tenant.slug.to_string());
        assert_eq!(slug(&ask(&world.ops, Some("acme-corp")).unwrap()), Some("acme-corp".to_owned()));
        assert_eq!(slug(&ask(&world.ops, None).unwrap()), None);
        assert_eq!(ask(&world.ops, Some("nobody")).unwrap_err().code(), "unknown_target");
        assert_eq!(ask(&world.acme, Some("xyz-inc")).unwrap_err().code(), "tenant_mismatch");
        assert_eq!(slug(&ask(&world.acme, None).unwrap()), Some("acme-corp".to_owned()));
    }
}
