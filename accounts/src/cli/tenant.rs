//! `bulkhead tenant`: the life of a tenant.

use std::path::Path;

use bulkhead_bus::TenantSlug;
use bulkhead_runtime::now_ms;
use bulkhead_store::{Isolation, isolation_of};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::Scope;
use super::desk::{Manner, announcer, check_disconnects, note, open, reconcile, say, show_preview, taken_away};
use super::exit::Failure;
use super::show::{Row, json_lines, print_rows, write_lines};
use super::tenant_rows::{BackupArgs, OffboardArgs, RestoreArgs};
use crate::operator::OperatorError;
use crate::plan::PlanChoice;
use crate::tenancy::{IfThere, NewTenant, Standing, Tenancy, TenancyError, TenantRecord, TenantStage};

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Add a tenant: keys, account, database row, proof; or complete one that was cut short.
    #[command(
        after_help = "Examples:\n  bulkhead tenant add acme-corp --plan enterprise --name \"Acme Corp\"\n  bulkhead tenant add acme-corp              completes one that was cut short\n  bulkhead tenant add acme-corp --undo       removes what there is of one that was cut short"
    )]
    Add(AddArgs),
    /// Tenants with plan, state and sizes.
    #[command(
        after_help = "Examples:\n  bulkhead tenant list --json\n  bulkhead tenant list --profile acme-admin.toml     as core sees it, as that person"
    )]
    List(Scope),
    /// One tenant with its people, sites and pollers.
    #[command(after_help = "Example:\n  bulkhead tenant show acme-corp --json")]
    Show { slug: TenantSlug },
    /// Change a tenant's display name.
    #[command(after_help = "Example:\n  bulkhead tenant edit acme-corp --name \"Acme Corporation\"")]
    Edit(EditArgs),
    /// Move a tenant to another plan, or another version of its plan.
    #[command(
        after_help = "Examples:\n  bulkhead tenant plan acme-corp pro --dry-run\n  bulkhead tenant plan acme-corp pro@2 --max-disconnects 0"
    )]
    Plan(PlanArgs),
    /// Disconnect a tenant and admit nobody of it; everything is kept.
    #[command(after_help = "Example:\n  bulkhead tenant suspend acme-corp --dry-run")]
    Suspend(ChangeArgs),
    /// Admit a suspended tenant again.
    #[command(after_help = "Example:\n  bulkhead tenant resume acme-corp")]
    Resume(ChangeArgs),
    /// Give every role of a tenant a new signing key; with --finish take the old keys out once nobody uses them.
    #[command(
        after_help = "Examples:\n  bulkhead tenant rotate acme-corp\n  bulkhead tenant rotate acme-corp --finish --wait-s 600\n\nIn between its users need new files: `bulkhead tenant user add` for people, `bulkhead poller add` for sites."
    )]
    Rotate(super::role::RotateTenantArgs),
    /// Take a tenant off every server; with --purge destroy its keys and rows as well.
    #[command(
        after_help = "Examples:\n  bulkhead tenant offboard acme-corp\n  bulkhead tenant offboard acme-corp --purge --export /safe/acme-corp.rows\n  bulkhead tenant offboard acme-corp --purge --no-export --yes"
    )]
    Offboard(OffboardArgs),
    /// Write all rows of a tenant, as of one moment, to a file: results, state, history; nobody's keys.
    #[command(
        after_help = "Examples:\n  bulkhead tenant backup acme-corp -o /safe/acme-corp.rows\n  bulkhead tenant backup acme-corp -o /safe/acme-corp.rows --recipient age1…\n\nIt may be taken while everything runs. The file is a tar archive of CSV with a manifest, sealed with age if you say for whom."
    )]
    Backup(BackupArgs),
    /// Bring an offboarded tenant back, with its keys and rows; or rows from a backup of one tenant.
    #[command(
        after_help = "Examples:\n  bulkhead tenant restore acme-corp\n  bulkhead tenant restore /safe/acme-corp.rows --rehearse\n  bulkhead tenant restore /safe/acme-corp.rows --as acme-copy\n  bulkhead tenant restore /safe/acme-corp.rows --in-place --dry-run"
    )]
    Restore(RestoreArgs),
    /// People of a tenant.
    #[command(subcommand, after_help = "Example:\n  bulkhead tenant user add acme-corp alice --to alice")]
    User(super::person::UserCommand),
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    slug: TenantSlug,
    /// free, pro or enterprise, or a version such as pro@2 [default: free].
    #[arg(long)]
    plan: Option<PlanChoice>,
    /// What people call it: free text.
    #[arg(long, default_value = "")]
    name: String,
    /// Succeed when the tenant is there already.
    #[arg(long)]
    if_absent: bool,
    /// Remove what there is of an onboarding that was cut short.
    #[arg(long, conflicts_with_all = ["plan", "if_absent"])]
    undo: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Leave the live import for later: `bulkhead push` sees to it.
    #[arg(long)]
    defer_live: bool,
}

#[derive(Debug, Args)]
pub(super) struct EditArgs {
    slug: TenantSlug,
    /// What people call it: free text.
    #[arg(long)]
    name: String,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    slug: TenantSlug,
    plan: PlanChoice,
    /// Change nothing when more connections would close.
    #[arg(long, value_name = "N")]
    max_disconnects: Option<usize>,
    /// Show the fields that change and the connections that close.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArgs {
    slug: TenantSlug,
    /// Show the fields that change and the connections that close.
    #[arg(long)]
    dry_run: bool,
}

/// A tenant in a list.
#[derive(Serialize)]
struct TenantLine {
    tenant: String,
    display_name: String,
    plan: String,
    plan_version: u32,
    state: &'static str,
    isolation: &'static str,
    sites: usize,
    pollers: usize,
    people: usize,
    account: String,
}

impl TenantLine {
    fn new(record: &TenantRecord) -> Self {
        Self {
            tenant: record.slug.to_string(),
            display_name: record.display_name.clone(),
            plan: record.plan.name.to_string(),
            plan_version: record.plan.version,
            state: record.stage.as_str(),
            isolation: isolation_of(record.plan.name.as_str()).as_str(),
            sites: record.sites.len(),
            pollers: record.active_pollers(),
            people: record.people.values().filter(|person| person.standing == Standing::Active).count(),
            account: record.account.as_ref().map_or_else(String::new, ToString::to_string),
        }
    }
}

impl Row for TenantLine {
    const HEADER: &'static [&'static str] =
        &["TENANT", "NAME", "PLAN", "STATE", "ISOLATION", "SITES", "POLLERS", "PEOPLE", "ACCOUNT"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.clone(),
            self.display_name.clone(),
            format!("{}@{}", self.plan, self.plan_version),
            self.state.to_owned(),
            self.isolation.to_owned(),
            self.sites.to_string(),
            self.pollers.to_string(),
            self.people.to_string(),
            self.account.clone(),
        ]
    }
}

pub(super) async fn run(home: &Path, command: TenantCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        TenantCommand::Add(args) => add(home, args, is_json).await,
        TenantCommand::List(scope) => list(home, &scope, is_json).await,
        TenantCommand::Show { slug } => show(home, &slug, is_json),
        TenantCommand::Edit(args) => {
            let manner = Manner { is_json, is_dry: args.dry_run };
            change(home, (&args.slug, None), manner, |record| record.display_name = args.name).await
        }
        TenantCommand::Plan(args) => change_plan(home, &args, is_json).await,
        TenantCommand::Suspend(args) => set_stage(home, &args, TenantStage::Suspended, is_json).await,
        TenantCommand::Resume(args) => set_stage(home, &args, TenantStage::Active, is_json).await,
        TenantCommand::Backup(args) => super::tenant_rows::backup(home, &args, is_json).await,
        TenantCommand::Restore(args) => super::tenant_rows::restore(home, args, is_json).await,
        TenantCommand::Rotate(args) => super::role::rotate_tenant(home, &args, is_json).await,
        TenantCommand::Offboard(args) => super::tenant_rows::offboard(home, args, is_json).await,
        TenantCommand::User(command) => super::person::run(home, command, is_json).await,
    }
}

pub(super) fn done(is_json: bool, text: &str, record: &TenantRecord) -> Result<(), Failure> {
    say(is_json, text, &TenantLine::new(record))
}

async fn add(home: &Path, args: AddArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let slug = args.slug.clone();
    let if_there = if args.if_absent { IfThere::Leave } else { IfThere::Refuse };
    let order = NewTenant { slug: args.slug, display_name: args.name, plan: args.plan, if_there };
    if args.dry_run {
        return preview_add(&tenancy, &order, is_json);
    }
    let lock = tenancy.lock()?;
    let links = tenancy.connect().await?;
    if args.undo {
        tenancy.undo_add(&links, &slug).await?;
        return say(is_json, &format!("what there was of tenant {slug} is gone"), &json!({"undone": slug}));
    }
    let started = std::time::Instant::now();
    let added = tenancy.add_tenant(&links, &order, &announcer(is_json)).await?;
    let took = started.elapsed();
    drop(lock);
    let text = if added.was_there {
        format!("tenant {slug} was there already, with plan {}", added.record.plan)
    } else {
        let plan = added.record.plan;
        format!("tenant {slug} is in force with plan {plan} after {} ms", took.as_millis())
    };
    done(is_json, &text, &added.record)?;
    if args.defer_live {
        return Ok(());
    }
    // It works without: the live view is a state of its own.
    if let Err(failure) = reconcile(&tenancy, &links).await {
        note(&format!("its live view follows when `bulkhead push` succeeds: {}", failure.message()));
    }
    Ok(())
}

fn preview_add(tenancy: &Tenancy, order: &NewTenant, is_json: bool) -> Result<(), Failure> {
    let known = tenancy.records.find(&order.slug).map_err(TenancyError::Record)?;
    let text = match known.as_ref().map(|record| record.stage) {
        None => {
            let choice = order.plan.unwrap_or(PlanChoice::Newest(crate::plan::PlanName::Free));
            let plan = tenancy.plans.choose(choice).map_err(TenancyError::Plan)?;
            format!("tenant {} would be added with plan {}; no connection would close", order.slug, plan.plan_ref())
        }
        Some(TenantStage::Adding) => format!("the onboarding of tenant {} would be completed", order.slug),
        Some(TenantStage::Active | TenantStage::Suspended) if order.if_there == IfThere::Leave => {
            let plan = known.as_ref().map_or_else(String::new, |record| format!(" with plan {}", record.plan));
            format!("tenant {} is there already{plan}: nothing would be done", order.slug)
        }
        Some(TenantStage::Active | TenantStage::Suspended) => {
            return Err(TenancyError::AlreadyThere(order.slug.clone()).into());
        }
        Some(TenantStage::Offboarded) => return Err(TenancyError::Offboarded(order.slug.clone()).into()),
    };
    say(is_json, &text, &json!({"tenant": order.slug, "would": text}))
}

async fn list(home: &Path, scope: &Scope, is_json: bool) -> Result<(), Failure> {
    // A person asks core, which shows what that person may see; the operator's own records are here.
    if scope.profile.is_some() {
        return super::query::list_tenants(home, scope, is_json).await;
    }
    let tenancy = open(home)?;
    let records = match &scope.tenant {
        Some(slug) => vec![tenancy.records.get(slug).map_err(TenancyError::Record)?],
        None => tenancy.records.all().map_err(TenancyError::Record)?,
    };
    print_rows(&records.iter().map(TenantLine::new).collect::<Vec<_>>(), is_json, now_ms())
}

/// Why the account's token in the store is not what we wrote.
fn token_trouble(tenancy: &Tenancy, slug: &TenantSlug) -> Option<String> {
    match tenancy.platform.operator.foreign_edit(slug.as_str()) {
        Ok(None) => None,
        Ok(Some(differences)) => {
            let account = slug.to_string();
            Some(crate::reason::reason(&OperatorError::ForeignEdit { account, differences }))
        }
        Err(error) => Some(crate::reason::reason(&error)),
    }
}

fn show(home: &Path, slug: &TenantSlug, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let record = tenancy.records.get(slug).map_err(TenancyError::Record)?;
    let plan = tenancy.plan_of(&record)?;
    let trouble = token_trouble(&tenancy, slug);
    if is_json {
        return write_lines(&json_lines(&[json!({"tenant": record, "limits": plan, "trouble": trouble})])?);
    }
    let account = record.account.as_ref().map_or("none yet", |key| key.as_str());
    let mut text = format!(
        "tenant   {slug}\nname     {}\nplan     {}\nstate    {}\naccount  {account}\nid       {}\n",
        record.display_name,
        record.plan,
        record.stage.as_str(),
        record.id
    );
    text.push_str(&format!(
        "limits   {} connections, {} leaf links, {} days of results\n",
        plan.connections, plan.leaf_links, plan.retention_days
    ));
    if let Some(trouble) = trouble {
        text.push_str(&format!("trouble  {trouble}\n"));
    }
    for (name, person) in &record.people {
        let revoked = if person.standing == Standing::Revoked { " (revoked)" } else { "" };
        text.push_str(&format!("person   {name}, {}{revoked}\n", person.role.as_str()));
    }
    for (site, held) in &record.sites {
        let pollers: Vec<String> = held
            .pollers
            .iter()
            .map(|(name, poller)| match poller.standing {
                Standing::Active => name.to_string(),
                Standing::Revoked => format!("{name} (revoked)"),
            })
            .collect();
        text.push_str(&format!("site     {site}: {}\n", pollers.join(", ")));
    }
    write_lines(&text)
}

async fn change(
    home: &Path,
    (slug, max_disconnects): (&TenantSlug, Option<usize>),
    manner: Manner,
    change: impl FnOnce(&mut TenantRecord),
) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let lock = if manner.is_dry { None } else { Some(tenancy.lock()?) };
    let links = tenancy.connect().await?;
    let mut record = tenancy.records.get(slug).map_err(TenancyError::Record)?;
    change(&mut record);
    if manner.is_dry || max_disconnects.is_some() {
        let preview = tenancy.preview(&links, &record).await?;
        if manner.is_dry {
            note_move(&tenancy, &record)?;
            return show_preview(&preview, manner.is_json);
        }
        check_disconnects(preview.closing.len(), max_disconnects)?;
    }
    let changed = tenancy.change_tenant(&links, slug, |known| *known = record).await?;
    // A large tenant's rows take a while, and somebody may have to be put out meanwhile.
    drop(lock);
    tenancy.move_rows(&links, &changed, &announcer(manner.is_json)).await?;
    let text = format!("tenant {slug} is in force with plan {}", changed.plan);
    done(manner.is_json, &text, &changed)
}

/// Beside the fields that change: rows move, and what a plan keeps no longer goes.
fn note_move(tenancy: &Tenancy, wanted: &TenantRecord) -> Result<(), Failure> {
    let known = tenancy.records.get(&wanted.slug).map_err(TenancyError::Record)?;
    let (now, then) = (tenancy.plan_of(&known)?, tenancy.plan_of(wanted)?);
    let place = |plan: &crate::plan::Plan| isolation_of(plan.name.as_str());
    if place(&now) != place(&then) {
        let to = match place(&then) {
            Isolation::Shared => "the shared tables",
            Isolation::Schema => "a schema of its own",
        };
        note(&format!("all its rows would move to {to} while results arrive; its messages wait for the last of it"));
    }
    if then.retention_days < now.retention_days {
        note(&format!("results older than {} days would be removed ({} now)", then.retention_days, now.retention_days));
    }
    Ok(())
}

async fn change_plan(home: &Path, args: &PlanArgs, is_json: bool) -> Result<(), Failure> {
    let plan = open(home)?.plans.choose(args.plan).map_err(TenancyError::Plan)?.plan_ref();
    let manner = Manner { is_json, is_dry: args.dry_run };
    change(home, (&args.slug, args.max_disconnects), manner, |record| record.plan = plan).await
}

async fn set_stage(home: &Path, args: &ChangeArgs, stage: TenantStage, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let _lock = if args.dry_run { None } else { Some(tenancy.lock()?) };
    if args.dry_run {
        let record = tenancy.records.get(&args.slug).map_err(TenancyError::Record)?;
        let preview = tenancy.preview(&tenancy.links()?, &TenantRecord { stage, ..record }).await?;
        return show_preview(&preview, is_json);
    }
    let record = if stage == TenantStage::Suspended {
        taken_away(tenancy.suspend(&tenancy.links()?, &args.slug)).await?
    } else {
        tenancy.resume(&tenancy.connect().await?, &args.slug).await?
    };
    done(is_json, &format!("tenant {} is {}", args.slug, record.stage.as_str()), &record)
}

/// An offboarded tenant.
pub(super) async fn bring_back(home: &Path, slug: &TenantSlug, is_dry: bool, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    if is_dry {
        let record = tenancy.records.get(slug).map_err(TenancyError::Record)?;
        let text = format!("tenant {slug} would be brought back with plan {}", record.plan);
        return say(is_json, &text, &json!({"tenant": slug, "would": text}));
    }
    let lock = tenancy.lock()?;
    let links = tenancy.connect().await?;
    let record = tenancy.restore(&links, slug).await?;
    drop(lock);
    done(is_json, &format!("tenant {slug} is back"), &record)?;
    reconcile(&tenancy, &links).await
}
