//! Accounts: limits, keys, mappings, who decides about connections.

use std::collections::BTreeMap;

use super::issue::Issues;
use super::sharing::{check_exports, check_imports};
use super::text::parse_address;
use super::{Validate, check_key, check_subject};
use crate::account::{AccountLimits, ExternalAuthorization, MessageTrace, ScopedKey, Targets};
use crate::key::{KeyKind, is_public_curve_key};
use crate::subject::has_wildcards;
use crate::token::Claims;
use crate::{AccountBody, JetStreamLimits, UNLIMITED};

const INFO_BYTES_MAX: usize = 8 * 1024;

impl Validate for AccountBody {
    fn find_issues(claims: &Claims<Self>, issues: &mut Issues) {
        let body = &claims.nats;
        check_imports(&body.imports, &claims.sub, issues);
        check_exports(&body.exports, issues);
        check_limits(&body.limits, issues);
        check_counts(body, issues);
        let defaults = &body.default_permissions;
        super::rights::check_permissions("default_permissions.", &defaults.publish, &defaults.subscribe, issues);
        check_mappings(&body.mappings, issues);
        check_authorization(&body.authorization, issues);
        if let Some(trace) = &body.trace {
            check_trace(trace, issues);
        }
        check_signing_keys(&body.signing_keys, issues);
        check_info("", &body.description, &body.info_url, issues);
        if KeyKind::of_public(&claims.iss) == Some(KeyKind::Account) && !body.limits.is_empty() {
            issues.warn("limits", "an account that signs itself cannot set its limits: let the operator sign it");
        }
    }
}

fn check_limits(limits: &AccountLimits, issues: &mut Issues) {
    if !limits.tiered_limits.is_empty() && limits.flat_jetstream() != JetStreamLimits::default() {
        let rule = "limits of JetStream are either flat or by tier: take the flat ones away";
        issues.block("limits.tiered_limits", format!("there are flat limits beside tiers: {rule}"));
    }
    if limits.tiered_limits.contains_key("") {
        issues.block("limits.tiered_limits", "\"\" is no tier: tiers are called R1, R3; name it");
    }
    if issues.is_ours() {
        for name in limits.unlimited() {
            issues.warn(&format!("limits.{name}"), "is unlimited: a finite number keeps one tenant from using up all");
        }
    }
}

/// A number that is not said is 0, and then none is allowed.
fn check_counts(body: &AccountBody, issues: &mut Issues) {
    let counts =
        [("imports", body.imports.len(), body.limits.imports), ("exports", body.exports.len(), body.limits.exports)];
    for (name, count, limit) in counts {
        if limit != UNLIMITED && i64::try_from(count).unwrap_or(i64::MAX) > limit {
            let rule = format!("limits.{name} allows {limit}: raise it, or take some away");
            issues.block(name, format!("there are {count} {name}, {rule}"));
        }
    }
    if body.limits.exports == UNLIMITED || body.limits.wildcards {
        return;
    }
    for (index, export) in body.exports.iter().enumerate().filter(|(_, export)| has_wildcards(&export.subject)) {
        let rule = "limits.wildcards does not allow wildcards in exports: set it, or name the subject";
        issues.block(&format!("exports[{index}].subject"), format!("{:?}: {rule}", export.subject));
    }
}

fn check_mappings(mappings: &BTreeMap<String, Targets>, issues: &mut Issues) {
    for (from, Targets(targets)) in mappings {
        let path = format!("mappings[{from:?}]");
        check_subject(&path, from, issues);
        let mut sums: BTreeMap<&str, u32> = BTreeMap::new();
        for (index, target) in targets.iter().enumerate() {
            let path = format!("{path}[{index}]");
            check_subject(&format!("{path}.subject"), &target.subject, issues);
            if target.percent() > 100 {
                issues.block(
                    &format!("{path}.weight"),
                    format!("{} is more than 100: weights are percentages", target.weight),
                );
            }
            *sums.entry(&target.cluster).or_default() += u32::from(target.percent());
        }
        for (cluster, sum) in sums.into_iter().filter(|(_, sum)| *sum > 100) {
            let place = if cluster.is_empty() { String::new() } else { format!(" in cluster {cluster:?}") };
            let rule = "the weights of one subject are at most 100 together: lower some (one that is not said is 100)";
            issues.block(&path, format!("the weights{place} are {sum} together: {rule}"));
        }
    }
}

fn check_authorization(authorization: &ExternalAuthorization, issues: &mut Issues) {
    let ExternalAuthorization { auth_users, allowed_accounts, xkey, .. } = authorization;
    if auth_users.is_empty() && !allowed_accounts.is_empty() {
        let rule = "accounts need users of the service that decides: name those, or take the accounts away";
        issues.block("authorization.allowed_accounts", format!("there are accounts without auth_users: {rule}"));
    }
    for (index, user) in auth_users.iter().enumerate() {
        check_key(&format!("authorization.auth_users[{index}]"), user, KeyKind::User, issues);
    }
    for (index, account) in allowed_accounts.iter().enumerate() {
        let path = format!("authorization.allowed_accounts[{index}]");
        if account != "*" {
            check_key(&path, account, KeyKind::Account, issues);
        } else if allowed_accounts.len() > 1 {
            issues
                .block(&path, "\"*\" stands beside others: it allows every account, so leave it alone or take it away");
        }
    }
    if !xkey.is_empty() && !is_public_curve_key(xkey) {
        issues.block(
            "authorization.xkey",
            format!("{xkey:?} is not a public curve key: give the one that begins with X"),
        );
    }
}

fn check_trace(trace: &MessageTrace, issues: &mut Issues) {
    check_subject("trace.dest", &trace.destination, issues);
    if has_wildcards(&trace.destination) {
        let rule = "traces are published, so it has no wildcards: name the subject";
        issues.block("trace.dest", format!("{:?}: {rule}", trace.destination));
    }
    if !(0..=100).contains(&trace.sampling) {
        issues.block("trace.sampling", format!("{} is no percentage: write 1 to 100", trace.sampling));
    }
}

fn check_signing_keys(keys: &[ScopedKey], issues: &mut Issues) {
    for (index, key) in keys.iter().enumerate() {
        let path = format!("signing_keys[{index}]");
        check_key(&path, key.key(), KeyKind::Account, issues);
        if keys[..index].iter().any(|earlier| earlier.key() == key.key()) {
            issues.ours(&path, format!("{} is there twice, and only the last one counts: take one away", key.key()));
        }
        match key {
            ScopedKey::Scoped(scope) => {
                super::template::check_name(&format!("{path}.role"), &scope.role, issues);
                super::rights::check_template(&format!("{path}.template."), &scope.template, issues);
            }
            ScopedKey::Plain(key) if issues.is_ours() => {
                issues.warn(&path, format!("{key} is not scoped and gives any right: use a role's key"));
            }
            ScopedKey::Plain(_) => {}
        }
    }
}

pub(super) fn check_info(base: &str, description: &str, url: &str, issues: &mut Issues) {
    for (name, text) in [("description", description), ("info_url", url)] {
        if text.len() > INFO_BYTES_MAX {
            let path = format!("{base}{name}");
            issues.block(&path, format!("it has {} bytes, {INFO_BYTES_MAX} are allowed: shorten it", text.len()));
        }
    }
    let is_whole = parse_address(url).is_some_and(|address| !address.scheme.is_empty() && !address.host.is_empty());
    if !url.is_empty() && !is_whole {
        let rule = "it has a protocol and a host, for example https://host/page";
        issues.block(&format!("{base}info_url"), format!("{url:?} is no address: {rule}"));
    }
}
