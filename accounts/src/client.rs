//! Asks core over the bus, as a person.

use std::time::Duration;

use bulkhead_bus::payload::{ErrorCode, Query, Reply};
use bulkhead_bus::{CoreVerb, TenantSubject, UserName};
use bulkhead_runtime::{Bus, RequestError};
use serde::de::DeserializeOwned;

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("ask core")]
    Request(#[source] RequestError),
    #[error("core's answer is not readable: is it another version?")]
    Unreadable(#[source] serde_json::Error),
    #[error("core says: {message}")]
    Refused { code: ErrorCode, message: String },
}

/// Asks core as `user` and returns the rows of its answer.
///
/// # Errors
/// When core does not answer, or refuses.
///
/// # Panics
/// Never: a query serializes.
pub async fn query<T: DeserializeOwned>(
    bus: &Bus,
    user: &UserName,
    verb: CoreVerb,
    query: &Query,
) -> Result<Vec<T>, ClientError> {
    let subject = TenantSubject::Query { user: user.clone(), verb }.to_string();
    let body = serde_json::to_vec(query).expect("a query serializes");
    let answer = bus.request(&subject, body.into(), ANSWER_LIMIT).await.map_err(ClientError::Request)?;
    match serde_json::from_slice::<Reply<T>>(&answer).map_err(ClientError::Unreadable)? {
        Reply::Rows(rows) => Ok(rows),
        Reply::Error(error) => Err(ClientError::Refused { code: error.code, message: error.message }),
    }
}
