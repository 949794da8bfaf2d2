//! `bulkhead validate` and `bulkhead expirations`: what is wrong with tokens, and what comes to its end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_claims::decode_any;
use bulkhead_claims::validate::{Issue, Level, Profile, check_account, check_operator, validate_any, validate_as};
use bulkhead_runtime::now_ms;
use clap::Args;
use serde::Serialize;

use super::desk::open;
use super::exit::{DRIFT, Failure};
use super::number::whole;
use super::show::{Row, moment, print_rows_or};
use crate::files::read_text;
use crate::gate::PROBE;
use crate::reason::reason;
use crate::tenancy::TenancyError;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// A token in a file, instead of the home's own: anybody's, judged as the Go library does.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Warnings as well.
    #[arg(long)]
    verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExpirationsArgs {
    /// What comes to its end within so many days.
    #[arg(long, default_value_t = 14, value_parser = whole::<u32>(0..=36_600))]
    within_days: u32,
}

#[derive(Serialize)]
struct IssueLine {
    token: String,
    level: &'static str,
    path: String,
    message: String,
}

impl IssueLine {
    fn new(token: &str, issue: &Issue) -> Self {
        let level = match issue.level {
            Level::Blocking => "blocking",
            Level::Time => "time",
            Level::Warning => "warning",
        };
        Self { token: token.to_owned(), level, path: issue.path.clone(), message: issue.message.clone() }
    }
}

impl Row for IssueLine {
    const HEADER: &'static [&'static str] = &["TOKEN", "LEVEL", "FIELD", "WHAT IS WRONG"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.token.clone(), self.level.to_owned(), self.path.clone(), self.message.clone()]
    }
}

fn found(home: &Path, args: &ValidateArgs, now: i64) -> Result<Vec<IssueLine>, Failure> {
    let mut lines = Vec::new();
    let mut add =
        |token: &str, issues: Vec<Issue>| lines.extend(issues.iter().map(|issue| IssueLine::new(token, issue)));
    if let Some(path) = &args.file {
        let text = read_text(path).map_err(|error| Failure::invalid("--file", error))?;
        let claims = decode_any(text.trim()).map_err(|error| Failure::invalid("--file", error))?;
        add(&path.display().to_string(), validate_any(&claims, now, Profile::Library));
        return Ok(lines);
    }
    let store = super::store::open_store(home)?;
    let operator = store.claims();
    add(store.name(), validate_as(operator, now, Profile::Ours));
    add(store.name(), check_operator(operator));
    for name in store.account_names() {
        match store.account(&name) {
            Ok(Some(account)) => {
                add(&name, validate_as(&account.claims, now, Profile::Ours));
                add(&name, check_account(operator, &account.claims));
            }
            Ok(None) => {}
            // One that is not readable does not hide what is wrong with the others.
            Err(error) => {
                let message = reason(&error);
                add(&name, vec![Issue { level: Level::Blocking, path: "token".to_owned(), message }]);
            }
        }
    }
    Ok(lines)
}

/// Prints what is wrong; ends with 2 when something blocks or is out of its time.
pub(super) fn validate(home: &Path, args: &ValidateArgs, is_json: bool) -> Result<(), Failure> {
    let all = found(home, args, now_ms() / 1_000)?;
    let is_bad = all.iter().any(|line| line.level != "warning");
    let shown: Vec<IssueLine> = all.into_iter().filter(|line| args.verbose || line.level != "warning").collect();
    print_rows_or("every rule holds", &shown, is_json, now_ms())?;
    if is_bad { Err(Failure::silent(DRIFT)) } else { Ok(()) }
}

#[derive(Serialize)]
struct EndLine {
    /// Unix seconds.
    ends: i64,
    what: &'static str,
    whose: String,
}

impl Row for EndLine {
    const HEADER: &'static [&'static str] = &["ENDS (UTC)", "WHAT", "WHOSE"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![moment(self.ends * 1_000, now_ms), self.what.to_owned(), self.whose.clone()]
    }
}

/// Prints what ends within the days that are asked for, the earliest first; ends with 2 when something does.
pub(super) fn expirations(home: &Path, args: &ExpirationsArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let authority = &tenancy.platform.authority;
    let failed = |error: crate::certificates::CertificateError| Failure::from(TenancyError::Certificate(error));
    // Of a name the newest counts: what was issued before it has been replaced.
    let mut newest: BTreeMap<String, i64> = BTreeMap::new();
    for name in authority.list_authorities().map_err(failed)? {
        let revoked = authority.list_revoked(&name).map_err(failed)?;
        let is_probe = |identity: &str| identity.ends_with(&format!("/user/{PROBE}"));
        // Provisioning's own, which ends in minutes and is made anew each time.
        for issued in authority.list_issued(&name).map_err(failed)?.into_iter().filter(|one| !is_probe(&one.identity)) {
            if !revoked.iter().any(|one| one.serial == issued.serial) {
                let end = newest.entry(issued.identity).or_default();
                *end = issued.not_after.unix_timestamp().max(*end);
            }
        }
    }
    let mut lines: Vec<EndLine> =
        newest.into_iter().map(|(whose, ends)| EndLine { ends, what: "certificate", whose }).collect();
    let until = tenancy.now_s() + i64::from(args.within_days) * 86_400;
    lines.retain(|line| line.ends <= until);
    lines.sort_by(|one, other| (one.ends, &one.whose).cmp(&(other.ends, &other.whose)));
    let none = format!("nothing ends within {} days", args.within_days);
    print_rows_or(&none, &lines, is_json, now_ms())?;
    if lines.is_empty() { Ok(()) } else { Err(Failure::silent(DRIFT)) }
}
