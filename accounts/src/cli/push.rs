//! `bulkhead push` and `pull`: accounts on the hub's servers, against those of this home.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bulkhead_runtime::{Chain, now_ms};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::desk::{announcer, counter, note, open, reconcile, say, taken_away};
use super::exit::{Failure, NOT_READY, PARTIAL};
use super::show::{Row, print_rows};
use crate::files::write_public;
use crate::operator::AccountRecord;
use crate::resolver::{HeldAccounts, pull};
use crate::tenancy::{Links, Overwrite, Tenancy, TenancyError, ensure_gate};

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// Only these accounts, by name [default: all].
    accounts: Vec<String>,
    /// Overwrite what somebody else has put on the servers.
    #[arg(long)]
    force: bool,
    /// Only say what differs now, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// Write each token into this folder, as ACCOUNT-KEY.jwt.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// An account as the servers' disks have it.
#[derive(Serialize)]
struct Pulled {
    account: String,
    servers: BTreeSet<String>,
    tokens: usize,
}

impl Row for Pulled {
    const HEADER: &'static [&'static str] = &["ACCOUNT", "SERVERS", "TOKENS"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let servers = self.servers.iter().cloned().collect::<Vec<_>>().join(", ");
        vec![self.account.clone(), servers, self.tokens.to_string()]
    }
}

/// Refuses names that no account has.
pub(super) fn check_names(tenancy: &Tenancy, names: &[String]) -> Result<(), Failure> {
    const SHOWN_MOST: usize = 8;
    let known = tenancy.platform.operator.account_names();
    let Some(name) = names.iter().find(|name| !known.contains(name)) else { return Ok(()) };
    let mut shown = known.iter().take(SHOWN_MOST).cloned().collect::<Vec<_>>().join(", ");
    if known.len() > SHOWN_MOST {
        shown.push_str(&format!(" and {} more", known.len() - SHOWN_MOST));
    }
    Err(Failure::refused_change(format!("there is no account {name:?}: there are {shown}")))
}

pub(super) fn is_wanted(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|wanted| wanted == name)
}

pub(super) async fn run_push(home: &Path, args: &PushArgs, is_json: bool) -> Result<(), Failure> {
    if args.dry_run {
        return super::diff::run_diff(home, &super::diff::DiffArgs { accounts: args.accounts.clone() }, is_json).await;
    }
    let tenancy = open(home)?;
    check_names(&tenancy, &args.accounts)?;
    let _lock = tenancy.lock()?;
    let links = tenancy.links()?;
    let held = tenancy.hold_live()?;
    let ended = push_asked(&tenancy, &links, args, is_json).await;
    drop(held);
    // Whatever has become of the push: who was added meanwhile has left the place to us.
    let placed = reconcile(&tenancy, &links).await;
    ended.and(placed)
}

/// Renders and pushes what is asked for; then whatever else a hub should know.
async fn push_asked(tenancy: &Tenancy, links: &Links, args: &PushArgs, is_json: bool) -> Result<(), Failure> {
    let rendered = tenancy.render_asked(&|name| is_wanted(&args.accounts, name))?;
    let wanted: Vec<&AccountRecord> = rendered.accounts.iter().collect();
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let progress = counter(is_json, wanted.len(), "accounts seen to");
    let pushed = links.push_all(&wanted, overwrite, &progress).await?;
    for error in rendered.failed.values() {
        note(&Chain(error).to_string());
    }
    for error in pushed.failed.values() {
        note(&Chain(error).to_string());
    }
    let failed: BTreeSet<&String> = rendered.failed.keys().chain(pushed.failed.keys()).collect();
    let text = format!(
        "{} accounts are in force on every server, of which {} were so before; {} are not",
        pushed.in_force,
        pushed.unchanged,
        failed.len()
    );
    say(is_json, &text, &json!({"in_force": pushed.in_force, "unchanged": pushed.unchanged, "failed": failed}))?;
    if failed.is_empty() {
        // Of a hub that is new, or lost its disks: what is there already stays.
        let gate = links.gate().await?;
        ensure_gate(gate, tenancy.settings.hub_servers).await?;
        if args.accounts.is_empty() {
            let progress = counter(is_json, wanted.len(), "accounts told to the gatekeepers");
            tenancy.tell_gate_all(links, &wanted, &progress).await?;
        } else {
            for account in &wanted {
                tenancy.tell_gate(links, account).await?;
            }
        }
        taken_away(tenancy.complete_withdrawals(links, &announcer(is_json))).await?;
        tenancy.platform.ensure_streams(tenancy.settings.hub_servers).await.map_err(TenancyError::Platform)?;
        // Whatever has become of the marks: every tenant gets its place.
        return Ok(tenancy.mark_misplaced()?);
    }
    let is_late = pushed.failed.values().all(crate::resolver::PushError::is_not_converged);
    Err(Failure::silent(if is_late && rendered.failed.is_empty() { NOT_READY } else { PARTIAL }))
}

pub(super) fn not_asked(error: &crate::resolver::NotAsked) -> Failure {
    Failure::with(super::exit::UNREACHABLE, Chain(error).to_string())
}

pub(super) async fn run_pull(home: &Path, args: &PullArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let links = tenancy.connect().await?;
    let held = pull(links.system().await?, links.known.count()).await.map_err(|error| not_asked(&error))?;
    if let Some(folder) = &args.to {
        for (key, account) in &held {
            // Where servers disagree each token has its own file: none is lost.
            for (number, token) in account.tokens.keys().enumerate() {
                let name = if number == 0 { format!("{key}.jwt") } else { format!("{key}.{}.jwt", number + 1) };
                write_public(&folder.join(name), token.as_bytes()).map_err(Failure::failed)?;
            }
        }
    }
    let row =
        |(account, held): (String, HeldAccounts)| Pulled { account, servers: held.servers, tokens: held.tokens.len() };
    print_rows(&held.into_iter().map(row).collect::<Vec<_>>(), is_json, now_ms())
}
