//! Suspending and resuming, changing the plan or the name: everything that renders a tenant that is there anew.

use std::time::Duration;

use bulkhead_bus::{TenantSlug, TenantState};
use bulkhead_runtime::eventually;
use bulkhead_store::{Isolation, MoveStep, MovedRows, isolation_of};
use serde_json::json;

use super::sparing::Sparing;
use super::{Act, Links, Tenancy, TenancyError, TenantRecord, TenantStage};
use crate::operator::AccountRecord;
use crate::up::tenant_row;

/// How long connections of a closed account may take to go.
const CLOSING_LIMIT: Duration = Duration::from_secs(15);

/// A step of a move, for people.
fn told(step: MoveStep) -> String {
    match step {
        MoveStep::Copying { done, all, rows } => {
            format!("copying results while more arrive: {done} of {all} partitions, {rows} rows")
        }
        MoveStep::Holding => "holding its messages, and copying what has come since".to_owned(),
        MoveStep::Compared { rows } => format!("{rows} rows are the same in both places"),
        MoveStep::Switched => "its messages go on".to_owned(),
        MoveStep::Removing => "waiting for those who read in the old place, then removing it".to_owned(),
    }
}

impl Tenancy {
    /// Nobody of the tenant is admitted any more, those who are connected are disconnected, everything is kept.
    ///
    /// # Errors
    /// When it is neither active nor suspended, or a server does not follow: then say it again.
    pub async fn suspend(&self, links: &Links, slug: &TenantSlug) -> Result<TenantRecord, TenancyError> {
        let allowed = [TenantStage::Active, TenantStage::Suspended];
        let record = self.staged(slug, &allowed, "only a tenant that is active can be suspended")?;
        let record = TenantRecord { stage: TenantStage::Suspended, ..record };
        self.check_renders(&record)?;
        let mut act = self.begin(Act::SuspendTenant, slug.as_str(), json!({}))?;
        self.records.write(&record).map_err(TenancyError::Record)?;
        let closed = self.close(links, &record).await;
        // One of them away keeps the other from nothing.
        let stored = self.set_state(links, &record, TenantState::Suspended).await;
        let account = closed?;
        act.step("in-force", self.now_s()).map_err(TenancyError::Journal)?;
        stored?;
        // Whatever was begun the other way round is overtaken.
        self.journal.forget(Act::ResumeTenant, slug.as_str()).map_err(TenancyError::Journal)?;
        act.finish(json!({"account": account.key}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(record)
    }

    /// Puts the closed account in force and waits until nobody is connected.
    pub(super) async fn close(&self, links: &Links, record: &TenantRecord) -> Result<AccountRecord, TenancyError> {
        let account = self.render(record)?;
        links.system().await?;
        let pushed = links.push(&account).await;
        // Also when a server does not follow: it lets nobody in whom the gatekeepers do not.
        self.tell_gate(links, &account).await?;
        pushed?;
        let closed = eventually("the end of the tenant's connections", CLOSING_LIMIT, || async {
            match links.connections(account.key.as_str()).await {
                Ok(open) if open.is_empty() => Ok(()),
                Ok(open) => Err(format!("{} are open", open.len())),
                Err(error) => Err(error.to_string()),
            }
        });
        closed.await.map_err(|source| TenancyError::StillConnected { slug: record.slug.clone(), source })?;
        Ok(account)
    }

    /// Admits the tenant again.
    ///
    /// # Errors
    /// When it is neither active nor suspended, or a server does not follow: then say it again.
    pub async fn resume(&self, links: &Links, slug: &TenantSlug) -> Result<TenantRecord, TenancyError> {
        let allowed = [TenantStage::Active, TenantStage::Suspended];
        let record = self.staged(slug, &allowed, "`bulkhead tenant restore` brings back one that was offboarded")?;
        self.check_renders(&record)?;
        self.open_again(links, record, Act::ResumeTenant).await
    }

    pub(super) async fn open_again(
        &self,
        links: &Links,
        record: TenantRecord,
        kind: Act,
    ) -> Result<TenantRecord, TenancyError> {
        let slug = record.slug.clone();
        let act = self.begin(kind, slug.as_str(), json!({}))?;
        let record = TenantRecord { stage: TenantStage::Active, ..record };
        self.records.write(&record).map_err(TenancyError::Record)?;
        // The database first: what comes as soon as the door opens is to be stored.
        self.write_row(links, &record).await?;
        self.set_state(links, &record, TenantState::Active).await?;
        let account = self.render(&record)?;
        let proof = self.prepare_proof(&record)?;
        self.put_in_force(links, &account).await?;
        self.prove(links, &record, &account, proof).await?;
        self.intake.mark(&slug).map_err(TenancyError::Intake)?;
        let others = [Act::SuspendTenant, Act::ResumeTenant, Act::RestoreTenant, Act::OffboardTenant, Act::PurgeTenant];
        // Before this one is done: cut short in between, it is said again and they go then.
        for overtaken in others.into_iter().filter(|&other| other != kind) {
            self.journal.forget(overtaken, slug.as_str()).map_err(TenancyError::Journal)?;
        }
        act.finish(json!({"account": account.key}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(record)
    }

    /// Changes what a tenant is: `change` gets its record. Its rows are where they were: [`Tenancy::move_rows`] comes next, and
    /// needs no lock of the home.
    ///
    /// # Errors
    /// When it is offboarded or half added, or a server does not follow: then say it again.
    pub async fn change_tenant(
        &self,
        links: &Links,
        slug: &TenantSlug,
        change: impl FnOnce(&mut TenantRecord),
    ) -> Result<TenantRecord, TenancyError> {
        let allowed = [TenantStage::Active, TenantStage::Suspended];
        let mut record = self.staged(slug, &allowed, "`bulkhead tenant restore` brings it back")?;
        change(&mut record);
        super::onboard::check_display_name(&record.display_name)?;
        self.check_renders(&record)?;
        self.make_room(links, &record).await?;
        let detail = json!({"plan": record.plan, "display_name": record.display_name});
        let act = self.begin(Act::ChangeTenant, slug.as_str(), detail)?;
        self.records.write(&record).map_err(TenancyError::Record)?;
        self.write_row(links, &record).await?;
        let account = self.render(&record)?;
        self.put_in_force(links, &account).await?;
        act.finish(json!({"account": account.key}), self.now_s()).map_err(TenancyError::Journal)?;
        Ok(record)
    }

    /// The schema that a tenant's plan asks for, before anything else is changed: the database may have no room for it.
    async fn make_room(&self, links: &Links, record: &TenantRecord) -> Result<(), TenancyError> {
        let Some(database) = links.database().await? else { return Ok(()) };
        let tenant = tenant_row(record, &self.plan_of(record)?);
        let isolation = database.isolation(&tenant).await.map_err(TenancyError::Rows)?;
        if isolation_of(&tenant.plan) == Isolation::Schema && isolation == Some(Isolation::Shared) {
            database.make_schema(&tenant).await.map_err(TenancyError::Rows)?;
        }
        Ok(())
    }

    /// Brings a tenant's rows where its plan puts them, while results keep arriving; `None` where they are there.
    ///
    /// # Errors
    /// When the database does not answer or refuses: then say it again, and it goes on.
    pub async fn move_rows(
        &self,
        links: &Links,
        record: &TenantRecord,
        announce: &(dyn Fn(&str) + Sync),
    ) -> Result<Option<MovedRows>, TenancyError> {
        let Some(database) = links.database().await? else { return Ok(None) };
        let tenant = tenant_row(record, &self.plan_of(record)?);
        let sparing = Sparing::new(announce);
        let say = |step| match step {
            MoveStep::Copying { done, all, .. } if done < all => sparing.say(&told(step)),
            MoveStep::Copying { .. }
            | MoveStep::Holding
            | MoveStep::Compared { .. }
            | MoveStep::Switched
            | MoveStep::Removing => announce(&told(step)),
        };
        let moved = database.move_tenant(&tenant, &say).await.map_err(TenancyError::Rows)?;
        if let Some(MovedRows { to, rows, held }) = moved {
            let place = match to {
                Isolation::Shared => "the shared tables",
                Isolation::Schema => "its own schema",
            };
            announce(&format!("{rows} rows are in {place} now; its messages waited for {} ms", held.as_millis()));
        }
        Ok(moved)
    }

    /// Refuses a change before anything of it is written when its account could not be rendered: the token is damaged, another
    /// tool changed it, or nobody here can sign.
    fn check_renders(&self, record: &TenantRecord) -> Result<(), TenancyError> {
        let plan = self.plan_of(record)?;
        self.platform.preview_tenant(record, &plan).map_err(TenancyError::Platform)?;
        self.platform.operator.signer().map(drop).map_err(TenancyError::Operator)
    }

    /// The record of a tenant that is in one of these stages.
    pub(super) fn staged(
        &self,
        slug: &TenantSlug,
        allowed: &[TenantStage],
        way_out: &str,
    ) -> Result<TenantRecord, TenancyError> {
        let record = self.records.get(slug).map_err(TenancyError::Record)?;
        if allowed.contains(&record.stage) {
            return Ok(record);
        }
        let way_out = match record.stage {
            TenantStage::Adding => format!("complete it with `bulkhead tenant add {slug}`"),
            TenantStage::Active | TenantStage::Suspended | TenantStage::Offboarded => way_out.to_owned(),
        };
        Err(TenancyError::Stage { slug: slug.clone(), stage: record.stage.as_str(), way_out })
    }

    pub(super) fn begin(
        &self,
        act: Act,
        about: &str,
        detail: serde_json::Value,
    ) -> Result<super::OpenAct, TenancyError> {
        self.journal.begin(act, about, detail, self.now_s()).map_err(TenancyError::Journal)
    }

    pub(super) async fn write_row(&self, links: &Links, record: &TenantRecord) -> Result<(), TenancyError> {
        let (Some(database), Some(account)) = (links.database().await?, &record.account) else { return Ok(()) };
        let plan = self.plan_of(record)?;
        let written = self.platform.write_tenant_row(database, record, &plan, account).await;
        written.map(|_| ()).map_err(TenancyError::Platform)
    }

    pub(super) async fn set_state(
        &self,
        links: &Links,
        record: &TenantRecord,
        state: TenantState,
    ) -> Result<(), TenancyError> {
        let Some(database) = links.database().await? else { return Ok(()) };
        let tenant = tenant_row(record, &self.plan_of(record)?);
        database.set_tenant_state(&tenant, state).await.map(|_| ()).map_err(TenancyError::Rows)
    }
}
