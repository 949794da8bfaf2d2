//! What the gatekeeper knows of one account, as an operator signing key has signed it (design section 3).
//!
//! The record binds: whoever the intermediates with these keys vouch for, and nobody else, may enter this account, with
//! these roles. It names no secret: the private halves of `keys` travel sealed, beside it.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::{AccountKey, NameError, Role, SiteName, TenantSlug, UserName};
use bulkhead_claims::{Body, ClaimKind, Claims, DecodeError, decode};
use data_encoding::HEXLOWER;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

const KIND: &str = "gate_record";
const VERSION: u32 = 2;
/// Of a SHA-256 in hexadecimal.
const HASH_LENGTH: usize = 64;
/// What a person may be.
const PEOPLE: [Role; 3] = [Role::Admin, Role::Viewer, Role::PlatformAdmin];

/// The record as it is signed. Readers ignore what they do not know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GateBody {
    /// The tenant; empty for an account of the platform.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// Grows with every change of the record, and never goes back.
    pub epoch: u64,
    /// Whether anybody may enter.
    pub is_open: bool,
    /// SHA-256 of the public keys of the intermediates that vouch for its members.
    pub authorities: BTreeSet<String>,
    /// Role by person.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub people: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<String, GateSite>,
    /// Roles by service of the platform.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, BTreeSet<String>>,
    /// SHA-256 of certificates that are not let in any more: by them a connection that is there is found as well.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked: BTreeSet<String>,
    /// Public signing key by role.
    pub keys: BTreeMap<String, String>,
    #[serde(rename = "type")]
    pub kind: String,
    pub version: u32,
}

/// A site, and where its connections may come from: anywhere, when no network is named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GateSite {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<IpNet>,
}

impl Body for GateBody {
    const KIND: ClaimKind = ClaimKind::Generic;

    fn prepare(&mut self) {
        KIND.clone_into(&mut self.kind);
        self.version = VERSION;
    }

    fn said(&self) -> (&str, u64) {
        (&self.kind, self.version.into())
    }
}

/// A record that is what it says, every value read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateRecord {
    /// Which of the operator's keys has signed it.
    pub signer: String,
    pub account: AccountKey,
    /// What people call the account.
    pub name: String,
    pub tenant: Option<TenantSlug>,
    pub epoch: u64,
    pub is_open: bool,
    pub authorities: BTreeSet<String>,
    pub people: BTreeMap<UserName, Role>,
    pub sites: BTreeMap<SiteName, GateSite>,
    pub services: BTreeMap<String, BTreeSet<Role>>,
    pub revoked: BTreeSet<String>,
    pub keys: BTreeMap<Role, String>,
}

/// Why a text is no record that counts.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("gate record")]
    Token(#[source] DecodeError),
    #[error("the token is a {0:?}, not a gate record")]
    Kind(String),
    #[error("gate record is signed by {0}, which is no signing key of the operator")]
    Issuer(String),
    #[error("gate record is about {0:?}, which is no account")]
    Account(String),
    #[error("a name in the gate record is not valid")]
    Name(#[source] NameError),
    #[error("the gate record has the hash {0:?}: a SHA-256 has {HASH_LENGTH} lower-case hexadecimal digits")]
    Hash(String),
    #[error("the gate record has the key {0:?} for a role, which is no account's signing key")]
    Key(String),
}

/// A role that such a member may have; one of a later release is nobody's here.
fn role(name: &str, allowed: &[Role]) -> Option<Role> {
    Role::ALL.into_iter().find(|role| role.name() == name && allowed.contains(role))
}

fn named<T: std::str::FromStr<Err = NameError>>(text: &str) -> Result<T, GateError> {
    text.parse().map_err(GateError::Name)
}

/// Reads a signed record. `signers` are the operator's signing keys.
///
/// # Errors
/// When it is not signed by one of them, or says something that cannot be.
pub fn read_gate_record(token: &str, signers: &BTreeSet<String>) -> Result<GateRecord, GateError> {
    let claims: Claims<GateBody> = decode(token).map_err(GateError::Token)?;
    if claims.nats.kind != KIND {
        return Err(GateError::Kind(claims.nats.kind.chars().take(60).collect()));
    }
    if !signers.contains(&claims.iss) {
        return Err(GateError::Issuer(claims.iss));
    }
    GateRecord::of_claims(claims)
}

impl GateRecord {
    /// What claims say, whoever has signed them, or nobody.
    ///
    /// # Errors
    /// When they say something that cannot be.
    pub fn of_claims(claims: Claims<GateBody>) -> Result<Self, GateError> {
        read_claims(claims)
    }
}

fn read_claims(claims: Claims<GateBody>) -> Result<GateRecord, GateError> {
    let body = claims.nats;
    let account = claims.sub.parse().map_err(|_| GateError::Account(claims.sub.chars().take(60).collect()))?;
    // Compared as text, so one way to write it.
    let is_hash = |text: &&String| text.len() == HASH_LENGTH && HEXLOWER.decode(text.as_bytes()).is_ok();
    if let Some(wrong) = body.authorities.iter().chain(&body.revoked).find(|text| !is_hash(text)) {
        return Err(GateError::Hash(wrong.chars().take(80).collect()));
    }
    let mut people = BTreeMap::new();
    for (name, said) in &body.people {
        let name = named(name)?;
        people.extend(role(said, &PEOPLE).map(|role| (name, role)));
    }
    let site = |(name, site): (&String, &GateSite)| Ok((named(name)?, site.clone()));
    let service = |(name, roles): (&String, &BTreeSet<String>)| {
        (name.clone(), roles.iter().filter_map(|said| role(said, &Role::SERVICES)).collect())
    };
    let mut keys = BTreeMap::new();
    for (said, key) in &body.keys {
        key.parse::<AccountKey>().map_err(|_| GateError::Key(key.chars().take(60).collect()))?;
        keys.extend(role(said, &Role::ALL).map(|role| (role, key.clone())));
    }
    Ok(GateRecord {
        signer: claims.iss,
        account,
        name: claims.name,
        tenant: if body.tenant.is_empty() { None } else { Some(named(&body.tenant)?) },
        epoch: body.epoch,
        is_open: body.is_open,
        people,
        sites: body.sites.iter().map(site).collect::<Result<_, GateError>>()?,
        services: body.services.iter().map(service).collect(),
        authorities: body.authorities,
        revoked: body.revoked,
        keys,
    })
}

#[cfg(test)]
mod tests {
    use bulkhead_claims::{KeyKind, SigningKey, encode};

    use super::*;

    fn body() -> GateBody {
        GateBody {
            tenant: "acme-corp".to_owned(),
            epoch: 7,
            is_open: true,
            authorities: BTreeSet::from(["0a".repeat(32)]),
            people: BTreeMap::from([("ann".to_owned(), "admin".to_owned())]),
            sites: BTreeMap::from([("oslo".to_owned(), GateSite { sources: vec!["10.1.0.0/16".parse().unwrap()] })]),
            keys: BTreeMap::from([("admin".to_owned(), SigningKey::generate(KeyKind::Account).public().to_owned())]),
            ..GateBody::default()
        }
    }

    fn read_as(
        body: GateBody,
        signer: &SigningKey,
        trusted: &SigningKey,
        subject: &str,
    ) -> Result<GateRecord, GateError> {
        let mut claims = Claims::new(subject.to_owned(), "gate".to_owned(), 1, body);
        let token = encode(&mut claims, signer).unwrap();
        read_gate_record(&token, &BTreeSet::from([trusted.public().to_owned()]))
    }

    #[test]
    fn a_record_is_read_as_it_was_signed_and_no_other_signer_counts() {
        let (operator, other) = (SigningKey::generate(KeyKind::Operator), SigningKey::generate(KeyKind::Operator));
        let account = SigningKey::generate(KeyKind::Account).public().to_owned();
        let record = read_as(body(), &operator, &operator, &account).unwrap();
        assert_eq!((record.account.as_str(), record.epoch, record.is_open), (account.as_str(), 7, true));
        assert_eq!(record.people[&"ann".parse().unwrap()], Role::Admin);
        assert!(record.sites[&"oslo".parse().unwrap()].sources[0].contains(&"10.1.2.3/32".parse::<IpNet>().unwrap()));
        assert!(matches!(read_as(body(), &other, &operator, &account), Err(GateError::Issuer(_))));
        // A tenant's own key signs nothing here.
        let own = SigningKey::generate(KeyKind::Account);
        assert!(matches!(read_as(body(), &own, &operator, &account), Err(GateError::Issuer(_))));
        assert!(matches!(read_as(body(), &operator, &operator, operator.public()), Err(GateError::Account(_))));
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        let operator = SigningKey::generate(KeyKind::Operator);
        let account = SigningKey::generate(KeyKind::Account).public().to_owned();
        let refused = |change: &dyn Fn(&mut GateBody)| {
            let mut body = body();
            change(&mut body);
            read_as(body, &operator, &operator, &account).unwrap_err()
        };
        assert!(matches!(refused(&|body| body.tenant = "*".to_owned()), GateError::Name(_)));
        assert!(matches!(refused(&|body| body.tenant = "core".to_owned()), GateError::Name(_)));
        for hash in ["0a", &"0A".repeat(32), &"0g".repeat(32), &format!("{} ", "0a".repeat(32))] {
            let set = |body: &mut GateBody| body.revoked = [hash.to_owned()].into();
            assert!(matches!(refused(&set), GateError::Hash(_)), "{hash}");
        }
        assert!(matches!(refused(&|body| body.authorities = ["ab".to_owned()].into()), GateError::Hash(_)));
        let user = SigningKey::generate(KeyKind::User).public().to_owned();
        let set = |body: &mut GateBody| drop(body.keys.insert("leaf".to_owned(), user.clone()));
        assert!(matches!(refused(&set), GateError::Key(_)));
        let set = |body: &mut GateBody| drop(body.sites.insert("a.b".to_owned(), GateSite::default()));
        assert!(matches!(refused(&set), GateError::Name(_)));
    }

    #[test]
    fn roles_that_are_no_members_or_of_a_later_release_open_nothing_and_spoil_nothing() {
        let operator = SigningKey::generate(KeyKind::Operator);
        let account = SigningKey::generate(KeyKind::Account).public().to_owned();
        let mut body = body();
        for role in ["leaf", "core-stream", "root", ""] {
            body.people.insert(format!("p{}", role.len()), role.to_owned());
        }
        let roles = ["admin", "core-rpc", "later"].map(str::to_owned).into();
        body.services.insert("core".to_owned(), roles);
        body.keys.insert("later".to_owned(), account.clone());
        body.is_open = false;
        let record = read_as(body, &operator, &operator, &account).unwrap();
        assert_eq!(record.people.into_values().collect::<Vec<_>>(), [Role::Admin]);
        assert_eq!(record.services["core"], [Role::CoreRpc].into());
        assert!(!record.is_open && record.keys.len() == 1);
    }

    #[test]
    fn another_generic_token_is_no_record() {
        let operator = SigningKey::generate(KeyKind::Operator);
        let request = bulkhead_claims::GenericBody::delete_request(vec![]);
        let mut claims = Claims::new(operator.public().to_owned(), String::new(), 1, request);
        let token = encode(&mut claims, &operator).unwrap();
        let read = read_gate_record(&token, &BTreeSet::from([operator.public().to_owned()]));
        assert!(matches!(read, Err(GateError::Kind(_) | GateError::Token(_))), "{read:?}");
    }
}
