//! `bulkhead plan`: versions of plans, and who is on them.

use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::desk::{check_disconnects, open, say, show_preview};
use super::exit::{Failure, PARTIAL};
use super::show::{Row, json_lines, print_rows, write_lines};
use crate::plan::{Plan, PlanChoice, read_plan};
use crate::tenancy::{TenancyError, TenantRecord, TenantStage};

#[derive(Debug, Subcommand)]
pub(super) enum PlanCommand {
    /// Every version of every plan, and how many tenants are on it.
    #[command(after_help = "Example:\n  bulkhead plan list --json")]
    List,
    /// What a plan allows, as the file that it is.
    #[command(after_help = "Example:\n  bulkhead plan show pro@1 > pro.toml")]
    Show { plan: PlanChoice },
    /// Keep a new version of a plan, and move the tenants of that plan to it.
    #[command(
        after_help = "Examples:\n  bulkhead plan apply pro.toml --dry-run\n  bulkhead plan apply pro.toml --max-disconnects 0\n  bulkhead plan apply pro.toml --keep-tenants     new tenants only\n\nEnds with 3 when some tenants were moved and some were not; say it again to go on."
    )]
    Apply(ApplyArgs),
}

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// A plan file with a version that is not there yet.
    file: PathBuf,
    /// Leave tenants on the versions that they are on.
    #[arg(long)]
    keep_tenants: bool,
    /// Change nothing when more connections would close.
    #[arg(long, value_name = "N")]
    max_disconnects: Option<usize>,
    /// Show what changes for each tenant.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct PlanLine {
    #[serde(flatten)]
    plan: Plan,
    tenants: usize,
}

impl Row for PlanLine {
    const HEADER: &'static [&'static str] =
        &["PLAN", "TENANTS", "CONNECTIONS", "LEAF LINKS", "SUBSCRIPTIONS", "PAYLOAD", "RETENTION", "UNSIGNED"];

    fn cells(&self, _now_ms: i64) -> Vec<String> {
        vec![
            self.plan.plan_ref().to_string(),
            self.tenants.to_string(),
            self.plan.connections.to_string(),
            self.plan.leaf_links.to_string(),
            self.plan.subscriptions.to_string(),
            format!("{} B", self.plan.payload_bytes),
            format!("{} days", self.plan.retention_days),
            if self.plan.allows_unsigned { "stored" } else { "refused" }.to_owned(),
        ]
    }
}

pub(super) async fn run(home: &Path, command: PlanCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        PlanCommand::List => list(home, is_json),
        PlanCommand::Show { plan } => {
            let plan = open(home)?.plans.choose(plan).map_err(TenancyError::Plan)?;
            if is_json {
                return write_lines(&json_lines(&[plan])?);
            }
            write_lines(&toml::to_string(&plan).map_err(Failure::failed)?)
        }
        PlanCommand::Apply(args) => apply(home, &args, is_json).await,
    }
}

fn list(home: &Path, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let records = tenancy.records.all().map_err(TenancyError::Record)?;
    let mut lines = Vec::new();
    for plan in tenancy.plans.refs().map_err(TenancyError::Plan)? {
        let tenants = records.iter().filter(|record| record.plan == plan).count();
        lines.push(PlanLine { plan: tenancy.plans.get(plan).map_err(TenancyError::Plan)?, tenants });
    }
    print_rows(&lines, is_json, now_ms())
}

async fn apply(home: &Path, args: &ApplyArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let plan = read_plan(&args.file).map_err(TenancyError::Plan)?;
    let wanted = plan.plan_ref();
    let is_kept = tenancy.plans.is_kept(&plan).map_err(TenancyError::Plan)?;
    let records = tenancy.records.all().map_err(TenancyError::Record)?;
    let is_concerned = |record: &&TenantRecord| {
        !args.keep_tenants
            && record.plan.name == wanted.name
            && record.plan != wanted
            && matches!(record.stage, TenantStage::Active | TenantStage::Suspended)
    };
    let concerned: Vec<&TenantRecord> = records.iter().filter(is_concerned).collect();
    let _lock = if args.dry_run { None } else { Some(tenancy.lock()?) };
    let links = tenancy.connect().await?;
    if args.dry_run || args.max_disconnects.is_some() {
        let mut closing = 0;
        for record in &concerned {
            let preview = tenancy.preview_plan(&links, record, &plan).await?;
            closing += preview.closing.len();
            if args.dry_run {
                show_preview(&preview, is_json)?;
            }
        }
        if args.dry_run {
            let verb = if is_kept { "is kept already" } else { "would be kept" };
            let text = format!("{wanted} {verb}, and {} tenants would move to it", concerned.len());
            return say(is_json, &text, &json!({"plan": wanted, "is_kept": is_kept, "would_move": concerned.len()}));
        }
        check_disconnects(closing, args.max_disconnects)?;
    }
    tenancy.plans.add(&plan).map_err(TenancyError::Plan)?;
    let mut failed = Vec::new();
    for record in &concerned {
        let moved = async {
            let changed = tenancy.change_tenant(&links, &record.slug, |record| record.plan = wanted).await?;
            tenancy.move_rows(&links, &changed, &|_| {}).await
        };
        if let Err(error) = moved.await {
            failed.push(format!("{}: {}", record.slug, bulkhead_runtime::Chain(&error)));
        }
    }
    let moved = concerned.len() - failed.len();
    let text = format!("{wanted} is kept; {moved} of {} tenants that were to move to it did", concerned.len());
    say(is_json, &text, &json!({"plan": wanted, "moved": moved, "failed": failed}))?;
    if failed.is_empty() { Ok(()) } else { Err(Failure::with(PARTIAL, failed.join("; "))) }
}
