use bulkhead_testkit::{Forger, client_params};
use proptest::prelude::*;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use time::OffsetDateTime;

use super::*;

const NAME: &str = "p1.oslo.acme-corp.serviceradar";
const URI: &str = "spiffe://serviceradar/tenant/acme-corp/site/oslo/poller/p1";

struct Place {
    root: Forger,
    intermediate: Forger,
}

impl Place {
    fn new() -> Self {
        let root = Forger::root("root");
        let intermediate = root.intermediate("acme", Some(".acme-corp.serviceradar"));
        Self { root, intermediate }
    }

    fn verify(&self, chains: &[Vec<String>]) -> Result<VerifiedCertificate, ChainError> {
        let roots = TrustedRoots::from_pem(self.root.pem()).unwrap();
        let now = OffsetDateTime::now_utc().unix_timestamp().unsigned_abs();
        verify_chain(chains, &roots, &TrustDomain::default(), now)
    }

    fn chain(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<String> {
        let mut params = client_params(NAME, URI);
        change(&mut params);
        let end = self.intermediate.end(&params);
        vec![end.pem, self.intermediate.pem().to_owned(), self.root.pem().to_owned()]
    }

    fn refused(&self, change: impl FnOnce(&mut CertificateParams)) -> ChainError {
        self.verify(&[self.chain(change)]).unwrap_err()
    }
}

#[test]
fn a_good_chain_says_who_and_under_whose_key() {
    let place = Place::new();
    let chain = place.chain(|_| {});
    let verified = place.verify(std::slice::from_ref(&chain)).unwrap();
    assert_eq!(verified.identity.uri(&TrustDomain::default()), URI);
    assert_eq!(verified.authority_key, place.intermediate.key_hash());
    assert!(verified.not_after > 0 && !verified.serial.is_empty() && verified.fingerprint.len() == 64);
    // While a root is rotated a server finds two ways up.
    assert_eq!(place.verify(&[chain.clone(), chain]).unwrap(), verified);
}

#[test]
fn dates_names_and_uses_are_verified_again() {
    let place = Place::new();
    let (past, future) = (time::Duration::days(-2), time::Duration::days(2));
    let now = OffsetDateTime::now_utc();
    let expired = place.refused(|params| (params.not_before, params.not_after) = (now + past * 2, now + past));
    assert!(matches!(expired, ChainError::Expired(_)), "{expired:?}");
    let early = place.refused(|params| (params.not_before, params.not_after) = (now + future, now + future * 2));
    assert!(matches!(early, ChainError::NotYetGood(_)), "{early:?}");
    let outside = place.refused(|params| {
        *params =
            client_params("p1.oslo.xyz-inc.serviceradar", "spiffe://serviceradar/tenant/xyz-inc/site/oslo/poller/p1");
    });
    assert!(matches!(outside, ChainError::Untrusted(_)), "the intermediate may name its own tenant only: {outside:?}");
    let server = place.refused(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(matches!(server, ChainError::Untrusted(_)), "{server:?}");
    let nobody = place.refused(|params| {
        params.subject_alt_names.pop();
    });
    assert!(matches!(nobody, ChainError::Identity(_)), "{nobody:?}");
}

#[test]
fn a_chain_without_an_intermediate_or_with_two_is_nobodys() {
    let place = Place::new();
    let direct = place.root.end(&client_params(NAME, URI));
    let found = place.verify(&[vec![direct.pem, place.root.pem().to_owned()]]);
    assert_eq!(found, Err(ChainError::Intermediates(0)));
    let below = place.intermediate.intermediate("below", None);
    let end = below.end(&client_params(NAME, URI));
    let chain = vec![end.pem, below.pem().to_owned(), place.intermediate.pem().to_owned(), place.root.pem().to_owned()];
    assert_eq!(place.verify(&[chain]), Err(ChainError::Intermediates(2)));
}

#[test]
fn what_another_root_vouches_for_is_nothing_here_whatever_its_name() {
    let (place, other) = (Place::new(), Place::new());
    let foreign = place.verify(&[other.chain(|_| {})]);
    assert!(matches!(foreign, Err(ChainError::Untrusted(_))), "{foreign:?}");
    // A chain may not be completed with somebody else's intermediate.
    let mut mixed = other.chain(|_| {});
    mixed.splice(1.., [place.intermediate.pem().to_owned(), place.root.pem().to_owned()]);
    assert!(matches!(place.verify(&[mixed]), Err(ChainError::Untrusted(_))));
}

#[test]
fn too_much_and_too_little_are_refused() {
    let place = Place::new();
    assert_eq!(place.verify(&[]), Err(ChainError::NotShown));
    assert_eq!(place.verify(&[vec![]]), Err(ChainError::NotShown));
    let chain = place.chain(|_| {});
    assert!(matches!(place.verify(&vec![chain.clone(); 9]), Err(ChainError::TooMuch { .. })));
    assert!(matches!(place.verify(&[vec![chain[0].clone(); 5]]), Err(ChainError::TooMuch { .. })));
    assert!(matches!(place.verify(&[vec!["x".repeat(20_000)]]), Err(ChainError::TooMuch { .. })));
    assert!(matches!(place.verify(&[vec![String::new()]]), Err(ChainError::Unreadable(_))));
    assert!(matches!(place.verify(&[vec![chain.concat()]]), Err(ChainError::Unreadable(_))));
    assert_eq!(place.verify(&[chain, place.chain(|_| {})]), Err(ChainError::Several));
    assert!(TrustedRoots::from_pem("").is_err() && TrustedRoots::from_pem("x").is_err());
}

proptest! {
    #[test]
    fn any_text_is_refused_without_a_panic(texts in prop::collection::vec(".{0,200}", 0..5)) {
        let place = Place::new();
        prop_assert!(place.verify(&[texts]).is_err());
    }
}
