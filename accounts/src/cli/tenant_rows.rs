//! `bulkhead tenant backup` and what `bulkhead tenant restore` does with such a file; and the end of a tenant, which leaves one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_bus::TenantSlug;
use bulkhead_runtime::utc_of_ms;
use bulkhead_store::BroughtRows;
use clap::Args;
use serde_json::{Value, json};

use super::desk::{announcer, note, open, reconcile, say, show_preview};
use super::exit::{Failure, INVALID};
use super::show::{json_lines, write_lines};
use crate::backup::{Opening, Seal, TenantManifest};
use crate::plan::PlanChoice;
use crate::tenancy::{Act, Ended, Tenancy, TenancyError, TenantRecord, TenantStage, VerifiedRows};

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    slug: TenantSlug,
    /// The file to write. It must not be there yet.
    #[arg(long, short = 'o', value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    seal: SealArgs,
}

/// Without one of these the file is not sealed.
#[derive(Debug, Args)]
pub(super) struct SealArgs {
    /// Seal it for the owner of this age public key. May be repeated.
    #[arg(long = "recipient", value_name = "age1…")]
    recipients: Vec<String>,
    /// Seal it with the passphrase in the first line of this file.
    #[arg(long, value_name = "FILE", conflicts_with = "recipients")]
    passphrase_file: Option<PathBuf>,
}

impl SealArgs {
    fn seal(&self) -> Seal {
        match &self.passphrase_file {
            Some(file) => Seal::PassphraseFile(file.clone()),
            None if self.recipients.is_empty() => Seal::Open,
            None => Seal::Recipients(self.recipients.clone()),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The slug of an offboarded tenant; or, with --as, --in-place or --rehearse, a file of `bulkhead tenant backup`.
    what: String,
    /// Make a new tenant of this name with the rows and sites of the backup.
    #[arg(long = "as", value_name = "SLUG", group = "how")]
    copy: Option<TenantSlug>,
    /// Bring the rows back to the tenant that they are of. What it has received since stays.
    #[arg(long, group = "how")]
    in_place: bool,
    /// Lay the rows out in the database, compare them and remove them again; ends with 1 when something is not right.
    #[arg(long, group = "how")]
    rehearse: bool,
    /// The plan of the new tenant [default: the newest version of the plan that it was on].
    #[arg(long, requires = "copy")]
    plan: Option<PlanChoice>,
    /// A file with an age secret key that the backup was sealed for.
    #[arg(long, value_name = "FILE", requires = "how", conflicts_with = "passphrase_file")]
    identity: Option<PathBuf>,
    /// A file with the passphrase that the backup was sealed with.
    #[arg(long, value_name = "FILE", requires = "how")]
    passphrase_file: Option<PathBuf>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct OffboardArgs {
    slug: TenantSlug,
    /// Destroy keys and rows as well. This cannot be taken back.
    #[arg(long)]
    purge: bool,
    /// Before a purge, write all rows to this file, as `bulkhead tenant backup` does.
    #[arg(long, value_name = "FILE", requires = "purge", conflicts_with = "no_export")]
    export: Option<PathBuf>,
    /// Purge without keeping the rows anywhere; what they added up to is in the evidence all the same.
    #[arg(long, requires = "purge")]
    no_export: bool,
    #[command(flatten)]
    seal: SealArgs,
    /// Do not ask before a purge.
    #[arg(long)]
    yes: bool,
    /// Show what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// `1,204 rows` of each table that has some.
fn listed(rows: &BTreeMap<String, u64>) -> String {
    let some: Vec<String> = rows.iter().filter(|(_, n)| **n > 0).map(|(table, n)| format!("{table} {n}")).collect();
    if some.is_empty() { "none".to_owned() } else { some.join(", ") }
}

fn counts_of(manifest: &TenantManifest) -> BTreeMap<String, u64> {
    manifest.tables.iter().map(|(table, sum)| (table.clone(), sum.rows)).collect()
}

pub(super) async fn backup(home: &Path, args: &BackupArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let links = tenancy.links()?;
    let seal = args.seal.seal();
    let manifest = tenancy.backup_rows(&links, &args.slug, (&args.output, &seal), &announcer(is_json)).await?;
    if matches!(seal, Seal::Open) {
        note("it is not sealed: whoever has the file can read it (--recipient, --passphrase-file)");
    }
    if is_json {
        return write_lines(&json_lines(std::slice::from_ref(&manifest))?);
    }
    write_lines(&text_of(&manifest))
}

fn text_of(manifest: &TenantManifest) -> String {
    let taken = utc_of_ms(manifest.taken_ms).map_or_else(|| manifest.taken_ms.to_string(), |time| time.to_string());
    let bytes: u64 = manifest.parts.iter().map(|part| part.bytes).sum();
    format!(
        "tenant    {}, plan {}, {}\ntaken     {taken}, by release {}\nrows      {}\nsites     {}\npollers   {} (their keys are in no backup)\n\
         in all    {} rows, {} parts, {bytes} bytes, each verified\n",
        manifest.tenant,
        manifest.plan,
        manifest.isolation,
        manifest.release,
        listed(&counts_of(manifest)),
        if manifest.sites.is_empty() { "none".to_owned() } else { manifest.sites.join(", ") },
        if manifest.pollers.is_empty() { "none".to_owned() } else { manifest.pollers.join(", ") },
        manifest.rows(),
        manifest.parts.len(),
    )
}

pub(super) async fn restore(home: &Path, args: RestoreArgs, is_json: bool) -> Result<(), Failure> {
    let is_file = args.copy.is_some() || args.in_place || args.rehearse;
    if !is_file {
        let slug = args.what.parse().map_err(|error| {
            let hint = if Path::new(&args.what).exists() {
                "; for a file say --as SLUG, --in-place or --rehearse"
            } else {
                ""
            };
            Failure::with(INVALID, format!("tenant {:?}: {error}{hint}", args.what))
        })?;
        return super::tenant::bring_back(home, &slug, args.dry_run, is_json).await;
    }
    let opening = match (args.identity, args.passphrase_file) {
        (Some(file), _) => Opening::IdentityFile(file),
        (None, Some(file)) => Opening::PassphraseFile(file),
        (None, None) => Opening::Open,
    };
    let tenancy = open(home)?;
    let announce = announcer(is_json);
    announce("verifying the backup");
    let backup = VerifiedRows::read(PathBuf::from(args.what), opening)?;
    match args.copy {
        _ if args.rehearse => rehearse(&tenancy, &backup, is_json).await,
        Some(slug) => copy(&tenancy, &backup, (&slug, args.plan), args.dry_run, is_json).await,
        None => put_back(&tenancy, &backup, args.dry_run, is_json).await,
    }
}

async fn rehearse(tenancy: &Tenancy, backup: &VerifiedRows, is_json: bool) -> Result<(), Failure> {
    let links = tenancy.links()?;
    let brought = tenancy.rehearse_rows(&links, backup, &announcer(is_json)).await?;
    let text = format!(
        "{}\nEvery part was read, every row fits the tables of this release and is there once; nothing of it was kept.",
        text_of(&backup.manifest)
    );
    say(is_json, &text, &json!({"manifest": backup.manifest, "fits": brought.rows}))
}

fn told(brought: &BroughtRows) -> Value {
    let BroughtRows { rows, too_old, gone, kept, held } = brought;
    json!({"rows": rows, "too_old": too_old, "gone": gone, "kept": kept, "held_ms": u64::try_from(held.as_millis()).unwrap_or(u64::MAX)})
}

fn report(brought: &BroughtRows) -> String {
    let mut text = format!("rows      {}\n", listed(&brought.rows));
    if !brought.too_old.is_empty() {
        text.push_str(&format!("left out  {}: its plan does not keep them so long\n", listed(&brought.too_old)));
    }
    if !brought.kept.is_empty() {
        text.push_str(&format!(
            "kept      {}: received since three minutes before the backup, and other than in it\n",
            listed(&brought.kept)
        ));
    }
    if !brought.gone.is_empty() {
        text.push_str(&format!("gone      {}: the backup does not have them\n", listed(&brought.gone)));
    }
    text
}

async fn copy(
    tenancy: &Tenancy,
    backup: &VerifiedRows,
    (slug, plan): (&TenantSlug, Option<PlanChoice>),
    is_dry: bool,
    is_json: bool,
) -> Result<(), Failure> {
    let manifest = &backup.manifest;
    if is_dry {
        tenancy.check_copy(manifest, slug)?;
        let plan = tenancy.plan_of_copy(manifest, plan)?;
        note(&format!("plan {} keeps {} days: older rows would be left out", plan.plan_ref(), plan.retention_days));
        let text = format!("tenant {slug} would be made, with these rows and sites:\n{}", text_of(manifest));
        return say(is_json, text.trim_end(), &json!({"would": "copy", "tenant": slug, "manifest": manifest}));
    }
    let lock = tenancy.lock()?;
    let links = tenancy.connect().await?;
    let (record, brought) = tenancy.copy_rows(&links, backup, (slug, plan), &announcer(is_json)).await?;
    drop(lock);
    let mut text = format!("tenant {slug} is in force with plan {}\n{}", record.plan, report(&brought));
    if !manifest.pollers.is_empty() {
        let all: Vec<String> = manifest.pollers.iter().map(|poller| format!("{slug}/{poller}")).collect();
        text.push_str(&format!(
            "pollers   have keys of one tenant only; `bulkhead poller add` for {}\n",
            all.join(", ")
        ));
    }
    say(is_json, text.trim_end(), &json!({"tenant": record, "brought": told(&brought), "pollers": manifest.pollers}))?;
    if let Err(failure) = reconcile(tenancy, &links).await {
        note(&format!("its live view follows when `bulkhead push` succeeds: {}", failure.message()));
    }
    Ok(())
}

async fn put_back(tenancy: &Tenancy, backup: &VerifiedRows, is_dry: bool, is_json: bool) -> Result<(), Failure> {
    let manifest = &backup.manifest;
    let slug = &manifest.tenant;
    if is_dry {
        tenancy.check_back(manifest)?;
        let text = format!(
            "these rows would be brought back to tenant {slug}; what it has received since stays:\n{}",
            text_of(manifest)
        );
        return say(is_json, text.trim_end(), &json!({"would": "in-place", "manifest": manifest}));
    }
    let _lock = tenancy.lock()?;
    let links = tenancy.links()?;
    let brought = tenancy.restore_rows(&links, backup, &announcer(is_json)).await?;
    let held = brought.held.as_millis();
    let text = format!("tenant {slug} has its rows back; its messages waited for {held} ms\n{}", report(&brought));
    say(is_json, text.trim_end(), &json!({"tenant": slug, "brought": told(&brought)}))
}

pub(super) async fn offboard(home: &Path, args: OffboardArgs, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let slug = &args.slug;
    let record = tenancy.records.get(slug).map_err(TenancyError::Record)?;
    if args.purge && args.export.is_none() && !args.no_export {
        return Err(Failure::with(
            INVALID,
            "a purge destroys rows for ever: keep them with --export FILE, or say --no-export".to_owned(),
        ));
    }
    let seal = args.seal.seal();
    let export = args.export.as_deref().map(|to| (to, &seal));
    // Before anything is done that cannot be taken back.
    tenancy.check_export(slug, export)?;
    if args.dry_run {
        return preview_offboard(&tenancy, record, &args, is_json).await;
    }
    let is_done = record.stage == TenantStage::Offboarded && !tenancy.is_under_way(Act::OffboardTenant, slug)?;
    if is_done && !args.purge {
        let text =
            format!("tenant {slug} is offboarded already: `bulkhead tenant offboard {slug} --purge` destroys it");
        return super::tenant::done(is_json, &text, &record);
    }
    if args.purge && !args.yes && !confirmed(slug)? {
        return Err(Failure::refused_change(format!("tenant {slug} is as it was: say --yes, or type its slug")));
    }
    let _lock = tenancy.lock()?;
    let links = tenancy.connect().await?;
    let announce = announcer(is_json);
    let mut ended = None;
    if record.stage != TenantStage::Offboarded || !args.purge {
        ended = Some(tenancy.offboard(&links, slug, &announce).await?);
    }
    if args.purge {
        ended = Some(tenancy.purge(&links, slug, export, &announce).await?);
    }
    let Some(Ended { evidence, file }) = ended else { return Ok(()) };
    let what = if evidence.is_purged { "purged" } else { "offboarded" };
    let mut text = format!("tenant {slug} is {what}; the signed evidence is {}", file.display());
    if let Some(export) = &evidence.export {
        text.push_str(&format!("\nits rows are in {}, SHA-256 {}", export.file.display(), export.sha256));
    }
    say(is_json, &text, &json!({"evidence": evidence, "file": file}))
}

async fn preview_offboard(
    tenancy: &Tenancy,
    record: TenantRecord,
    args: &OffboardArgs,
    is_json: bool,
) -> Result<(), Failure> {
    let slug = &args.slug;
    let links = tenancy.links()?;
    let closed = TenantRecord { stage: TenantStage::Offboarded, ..record };
    show_preview(&tenancy.preview(&links, &closed).await?, is_json)?;
    if !args.purge {
        return Ok(());
    }
    let kept = match &args.export {
        Some(file) => format!("after they were written to {}", file.display()),
        None => "without a copy".to_owned(),
    };
    let text = format!(
        "all rows of {slug} in the database ({kept}), its private keys and those of its people and pollers here would be \
         destroyed, for ever"
    );
    say(is_json, &text, &json!({"tenant": slug, "would": text}))
}

/// Asks on a terminal; elsewhere nobody is there to be asked.
fn confirmed(slug: &TenantSlug) -> Result<bool, Failure> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    note(&format!("this destroys all rows and keys of {slug}, for ever; type its slug to go on:"));
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(Failure::failed)?;
    Ok(line.trim() == slug.as_str())
}
