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
use bulkhead_runtime::{Bus, Chain, Heart, Readiness, Responder, Served, Stop, encoded, refused};
use bulkhead_store::{Store, StoreError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, broadcast};
use tracing::{error, warn};

use crate::metrics::Metrics;
use crate::replays::Replays;

const QUEUE: &str = "poller-dispatch";
/// Requests that are answered at the same time, and runs that are waited for.
const AT_ONCE: usize = 32;
/// Of one tenant: they wait for each other, and would hold every connection to the database meanwhile.
const OF_ONE: usize = 3;
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
    /// Answers until `stop`. Runs wait for their reports, and take no place from others meanwhile.
    ///
    /// # Errors
    /// When the subscription cannot be made at the start.
    pub async fn serve(self, bus: Bus, readiness: Readiness, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let patterns = role_permissions(Role::DispatchRpc).subscribe;
        let pattern = patterns.first().context("the subject table has a request row")?;
        let mut requests = bus.answer(pattern, QUEUE).await.context("listen for requests")?;
        bus.flush().await.context("subscribe to requests")?;
        readiness.mark("requests");
        let runs = Arc::new(Semaphore::new(RUNS_AT_ONCE));
        let metrics = Arc::clone(&self.metrics);
        let unanswerable = &metrics.requests_unanswerable;
        let served = Served { at_once: AT_ONCE, of_one: OF_ONE, unanswerable, heart: &heart, stop: &stop };
        let of_run = format!(".{}", DispatchVerb::RunCheck);
        let answer = |request: Responder| {
            let place = request.subject.ends_with(&of_run).then(|| Arc::clone(&runs).try_acquire_owned());
            let desk = self.clone();
            async move {
                match place {
                    None => desk.answer(request).await,
                    Some(Ok(place)) => drop(tokio::spawn(async move {
                        desk.answer(request).await;
                        drop(place);
                    })),
                    Some(Err(_)) => {
                        let message = format!("{RUNS_AT_ONCE} runs are waited for now: try again");
                        send(request, encoded::<()>(&Reply::Error(refused(ErrorCode::Unavailable, message)))).await;
                    }
                }
            }
        };
        requests.serve(served, answer).await
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
        send(request, answer).await;
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

async fn send(request: Responder, answer: Vec<u8>) {
    if let Err(error) = request.answer(answer.into()).await {
        warn!(error = %Chain(&error), "answer not sent");
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
