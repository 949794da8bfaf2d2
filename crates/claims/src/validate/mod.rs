//! Whether claims are valid: every check of the Go library, with the same verdict, and our own beside them.
//!
//! Pure: the time is an argument. Whether the issuer may be trusted is what `chain` says, from the claims above.

mod account;
mod chain;
mod issue;
mod others;
mod rights;
mod sharing;
mod template;
mod text;

use crate::any::with_claims;
use crate::key::KeyKind;
use crate::subject;
use crate::token::Claims;
use crate::{AnyClaims, Body};
pub use chain::{check_account, check_operator, check_template_values, check_user};
use issue::Issues;
pub use issue::{Issue, Level};

/// How far the clocks of those who sign and those who look may be apart. Signing twice in a second dates a token ahead, too.
const CLOCK_SLACK_S: i64 = 300;

/// Whose rules count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// The verdict is the Go library's; what we would not do ourselves is a warning.
    #[default]
    Library,
    /// For what we sign ourselves: our own rules block as well.
    Ours,
}

/// What is checked in the body of one kind of claims.
trait Validate: Body + Sized {
    fn find_issues(claims: &Claims<Self>, issues: &mut Issues);
}

/// The kinds of claims that can be validated: all that there are.
#[expect(private_bounds, reason = "nobody else adds kinds of claims")]
pub trait Checked: Validate {}
impl<B: Validate> Checked for B {}

/// The verdict of the Go library, and warnings of our own. `now` in unix seconds.
#[must_use]
pub fn validate<B: Checked>(claims: &Claims<B>, now: i64) -> Vec<Issue> {
    validate_as(claims, now, Profile::Library)
}

/// As [`validate`], by the rules of `profile`.
#[must_use]
pub fn validate_as<B: Checked>(claims: &Claims<B>, now: i64, profile: Profile) -> Vec<Issue> {
    let mut issues = Issues::new(profile);
    if let Some(exp) = claims.exp.filter(|exp| *exp > 0 && now > *exp) {
        issues.time("exp", format!("expired at {exp}, it is {now}: issue it again with a later time"));
    }
    if let Some(nbf) = claims.nbf.filter(|nbf| *nbf > now) {
        issues.time("nbf", format!("begins at {nbf}, it is {now}: wait, or issue it again with an earlier time"));
    }
    if profile == Profile::Ours && claims.iat > now + CLOCK_SLACK_S {
        let issued = claims.iat;
        issues.time(
            "iat",
            format!("issued at {issued}, it is {now}: whose clock was ahead? What is signed next is dated even later"),
        );
    }
    B::find_issues(claims, &mut issues);
    issues.found
}

/// As [`validate_as`], for claims of any kind.
#[must_use]
pub fn validate_any(claims: &AnyClaims, now: i64, profile: Profile) -> Vec<Issue> {
    with_claims!(claims, claims => validate_as(claims, now, profile))
}

/// Whether any of them forbids the use of the claims at any time.
#[must_use]
pub fn is_blocking(issues: &[Issue]) -> bool {
    issues.iter().any(|issue| issue.level == Level::Blocking)
}

fn check_subject(path: &str, value: &str, issues: &mut Issues) {
    if let Some(problem) = subject::library_problem(value) {
        issues.block(path, problem);
    } else if let Some(problem) = subject::strict_problem(value) {
        issues.ours(path, problem);
    }
}

fn check_key(path: &str, value: &str, kind: KeyKind, issues: &mut Issues) {
    if KeyKind::of_public(value) != Some(kind) {
        let prefix = kind.prefix();
        issues.block(
            path,
            format!("{value:?} is not a public key of kind {kind}: give the one that begins with {prefix}"),
        );
    }
}

/// `issuer_account`, where it is said.
fn check_issuer_account(value: &str, issues: &mut Issues) {
    if !value.is_empty() {
        check_key("issuer_account", value, KeyKind::Account, issues);
    }
}
