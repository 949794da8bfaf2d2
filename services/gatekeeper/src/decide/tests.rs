use std::collections::{BTreeMap, BTreeSet};

use bulkhead_claims::{Claims, KeyKind, SigningKey, encode};
use bulkhead_identity::{GateBody, GateSite};
use bulkhead_testkit::{Forger, client_params};
use rcgen::CertificateParams;

use super::*;

const DOMAIN: &str = "serviceradar";

/// Two tenants and the platform, each with its intermediate.
struct Place {
    root: Forger,
    acme: Forger,
    xyz: Forger,
    platform: Forger,
    operator: SigningKey,
    gate: Gate,
    epoch: u64,
}

fn account() -> AccountKey {
    SigningKey::generate(KeyKind::Account).public().parse().unwrap()
}

fn texts(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

impl Place {
    fn new() -> Self {
        let root = Forger::root("client-root");
        let below = |owner: &str| root.intermediate(owner, Some(&format!(".{owner}.{DOMAIN}")));
        let (acme, xyz, platform) = (below("acme-corp"), below("xyz-inc"), below("platform"));
        let operator = SigningKey::generate(KeyKind::Operator);
        let mut place = Self { root, acme, xyz, platform, operator, gate: Gate::default(), epoch: 0 };
        for tenant in ["acme-corp", "xyz-inc"] {
            place.take(&account(), tenant, place.tenant(tenant));
        }
        let services = |service: &str, roles: &[&str]| BTreeMap::from([(service.to_owned(), texts(roles))]);
        let platform = |body: GateBody| GateBody { authorities: texts(&[place.platform.key_hash()]), ..body };
        let core =
            platform(GateBody { services: services("core", &["core-stream", "core-rpc"]), ..GateBody::default() });
        let live = || platform(GateBody { services: services("core", &["core-live"]), ..GateBody::default() });
        let people = BTreeMap::from([("olga".to_owned(), "platform-admin".to_owned())]);
        let ops = platform(GateBody { people, ..GateBody::default() });
        let bodies = [("core", core), ("intake-1", live()), ("intake-2", live()), ("ops", ops)];
        for (name, body) in bodies {
            place.take(&account(), name, body);
        }
        place
    }

    fn tenant(&self, tenant: &str) -> GateBody {
        let authority = if tenant == "acme-corp" { &self.acme } else { &self.xyz };
        GateBody {
            tenant: tenant.to_owned(),
            authorities: texts(&[authority.key_hash()]),
            people: [("ann", "admin"), ("vic", "viewer")].map(|(name, role)| (name.to_owned(), role.to_owned())).into(),
            sites: [
                ("oslo".to_owned(), GateSite::default()),
                ("rome".to_owned(), GateSite { sources: vec!["10.1.0.0/16".parse().unwrap()] }),
            ]
            .into(),
            ..GateBody::default()
        }
    }

    fn take(&mut self, account: &AccountKey, name: &str, body: GateBody) {
        self.epoch += 1;
        let body = GateBody { epoch: self.epoch, is_open: true, ..body };
        self.take_as_is(account, name, body);
    }

    fn take_as_is(&mut self, account: &AccountKey, name: &str, body: GateBody) {
        let mut claims = Claims::new(account.to_string(), name.to_owned(), 1, body);
        let token = encode(&mut claims, &self.operator).unwrap();
        let signers = BTreeSet::from([self.operator.public().to_owned()]);
        self.gate.take_record(account, token.as_bytes(), &signers).unwrap();
    }

    fn account_of(&self, name: &str) -> AccountKey {
        let accounts = self.gate.accounts();
        accounts.into_iter().find(|account| self.gate.member(account).unwrap().record.name == name).unwrap()
    }

    fn decide(&self, kind: Kind, name: &str, host: &str, chain: Vec<String>) -> Result<Admission, Refusal> {
        let roots = TrustedRoots::from_pem(self.root.pem()).unwrap();
        let trust = Trust { roots, domain: TrustDomain::default() };
        let chains = [chain];
        let question = Question { kind, name, host, chains: &chains };
        let now = time::OffsetDateTime::now_utc().unix_timestamp().unsigned_abs();
        decide(&self.gate, &trust, &question, now).0
    }

    /// What becomes of a connection with a certificate of this identity from this authority.
    fn ask(&self, authority: &Forger, uri: &str, (kind, name): (Kind, &str)) -> Result<Admission, Refusal> {
        self.ask_from("10.1.2.3", authority, uri, (kind, name))
    }

    fn ask_from(
        &self,
        host: &str,
        authority: &Forger,
        uri: &str,
        (kind, name): (Kind, &str),
    ) -> Result<Admission, Refusal> {
        self.decide(kind, name, host, self.chain(authority, &params(uri)))
    }

    fn chain(&self, authority: &Forger, params: &CertificateParams) -> Vec<String> {
        vec![authority.end(params).pem, authority.pem().to_owned(), self.root.pem().to_owned()]
    }
}

fn params(uri: &str) -> CertificateParams {
    let identity = ClientIdentity::from_uri(uri, &TrustDomain::default()).unwrap();
    client_params(&identity.dns_name(&TrustDomain::default()), uri)
}

const P1: &str = "spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1";
const LEAF: &str = "spiffe://serviceradar/tenant/acme-corp/site/oslo/leaf/leaf";
const ANN: &str = "spiffe://serviceradar/tenant/acme-corp/user/ann";
const CORE: &str = "spiffe://serviceradar/platform/service/core";

#[test]
fn everybody_enters_the_account_of_their_certificate() {
    let place = Place::new();
    let acme = place.account_of("acme-corp");
    let admitted = |authority, uri, how| place.ask(authority, uri, how).unwrap();
    let poller = admitted(&place.acme, P1, (Kind::Client, "whatever"));
    assert_eq!((poller.account.clone(), poller.role, poller.name.as_str()), (acme.clone(), Role::Poller, "p1"));
    assert_eq!(poller.site, Some("oslo".parse().unwrap()));
    let leaf = admitted(&place.acme, LEAF, (Kind::Leaf, "leaf-acme-corp-oslo"));
    assert_eq!((leaf.account, leaf.role, leaf.site), (acme.clone(), Role::Leaf, poller.site));
    let ann = admitted(&place.acme, ANN, (Kind::Client, ""));
    assert_eq!((ann.account, ann.role, ann.name.as_str(), ann.site), (acme, Role::Admin, "ann", None));
    let olga = admitted(&place.platform, "spiffe://serviceradar/platform/user/olga", (Kind::Client, ""));
    assert_eq!((olga.account, olga.role), (place.account_of("ops"), Role::PlatformAdmin));
    for (asked, account, role) in [
        ("core-stream", "core", Role::CoreStream),
        ("core-rpc", "core", Role::CoreRpc),
        ("core-live@intake-2", "intake-2", Role::CoreLive),
    ] {
        let core = admitted(&place.platform, CORE, (Kind::Client, asked));
        assert_eq!((core.account, core.role), (place.account_of(account), role), "{asked}");
    }
}

#[test]
fn a_name_under_anothers_authority_is_refused_whoever_made_it() {
    let place = Place::new();
    // Of an intermediate without constraints, as a mistake or a thief would make it.
    let loose = place.root.intermediate("loose", None);
    let unknown = place.ask(&loose, P1, (Kind::Client, ""));
    assert_eq!(unknown, Err(Refusal::UnknownAuthority));
    let mut place = place;
    let mut body = place.tenant("xyz-inc");
    body.authorities = texts(&[loose.key_hash()]);
    let xyz = place.account_of("xyz-inc");
    place.take(&xyz, "xyz-inc", body);
    for (uri, how) in [
        (P1, (Kind::Client, "")),
        (LEAF, (Kind::Leaf, "leaf-acme-corp-oslo")),
        (ANN, (Kind::Client, "")),
        (CORE, (Kind::Client, "core-stream")),
        ("spiffe://serviceradar/platform/user/olga", (Kind::Client, "")),
    ] {
        let refused = place.ask(&loose, uri, how).unwrap_err();
        assert_eq!(refused.code(), "other_tenant", "{uri}: {refused}");
    }
    let own = "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/p1";
    assert_eq!(place.ask(&loose, own, (Kind::Client, "")).unwrap().account, xyz, "control");
    // The constraint itself.
    assert_eq!(place.ask(&place.acme, own, (Kind::Client, "")).unwrap_err().code(), "untrusted");
}

#[test]
fn kinds_of_connections_and_of_certificates_belong_together() {
    let place = Place::new();
    let code = |uri, how| place.ask(&place.acme, uri, how).unwrap_err().code();
    assert_eq!(code(LEAF, (Kind::Client, "leaf-acme-corp-oslo")), "kind");
    assert_eq!(code(P1, (Kind::Leaf, "leaf-acme-corp-oslo")), "kind");
    assert_eq!(code(ANN, (Kind::Leaf, "leaf-acme-corp-oslo")), "kind");
    assert_eq!(code("spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/fwd", (Kind::Client, "")), "kind");
    let core = place.ask(&place.platform, CORE, (Kind::Leaf, "core-stream"));
    assert_eq!(core.unwrap_err().code(), "kind");
    for name in ["leaf-acme-corp-rome", "leaf-xyz-inc-oslo", "", "LEAF-ACME-CORP-OSLO", "leaf-acme-corp-oslo "] {
        assert_eq!(code(LEAF, (Kind::Leaf, name)), "leaf_name", "{name:?}");
    }
}

#[test]
fn whoever_the_record_does_not_name_stays_outside() {
    let place = Place::new();
    let code = |uri: &str, how| place.ask(&place.acme, uri, how).unwrap_err().code();
    assert_eq!(code("spiffe://serviceradar/tenant/acme-corp/user/bob", (Kind::Client, "")), "unknown_person");
    assert_eq!(code("spiffe://serviceradar/tenant/acme-corp/site/bern/poller/p1", (Kind::Client, "")), "unknown_site");
    let leaf = "spiffe://serviceradar/tenant/acme-corp/site/bern/leaf/leaf";
    assert_eq!(code(leaf, (Kind::Leaf, "leaf-acme-corp-bern")), "unknown_site");
    let platform = |uri: &str, asked| place.ask(&place.platform, uri, (Kind::Client, asked)).unwrap_err().code();
    assert_eq!(platform("spiffe://serviceradar/platform/user/ann", ""), "unknown_person");
    let audit = "spiffe://serviceradar/platform/service/audit";
    for (uri, asked) in [
        (CORE, ""),
        (CORE, "provisioner"),
        (CORE, "system-operator"),
        (CORE, "admin"),
        (CORE, "core-live"),
        (CORE, "core-stream@intake-1"),
        (CORE, "core-live@core"),
        (audit, "core-stream"),
    ] {
        assert_eq!(platform(uri, asked), "unknown_role", "{uri} as {asked:?}");
    }
}

#[test]
fn closed_accounts_revoked_certificates_and_foreign_networks_are_refused() {
    let mut place = Place::new();
    let rome = "spiffe://serviceradar/tenant/acme-corp/site/rome/poller/p1";
    for (host, is_in) in [
        ("10.1.255.1", true),
        ("::ffff:10.1.0.1", true),
        ("10.2.0.1", false),
        ("::1", false),
        ("", false),
        ("x", false),
    ] {
        let found = place.ask_from(host, &place.acme, rome, (Kind::Client, ""));
        assert_eq!(found.as_ref().map_err(Refusal::code).is_ok(), is_in, "{host:?}: {found:?}");
        assert!(is_in || found.unwrap_err().code() == "source");
    }
    let acme = place.account_of("acme-corp");
    let (kept, revoked) = (place.acme.end(&params(P1)), place.acme.end(&params(P1)));
    let body = GateBody { revoked: texts(&[&revoked.fingerprint]), ..place.tenant("acme-corp") };
    place.take(&acme, "acme-corp", body);
    let above = [place.acme.pem().to_owned(), place.root.pem().to_owned()];
    let ask = |place: &Place, pem: &str| {
        place.decide(Kind::Client, "", "10.1.2.3", [&[pem.to_owned()], above.as_slice()].concat())
    };
    assert_eq!(ask(&place, &revoked.pem).unwrap_err(), Refusal::Revoked(revoked.serial.clone()));
    assert!(ask(&place, &kept.pem).is_ok());
    let closed = GateBody { epoch: 100, is_open: false, ..place.tenant("acme-corp") };
    place.take_as_is(&acme, "acme-corp", closed);
    for (uri, how) in [(P1, (Kind::Client, "")), (ANN, (Kind::Client, "")), (LEAF, (Kind::Leaf, "leaf-acme-corp-oslo"))]
    {
        assert_eq!(place.ask(&place.acme, uri, how).unwrap_err(), Refusal::Closed, "{uri}");
    }
    place.gate.drop_record(&acme);
    assert_eq!(place.ask(&place.acme, P1, (Kind::Client, "")).unwrap_err(), Refusal::UnknownAuthority);
}

#[test]
fn a_slug_that_is_given_away_again_opens_nothing_old() {
    let mut place = Place::new();
    let old = place.account_of("acme-corp");
    place.gate.drop_record(&old);
    let new_authority = place.root.intermediate("acme-corp", Some(".acme-corp.serviceradar"));
    let new = account();
    let body = GateBody { authorities: texts(&[new_authority.key_hash()]), ..place.tenant("acme-corp") };
    place.take(&new, "acme-corp", body);
    assert_eq!(place.ask(&place.acme, P1, (Kind::Client, "")).unwrap_err(), Refusal::UnknownAuthority);
    assert_eq!(place.ask(&new_authority, P1, (Kind::Client, "")).unwrap().account, new);
}

#[test]
fn every_code_is_a_metric() {
    let place = Place::new();
    let none = place.decide(Kind::Client, "", "", vec![]).unwrap_err();
    for code in [
        none.code(),
        Refusal::UnknownAuthority.code(),
        Refusal::Closed.code(),
        Refusal::Kind(Kind::Leaf).code(),
        Refusal::Revoked(String::new()).code(),
        Refusal::Source(String::new()).code(),
        "admitted",
        "unknown_server",
        "no_key",
        "not_recorded",
        "too_slow",
    ] {
        assert!(crate::metrics::Outcome::of(code).is_some(), "{code}");
    }
}
