//! The rules: who may enter which account, by its certificate and by nothing that it says of itself. Pure.
//!
//! Source: design section 3; facts, auth-callout-measured section 8. Everything is checked that servers ignore.

use bulkhead_bus::{AccountKey, Role, SiteName, TenantSlug};
use bulkhead_identity::{
    AuthorityName, ChainError, ClientIdentity, GateRecord, TrustDomain, TrustedRoots, VerifiedCertificate, leaf_name,
    site_of_leaf, verify_chain,
};

use crate::gate::{Gate, Member};

/// How a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Client,
    Leaf,
}

/// What a server says of a connection.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    pub kind: Kind,
    /// What the other side calls itself: a leaf its server's name, a service its role.
    pub name: &'a str,
    /// Where it comes from.
    pub host: &'a str,
    /// Verified chains as PEM, each from the end certificate upwards.
    pub chains: &'a [Vec<String>],
}

/// Whom certificates are believed of.
#[derive(Debug, Clone)]
pub struct Trust {
    pub roots: TrustedRoots,
    pub domain: TrustDomain,
}

/// Where a connection may go, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub account: AccountKey,
    pub role: Role,
    /// The user's name, which fills the role's template.
    pub name: String,
    pub site: Option<SiteName>,
}

/// Why a connection is refused. What the connection is told says less.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its certificate is not believed")]
    Certificate(#[source] ChainError),
    #[error("no account knows the authority that vouches for it")]
    UnknownAuthority,
    #[error("it names {named}, and the authority that vouches for it is {owner}'s")]
    OtherTenant { named: String, owner: String },
    #[error("certificate {0} is revoked")]
    Revoked(String),
    #[error("the account is closed")]
    Closed,
    #[error("it connects as a {0:?}, which such a certificate is not for")]
    Kind(Kind),
    #[error("site {0} is not, or no more, one of the tenant's")]
    UnknownSite(SiteName),
    #[error("the leaf calls itself {found:?}, and its certificate is of {expected:?}")]
    LeafName { expected: String, found: String },
    #[error("{0:?} is not, or no more, let in")]
    UnknownPerson(String),
    #[error("service {service:?} may not be {asked:?} anywhere")]
    UnknownRole { service: String, asked: String },
    #[error("it comes from {0}, which is none of the networks of its site")]
    Source(String),
}

impl Refusal {
    /// A closed list of codes, for records and metrics.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Certificate(ChainError::NotShown) => "no_certificate",
            Self::Certificate(ChainError::Expired(_)) => "expired",
            Self::Certificate(ChainError::NotYetGood(_)) => "not_yet_good",
            Self::Certificate(ChainError::Identity(_)) => "no_identity",
            Self::Certificate(
                ChainError::TooMuch { .. }
                | ChainError::Unreadable(_)
                | ChainError::Several
                | ChainError::Untrusted(_)
                | ChainError::Intermediates(_),
            ) => "untrusted",
            Self::UnknownAuthority => "unknown_authority",
            Self::OtherTenant { .. } => "other_tenant",
            Self::Revoked(_) => "revoked",
            Self::Closed => "closed",
            Self::Kind(_) => "kind",
            Self::UnknownSite(_) => "unknown_site",
            Self::LeafName { .. } => "leaf_name",
            Self::UnknownPerson(_) => "unknown_person",
            Self::UnknownRole { .. } => "unknown_role",
            Self::Source(_) => "source",
        }
    }
}

/// What was found out on the way, for the record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub certificate: Option<VerifiedCertificate>,
    /// Whose the authority is that vouches for it: a tenant, or `platform`.
    pub expected: Option<String>,
}

/// Decides at `now_s`, unix seconds.
pub fn decide(gate: &Gate, trust: &Trust, question: &Question<'_>, now_s: u64) -> (Result<Admission, Refusal>, Seen) {
    let mut seen = Seen::default();
    let decided = look(gate, trust, question, now_s, &mut seen);
    (decided, seen)
}

fn owner(tenant: Option<&TenantSlug>) -> String {
    tenant.map_or_else(|| "platform".to_owned(), ToString::to_string)
}

fn look(
    gate: &Gate,
    trust: &Trust,
    question: &Question<'_>,
    now_s: u64,
    seen: &mut Seen,
) -> Result<Admission, Refusal> {
    let verified = verify_chain(question.chains, &trust.roots, &trust.domain, now_s).map_err(Refusal::Certificate)?;
    let identity = verified.identity.clone();
    let (authority, serial) = (verified.authority_key.clone(), verified.serial.clone());
    let fingerprint = verified.fingerprint.clone();
    seen.certificate = Some(verified);
    let members = gate.of_authority(&authority);
    let first = members.first().ok_or(Refusal::UnknownAuthority)?;
    // All accounts of one authority are one owner's: the gate holds no others.
    let tenant = first.record.tenant.as_ref();
    seen.expected = Some(owner(tenant));
    let named = match identity.authority() {
        AuthorityName::Tenant(slug) => Some(slug),
        AuthorityName::Platform | AuthorityName::ClientRoot | AuthorityName::ServerRoot | AuthorityName::RouteRoot => {
            None
        }
    };
    if named.as_ref() != tenant {
        return Err(Refusal::OtherTenant { named: owner(named.as_ref()), owner: owner(tenant) });
    }
    if members.iter().any(|member| member.record.revoked.contains(&fingerprint)) {
        return Err(Refusal::Revoked(serial));
    }
    match &identity {
        ClientIdentity::Leaf { site, tenant } => {
            let admission = of_site(&first.record, question, Kind::Leaf, Role::Leaf, site, "leaf")?;
            if site_of_leaf(tenant, question.name).as_ref() != Some(site) {
                let expected = leaf_name(tenant, site);
                let found = question.name.chars().take(100).collect();
                return Err(Refusal::LeafName { expected, found });
            }
            Ok(admission)
        }
        ClientIdentity::Poller { site, poller, .. } => {
            of_site(&first.record, question, Kind::Client, Role::Poller, site, poller.as_str())
        }
        // It speaks to its own leaf and never to the hub.
        ClientIdentity::Forwarder { .. } => Err(Refusal::Kind(question.kind)),
        ClientIdentity::User { user, .. } | ClientIdentity::PlatformUser { user } => {
            be_client(question)?;
            let person = members.iter().find_map(|member| member.record.people.get(user).map(|role| (member, *role)));
            let (member, role) = person.ok_or_else(|| Refusal::UnknownPerson(user.to_string()))?;
            be_open(&member.record)?;
            Ok(Admission { account: member.record.account.clone(), role, name: user.to_string(), site: None })
        }
        ClientIdentity::Service { service } => {
            be_client(question)?;
            of_service(&members, service, question.name)
        }
    }
}

fn be_client(question: &Question<'_>) -> Result<(), Refusal> {
    if question.kind == Kind::Client { Ok(()) } else { Err(Refusal::Kind(question.kind)) }
}

fn be_open(record: &GateRecord) -> Result<(), Refusal> {
    if record.is_open { Ok(()) } else { Err(Refusal::Closed) }
}

fn of_site(
    record: &GateRecord,
    question: &Question<'_>,
    kind: Kind,
    role: Role,
    site: &SiteName,
    name: &str,
) -> Result<Admission, Refusal> {
    if question.kind != kind {
        return Err(Refusal::Kind(question.kind));
    }
    be_open(record)?;
    let known = record.sites.get(site).ok_or_else(|| Refusal::UnknownSite(site.clone()))?;
    if !known.admits(question.host) {
        return Err(Refusal::Source(question.host.chars().take(60).collect()));
    }
    let (account, name) = (record.account.clone(), name.to_owned());
    Ok(Admission { account, role, name, site: Some(site.clone()) })
}

/// A service says with its connection's name as which role it comes, and in which account when there are several.
fn of_service(members: &[&Member], service: &str, asked: &str) -> Result<Admission, Refusal> {
    let (role, account) = asked.split_once('@').map_or((asked, None), |(role, account)| (role, Some(account)));
    let refused = || Refusal::UnknownRole { service: service.to_owned(), asked: asked.chars().take(100).collect() };
    let role = Role::SERVICES.into_iter().find(|known| known.name() == role).ok_or_else(refused)?;
    let may = |member: &&&Member| {
        let roles = member.record.services.get(service);
        let is_named = account.is_none_or(|account| account == member.record.name);
        is_named && roles.is_some_and(|roles| roles.contains(&role))
    };
    let mut found = members.iter().filter(may);
    let (Some(member), None) = (found.next(), found.next()) else { return Err(refused()) };
    be_open(&member.record)?;
    let account = member.record.account.clone();
    Ok(Admission { account, role, name: role.name().to_owned(), site: None })
}

#[cfg(test)]
mod tests;
