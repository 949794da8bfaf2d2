//! `bulkhead site` and `bulkhead poller`: what a tenant has at its places, and the bundles that start it there.

use std::path::{Path, PathBuf};

use bulkhead_runtime::now_ms;
use bulkhead_store::WithPollers;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::desk::{note, open, say, show_preview};
use super::exit::Failure;
use super::show::{Row, moment, print_rows};
use super::{Scope, whole};
use crate::tenancy::{
    BundleOrder, FileState, PollerPath, SitePath, Standing, Tenancy, TenancyError, TenantRecord, WrittenBundle,
};
use crate::up::Target;
use bulkhead_bus::TenantSlug;

#[derive(Debug, Subcommand)]
pub(super) enum SiteCommand {
    /// Add a site; adding its first poller does it as well.
    #[command(after_help = "Example:\n  bulkhead site add acme-corp/oslo")]
    Add(SiteArgs),
    /// Sites with their pollers, and when what they hold expires.
    #[command(after_help = "Examples:\n  bulkhead site list\n  bulkhead site list --tenant acme-corp --json")]
    List {
        /// Only this tenant.
        #[arg(long, value_name = "SLUG")]
        tenant: Option<TenantSlug>,
    },
    /// Remove a site: its leaf is disconnected and never admitted again. Results stay.
    #[command(after_help = "Example:\n  bulkhead site remove acme-corp/oslo --with-pollers")]
    Remove(SiteRemoveArgs),
}

#[derive(Debug, Args)]
pub(super) struct SiteArgs {
    /// Such as acme-corp/oslo.
    site: SitePath,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct SiteRemoveArgs {
    /// Such as acme-corp/oslo.
    site: SitePath,
    /// Its pollers go with it.
    #[arg(long)]
    with_pollers: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum PollerCommand {
    /// Add a poller, and write the bundle of its site: leaf, pollers, certificates, units, README.
    #[command(
        after_help = "Examples:\n  bulkhead poller add acme-corp/oslo/p1 --to bundles\n  bulkhead poller add acme-corp/oslo/p2 --to bundles --target https://example.com/\n\nOnce more for the same poller writes the bundle anew, for certificates that come to their end."
    )]
    Add(BundleArgs),
    /// Pollers with site and when a batch of theirs was last stored, as core knows it.
    #[command(after_help = "Example:\n  bulkhead poller list --tenant acme-corp")]
    List(Scope),
    /// One poller: its key, its certificates and when they expire.
    #[command(after_help = "Example:\n  bulkhead poller show acme-corp/oslo/p1 --json")]
    Show { poller: PollerPath },
    /// Give a poller a new batch key, and write its site's bundle anew. What the old key has signed is refused.
    #[command(after_help = "Example:\n  bulkhead poller rotate acme-corp/oslo/p1 --to bundles")]
    Rotate(BundleArgs),
    /// Refuse what a poller signs, within a second, and revoke its certificates.
    #[command(after_help = "Example:\n  bulkhead poller revoke acme-corp/oslo/p1")]
    Revoke(PollerArgs),
    /// Take a poller off the lists; what it has measured stays.
    #[command(after_help = "Example:\n  bulkhead poller remove acme-corp/oslo/p1")]
    Remove(PollerArgs),
}

#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// Such as acme-corp/oslo/p1.
    poller: PollerPath,
    /// The folder that gets the bundle's folder and archive.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Watch this as well: tcp://host:port, http(s)://…, icmp://host, dns://name. May be repeated [default: as before].
    #[arg(long = "target", value_name = "URL")]
    targets: Vec<Target>,
    /// Watch nothing but the machine and its leaf from now on.
    #[arg(long, conflicts_with = "targets")]
    no_target: bool,
    /// Where the leaf listens on the site's loopback interface [default: as before; 4222].
    #[arg(long, value_name = "PORT", value_parser = whole::<u16>(1..=65_535))]
    leaf_port: Option<u16>,
    /// Where the site's first poller is asked about its health, the others behind it [default: as before; 9101].
    #[arg(long, value_name = "PORT", value_parser = whole::<u16>(1..=65_000))]
    health_port: Option<u16>,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

impl BundleArgs {
    fn order(&self) -> BundleOrder {
        let targets = if self.no_target || !self.targets.is_empty() { Some(self.targets.clone()) } else { None };
        BundleOrder { to: self.to.clone(), targets, leaf_port: self.leaf_port, health_port: self.health_port }
    }
}

#[derive(Debug, Args)]
pub(super) struct PollerArgs {
    /// Such as acme-corp/oslo/p1.
    poller: PollerPath,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct SiteLine {
    tenant: String,
    site: String,
    pollers: Vec<String>,
    revoked: Vec<String>,
    /// Of its leaf's file; `None` where it has none.
    leaf: Option<FileState>,
    /// Unix seconds; 0 where nothing was issued.
    expires: i64,
}

impl SiteLine {
    fn all(record: &TenantRecord) -> Vec<Self> {
        let names = |site: &crate::tenancy::SiteRecord, standing: Standing| {
            let of = site.pollers.iter().filter(|(_, poller)| poller.standing == standing);
            of.map(|(name, _)| name.to_string()).collect()
        };
        let line = |(name, site): (&bulkhead_bus::SiteName, &crate::tenancy::SiteRecord)| {
            let ends = site.pollers.values().map(|poller| poller.issued.certificates_expire);
            let ends = ends.chain([site.leaf.certificates_expire]);
            Self {
                tenant: record.slug.to_string(),
                site: name.to_string(),
                pollers: names(site, Standing::Active),
                revoked: names(site, Standing::Revoked),
                leaf: (!site.leaf.serials.is_empty()).then(|| site.leaf.state(now_ms() / 1_000)),
                expires: ends.filter(|&end| end > 0).min().unwrap_or(0),
            }
        };
        record.sites.iter().map(line).collect()
    }
}

impl Row for SiteLine {
    const HEADER: &'static [&'static str] = &["TENANT", "SITE", "POLLERS", "REVOKED", "LEAF", "EXPIRES (UTC)"];

    fn cells(&self, now_ms: i64) -> Vec<String> {
        vec![
            self.tenant.clone(),
            self.site.clone(),
            self.pollers.join(", "),
            self.revoked.join(", "),
            self.leaf.map_or("-", FileState::as_str).to_owned(),
            if self.expires == 0 { "-".to_owned() } else { moment(self.expires * 1_000, now_ms) },
        ]
    }
}

pub(super) async fn run_site(home: &Path, command: SiteCommand, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    match command {
        SiteCommand::Add(args) => {
            if args.dry_run {
                return would(&tenancy, &args.site.tenant, format!("site {} would be added", args.site), is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            tenancy.add_site(&links, &args.site).await?;
            say(is_json, &format!("site {} is there", args.site), &json!({"site": args.site.to_string()}))
        }
        SiteCommand::List { tenant } => {
            let records = match tenant {
                Some(slug) => vec![tenancy.records.get(&slug).map_err(TenancyError::Record)?],
                None => tenancy.records.all().map_err(TenancyError::Record)?,
            };
            let mut lines = Vec::new();
            for record in &records {
                lines.extend(SiteLine::all(record));
            }
            print_rows(&lines, is_json, now_ms())
        }
        SiteCommand::Remove(args) => {
            let with = if args.with_pollers { WithPollers::Remove } else { WithPollers::Refuse };
            if args.dry_run {
                let links = tenancy.connect().await?;
                let preview = tenancy.preview_site_removal(&links, &args.site, with).await?;
                return show_preview(&preview, is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            tenancy.remove_site(&links, &args.site, with).await?;
            say(is_json, &format!("site {} is removed", args.site), &json!({"removed": args.site.to_string()}))
        }
    }
}

fn would(tenancy: &Tenancy, slug: &TenantSlug, text: String, is_json: bool) -> Result<(), Failure> {
    tenancy.records.get(slug).map_err(TenancyError::Record)?;
    say(is_json, &text, &json!({"tenant": slug, "would": text}))
}

/// Pollers connect to their leaf, so that nothing of the hub closes.
fn would_change(tenancy: &Tenancy, path: &PollerPath, text: String, is_json: bool) -> Result<(), Failure> {
    let record = tenancy.records.get(&path.tenant).map_err(TenancyError::Record)?;
    tenancy.poller(&record, path)?;
    say(is_json, &text, &json!({"poller": path.to_string(), "would": text}))
}

fn written(bundle: &WrittenBundle, what: &str, is_json: bool) -> Result<(), Failure> {
    let manifest = &bundle.manifest;
    let text = format!(
        "{what}; the bundle of {}/{} is {} (and unpacked in {})\nSHA-256 {}\nit has to be renewed before {}",
        manifest.tenant,
        manifest.site,
        bundle.archive.display(),
        bundle.folder.display(),
        bundle.sha256,
        manifest.ends
    );
    let value = json!({
        "folder": bundle.folder, "archive": bundle.archive, "sha256": bundle.sha256, "manifest": manifest,
    });
    say(is_json, &text, &value)
}

pub(super) async fn run_poller(home: &Path, command: PollerCommand, is_json: bool) -> Result<(), Failure> {
    match command {
        PollerCommand::List(scope) => super::query::list_pollers(home, &scope, is_json).await,
        PollerCommand::Show { poller } => show(home, &poller, is_json),
        PollerCommand::Add(args) => {
            let tenancy = open(home)?;
            if args.dry_run {
                let record = tenancy.records.get(&args.poller.tenant).map_err(TenancyError::Record)?;
                let text = match tenancy.poller(&record, &args.poller) {
                    Ok(_) => format!("poller {} is there, and its site's bundle would be written anew", args.poller),
                    Err(_) => format!("poller {} would be added, and its site's bundle written", args.poller),
                };
                return would(&tenancy, &args.poller.tenant, text, is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            let bundle = tenancy.add_poller(&links, &args.poller, &args.order()).await?;
            written(&bundle, &format!("poller {} is there", args.poller), is_json)
        }
        PollerCommand::Rotate(args) => {
            let tenancy = open(home)?;
            if args.dry_run {
                let text =
                    format!("poller {} would get a new key; what the old one has signed is refused", args.poller);
                return would_change(&tenancy, &args.poller, text, is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            let bundle = tenancy.rotate_poller(&links, &args.poller, &args.order()).await?;
            if tenancy.runs_here(&args.poller) {
                note("`bulkhead up` runs this poller: what it measures is refused until `up` is started again");
            }
            written(&bundle, &format!("poller {} has a new key", args.poller), is_json)
        }
        PollerCommand::Revoke(args) => {
            let tenancy = open(home)?;
            if args.dry_run {
                let text = format!("what poller {} signs would be refused", args.poller);
                return would_change(&tenancy, &args.poller, text, is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            tenancy.revoke_poller(&links, &args.poller).await?;
            let text = format!("what poller {} signs is refused; write its site a bundle without it", args.poller);
            say(is_json, &text, &json!({"revoked": args.poller.to_string()}))
        }
        PollerCommand::Remove(args) => {
            let tenancy = open(home)?;
            if args.dry_run {
                let text = format!("poller {} would be removed", args.poller);
                return would_change(&tenancy, &args.poller, text, is_json);
            }
            let _lock = tenancy.lock()?;
            let links = tenancy.connect().await?;
            tenancy.remove_poller(&links, &args.poller).await?;
            say(is_json, &format!("poller {} is removed", args.poller), &json!({"removed": args.poller.to_string()}))
        }
    }
}

fn show(home: &Path, path: &PollerPath, is_json: bool) -> Result<(), Failure> {
    let tenancy = open(home)?;
    let record = tenancy.records.get(&path.tenant).map_err(TenancyError::Record)?;
    let poller = tenancy.poller(&record, path)?;
    let state = if poller.standing == Standing::Active { "active" } else { "revoked" };
    let text = format!(
        "poller        {path}\nstate         {state}\nbatch key     {}\ncertificates  {}\nexpires       {}",
        poller.batch_key,
        if poller.issued.serials.is_empty() { "by `bulkhead up`".to_owned() } else { poller.issued.serials.join(", ") },
        match poller.issued.certificates_expire {
            0 => "-".to_owned(),
            end => moment(end * 1_000, now_ms()),
        },
    );
    say(is_json, &text, &json!({"poller": path.to_string(), "record": poller}))
}
