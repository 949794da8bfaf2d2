//! `bulkhead nsc`: to nsc and back, whenever an operator likes.

use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::exit::{Failure, WARNINGS};
use super::show::{Row, print_rows, write_lines};
use super::store::{open_store, refuse_existing, store_failure};
use crate::operator::{Drift, Imported, NscImportError, NscSource, OperatorStore};
use crate::up::Layout;

#[derive(Debug, Subcommand)]
pub(super) enum NscCommand {
    /// Copy the store for nsc: tokens, seeds, users that we issued, and nsc's own settings.
    #[command(
        after_help = "Example:\n  bulkhead nsc export --to /srv/nsc-copy\n  export XDG_CONFIG_HOME=/srv/nsc-copy/config XDG_DATA_HOME=/srv/nsc-copy/data\n  nsc validate --all-accounts"
    )]
    Export(ExportArgs),
    /// Say what nsc changed behind our back, and what nsc would stumble over. Changes nothing.
    #[command(
        after_help = "Examples:\n  bulkhead nsc check\n  bulkhead nsc check --json\n\nEnds with 0 when all is well, 2 when something is not as we wrote it."
    )]
    Check,
    /// Take a store that nsc made, or single accounts of it that nsc changed.
    #[command(
        after_help = "Examples:\n  bulkhead nsc import ~/.local/share/nats/nsc          a home without a store takes all of it\n  bulkhead nsc import ~/.local/share/nats/nsc          a home of the same operator says what differs\n  bulkhead nsc import ~/.local/share/nats/nsc --accept acme-corp\n  bulkhead nsc import --accept acme-corp               take what nsc changed in our own store"
    )]
    Import(ImportArgs),
    /// Take an account back to what we wrote last, newer than whatever is there.
    #[command(after_help = "Example:\n  bulkhead nsc restore acme-corp --dry-run")]
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// A folder that is not there yet; it holds secrets.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only say what would be copied.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Where nsc keeps its data: the folder with `stores` and `keys` [default: our own store].
    #[arg(value_name = "DIR", required_unless_present_any = ["accept", "adopt"])]
    from: Option<PathBuf>,
    /// Where nsc keeps its keys [default: `keys` beside `stores`].
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Which operator, when there are several.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Take this account as it is there. May be repeated.
    #[arg(long, value_name = "ACCOUNT")]
    accept: Vec<String>,
    /// Take this account, which nsc made, as one that we render from now on. May be repeated.
    #[arg(long, value_name = "ACCOUNT")]
    adopt: Vec<String>,
    /// Only say what would be taken.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    account: String,
    /// Only say what would be taken back.
    #[arg(long)]
    dry_run: bool,
}

impl Row for Drift {
    const HEADER: &'static [&'static str] = &["SUBJECT", "FOUND", "WHAT TO DO"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.subject.clone(), self.found.clone(), self.advice.clone()]
    }
}

impl Row for Imported {
    const HEADER: &'static [&'static str] = &["ACCOUNT", "STATE", "RENDERED BY US", "DIFFERENCES", "KEY"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let managed = if self.managed { "yes" } else { "no" };
        vec![
            self.account.clone(),
            self.state.to_owned(),
            managed.to_owned(),
            self.differences.join("; "),
            self.key.clone(),
        ]
    }
}

pub(super) fn run(home: &Path, command: NscCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        NscCommand::Export(args) => export(home, &args, is_json),
        NscCommand::Check => check(home, is_json),
        NscCommand::Import(args) => import(home, &args, is_json),
        NscCommand::Restore(args) => restore(home, &args, is_json),
    }
}

#[derive(Serialize)]
struct Exported<'a> {
    to: &'a Path,
    accounts: usize,
    users: usize,
    seeds: usize,
    same_name: Vec<String>,
    environment: Vec<(String, PathBuf)>,
    is_dry_run: bool,
}

fn export(home: &Path, args: &ExportArgs, is_json: bool) -> Result<(), Failure> {
    let store = open_store(home)?;
    let to = std::path::absolute(&args.to).map_err(|error| Failure::invalid("--to", error))?;
    refuse_existing(&to)?;
    let mut exported = Exported {
        to: &to,
        accounts: store.account_names().len(),
        users: 0,
        seeds: store.keys().seeds().len(),
        same_name: vec![],
        environment: vec![],
        is_dry_run: args.dry_run,
    };
    if !args.dry_run {
        let copy = store.export_to(&to, home).map_err(store_failure)?;
        (exported.accounts, exported.users, exported.seeds) = (copy.accounts, copy.users, copy.seeds);
        (exported.same_name, exported.environment) = (copy.same_name, copy.environment);
    }
    if is_json {
        return write_lines(&super::show::json_lines(&[exported])?);
    }
    let verb = if args.dry_run { "would copy" } else { "copied" };
    let mut text = format!(
        "# {verb} {} accounts, {} users and {} seeds to {}; it holds secrets\n",
        exported.accounts,
        exported.users,
        exported.seeds,
        to.display()
    );
    for user in &exported.same_name {
        text.push_str(&format!("# user {user} has the name of another: nsc shows the newer one\n"));
    }
    for (name, value) in &exported.environment {
        text.push_str(&format!("export {name}={}\n", shell_word(&value.display().to_string())));
    }
    write_lines(&text)
}

/// A word that a shell takes as it is.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn check(home: &Path, is_json: bool) -> Result<(), Failure> {
    let found = open_store(home)?.check();
    if found.is_empty() && !is_json {
        return write_lines("the store is as we wrote it, and nsc can work with it\n");
    }
    print_rows(&found, is_json, now_ms())?;
    if found.iter().any(|drift| drift.kind.is_drift()) { Err(Failure::silent(WARNINGS)) } else { Ok(()) }
}

fn import_failure(error: NscImportError) -> Failure {
    match error {
        NscImportError::Store(error) => store_failure(error),
        NscImportError::Place(_) => Failure::failed(error),
        NscImportError::None(_)
        | NscImportError::Several { .. }
        | NscImportError::Another { .. }
        | NscImportError::Damaged { .. } => Failure::invalid("nsc import", error),
    }
}

fn import(home: &Path, args: &ImportArgs, is_json: bool) -> Result<(), Failure> {
    let source = match &args.from {
        None => None,
        Some(folder) => {
            let found = NscSource::find(folder, args.operator.as_deref()).map_err(import_failure)?;
            Some(match &args.keys {
                Some(keys) => found.with_keys(keys.clone()),
                None => found,
            })
        }
    };
    let folder = Layout::new(home.to_owned()).operator();
    let store = OperatorStore::read(folder.clone()).map_err(Failure::failed)?;
    let named: Vec<String> = args.accept.iter().chain(&args.adopt).cloned().collect();
    let accept: &[String] = if args.dry_run { &[] } else { &named };
    let mut rows = match (store, source) {
        (Some(store), None) if args.dry_run => in_place(&store, &named)?,
        (Some(store), source) => store.import_accounts(source.as_ref(), accept).map_err(import_failure)?,
        (None, Some(source)) if args.dry_run => source.preview().map_err(import_failure)?,
        (None, Some(source)) => OperatorStore::import_new(&folder, &source).map_err(import_failure)?.1,
        (None, None) => return open_store(home).map(|_| ()),
    };
    if !args.dry_run && !args.adopt.is_empty() {
        let store = open_store(home)?;
        for name in &args.adopt {
            store.adopt_account(name).map_err(store_failure)?;
            rows.iter_mut().filter(|row| row.account == *name).for_each(|row| row.managed = true);
        }
    }
    print_rows(&rows, is_json, now_ms())?;
    let is_open = |row: &Imported| row.state == "differs" || row.state == "new";
    if rows.iter().any(is_open) { Err(Failure::silent(WARNINGS)) } else { Ok(()) }
}

/// What would be taken from our own store.
fn in_place(store: &OperatorStore, names: &[String]) -> Result<Vec<Imported>, Failure> {
    let row = |name: &String| {
        let record = store.account(name).map_err(store_failure)?;
        let key = record.map(|record| record.key.to_string()).unwrap_or_default();
        let differences = store.foreign_edit(name).map_err(store_failure)?;
        let state = if differences.is_some() { "differs" } else { "same" };
        let differences = differences.unwrap_or_default();
        Ok(Imported { account: name.clone(), key, state, managed: true, differences })
    };
    names.iter().map(row).collect()
}

#[derive(Serialize)]
struct Restored {
    account: String,
    differences: Vec<String>,
    iat: Option<i64>,
}

impl Row for Restored {
    const HEADER: &'static [&'static str] = &["ACCOUNT", "TAKEN BACK", "ISSUED AT"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        let iat = self.iat.map_or_else(|| "not yet: dry run".to_owned(), |iat| iat.to_string());
        vec![self.account.clone(), self.differences.join("; "), iat]
    }
}

fn restore(home: &Path, args: &RestoreArgs, is_json: bool) -> Result<(), Failure> {
    let store = open_store(home)?;
    // A token that cannot be read is taken back as a whole.
    let edited = store.foreign_edit(&args.account);
    let differences = edited.unwrap_or_else(|error| Some(vec![error.to_string()])).unwrap_or_default();
    let mut restored = Restored { account: args.account.clone(), differences, iat: None };
    if !args.dry_run {
        let record = store.restore_account(&args.account, now_ms() / 1_000).map_err(store_failure)?;
        restored.iat = Some(record.claims.iat);
    }
    print_rows(&[restored], is_json, now_ms())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_word_for_a_shell_whatever_is_in_it() {
        assert_eq!(shell_word("/a b/$(x)"), "'/a b/$(x)'");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
    }
}
