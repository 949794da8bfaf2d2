//! What the commands that change a platform share: opening it, its connections, and saying what happened.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_bus::Role;
use serde::Serialize;
use serde_json::Value;

use super::exit::{FAILED, Failure, INVALID, NOT_READY, UNREACHABLE};
use super::show::{json_lines, write_lines};
use crate::tenancy::{Act, Links, Preview, Tenancy, TenancyError};
use crate::up::PlatformError;

/// What takes longer says so.
const QUIET_LIMIT: Duration = Duration::from_secs(2);

/// How a command is to behave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    pub(super) is_json: bool,
    pub(super) is_dry: bool,
}

impl From<TenancyError> for Failure {
    fn from(error: TenancyError) -> Self {
        let is_away = matches!(
            &error,
            TenancyError::NotAsked(_) | TenancyError::Platform(PlatformError::Admit(..) | PlatformError::Apart(_))
        );
        let code = if error.is_not_converged() {
            NOT_READY
        } else if is_away {
            UNREACHABLE
        } else if error.is_invalid() {
            INVALID
        } else {
            FAILED
        };
        Self::new(code, &error)
    }
}

pub(super) fn open(home: &Path) -> Result<Tenancy, Failure> {
    let tenancy = Tenancy::open(home.to_owned())?;
    for act in tenancy.journal.under_way().map_err(TenancyError::Journal)? {
        let Some((first, last)) = act.first().zip(act.last()) else { continue };
        note(&format!(
            "{} of {} was begun and is not done (last step: {}): {}",
            first.act.as_str(),
            first.about,
            last.step,
            way_out(first.act)
        ));
    }
    Ok(tenancy)
}

/// What ends an act that was cut short.
fn way_out(act: Act) -> &'static str {
    match act {
        Act::AddTenant => "say it again, or with --undo",
        Act::AddPerson => "say it again, or revoke the person",
        Act::RevokePerson | Act::SuspendTenant | Act::RemoveSite | Act::RemovePoller => {
            "say it again, or `bulkhead push`"
        }
        Act::PushAccounts => "`bulkhead push`",
        Act::EnrolPoller | Act::RenewPoller => {
            "its machine does when it asks again; revoking or removing the poller ends it"
        }
        Act::CopyRows => "say it again, or offboard and purge the copy",
        Act::InvitePoller | Act::AddPoller => "say it again, or remove the poller",
        Act::UndoTenant
        | Act::ChangeTenant
        | Act::ResumeTenant
        | Act::OffboardTenant
        | Act::RestoreTenant
        | Act::PurgeTenant
        | Act::RestoreRows
        | Act::RotateRole
        | Act::AddSite
        | Act::ChangePoller => "say it again",
    }
}

/// What takes something away is written down before anybody is told: whoever is away hears of it later.
pub(super) async fn taken_away<T>(doing: impl Future<Output = Result<T, TenancyError>>) -> Result<T, Failure> {
    let mut doing = std::pin::pin!(doing);
    let done = match tokio::time::timeout(QUIET_LIMIT, doing.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            note("it is written down; waiting for the hub and the database to take it");
            doing.await
        }
    };
    done.map_err(|error| {
        let is_away = matches!(error, TenancyError::Rows(_) | TenancyError::Platform(PlatformError::Admit(..)));
        let failure = Failure::from(error);
        if !is_away {
            return failure;
        }
        let why = failure.message();
        Failure::not_ready(format!(
            "it is written down here, and not in force everywhere: {why}; say it again, or `bulkhead push`, when that \
             is there"
        ))
    })
}

/// Says something beside what is asked for; nobody may be listening.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "bulkhead: {text}");
}

/// Announces the steps of what takes longer than a moment.
pub(super) fn announcer(is_json: bool) -> impl Fn(&str) {
    let started = Instant::now();
    move |step: &str| {
        if !is_json {
            let _ = writeln!(std::io::stderr(), "[{:5.1}s] {step}", started.elapsed().as_secs_f64());
        }
    }
}

/// Tells how many of many are done, a line each time a twentieth is.
pub(super) fn counter(is_json: bool, all: usize, what: &'static str) -> impl Fn(usize) {
    let step = (all / 20).max(1);
    move |done| {
        if !is_json && all > 20 && (done.is_multiple_of(step) || done == all) {
            let _ = writeln!(std::io::stderr(), "{done} of {all} {what}");
        }
    }
}

/// One line for people or one object for programs.
pub(super) fn say<T: Serialize>(is_json: bool, text: &str, value: &T) -> Result<(), Failure> {
    if is_json { write_lines(&json_lines(std::slice::from_ref(value))?) } else { write_lines(&format!("{text}\n")) }
}

pub(super) fn short(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}

/// What a change would do.
pub(super) fn show_preview(preview: &Preview, is_json: bool) -> Result<(), Failure> {
    if is_json {
        return write_lines(&json_lines(std::slice::from_ref(preview))?);
    }
    let mut text = String::new();
    if preview.fields.is_empty() {
        text.push_str(&format!("{}: nothing changes\n", preview.account));
    } else {
        text.push_str(&format!("{}: {} fields change\n", preview.account, preview.fields.len()));
    }
    for field in &preview.fields {
        // A token leaves out what is zero, and of a limit nothing reads like everything.
        let shown = |value: Option<&Value>| match value {
            None if field.field.contains("limits.") => "0".to_owned(),
            value => short(value),
        };
        text.push_str(&format!(
            "  {}: {} -> {}\n",
            field.field,
            shown(field.theirs.as_ref()),
            shown(field.ours.as_ref())
        ));
    }
    text.push_str(&format!("{} connections would close\n", preview.closing.len()));
    if !preview.unasked.is_empty() {
        text.push_str(&format!("and whoever is at {}, which does not answer\n", preview.unasked.join(", ")));
    }
    for closing in &preview.closing {
        text.push_str(&format!(
            "  {} {} {} ({}) on {}: {}\n",
            closing.kind, closing.cid, closing.user, closing.role, closing.server, closing.why
        ));
    }
    write_lines(&text)
}

/// Refuses a change that closes more connections than are allowed.
pub(super) fn check_disconnects(closing: usize, most: Option<usize>) -> Result<(), Failure> {
    match most {
        Some(most) if closing > most => Err(Failure::refused_change(format!(
            "it would close {closing} connections, and --max-disconnects allows {most}: nothing was changed; --dry-run shows \
             whose they are"
        ))),
        Some(_) | None => Ok(()),
    }
}

/// After a change that may concern live streams: sees to all that wait.
pub(super) async fn reconcile(tenancy: &Tenancy, links: &Links) -> Result<(), Failure> {
    tenancy.reconcile_live(Some(links)).await?;
    Ok(())
}

/// A role by its name.
pub(super) fn role_named(text: &str) -> Result<Role, String> {
    let all = Role::ALL;
    let known = || all.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
    let shown: String = text.chars().take(60).collect();
    all.iter()
        .copied()
        .find(|role| role.name() == text)
        .ok_or_else(|| format!("there is no role {shown:?}: {}", known()))
}
