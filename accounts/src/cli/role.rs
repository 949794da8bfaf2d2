//! `bulkhead role`: the signing keys of roles, and their rotation with overlap.

use std::path::Path;
use std::time::Duration;

use bulkhead_bus::{Role, TenantSlug};
use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde_json::json;

use super::desk::{note, open, role_named, say, show_preview};
use super::exit::Failure;
use super::number::whole;
use super::show::{Row, moment, print_rows};
use crate::tenancy::{Links, RoleState, Tenancy, WhenUsed};

#[derive(Debug, Subcommand)]
pub(super) enum RoleCommand {
    /// The roles of an account: their keys, and who is connected by them.
    #[command(after_help = "Examples:\n  bulkhead role list acme-corp\n  bulkhead role list core --json")]
    List {
        /// A tenant, or core, ops, sys, intake-1.
        account: String,
        /// Do not ask the servers who is connected.
        #[arg(long)]
        offline: bool,
    },
    /// Give a role a new signing key; with --finish move everybody to it and take the old one out.
    #[command(
        after_help = "Examples:\n  bulkhead role rotate acme-corp leaf\n  bulkhead role rotate acme-corp leaf --finish\n\nWhoever comes in between is let in by the new key. --finish closes those who are in by the old one; they come back\nby themselves. Only in sys and auth users have files that need to be new: a new start of `bulkhead up` makes them."
    )]
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// A tenant, or core, ops, sys, intake-1.
    account: String,
    /// Such as leaf, admin or viewer.
    #[arg(value_parser = role_named)]
    role: Role,
    #[command(flatten)]
    how: HowToRotate,
}

#[derive(Debug, Args)]
pub(super) struct RotateTenantArgs {
    slug: TenantSlug,
    #[command(flatten)]
    how: HowToRotate,
}

#[derive(Debug, Args)]
struct HowToRotate {
    /// Take the old key out.
    #[arg(long)]
    finish: bool,
    /// How long to wait until nobody uses the old key, in seconds.
    #[arg(long, default_value_t = 60, value_parser = whole::<u64>(1..=86_400), requires = "finish")]
    wait_s: u64,
    /// Take the old key out at once: the servers close whoever uses it, all together.
    #[arg(long, requires = "finish")]
    force: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

impl Row for RoleState {
    const HEADER: &'static [&'static str] =
        &["ACCOUNT", "ROLE", "KEY", "SINCE (UTC)", "CONNECTED", "OLD KEY", "BY OLD KEY"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        let count = |number: Option<usize>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
        vec![
            self.account.clone(),
            self.role.clone(),
            self.key.clone(),
            moment(self.since * 1_000, now_ms),
            count(self.connections.map(|(now, _)| now)),
            self.previous.clone().unwrap_or_else(|| "-".to_owned()),
            count(self.connections.map(|(_, old)| old).filter(|_| self.previous.is_some())),
        ]
    }
}

pub(super) async fn run(home: &Path, command: RoleCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        RoleCommand::List { account, offline } => {
            let tenancy = open(home)?;
            let links = if offline { None } else { Some(tenancy.connect().await?) };
            print_rows(&tenancy.roles(links.as_ref(), &account).await?, is_json, now_ms())
        }
        RoleCommand::Rotate(args) => rotate(home, &args.account, &[args.role], &args.how, is_json).await,
    }
}

/// Every role of a tenant.
pub(super) async fn rotate_tenant(home: &Path, args: &RotateTenantArgs, is_json: bool) -> Result<(), Failure> {
    let account = open(home)?.account_of(&args.slug)?;
    rotate(home, &account, &Role::TENANT, &args.how, is_json).await
}

async fn rotate(home: &Path, account: &str, roles: &[Role], how: &HowToRotate, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    if how.dry_run && how.finish {
        let links = tenancy.connect().await?;
        for &role in roles {
            show_preview(&tenancy.preview_finish(&links, account, role).await?, is_json)?;
        }
        return Ok(());
    }
    if how.dry_run {
        for state in tenancy.roles(None, account).await? {
            if !roles.iter().any(|role| role.name() == state.role) {
                continue;
            }
            let text = match &state.previous {
                None => format!(
                    "role {} of {account} would sign with a new key; the old one stays good and nobody is disconnected",
                    state.role
                ),
                Some(_) => format!("role {} of {account} has a new key already: nothing would be done", state.role),
            };
            let would = state.previous.is_none();
            say(is_json, &text, &json!({"account": account, "role": state.role, "would_rotate": would}))?;
        }
        return Ok(());
    }
    let _lock = tenancy.lock()?;
    let links = tenancy.connect().await?;
    for &role in roles {
        let is_done = rotate_one(&tenancy, &links, (account, role), how).await?;
        let text = if !is_done && !how.finish {
            format!("role {} of {account} has a new key already; --finish takes the old one out", role.name())
        } else if how.finish {
            format!("the old key of role {} of {account} is out", role.name())
        } else {
            format!("role {} of {account} signs with a new key; the old one is still good", role.name())
        };
        say(is_json, &text, &json!({"account": account, "role": role.name(), "finished": how.finish}))?;
    }
    Ok(())
}

/// Whether anything was done: said again, it may be done already.
async fn rotate_one(
    tenancy: &Tenancy,
    links: &Links,
    (account, role): (&str, Role),
    how: &HowToRotate,
) -> Result<bool, Failure> {
    let state = tenancy.roles(None, account).await?.into_iter().find(|state| state.role == role.name());
    let is_rotating = state.is_some_and(|state| state.previous.is_some());
    match (how.finish, is_rotating) {
        // Said again: what was cut short is done already.
        (true, false) => return Ok(false),
        (false, true) => {
            tenancy.complete_rotation(links, account).await?;
            return Ok(false);
        }
        (false, false) => tenancy.rotate_role(links, account, role).await?,
        (true, true) => {
            let when = if how.force { WhenUsed::Disconnect } else { WhenUsed::Wait(Duration::from_secs(how.wait_s)) };
            let said = std::cell::Cell::new(0);
            let progress = |left: usize| {
                if left > 0 && said.replace(left) != left {
                    note(&format!("{left} connections use the old key of role {}", role.name()));
                }
            };
            tenancy.finish_rotation(links, (account, role), when, &progress).await?;
        }
    }
    Ok(true)
}
