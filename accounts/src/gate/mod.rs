//! What the gatekeeper is given: the accounts AUTH and SENT, and of every other account a record and its keys, rendered
//! whole from what should be (docs/adr/0012-the-gatekeepers-knowledge.md).

mod book;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::Role;
use bulkhead_bus::gate::CALLOUT;
use bulkhead_claims::{
    ActivationBody, Claims, ExportKind, KeyKind, SealingError, SealingKey, SignError, SigningKey, decode, encode,
};
use bulkhead_identity::{AuthorityName, GateBody, GateSite, seal_keys};
use time::OffsetDateTime;

use crate::certificates::{Authority, CertificateError};
use crate::files::FileError;
use crate::hub_size::HubSize;
use crate::keys::KeyError;
use crate::operator::{AccountRecord, OperatorError, OperatorStore};
use crate::render::{Callout, auth_account, sentinel_account};
use crate::tenancy::{PlatformPeople, Standing, TenantRecord};

pub use book::{GateBook, SealedFor, Told};
pub use secrets::GateSecrets;

pub const AUTH: &str = "auth";
pub const SENT: &str = "sent";
/// What each service of the platform may be behind the gatekeeper, in whichever account has such a role.
const SERVICES: [(&str, &[Role]); 5] = [
    ("core", &[Role::CoreStream, Role::CoreRpc, Role::CoreLive]),
    ("registry", &[Role::RegistryRpc, Role::RegistryKeep]),
    ("poller-dispatch", &[Role::DispatchPush, Role::DispatchRpc]),
    ("provisioning", &[Role::Provisioner]),
    ("backup", &[Role::Backup]),
];
/// A person that every tenant has: provisioning itself, which proves with a certificate of some minutes that the tenant's
/// members are admitted. Whoever can make that certificate has the tenant's intermediate, and could make any other.
pub const PROBE: &str = "probe";

/// Why the gatekeeper was not given something.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("operator store")]
    Operator(#[source] OperatorError),
    #[error("certificates")]
    Certificate(#[source] CertificateError),
    #[error("a key of account {account}")]
    Key { account: String, source: KeyError },
    #[error("sign for the gatekeeper")]
    Sign(#[source] SignError),
    #[error("seal for the gatekeeper")]
    Seal(#[source] SealingError),
    #[error("files of the gatekeepers")]
    File(#[source] FileError),
    #[error("{path} is no X25519 seed: restore it from a backup")]
    Seed { path: String, source: SealingError },
    #[error("{path} is {found}, and servers seal for {named}: restore it from a backup")]
    OtherKey { path: String, found: String, named: String },
    #[error("{path} is damaged: remove it, and it is made anew")]
    Book { path: String, source: serde_json::Error },
}

/// Who vouches for the members of an account, and for whom not any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vouching {
    /// SHA-256 of public keys: two while an authority is rotated.
    pub authorities: BTreeSet<String>,
    /// SHA-256 of certificates that would still be good.
    pub revoked: BTreeSet<String>,
}

impl Vouching {
    /// # Errors
    /// When the authority's files or its book cannot be read.
    pub fn of(authority: &Authority, name: &AuthorityName, now: OffsetDateTime) -> Result<Self, GateError> {
        let state = authority.authority_state(name).map_err(GateError::Certificate)?;
        let revoked = authority.list_revoked(name).map_err(GateError::Certificate)?;
        let revoked: BTreeSet<String> =
            revoked.into_iter().filter(|one| one.not_after > now).map(|one| one.serial).collect();
        // The book of what was issued is long: most have nothing to look up in it.
        let issued = match revoked.is_empty() {
            true => vec![],
            false => authority.list_issued(name).map_err(GateError::Certificate)?,
        };
        Ok(Self {
            authorities: state.trusted.into_iter().map(|one| one.facts.key_fingerprint).collect(),
            revoked: issued
                .into_iter()
                .filter(|one| revoked.contains(&one.serial))
                .map(|one| one.fingerprint)
                .collect(),
        })
    }
}

/// Public signing key by role.
#[must_use]
pub fn keys_of(account: &AccountRecord) -> BTreeMap<String, String> {
    let key = |role: Role| Some((role.name().to_owned(), account.role_key(role)?.to_owned()));
    Role::ALL.into_iter().filter_map(key).collect()
}

/// A tenant's account: open as the tenant is, for its people, and for the pollers and the leaf of each of its sites. Its
/// epoch is set when it is signed.
#[must_use]
pub fn tenant_gate(record: &TenantRecord, account: &AccountRecord, vouching: Vouching) -> GateBody {
    let probe = (PROBE.to_owned(), Role::Viewer.name().to_owned());
    let people = record.people.iter().filter(|(_, person)| person.standing == Standing::Active);
    let people = people.map(|(name, person)| (name.to_string(), person.role.role().name().to_owned()));
    GateBody {
        tenant: record.slug.to_string(),
        is_open: record.stage.is_open(),
        authorities: vouching.authorities,
        revoked: vouching.revoked,
        people: std::iter::once(probe).chain(people).collect(),
        sites: record.sites.keys().map(|site| (site.to_string(), GateSite::default())).collect(),
        keys: keys_of(account),
        ..GateBody::default()
    }
}

/// An account of the platform: CORE, OPS or an INTAKE. People are in that which has a role for them.
#[must_use]
pub fn platform_gate(account: &AccountRecord, people: &PlatformPeople, vouching: Vouching) -> GateBody {
    let keys = keys_of(account);
    let has = |role: &Role| keys.contains_key(role.name());
    let services = SERVICES.iter().filter_map(|(service, roles)| {
        let roles: BTreeSet<String> =
            roles.iter().filter(|role| has(role)).map(|role| role.name().to_owned()).collect();
        (!roles.is_empty()).then(|| ((*service).to_owned(), roles))
    });
    let admitted = people.people.iter().filter(|(_, person)| person.standing == Standing::Active);
    let admin = Role::PlatformAdmin;
    let people = admitted.filter(|_| has(&admin)).map(|(name, _)| (name.to_string(), admin.name().to_owned()));
    GateBody {
        is_open: true,
        authorities: vouching.authorities,
        revoked: vouching.revoked,
        people: people.collect(),
        services: services.collect(),
        keys: keys.clone(),
        ..GateBody::default()
    }
}

/// A record as the operator signs it; its epoch has to be one that no earlier one had ([`GateBook`]).
///
/// # Errors
/// When nobody here can sign for the operator.
pub fn sign_record(
    operator: &OperatorStore,
    account: &AccountRecord,
    body: GateBody,
    now_s: i64,
) -> Result<String, GateError> {
    let mut claims = Claims::new(account.key.to_string(), account.name.clone(), now_s, body);
    let signer = operator.signer().map_err(GateError::Operator)?;
    encode(&mut claims, signer.as_ref()).map_err(GateError::Sign)
}

/// Exactly this account's keys, sealed by `sender` for the gatekeeper whose public key is `gatekeeper`.
///
/// # Errors
/// When a key is not here.
pub fn sealed_keys(
    operator: &OperatorStore,
    account: &AccountRecord,
    sender: &SealingKey,
    gatekeeper: &str,
) -> Result<Vec<u8>, GateError> {
    let failed = |source| GateError::Key { account: account.name.clone(), source };
    let mut seeds = BTreeMap::new();
    for (role, public) in keys_of(account) {
        let key = operator.keys().read(&public, KeyKind::Account).map_err(failed)?;
        seeds.insert(role, key.seed().map_err(GateError::Sign)?);
    }
    seal_keys(&seeds, sender, gatekeeper).map_err(GateError::Seal)
}

/// AUTH, rendered for a hub of this size.
///
/// # Errors
/// When the operator store is damaged or cannot be written.
pub fn render_auth(operator: &OperatorStore, hub: HubSize, now_s: i64) -> Result<AccountRecord, GateError> {
    let auth = operator.ensure_account(AUTH, &Role::AUTH, now_s, |_, keys| auth_account(keys, hub));
    auth.map_err(GateError::Operator)
}

/// SENT, whose connections AUTH's gatekeepers are asked about; `xkey` is their public key. What is random in it stays as it
/// is from one time to the next.
///
/// # Errors
/// When the operator store is damaged or cannot be written, or AUTH's key is not here.
pub fn render_sentinel(
    operator: &OperatorStore,
    auth: &AccountRecord,
    xkey: &str,
    now_s: i64,
) -> Result<AccountRecord, GateError> {
    // Its key has to be known before AUTH can let it import.
    let own = match operator.account(SENT).map_err(GateError::Operator)? {
        Some(account) => account,
        None => operator
            .ensure_account(SENT, &[Role::Sentinel], now_s, |_, keys| sentinel_account(keys, &Callout::default()))
            .map_err(GateError::Operator)?,
    };
    let body = &own.claims.nats;
    let kept = body.imports.first().map(|import| import.token.clone()).filter(|token| is_activation(token, auth, &own));
    let activation = match kept {
        Some(token) => token,
        None => activate(operator, auth, &own, now_s)?,
    };
    let nobody = body.authorization.auth_users.first().filter(|user| !user.is_empty()).cloned();
    let callout = Callout {
        auth: auth.key.to_string(),
        activation,
        // Only the public half of the key is ever kept.
        nobody: nobody.unwrap_or_else(|| SigningKey::generate(KeyKind::User).public().to_owned()),
        xkey: xkey.to_owned(),
    };
    let sent = operator.ensure_account(SENT, &[Role::Sentinel], now_s, |_, keys| sentinel_account(keys, &callout));
    sent.map_err(GateError::Operator)
}

fn is_activation(token: &str, auth: &AccountRecord, sent: &AccountRecord) -> bool {
    let read: Result<Claims<ActivationBody>, _> = decode(token);
    read.is_ok_and(|claims| {
        claims.iss == auth.key.as_str() && claims.sub == sent.key.as_str() && claims.nats.subject == CALLOUT
    })
}

fn activate(
    operator: &OperatorStore,
    auth: &AccountRecord,
    sent: &AccountRecord,
    now_s: i64,
) -> Result<String, GateError> {
    let failed = |source| GateError::Key { account: auth.name.clone(), source };
    let signer = operator.keys().signer(auth.key.as_str(), KeyKind::Account).map_err(failed)?;
    let body = ActivationBody::new(CALLOUT.to_owned(), ExportKind::Service, String::new());
    let mut claims = Claims::new(sent.key.to_string(), "callout".to_owned(), now_s, body);
    encode(&mut claims, signer.as_ref()).map_err(GateError::Sign)
}

#[cfg(test)]
mod tests {
    use bulkhead_identity::{open_keys, read_gate_record};
    use uuid::Uuid;

    use super::*;
    use crate::certificates::TrustDomain;
    use crate::plan::{Plan, PlanName};
    use crate::render::tenant_account;
    use crate::tenancy::{Issued, PersonRecord, PersonRole, SiteRecord, TenantStage};

    struct Place {
        operator: OperatorStore,
        authority: Authority,
        now: OffsetDateTime,
        _folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let now = OffsetDateTime::now_utc();
            let operator = OperatorStore::open(folder.path().join("nsc"), now.unix_timestamp()).unwrap();
            let authority = Authority::new(folder.path().join("pki"), TrustDomain::default());
            authority.ensure_roots(now).unwrap();
            authority.ensure_tenant(&"acme-corp".parse().unwrap(), now).unwrap();
            Self { operator, authority, now, _folder: folder }
        }

        fn now_s(&self) -> i64 {
            self.now.unix_timestamp()
        }
    }

    #[test]
    fn sent_stays_the_same_from_render_to_render_and_follows_the_gatekeepers_key() {
        let place = Place::new();
        let auth = render_auth(&place.operator, HubSize::One, place.now_s()).unwrap();
        let keys = [SealingKey::generate(), SealingKey::generate()];
        let render = |key: &SealingKey, later| {
            render_sentinel(&place.operator, &auth, key.public(), place.now_s() + later).unwrap()
        };
        let first = render(&keys[0], 0);
        assert_eq!(render(&keys[0], 60).token, first.token, "nothing is new");
        let second = render(&keys[1], 120);
        let (one, two) = (&first.claims.nats, &second.claims.nats);
        assert_eq!(two.authorization.xkey, keys[1].public());
        assert_eq!(one.authorization.auth_users, two.authorization.auth_users);
        assert_eq!(one.imports[0].token, two.imports[0].token);
        assert!(is_activation(&one.imports[0].token, &auth, &first));
        assert!(!is_activation(&one.imports[0].token, &first, &first) && !is_activation("x", &auth, &first));
    }

    #[test]
    fn a_record_says_what_the_tenant_should_be() {
        let place = Place::new();
        let plan = Plan::of(PlanName::Free);
        let mut record = TenantRecord::new("acme-corp".parse().unwrap(), Uuid::new_v4(), plan.plan_ref(), 1);
        let person =
            |standing| PersonRecord { role: PersonRole::Viewer, standing, issued: Issued::default(), earlier: vec![] };
        record.people.insert("ann".parse().unwrap(), person(Standing::Active));
        record.people.insert("eve".parse().unwrap(), person(Standing::Revoked));
        record.sites.insert("oslo".parse().unwrap(), SiteRecord::default());
        let render = |own: &str, keys: &[_]| tenant_account(&plan, own, "ACORE", keys);
        let account = place.operator.ensure_account("acme-corp", &Role::TENANT, place.now_s(), render).unwrap();
        let name = AuthorityName::Tenant(record.slug.clone());
        let vouching = Vouching::of(&place.authority, &name, place.now).unwrap();
        assert_eq!(vouching.authorities.len(), 1);
        for (stage, is_open) in [
            (TenantStage::Adding, true),
            (TenantStage::Active, true),
            (TenantStage::Suspended, false),
            (TenantStage::Offboarded, false),
        ] {
            record.stage = stage;
            let body = GateBody { epoch: 3, ..tenant_gate(&record, &account, vouching.clone()) };
            let token = sign_record(&place.operator, &account, body, place.now_s()).unwrap();
            let signers = place.operator.claims().nats.signing_keys.iter().cloned().collect();
            let read = read_gate_record(&token, &signers).unwrap();
            assert_eq!((read.is_open, read.epoch, &read.account), (is_open, 3, &account.key));
            let people: Vec<String> = read.people.keys().map(ToString::to_string).collect();
            assert_eq!(people, ["ann", PROBE]);
            assert_eq!(read.sites.keys().map(ToString::to_string).collect::<Vec<_>>(), ["oslo"]);
            assert_eq!(read.keys.len(), Role::TENANT.len());
        }
    }

    #[test]
    fn services_and_people_are_where_their_roles_are_and_keys_are_the_accounts_own() {
        let place = Place::new();
        let core = place.operator.ensure_account("core", &Role::CORE, place.now_s(), |_, keys| {
            crate::render::core_account(keys, HubSize::One)
        });
        let core = core.unwrap();
        let body = platform_gate(&core, &PlatformPeople::default(), Vouching::default());
        let roles = |service: &str| body.services[service].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(roles("core"), ["core-rpc", "core-stream"]);
        assert_eq!((roles("provisioning"), roles("backup")), (vec!["provisioner"], vec!["backup"]));
        assert!(body.people.is_empty() && body.tenant.is_empty() && body.is_open);
        let (sender, gatekeeper) = (SealingKey::generate(), SealingKey::generate());
        let sealed = sealed_keys(&place.operator, &core, &sender, gatekeeper.public()).unwrap();
        let opened = open_keys(&sealed, &gatekeeper).unwrap();
        assert_eq!(opened.keys().copied().collect::<BTreeSet<_>>(), Role::CORE.into());
        assert!(opened.iter().all(|(role, key)| core.role_key(*role) == Some(bulkhead_claims::Signer::public(key))));
        assert!(open_keys(&sealed, &sender).is_err());
    }
}
