//! What users and templates may do.

use super::issue::Issues;
use super::text::{is_network, is_time_of_day, is_time_zone};
use super::{Validate, check_issuer_account, check_subject};
use crate::account::{PermissionSet, TimeRange};
use crate::token::Claims;
use crate::{PermissionTemplate, UserBody};

/// What a user and a template have in common.
struct Rights<'a> {
    publish: &'a PermissionSet,
    subscribe: &'a PermissionSet,
    src: &'a [String],
    times: &'a [TimeRange],
    times_location: &'a str,
}

impl Rights<'_> {
    fn check(&self, base: &str, issues: &mut Issues) {
        check_permissions(base, self.publish, self.subscribe, issues);
        for (index, network) in self.src.iter().enumerate().filter(|(_, network)| !is_network(network)) {
            let rule = "networks are written as address/bits, for example 10.0.0.0/8";
            issues.block(&format!("{base}src[{index}]"), format!("{network:?} is not a network: {rule}"));
        }
        for (index, range) in self.times.iter().enumerate() {
            for (name, value) in [("start", &range.start), ("end", &range.end)] {
                if !is_time_of_day(value) {
                    let path = format!("{base}times[{index}].{name}");
                    issues.block(&path, format!("{value:?} is not a time of day: write it as HH:MM:SS"));
                }
            }
        }
        let zone = self.times_location;
        if !zone.is_empty() && !is_time_zone(zone) {
            let rule = "name it as the time zone database does, for example Europe/Oslo";
            issues.block(&format!("{base}times_location"), format!("{zone:?} is not a time zone: {rule}"));
        }
    }
}

pub(super) fn check_permissions(base: &str, publish: &PermissionSet, subscribe: &PermissionSet, issues: &mut Issues) {
    for (side, set, may_queue) in [("pub", publish, false), ("sub", subscribe, true)] {
        for (list, subjects) in [("allow", &set.allow), ("deny", &set.deny)] {
            for (index, subject) in subjects.iter().enumerate() {
                check_permission(&format!("{base}{side}.{list}[{index}]"), subject, may_queue, issues);
            }
        }
    }
}

/// A subject, where one may subscribe with a space and a queue group behind it.
fn check_permission(path: &str, text: &str, may_queue: bool, issues: &mut Issues) {
    let parts: Vec<&str> = text.split(' ').collect();
    if parts.len() > 2 {
        let rule = "at most one space, between subject and queue group, is allowed: take the others away";
        return issues.block(path, format!("{text:?} has {} spaces: {rule}", parts.len() - 1));
    }
    parts.iter().for_each(|part| check_subject(path, part, issues));
    if parts.len() == 2 && !may_queue {
        issues.block(path, format!("{text:?} names a queue group: those are for subscribing only, take it away"));
    }
}

/// The library does not look at templates; what we find is a check of our own.
pub(super) fn check_template(base: &str, template: &PermissionTemplate, issues: &mut Issues) {
    let mut own = Issues::new(issues.profile);
    Rights {
        publish: &template.publish,
        subscribe: &template.subscribe,
        src: &template.src,
        times: &template.times,
        times_location: &template.times_location,
    }
    .check(base, &mut own);
    own.found.into_iter().for_each(|issue| issues.ours(&issue.path, issue.message));
    super::template::check_functions(base, template, issues);
}

impl Validate for UserBody {
    fn find_issues(claims: &Claims<Self>, issues: &mut Issues) {
        let body = &claims.nats;
        let (publish, subscribe) = (&body.publish, &body.subscribe);
        Rights { publish, subscribe, src: &body.src, times: &body.times, times_location: &body.times_location }
            .check("", issues);
        check_issuer_account(&body.issuer_account, issues);
        super::template::check_user_texts(&claims.name, &body.tags, issues);
    }
}
