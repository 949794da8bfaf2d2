//! The store as operators use it: on disk, with everything that can go wrong there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_bus::Role;
use bulkhead_claims::{UserBody, decode};

use super::*;
use crate::plan::{Plan, PlanName};
use crate::render::{RoleKey, tenant_account};

fn tenant(store: &OperatorStore, plan: PlanName, now: i64) -> AccountRecord {
    let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(plan), own, "ACORE", keys);
    store.ensure_account("acme-corp", &Role::TENANT, now, render).unwrap()
}

#[test]
fn a_token_is_signed_anew_only_when_the_body_changes_and_then_it_is_newer() {
    let folder = tempfile::tempdir().unwrap();
    let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
    let first = tenant(&store, PlanName::Free, 1_000);
    let reopened = OperatorStore::open(folder.path().to_owned(), 2_000).unwrap();
    assert_eq!(reopened.token, store.token);
    assert_eq!(tenant(&reopened, PlanName::Free, 2_000).token, first.token);
    let changed = tenant(&reopened, PlanName::Pro, 1_000);
    assert_eq!(changed.claims.iat, 1_001, "the clock stood still, the token is newer all the same");
    assert_eq!(changed.role_key_all(), first.role_key_all());
    assert_eq!(changed.key, first.key);
}

impl AccountRecord {
    fn role_key_all(&self) -> Vec<String> {
        Role::TENANT.iter().filter_map(|&role| self.role_key(role).map(str::to_owned)).collect()
    }
}

#[test]
fn the_system_account_of_an_earlier_release_is_renewed_with_its_key_and_a_lost_one_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
    let known = store.system().unwrap();
    let mut less = known.claims.nats.clone();
    less.limits.conn = 1;
    store.sign_body(SYSTEM, less, 1_000).unwrap();
    let renewed = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap().ensure_system(1_000).unwrap();
    assert_eq!((renewed.claims.nats, renewed.key), (known.claims.nats, known.key));
    assert_eq!(renewed.claims.iat, 1_002, "servers take only what is newer");
    std::fs::remove_file(store.paths.account_token(SYSTEM).unwrap()).unwrap();
    let opened = OperatorStore::open(folder.path().to_owned(), 1_000);
    assert!(opened.and_then(|store| store.ensure_system(1_000)).is_err());
}

#[test]
fn users_are_signed_by_the_scoped_key_of_their_role_and_never_by_an_identity() {
    let folder = tempfile::tempdir().unwrap();
    let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
    let account = tenant(&store, PlanName::Free, 1_000);
    let site = "oslo".parse().unwrap();
    let user = UserRequest { account: "acme-corp", role: Role::Leaf, name: "leaf", site: Some(&site), expires: 2_000 };
    let issued = store.issue_user(&user, 1_000).unwrap();
    let token = issued.text.lines().nth(1).unwrap();
    let claims = decode::<UserBody>(token).unwrap();
    assert_eq!(Some(claims.iss.as_str()), account.role_key(Role::Leaf));
    assert_ne!(claims.iss, account.key.as_str());
    assert_eq!((json!(claims.nats.tags), claims.exp), (json!(["site:oslo"]), Some(2_000)));
    assert_eq!((issued.public, issued.iat, issued.expires), (claims.sub, 1_000, 2_000));
    assert_eq!(claims.nats.issuer_account, account.key.as_str());
}

#[test]
fn a_damaged_or_foreign_token_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
    tenant(&store, PlanName::Free, 1_000);
    let path = store.paths.account_token("acme-corp").unwrap();
    let token = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &token[..token.len() / 2]).unwrap();
    assert!(store.account("acme-corp").unwrap_err().to_string().contains("acme-corp"));
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = OperatorStore::open(elsewhere.path().to_owned(), 1_000).unwrap();
    std::fs::write(&path, tenant(&foreign, PlanName::Free, 1_000).token).unwrap();
    assert!(store.account("acme-corp").is_err(), "another operator's account");
}

/// Every file below a folder but the lock, with what is in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("lock") {
                found.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn store() -> (tempfile::TempDir, OperatorStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
    tenant(&store, PlanName::Free, 1_000);
    (folder, store)
}

fn keys_of(record: &AccountRecord, role: Role) -> Vec<String> {
    let keys = record.claims.nats.signing_keys.iter();
    keys.filter(|key| key.role() == Some(role.name())).map(|key| key.key().to_owned()).collect()
}

#[test]
fn a_rotated_role_has_both_keys_until_the_end_and_rendering_keeps_them() {
    let (_folder, store) = store();
    let before = store.account("acme-corp").unwrap().unwrap();
    let old = before.role_key(Role::Leaf).unwrap().to_owned();
    let rotated = store.rotate_role("acme-corp", Role::Leaf, 1_000).unwrap();
    let new = rotated.role_key(Role::Leaf).unwrap().to_owned();
    assert_eq!(keys_of(&rotated, Role::Leaf), [new.clone(), old.clone()]);
    assert!(matches!(store.rotate_role("acme-corp", Role::Leaf, 1_000), Err(OperatorError::Rotating { .. })));
    assert_eq!(tenant(&store, PlanName::Free, 1_000).token, rotated.token, "rendering knows both keys");
    let user = UserRequest { account: "acme-corp", role: Role::Leaf, name: "leaf", site: None, expires: 2_000 };
    let token = store.issue_user(&user, 1_000).unwrap();
    assert_eq!(decode::<UserBody>(token.text.lines().nth(1).unwrap()).unwrap().iss, new);
    let finished = store.finish_role_rotation("acme-corp", Role::Leaf, 1_000).unwrap();
    assert_eq!(keys_of(&finished, Role::Leaf), std::slice::from_ref(&new));
    assert_eq!(keys_of(&finished, Role::Admin), keys_of(&before, Role::Admin), "other roles keep theirs");
    assert!(matches!(store.finish_role_rotation("acme-corp", Role::Leaf, 1_000), Err(OperatorError::NotRotating(..))));
    assert_eq!(tenant(&store, PlanName::Free, 1_000).token, finished.token);
    // The seed of the key that is out stays until the account goes.
    let removed = store.remove_account("acme-corp", 1_000).unwrap();
    assert!(removed.folder.join("keys").join(format!("{old}.nk")).exists());
    assert!(finished.claims.iat > rotated.claims.iat && rotated.claims.iat > before.claims.iat);
}

#[test]
fn revocations_outlive_rendering_never_go_back_and_are_forgotten_when_no_token_can_be_left() {
    let (_folder, store) = store();
    let user = SigningKey::generate(KeyKind::User).public().to_owned();
    let revocations =
        |record: &AccountRecord| serde_json::to_value(&record.claims.nats).unwrap()["revocations"].clone();
    store.revoke_user("acme-corp", &user, 5_000).unwrap();
    let record = store.revoke_user("acme-corp", &user, 4_000).unwrap();
    assert_eq!(revocations(&record), json!({&user: 5_000}));
    let record = store.revoke_user("acme-corp", "*", 6_000).unwrap();
    assert_eq!(revocations(&record), json!({&user: 5_000, "*": 6_000}));
    assert_eq!(revocations(&tenant(&store, PlanName::Pro, 7_000)), revocations(&record));
    assert_eq!(store.compact_revocations("acme-corp", 8_500, 3_000).unwrap(), 1);
    let record = store.account("acme-corp").unwrap().unwrap();
    assert_eq!(revocations(&record), json!({"*": 6_000}));
    assert_eq!(revocations(&store.unrevoke("acme-corp", "*", 9_000).unwrap()), json!(null));
    for bad in ["", "**", "someone", record.key.as_str()] {
        assert!(matches!(store.revoke_user("acme-corp", bad, 1), Err(OperatorError::NoUser(_))), "{bad:?}");
    }
}

#[test]
fn a_store_without_books_is_read_by_its_tokens_and_a_lost_book_comes_back() {
    let (folder, store) = store();
    let rotated = store.rotate_role("acme-corp", Role::Leaf, 1_000).unwrap();
    store.revoke_user("acme-corp", "*", 900).unwrap();
    let record = store.account("acme-corp").unwrap().unwrap();
    std::fs::remove_dir_all(folder.path().join("books")).unwrap();
    assert_eq!(tenant(&store, PlanName::Free, 1_000).token, record.token);
    let book = store.book("acme-corp").unwrap();
    assert_eq!(book.roles["leaf"].previous.as_ref().map(|key| key.public.clone()), keys_of(&rotated, Role::Leaf).pop());
    assert_eq!(book.revocations["*"], 900);
    assert!(folder.path().join("books/acme-corp.json").exists());
    std::fs::write(folder.path().join("books/acme-corp.json"), "{").unwrap();
    let error = store.book("acme-corp").unwrap_err().to_string();
    assert!(error.contains("books/acme-corp.json"), "{error}");
}

/// Signs an account with other content than we gave it, as another tool would.
fn edit_elsewhere(store: &OperatorStore, name: &str, connections: i64) -> String {
    let mut claims = store.account(name).unwrap().unwrap().claims;
    claims.nats.limits.conn = connections;
    claims.iat += 1;
    let token = encode(&mut claims, store.signer_in_use().unwrap().as_ref()).unwrap();
    std::fs::write(store.paths.account_token(name).unwrap(), &token).unwrap();
    token
}

#[test]
fn what_another_tool_wrote_is_named_and_never_overwritten() {
    let (folder, store) = store();
    let token = edit_elsewhere(&store, "acme-corp", 77);
    let before = files(folder.path());
    let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(PlanName::Pro), own, "ACORE", keys);
    let errors = [
        store.ensure_account("acme-corp", &Role::TENANT, 2_000, render).unwrap_err(),
        store.rotate_role("acme-corp", Role::Leaf, 2_000).unwrap_err(),
        store.revoke_user("acme-corp", "*", 2_000).unwrap_err(),
    ];
    for error in errors {
        let said = error.to_string();
        assert!(matches!(error, OperatorError::ForeignEdit { .. }), "{said}");
        for part in ["limits.conn is 77", "nsc check", "nsc import --accept acme-corp", "nsc restore acme-corp"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    assert_eq!(files(folder.path()), before);
    assert_eq!(store.account("acme-corp").unwrap().unwrap().token, token, "it can still be read");
    std::fs::remove_dir_all(store.paths.account("acme-corp").unwrap()).unwrap();
    let error = store.ensure_account("acme-corp", &Role::TENANT, 2_000, render).unwrap_err().to_string();
    assert!(error.contains("its token is gone"), "{error}");
}

#[test]
fn a_crash_between_book_and_token_is_no_foreign_edit() {
    let (_folder, store) = store();
    let path = store.paths.account_token("acme-corp").unwrap();
    let before = std::fs::read(&path).unwrap();
    let rotated = store.rotate_role("acme-corp", Role::Leaf, 1_000).unwrap();
    std::fs::write(&path, before).unwrap();
    let finished = tenant(&store, PlanName::Free, 1_000);
    assert_eq!(keys_of(&finished, Role::Leaf), keys_of(&rotated, Role::Leaf), "the book finishes it");
    assert!(finished.claims.iat > rotated.claims.iat, "a server may have seen the other one");
}

#[test]
fn a_change_that_cannot_be_written_leaves_the_store_as_it_was() {
    let (folder, store) = store();
    // Nothing can be made below a file.
    std::fs::remove_dir_all(store.paths.staging()).unwrap();
    std::fs::write(store.paths.staging(), "").unwrap();
    let before = files(folder.path());
    let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(PlanName::Pro), own, "ACORE", keys);
    assert!(store.ensure_account("acme-corp", &Role::TENANT, 2_000, render).is_err());
    assert!(store.ensure_account("xyz-inc", &Role::TENANT, 2_000, render).is_err());
    assert!(store.rotate_role("acme-corp", Role::Leaf, 2_000).is_err());
    assert_eq!(files(folder.path()), before);
    assert_eq!(store.account_names(), ["acme-corp", SYSTEM], "no stray folder");
    std::fs::remove_file(store.paths.staging()).unwrap();
    assert!(store.ensure_account("xyz-inc", &Role::TENANT, 2_000, render).is_ok());
}

#[test]
fn operator_keys_are_rotated_with_overlap_and_a_key_in_use_stays() {
    let (folder, mut store) = store();
    tenant(&store, PlanName::Free, 1_000);
    let [active, standby] = store.claims().nats.signing_keys.clone().try_into().unwrap();
    assert_eq!(store.signing_key_in_use().unwrap(), active);
    assert!(matches!(store.drop_signing_key(&standby, 1_000), Err(OperatorError::NoStandby(_))));
    let stale = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
    let added = store.add_signing_key(None, 1_000).unwrap();
    assert_eq!(store.claims().nats.signing_keys, [active.clone(), standby, added.clone()]);
    store.use_signing_key(&added).unwrap();
    assert!(matches!(store.drop_signing_key(&active, 1_000), Err(OperatorError::StillSigns { .. })));
    assert!(matches!(store.drop_signing_key(&added, 1_000), Err(OperatorError::InUseKey(_))));
    edit_elsewhere(&store, "acme-corp", 3);
    store.use_signing_key(&active).unwrap();
    let token = edit_elsewhere(&store, "acme-corp", 3);
    store.use_signing_key(&added).unwrap();
    let outcome = store.resign_all(1_000, |_, _| ()).unwrap();
    assert_eq!((outcome.signed, outcome.failed.len()), (1, 1), "{outcome:?}");
    assert_eq!(store.account("acme-corp").unwrap().unwrap().token, token);
    let error = store.drop_signing_key(&active, 1_000).unwrap_err().to_string();
    assert!(error.contains("acme-corp"), "{error}");
    store.restore_account("acme-corp", 1_000).unwrap();
    let before = store.account("acme-corp").unwrap().unwrap();
    assert_eq!(before.claims.iss, added);
    store.drop_signing_key(&active, 1_000).unwrap();
    assert!(matches!(store.use_signing_key(&active), Err(OperatorError::NotSigning(_))));
    // A store that was opened before all of this reads, and signs by the new key.
    let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(PlanName::Pro), own, "ACORE", keys);
    assert_eq!(stale.ensure_account("acme-corp", &Role::TENANT, 1_000, render).unwrap().claims.iss, added);
    let identity = stale.claims().sub.clone();
    std::fs::remove_file(store.keys().path(&identity).unwrap()).unwrap();
    let error = store.add_signing_key(None, 1_000).unwrap_err();
    assert!(crate::reason::reason(&error).contains(&identity), "{error}");
    assert!(tenant(&store, PlanName::Free, 1_000).claims.iss == added, "daily work needs no identity");
}

#[test]
fn two_operators_at_once_lose_nothing() {
    let (folder, _store) = store();
    let path = folder.path();
    std::thread::scope(|scope| {
        for worker in 0..4_i64 {
            scope.spawn(move || {
                let store = OperatorStore::open(path.to_owned(), 1_000).unwrap();
                for step in 0..5 {
                    let user = SigningKey::generate(KeyKind::User).public().to_owned();
                    store.revoke_user("acme-corp", &user, 1_000 + step).unwrap();
                    let name = format!("tenant-{worker}-{step}");
                    let render =
                        |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(PlanName::Free), own, "A", keys);
                    store.ensure_account(&name, &Role::TENANT, 1_000, render).unwrap();
                    store.ensure_account("shared", &Role::TENANT, 1_000, render).unwrap();
                }
            });
        }
    });
    let store = OperatorStore::open(path.to_owned(), 1_000).unwrap();
    assert_eq!(store.book("acme-corp").unwrap().revocations.len(), 20);
    assert_eq!(store.account_names().len(), 20 + 3);
    for name in store.account_names() {
        assert!(store.book(&name).unwrap().is_ours(&store.account(&name).unwrap().unwrap().token), "{name}");
    }
}

#[test]
fn a_removed_account_leaves_nothing_behind_and_its_name_opens_nothing_old() {
    let (folder, store) = store();
    let before = store.account("acme-corp").unwrap().unwrap();
    let removed = store.remove_account("acme-corp", 2_000).unwrap();
    assert_eq!(removed.seeds, 5, "its own and four roles'");
    assert!(removed.folder.join("account/acme-corp.jwt").exists() && removed.folder.join("book.json").exists());
    assert_eq!(store.account_names(), [SYSTEM]);
    let left = files(&folder.path().join("keys"));
    assert!(!left.keys().any(|path| path.to_string_lossy().contains(before.key.as_str())));
    assert!(matches!(store.remove_account("acme-corp", 2_000), Err(OperatorError::NoAccount(_))));
    assert!(matches!(store.remove_account(SYSTEM, 2_000), Err(OperatorError::System)));
    for bad in ["", "..", "a/b", ".", "../stores", "a\\b"] {
        assert!(matches!(store.remove_account(bad, 2_000), Err(OperatorError::Name(_))), "{bad:?}");
    }
    assert_ne!(tenant(&store, PlanName::Free, 3_000).key, before.key);
}
