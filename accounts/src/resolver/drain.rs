//! Waits until nobody is connected by a signing key any more, so that it can be taken away.

use std::time::{Duration, Instant};

use bulkhead_runtime::{Backoff, Bus};

use super::asking::NotAsked;
use super::connections::{ConnectionFacts, connections, kick};

const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_MOST: Duration = Duration::from_secs(2);

/// Why a key is not known to be unused.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error("watch the connections of signing key {key}")]
    NotAsked { key: String, source: NotAsked },
    #[error("{} connections still use signing key {key} after {limit:?}: {}", .remaining.len(), named(.remaining))]
    Remaining { key: String, limit: Duration, remaining: Vec<ConnectionFacts> },
}

fn named(connections: &[ConnectionFacts]) -> String {
    let name = |one: &ConnectionFacts| format!("{} on {}", one.user_name, one.server.name);
    connections.iter().take(5).map(name).collect::<Vec<_>>().join(", ")
}

/// What is done about those who are connected by a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draining {
    Wait,
    /// They are closed, and come back by another key.
    Close,
}

/// Watches `account` until no connection is by `key`, at most for the limit. `progress` hears how many are left.
///
/// # Errors
/// [`DrainError::Remaining`] names who is still connected by it.
pub async fn drain(
    system: &Bus,
    (account, key): (&str, &str),
    expected: usize,
    (how, limit): (Draining, Duration),
    progress: &dyn Fn(usize),
) -> Result<(), DrainError> {
    let started = Instant::now();
    let mut pace = Backoff::new(LOOK_FIRST, LOOK_MOST);
    loop {
        let asked = connections(system, Some(account), expected).await;
        let all = asked.map_err(|source| DrainError::NotAsked { key: key.to_owned(), source })?;
        let remaining: Vec<ConnectionFacts> = all.into_iter().filter(|one| one.issuer_key == key).collect();
        progress(remaining.len());
        if remaining.is_empty() {
            return Ok(());
        }
        if started.elapsed() >= limit {
            return Err(DrainError::Remaining { key: key.to_owned(), limit, remaining });
        }
        if how == Draining::Close {
            for one in &remaining {
                // One that is gone by itself is no trouble; one that stays is looked at again.
                let _ = kick(system, &one.server.id, one.cid).await;
            }
        }
        pace.pause().await;
    }
}
