//! Who a client certificate speaks for, and the only way to read that out of one.
//!
//! Reading is pure: it says what a certificate claims. Whether somebody trusted signed the claim is the verifier's part.

use std::str::FromStr;

use bulkhead_bus::{NameError, PollerName, SiteName, TenantSlug, UserName};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::AuthorityName;

/// The services of design section 6 that connect with a certificate.
const SERVICES: [&str; 7] = ["core", "registry", "poller-dispatch", "gatekeeper", "audit", "provisioning", "backup"];
/// What a leaf is called where a poller has its name.
const LEAF: &str = "leaf";
/// What stands where a site has its name when a person is meant.
const USER: &str = "user";
const FORWARDER: &str = "fwd";
const DOMAIN_LENGTH_MOST: usize = 100;

/// Whether a certificate has lived two thirds of its life, after which it is renewed; all in unix seconds.
#[must_use]
pub fn is_due_for_renewal(not_before: i64, not_after: i64, now: i64) -> bool {
    now >= not_before + (not_after - not_before) * 2 / 3
}

/// The suffix of every name in certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustDomain(String);

impl Default for TrustDomain {
    fn default() -> Self {
        Self("serviceradar".to_owned())
    }
}

impl TrustDomain {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a text is no trust domain.
#[derive(Debug, thiserror::Error)]
#[error("trust domain {0:?} is not valid: write labels of a-z, 0-9 and '-' with dots between, 100 characters at most")]
pub struct TrustDomainError(String);

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(text: &str) -> Result<Self, TrustDomainError> {
        let is_label = |label: &str| label.parse::<SiteName>().is_ok();
        if text.len() <= DOMAIN_LENGTH_MOST && text.split('.').all(is_label) {
            return Ok(Self(text.to_owned()));
        }
        Err(TrustDomainError(text.chars().take(60).collect()))
    }
}

/// Who a client certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientIdentity {
    Leaf {
        tenant: TenantSlug,
        site: SiteName,
    },
    Poller {
        tenant: TenantSlug,
        site: SiteName,
        poller: PollerName,
    },
    /// The forwarder of a site, which speaks to its leaf under the reserved name.
    Forwarder {
        tenant: TenantSlug,
        site: SiteName,
    },
    User {
        tenant: TenantSlug,
        user: UserName,
    },
    PlatformUser {
        user: UserName,
    },
    Service {
        service: &'static str,
    },
}

/// Why a certificate speaks for nobody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("it is no certificate: {0}")]
    NoCertificate(String),
    #[error("it is an authority's own")]
    Authority,
    #[error("it is not for clients only")]
    Usage,
    #[error("it has {count} {kind}, and exactly one says who it is")]
    Count { kind: &'static str, count: usize },
    #[error("it has a name of another kind than DNS and URI")]
    OtherName,
    #[error("URI {0:?} is none of this platform")]
    Uri(String),
    #[error("a name in its URI is not valid")]
    Name(#[source] NameError),
    #[error("service {0:?} is none of this release")]
    Service(String),
    #[error("its URI stands for {expected:?}, its {kind} is {found:?}")]
    Disagreement { kind: &'static str, expected: String, found: String },
    #[error("{0} would look like somebody else: choose another name than `leaf` for a poller or `user` for a site")]
    Ambiguous(String),
}

impl ClientIdentity {
    /// The DNS SAN, which is also the CN.
    #[must_use]
    pub fn dns_name(&self, domain: &TrustDomain) -> String {
        let domain = &domain.0;
        match self {
            Self::Leaf { tenant, site } => format!("{LEAF}.{site}.{tenant}.{domain}"),
            Self::Poller { tenant, site, poller } => format!("{poller}.{site}.{tenant}.{domain}"),
            Self::Forwarder { tenant, site } => format!("{FORWARDER}.{site}.{tenant}.{domain}"),
            Self::User { tenant, user } => format!("{user}.{USER}.{tenant}.{domain}"),
            Self::PlatformUser { user } => format!("{user}.{USER}.platform.{domain}"),
            Self::Service { service } => format!("{service}.platform.{domain}"),
        }
    }

    /// The URI SAN.
    #[must_use]
    pub fn uri(&self, domain: &TrustDomain) -> String {
        let domain = &domain.0;
        match self {
            Self::Leaf { tenant, site } => format!("spiffe://{domain}/tenant/{tenant}/site/{site}/leaf/{LEAF}"),
            Self::Poller { tenant, site, poller } => {
                format!("spiffe://{domain}/tenant/{tenant}/site/{site}/poller/{poller}")
            }
            Self::Forwarder { tenant, site } => {
                format!("spiffe://{domain}/tenant/{tenant}/site/{site}/poller/{FORWARDER}")
            }
            Self::User { tenant, user } => format!("spiffe://{domain}/tenant/{tenant}/user/{user}"),
            Self::PlatformUser { user } => format!("spiffe://{domain}/platform/user/{user}"),
            Self::Service { service } => format!("spiffe://{domain}/platform/service/{service}"),
        }
    }

    /// Reads what [`ClientIdentity::uri`] writes.
    ///
    /// # Errors
    /// When it is no URI of this platform, or a name in it is outside the grammar.
    pub fn from_uri(uri: &str, domain: &TrustDomain) -> Result<Self, IdentityError> {
        let unknown = || IdentityError::Uri(uri.chars().take(200).collect());
        let path = uri.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(domain.as_str()));
        let path = path.and_then(|rest| rest.strip_prefix('/')).ok_or_else(unknown)?;
        let parts: Vec<&str> = path.split('/').collect();
        let identity = match parts.as_slice() {
            ["tenant", tenant, "site", site, "leaf", LEAF] => Self::Leaf { tenant: name(tenant)?, site: name(site)? },
            ["tenant", tenant, "site", site, "poller", FORWARDER] => {
                Self::Forwarder { tenant: name(tenant)?, site: name(site)? }
            }
            ["tenant", tenant, "site", site, "poller", poller] => {
                Self::Poller { tenant: name(tenant)?, site: name(site)?, poller: name(poller)? }
            }
            ["tenant", tenant, "user", user] => Self::User { tenant: name(tenant)?, user: name(user)? },
            ["platform", "user", user] => Self::PlatformUser { user: name(user)? },
            ["platform", "service", found] => {
                let known = SERVICES.into_iter().find(|service| service == found);
                let service = known.ok_or_else(|| IdentityError::Service(found.chars().take(60).collect()))?;
                Self::Service { service }
            }
            _ => return Err(unknown()),
        };
        identity.check_plain()?;
        Ok(identity)
    }

    /// Two identities never share a DNS name: leaves and people are told from pollers by reserved words.
    ///
    /// # Errors
    /// When it would share one.
    pub fn check_plain(&self) -> Result<(), IdentityError> {
        match self {
            Self::Poller { tenant, site, poller } if poller.as_str() == LEAF || site.as_str() == USER => {
                Err(IdentityError::Ambiguous(format!("poller {tenant}/{site}/{poller}")))
            }
            Self::Leaf { tenant, site } | Self::Forwarder { tenant, site } if site.as_str() == USER => {
                Err(IdentityError::Ambiguous(format!("site {tenant}/{site}")))
            }
            Self::Poller { .. }
            | Self::Leaf { .. }
            | Self::Forwarder { .. }
            | Self::User { .. }
            | Self::PlatformUser { .. }
            | Self::Service { .. } => Ok(()),
        }
    }

    /// Whose intermediate vouches for it.
    #[must_use]
    pub fn authority(&self) -> AuthorityName {
        match self {
            Self::Leaf { tenant, .. }
            | Self::Poller { tenant, .. }
            | Self::Forwarder { tenant, .. }
            | Self::User { tenant, .. } => AuthorityName::Tenant(tenant.clone()),
            Self::PlatformUser { .. } | Self::Service { .. } => AuthorityName::Platform,
        }
    }
}

fn name<T: FromStr<Err = NameError>>(text: &str) -> Result<T, IdentityError> {
    text.parse().map_err(IdentityError::Name)
}

fn only<'a>(kind: &'static str, found: &[&'a str]) -> Result<&'a str, IdentityError> {
    match found {
        [one] => Ok(one),
        _ => Err(IdentityError::Count { kind, count: found.len() }),
    }
}

/// Who an end certificate speaks for. Common name, DNS name and URI say the same, there is one of each and no other name,
/// and each part passes the grammar of names: so a wildcard is refused.
///
/// # Errors
/// When it is no such certificate; the error says which rule it breaks.
pub fn read_identity(certificate: &[u8], domain: &TrustDomain) -> Result<ClientIdentity, IdentityError> {
    let malformed = |error: &dyn std::fmt::Display| IdentityError::NoCertificate(error.to_string());
    let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|error| malformed(&error))?;
    if !rest.is_empty() {
        return Err(malformed(&"there is something behind it"));
    }
    if parsed.is_ca() {
        return Err(IdentityError::Authority);
    }
    let usage = parsed.extended_key_usage().map_err(|error| malformed(&error))?.ok_or(IdentityError::Usage)?.value;
    if !usage.client_auth || usage.server_auth || usage.any {
        return Err(IdentityError::Usage);
    }
    let (mut dns_names, mut uris) = (Vec::new(), Vec::new());
    let names = parsed.subject_alternative_name().map_err(|error| malformed(&error))?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => dns_names.push(*name),
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => return Err(IdentityError::OtherName),
        }
    }
    let common_names = parsed.subject().iter_common_name().map(|name| name.as_str()).collect::<Result<Vec<_>, _>>();
    let common_names = common_names.map_err(|error| malformed(&error))?;
    let identity = ClientIdentity::from_uri(only("URIs", &uris)?, domain)?;
    let expected = identity.dns_name(domain);
    for (kind, found) in
        [("DNS name", only("DNS names", &dns_names)?), ("common name", only("common names", &common_names)?)]
    {
        if found != expected {
            let found = found.chars().take(200).collect();
            return Err(IdentityError::Disagreement { kind, expected, found });
        }
    }
    Ok(identity)
}
