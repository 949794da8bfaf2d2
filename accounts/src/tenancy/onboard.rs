//! `tenant add`: one journalled onboarding. A crash resumes; a failure undoes in reverse; never half a tenant.
//!
//! The database learns of a tenant before its account is usable, so that its first batch finds it there. The live import
//! comes afterwards and apart (`live.rs`).

use std::path::PathBuf;
use std::time::Duration;

use bulkhead_bus::{TenantSlug, UserName};
use bulkhead_runtime::BusSettings;
use serde_json::{Value, json};
use uuid::Uuid;

use super::journal::OpenAct;
use super::{Act, Links, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::certificates::ClientIdentity;
use crate::gate::{GateBook, PROBE};
use crate::operator::AccountRecord;
use crate::plan::{PlanChoice, PlanName, PlanRef};
use crate::resolver::probe;
use crate::up::PlatformError;

/// How long the certificate is good that proves an account.
const PROBE_LIFE: time::Duration = time::Duration::minutes(10);

/// A user that is being issued to prove an account.
pub(super) struct Proof(tokio::task::JoinHandle<Result<(BusSettings, Discarded), PlatformError>>);

/// A folder that goes with this: worth nothing in a minute, and no reason to keep it.
pub(super) struct Discarded(PathBuf);

impl Drop for Discarded {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct NewTenant {
    pub slug: TenantSlug,
    pub display_name: String,
    /// `None`: the newest version of `free`, or what an onboarding that was cut short was begun with.
    pub plan: Option<PlanChoice>,
    pub if_there: IfThere,
}

/// What to do when the tenant is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfThere {
    Refuse,
    Leave,
}

/// A tenant that is there now.
#[derive(Debug)]
pub struct Onboarded {
    pub record: TenantRecord,
    /// Whether it was there before.
    pub was_there: bool,
}

/// The first text of a display name that has no place in one.
pub(super) fn check_display_name(name: &str) -> Result<(), TenancyError> {
    const MOST: usize = 100;
    let rule = "a display name is one line of at most 100 characters, without control characters";
    if name.chars().count() > MOST || name.chars().any(char::is_control) {
        let shown: String = name.chars().take(60).collect();
        return Err(TenancyError::Invalid(format!("display name {shown:?} is not valid: {rule}")));
    }
    Ok(())
}

impl Tenancy {
    /// Adds a tenant, or completes one that was begun.
    ///
    /// # Errors
    /// [`TenancyError::Undone`] when nothing is left of it, [`TenancyError::HalfAdded`] when a server could not be asked to
    /// forget it again or does not show it yet, and others when nothing was begun.
    pub async fn add_tenant(
        &self,
        links: &Links,
        order: &NewTenant,
        announce: &dyn Fn(&str),
    ) -> Result<Onboarded, TenancyError> {
        check_display_name(&order.display_name)?;
        let slug = &order.slug;
        let known = self.records.find(slug).map_err(TenancyError::Record)?;
        if let Some(record) = &known {
            match (record.stage, order.if_there) {
                (TenantStage::Adding, _) => {}
                (TenantStage::Active | TenantStage::Suspended, IfThere::Leave) => {
                    return Ok(Onboarded { record: record.clone(), was_there: true });
                }
                (TenantStage::Active | TenantStage::Suspended, IfThere::Refuse) => {
                    return Err(TenancyError::AlreadyThere(slug.clone()));
                }
                (TenantStage::Offboarded, _) => return Err(TenancyError::Offboarded(slug.clone())),
            }
        }
        let record = self.begin_record(order, known)?;
        let mut act = self.begin_add(&record)?;
        match self.add_steps(links, record, &mut act, announce).await {
            Ok(record) => {
                let detail = json!({"plan": record.plan, "account": record.account});
                act.finish(detail, self.now_s()).map_err(TenancyError::Journal)?;
                Ok(Onboarded { record, was_there: false })
            }
            Err(error) => Err(self.give_up_add(links, slug, error).await),
        }
    }

    fn begin_add(&self, record: &TenantRecord) -> Result<OpenAct, TenancyError> {
        let detail = json!({"plan": record.plan, "id": record.id, "display_name": record.display_name});
        self.journal.begin(Act::AddTenant, record.slug.as_str(), detail, self.now_s()).map_err(TenancyError::Journal)
    }

    /// What the tenant is to be: as it was begun, or as it is ordered now.
    fn begin_record(&self, order: &NewTenant, known: Option<TenantRecord>) -> Result<TenantRecord, TenancyError> {
        let slug = &order.slug;
        let asked = |plan: &PlanRef| match order.plan {
            None => true,
            Some(PlanChoice::Newest(name)) => name == plan.name,
            Some(PlanChoice::Version(version)) => version == *plan,
        };
        let begun = self.journal.find(Act::AddTenant, slug.as_str()).map_err(TenancyError::Journal)?;
        let begun = begun.and_then(|lines| lines.into_iter().next()).map(|line| line.detail);
        let begun = known.or_else(|| begun.and_then(|detail| self.record_of(slug, &detail)));
        if let Some(record) = begun {
            let differs = !asked(&record.plan);
            return if differs {
                Err(TenancyError::BegunOtherwise { slug: slug.clone(), begun: record.plan })
            } else {
                Ok(record)
            };
        }
        let choice = order.plan.unwrap_or(PlanChoice::Newest(PlanName::Free));
        let plan = self.plans.choose(choice).map_err(TenancyError::Plan)?.plan_ref();
        let record = TenantRecord::new(slug.clone(), Uuid::new_v4(), plan, self.now_s());
        Ok(TenantRecord { display_name: order.display_name.clone(), ..record })
    }

    /// From the first line of the journal, for a crash between it and the record.
    fn record_of(&self, slug: &TenantSlug, detail: &Value) -> Option<TenantRecord> {
        let plan = detail["plan"].as_str()?.parse().ok()?;
        let id = detail["id"].as_str()?.parse().ok()?;
        let record = TenantRecord::new(slug.clone(), id, plan, self.now_s());
        Some(TenantRecord { display_name: detail["display_name"].as_str()?.to_owned(), ..record })
    }

    async fn add_steps(
        &self,
        links: &Links,
        mut record: TenantRecord,
        act: &mut OpenAct,
        announce: &dyn Fn(&str),
    ) -> Result<TenantRecord, TenancyError> {
        let now = self.now_s();
        let plan = self.plan_of(&record)?;
        self.records.write(&record).map_err(TenancyError::Record)?;
        announce("making keys, intermediate and account");
        let account = self.render(&record)?;
        record.account = Some(account.key.clone());
        act.step_with("account", json!({"account": account.key}), now).map_err(TenancyError::Journal)?;
        let proof = self.prepare_proof(&record)?;
        if let Some(database) = links.database().await? {
            announce("writing the tenant to the database");
            let written = self.platform.write_tenant_row(database, &record, &plan, &account.key).await;
            written.map_err(TenancyError::Platform)?;
            act.step("rows", now).map_err(TenancyError::Journal)?;
        }
        announce("pushing the account until it is in force");
        self.put_in_force(links, &account).await?;
        act.step("in-force", now).map_err(TenancyError::Journal)?;
        announce("proving it with a user of the tenant");
        self.prove(links, &record, &account, proof).await?;
        // Before the record says that it is there: a mark without a tenant is harmless, a tenant without one is dark. And once
        // more behind it: somebody who was seeing to marks meanwhile may have taken the first with the record as it was.
        self.intake.mark(&record.slug).map_err(TenancyError::Intake)?;
        record.stage = TenantStage::Active;
        self.records.write(&record).map_err(TenancyError::Record)?;
        self.intake.mark(&record.slug).map_err(TenancyError::Intake)?;
        Ok(record)
    }

    /// Issues a user of the tenant, who lives for some minutes, while others of the onboarding's waits go on.
    pub(super) fn prepare_proof(&self, record: &TenantRecord) -> Result<Proof, TenancyError> {
        let platform = self.platform.reopen().map_err(TenancyError::Platform)?;
        let user: UserName = PROBE.parse().map_err(|error| TenancyError::Invalid(format!("{error}")))?;
        let identity = ClientIdentity::User { tenant: record.slug.clone(), user };
        let issue = move || {
            let folder = Discarded(platform.layout.provisioning().join(PROBE));
            let (settings, _) = platform.let_in(&identity, PROBE, &folder.0, PROBE_LIFE)?;
            Ok((settings, folder))
        };
        Ok(Proof(tokio::task::spawn_blocking(issue)))
    }

    /// Connects to every server as the user of the proof, and asks the servers as whom.
    ///
    /// # Panics
    /// When issuing the user did.
    pub(super) async fn prove(
        &self,
        links: &Links,
        record: &TenantRecord,
        account: &AccountRecord,
        proof: Proof,
    ) -> Result<(), TenancyError> {
        let issued = proof.0.await.expect("issuing a user does not panic");
        let (settings, _folder) = issued.map_err(TenancyError::Platform)?;
        let outcome = probe(links.system().await?, &settings, account.key.as_str(), &links.known).await;
        if outcome.is_proved() { Ok(()) } else { Err(TenancyError::NotProved { slug: record.slug.clone(), outcome }) }
    }

    /// After a failure: undoes what was done, or says what stays and how to go on.
    async fn give_up_add(&self, links: &Links, slug: &TenantSlug, error: TenancyError) -> TenancyError {
        let source = Box::new(error);
        if source.is_not_converged() {
            return TenancyError::HalfAdded { slug: slug.clone(), source };
        }
        match self.undo_add(links, slug).await {
            Ok(()) => TenancyError::Undone { slug: slug.clone(), source },
            Err(undoing) => {
                tracing::warn!("undoing tenant {slug}: {}", bulkhead_runtime::Chain(&undoing));
                TenancyError::HalfAdded { slug: slug.clone(), source }
            }
        }
    }

    /// Undoes an onboarding that is not done, in reverse.
    ///
    /// # Errors
    /// When the tenant is not one that was begun and not done, or a step cannot be undone; then say it again.
    pub async fn undo_add(&self, links: &Links, slug: &TenantSlug) -> Result<(), TenancyError> {
        let record = self.records.find(slug).map_err(TenancyError::Record)?;
        let begun = self.journal.find(Act::AddTenant, slug.as_str()).map_err(TenancyError::Journal)?;
        match &record {
            Some(record) if record.stage != TenantStage::Adding => {
                let way_out =
                    "only one that is half added can be undone; `bulkhead tenant offboard` ends it".to_owned();
                return Err(TenancyError::Stage { slug: slug.clone(), stage: record.stage.as_str(), way_out });
            }
            None if begun.is_none() => {
                return Err(TenancyError::Invalid(format!(
                    "nothing was begun for tenant {slug}: there is nothing to undo"
                )));
            }
            Some(_) | None => {}
        }
        let detail = json!({"slug": slug});
        let act = self.journal.begin(Act::UndoTenant, slug.as_str(), detail, self.now_s());
        let act = act.map_err(TenancyError::Journal)?;
        self.erase(links, slug).await?;
        for begun in [Act::AddTenant, Act::CopyRows] {
            self.journal.forget(begun, slug.as_str()).map_err(TenancyError::Journal)?;
        }
        act.finish(Value::Null, self.now_s()).map_err(TenancyError::Journal)
    }

    /// Removes every trace of a tenant that nobody has used yet: server, database, store, certificates, record.
    async fn erase(&self, links: &Links, slug: &TenantSlug) -> Result<(), TenancyError> {
        let account = self.platform.operator.account(slug.as_str()).map_err(TenancyError::Operator)?;
        let record = self.records.find(slug).map_err(TenancyError::Record)?;
        if let (Some(record), Some(account)) = (&record, &account) {
            let record = TenantRecord { account: Some(account.key.clone()), ..record.clone() };
            self.untell_gate(links, slug, &account.key).await?;
            self.delete_account(links, &record, Duration::ZERO).await?;
            self.purge_rows(links, &record).await?;
        }
        self.destroy_keys(slug)?;
        links.forget(slug.as_str());
        GateBook::new(&self.platform.layout).forget(slug.as_str()).map_err(TenancyError::Gate)?;
        self.records.remove(slug).map_err(TenancyError::Record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_name_is_one_line() {
        for good in ["", "Acme Corp", "Åcme \"& Söns\" {{name()}}"] {
            assert!(check_display_name(good).is_ok(), "{good:?}");
        }
        for bad in ["a\nb", "a\u{7}", &"x".repeat(101)] {
            assert!(check_display_name(bad).unwrap_err().to_string().contains("one line"), "{bad:?}");
        }
    }
}
