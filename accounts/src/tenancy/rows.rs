//! One tenant's rows in a file, and back: to the tenant that they are of, or to a new one.
//!
//! Nobody's keys are in it, and none comes back from it: who may send is what the operator's records say.

use std::path::{Path, PathBuf};

use bulkhead_bus::{SiteName, TenantSlug};
use bulkhead_store::{Bring, BroughtRows, FedRows, ImportStep, Provisioning, ProvisioningError, RowPiece};
use serde_json::json;
use tokio::sync::mpsc;

use super::paths::SitePath;
use super::sparing::Sparing;
use super::{Act, IfThere, Links, NewTenant, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::backup::{ArchiveError, ArchiveReader, ArchiveWriter, Opening, Part, Seal, TenantManifest, read_manifest};
use crate::plan::{Plan, PlanChoice, PlanName};

/// Pieces of rows that are read ahead.
const READ_AHEAD: usize = 16;
const PREFIX: &str = "rows/";
const SUFFIX: &str = ".csv";
/// The step of a copy that made its tenant, with the tenant's id.
const MADE: &str = "made";

/// A backup of a tenant's rows that was read to its end.
pub struct VerifiedRows {
    pub manifest: TenantManifest,
    file: PathBuf,
    opening: Opening,
}

impl VerifiedRows {
    /// # Errors
    /// When it is not a whole backup of a tenant, or not for this key.
    pub fn read(file: PathBuf, opening: Opening) -> Result<Self, TenancyError> {
        let manifest = read_manifest(&file, &opening).map_err(TenancyError::Archive)?;
        Ok(Self { manifest, file, opening })
    }

    /// Reads it again, a piece at a time, and says at the end whether it is still what was verified.
    fn feed(&self, to: &mpsc::Sender<FedRows>) -> Result<(), ArchiveError> {
        let gone = || std::io::Error::other("nobody takes the rows any more");
        let manifest = ArchiveReader::<TenantManifest>::open(&self.file, &self.opening)?.read(&mut |name, part| {
            let fed = match part {
                Part::Begin { .. } => {
                    let name = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX)).unwrap_or(name);
                    FedRows::Begin(name.to_owned())
                }
                Part::Piece(piece) => FedRows::Bytes(piece.to_vec()),
                Part::End => FedRows::End,
            };
            to.blocking_send(fed).map_err(|_| gone())
        })?;
        if manifest != self.manifest {
            let what = "it has changed since it was verified".to_owned();
            return Err(ArchiveError::Different { path: self.file.display().to_string(), what });
        }
        to.blocking_send(FedRows::Whole).map_err(|_| ArchiveError::Use { part: "the end".to_owned(), source: gone() })
    }
}

impl Tenancy {
    /// Writes every row of a tenant, as of one moment, into a new file.
    ///
    /// # Errors
    /// When there is no such tenant, a file of that name is there, or the database does not answer.
    pub async fn backup_rows(
        &self,
        links: &Links,
        slug: &TenantSlug,
        (to, seal): (&Path, &Seal),
        announce: &(dyn Fn(&str) + Sync),
    ) -> Result<TenantManifest, TenancyError> {
        let stages = [TenantStage::Active, TenantStage::Suspended, TenantStage::Offboarded];
        let record = self.staged(slug, &stages, "")?;
        let database = self.rows_database(links).await?;
        let tenant = self.tenant_of(&record)?;
        let mut archive = ArchiveWriter::create(to, seal).map_err(TenancyError::Archive)?;
        let sparing = Sparing::new(announce);
        let mut write = |piece: RowPiece<'_>| match piece {
            RowPiece::Begin(name) => {
                sparing.say(&format!("reading {name}"));
                archive.begin(&format!("{PREFIX}{name}{SUFFIX}"), 0o600);
                Ok(())
            }
            RowPiece::Bytes(bytes) => archive.write(bytes),
            RowPiece::End => archive.end(),
        };
        let exported = database.export_tenant(&tenant, &mut write).await.map_err(TenancyError::Rows)?;
        let manifest = TenantManifest {
            taken_ms: exported.taken_ms,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            tenant: slug.clone(),
            tenant_id: tenant.id.as_uuid(),
            display_name: record.display_name,
            plan: tenant.plan,
            isolation: exported.isolation.as_str().to_owned(),
            schema_version: exported.schema_version,
            sites: exported.sites,
            pollers: exported.pollers,
            tables: exported.tables,
            parts: vec![],
        };
        archive.finish(manifest).map_err(TenancyError::Archive)
    }

    /// Brings rows back to the tenant that they are of. What it has received since the backup was taken stays; sites, pollers
    /// and their keys stay as they are.
    ///
    /// # Errors
    /// When that tenant is not there any more; or the rows are not whole, and then nothing was changed.
    pub async fn restore_rows(
        &self,
        links: &Links,
        backup: &VerifiedRows,
        announce: &(dyn Fn(&str) + Sync),
    ) -> Result<BroughtRows, TenancyError> {
        let manifest = &backup.manifest;
        let slug = &manifest.tenant;
        let record = self.check_back(manifest)?;
        let act = self.begin(Act::RestoreRows, slug.as_str(), detail(manifest))?;
        match self.bring(links, &record, Bring::Back { taken_ms: manifest.taken_ms }, (backup, announce)).await {
            Ok(brought) => {
                let detail = json!({"rows": brought.rows, "gone": brought.gone});
                act.finish(detail, self.now_s()).map_err(TenancyError::Journal)?;
                Ok(brought)
            }
            Err(error) => {
                // A database that does not answer may have taken it, or may still hold messages: that is said again.
                if !matches!(error, TenancyError::Rows(ProvisioningError::Sql { .. })) {
                    self.journal.forget(Act::RestoreRows, slug.as_str()).map_err(TenancyError::Journal)?;
                }
                Err(error)
            }
        }
    }

    /// The tenant that a backup is of.
    ///
    /// # Errors
    /// When it is not there any more, or offboarded.
    pub fn check_back(&self, manifest: &TenantManifest) -> Result<TenantRecord, TenancyError> {
        let slug = &manifest.tenant;
        let record = self.records.find(slug).map_err(TenancyError::Record)?;
        if record.is_none_or(|record| record.id != manifest.tenant_id) {
            return Err(TenancyError::Invalid(format!(
                "the tenant {slug} that this backup is of is not there any more: `--as SLUG` brings its rows to a new one"
            )));
        }
        let stages = [TenantStage::Active, TenantStage::Suspended];
        self.staged(slug, &stages, &format!("bring it back first (`bulkhead tenant restore {slug}`)"))
    }

    /// Makes a new tenant with the rows and sites of a backup. Said again after it was cut short, it goes on.
    ///
    /// # Errors
    /// When a tenant of that name is there, or what onboarding and the database refuse.
    pub async fn copy_rows(
        &self,
        links: &Links,
        backup: &VerifiedRows,
        (slug, plan): (&TenantSlug, Option<PlanChoice>),
        announce: &(dyn Fn(&str) + Sync),
    ) -> Result<(TenantRecord, BroughtRows), TenancyError> {
        let manifest = &backup.manifest;
        let sites = self.check_copy(manifest, slug)?;
        let mut act = self.begin(Act::CopyRows, slug.as_str(), detail(manifest))?;
        let order = NewTenant {
            slug: slug.clone(),
            display_name: manifest.display_name.clone(),
            plan: Some(self.plan_for(manifest, plan)?),
            if_there: IfThere::Leave,
        };
        let added = match self.add_tenant(links, &order, announce).await {
            Ok(added) => added,
            Err(error) => {
                // Nothing is left of it that could be gone on with.
                if matches!(self.records.find(slug), Ok(None)) {
                    self.journal.forget(Act::CopyRows, slug.as_str()).map_err(TenancyError::Journal)?;
                }
                return Err(error);
            }
        };
        if !act.is_done(MADE) {
            act.step_with(MADE, json!(added.record.id), self.now_s()).map_err(TenancyError::Journal)?;
        }
        for site in sites {
            self.add_site(links, &SitePath { tenant: slug.clone(), site }).await?;
        }
        let brought = self.bring(links, &added.record, Bring::Copy, (backup, announce)).await?;
        act.finish(json!({"rows": brought.rows}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok((self.records.get(slug).map_err(TenancyError::Record)?, brought))
    }

    /// Lays the rows out beside the tables of this release and compares them; nothing stays of it.
    ///
    /// # Errors
    /// When the rows do not come whole, or do not fit.
    pub async fn rehearse_rows(
        &self,
        links: &Links,
        backup: &VerifiedRows,
        announce: &(dyn Fn(&str) + Sync),
    ) -> Result<BroughtRows, TenancyError> {
        let manifest = &backup.manifest;
        let plan = self.plan_of_copy(manifest, None)?;
        let record = TenantRecord::new(manifest.tenant.clone(), uuid::Uuid::new_v4(), plan.plan_ref(), self.now_s());
        self.bring(links, &record, Bring::Rehearse, (backup, announce)).await
    }

    /// The sites that a copy gets.
    ///
    /// # Errors
    /// When a tenant of this name is there that is not this copy, or another backup's copy was begun under it.
    pub fn check_copy(&self, manifest: &TenantManifest, slug: &TenantSlug) -> Result<Vec<SiteName>, TenancyError> {
        let begun = self.journal.find(Act::CopyRows, slug.as_str()).map_err(TenancyError::Journal)?;
        let known = self.records.find(slug).map_err(TenancyError::Record)?;
        let begun = begun.unwrap_or_default();
        let is_made = |record: &TenantRecord| {
            record.stage == TenantStage::Adding
                || begun.iter().any(|line| line.step == MADE && line.detail == json!(record.id))
        };
        match (begun.first(), &known) {
            (Some(begun), _) if begun.detail != detail(manifest) => Err(TenancyError::Invalid(format!(
                "tenant {slug} was begun as the copy of another backup, and is not done: go on with that file, or remove it \
                 (`bulkhead tenant offboard {slug} --purge`)"
            ))),
            // Somebody else's, who came in between; or a copy without anything yet, to be on the safe side.
            (Some(_), Some(record)) if !is_made(record) => Err(TenancyError::AlreadyThere(slug.clone())),
            (None, Some(_)) => Err(TenancyError::AlreadyThere(slug.clone())),
            (Some(_), _) | (None, None) => {
                let parse = |site: &String| {
                    site.parse().map_err(|error| TenancyError::Invalid(format!("site {site:?} of the backup: {error}")))
                };
                manifest.sites.iter().map(parse).collect()
            }
        }
    }

    /// The plan that a copy would be on.
    ///
    /// # Errors
    /// When there is no such plan.
    pub fn plan_of_copy(&self, manifest: &TenantManifest, plan: Option<PlanChoice>) -> Result<Plan, TenancyError> {
        self.plans.choose(self.plan_for(manifest, plan)?).map_err(TenancyError::Plan)
    }

    fn plan_for(&self, manifest: &TenantManifest, plan: Option<PlanChoice>) -> Result<PlanChoice, TenancyError> {
        match plan {
            Some(plan) => Ok(plan),
            None => {
                let name: PlanName = manifest.plan.parse().map_err(|error| {
                    TenancyError::Invalid(format!(
                        "plan {:?} of the backup: {error}; name one with --plan",
                        manifest.plan
                    ))
                })?;
                Ok(PlanChoice::Newest(name))
            }
        }
    }

    pub(super) async fn rows_database<'a>(&self, links: &'a Links) -> Result<&'a Provisioning, TenancyError> {
        links.database().await?.ok_or_else(|| {
            TenancyError::Invalid("this platform has no database: there are no rows, and no place for any".to_owned())
        })
    }

    async fn bring(
        &self,
        links: &Links,
        record: &TenantRecord,
        how: Bring,
        (backup, announce): (&VerifiedRows, &(dyn Fn(&str) + Sync)),
    ) -> Result<BroughtRows, TenancyError> {
        let database = self.rows_database(links).await?;
        let tenant = self.tenant_of(record)?;
        let (feed, fed) = mpsc::channel(READ_AHEAD);
        let source = VerifiedRows {
            manifest: backup.manifest.clone(),
            file: backup.file.clone(),
            opening: backup.opening.clone(),
        };
        let sparing = Sparing::new(announce);
        let told = |step: ImportStep<'_>| match step {
            ImportStep::LayingOut(part) => sparing.say(&format!("laying out {part}")),
            ImportStep::Holding => announce("holding its messages"),
            ImportStep::Bringing(table) => announce(&format!("bringing and comparing {table}")),
        };
        let reading = tokio::task::spawn_blocking(move || source.feed(&feed));
        let brought = database.import_tenant(&tenant, how, &backup.manifest.tables, (fed, &told)).await;
        let read = reading.await.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()));
        match (read, brought) {
            (Err(error @ (ArchiveError::Damaged { .. } | ArchiveError::Different { .. })), _) => {
                Err(TenancyError::Archive(error))
            }
            (_, Err(error)) => Err(TenancyError::Rows(error)),
            (Err(error), Ok(_)) => Err(TenancyError::Archive(error)),
            (Ok(()), Ok(brought)) => Ok(brought),
        }
    }
}

/// By which a restore that was cut short is known again.
fn detail(manifest: &TenantManifest) -> serde_json::Value {
    json!({"of": manifest.tenant_id, "tenant": manifest.tenant, "taken_ms": manifest.taken_ms})
}
