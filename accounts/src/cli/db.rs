//! `bulkhead db`: which version every schema of the database has, and bringing all of them to this release.

use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use bulkhead_store::{MigrationProgress, SchemaVersion, migrate_all, read_database_url, versions};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::desk::say;
use super::exit::{DRIFT, Failure, PARTIAL};
use super::progress::Progress;
use super::show::{Row, print_rows};
use crate::tenancy::PlatformSettings;
use crate::up::Layout;

#[derive(Debug, Subcommand)]
pub(super) enum DbCommand {
    /// The version of every schema, beside that of this release.
    #[command(
        after_help = "Example:\n  bulkhead db status\n\nEnds with 2 when a schema is not at this release's version."
    )]
    Status(AddressArgs),
    /// Bring every schema to this release. Killed at any moment, it goes on when it is said again.
    #[command(
        after_help = "Examples:\n  bulkhead db migrate --dry-run\n  bulkhead db migrate --database-url-file provision.url\n\nEnds with 3 when schemas of some tenants could not be migrated; all others are."
    )]
    Migrate(MigrateArgs),
}

#[derive(Debug, Args)]
pub(super) struct AddressArgs {
    /// A file of mode 600 with the address of the database, as the role bulkhead_provision [default: the platform's own].
    #[arg(long, value_name = "FILE")]
    database_url_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    address: AddressArgs,
    /// Only say which schemas would be migrated.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct SchemaRow {
    schema: String,
    version: i64,
    expected: i64,
    state: &'static str,
}

impl Row for SchemaRow {
    const HEADER: &'static [&'static str] = &["SCHEMA", "VERSION", "THIS RELEASE", "STATE"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![self.schema.clone(), self.version.to_string(), self.expected.to_string(), self.state.to_owned()]
    }
}

fn row(found: SchemaVersion) -> SchemaRow {
    let SchemaVersion { schema, version, expected } = found;
    let state = match version.cmp(&expected) {
        std::cmp::Ordering::Less => "behind",
        std::cmp::Ordering::Equal => "in force",
        std::cmp::Ordering::Greater => "of a newer release",
    };
    SchemaRow { schema, version, expected, state }
}

impl AddressArgs {
    fn url(&self, home: &Path) -> Result<String, Failure> {
        let file = match &self.database_url_file {
            Some(file) => Some(file.clone()),
            None => {
                let settings = PlatformSettings::read(&Layout::new(home.to_owned()));
                settings.map_err(|error| Failure::invalid("platform", error))?.database_url_file
            }
        };
        let file = file.ok_or_else(|| {
            Failure::refused_change(
                "this platform has no database address: name a file with --database-url-file".to_owned(),
            )
        })?;
        read_database_url(&file).map_err(|error| Failure::invalid("database address", error))
    }
}

pub(super) async fn run(home: &Path, command: DbCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        DbCommand::Status(args) => show_versions(&args.url(home)?, is_json).await,
        DbCommand::Migrate(args) => migrate(&args.address.url(home)?, args.dry_run, is_json).await,
    }
}

async fn show_versions(url: &str, is_json: bool) -> Result<(), Failure> {
    let rows: Vec<SchemaRow> = versions(url).await.map_err(Failure::failed)?.into_iter().map(row).collect();
    print_rows(&rows, is_json, now_ms())?;
    if rows.iter().all(|row| row.version == row.expected) { Ok(()) } else { Err(Failure::silent(DRIFT)) }
}

async fn migrate(url: &str, is_dry: bool, is_json: bool) -> Result<(), Failure> {
    let behind = async || {
        let found = versions(url).await.map_err(Failure::failed)?;
        Ok::<usize, Failure>(found.iter().filter(|found| found.version < found.expected).count())
    };
    let before = behind().await?;
    if is_dry {
        return say(is_json, &format!("{before} schemas would be migrated"), &json!({"would_migrate": before}));
    }
    let steps = if is_json { Progress::quiet() } else { Progress::new() };
    steps.say("migrating the platform's and the shared schema");
    let told = |MigrationProgress { done, all }| steps.say(&format!("schemas of tenants: {done} of {all}"));
    let migrated = migrate_all(url, &told).await;
    drop(steps);
    match migrated {
        Ok(()) => say(
            is_json,
            &format!("{before} schemas were migrated; all are at this release"),
            &json!({"migrated": before}),
        ),
        Err(error @ bulkhead_store::AdminError::Schemas(_)) => Err(Failure::with(PARTIAL, error.to_string())),
        Err(error) => Err(Failure::failed(error)),
    }
}
