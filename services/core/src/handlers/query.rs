//! `t.<T>.up._user.<user>.rpc.core.<verb>`: questions of people, answered for the tenant that the server names.

use std::sync::Arc;

use anyhow::Context;
use bulkhead_bus::payload::{
    AssignmentRow, CheckRow, ErrorCode, LIST_LIMIT_MAX, LiveRow, Query, Reply, ReplyError, StatusRow, TenantRow,
};
use bulkhead_bus::{
    Account, AccountKey, Audience, CoreSubject, CoreVerb, Guarded, Refusal, Role, Scope, Tenant, TenantSnapshot,
    TenantSubject, role_permissions,
};
use bulkhead_directory::Directory;
use bulkhead_runtime::{Bus, Chain, Heart, Readiness, Responder, Served, Stop, encoded, fitting, now_ms, refused};
use bulkhead_store::{Registered, Store, StoreError};
use serde::Serialize;
use tracing::{error, warn};

use super::history::{Past, Turns};
use super::ledger::store as ledger;
use super::store;
use crate::live_view::LiveView;
use crate::metrics::{Metrics, add};

const QUEUE: &str = "core";
const AT_ONCE: usize = 32;
const LIMIT_DEFAULT: u32 = 100;
const SINCE_DEFAULT_MS: i64 = 3_600_000;
const ROWS_MAX: usize = LIST_LIMIT_MAX as usize;

/// What answering works with.
#[derive(Clone)]
pub struct Answering {
    pub store: Store,
    pub directory: Directory,
    pub view: LiveView,
    pub metrics: Arc<Metrics>,
    pub dark_after_ms: i64,
    pub turns: Turns,
}

/// Why a question has no rows.
pub(super) enum Unanswered {
    Refused(ReplyError),
    Failed(StoreError),
}

impl From<ReplyError> for Unanswered {
    fn from(refused: ReplyError) -> Self {
        Self::Refused(refused)
    }
}

impl From<StoreError> for Unanswered {
    fn from(failure: StoreError) -> Self {
        Self::Failed(failure)
    }
}

impl Answering {
    /// Answers until `stop`.
    ///
    /// # Errors
    /// When the subscription cannot be made at the start.
    pub async fn run(self, bus: Bus, readiness: Readiness, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let patterns = role_permissions(Role::CoreRpc).subscribe;
        let pattern = patterns.first().context("the subject table has a request row")?;
        let mut requests = bus.answer(pattern, QUEUE).await.context("listen for queries")?;
        bus.flush().await.context("subscribe to queries")?;
        readiness.mark("queries");
        let unanswerable = &self.metrics.requests_unanswerable;
        let served = Served { at_once: AT_ONCE, of_one: AT_ONCE, unanswerable, heart: &heart, stop: &stop };
        let answer = |request| {
            let own = self.clone();
            async move { own.answer(request).await }
        };
        requests.serve(served, answer).await
    }

    async fn answer(&self, request: Responder) {
        let answer = match self.answered(&request.subject, &request.body).await {
            Ok(answer) => answer,
            Err(error) => encoded::<()>(&Reply::Error(error)),
        };
        add(&self.metrics.queries_answered, 1);
        if let Err(error) = request.answer(answer.into()).await {
            warn!(error = %Chain(&error), "answer not sent");
        }
    }

    async fn answered(&self, subject: &str, body: &[u8]) -> Result<Vec<u8>, ReplyError> {
        let subject: CoreSubject = subject.parse().map_err(|error| refused(ErrorCode::Invalid, error))?;
        let asked: Query = if body.is_empty() {
            Query::default()
        } else {
            serde_json::from_slice(body).map_err(|error| refused(ErrorCode::Invalid, error))?
        };
        if let Err(error) = self.directory.look_for(std::iter::once(&subject.account)).await {
            warn!(error = %Chain(&error), "an account is not looked for, the old list stays");
        }
        let snapshot = self.directory.snapshot();
        let guarded = snapshot.admit(subject.clone(), Audience::TenantsAndPlatform, asked);
        let guarded = guarded.map_err(|refusal| self.refuse(&subject, &refusal))?;
        let TenantSubject::Query { verb, .. } = guarded.subject() else {
            return Err(refused(ErrorCode::Invalid, "this is not a query"));
        };
        let verb = *verb;
        self.rows(verb, &guarded, &snapshot).await.map_err(|unanswered| match unanswered {
            Unanswered::Refused(refused) => refused,
            Unanswered::Failed(failure) => {
                if failure.is_transient() {
                    warn!(error = %Chain(&failure), "query {verb} not answered: the database is away");
                } else {
                    error!(error = %Chain(&failure), "query {verb} failed");
                }
                refused(ErrorCode::Unavailable, "the database cannot be asked now: try again")
            }
        })
    }

    fn refuse(&self, subject: &CoreSubject, refusal: &Refusal) -> ReplyError {
        add(&self.metrics.guard_refusals, 1);
        warn!(reason = refusal.code(), %subject, "query refused: {refusal}");
        match refusal {
            Refusal::UnknownTarget(_) => refused(ErrorCode::NotFound, refusal),
            Refusal::UnknownAccount(_)
            | Refusal::Suspended(_)
            | Refusal::TenantMismatch { .. }
            | Refusal::SenderMismatch { .. }
            | Refusal::NotForPlatform => refused(ErrorCode::Refused, refusal),
        }
    }

    async fn rows(
        &self,
        verb: CoreVerb,
        guarded: &Guarded<Query>,
        snapshot: &TenantSnapshot,
    ) -> Result<Vec<u8>, Unanswered> {
        let tenants = tenants_of(guarded, snapshot);
        let look_back = |past| self.look_back(past, tenants.iter().map(|(_, tenant)| tenant), guarded.body());
        let asked = guarded.body();
        let limit = asked.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIST_LIMIT_MAX);
        let own = tenants.iter().take(ROWS_MAX);
        match verb {
            CoreVerb::ListTenants => {
                let mut rows = Vec::new();
                for (key, tenant) in own {
                    rows.push(self.tenant_row(key, tenant).await?);
                }
                Ok(self.answer_rows(rows))
            }
            CoreVerb::ListPollers => {
                let mut rows = Vec::new();
                for (_, tenant) in own {
                    let mut tx = self.store.begin(tenant).await?;
                    rows.extend(store::list_pollers(&mut tx, tenant).await?);
                }
                Ok(self.answer_rows(rows))
            }
            CoreVerb::ListResults => {
                let since_ms = asked.since_ms.unwrap_or_else(|| now_ms() - SINCE_DEFAULT_MS);
                let mut rows = Vec::new();
                for (_, tenant) in &tenants {
                    let mut tx = self.store.begin(tenant).await?;
                    rows.extend(store::list_results(&mut tx, tenant, asked, since_ms, limit).await?);
                    rows.sort_by_key(|row| std::cmp::Reverse(row.slot_ms));
                    rows.truncate(usize::try_from(limit).unwrap_or(ROWS_MAX));
                }
                Ok(self.answer_rows(rows))
            }
            CoreVerb::ListStates => {
                let mut rows = Vec::new();
                for (_, tenant) in own {
                    let mut tx = self.store.begin(tenant).await?;
                    rows.extend(store::list_states(&mut tx, tenant, asked).await?);
                }
                Ok(self.answer_rows(rows))
            }
            CoreVerb::ListHistory => look_back(Past::Check).await,
            CoreVerb::ListUptime => look_back(Past::Uptime).await,
            CoreVerb::ListPollerHistory => look_back(Past::Poller).await,
            CoreVerb::ListGaps => look_back(Past::Gaps).await,
            CoreVerb::ListChecks => Ok(self.answer_rows(self.checks(&tenants, asked).await?)),
            CoreVerb::ListAssignments => Ok(self.answer_rows(self.assignments(&tenants, asked).await?)),
            CoreVerb::ListLive => Ok(self.answer_rows(self.live_rows(&tenants, asked).await)),
            CoreVerb::ShowStatus => {
                let mut rows = Vec::new();
                for (_, tenant) in own {
                    rows.push(self.status_row(tenant).await?);
                }
                Ok(self.answer_rows(rows))
            }
        }
    }

    async fn checks(&self, tenants: &[(AccountKey, Tenant)], asked: &Query) -> Result<Vec<CheckRow>, StoreError> {
        let mut rows = Vec::new();
        for (_, tenant) in tenants.iter().take(ROWS_MAX) {
            let mut tx = self.store.begin(tenant).await?;
            rows.extend(ledger::list_checks(&mut tx, tenant, asked, LIST_LIMIT_MAX).await?);
        }
        Ok(rows)
    }

    async fn assignments(
        &self,
        tenants: &[(AccountKey, Tenant)],
        asked: &Query,
    ) -> Result<Vec<AssignmentRow>, StoreError> {
        let mut rows = Vec::new();
        for (_, tenant) in tenants.iter().take(ROWS_MAX) {
            let mut tx = self.store.begin(tenant).await?;
            rows.extend(ledger::list_assignments(&mut tx, tenant, asked, LIST_LIMIT_MAX).await?);
        }
        Ok(rows)
    }

    pub(super) fn answer_rows<T: Serialize>(&self, mut rows: Vec<T>) -> Vec<u8> {
        let fitting = fitting(&rows);
        add(&self.metrics.answers_cut, u64::from(fitting < rows.len()));
        rows.truncate(fitting);
        encoded(&Reply::Rows(rows))
    }

    async fn live_rows(&self, tenants: &[(AccountKey, Tenant)], asked: &Query) -> Vec<LiveRow> {
        let is_wanted = |row: &LiveRow| {
            asked.site.as_ref().is_none_or(|site| row.site == *site)
                && asked.check.as_ref().is_none_or(|check| row.measured.check == *check)
        };
        let mut rows = Vec::new();
        for (_, tenant) in tenants {
            rows.extend(self.live_of(tenant).await.into_iter().filter(is_wanted));
        }
        rows
    }

    /// What a tenant's pollers show, without those whose batches are refused. A database that is away hides nobody: this is
    /// display only.
    async fn live_of(&self, tenant: &Tenant) -> Vec<LiveRow> {
        let mut rows = self.view.rows(tenant, now_ms() - self.dark_after_ms);
        if !rows.is_empty()
            && let Ok(keys) = self.directory.batch_keys(tenant).await
        {
            rows.retain(|row| match keys.get(&(row.site.clone(), row.poller.clone())) {
                Some(Registered::Revoked) => false,
                Some(Registered::Key(_) | Registered::Unreadable) => true,
                None => tenant.allows_unsigned,
            });
        }
        rows
    }

    async fn tenant_row(&self, key: &AccountKey, tenant: &Tenant) -> Result<TenantRow, StoreError> {
        let mut tx = self.store.begin(tenant).await?;
        let glance = store::glance_at(&mut tx, tenant).await?;
        Ok(TenantRow {
            tenant: tenant.slug.clone(),
            plan: tenant.plan.clone(),
            state: tenant.state.as_str().to_owned(),
            isolation: tx.isolation().as_str().to_owned(),
            sites: glance.sites,
            pollers: glance.pollers,
            account: key.to_string(),
        })
    }

    async fn status_row(&self, tenant: &Tenant) -> Result<StatusRow, StoreError> {
        let mut tx = self.store.begin(tenant).await?;
        let glance = store::glance_at(&mut tx, tenant).await?;
        let live = self.live_of(tenant).await;
        Ok(StatusRow {
            tenant: tenant.slug.clone(),
            plan: tenant.plan.clone(),
            state: tenant.state.as_str().to_owned(),
            checks_ok: glance.checks_ok,
            checks_not_ok: glance.checks_not_ok,
            results: glance.results,
            dead_letters: glance.dead_letters,
            newest_slot_ms: glance.newest_slot_ms,
            live_ms: live.iter().map(|row| row.received_ms).max(),
        })
    }
}

/// Whom the answer is about, by slug: the sender, the platform's target, or everybody for the platform.
fn tenants_of(guarded: &Guarded<Query>, snapshot: &TenantSnapshot) -> Vec<(AccountKey, Tenant)> {
    let is_wanted = |tenant: &Tenant| match guarded.scope() {
        Scope::Tenant(own) | Scope::Platform { target: Some(own) } => own.id == tenant.id,
        Scope::Platform { target: None } => true,
    };
    let all = snapshot.tenants().filter(|(_, tenant)| is_wanted(tenant));
    let mut tenants: Vec<(AccountKey, Tenant)> = all.map(|(key, tenant)| (key.clone(), tenant.clone())).collect();
    tenants.sort_by(|(_, a), (_, b)| a.slug.cmp(&b.slug));
    tenants
}

/// Named here so that a new kind of account is a compile error and not an oversight.
const _: fn(&Account) -> bool = |account| match account {
    Account::Tenant(_) => true,
    Account::Platform => false,
};
