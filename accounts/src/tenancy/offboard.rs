//! The end of a tenant, in two steps that are each journalled: it is taken off the servers and kept, so that it can be
//! brought back; and it is purged, with signed evidence of what was destroyed.
//!
//! Closed first, because a deletion has no tombstone and a suspension reaches servers that are away (facts:
//! accounts-and-nsc, finding 4).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_bus::{TenantSlug, TenantState};
use bulkhead_claims::{Claims, GenericBody, encode};
use bulkhead_store::TableSum;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use super::{Act, Links, OpenAct, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::backup::{ArchiveError, ArchiveWriter, Seal, TenantManifest};
use crate::files::{remove_whole, write_secret};
use crate::gate::GateBook;
use crate::resolver::{DeletionReport, SYNC_INTERVAL, ensure_stays_deleted};
use crate::up::tenant_row;

/// What an offboarding or a purge came to.
#[derive(Debug, Clone, Serialize)]
pub struct Evidence {
    pub tenant: TenantSlug,
    pub account: String,
    /// Unix seconds.
    pub at: i64,
    /// Servers that had the account and have it no more.
    pub deleted_from: Vec<String>,
    /// Servers that were seen without it.
    pub seen_without: Vec<String>,
    /// Rows that were destroyed, by table; empty as long as nothing was.
    pub rows: BTreeMap<String, u64>,
    /// What each table added up to before anything of it was destroyed: rows, and SHA-256 of their text.
    pub tables: BTreeMap<String, TableSum>,
    /// The file that the rows were exported to.
    pub export: Option<ExportFile>,
    /// Seeds that were destroyed.
    pub seeds: usize,
    pub is_purged: bool,
}

/// A file of rows that were destroyed in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportFile {
    pub file: PathBuf,
    pub sha256: String,
}

/// What was there before it is destroyed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct LastLook {
    tables: BTreeMap<String, TableSum>,
    export: Option<ExportFile>,
}

/// The step of a purge that is done before anything is destroyed.
const EXPORTED: &str = "exported";

/// What was done, and where it is written down.
#[derive(Debug)]
pub struct Ended {
    pub evidence: Evidence,
    /// The evidence as the operator has signed it.
    pub file: PathBuf,
}

impl Tenancy {
    /// Closes the tenant, takes its account off every server and its live import out; keys, certificates and rows stay until
    /// it is purged. `watched` is how long the servers are watched afterwards.
    ///
    /// # Errors
    /// When a server could not be asked: it may bring the account back, so say it again when it is there.
    pub async fn offboard(
        &self,
        links: &Links,
        slug: &TenantSlug,
        announce: &dyn Fn(&str),
    ) -> Result<Ended, TenancyError> {
        let allowed = [TenantStage::Active, TenantStage::Suspended, TenantStage::Offboarded];
        let record = self.staged(slug, &allowed, "")?;
        let mut act = self.begin(Act::OffboardTenant, slug.as_str(), json!({}))?;
        let record = TenantRecord { stage: TenantStage::Offboarded, ..record };
        self.records.write(&record).map_err(TenancyError::Record)?;
        if !act.is_done("closed") {
            announce("closing the account");
            self.close(links, &record).await?;
            self.set_state(links, &record, TenantState::Suspended).await?;
            act.step("closed", self.now_s()).map_err(TenancyError::Journal)?;
        }
        announce("taking its live stream out");
        self.intake.mark(slug).map_err(TenancyError::Intake)?;
        self.reconcile_live(Some(links)).await?;
        announce("taking its keys from the gatekeepers");
        if let Some(account) = &record.account {
            self.untell_gate(links, slug, account).await?;
        }
        announce("deleting the account from every server");
        let report = self.delete_account(links, &record, SYNC_INTERVAL).await?;
        let evidence = self.evidence(links, &record, &report, BTreeMap::new(), 0);
        let file = self.sign_evidence(&evidence)?;
        act.finish(json!(evidence), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(Ended { evidence, file })
    }

    /// Destroys an offboarded tenant: rows, certificates' authority, keys, record. Its slug can be used again, and opens
    /// nothing old. Before that its rows are written to `export`, if there is one.
    ///
    /// # Errors
    /// When it is not offboarded, the export cannot be written, or a server could not be asked.
    pub async fn purge(
        &self,
        links: &Links,
        slug: &TenantSlug,
        export: Option<(&Path, &Seal)>,
        announce: &(dyn Fn(&str) + Sync),
    ) -> Result<Ended, TenancyError> {
        let record =
            self.staged(slug, &[TenantStage::Offboarded], "offboard it first; purging cannot be taken back")?;
        if self.is_under_way(Act::OffboardTenant, slug)? {
            self.offboard(links, slug, announce).await?;
        }
        self.check_export(slug, export)?;
        let mut act = self.begin(Act::PurgeTenant, slug.as_str(), json!({"account": record.account}))?;
        announce("looking at its rows for the last time");
        let last = self.last_look(links, &record, export, announce, &mut act).await?;
        announce("looking at every server once more");
        let report = self.delete_account(links, &record, Duration::ZERO).await?;
        announce("destroying rows");
        let rows = self.purge_rows(links, &record).await?;
        announce("destroying keys");
        let seeds = self.destroy_keys(slug)?;
        let evidence = self.evidence(links, &record, &report, rows, seeds);
        let evidence = Evidence { is_purged: true, tables: last.tables, export: last.export, ..evidence };
        let file = self.sign_evidence(&evidence)?;
        links.forget(slug.as_str());
        GateBook::new(&self.platform.layout).forget(slug.as_str()).map_err(TenancyError::Gate)?;
        // Last: as long as the record is there, a purge that was cut short can be said again.
        self.records.remove(slug).map_err(TenancyError::Record)?;
        act.finish(json!(evidence), self.now_s()).map_err(TenancyError::Journal)?;
        self.journal.forget_tenant(slug.as_str()).map_err(TenancyError::Journal)?;
        Ok(Ended { evidence, file })
    }

    /// Whether an export could be written, by beginning one; of a purge that has looked for the last time, whether it was begun so.
    ///
    /// # Errors
    /// When the file is there already, its folder is not, or a key cannot be used; or when rows may be gone that were not exported
    /// there.
    pub fn check_export(&self, slug: &TenantSlug, export: Option<(&Path, &Seal)>) -> Result<(), TenancyError> {
        let Some((to, seal)) = export else { return Ok(()) };
        let Some(last) = self.last_looked(slug)? else {
            return ArchiveWriter::<TenantManifest>::create(to, seal).map(drop).map_err(TenancyError::Archive);
        };
        match last.export {
            Some(export) if export.file == absolute(to) => Ok(()),
            Some(ExportFile { file, .. }) => Err(TenancyError::Invalid(format!(
                "the purge of tenant {slug} has begun, and its rows are in {}: say it with that file",
                file.display()
            ))),
            None => Err(TenancyError::Invalid(format!(
                "the purge of tenant {slug} has begun without an export, and rows may be gone: only --no-export completes it"
            ))),
        }
    }

    /// What a purge that may have destroyed something has seen before.
    fn last_looked(&self, slug: &TenantSlug) -> Result<Option<LastLook>, TenancyError> {
        let begun = self.journal.find(Act::PurgeTenant, slug.as_str()).map_err(TenancyError::Journal)?;
        let step = begun.and_then(|lines| lines.into_iter().find(|line| line.step == EXPORTED));
        Ok(step.map(|step| serde_json::from_value(step.detail).unwrap_or_default()))
    }

    /// What there is before it is destroyed; written down, so that a purge that was cut short does not look at what is left.
    async fn last_look(
        &self,
        links: &Links,
        record: &TenantRecord,
        export: Option<(&Path, &Seal)>,
        announce: &(dyn Fn(&str) + Sync),
        act: &mut OpenAct,
    ) -> Result<LastLook, TenancyError> {
        if let Some(last) = self.last_looked(&record.slug)? {
            return Ok(last);
        }
        let mut last = LastLook::default();
        let is_listed = match (links.database().await?, &record.account) {
            (Some(database), Some(account)) => {
                database.tenant_by_account(account).await.map_err(TenancyError::Rows)?.is_some()
            }
            (None, _) | (_, None) => false,
        };
        if is_listed && let Some(database) = links.database().await? {
            // What still waited at the hub was stored until here; from here on nothing is.
            let closed = database.set_tenant_state(&self.tenant_of(record)?, TenantState::Offboarding).await;
            closed.map_err(TenancyError::Rows)?;
        }
        match (is_listed, export) {
            (true, Some((to, seal))) => {
                last.tables = self.backup_rows(links, &record.slug, (to, seal), announce).await?.tables;
                let file = absolute(to);
                let sha256 = sha256_of(&file).map_err(|source| {
                    TenancyError::Archive(ArchiveError::Read { path: file.display().to_string(), source })
                })?;
                last.export = Some(ExportFile { file, sha256 });
            }
            (true, None) => {
                let tenant = self.tenant_of(record)?;
                let database = self.rows_database(links).await?;
                last.tables = database.sum_tenant(&tenant).await.map_err(TenancyError::Rows)?;
            }
            (false, Some(_)) => {
                let slug = &record.slug;
                let problem = format!(
                    "tenant {slug} has no rows in the database, so there is nothing to export: say --no-export"
                );
                return Err(TenancyError::Invalid(problem));
            }
            (false, None) => {}
        }
        act.step_with(EXPORTED, json!(last), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(last)
    }

    /// Brings an offboarded tenant back as it was, with the same keys and rows. Its account is signed anew, because servers
    /// do not take the token that they have seen deleted (finding 5).
    ///
    /// # Errors
    /// When it is not offboarded, or a server does not follow.
    pub async fn restore(&self, links: &Links, slug: &TenantSlug) -> Result<TenantRecord, TenancyError> {
        if self.last_looked(slug)?.is_some() {
            return Err(TenancyError::Invalid(format!(
                "the purge of tenant {slug} has begun and cannot be taken back: `bulkhead tenant offboard {slug} --purge` completes it"
            )));
        }
        let is_cut = self.is_under_way(Act::RestoreTenant, slug)?;
        // One that was cut short has its record already, and not yet its account.
        let allowed =
            if is_cut { &[TenantStage::Offboarded, TenantStage::Active][..] } else { &[TenantStage::Offboarded] };
        let record = self.staged(slug, allowed, "only one that was offboarded can be restored")?;
        // What an offboarding that was cut short has left on the servers is ours, and no stranger's.
        if !is_cut && !self.is_under_way(Act::OffboardTenant, slug)? {
            links.forget(slug.as_str());
        }
        self.open_again(links, record, Act::RestoreTenant).await
    }

    /// Whether an act about a tenant was begun and is not done.
    ///
    /// # Errors
    /// When its file is damaged.
    pub fn is_under_way(&self, act: Act, slug: &TenantSlug) -> Result<bool, TenancyError> {
        self.journal.find(act, slug.as_str()).map(|found| found.is_some()).map_err(TenancyError::Journal)
    }

    pub(super) async fn delete_account(
        &self,
        links: &Links,
        record: &TenantRecord,
        watched: Duration,
    ) -> Result<DeletionReport, TenancyError> {
        let Some(account) = &record.account else { return Ok(DeletionReport::default()) };
        let signer = self.platform.operator.signer().map_err(TenancyError::Operator)?;
        let report = ensure_stays_deleted(links.system().await?, account, signer.as_ref(), &links.known, watched).await;
        let report = report.map_err(TenancyError::Deletion)?;
        if report.is_gone() {
            return Ok(report);
        }
        Err(TenancyError::NotGone { slug: record.slug.clone(), report })
    }

    pub(super) async fn purge_rows(
        &self,
        links: &Links,
        record: &TenantRecord,
    ) -> Result<BTreeMap<String, u64>, TenancyError> {
        let Some(database) = links.database().await? else { return Ok(BTreeMap::new()) };
        let tenant = tenant_row(record, &self.plan_of(record)?);
        let Some(account) = &record.account else { return Ok(BTreeMap::new()) };
        if database.tenant_by_account(account).await.map_err(TenancyError::Rows)?.is_none() {
            // A purge that was cut short after this step, or an onboarding that made no more than its schema.
            database.drop_schema(&tenant).await.map_err(TenancyError::Rows)?;
            return Ok(BTreeMap::new());
        }
        database.set_tenant_state(&tenant, TenantState::Offboarding).await.map_err(TenancyError::Rows)?;
        let rows = database.purge_tenant(&tenant).await.map_err(TenancyError::Rows)?;
        database.set_tenant_state(&tenant, TenantState::Offboarded).await.map_err(TenancyError::Rows)?;
        database.forget_tenant(&tenant).await.map_err(TenancyError::Rows)?;
        Ok(rows.into_iter().map(|(table, count)| (table.to_owned(), count)).collect())
    }

    /// Destroys every private key that was made for a tenant: its account's, its pollers', its people's in this home, and its
    /// intermediate's. Returns how many of its account's there were.
    pub(super) fn destroy_keys(&self, slug: &TenantSlug) -> Result<usize, TenancyError> {
        use crate::operator::OperatorError;
        let (authority, now) = (&self.platform.authority, self.platform.now);
        authority.forget_tenant(slug, now).map_err(TenancyError::Certificate)?;
        authority.destroy_retired(slug).map_err(TenancyError::Certificate)?;
        for folder in self.platform.layout.of_tenant(slug) {
            remove_whole(&folder).map_err(TenancyError::File)?;
        }
        let removed = match self.platform.operator.remove_account(slug.as_str(), self.now_s()) {
            Err(OperatorError::NoAccount(_)) => return Ok(0),
            removed => removed.map_err(TenancyError::Operator)?,
        };
        remove_whole(&removed.folder).map_err(TenancyError::File)?;
        Ok(removed.seeds)
    }

    fn evidence(
        &self,
        links: &Links,
        record: &TenantRecord,
        report: &DeletionReport,
        rows: BTreeMap<String, u64>,
        seeds: usize,
    ) -> Evidence {
        Evidence {
            tenant: record.slug.clone(),
            account: record.account.as_ref().map_or_else(String::new, ToString::to_string),
            at: self.now_s(),
            deleted_from: report.deleted.clone(),
            seen_without: links.known.names().cloned().collect(),
            rows,
            tables: BTreeMap::new(),
            export: None,
            seeds,
            is_purged: false,
        }
    }

    /// Writes the evidence as a token that the operator has signed: who has the operator's public key can verify it.
    fn sign_evidence(&self, evidence: &Evidence) -> Result<PathBuf, TenancyError> {
        let signer = self.platform.operator.signer().map_err(TenancyError::Operator)?;
        let name = format!("offboarding of {}", evidence.tenant);
        let body = GenericBody { data: Map::from_iter([("offboarding".to_owned(), json!(evidence))]) };
        let mut claims = Claims::new(evidence.account.clone(), name, evidence.at, body);
        let token = encode(&mut claims, signer.as_ref()).map_err(TenancyError::Sign)?;
        let kind = if evidence.is_purged { "purged" } else { "offboarded" };
        let short: String = evidence.account.chars().take(8).collect();
        let file = format!("{}-{short}-{kind}-{}.jwt", evidence.tenant, evidence.at);
        let path = self.platform.layout.evidence().join(file);
        write_secret(&path, token.as_bytes()).map_err(TenancyError::File)?;
        Ok(path)
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn sha256_of(file: &Path) -> std::io::Result<String> {
    let (mut hash, mut file) = (Sha256::new(), BufReader::new(File::open(file)?));
    loop {
        let piece = file.fill_buf()?;
        if piece.is_empty() {
            return Ok(HEXLOWER.encode(&hash.finalize()));
        }
        hash.update(piece);
        let read = piece.len();
        file.consume(read);
    }
}
