//! `bulkhead push`, `pull` and `diff`: accounts on the hub's servers, against those of this home.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bulkhead_runtime::{Chain, now_ms};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::desk::{counter, note, open, reconcile, say, short};
use super::exit::{DRIFT, Failure, NOT_READY, PARTIAL};
use super::show::{Row, print_rows};
use crate::files::write_public;
use crate::operator::AccountRecord;
use crate::resolver::{AccountLayers, HeldAccounts, Presence, compare, compare_presence, in_memory, list, pull};
use crate::tenancy::{Links, Overwrite, Tenancy, TenancyError, TenantStage};

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

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// Only these accounts, by name [default: all].
    accounts: Vec<String>,
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

fn check_names(tenancy: &Tenancy, names: &[String]) -> Result<(), Failure> {
    let known = tenancy.platform.operator.account_names();
    match names.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(Failure::refused_change(format!("there is no account {name:?}: {}", known.join(", ")))),
        None => Ok(()),
    }
}

fn is_wanted(names: &[String], name: &str) -> bool {
    names.is_empty() || names.iter().any(|wanted| wanted == name)
}

pub(super) async fn run_push(home: &Path, args: &PushArgs, is_json: bool) -> Result<(), Failure> {
    if args.dry_run {
        return run_diff(home, &DiffArgs { accounts: args.accounts.clone() }, is_json).await;
    }
    let tenancy = open(home)?;
    check_names(&tenancy, &args.accounts)?;
    let _lock = tenancy.lock()?;
    let links = tenancy.connect().await?;
    let accounts = tenancy.render_all()?;
    let wanted: Vec<&AccountRecord> =
        accounts.all().filter(|account| is_wanted(&args.accounts, &account.name)).collect();
    let overwrite = if args.force { Overwrite::Force } else { Overwrite::Refuse };
    let progress = counter(is_json, wanted.len(), "accounts pushed");
    let pushed = links.push_all(&wanted, overwrite, &progress).await?;
    for error in pushed.failed.values() {
        note(&Chain(error).to_string());
    }
    let text = format!("{} accounts are in force on every server, {} are not", pushed.in_force, pushed.failed.len());
    say(is_json, &text, &json!({"in_force": pushed.in_force, "failed": pushed.failed.keys().collect::<Vec<_>>()}))?;
    if pushed.failed.is_empty() {
        // Of a hub that is new, or lost its disks: what is there already stays.
        tenancy.platform.ensure_streams(tenancy.settings.hub_servers).await.map_err(TenancyError::Platform)?;
        return reconcile(&tenancy, &links).await;
    }
    let is_late = pushed.failed.values().all(crate::resolver::PushError::is_not_converged);
    Err(Failure::silent(if is_late { NOT_READY } else { PARTIAL }))
}

fn not_asked(error: &crate::resolver::NotAsked) -> Failure {
    Failure::with(super::exit::UNREACHABLE, Chain(error).to_string())
}

pub(super) async fn run_pull(home: &Path, args: &PullArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let links = tenancy.connect().await?;
    let held = pull(&links.system, links.known.count()).await.map_err(|error| not_asked(&error))?;
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

/// The accounts of the store that servers should have.
fn stored(tenancy: &Tenancy) -> Result<Vec<AccountRecord>, Failure> {
    let operator = &tenancy.platform.operator;
    let records = tenancy.records.all().map_err(TenancyError::Record)?;
    let offboarded: BTreeSet<_> = records
        .iter()
        .filter(|record| record.stage == TenantStage::Offboarded)
        .map(|record| record.slug.as_str())
        .collect();
    let names = operator.account_names().into_iter().filter(|name| !offboarded.contains(name.as_str()));
    let read = |name: String| operator.account(&name).map_err(super::store::store_failure).transpose();
    names.filter_map(read).collect()
}

async fn layers(
    tenancy: &Tenancy,
    links: &Links,
    account: AccountRecord,
    held: &BTreeMap<String, HeldAccounts>,
) -> Result<AccountLayers, Failure> {
    let records = tenancy.records.all().map_err(TenancyError::Record)?;
    let desired = match records.iter().find(|record| record.slug.as_str() == account.name) {
        None => None,
        Some(record) => {
            let plan = tenancy.plan_of(record)?;
            let (_, body) = tenancy.platform.preview_tenant(record, &plan).map_err(TenancyError::Platform)?;
            Some(serde_json::to_value(body).map_err(Failure::failed)?)
        }
    };
    let key = account.key.as_str();
    let memories = in_memory(&links.system, key, links.known.count()).await.map_err(|error| not_asked(&error))?;
    let disks = held.get(key).map(|held| held.tokens.clone()).unwrap_or_default();
    Ok(AccountLayers { name: account.name, desired, store: Some(account.token), disks, memories })
}

pub(super) async fn run_diff(home: &Path, args: &DiffArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    check_names(&tenancy, &args.accounts)?;
    let links = tenancy.connect().await?;
    let held = pull(&links.system, links.known.count()).await.map_err(|error| not_asked(&error))?;
    let listed = list(&links.system, links.known.count()).await.map_err(|error| not_asked(&error))?;
    let accounts = stored(&tenancy)?;
    let mut found = 0;
    if args.accounts.is_empty() {
        let keys = accounts.iter().map(|account| account.key.as_str().to_owned()).collect();
        let listed = listed.into_iter().map(|(server, keys)| (server.name, keys)).collect();
        for presence in compare_presence(&keys, &listed) {
            found += 1;
            let (account, side, servers) = match &presence {
                Presence::Foreign { account, servers } => (account, "on servers and not wanted", servers),
                Presence::Missing { account, servers } => (account, "not on servers", servers),
            };
            say(is_json, &format!("{account}: {side}: {}", servers.join(", ")), &presence)?;
        }
        for slug in tenancy.intake.waiting().map_err(TenancyError::Intake)? {
            found += 1;
            say(
                is_json,
                &format!("{slug}: its live import is missing"),
                &json!({"account": slug, "live_import": "missing"}),
            )?;
        }
    }
    for account in accounts.into_iter().filter(|account| is_wanted(&args.accounts, &account.name)) {
        for difference in compare(&layers(&tenancy, &links, account, &held).await?) {
            found += 1;
            let (ours, theirs) = (short(difference.field.ours.as_ref()), short(difference.field.theirs.as_ref()));
            let text = format!(
                "{}: {}: {}: {theirs}, should be {ours}",
                difference.account, difference.layer, difference.field.field
            );
            say(is_json, &text, &difference)?;
        }
    }
    if found > 0 {
        Err(Failure::silent(DRIFT))
    } else if is_json {
        Ok(())
    } else {
        say(false, "nothing differs", &())
    }
}
