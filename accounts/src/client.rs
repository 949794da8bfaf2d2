//! Asks core, the registry and poller-dispatch over the bus, as a person.

use std::time::Duration;

use bulkhead_bus::payload::{ErrorCode, Query, Reply};
use bulkhead_bus::{CoreVerb, TenantSubject, UserName};
use bulkhead_runtime::{Bus, RequestError};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("ask {service}")]
    Request { service: &'static str, source: RequestError },
    #[error("the answer of {service} is not readable: is it another version?")]
    Unreadable { service: &'static str, source: serde_json::Error },
    #[error("{service} says: {message}")]
    Refused { service: &'static str, code: ErrorCode, message: String },
}

/// Who answers a subject.
fn service_of(subject: &TenantSubject) -> &'static str {
    match subject {
        TenantSubject::Registry { .. } | TenantSubject::Lease { .. } | TenantSubject::Service { .. } => "registry",
        TenantSubject::Dispatch { .. } | TenantSubject::Assignment { .. } => "poller-dispatch",
        TenantSubject::Query { .. }
        | TenantSubject::Forwarded { .. }
        | TenantSubject::Live { .. }
        | TenantSubject::Down { .. }
        | TenantSubject::Event { .. } => "core",
    }
}

/// Asks core as `user` and returns the rows of its answer.
///
/// # Errors
/// As [`ask`].
///
/// # Panics
/// Never: a query serializes.
pub async fn query<T: DeserializeOwned>(
    bus: &Bus,
    user: &UserName,
    verb: CoreVerb,
    query: &Query,
) -> Result<Vec<T>, ClientError> {
    ask(bus, &TenantSubject::Query { user: user.clone(), verb }, query, ANSWER_LIMIT).await
}

/// Asks whoever answers `subject` and returns the rows of the answer.
///
/// # Errors
/// When nobody answers within `limit`, or it is refused.
///
/// # Panics
/// Never: payloads serialize.
pub async fn ask<T: DeserializeOwned>(
    bus: &Bus,
    subject: &TenantSubject,
    asked: &impl Serialize,
    limit: Duration,
) -> Result<Vec<T>, ClientError> {
    let service = service_of(subject);
    let body = serde_json::to_vec(asked).expect("payloads serialize");
    let answer = bus.request(&subject.to_string(), body.into(), limit).await;
    let answer = answer.map_err(|source| ClientError::Request { service, source })?;
    let reply = serde_json::from_slice::<Reply<T>>(&answer);
    match reply.map_err(|source| ClientError::Unreadable { service, source })? {
        Reply::Rows(rows) => Ok(rows),
        Reply::Error(error) => Err(ClientError::Refused { service, code: error.code, message: error.message }),
    }
}
