//! `bulkhead backup` and `bulkhead restore`. Keys and passphrases come from files; none is ever an argument or printed.

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_runtime::utc_of_ms;
use clap::{Args, Subcommand};

use super::exit::{FAILED, Failure};
use super::progress::Progress;
use super::show::{json_lines, write_lines};
use super::up::{programs, tools};
use super::{ToolArgs, whole};
use crate::backup::{
    AccessError, ArchiveError, BackupError, BackupOptions, Manifest, Opening, Report, RestoreError, RestoreOptions,
    Seal, read_manifest, rehearse, restore, take_backup,
};
use crate::tenancy::TenancyError;

pub(super) const BACKUP_HELP: &str = "Examples:\n  age-keygen -o /safe/backup.key        (prints the public key, age1…)\n  bulkhead backup --to /safe/monday.bulkhead --recipient age1…\n  bulkhead backup --to /safe/monday.bulkhead --passphrase-file /safe/passphrase\n  bulkhead backup show /safe/monday.bulkhead --identity /safe/backup.key\n\nIt may be taken while everything runs. Keep the key apart from the backups: who has both has the platform.";
pub(super) const RESTORE_HELP: &str = "Examples:\n  bulkhead restore /safe/monday.bulkhead --identity /safe/backup.key --rehearse\n  bulkhead restore /safe/monday.bulkhead --identity /safe/backup.key --home /srv/bulkhead\n  bulkhead up --home /srv/bulkhead\n\nA rehearsal ends with 0 when the copy has everything and works, and with 1 when not.";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: Option<BackupCommand>,
    /// The file to write. It must not be there yet.
    #[arg(long, value_name = "FILE", required = true)]
    to: Option<PathBuf>,
    /// Seal it for the owner of this age public key. May be repeated.
    #[arg(long = "recipient", value_name = "age1…", required_unless_present = "passphrase_file")]
    recipients: Vec<String>,
    /// Seal it with the passphrase in the first line of this file instead.
    #[arg(long, value_name = "FILE", conflicts_with = "recipients")]
    passphrase_file: Option<PathBuf>,
    /// A file with the address of a database that is not this home's own, as its superuser.
    #[arg(long, value_name = "FILE")]
    database_url_file: Option<PathBuf>,
    /// How long to wait for somebody else who is changing the platform, in seconds.
    #[arg(long, default_value_t = 60, value_parser = whole::<u64>(0..=3_600))]
    lock_limit_s: u64,
    #[command(flatten)]
    tools: ToolArgs,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Read a backup to its end and say what is in it. Changes nothing.
    #[command(after_help = "Example:\n  bulkhead backup show /safe/monday.bulkhead --identity /safe/backup.key --json")]
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    file: PathBuf,
    #[command(flatten)]
    opening: OpeningArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct OpeningArgs {
    /// A file with an age secret key that the backup was sealed for.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// A file with the passphrase that the backup was sealed with.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl OpeningArgs {
    fn opening(self) -> Opening {
        match (self.identity, self.passphrase_file) {
            (Some(file), _) => Opening::IdentityFile(file),
            (None, file) => Opening::PassphraseFile(file.unwrap_or_default()),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The backup. With --home the folder of the new platform: empty, or not there yet.
    file: PathBuf,
    #[command(flatten)]
    opening: OpeningArgs,
    /// Make a copy beside the live platform on ports of its own, look whether it works, and remove it. --home is not used.
    #[arg(long)]
    rehearse: bool,
    /// Where a rehearsal puts its copy: needs room for the database [default: the folder for temporary files].
    #[arg(long, value_name = "FOLDER", requires = "rehearse")]
    scratch: Option<PathBuf>,
    #[command(flatten)]
    tools: ToolArgs,
}

pub(super) async fn run_backup(home: PathBuf, args: BackupArgs, is_json: bool) -> Result<(), Failure> {
    if let Some(BackupCommand::Show(show)) = args.command {
        let manifest = read_manifest(&show.file, &show.opening.opening())?;
        return print_manifest(&manifest, is_json);
    }
    let seal = match args.passphrase_file {
        Some(file) => Seal::PassphraseFile(file),
        None => Seal::Recipients(args.recipients),
    };
    let progress = Progress::new();
    let tools = tools(&home, &args.tools, &|step| progress.say(step))?;
    let options = BackupOptions {
        home,
        to: args.to.unwrap_or_default(),
        seal,
        database_url_file: args.database_url_file,
        postgres_programs: tools.postgres.path.parent().map(PathBuf::from).unwrap_or_default(),
        lock_limit: Duration::from_secs(args.lock_limit_s),
    };
    let taken = take_backup(&options, &|step| progress.say(step)).await;
    progress.clear();
    print_manifest(&taken?, is_json)
}

pub(super) async fn run_restore(home: PathBuf, args: RestoreArgs, is_json: bool) -> Result<(), Failure> {
    let progress = Progress::new();
    let announce = |step: &str| progress.say(step);
    let tools = tools(&home, &args.tools, &announce)?;
    let mut options =
        RestoreOptions { file: args.file, opening: args.opening.opening(), home, tools, programs: programs()? };
    if args.rehearse {
        let scratch = args.scratch.unwrap_or_else(std::env::temp_dir);
        options.home = scratch.join(format!("bulkhead-rehearsal-{}", std::process::id()));
        let report = rehearse(&options, &announce).await;
        progress.clear();
        return print_report(&report?, is_json);
    }
    let restored = restore(&options, &announce).await;
    progress.clear();
    print_manifest(&restored?, is_json)?;
    progress.note(&format!("restored: start it with `bulkhead up --home {}`", options.home.display()));
    Ok(())
}

fn print_manifest(manifest: &Manifest, is_json: bool) -> Result<(), Failure> {
    if is_json {
        return write_lines(&json_lines(std::slice::from_ref(manifest))?);
    }
    write_lines(&manifest_text(manifest))
}

fn manifest_text(manifest: &Manifest) -> String {
    let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    let streams = manifest.streams.iter().map(|stream| format!("{} {}", stream.name, stream.messages)).collect();
    let results = manifest.results.iter().map(|(tenant, rows)| format!("{tenant} {rows}")).collect();
    let accounts = manifest.accounts.iter().map(|account| account.name.clone()).collect();
    format!(
        "taken     {}, by release {}\nhub       {} server(s); waiting batches: {}\naccounts  {}\nresults   {}\n\
         database  {} rows in {} tables\nin all    {} parts, {} bytes, each verified\n",
        utc_of_ms(manifest.taken_ms).map_or_else(|| manifest.taken_ms.to_string(), |time| time.to_string()),
        manifest.release,
        manifest.hub_servers.servers(),
        list(streams),
        list(accounts),
        list(results),
        manifest.rows.values().sum::<i64>(),
        manifest.rows.len(),
        manifest.parts.len(),
        manifest.bytes(),
    )
}

fn print_report(report: &Report, is_json: bool) -> Result<(), Failure> {
    if is_json {
        write_lines(&json_lines(&report.checks)?)?;
    } else {
        write_lines(&report_text(report))?;
    }
    if report.is_good() { Ok(()) } else { Err(Failure::silent(FAILED)) }
}

fn report_text(report: &Report) -> String {
    let mut text = manifest_text(&report.manifest);
    text.push('\n');
    for check in &report.checks {
        let word = if check.is_good { "ok  " } else { "FAIL" };
        text.push_str(&format!("{word}  {:<34} {}\n", check.what, check.found));
    }
    text.push_str(if report.is_good() {
        "\nThe copy had everything and worked; it is removed.\n"
    } else {
        "\nThe copy did not work: do not rely on this backup. The copy is removed.\n"
    });
    text
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        if error.is_input() { Self::invalid("backup", error) } else { Self::failed(error) }
    }
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Archive(error) => error.into(),
            BackupError::Access(AccessError::Connect(error)) => TenancyError::Platform(error).into(),
            BackupError::Lock(_)
            | BackupError::NoPlatform(_)
            | BackupError::Operator(_)
            | BackupError::Hub(_)
            | BackupError::Settings(_)
            | BackupError::Streams(_)
            | BackupError::Url(_)
            | BackupError::Password(_)
            | BackupError::Database(_)
            | BackupError::Moment(_)
            | BackupError::Files(_)
            | BackupError::Part { .. } => Self::failed(error),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Archive(error) => error.into(),
            RestoreError::NotEmpty(_) => Self::invalid("restore", error),
            RestoreError::Home { .. }
            | RestoreError::File(_)
            | RestoreError::Start(_)
            | RestoreError::Database(_)
            | RestoreError::Count(_)
            | RestoreError::Roles(_)
            | RestoreError::Access(_)
            | RestoreError::Streams(_)
            | RestoreError::Open { .. }
            | RestoreError::NoStream(_)
            | RestoreError::Different { .. } => Self::failed(error),
        }
    }
}
