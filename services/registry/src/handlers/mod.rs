//! One module a kind of subject: requests of members, questions of people and services, holding back.

mod hold;
mod lease;
mod question;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::payload::{ErrorCode, Reply, ReplyError};
use bulkhead_bus::{CoreSubject, Refusal, RegistryVerb, Role, TenantSubject, role_permissions};
use bulkhead_directory::Directory;
use bulkhead_runtime::{Bus, Chain, Heart, Readiness, Responder, Served, Stop, encoded, fitting, refused};
use bulkhead_store::{Store, StoreError, within};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{error, warn};

use crate::config::AnswersConfig;
use crate::keep::{KeepError, Keeper};
use crate::metrics::Metrics;
use crate::view::View;
pub use wait::Waits;

const QUEUE: &str = "registry";
/// How long the database may keep a request waiting for a tenant that was written a moment ago.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// What answering works with.
#[derive(Clone)]
pub struct Answering {
    pub store: Store,
    pub directory: Directory,
    pub view: View,
    pub keeper: Keeper,
    pub metrics: Arc<Metrics>,
    pub config: AnswersConfig,
    pub waits: Waits,
}

impl Answering {
    /// Answers on every subject that the registry is asked on, until `stop`.
    ///
    /// # Errors
    /// When a subscription cannot be made at the start.
    pub async fn run(self, bus: Bus, readiness: Readiness, heart: Heart, stop: Stop) -> anyhow::Result<()> {
        let patterns = role_permissions(Role::RegistryRpc).subscribe;
        let mut answerers = Vec::new();
        for pattern in &patterns {
            answerers.push(bus.answer(pattern, QUEUE).await.context("listen for requests")?);
        }
        bus.flush().await.context("subscribe to requests")?;
        readiness.mark("requests");
        let (own, heart, stop) = (Arc::new(self), Arc::new(heart), stop);
        let mut serving = tokio::task::JoinSet::new();
        for mut requests in answerers {
            let (own, heart, stop) = (Arc::clone(&own), Arc::clone(&heart), stop.clone());
            serving.spawn(async move {
                let (unanswerable, at_once) = (&own.metrics.requests_unanswerable, own.config.at_once);
                let served = Served { at_once, of_one: at_once, unanswerable, heart: &heart, stop: &stop };
                let answer = |request| {
                    let own = Arc::clone(&own);
                    async move { own.answer(request).await }
                };
                requests.serve(served, answer).await
            });
        }
        while let Some(ended) = serving.join_next().await {
            ended.context("answering panicked")??;
        }
        Ok(())
    }

    async fn answer(&self, request: Responder) {
        let subject: CoreSubject = match request.subject.parse() {
            Ok(subject) => subject,
            Err(error) => {
                let answer = encoded::<()>(&Reply::Error(refused(ErrorCode::Invalid, error)));
                return send(request, answer).await;
            }
        };
        let looked =
            within("look for an account", LOOK_LIMIT, self.directory.look_for(std::iter::once(&subject.account)));
        if let Err(error) = looked.await {
            warn!(error = %Chain(&error), "an account is not looked for, the old list stays");
        }
        match &subject.subject {
            TenantSubject::Lease { .. } => {
                let answer = match self.lease(subject, &request).await {
                    Ok(grant) => encoded(&Reply::Rows(vec![grant])),
                    Err(error) => encoded::<()>(&Reply::Error(error)),
                };
                send(request, answer).await;
            }
            // It waits without a place of its own, so that whoever waits takes nobody's turn.
            TenantSubject::Registry { verb: RegistryVerb::WatchMembers, .. } => self.watch(subject, request),
            TenantSubject::Registry { .. } | TenantSubject::Service { .. } => {
                let answered = self.question(subject, &request.body).await;
                self.metrics.questions_answered.inc();
                send(request, answered.unwrap_or_else(|error| encoded::<()>(&Reply::Error(error)))).await;
            }
            TenantSubject::Forwarded { .. }
            | TenantSubject::Query { .. }
            | TenantSubject::Live { .. }
            | TenantSubject::Down { .. }
            | TenantSubject::Assignment { .. }
            | TenantSubject::Dispatch { .. }
            | TenantSubject::Event { .. } => {
                let error = refused(ErrorCode::Invalid, "this is not for the registry");
                send(request, encoded::<()>(&Reply::Error(error))).await;
            }
        }
    }

    fn refuse(&self, subject: &CoreSubject, refusal: &Refusal) -> ReplyError {
        self.metrics.guard_refusals.inc();
        warn!(reason = refusal.code(), %subject, "question refused: {refusal}");
        match refusal {
            Refusal::UnknownTarget(_) => refused(ErrorCode::NotFound, refusal),
            Refusal::UnknownAccount(_)
            | Refusal::Suspended(_)
            | Refusal::TenantMismatch { .. }
            | Refusal::SenderMismatch { .. }
            | Refusal::NotForPlatform => refused(ErrorCode::Refused, refusal),
        }
    }

    fn rows<T: Serialize>(&self, mut rows: Vec<T>) -> Vec<u8> {
        let fitting = fitting(&rows);
        self.metrics.answers_cut.inc_by(u64::from(fitting < rows.len()));
        rows.truncate(fitting);
        encoded(&Reply::Rows(rows))
    }
}

async fn send(request: Responder, answer: Vec<u8>) {
    if let Err(error) = request.answer(answer.into()).await {
        warn!(error = %Chain(&error), "answer not sent");
    }
}

fn parsed<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, ReplyError> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| refused(ErrorCode::Invalid, error))
}

fn unavailable(failure: &StoreError) -> ReplyError {
    if failure.is_transient() {
        warn!(error = %Chain(failure), "a question is not answered: the database is away");
    } else {
        error!(error = %Chain(failure), "a question failed");
    }
    refused(ErrorCode::Unavailable, "the database cannot be asked now: try again")
}

fn not_kept(failure: &KeepError) -> ReplyError {
    warn!(error = %Chain(failure), "nothing is kept: the hub does not answer");
    refused(ErrorCode::Unavailable, "nothing can be kept now: try again")
}
