//! `bulkhead operator`: who the operator is, its public token, and the rotation of the keys that sign accounts.

use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::desk::{open, say};
use super::exit::{FAILURES, Failure};
use super::show::{Row, print_rows};
use super::store::{open_store, store_failure};
use crate::files::write_public;
use crate::operator::{KeyOwner, OperatorStore};

const ROTATION: &str = "Example:\n  bulkhead operator rotate-key add\n\nThe identity key signs the first and the last step; it may be an external command (signers.toml).\n\n  1. bulkhead operator rotate-key add\n  2. restart every server with the new token of `bulkhead operator export`: it cannot be reloaded\n  3. bulkhead operator rotate-key use KEY\n  4. bulkhead operator rotate-key resign, then bulkhead push\n  5. bulkhead operator rotate-key drop OLD-KEY, then restart the servers once more when convenient";

#[derive(Debug, Subcommand)]
pub(super) enum OperatorCommand {
    /// Make a platform whose servers run elsewhere: operator, keys, roots, the platform's accounts.
    #[command(after_help = super::init::HELP)]
    Init(super::init::InitArgs),
    /// People of the platform, who see every tenant.
    #[command(subcommand, after_help = "Example:\n  bulkhead operator user add carol --to carol")]
    User(super::person::PlatformUserCommand),
    /// The operator: its keys, where their private halves are, and which one signs accounts.
    #[command(after_help = "Example:\n  bulkhead operator show --json")]
    Show,
    /// Write the operator's public token to a file, or print it.
    #[command(after_help = "Examples:\n  bulkhead operator export --to operator.jwt\n  bulkhead operator export")]
    Export(ExportArgs),
    /// Rotate the keys that sign accounts, step by step.
    #[command(subcommand, after_help = ROTATION)]
    RotateKey(RotateCommand),
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The file [default: standard output].
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum RotateCommand {
    /// Add a signing key to the operator's token.
    #[command(
        after_help = "Examples:\n  bulkhead operator rotate-key add\n  bulkhead operator rotate-key add --public OABC…     a key of an external signer"
    )]
    Add {
        /// A key that an external command signs with [default: a new seed].
        #[arg(long, value_name = "KEY")]
        public: Option<String>,
        /// Only say whether it could be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Sign accounts with this key from now on. Every server must know it already: they are asked.
    #[command(
        after_help = "Example:\n  bulkhead operator rotate-key use OABC…\n\nEnds with 5 when a server does not know it."
    )]
    Use {
        key: String,
        /// Do not ask the servers whether they know the key: one that does not goes on with what it has.
        #[arg(long)]
        offline: bool,
        /// Only say whether it could be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Sign every account with the key in use.
    #[command(
        after_help = "Example:\n  bulkhead operator rotate-key resign --dry-run\n\nEnds with 3 when some accounts were left as they are."
    )]
    Resign {
        /// Only say how many would be signed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Take a key out of the operator's token; refused while an account is signed by it, here or on a server.
    #[command(
        after_help = "Example:\n  bulkhead operator rotate-key drop OABC…\n\nEnds with 5 when a server holds an account that it has signed."
    )]
    Drop {
        key: String,
        /// Do not ask the servers whether they hold what the key has signed.
        #[arg(long)]
        offline: bool,
        /// Only say whether it could be done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// The operator, or one of its keys.
#[derive(Serialize)]
struct OperatorKey {
    operator: String,
    public: String,
    purpose: String,
    place: &'static str,
    accounts_signed: usize,
    is_strict: bool,
}

impl Row for OperatorKey {
    const HEADER: &'static [&'static str] = &["OPERATOR", "KEY", "PURPOSE", "WHERE", "ACCOUNTS SIGNED"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![
            self.operator.clone(),
            self.public.clone(),
            self.purpose.clone(),
            self.place.to_owned(),
            self.accounts_signed.to_string(),
        ]
    }
}

fn show(store: &OperatorStore, is_json: bool) -> Result<(), Failure> {
    let signed = store.signed_by().map_err(store_failure)?;
    let is_operator = |owner: &KeyOwner| matches!(owner, KeyOwner::OperatorIdentity | KeyOwner::OperatorSigning { .. });
    let rows = store.key_rows().map_err(store_failure)?.into_iter().filter(|row| is_operator(&row.owner));
    let row = |row: crate::operator::KeyRow| OperatorKey {
        operator: store.name().to_owned(),
        accounts_signed: signed.get(&row.public).map_or(0, Vec::len),
        purpose: row.owner.shown(),
        place: row.place,
        public: row.public,
        is_strict: store.claims().nats.strict_signing_key_usage,
    };
    print_rows(&rows.map(row).collect::<Vec<_>>(), is_json, now_ms())
}

fn export(store: &OperatorStore, args: &ExportArgs, is_json: bool) -> Result<(), Failure> {
    let Some(path) = &args.to else {
        return say(is_json, &store.token, &json!({"token": store.token}));
    };
    write_public(path, store.token.as_bytes()).map_err(Failure::failed)?;
    let text = format!("the token of operator {} is in {}", store.name(), path.display());
    say(is_json, &text, &json!({"operator": store.name(), "file": path}))
}

/// What a step of the rotation came to.
#[derive(Serialize)]
struct Step {
    step: &'static str,
    key: String,
    done: String,
}

impl Row for Step {
    const HEADER: &'static [&'static str] = &["STEP", "KEY", "DONE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.step.to_owned(), self.key.clone(), self.done.clone()]
    }
}

fn print_step(step: &'static str, key: String, done: String, is_json: bool) -> Result<(), Failure> {
    print_rows(&[Step { step, key, done }], is_json, now_ms())
}

async fn rotate(home: &Path, command: RotateCommand, is_json: bool) -> Result<(), Failure> {
    let mut store = open_store(home)?;
    let now = now_ms() / 1_000;
    match command {
        RotateCommand::Add { public, dry_run: true } => {
            store.can_change_operator().map_err(store_failure)?;
            print_step("add", public.unwrap_or_default(), "would be added".to_owned(), is_json)
        }
        RotateCommand::Add { public, dry_run: false } => {
            let key = store.add_signing_key(public.as_deref(), now).map_err(store_failure)?;
            let done = "added: restart every server with the new operator token, then `rotate-key use` it";
            print_step("add", key, done.to_owned(), is_json)
        }
        RotateCommand::Use { key, offline, dry_run } => {
            store.check_use(&key).map_err(store_failure)?;
            if !offline {
                let tenancy = open(home)?;
                tenancy.check_trusted(&tenancy.connect().await?, &key).await?;
            }
            if dry_run {
                return print_step("use", key, "would sign accounts from now on".to_owned(), is_json);
            }
            store.use_signing_key(&key).map_err(store_failure)?;
            print_step("use", key, "signs accounts from now on".to_owned(), is_json)
        }
        RotateCommand::Resign { dry_run } => resign(&store, dry_run, is_json),
        RotateCommand::Drop { key, offline, dry_run } => {
            store.check_drop(&key).map_err(store_failure)?;
            if !offline {
                let tenancy = open(home)?;
                tenancy.check_unused(&tenancy.connect().await?, &key).await?;
            }
            if dry_run {
                return print_step("drop", key, "would be taken out".to_owned(), is_json);
            }
            store.drop_signing_key(&key, now).map_err(store_failure)?;
            print_step("drop", key, "taken out: servers forget it at their next restart".to_owned(), is_json)
        }
    }
}

fn resign(store: &OperatorStore, dry_run: bool, is_json: bool) -> Result<(), Failure> {
    let key = store.signing_key_in_use().map_err(store_failure)?;
    if dry_run {
        let signed = store.signed_by().map_err(store_failure)?;
        let others = signed.iter().filter(|(signer, _)| **signer != key).map(|(_, names)| names.len()).sum::<usize>();
        return print_step("resign", key, format!("{others} accounts would be signed"), is_json);
    }
    let outcome = store.resign_all(now_ms() / 1_000, |_, _| ()).map_err(store_failure)?;
    let mut rows = vec![Step {
        step: "resign",
        key: key.clone(),
        done: format!(
            "{} accounts signed, {} were already; `bulkhead push` brings them to the servers",
            outcome.signed, outcome.unchanged
        ),
    }];
    let failed = |(name, error): &(String, crate::operator::OperatorError)| Step {
        step: "resign",
        key: key.clone(),
        done: format!("{name} is left: {}", crate::reason::reason(error)),
    };
    rows.extend(outcome.failed.iter().map(failed));
    print_rows(&rows, is_json, now_ms())?;
    if outcome.failed.is_empty() { Ok(()) } else { Err(Failure::silent(FAILURES)) }
}

pub(super) async fn run(home: &Path, command: OperatorCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        OperatorCommand::Init(args) => super::init::run(home, args, is_json),
        OperatorCommand::User(command) => super::person::run_platform(home, command, is_json).await,
        OperatorCommand::Show => show(&open_store(home)?, is_json),
        OperatorCommand::Export(args) => export(&open_store(home)?, &args, is_json),
        OperatorCommand::RotateKey(command) => rotate(home, command, is_json).await,
    }
}
