//! `bulkhead apply`: brings the tenants to what a file says.

use std::path::{Path, PathBuf};

use bulkhead_runtime::Chain;
use clap::Args;
use serde_json::json;

use super::desk::{announcer, check_disconnects, note, open, reconcile, say};
use super::exit::{DONE, Failure, NOT_READY, PARTIAL};
use crate::files::read_text;
use crate::plan::PlanChoice;
use crate::tenancy::{
    Closing, IfThere, Links, NewTenant, Prune, Step, Tenancy, TenancyError, TenantRecord, TenantStage, WantedTenants,
    steps,
};

#[derive(Debug, Args)]
pub(super) struct ApplyArgs {
    /// The file: a list `tenants` of slug, plan, and if wanted name and suspended.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Offboard tenants that the file does not name. Nothing is purged.
    #[arg(long)]
    prune: bool,
    /// Change nothing when more connections would close.
    #[arg(long, value_name = "N")]
    max_disconnects: Option<usize>,
    /// Show the steps, and how many connections each would close.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(home: &Path, args: &ApplyArgs, is_json: bool) -> Result<(), Failure> {
    let path = args.file.display().to_string();
    let text = read_text(&args.file).map_err(|error| Failure::invalid("--file", error))?;
    let wanted = WantedTenants::parse(&text, &path).map_err(|error| Failure::invalid("--file", error))?;
    if args.prune && wanted.0.is_empty() {
        // More likely a file that was cut off than the end of everybody.
        return Err(Failure::refused_change(format!(
            "{path} names no tenant, and --prune would offboard all of them: nothing was changed; `bulkhead tenant offboard` \
             ends one at a time"
        )));
    }
    let tenancy = open(home)?;
    let _lock = if args.dry_run { None } else { Some(tenancy.lock()?) };
    let records = tenancy.records.all().map_err(TenancyError::Record)?;
    let prune = if args.prune { Prune::Offboard } else { Prune::Keep };
    let resolve = |choice| tenancy.plans.choose(choice).map(|plan| plan.plan_ref());
    let steps = steps(&wanted, &records, prune, resolve).map_err(TenancyError::Plan)?;
    if steps.is_empty() {
        return say(is_json, "everything is as the file says", &json!({"steps": 0}));
    }
    let links = tenancy.connect().await?;
    if args.dry_run || args.max_disconnects.is_some() {
        let mut closing = 0;
        for step in &steps {
            let closes = closed_by(&tenancy, &links, &records, step).await?;
            closing += closes.len();
            if args.dry_run {
                let mut text = format!("would {step}; {} connections would close", closes.len());
                for one in &closes {
                    text.push_str(&format!(
                        "\n  {} {} ({}) on {}: {}",
                        one.kind, one.user, one.role, one.server, one.why
                    ));
                }
                say(is_json, &text, &json!({"step": step, "closing": closes}))?;
            }
        }
        check_disconnects(closing, args.max_disconnects)?;
        if args.dry_run {
            return Ok(());
        }
    }
    let mut codes = Vec::new();
    for step in &steps {
        match take(&tenancy, &links, step, is_json).await {
            Ok(()) => {
                say(is_json, &format!("done: {step}"), &json!({"step": step, "done": true}))?;
                codes.push(DONE);
            }
            Err(error) => {
                note(&format!("{step}: {}", Chain(&error)));
                codes.push(if error.is_not_converged() { NOT_READY } else { PARTIAL });
            }
        }
    }
    reconcile(&tenancy, &links).await?;
    match codes.iter().filter(|&&code| code != DONE).max() {
        None => Ok(()),
        // All of them wait for the same servers: nothing but time is missing.
        Some(&NOT_READY) if codes.iter().all(|&code| code == NOT_READY || code == DONE) => {
            Err(Failure::with(NOT_READY, "some steps are not in force everywhere: say it again".to_owned()))
        }
        Some(_) => Err(Failure::with(PARTIAL, "some steps failed, the others are done: say it again".to_owned())),
    }
}

/// The connections that a step closes.
async fn closed_by(
    tenancy: &Tenancy,
    links: &Links,
    records: &[TenantRecord],
    step: &Step,
) -> Result<Vec<Closing>, TenancyError> {
    let Some(record) = records.iter().find(|record| record.slug == *step.tenant()) else { return Ok(vec![]) };
    let wanted = match step {
        Step::Add { .. } | Step::Restore { .. } | Step::Resume { .. } => return Ok(vec![]),
        Step::Change { plan, .. } => TenantRecord { plan: plan.unwrap_or(record.plan), ..record.clone() },
        Step::Suspend { .. } => TenantRecord { stage: TenantStage::Suspended, ..record.clone() },
        Step::Offboard { .. } => TenantRecord { stage: TenantStage::Offboarded, ..record.clone() },
    };
    if matches!(record.stage, TenantStage::Adding | TenantStage::Offboarded) {
        return Ok(vec![]);
    }
    Ok(tenancy.preview(links, &wanted).await?.closing)
}

async fn take(tenancy: &Tenancy, links: &Links, step: &Step, is_json: bool) -> Result<(), TenancyError> {
    let quiet = |_: &str| {};
    match step {
        Step::Add { tenant, plan } => {
            let order = NewTenant {
                slug: tenant.clone(),
                display_name: String::new(),
                plan: Some(PlanChoice::Version(*plan)),
                if_there: IfThere::Leave,
            };
            tenancy.add_tenant(links, &order, &quiet).await.map(drop)
        }
        Step::Restore { tenant } => tenancy.restore(links, tenant).await.map(drop),
        Step::Change { tenant, plan, name } => {
            let change = |record: &mut TenantRecord| {
                if let Some(plan) = plan {
                    record.plan = *plan;
                }
                if let Some(name) = name {
                    name.clone_into(&mut record.display_name);
                }
            };
            let changed = tenancy.change_tenant(links, tenant, change).await?;
            tenancy.move_rows(links, &changed, &announcer(is_json)).await.map(drop)
        }
        Step::Suspend { tenant } => tenancy.suspend(links, tenant).await.map(drop),
        Step::Resume { tenant } => tenancy.resume(links, tenant).await.map(drop),
        Step::Offboard { tenant } => tenancy.offboard(links, tenant, &announcer(is_json)).await.map(drop),
    }
}
