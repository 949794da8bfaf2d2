//! `bulkhead keys`: which keys there are, whose they are, and where their private halves lie. Never shows a seed.

use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::Failure;
use super::show::{Row, print_rows, print_rows_or};
use super::store::{open_store, refuse_existing, store_failure};
use crate::operator::KeyRow;

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Every key: whose it is, and whether a seed file, a command or nobody here signs with it.
    #[command(
        after_help = "Examples:\n  bulkhead keys list\n  bulkhead keys list --orphans\n  bulkhead keys list --absent --json"
    )]
    List(ListArgs),
    /// Copy seeds, in plain, into a new folder of mode 0700, as `nsc export keys` does.
    #[command(
        after_help = "Example:\n  bulkhead keys export --to /media/vault/keys --key OABC…\n\nThe seeds are not sealed: whoever reads the folder can sign. Keep it off this machine."
    )]
    Export(ExportArgs),
    /// Take seeds in: a file, or every .nk file of a folder.
    #[command(after_help = "Example:\n  bulkhead keys import /media/vault/keys --dry-run")]
    Import(ImportArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only seeds that nothing refers to.
    #[arg(long)]
    orphans: bool,
    /// Only keys that nobody here can sign with.
    #[arg(long)]
    absent: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A folder that is not there yet.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only this key's [default: all]. May be repeated.
    #[arg(long = "key", value_name = "PUBLIC")]
    keys: Vec<String>,
    /// Only say what would be copied.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    #[arg(value_name = "FILE|DIR")]
    from: PathBuf,
    /// Only say what would be taken.
    #[arg(long)]
    dry_run: bool,
}

impl Row for KeyRow {
    const HEADER: &'static [&'static str] = &["KEY", "KIND", "WHOSE", "WHERE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let place = if self.place == "command" { format!("command {}", self.at) } else { self.place.to_owned() };
        vec![self.public.clone(), self.kind.to_owned(), self.owner.shown(), place]
    }
}

/// A seed that was copied or taken.
#[derive(Serialize)]
struct Moved {
    public: String,
    done: &'static str,
}

impl Row for Moved {
    const HEADER: &'static [&'static str] = &["KEY", "DONE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.public.clone(), self.done.to_owned()]
    }
}

fn print_moved(publics: Vec<String>, done: &'static str, is_json: bool) -> Result<(), Failure> {
    let rows: Vec<Moved> = publics.into_iter().map(|public| Moved { public, done }).collect();
    print_rows_or("every key is there already", &rows, is_json, now_ms())
}

pub(super) fn run(home: &Path, command: KeysCommand, is_json: bool) -> Result<(), Failure> {
    let store = open_store(home)?;
    match command {
        KeysCommand::List(args) => {
            let mut rows = store.key_rows().map_err(store_failure)?;
            rows.retain(|row| (!args.orphans || !row.referenced) && (!args.absent || row.place == "absent"));
            print_rows(&rows, is_json, now_ms())
        }
        KeysCommand::Export(args) => {
            refuse_existing(&args.to)?;
            if args.dry_run {
                let named = if args.keys.is_empty() { store.keys().seeds() } else { args.keys };
                return print_moved(named, "would be copied", is_json);
            }
            let copied = store.export_keys(&args.to, &args.keys).map_err(store_failure)?;
            print_moved(copied, "copied", is_json)
        }
        KeysCommand::Import(args) => {
            let (done, taken) = if args.dry_run {
                ("would be taken", store.new_keys_in(&args.from))
            } else {
                ("taken", store.import_keys(&args.from))
            };
            let taken = taken.map_err(|error| Failure::invalid("keys import", error))?;
            print_moved(taken, done, is_json)
        }
    }
}
