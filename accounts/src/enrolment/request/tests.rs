use nkeys::KeyPair as NKey;
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType, SignatureAlgorithm,
};

use super::*;

const TOKEN: &str = "a.b.c";

fn enrolee() -> Enrolee {
    Enrolee::parse("acme-corp/oslo/p1").unwrap()
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

/// A request for these names, with what `change` makes of it.
fn csr_with(key: &KeyPair, end: DeviceEnd, change: impl FnOnce(&mut CertificateParams)) -> String {
    let identity = enrolee().identity(end);
    let subject = identity.dns_name(&domain());
    let mut params = CertificateParams::new(vec![subject.clone()]).unwrap();
    let uri = identity.uri(&domain());
    params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    change(&mut params);
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn key_of(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn good() -> EnrolmentRequest {
    let csr = |end| csr_with(&key_of(&PKCS_ECDSA_P256_SHA256), end, |_| {});
    let batch = NKey::new_user();
    EnrolmentRequest {
        token: TOKEN.to_owned(),
        leaf_csr: csr(DeviceEnd::Leaf),
        forwarder_csr: csr(DeviceEnd::Forwarder),
        poller_csr: csr(DeviceEnd::Poller),
        batch_key: batch.public_key(),
        batch_key_proof: BASE64.encode(&batch.sign(&proof(TOKEN)).unwrap()),
        sealing_key: XKey::new().public_key(),
        beside: vec![],
    }
}

fn check(request: &EnrolmentRequest) -> Result<String, BadRequest> {
    check_keys(request, &enrolee(), &domain()).map(|checked| checked.digest)
}

#[test]
fn the_same_keys_are_the_same_device_whatever_its_requests_say() {
    let request = good();
    let digest = check(&request).unwrap();
    let beside = EnrolmentRequest { beside: vec!["p2".parse().unwrap()], ..request.clone() };
    assert_eq!(check(&beside).unwrap(), digest);
    let other = EnrolmentRequest { sealing_key: XKey::new().public_key(), ..request };
    assert_ne!(check(&other).unwrap(), digest);
}

/// What is done to a good request, by the name that it gets for its own and the URI.
type Change = fn(&mut CertificateParams, &str, &str);

#[test]
fn only_the_tokens_own_names_are_asked_for() {
    let other = |text: &str| text.replace("acme-corp", "xyz-inc");
    let identity = enrolee().identity(DeviceEnd::Poller);
    let (name, uri) = (other(&identity.dns_name(&domain())), other(&identity.uri(&domain())));
    let changes: [(Change, Option<&str>); 6] = [
        (|params, name, _| params.distinguished_name.push(DnType::CommonName, name), Some("xyz-inc")),
        (|params, name, _| params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap())), Some("xyz-inc")),
        (|params, _, uri| params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap())), Some("xyz-inc")),
        (|params, _, _| params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())), None),
        (|params, _, _| params.distinguished_name.push(DnType::OrganizationName, "platform"), None),
        (
            |params, _, _| {
                params.subject_alt_names.clear();
                params.distinguished_name = DistinguishedName::new();
            },
            None,
        ),
    ];
    for (change, tenant) in changes {
        let poller_csr =
            csr_with(&key_of(&PKCS_ECDSA_P256_SHA256), DeviceEnd::Poller, |params| change(params, &name, &uri));
        let found = check(&EnrolmentRequest { poller_csr, ..good() });
        let Err(BadRequest::Name { tenant: named, .. }) = &found else { panic!("{found:?}") };
        assert_eq!(named.as_deref(), tenant, "{found:?}");
    }
    // What else it asks for is not heard.
    let poller_csr = csr_with(&key_of(&PKCS_ECDSA_P256_SHA256), DeviceEnd::Poller, |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    assert!(check(&EnrolmentRequest { poller_csr, ..good() }).is_ok());
}

#[test]
fn one_end_cannot_be_had_for_another() {
    let request = good();
    let swapped = EnrolmentRequest { leaf_csr: request.poller_csr.clone(), ..request };
    assert!(matches!(check(&swapped), Err(BadRequest::Name { .. })));
}

#[test]
fn keys_are_of_one_kind_each_and_shown() {
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let leaf_csr = csr_with(&key_of(algorithm), DeviceEnd::Leaf, |_| {});
        assert!(matches!(check(&EnrolmentRequest { leaf_csr, ..good() }), Err(BadRequest::Key(_))));
    }
    let one = key_of(&PKCS_ECDSA_P256_SHA256);
    let [leaf_csr, poller_csr] = [DeviceEnd::Leaf, DeviceEnd::Poller].map(|end| csr_with(&one, end, |_| {}));
    assert!(matches!(check(&EnrolmentRequest { leaf_csr, poller_csr, ..good() }), Err(BadRequest::Key(_))));
    let account = NKey::new_account().public_key();
    assert!(matches!(check(&EnrolmentRequest { batch_key: account, ..good() }), Err(BadRequest::Key(_))));
    for sealing_key in [String::new(), NKey::new_user().public_key(), "X".to_owned(), XKey::new().seed().unwrap()] {
        assert!(matches!(check(&EnrolmentRequest { sealing_key, ..good() }), Err(BadRequest::Key(_))));
    }
    let others = NKey::new_user();
    let stolen = EnrolmentRequest { batch_key: others.public_key(), ..good() };
    assert_eq!(check(&stolen), Err(BadRequest::Proof));
    let elsewhere = BASE64.encode(&others.sign(&proof("another.token.x")).unwrap());
    let replayed = EnrolmentRequest { batch_key_proof: elsewhere, ..stolen };
    assert_eq!(check(&replayed), Err(BadRequest::Proof));
    assert_eq!(check(&EnrolmentRequest { batch_key_proof: "-".to_owned(), ..good() }), Err(BadRequest::Proof));
}

#[test]
fn a_request_that_its_key_has_not_signed_is_none() {
    use data_encoding::BASE64 as STANDARD;
    let request = good();
    let body: String = request.leaf_csr.lines().filter(|line| !line.starts_with("---")).collect();
    let mut der = STANDARD.decode(body.as_bytes()).unwrap();
    let last = der.len() - 1;
    der[last] ^= 1;
    let text =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", STANDARD.encode(&der));
    for leaf_csr in [text, String::new(), "x".to_owned(), request.leaf_csr[..100].to_owned()] {
        let found = check(&EnrolmentRequest { leaf_csr, ..request.clone() });
        assert!(matches!(found, Err(BadRequest::Csr { end: DeviceEnd::Leaf, .. })), "{found:?}");
    }
}
