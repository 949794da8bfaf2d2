//! Whether somebody who is in would be let in now: what follows for connections when a record changes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use bulkhead_bus::{Role, SiteName, UserName};

use crate::gate::{GateRecord, GateSite};
use crate::leaf_name::site_of_leaf;

/// A connection as its server describes it. The server knows of a certificate its common name only; when the connection came
/// in, the gatekeeper has seen that all its names say the same.
#[derive(Debug, Clone, Copy)]
pub struct Presence<'a> {
    /// The account's signing key by which it came in.
    pub issuer_key: &'a str,
    /// The user's name.
    pub user: &'a str,
    /// What the other side calls itself: a leaf its server's name.
    pub name: &'a str,
    pub host: &'a str,
    /// Of its certificate, such as `CN=p1.oslo.acme-corp.serviceradar`.
    pub subject: &'a str,
    /// SHA-256 of its certificate.
    pub fingerprint: &'a str,
    /// SHA-256 of the keys of the certificates that it showed behind its own.
    pub above: &'a [&'a str],
}

/// Why somebody who is in would not be let in now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawal {
    Closed,
    Authority,
    Revoked,
    Person,
    Site,
    Source,
    Service,
}

impl Withdrawal {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "the account is closed",
            Self::Authority => "the authority that vouches for it does not any more",
            Self::Revoked => "its certificate is revoked",
            Self::Person => "the person is not let in any more, or in another role",
            Self::Site => "its site is not the tenant's any more",
            Self::Source => "it comes from none of the networks of its site",
            Self::Service => "the service is not let in any more",
        }
    }
}

impl GateSite {
    /// Whether it may come from here. A server that listens on both families writes IPv4 as IPv6.
    #[must_use]
    pub fn admits(&self, host: &str) -> bool {
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        self.sources.is_empty()
            || address.is_some_and(|address| self.sources.iter().any(|network| network.contains(&address)))
    }
}

impl GateRecord {
    /// Why somebody who is in by this record's keys would not be let in now; `None` for whoever would, and for whoever came
    /// by another key, of whom the record says nothing.
    #[must_use]
    pub fn withdrawal(&self, presence: &Presence<'_>) -> Option<Withdrawal> {
        let (role, _) = self.keys.iter().find(|(_, key)| *key == presence.issuer_key)?;
        if !self.is_open {
            return Some(Withdrawal::Closed);
        }
        if self.revoked.contains(presence.fingerprint) {
            return Some(Withdrawal::Revoked);
        }
        if !presence.above.iter().any(|key| self.authorities.contains(*key)) {
            return Some(Withdrawal::Authority);
        }
        match role {
            Role::Admin | Role::Viewer | Role::PlatformAdmin => {
                let found = presence.user.parse().ok().and_then(|name| self.people.get(&name));
                (found != Some(role)).then_some(Withdrawal::Person)
            }
            Role::Leaf => {
                let tenant = self.tenant.as_ref()?;
                self.of_site(site_of_leaf(tenant, presence.name), presence.host)
            }
            Role::Poller => {
                let name = presence.subject.strip_prefix("CN=").unwrap_or(presence.subject);
                self.of_site(name.split('.').nth(1).and_then(|site| site.parse().ok()), presence.host)
            }
            Role::CoreStream
            | Role::CoreRpc
            | Role::CoreLive
            | Role::DispatchPush
            | Role::DispatchRpc
            | Role::RegistryRpc
            | Role::RegistryKeep
            | Role::Provisioner
            | Role::Backup
            | Role::SystemOperator
            | Role::Gatekeeper
            | Role::GateWriter
            | Role::GateWatch
            | Role::Sentinel => {
                let is_known = self.services.values().any(|roles| roles.contains(role));
                (!is_known).then_some(Withdrawal::Service)
            }
        }
    }

    /// Whether somebody whom `before` admits may not be admitted by this.
    #[must_use]
    pub fn is_narrower_than(&self, before: &Self) -> bool {
        let is_kept = |(name, role): (&UserName, &Role)| self.people.get(name) == Some(role);
        let site_is_kept = |(name, site): (&SiteName, &GateSite)| self.sites.get(name) == Some(site);
        let service_is_kept = |(name, roles): (&String, &BTreeSet<Role>)| {
            self.services.get(name).is_some_and(|now| now.is_superset(roles))
        };
        (before.is_open && !self.is_open)
            || !self.authorities.is_superset(&before.authorities)
            || !before.revoked.is_superset(&self.revoked)
            || !before.people.iter().all(is_kept)
            || !before.sites.iter().all(site_is_kept)
            || !before.services.iter().all(service_is_kept)
    }

    fn of_site(&self, name: Option<SiteName>, host: &str) -> Option<Withdrawal> {
        match name.and_then(|name| self.sites.get(&name)) {
            None => Some(Withdrawal::Site),
            Some(site) => (!site.admits(host)).then_some(Withdrawal::Source),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bulkhead_claims::{Claims, KeyKind, SigningKey};

    use super::*;
    use crate::gate::GateBody;

    fn key() -> String {
        SigningKey::generate(KeyKind::Account).public().to_owned()
    }

    fn record(change: impl FnOnce(&mut GateBody)) -> GateRecord {
        let text = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let mut body = GateBody {
            tenant: "acme-corp".to_owned(),
            is_open: true,
            authorities: BTreeSet::from(["0a".repeat(32)]),
            people: text(&[("ann", "admin"), ("vic", "viewer")]),
            sites: BTreeMap::from([("oslo".to_owned(), GateSite::default())]),
            ..GateBody::default()
        };
        change(&mut body);
        GateRecord::of_claims(Claims::new(key(), "acme-corp".to_owned(), 1, body)).unwrap()
    }

    #[test]
    fn a_record_that_takes_something_away_is_narrower() {
        let before = record(|_| ());
        let is_narrower = |change: &dyn Fn(&mut GateBody)| record(change).is_narrower_than(&before);
        assert!(!is_narrower(&|_| ()));
        assert!(!is_narrower(&|body| drop(body.people.insert("bob".to_owned(), "viewer".to_owned()))));
        assert!(!is_narrower(&|body| drop(body.sites.insert("rome".to_owned(), GateSite::default()))));
        assert!(!is_narrower(&|body| body.authorities.extend(["0b".repeat(32)])));
        assert!(is_narrower(&|body| body.is_open = false));
        assert!(is_narrower(&|body| drop(body.people.insert("ann".to_owned(), "viewer".to_owned()))));
        assert!(is_narrower(&|body| drop(body.people.remove("vic"))));
        assert!(is_narrower(&|body| body.sites.clear()));
        assert!(is_narrower(&|body| body.authorities = ["0b".repeat(32)].into()));
        assert!(is_narrower(&|body| body.revoked = ["0b".repeat(32)].into()));
        let narrowed = GateSite { sources: vec!["10.2.0.0/16".parse().unwrap()] };
        assert!(is_narrower(&|body| drop(body.sites.insert("oslo".to_owned(), narrowed.clone()))));
    }

    #[test]
    fn whoever_would_not_be_let_in_now_is_named_with_the_reason() {
        let keys: BTreeMap<String, String> = Role::TENANT.iter().map(|role| (role.name().to_owned(), key())).collect();
        let (good, other) = ("0a".repeat(32), "0b".repeat(32));
        let above = [good.as_str()];
        let of = |role: &str| Presence {
            issuer_key: keys.get(role).map_or("ANOTHER", String::as_str),
            user: "ann",
            name: "leaf-acme-corp-oslo",
            host: "10.1.2.3",
            subject: "CN=p1.oslo.acme-corp.serviceradar",
            fingerprint: "0f",
            above: &above,
        };
        let now = |change: &dyn Fn(&mut GateBody), presence: &Presence<'_>| {
            record(|body| {
                body.keys = keys.clone();
                change(body);
            })
            .withdrawal(presence)
        };
        for role in ["admin", "leaf", "poller", "a key of before"] {
            assert_eq!(now(&|_| (), &of(role)), None, "{role}");
        }
        for role in ["admin", "leaf", "poller"] {
            assert_eq!(now(&|body| body.is_open = false, &of(role)), Some(Withdrawal::Closed), "{role}");
            let revoke = |body: &mut GateBody| body.revoked = [other.clone()].into();
            let shown = Presence { fingerprint: &other, ..of(role) };
            assert_eq!(now(&revoke, &shown), Some(Withdrawal::Revoked), "{role}");
            assert_eq!(now(&revoke, &of(role)), None, "{role}: another certificate");
            let rotated = |body: &mut GateBody| body.authorities = [other.clone()].into();
            assert_eq!(now(&rotated, &of(role)), Some(Withdrawal::Authority), "{role}");
        }
        assert_eq!(now(&|body| drop(body.people.remove("ann")), &of("admin")), Some(Withdrawal::Person));
        assert_eq!(now(&|_| (), &of("viewer")), Some(Withdrawal::Person), "in another role than the record says");
        for role in ["leaf", "poller"] {
            assert_eq!(now(&|body| body.sites.clear(), &of(role)), Some(Withdrawal::Site), "{role}");
            let narrow = |body: &mut GateBody| {
                let site = GateSite { sources: vec!["10.2.0.0/16".parse().unwrap()] };
                body.sites.insert("oslo".to_owned(), site);
            };
            assert_eq!(now(&narrow, &of(role)), Some(Withdrawal::Source), "{role}");
        }
        let elsewhere = Presence { name: "leaf-xyz-inc-oslo", ..of("leaf") };
        assert_eq!(now(&|_| (), &elsewhere), Some(Withdrawal::Site));
    }
}
