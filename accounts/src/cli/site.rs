//! `bulkhead site`: what a tenant has at its places.

use std::path::Path;

use bulkhead_runtime::now_ms;
use bulkhead_store::WithPollers;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::desk::{open, say, show_preview, taken_away};
use super::exit::Failure;
use super::show::{Row, moment, print_rows};
use crate::tenancy::{FileState, SitePath, Standing, Tenancy, TenancyError, TenantRecord};
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
                let links = tenancy.links()?;
                let preview = tenancy.preview_site_removal(&links, &args.site, with).await?;
                return show_preview(&preview, is_json);
            }
            let _lock = tenancy.lock()?;
            taken_away(tenancy.remove_site(&tenancy.links()?, &args.site, with)).await?;
            say(is_json, &format!("site {} is removed", args.site), &json!({"removed": args.site.to_string()}))
        }
    }
}

pub(super) fn would(tenancy: &Tenancy, slug: &TenantSlug, text: String, is_json: bool) -> Result<(), Failure> {
    tenancy.records.get(slug).map_err(TenancyError::Record)?;
    say(is_json, &text, &json!({"tenant": slug, "would": text}))
}
