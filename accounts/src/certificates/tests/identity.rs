use proptest::prelude::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use time::OffsetDateTime;

use crate::certificates::make::client_parameters;
use crate::certificates::{ClientIdentity, IdentityError, TrustDomain, read_identity};

fn domain() -> TrustDomain {
    TrustDomain::default()
}

/// Reads the identity of a certificate of p1 after `change`.
fn read_changed(change: impl FnOnce(&mut CertificateParams)) -> Result<ClientIdentity, IdentityError> {
    let mut params =
        client_parameters(&super::poller("acme-corp", "p1"), &domain(), OffsetDateTime::now_utc()).unwrap();
    change(&mut params);
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    read_identity(certificate.der(), &domain())
}

/// Reads the identity of a certificate with these names.
fn read_named(common_name: &str, names: &[&str]) -> Result<ClientIdentity, IdentityError> {
    read_changed(|params| {
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let name = |name: &&str| match name.contains("://") {
            true => SanType::URI((*name).try_into().unwrap()),
            false => SanType::DnsName((*name).try_into().unwrap()),
        };
        params.subject_alt_names = names.iter().map(name).collect();
    })
}

fn every_kind() -> Vec<ClientIdentity> {
    let (tenant, site) = (|| "acme-corp".parse().unwrap(), || "oslo".parse().unwrap());
    vec![
        super::poller("acme-corp", "p1"),
        ClientIdentity::Leaf { tenant: tenant(), site: site() },
        ClientIdentity::Forwarder { tenant: tenant(), site: site() },
        ClientIdentity::User { tenant: tenant(), user: "ann".parse().unwrap() },
        ClientIdentity::PlatformUser { user: "ann".parse().unwrap() },
        ClientIdentity::Service { service: "core" },
        ClientIdentity::Service { service: "poller-dispatch" },
    ]
}

#[test]
fn an_identity_is_read_as_it_was_written() {
    for identity in every_kind() {
        let params = client_parameters(&identity, &domain(), OffsetDateTime::now_utc()).unwrap();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(read_identity(certificate.der(), &domain()), Ok(identity.clone()));
        let other: TrustDomain = "example.net".parse().unwrap();
        assert!(matches!(read_identity(certificate.der(), &other), Err(IdentityError::Uri(_))), "{identity:?}");
    }
}

#[test]
fn names_that_disagree_are_wild_or_are_too_many_speak_for_nobody() {
    let (own, uri) = ("p1.oslo.acme-corp.serviceradar", "spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1");
    assert_eq!(read_named(own, &[own, uri]), Ok(super::poller("acme-corp", "p1")), "control");
    for other in ["p2.oslo.acme-corp.serviceradar", "p1.oslo.xyz-inc.serviceradar", "*.oslo.acme-corp.serviceradar"] {
        let refused = read_named(own, &[other, uri]);
        assert!(matches!(refused, Err(IdentityError::Disagreement { kind: "DNS name", .. })), "{other}: {refused:?}");
        let refused = read_named(other, &[own, uri]);
        assert!(
            matches!(refused, Err(IdentityError::Disagreement { kind: "common name", .. })),
            "{other}: {refused:?}"
        );
        assert!(matches!(read_named(own, &[own, other, uri]), Err(IdentityError::Count { count: 2, .. })));
    }
    assert!(matches!(read_named(own, &[own]), Err(IdentityError::Count { kind: "URIs", count: 0 })));
    assert!(matches!(read_named(own, &[uri]), Err(IdentityError::Count { kind: "DNS names", count: 0 })));
    assert!(matches!(read_named(own, &[own, uri, uri]), Err(IdentityError::Count { .. })));
    let wild = ["*", ">", "p*", "P1", "p1.x", "a b", "%70", "", "-p", "{{name}}", "p1/..", &"p".repeat(41)];
    for name in wild {
        for path in [
            format!("tenant/acme-corp/site/oslo/poller/{name}"),
            format!("tenant/{name}/site/oslo/poller/p1"),
            format!("tenant/acme-corp/site/{name}/poller/p1"),
            format!("tenant/acme-corp/user/{name}"),
            format!("platform/user/{name}"),
            format!("platform/service/{name}"),
        ] {
            let uri = format!("spiffe://serviceradar/{path}");
            assert!(ClientIdentity::from_uri(&uri, &domain()).is_err(), "{uri}");
        }
    }
    for path in [
        "tenant/core/site/oslo/poller/p1",
        "tenant/platform/user/ann",
        "tenant/acme-corp/site/oslo/leaf/other",
        "tenant/acme-corp/site/oslo/poller/leaf",
        "tenant/acme-corp/site/user/poller/ann",
        "platform/service/hub",
        "tenant/acme-corp/site/oslo/poller/p1/",
        "/tenant/acme-corp/user/ann",
    ] {
        assert!(ClientIdentity::from_uri(&format!("spiffe://serviceradar/{path}"), &domain()).is_err(), "{path}");
    }
    for uri in ["https://serviceradar/platform/user/ann", "spiffe://serviceradar.evil/platform/user/ann", "spiffe://"] {
        assert!(ClientIdentity::from_uri(uri, &domain()).is_err(), "{uri}");
    }
}

#[test]
fn authorities_servers_and_other_kinds_of_names_speak_for_nobody() {
    assert!(read_changed(|_| {}).is_ok(), "control");
    let ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    assert_eq!(read_changed(ca), Err(IdentityError::Authority));
    let server = ExtendedKeyUsagePurpose::ServerAuth;
    for usages in [vec![], vec![server.clone()], vec![ExtendedKeyUsagePurpose::ClientAuth, server]] {
        let refused = read_changed(|params| params.extended_key_usages = usages);
        assert_eq!(refused, Err(IdentityError::Usage));
    }
    for name in [SanType::IpAddress([127, 0, 0, 1].into()), SanType::Rfc822Name("a@b.example".try_into().unwrap())] {
        assert_eq!(read_changed(|params| params.subject_alt_names.push(name)), Err(IdentityError::OtherName));
    }
    let twice = |params: &mut CertificateParams| {
        params.distinguished_name = DistinguishedName::new();
    };
    assert!(matches!(read_changed(twice), Err(IdentityError::Count { kind: "common names", count: 0 })));
}

#[test]
fn trust_domains_are_names_with_dots() {
    for good in ["serviceradar", "bus.example.net", "a"] {
        assert_eq!(good.parse::<TrustDomain>().unwrap().as_str(), good);
    }
    for bad in ["", ".", "a..b", "A", "*.x", "x/y", "x:1", &"a.".repeat(60)] {
        assert!(bad.parse::<TrustDomain>().is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(read_identity(&bytes, &domain()).is_err());
    }

    #[test]
    fn a_certificate_with_a_byte_changed_never_speaks_for_another(at in 0..2_000_usize, to in any::<u8>()) {
        let own = super::poller("acme-corp", "p1");
        let params = client_parameters(&own, &domain(), OffsetDateTime::UNIX_EPOCH).unwrap();
        let mut bytes = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let at = at % bytes.len();
        bytes[at] = to;
        if let Ok(read) = read_identity(&bytes, &domain()) {
            prop_assert_eq!(read, own);
        }
    }

    #[test]
    fn two_identities_never_share_a_dns_name(one in "[a-z]{1,5}", two in "[a-z]{1,5}", three in "[a-z]{1,5}") {
        let poller = format!("spiffe://serviceradar/tenant/{one}/site/{two}/poller/{three}");
        let Ok(poller) = ClientIdentity::from_uri(&poller, &domain()) else { return Ok(()) };
        for other in every_kind() {
            if other != poller {
                prop_assert_ne!(other.dns_name(&domain()), poller.dns_name(&domain()));
            }
        }
    }
}
