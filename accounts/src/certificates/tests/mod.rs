//! What is issued, told apart, and revoked.

mod identity;
mod rotation;

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::facts::read_bundle;
use super::*;

pub(super) struct Place {
    pub(super) authority: Authority,
    pub(super) now: OffsetDateTime,
    pub(super) folder: tempfile::TempDir,
}

impl Place {
    /// The roots, the platform and two tenants.
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap();
        let authority = Authority::new(folder.path().join("pki"), TrustDomain::default());
        authority.ensure_roots(now).unwrap();
        authority.ensure_tenant(&"acme-corp".parse().unwrap(), now).unwrap();
        authority.ensure_tenant(&"xyz-inc".parse().unwrap(), now).unwrap();
        Self { authority, now, folder }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn issue(&self, identity: &ClientIdentity, name: &str) -> (IssuedCertificate, CertificateFiles) {
        let files = CertificateFiles::named(self.path(), name);
        (self.authority.issue_client(identity, &files, self.now).unwrap(), files)
    }

    fn accepts_with(&self, trust: &Path, files: &CertificateFiles, lists: &[&AuthorityName]) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        for root in read_bundle(trust).unwrap() {
            roots.add(root).unwrap();
        }
        let read = |name: &&AuthorityName| {
            let lists = CertificateRevocationListDer::pem_file_iter(self.authority.list_file(name)).unwrap();
            lists.collect::<Result<Vec<_>, _>>().unwrap()
        };
        let lists: Vec<_> = lists.iter().flat_map(read).collect();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
        let verifier = verifier.with_crls(lists).build().map_err(|error| error.to_string())?;
        let chain = read_bundle(&files.cert_file).unwrap();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.now.unix_timestamp().unsigned_abs()));
        verifier.verify_client_cert(&chain[0], &chain[1..], at).map(|_| ()).map_err(|error| error.to_string())
    }

    pub(super) fn accepts(&self, trust: &Path, files: &CertificateFiles) -> Result<(), String> {
        self.accepts_with(trust, files, &[])
    }
}

pub(super) fn poller(tenant: &str, name: &str) -> ClientIdentity {
    let (tenant, site) = (tenant.parse().unwrap(), "oslo".parse().unwrap());
    ClientIdentity::Poller { tenant, site, poller: name.parse().unwrap() }
}

fn tenant(slug: &str) -> AuthorityName {
    AuthorityName::Tenant(slug.parse().unwrap())
}

#[test]
fn a_poller_certificate_says_the_same_thing_three_times_under_its_tenants_intermediate() {
    let place = Place::new();
    let (issued, files) = place.issue(&poller("acme-corp", "p1"), "p1");
    let chain = read_bundle(&files.cert_file).unwrap();
    assert_eq!(chain.len(), 2, "the intermediate goes along");
    let (_, end) = X509Certificate::from_der(&chain[0]).unwrap();
    let (_, issuer) = X509Certificate::from_der(&chain[1]).unwrap();
    assert_eq!(end.subject().to_string(), "CN=p1.oslo.acme-corp.serviceradar");
    let names = end.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert!(names.contains(&GeneralName::DNSName("p1.oslo.acme-corp.serviceradar")));
    assert!(names.contains(&GeneralName::URI("spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1")));
    let usage = end.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let constraints = issuer.name_constraints().unwrap().unwrap().value.permitted_subtrees.clone().unwrap();
    assert_eq!(constraints[0].base, GeneralName::DNSName(".acme-corp.serviceradar"));
    assert!(issuer.extended_key_usage().unwrap().unwrap().value.client_auth);
    let facts = inspect(&std::fs::read_to_string(&files.cert_file).unwrap()).unwrap();
    assert_eq!((&facts.serial, &facts.fingerprint), (&issued.serial, &issued.fingerprint));
    assert_eq!(facts.not_after, issued.not_after);
    assert_eq!((facts.is_authority, facts.for_clients, facts.for_servers), (false, true, false));
}

#[test]
fn a_second_start_keeps_the_roots_and_everything_issued_is_in_the_book() {
    let place = Place::new();
    let root = std::fs::read(place.authority.client_root_file()).unwrap();
    place.authority.ensure_roots(place.now).unwrap();
    assert_eq!(std::fs::read(place.authority.client_root_file()).unwrap(), root);
    let files = CertificateFiles::named(place.path(), "hub");
    let first = place.authority.issue_hub("hub-1", &[], &files, place.now).unwrap();
    let second = place.authority.issue_hub("hub-1", &[], &files, place.now).unwrap();
    assert_ne!(first.serial, second.serial);
    let book = place.authority.list_issued(&AuthorityName::ServerRoot).unwrap();
    let serials: Vec<&str> = book.iter().map(|record| record.serial.as_str()).collect();
    assert_eq!(serials, [&first.serial, &second.serial]);
    assert_eq!(book[0].identity, "hub-1.platform.serviceradar");
    assert_eq!(place.authority.list_issued(&AuthorityName::ClientRoot).unwrap().len(), 3, "the intermediates");
}

#[test]
fn a_start_that_was_cut_off_while_it_made_an_authority_is_finished_and_damage_is_told() {
    let place = Place::new();
    let pki = place.path().join("pki");
    let (cert, key, pending) =
        (pki.join("tenant-xyz-inc.crt"), pki.join("tenant-xyz-inc.key"), pki.join(".tenant-xyz-inc.pending.key"));
    let slug = "xyz-inc".parse().unwrap();
    // Cut off before the key took its place: the same key is used.
    std::fs::rename(&key, &pending).unwrap();
    let made = std::fs::read(&cert).unwrap();
    place.authority.ensure_tenant(&slug, place.now).unwrap();
    assert!(key.exists() && !pending.exists());
    assert_eq!(std::fs::read(&cert).unwrap(), made);
    // Cut off before the certificate: nothing was issued under it, so it is made anew.
    std::fs::rename(&key, &pending).unwrap();
    std::fs::remove_file(&cert).unwrap();
    place.authority.ensure_tenant(&slug, place.now).unwrap();
    assert_ne!(std::fs::read(&cert).unwrap(), made);
    for lost in [&cert, &key] {
        let kept = std::fs::read(lost).unwrap();
        std::fs::remove_file(lost).unwrap();
        let error = place.authority.ensure_tenant(&slug, place.now).unwrap_err();
        assert!(matches!(error, CertificateError::Missing { .. }), "{error}");
        std::fs::write(lost, kept).unwrap();
    }
    std::fs::copy(pki.join("tenant-acme-corp.key"), &key).unwrap();
    let error = place.authority.ensure_tenant(&slug, place.now).unwrap_err();
    assert!(matches!(error, CertificateError::Mismatch { .. }), "{error}");
}

#[test]
fn a_renewal_keeps_identity_and_key_and_a_revoked_or_foreign_certificate_has_none() {
    let place = Place::new();
    let later = |days: i64| place.now + Duration::days(days);
    let (first, files) = place.issue(&poller("acme-corp", "p1"), "p1");
    assert!(!needs_renewal(&files.cert_file, later(59)).unwrap());
    assert!(needs_renewal(&files.cert_file, later(60)).unwrap());
    let facts = || inspect(&std::fs::read_to_string(&files.cert_file).unwrap()).unwrap();
    let before = facts();
    let second = place.authority.renew(&files, later(60)).unwrap();
    let after = facts();
    assert_eq!((&after.uris, &after.key_fingerprint), (&before.uris, &before.key_fingerprint));
    assert_ne!(first.serial, second.serial);
    assert!(!needs_renewal(&files.cert_file, later(60)).unwrap());
    assert_eq!(after.not_after, later(150));
    for (name, issue) in
        [("hub", Authority::issue_hub as fn(&_, &_, &_, &_, _) -> _), ("route", Authority::issue_route)]
    {
        let files = CertificateFiles::named(place.path(), name);
        let hosts = ["hub.example.com", "192.0.2.7", "2001:db8::7", "localhost"].map(str::to_owned);
        issue(&place.authority, "hub-2", &hosts, &files, place.now).unwrap();
        let facts = || inspect(&std::fs::read_to_string(&files.cert_file).unwrap()).unwrap();
        let before = facts();
        place.authority.renew(&files, later(60)).unwrap();
        assert!(hosts.iter().all(|host| before.hosts().contains(host)), "{name}: {:?}", before.hosts());
        assert_eq!((before.hosts(), before.for_clients), (facts().hosts(), facts().for_clients), "{name}");
    }
    place.authority.revoke(&Revocable::Serial(second.serial), Reason::KeyCompromise, later(60)).unwrap();
    let error = place.authority.renew(&files, later(60)).unwrap_err();
    assert!(matches!(error, CertificateError::Revoked { .. }), "{error}");
    let elsewhere = Place::new();
    let (_, foreign) = elsewhere.issue(&poller("acme-corp", "p1"), "p1");
    let error = place.authority.renew(&foreign, place.now).unwrap_err();
    assert!(matches!(error, CertificateError::NotOurs { .. }), "{error}");
}

#[test]
fn nothing_is_good_for_longer_than_its_authority() {
    let place = Place::new();
    let late = place.now + Duration::days(1_800);
    let files = CertificateFiles::named(place.path(), "p1");
    let issued = place.authority.issue_client(&poller("acme-corp", "p1"), &files, late).unwrap();
    assert_eq!(issued.not_after, place.now + Duration::days(1_825));
    let too_late = place.now + Duration::days(1_826);
    let error = place.authority.issue_client(&poller("acme-corp", "p1"), &files, too_late).unwrap_err();
    assert!(matches!(error, CertificateError::Ended { .. }), "{error}");
}

#[test]
fn what_is_revoked_is_on_a_list_that_verifiers_heed_and_its_number_grows() {
    let place = Place::new();
    let Place { authority, now, .. } = &place;
    let acme = tenant("acme-corp");
    let lists = [&acme, &AuthorityName::ClientRoot];
    let (_, kept) = place.issue(&poller("acme-corp", "p1"), "p1");
    let (issued, lost) = place.issue(&poller("acme-corp", "p2"), "p2");
    place.issue(&poller("acme-corp", "p2"), "p2-again");
    let root = authority.client_root_file();
    assert_eq!(authority.renew_lists(*now).unwrap().len(), 6, "every authority has one");
    assert_eq!(authority.renew_lists(*now).unwrap(), []);
    assert_eq!(place.accepts_with(&root, &lost, &lists), Ok(()), "control");
    let serial: Revocable = issued.serial.to_uppercase().parse().unwrap();
    let revoked = authority.revoke(&serial, Reason::KeyCompromise, *now).unwrap();
    assert_eq!(revoked.len(), 1);
    let refused = place.accepts_with(&root, &lost, &lists).unwrap_err();
    assert!(refused.contains("Revoked"), "{refused}");
    assert_eq!(place.accepts_with(&root, &kept, &lists), Ok(()));
    let list = std::fs::read(authority.list_file(&acme)).unwrap();
    assert_eq!(authority.revoke(&serial, Reason::Superseded, *now).unwrap(), []);
    assert_eq!(std::fs::read(authority.list_file(&acme)).unwrap(), list, "once more does no more");
    // A run that was cut off between the record and the list.
    std::fs::remove_file(authority.list_file(&acme)).unwrap();
    authority.revoke(&serial, Reason::Superseded, *now).unwrap();
    assert!(place.accepts_with(&root, &lost, &lists).is_err());
    let by_name: Revocable = "p2.oslo.acme-corp.serviceradar".parse().unwrap();
    assert_eq!(authority.revoke(&by_name, Reason::Unspecified, *now).unwrap().len(), 1, "the other one of p2");
    assert_eq!(authority.list_revoked(&acme).unwrap().len(), 2);
    let strange: Revocable = "p9.oslo.acme-corp.serviceradar".parse().unwrap();
    let error = authority.revoke(&strange, Reason::Unspecified, *now).unwrap_err();
    assert!(matches!(error, CertificateError::NeverIssued { .. }), "{error}");
    // Where the issuer is known, only its book is asked.
    let (third, held) = place.issue(&poller("acme-corp", "p3"), "p3");
    let third = Revocable::Serial(third.serial);
    let error = authority.revoke_of(&AuthorityName::Platform, &third, Reason::Unspecified, *now).unwrap_err();
    assert!(matches!(error, CertificateError::NeverIssued { .. }), "{error}");
    assert_eq!(place.accepts_with(&root, &held, &lists), Ok(()), "control");
    assert_eq!(authority.revoke_of(&acme, &third, Reason::Unspecified, *now).unwrap().len(), 1);
    assert!(place.accepts_with(&root, &held, &lists).is_err());
}

#[test]
fn lists_are_renewed_before_they_are_late_and_forget_what_has_ended() {
    let place = Place::new();
    let Place { authority, now, .. } = &place;
    let acme = tenant("acme-corp");
    let (issued, _) = place.issue(&poller("acme-corp", "p1"), "p1");
    authority.revoke(&Revocable::Serial(issued.serial), Reason::Unspecified, *now).unwrap();
    let list = || authority.read_list(&acme);
    let (number, entries, next_update) = list();
    assert_eq!((entries, next_update), (1, *now + Duration::days(7)));
    assert!(authority.renew_lists(*now + Duration::days(3)).unwrap().len() < 6);
    assert_eq!(list().0, number);
    assert!(authority.renew_lists(*now + Duration::days(4)).unwrap().contains(&acme));
    let second = list();
    assert!(second.0 > number && second.1 == 1);
    // The clock went back: the number still grows, and the list is not one of the future.
    assert!(authority.renew_lists(*now).unwrap().contains(&acme));
    assert!(list().0 > second.0);
    authority.renew_lists(*now + Duration::days(92)).unwrap();
    assert_eq!(list().1, 0, "the certificate has ended");
}

impl Authority {
    /// Number, entries and next update of the first list of an authority.
    fn read_list(&self, name: &AuthorityName) -> (u64, usize, OffsetDateTime) {
        let list = CertificateRevocationListDer::from_pem_file(self.list_file(name)).unwrap();
        let (_, list) = x509_parser::prelude::CertificateRevocationList::from_der(&list).unwrap();
        let number = list.crl_number().unwrap().iter_u64_digits().next().unwrap();
        let next = list.next_update().unwrap().to_datetime();
        (number, list.iter_revoked_certificates().count(), next)
    }
}

#[test]
fn a_slug_that_is_given_away_again_opens_nothing_old() {
    let place = Place::new();
    let Place { authority, now, .. } = &place;
    let slug = "acme-corp".parse().unwrap();
    let acme = tenant("acme-corp");
    let (_, old) = place.issue(&poller("acme-corp", "p1"), "old");
    let trust = authority.tenant_intermediate_file(&slug);
    assert_eq!(place.accepts(&trust, &old), Ok(()), "control");
    assert!(authority.forget_tenant(&slug, *now).unwrap());
    assert!(!trust.exists());
    assert!(!authority.forget_tenant(&slug, *now).unwrap(), "once more does no more");
    authority.ensure_tenant(&slug, *now).unwrap();
    assert_eq!(authority.list_issued(&acme).unwrap(), []);
    let (_, new) = place.issue(&poller("acme-corp", "p1"), "new");
    assert_eq!(place.accepts(&trust, &new), Ok(()));
    assert!(place.accepts(&trust, &old).is_err());
    // The root still vouches for the old intermediate; its list says no.
    authority.renew_lists(*now).unwrap();
    let root = authority.client_root_file();
    let lists = [&acme, &AuthorityName::ClientRoot];
    assert_eq!(place.accepts(&root, &old), Ok(()), "control: without the list it is accepted");
    assert!(place.accepts_with(&root, &old, &lists).is_err());
    assert_eq!(place.accepts_with(&root, &new, &lists), Ok(()));
}

#[test]
fn forgetting_that_was_cut_off_goes_on() {
    let steps = Place::new().plan_forgetting().len();
    assert!(steps >= 4, "{steps}");
    for cut in 0..steps {
        let place = Place::new();
        for change in &place.plan_forgetting()[..cut] {
            change.apply().unwrap();
        }
        let slug = "acme-corp".parse().unwrap();
        assert!(place.authority.forget_tenant(&slug, place.now).unwrap(), "cut at {cut}");
        assert!(!place.authority.tenant_intermediate_file(&slug).exists());
        assert_eq!(place.authority.list_revoked(&AuthorityName::ClientRoot).unwrap().len(), 1, "cut at {cut}");
        place.authority.ensure_tenant(&slug, place.now).unwrap();
    }
}

impl Place {
    fn plan_forgetting(&self) -> Vec<Change> {
        self.issue(&poller("acme-corp", "p1"), "p1");
        self.authority.plan_forgetting(&"acme-corp".parse().unwrap(), self.now).unwrap()
    }
}
