//! `TenantGuard` by type: a handler takes [`Guarded<T>`], and the only way to one is [`TenantSnapshot::admit`].
//!
//! The tenant comes from the prefix that the server wrote and a snapshot of known tenants. A body may repeat who it is
//! from; when it says something else, that is a violation and the body is refused, never corrected.

use std::collections::HashMap;
use std::str::FromStr;

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

/// Where a tenant is between its onboarding and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantState {
    Active,
    /// Nothing new is taken in; what the hub had accepted before is stored, because nobody else has it any more.
    Suspended,
    /// Its rows are being removed, and nothing is written for it.
    Offboarding,
    /// Its rows are gone.
    Offboarded,
}

impl TenantState {
    pub const ALL: [Self; 4] = [Self::Active, Self::Suspended, Self::Offboarding, Self::Offboarded];

    /// As rows and answers spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Offboarding => "offboarding",
            Self::Offboarded => "offboarded",
        }
    }

    /// Whether rows may still be written under the tenant's id.
    #[must_use]
    pub fn is_open(self) -> bool {
        match self {
            Self::Active | Self::Suspended => true,
            Self::Offboarding | Self::Offboarded => false,
        }
    }
}

/// A word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no state of a tenant: it is active, suspended, offboarding or offboarded")]
pub struct UnknownState(String);

impl FromStr for TenantState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| UnknownState(text.chars().take(60).collect()))
    }
}

/// What the guard knows of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub id: TenantId,
    pub slug: TenantSlug,
    pub plan: String,
    pub state: TenantState,
    /// When it came into this state, in unix milliseconds by the database's clock; nobody else decides it.
    pub state_since_ms: i64,
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

/// When the platform took a message upon itself.
#[derive(Debug, Clone, Copy)]
enum Accepted {
    /// It is offered now.
    Now,
    /// A stream has had it since this unix millisecond.
    At(i64),
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

    /// The tenant of an account, unless its rows are being removed or are gone: then the account is nobody's.
    #[must_use]
    pub fn open_tenant(&self, key: &AccountKey) -> Option<&Tenant> {
        match self.accounts.get(key) {
            Some(Account::Tenant(tenant)) if tenant.state.is_open() => Some(tenant),
            Some(Account::Tenant(_) | Account::Platform) | None => None,
        }
    }

    /// Takes `account` in place of what was known of `key`; `None` forgets it.
    pub fn set(&mut self, key: AccountKey, account: Option<Account>) {
        match account {
            Some(account) => self.accounts.insert(key, account),
            None => self.accounts.remove(&key),
        };
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
        self.admit_accepted(subject, audience, body, Accepted::Now)
    }

    /// As [`Self::admit`], of a message that a stream has kept since `stored_ms`: its sender was told that it is safe, and
    /// a suspension that came later changes nothing about that.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn admit_stored<T: Claim>(
        &self,
        subject: CoreSubject,
        audience: Audience,
        (body, stored_ms): (T, i64),
    ) -> Result<Guarded<T>, Refusal> {
        self.admit_accepted(subject, audience, body, Accepted::At(stored_ms))
    }

    fn admit_accepted<T: Claim>(
        &self,
        subject: CoreSubject,
        audience: Audience,
        body: T,
        accepted: Accepted,
    ) -> Result<Guarded<T>, Refusal> {
        let account = self.accounts.get(&subject.account);
        let account = account.ok_or_else(|| Refusal::UnknownAccount(subject.account.clone()))?;
        let claimed = body.claimed();
        let scope = match account {
            Account::Tenant(tenant) if !tenant.state.is_open() => {
                return Err(Refusal::UnknownAccount(subject.account));
            }
            Account::Tenant(tenant) => Scope::Tenant(admitted_tenant(tenant, claimed, accepted)?),
            Account::Platform if audience == Audience::Tenants => return Err(Refusal::NotForPlatform),
            Account::Platform => Scope::Platform { target: self.target(claimed)? },
        };
        check_sender(&subject.subject, claimed)?;
        Ok(Guarded { scope, subject: subject.subject, body })
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

fn admitted_tenant(tenant: &Tenant, claimed: Claimed<'_>, accepted: Accepted) -> Result<Tenant, Refusal> {
    if let Some(claimed) = claimed.tenant.filter(|claimed| *claimed != tenant.slug.as_str()) {
        let claimed = claimed.chars().take(60).collect();
        return Err(Refusal::TenantMismatch { claimed, actual: tenant.slug.clone() });
    }
    let was_accepted_before = matches!(accepted, Accepted::At(stored_ms) if stored_ms < tenant.state_since_ms);
    match tenant.state {
        TenantState::Active => Ok(tenant.clone()),
        TenantState::Suspended if was_accepted_before => Ok(tenant.clone()),
        TenantState::Suspended | TenantState::Offboarding | TenantState::Offboarded => {
            Err(Refusal::Suspended(tenant.slug.clone()))
        }
    }
}

fn check_sender(subject: &TenantSubject, claimed: Claimed<'_>) -> Result<(), Refusal> {
    let (site, poller) = match subject {
        TenantSubject::Forwarded { site, .. } => (Some(site), None),
        TenantSubject::Live { site, poller, .. }
        | TenantSubject::Down { site, poller, .. }
        | TenantSubject::Assignment { site, poller, .. } => (Some(site), Some(poller)),
        TenantSubject::Lease { site, name, .. } => (Some(site), name.poller()),
        TenantSubject::Query { .. }
        | TenantSubject::Registry { .. }
        | TenantSubject::Dispatch { .. }
        | TenantSubject::Service { .. }
        | TenantSubject::Event { .. } => (None, None),
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
            state_since_ms: 1_000,
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
    fn what_was_accepted_before_a_suspension_is_admitted_and_what_came_later_is_not() {
        let world = world();
        let at = |account: &AccountKey, stored_ms| {
            let offered = (batch(None, "oslo"), stored_ms);
            let admitted = world.snapshot.admit_stored(forwarded(account), Audience::Tenants, offered);
            admitted.map(|_| ()).map_err(|refusal| refusal.code())
        };
        assert_eq!((at(&world.xyz, 999), at(&world.xyz, 1_000)), (Ok(()), Err("tenant_suspended")));
        assert_eq!(at(&world.acme, i64::MAX), Ok(()));
    }

    #[test]
    fn a_tenant_that_is_leaving_or_gone_is_nobody() {
        for state in TenantState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
            let (own, mut snapshot) = (key(), TenantSnapshot::default());
            snapshot.set(own.clone(), Some(Account::Tenant(tenant("acme-corp", state))));
            let offered = (batch(None, "oslo"), 0);
            let admitted = snapshot.admit_stored(forwarded(&own), Audience::Tenants, offered);
            let expected = if state.is_open() { Ok(()) } else { Err("unknown_account") };
            assert_eq!(admitted.map(|_| ()).map_err(|refusal| refusal.code()), expected, "{state:?}");
            assert_eq!(snapshot.open_tenant(&own).is_some(), state.is_open());
            snapshot.set(own.clone(), None);
            assert_eq!(snapshot.account(&own), None);
        }
        assert!("gone".parse::<TenantState>().is_err());
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
