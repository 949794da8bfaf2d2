//! Exports and imports.

use super::account::check_info;
use super::check_subject;
use super::issue::Issues;
use super::others::check_activation;
use crate::account::{Export, ExportKind, Import, Sampling, ServiceLatency};
use crate::subject::{
    count_stars, ends_open, has_wildcards, is_contained_in, library_problem, reference, without_references,
};
use crate::token::decode;
use crate::{ActivationBody, KeyKind};

pub(super) fn check_exports(exports: &[Export], issues: &mut Issues) {
    for (index, export) in exports.iter().enumerate() {
        check_export(&format!("exports[{index}]."), export, issues);
        let other = exports.iter().enumerate().find(|(other, outer)| {
            *other != index && outer.kind == export.kind && is_contained_in(&export.subject, &outer.subject)
        });
        if let Some((other, outer)) = other {
            let (inner, kind) = (&export.subject, export.kind.name());
            let rule = "each subject is exported once: take one of them away";
            let message = format!("{inner:?} is in {:?} of exports[{other}], a {kind} too: {rule}", outer.subject);
            issues.block(&format!("exports[{index}].subject"), message);
        }
    }
}

fn check_export(base: &str, export: &Export, issues: &mut Issues) {
    let is_stream = export.kind == ExportKind::Stream;
    let services_only = [
        ("response_type", export.response_type.is_some()),
        ("allow_trace", export.allow_trace),
        ("service_latency", export.service_latency.is_some()),
        ("response_threshold", export.response_threshold > 0),
    ];
    for (name, _) in services_only.into_iter().filter(|(_, is_said)| is_stream && *is_said) {
        issues.block(&format!("{base}{name}"), "is said of a stream: it is for services only, take it away");
    }
    if export.response_threshold < 0 {
        let message = format!("{} is negative: it is a time to wait, in nanoseconds", export.response_threshold);
        issues.block(&format!("{base}response_threshold"), message);
    }
    if let Some(latency) = &export.service_latency {
        check_latency(&format!("{base}service_latency."), latency, issues);
    }
    check_subject(&format!("{base}subject"), &export.subject, issues);
    check_token_position(base, export, issues);
    check_info(base, &export.description, &export.info_url, issues);
}

fn check_latency(base: &str, latency: &ServiceLatency, issues: &mut Issues) {
    if let Sampling::Percent(percent) = latency.sampling
        && !(1..=100).contains(&percent)
    {
        issues.block(&format!("{base}sampling"), format!("{percent} is no percentage: write 1 to 100, or \"headers\""));
    }
    check_subject(&format!("{base}results"), &latency.results, issues);
    if has_wildcards(&latency.results) {
        let rule = "results are published, so it has no wildcards: name the subject";
        issues.block(&format!("{base}results"), format!("{:?}: {rule}", latency.results));
    }
}

fn check_token_position(base: &str, export: &Export, issues: &mut Issues) {
    let Some(position) = export.account_token_position.filter(|position| *position > 0) else { return };
    let token = usize::try_from(position - 1).ok().and_then(|index| export.subject.split('.').nth(index));
    if token != Some("*") {
        let found = token.map_or_else(|| "no token".to_owned(), |token| format!("{token:?}"));
        let rule = "the importer's key stands in place of a '*': give the place of one, counted from 1";
        issues.block(
            &format!("{base}account_token_position"),
            format!("{position} is {found} of {:?}: {rule}", export.subject),
        );
    }
}

pub(super) fn check_imports(imports: &[Import], own_key: &str, issues: &mut Issues) {
    let mut seen: Vec<(usize, &str, String)> = Vec::new();
    for (index, import) in imports.iter().enumerate() {
        let base = format!("imports[{index}].");
        if import.kind == ExportKind::Service {
            let own = local_subject(import);
            let other = seen.iter().find(|(_, account, subject)| {
                *account == import.account && (is_contained_in(&own, subject) || is_contained_in(subject, &own))
            });
            if let Some((other, account, subject)) = other {
                let rule = "services of one account are imported under different subjects: change one";
                let message = format!("{own:?} overlaps {subject:?} of imports[{other}] from {account}: {rule}");
                issues.block(&format!("{base}local_subject"), message);
            }
            seen.push((index, &import.account, own));
        }
        check_import(&base, import, own_key, issues);
    }
}

/// As the importing account calls it.
fn local_subject(import: &Import) -> String {
    if !import.to.is_empty() {
        return import.to.clone();
    }
    let own = if import.local_subject.is_empty() { &import.subject } else { &import.local_subject };
    if import.local_subject.is_empty() { own.clone() } else { without_references(own) }
}

fn check_import(base: &str, import: &Import, own_key: &str, issues: &mut Issues) {
    let is_service = import.kind == ExportKind::Service;
    if is_service && import.allow_trace {
        issues.block(&format!("{base}allow_trace"), "is said of a service: it is for streams only, take it away");
    }
    if !is_service && import.share {
        issues.block(&format!("{base}share"), "is said of a stream: it is for services only, take it away");
    }
    if import.account.is_empty() {
        issues.block(&format!("{base}account"), "is empty: name the key of the account that exports");
    } else if KeyKind::of_public(&import.account) != Some(KeyKind::Account) {
        issues.ours(&format!("{base}account"), format!("{:?} is not an account's public key: name it", import.account));
    }
    if !import.to.is_empty() {
        issues.warn(&format!("{base}to"), "is deprecated: say local_subject in its place");
    }
    check_subject(&format!("{base}subject"), &import.subject, issues);
    if !import.local_subject.is_empty() {
        check_local_subject(&format!("{base}local_subject"), import, issues);
        if !import.to.is_empty() {
            issues.block(&format!("{base}to"), "is said beside local_subject, which replaces it: take it away");
        }
    }
    if !import.token.is_empty() {
        check_token(base, import, own_key, issues);
    }
}

fn check_local_subject(path: &str, import: &Import, issues: &mut Issues) {
    let (local, from) = (&import.local_subject, &import.subject);
    check_subject(path, local, issues);
    if library_problem(local).is_some() {
        return;
    }
    if ends_open(local) != ends_open(from) {
        let rule = "both end in '>' or neither: change one of them";
        issues.block(path, format!("{local:?} and the subject {from:?} end differently: {rule}"));
    }
    let stars = count_stars(from);
    let references: Vec<i64> = local.split('.').filter_map(reference).collect();
    let most = i64::try_from(stars).unwrap_or(i64::MAX);
    let (known, unknown): (Vec<i64>, Vec<i64>) = references.into_iter().partition(|number| *number <= most);
    for number in &unknown {
        let rule = format!("the subject has {stars} wildcards: count them from $1");
        issues.block(path, format!("${number} in {local:?} stands for nothing in {from:?}: {rule}"));
    }
    if count_stars(local) + known.len() != stars {
        let rule = "each '*' of the subject is there once, as '*' or $1, $2: add or take away";
        issues.block(path, format!("{local:?} does not have the {stars} wildcards of {from:?}: {rule}"));
    }
    if issues.is_ours() && known.iter().any(|number| *number < 1) {
        issues.ours(path, format!("{local:?} refers to a wildcard before the first: count them from $1"));
    }
}

fn check_token(base: &str, import: &Import, own_key: &str, issues: &mut Issues) {
    let path = format!("{base}token");
    let activation = match decode::<ActivationBody>(&import.token) {
        Ok(activation) => activation,
        Err(error) => {
            return issues.block(&path, format!("is no activation token ({error}): ask the exporter for one"));
        }
    };
    let body = &activation.nats;
    if activation.iss != import.account && body.issuer_account != import.account {
        let rule = "the exporter activates its own exports: ask that account for a token";
        issues.block(&path, format!("is issued by {}, the import is from {}: {rule}", activation.iss, import.account));
    }
    if activation.sub != own_key {
        let rule = "a token is for one account: ask the exporter for one of your own";
        issues.block(&path, format!("is for {}, this account is {own_key}: {rule}", activation.sub));
    }
    if body.shared.is_some_and(|kind| kind != import.kind) {
        issues.block(&path, format!("does not activate a {}: ask the exporter for such a token", import.kind.name()));
    }
    let mut own = Issues::new(issues.profile);
    check_activation(body, &mut own);
    for issue in own.found {
        issues.found.push(super::Issue { path: format!("{path}.{}", issue.path), ..issue });
    }
    let is_service_to = import.kind == ExportKind::Service && !import.to.is_empty();
    let wanted = if is_service_to { &import.to } else { &import.subject };
    if !is_contained_in(wanted, &body.subject) {
        let rule = "the import stays within the token's subject: narrow it, or ask for a wider token";
        issues.block(&path, format!("activates {:?}, the import is {wanted:?}: {rule}", body.subject));
    }
}
