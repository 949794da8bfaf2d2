//! How long the database is waited for.

use std::time::Duration;

use crate::store::StoreError;

/// How long reading may take: beyond what the database allows a statement, so that it speaks first if it can.
pub const READ_LIMIT: Duration = Duration::from_secs(40);

/// A database that says nothing at all is away after `limit`.
///
/// # Errors
/// What `asking` returns, or that it took too long.
pub async fn within<T>(
    action: &'static str,
    limit: Duration,
    asking: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, asking).await.unwrap_or(Err(StoreError::TimedOut { action, limit }))
}
