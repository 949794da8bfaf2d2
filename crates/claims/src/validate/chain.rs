//! Whether claims may be trusted because of the claims above them, as servers and nsc decide it.

use super::Profile;
use super::issue::{Issue, Issues};
use super::template::{Function, injection, used_functions};
use crate::token::Claims;
use crate::{AccountBody, OperatorBody, Scope, ScopedKey, UserBody};

/// An operator signs itself, with its identity.
#[must_use]
pub fn check_operator(operator: &Claims<OperatorBody>) -> Vec<Issue> {
    let mut issues = Issues::new(Profile::Library);
    if !operator.is_self_signed() {
        let rule = "an operator is signed by its own identity key: sign it again with that";
        issues.block("iss", format!("{} is not the operator {}: {rule}", operator.iss, operator.sub));
    }
    issues.found
}

/// An account is signed by one of the operator's keys, and SYS has no JetStream.
#[must_use]
pub fn check_account(operator: &Claims<OperatorBody>, account: &Claims<AccountBody>) -> Vec<Issue> {
    let mut issues = Issues::new(Profile::Library);
    let is_identity = account.iss == operator.sub;
    let is_signing_key = operator.nats.signing_keys.contains(&account.iss);
    if is_identity && operator.nats.strict_signing_key_usage && !is_signing_key {
        let rule = "strict_signing_key_usage lets it sign only itself: sign with one of the signing keys";
        issues.block("iss", format!("{} is the operator's identity: {rule}", account.iss));
    } else if !is_identity && !is_signing_key {
        let rule = "accounts are signed by the operator or one of its signing keys: sign it again with such a key";
        issues.block("iss", format!("{} is no key of operator {}: {rule}", account.iss, operator.sub));
    }
    let is_system = operator.nats.system_account.as_ref() == Some(&account.sub);
    if is_system && account.nats.limits.has_jetstream() {
        issues.block("limits", "the system account has JetStream: servers refuse that, set its storage to 0");
    }
    issues.found
}

/// A user is signed by its account or one of that account's signing keys, and brings nothing when the key is scoped.
#[must_use]
pub fn check_user(
    operator: &Claims<OperatorBody>,
    account: &Claims<AccountBody>,
    user: &Claims<UserBody>,
) -> Vec<Issue> {
    let mut issues = Issues::new(Profile::Library);
    let is_identity = user.iss == account.sub;
    let key = account.nats.signing_key(&user.iss);
    if is_identity && operator.nats.strict_signing_key_usage && key.is_none() {
        let rule = "strict_signing_key_usage asks for a signing key: sign with one";
        issues.block("iss", format!("{} is the account's identity: {rule}", user.iss));
    } else if !is_identity && key.is_none() {
        let rule = "users are signed by their account or one of its signing keys: sign it again with such a key";
        issues.block("iss", format!("{} is no key of account {}: {rule}", user.iss, account.sub));
    }
    let issuer_account = &user.nats.issuer_account;
    if *issuer_account != account.sub && (!is_identity || !issuer_account.is_empty()) {
        let rule = "it is the account's key whenever a signing key signs: set it";
        issues.block("issuer_account", format!("{issuer_account:?} is not the account {}: {rule}", account.sub));
    }
    if key.is_some_and(|key| key.scope().is_some()) && !user.nats.is_scoped() {
        let rule = "a scoped key gives all rights, so the user has no permission and no limit, not even -1: drop them";
        issues.block("pub", format!("the user brings rights of its own: {rule}"));
    }
    if account.nats.revocations.is_revoked(&user.sub, user.iat) {
        let rule = "the account revoked what was issued until then: issue it again, or clear the revocation";
        issues.block("iat", format!("{} of {} is revoked: {rule}", user.iat, user.sub));
    }
    if let Some(ScopedKey::Scoped(scope)) = key {
        issues.found.extend(check_template_values(account, user, scope));
    }
    issues.found
}

/// What servers would fill into the templates of `scope` is there, and each value is one literal token.
#[must_use]
pub fn check_template_values(account: &Claims<AccountBody>, user: &Claims<UserBody>, scope: &Scope) -> Vec<Issue> {
    let mut issues = Issues::new(Profile::Ours);
    for function in used_functions(&scope.template) {
        let (path, values): (String, Vec<&str>) = match function {
            Function::Name => ("name".to_owned(), vec![&user.name]),
            Function::Subject => ("sub".to_owned(), vec![&user.sub]),
            Function::AccountName => ("account.name".to_owned(), vec![&account.name]),
            Function::AccountSubject => ("issuer_account".to_owned(), vec![&user.nats.issuer_account]),
            Function::Tag(key) => (format!("tags[{key}:]"), user.nats.tags.values(key).collect()),
            Function::AccountTag(key) => (format!("account.tags[{key}:]"), account.nats.tags.values(key).collect()),
        };
        if values.is_empty() {
            let rule = "servers then drop the right, or refuse the user when it is a denial: add the tag";
            issues.ours(&path, format!("role {:?} asks for a value that is not there: {rule}", scope.role));
        }
        values.into_iter().filter_map(injection).for_each(|problem| issues.ours(&path, problem));
    }
    issues.found
}
