//! What each subject is answered with: pollers ask what they are to do, people change checks and have them run.

mod checks;
mod pollers;
mod run;
mod secrets;
pub mod store;

use std::sync::Arc;

use anyhow::Context;
use bulkhead_bus::payload::{ErrorCode, Reply, ReplyError};
use bulkhead_bus::{
    AccountKey, Audience, Claim, CoreSubject, DispatchVerb, Guarded, Refusal, Role, Scope, Tenant, TenantId,
    TenantSubject, UserName, role_permissions,
};
use bulkhead_directory::{Answers, Directory};
use bulkhead_runtime::{Bus, Chain, Loops, Readiness, Responder, Served, Stop, Supervisor, encoded, refused};
use bulkhead_store::{Store, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tracing::{error, warn};

use crate::metrics::Metrics;
use crate::replays::Replays;

const QUEUE: &str = "poller-dispatch";
/// Requests of one subject that are answered at the same time. Runs wait, and wait for each other only.
const AT_ONCE: usize = 32;
const RUNS_AT_ONCE: usize = 256;

/// What answering works with.
#[derive(Clone)]
pub struct Desk {
    pub store: Store,
    pub directory: Directory,
    pub answers: Answers,
    pub push: Bus,
    pub metrics: Arc<Metrics>,
    pub replays: Arc<Replays>,
    /// Whose runs on demand changed.
    pub runs: broadcast::Sender<TenantId>,
}

/// Why a request is not done.
pub(crate) enum Undone {
    Refused(ReplyError),
    Failed(StoreError),
}

impl From<ReplyError> for Undone {
    fn from(refused: ReplyError) -> Self {
        Self::Refused(refused)
    }
}

impl From<StoreError> for Undone {
    fn from(failure: StoreError) -> Self {
        Self::Failed(failure)
    }
}

/// A request of a person about one tenant.
pub(crate) struct Order<T> {
    pub(crate) account: AccountKey,
    pub(crate) tenant: Tenant,
    /// Whom a change is written down under.
    pub(crate) acting: String,
    pub(crate) body: T,
}

pub(crate) fn answer_rows<T: Serialize>(rows: Vec<T>) -> Vec<u8> {
    encoded(&Reply::Rows(rows))
}

impl Desk {
    /// Answers every subject in a task of its own, so that none waits for another.
    ///
    /// # Errors
    /// When a subscription cannot be made at the start.
    pub async fn serve(
        self,
        bus: &Bus,
        (tasks, loops): (&mut Supervisor, &Loops),
        readiness: &Readiness,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        for pattern in role_permissions(Role::DispatchRpc).subscribe.into_iter().filter(|one| one.starts_with("t.")) {
            let mut requests = bus.answer(&pattern, QUEUE).await.context("listen for requests")?;
            let (desk, stop, heart) = (self.clone(), stop.clone(), loops.watch("requests"));
            let is_run = pattern.ends_with(DispatchVerb::RunCheck.token());
            tasks.spawn("requests", async move {
                let at_once = if is_run { RUNS_AT_ONCE } else { AT_ONCE };
                let metrics = Arc::clone(&desk.metrics);
                let served =
                    Served { at_once, unanswerable: &metrics.requests_unanswerable, heart: &heart, stop: &stop };
                requests.serve(served, |request| desk.clone().answer(request)).await
            });
        }
        bus.flush().await.context("subscribe to requests")?;
        readiness.mark("requests");
        Ok(())
    }

    async fn answer(self, request: Responder) {
        let done = self.done(&request).await;
        let answer = done.unwrap_or_else(|undone| {
            encoded::<()>(&Reply::Error(match undone {
                Undone::Refused(refused) => refused,
                Undone::Failed(failure) => {
                    let said = unavailable(&failure);
                    self.answers.note::<()>(&Err(failure));
                    said
                }
            }))
        });
        if let Err(error) = request.answer(answer.into()).await {
            warn!(error = %Chain(&error), "answer not sent");
        }
    }

    async fn done(&self, request: &Responder) -> Result<Vec<u8>, Undone> {
        let parsed: Result<CoreSubject, _> = request.subject.parse();
        let subject = parsed.map_err(|error| refused(ErrorCode::Invalid, error))?;
        if let Err(error) = self.directory.look_for(std::iter::once(&subject.account)).await {
            warn!(error = %Chain(&error), "an account is not looked for, the old list stays");
        }
        let person = match &subject.subject {
            TenantSubject::Assignment { site, poller, verb } => {
                let (site, poller, verb) = (site.clone(), poller.clone(), *verb);
                self.metrics.requests_answered.inc();
                return self.of_poller(subject, (site, poller), verb, request).await;
            }
            TenantSubject::Dispatch { user, verb } => (user.clone(), *verb),
            TenantSubject::Forwarded { .. }
            | TenantSubject::Query { .. }
            | TenantSubject::Live { .. }
            | TenantSubject::Down { .. }
            | TenantSubject::Lease { .. }
            | TenantSubject::Registry { .. }
            | TenantSubject::Service { .. }
            | TenantSubject::Event { .. } => {
                return Err(refused(ErrorCode::Invalid, "nothing here answers this").into());
            }
        };
        self.metrics.orders_answered.inc();
        let (user, verb) = person;
        match verb {
            DispatchVerb::ChangeChecks => self.change_checks(self.order(subject, &user, &request.body)?).await,
            DispatchVerb::RunCheck => self.run_check(self.order(subject, &user, &request.body)?).await,
            DispatchVerb::ListSealingKeys => self.list_sealing_keys(self.order(subject, &user, &request.body)?).await,
            DispatchVerb::SetSecret => self.set_secret(self.order(subject, &user, &request.body)?).await,
            DispatchVerb::ListSecrets => self.list_secrets(self.order(subject, &user, &request.body)?).await,
        }
    }

    /// A person's request after the guard.
    fn order<T: Claim + Clone + DeserializeOwned>(
        &self,
        subject: CoreSubject,
        user: &UserName,
        body: &[u8],
    ) -> Result<Order<T>, ReplyError> {
        let empty: &[u8] = b"{}";
        let body = if body.is_empty() { empty } else { body };
        let asked: T = serde_json::from_slice(body).map_err(|error| refused(ErrorCode::Invalid, error))?;
        let account = subject.account.clone();
        let guarded = self.admit(subject, Audience::TenantsAndPlatform, asked)?;
        let acting = match guarded.scope() {
            Scope::Tenant(_) => user.to_string(),
            Scope::Platform { .. } => format!("ops/{user}"),
        };
        let Some(tenant) = guarded.tenant().cloned() else {
            return Err(refused(ErrorCode::Invalid, "name the tenant that this is about"));
        };
        let account = self.account_of(&tenant, account);
        Ok(Order { account, tenant, acting, body: guarded.body().clone() })
    }

    /// The tenant's account, whoever asks.
    fn account_of(&self, tenant: &Tenant, sender: AccountKey) -> AccountKey {
        let snapshot = self.directory.snapshot();
        let found = snapshot.tenants().find(|(_, known)| known.id == tenant.id);
        found.map_or(sender, |(account, _)| account.clone())
    }

    pub(crate) fn admit<T: Claim>(
        &self,
        subject: CoreSubject,
        audience: Audience,
        body: T,
    ) -> Result<Guarded<T>, ReplyError> {
        let shown = subject.to_string();
        self.directory.snapshot().admit(subject, audience, body).map_err(|refusal| {
            self.metrics.guard_refusals.inc();
            warn!(reason = refusal.code(), subject = %shown, "request refused: {refusal}");
            match refusal {
                Refusal::UnknownTarget(_) => refused(ErrorCode::NotFound, refusal),
                Refusal::UnknownAccount(_)
                | Refusal::Suspended(_)
                | Refusal::TenantMismatch { .. }
                | Refusal::SenderMismatch { .. }
                | Refusal::NotForPlatform => refused(ErrorCode::Refused, refusal),
            }
        })
    }
}

fn unavailable(failure: &StoreError) -> ReplyError {
    if failure.is_the_datas_fault() {
        warn!(error = %Chain(failure), "a request is not stored");
        return refused(ErrorCode::Invalid, "this cannot be stored");
    }
    if failure.is_transient() {
        warn!(error = %Chain(failure), "a request is not answered: the database is away");
    } else {
        error!(error = %Chain(failure), "a request failed");
    }
    refused(ErrorCode::Unavailable, "the database cannot be asked now: try again")
}
