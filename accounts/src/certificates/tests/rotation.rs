use std::path::Path;

use time::Duration;

use super::{Place, poller, tenant};
use crate::certificates::facts::read_bundle;
use crate::certificates::{
    AuthorityName, CertificateError, CertificateFiles, Change, ClientIdentity, Objections, RotationStep,
};

const PREPARE: RotationStep = RotationStep::Prepare;
const FINISH: RotationStep = RotationStep::Finish;
const ABANDON: RotationStep = RotationStep::Abandon;

fn names() -> [AuthorityName; 5] {
    let [client, server, route] = AuthorityName::ROOTS;
    [client, server, route, AuthorityName::Platform, tenant("acme-corp")]
}

/// A certificate that rests on `name`, and the file of who trusts it.
fn issue_under(place: &Place, name: &AuthorityName, file: &str) -> CertificateFiles {
    let files = CertificateFiles::named(place.path(), file);
    let issued = match name {
        AuthorityName::ServerRoot => place.authority.issue_hub("hub-1", &[], &files, place.now),
        AuthorityName::RouteRoot => place.authority.issue_route("hub-1", &[], &files, place.now),
        AuthorityName::Platform => {
            place.authority.issue_client(&ClientIdentity::Service { service: "core" }, &files, place.now)
        }
        AuthorityName::ClientRoot | AuthorityName::Tenant(_) => {
            place.authority.issue_client(&poller("acme-corp", "p1"), &files, place.now)
        }
    };
    issued.unwrap();
    files
}

fn accepts(place: &Place, name: &AuthorityName, trust: &Path, files: &CertificateFiles) -> bool {
    if *name != AuthorityName::ServerRoot {
        return place.accepts(trust, files).is_ok();
    }
    // The verifier here is one of clients: only signatures are looked at.
    let (trusted, chain) = (read_bundle(trust).unwrap(), read_bundle(&files.cert_file).unwrap());
    let is_signed_by = crate::certificates::facts::is_signed_by;
    let by_root = |one| trusted.iter().any(|root| is_signed_by(one, root));
    by_root(&chain[0]) || (chain.len() > 1 && is_signed_by(&chain[0], &chain[1]) && by_root(&chain[1]))
}

fn trust_of(place: &Place, name: &AuthorityName) -> std::path::PathBuf {
    place.authority.files(name).cert_file
}

fn rotate(place: &Place, name: &AuthorityName, step: RotationStep) -> Result<(), CertificateError> {
    place.authority.rotate(name, (step, Objections::Heed), place.now).map(|_| ())
}

fn force(place: &Place, name: &AuthorityName, step: RotationStep) {
    place.authority.rotate(name, (step, Objections::Override), place.now).unwrap();
}

fn trusted_keys(place: &Place, name: &AuthorityName) -> usize {
    let state = place.authority.authority_state(name).unwrap();
    let mut keys: Vec<_> = state.trusted.into_iter().map(|one| one.facts.key_fingerprint).collect();
    keys.sort();
    keys.dedup();
    keys.len()
}

#[test]
fn both_are_trusted_in_the_overlap_and_only_the_new_one_after() {
    for name in names() {
        let place = Place::new();
        let trust = trust_of(&place, &name);
        let old_trust = place.path().join("not-reloaded.crt");
        std::fs::copy(&trust, &old_trust).unwrap();
        let old = issue_under(&place, &name, "old");
        rotate(&place, &name, PREPARE).unwrap();
        assert_eq!(trusted_keys(&place, &name), 2, "{name}");
        let new = issue_under(&place, &name, "new");
        assert!(accepts(&place, &name, &trust, &old) && accepts(&place, &name, &trust, &new), "{name}");
        // Whoever has not read the new trust file yet takes new certificates of roots all the same.
        assert_eq!(accepts(&place, &name, &old_trust, &new), name.is_root(), "{name}");
        let error = rotate(&place, &name, FINISH).unwrap_err();
        assert!(matches!(&error, CertificateError::Blocked { by } if by.len() == 1), "{name}: {error}");
        assert_eq!(trusted_keys(&place, &name), 2, "a refused step changes nothing");
        force(&place, &name, FINISH);
        assert_eq!(trusted_keys(&place, &name), 1, "{name}");
        assert!(!accepts(&place, &name, &trust, &old) && accepts(&place, &name, &trust, &new), "{name}");
        let after = issue_under(&place, &name, "after");
        assert!(accepts(&place, &name, &trust, &after), "{name}");
        assert!(matches!(rotate(&place, &name, FINISH), Err(CertificateError::NotRotating { .. })));
        // And again.
        rotate(&place, &name, PREPARE).unwrap();
        assert_eq!(trusted_keys(&place, &name), 2, "{name}");
    }
}

#[test]
fn an_abandoned_rotation_leaves_what_was_before() {
    for name in names() {
        let place = Place::new();
        let trust = trust_of(&place, &name);
        let (before, key) = (std::fs::read(&trust).unwrap(), std::fs::read(trust.with_extension("key")).unwrap());
        let old = issue_under(&place, &name, "old");
        rotate(&place, &name, PREPARE).unwrap();
        let new = issue_under(&place, &name, "new");
        let error = rotate(&place, &name, ABANDON);
        // The certificates of roots lead to both: nobody is cut off.
        assert_eq!(error.is_ok(), name.is_root(), "{name}: {error:?}");
        if !name.is_root() {
            force(&place, &name, ABANDON);
        }
        assert_eq!(std::fs::read(&trust).unwrap(), before, "{name}");
        assert_eq!(std::fs::read(trust.with_extension("key")).unwrap(), key, "{name}");
        assert!(accepts(&place, &name, &trust, &old), "{name}");
        assert_eq!(accepts(&place, &name, &trust, &new), name.is_root(), "{name}");
    }
}

#[test]
fn a_revoked_or_ended_certificate_stands_in_nobodys_way() {
    let place = Place::new();
    let name = tenant("acme-corp");
    let (issued, _) = place.issue(&poller("acme-corp", "p1"), "p1");
    rotate(&place, &name, PREPARE).unwrap();
    let ended = place.now + Duration::days(91);
    assert_eq!(place.authority.plan_rotation(&name, FINISH, ended).unwrap().blocked_by, []);
    assert_eq!(place.authority.plan_rotation(&name, FINISH, place.now).unwrap().blocked_by.len(), 1, "control");
    let serial = crate::certificates::Revocable::Serial(issued.serial);
    place.authority.revoke(&serial, crate::certificates::Reason::Superseded, place.now).unwrap();
    rotate(&place, &name, FINISH).unwrap();
}

#[test]
fn a_tenant_added_while_the_root_is_rotated_outlives_either_end() {
    for (step, name) in [(FINISH, "finish"), (ABANDON, "abandon")] {
        let place = Place::new();
        rotate(&place, &AuthorityName::ClientRoot, PREPARE).unwrap();
        place.authority.ensure_tenant(&"late".parse().unwrap(), place.now).unwrap();
        // And one whose own intermediate is rotated at the same time.
        rotate(&place, &tenant("acme-corp"), PREPARE).unwrap();
        let (_, files) = place.issue(&poller("late", "p1"), "late");
        let (_, other) = place.issue(&poller("acme-corp", "p1"), "other");
        rotate(&place, &AuthorityName::ClientRoot, step).unwrap();
        let root = place.authority.client_root_file();
        assert_eq!(place.accepts(&root, &files), Ok(()), "{name}");
        assert_eq!(place.accepts(&root, &other), Ok(()), "{name}");
        rotate(&place, &tenant("acme-corp"), FINISH).unwrap();
        assert_eq!(trusted_keys(&place, &tenant("acme-corp")), 1);
        assert_eq!(read_bundle(&trust_of(&place, &tenant("acme-corp"))).unwrap().len(), 1, "{name}");
    }
}

#[test]
fn an_intermediate_that_was_replaced_is_on_the_list_of_its_root() {
    let place = Place::new();
    let old = place.issue(&poller("acme-corp", "p1"), "old").1;
    rotate(&place, &tenant("acme-corp"), PREPARE).unwrap();
    let new = place.issue(&poller("acme-corp", "p1"), "new").1;
    force(&place, &tenant("acme-corp"), FINISH);
    place.authority.renew_lists(place.now).unwrap();
    let root = place.authority.client_root_file();
    let acme = tenant("acme-corp");
    let lists = [&acme, &AuthorityName::ClientRoot];
    assert_eq!(place.accepts(&root, &old), Ok(()), "control: without the list the root vouches for it");
    assert!(place.accepts_with(&root, &old, &lists).is_err());
    assert_eq!(place.accepts_with(&root, &new, &lists), Ok(()));
}

#[test]
fn both_keys_have_a_list_in_the_overlap() {
    let place = Place::new();
    let acme = tenant("acme-corp");
    let lists = [&acme, &AuthorityName::ClientRoot];
    let (lost, old_lost) = place.issue(&poller("acme-corp", "p1"), "old-lost");
    let (_, old) = place.issue(&poller("acme-corp", "p2"), "old");
    for name in [&AuthorityName::ClientRoot, &acme] {
        rotate(&place, name, PREPARE).unwrap();
    }
    let (new_issued, new_lost) = place.issue(&poller("acme-corp", "p3"), "new-lost");
    let (_, new) = place.issue(&poller("acme-corp", "p4"), "new");
    for serial in [lost.serial, new_issued.serial] {
        let serial = crate::certificates::Revocable::Serial(serial);
        place.authority.revoke(&serial, crate::certificates::Reason::KeyCompromise, place.now).unwrap();
    }
    let root = place.authority.client_root_file();
    for (files, is_good) in [(&old_lost, false), (&old, true), (&new_lost, false), (&new, true)] {
        let found = place.accepts_with(&root, files, &lists);
        assert_eq!(found.is_ok(), is_good, "{}: {found:?}", files.cert_file.display());
    }
}

fn plan(place: &Place, name: &AuthorityName, step: RotationStep) -> Vec<Change> {
    place.authority.plan_rotation(name, step, place.now).unwrap().changes
}

/// Cuts a step off after every one of its changes, and takes it again.
fn check_cut_off(name: &AuthorityName, step: RotationStep) {
    let start = || {
        let place = Place::new();
        let old = issue_under(&place, name, "old");
        if step != PREPARE {
            rotate(&place, name, PREPARE).unwrap();
        }
        (place, old)
    };
    let count = {
        let (place, _) = start();
        plan(&place, name, step).len()
    };
    assert!(count >= 3, "{name} {step:?}: {count}");
    for cut in 0..count {
        let (place, old) = start();
        let trust = trust_of(&place, name);
        for change in &plan(&place, name, step)[..cut] {
            change.apply().unwrap();
        }
        let said = format!("{name} {step:?} cut at {cut}");
        // Whatever is issued in between is trusted as long as both are.
        let between = issue_under(&place, name, "between");
        assert!(accepts(&place, name, &trust, &between), "{said}");
        if step != FINISH {
            assert!(accepts(&place, name, &trust, &old), "{said}");
        }
        force(&place, name, step);
        let after = issue_under(&place, name, "after");
        assert!(accepts(&place, name, &trust, &after), "{said}");
        assert_eq!(accepts(&place, name, &trust, &old), step != FINISH, "{said}");
        assert_eq!(trusted_keys(&place, name), if step == PREPARE { 2 } else { 1 }, "{said}");
        for other in place.authority.list_authorities().unwrap() {
            place.authority.authority_state(&other).unwrap();
        }
        if step == PREPARE {
            assert_eq!(plan(&place, name, PREPARE).len(), 0, "{said}: once more does no more");
        } else {
            rotate(&place, name, PREPARE).unwrap();
        }
    }
}

#[test]
fn a_step_that_was_cut_off_goes_on() {
    for name in names() {
        for step in [PREPARE, FINISH, ABANDON] {
            check_cut_off(&name, step);
        }
    }
}

#[test]
fn a_step_that_was_begun_is_not_turned_round() {
    let place = Place::new();
    let name = tenant("acme-corp");
    rotate(&place, &name, PREPARE).unwrap();
    plan(&place, &name, FINISH)[0].apply().unwrap();
    for step in [PREPARE, ABANDON] {
        let error = rotate(&place, &name, step).unwrap_err();
        assert!(error.to_string().contains("--finish"), "{error}");
    }
    rotate(&place, &name, FINISH).unwrap();
    let error = rotate(&place, &tenant("nobody"), PREPARE).unwrap_err();
    assert!(matches!(error, CertificateError::NoAuthority { .. }), "{error}");
}

#[test]
fn a_plan_changes_nothing_and_shows_no_key() {
    let place = Place::new();
    let before = snapshot(place.path());
    let changes = plan(&place, &AuthorityName::ClientRoot, PREPARE);
    assert_eq!(snapshot(place.path()), before);
    let shown = serde_json::to_string(&changes).unwrap() + &format!("{changes:?}");
    assert!(shown.contains("client-root.key") && !shown.contains("PRIVATE"), "{shown}");
}

fn snapshot(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(snapshot(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}
