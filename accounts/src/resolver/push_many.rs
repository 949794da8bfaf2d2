//! Pushes many accounts, some at a time, and proves each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bulkhead_runtime::Bus;
use futures_util::{StreamExt, stream};

use super::asking::{KnownServers, NotAsked, ServerFacts, servers};
use super::push::{Checked, Order, Patience, PushError};

/// Accounts that are under way at once. The system account may have 1,000 subscriptions, and each needs one at a time.
const UNDER_WAY_MOST: usize = 64;

/// What became of many pushes.
#[derive(Debug)]
pub struct PushedMany {
    /// How many are in force on every known server.
    pub in_force: usize,
    /// The others, by name.
    pub failed: BTreeMap<String, PushError>,
    pub took: Duration,
}

async fn push_present(
    system: &Bus,
    order: &Order<'_>,
    known: &KnownServers,
    alive: &[ServerFacts],
    limit: Duration,
) -> Result<(), PushError> {
    let checked = Checked::new(order)?;
    checked.check_base(system, alive.len()).await?;
    checked.push(system, known, alive.to_vec(), Patience::Present(limit)).await.map(drop)
}

/// Pushes `orders`, at most 64 at once. A server that is away is named for each account and waited for by none;
/// `limit` is for each account. `progress` hears how many are done.
///
/// # Errors
/// When the connection cannot ask.
pub async fn push_many(
    system: &Bus,
    orders: &[Order<'_>],
    known: &KnownServers,
    limit: Duration,
    progress: &dyn Fn(usize),
) -> Result<PushedMany, NotAsked> {
    let started = Instant::now();
    let alive = servers(system, known.count()).await?;
    let alive = alive.as_slice();
    let mut pushes = stream::iter(orders)
        .map(|order| async move { (order.name, push_present(system, order, known, alive, limit).await) })
        .buffer_unordered(UNDER_WAY_MOST);
    let mut failed = BTreeMap::new();
    let mut done = 0;
    while let Some((name, outcome)) = pushes.next().await {
        done += 1;
        failed.extend(outcome.err().map(|error| (name.to_owned(), error)));
        progress(done);
    }
    Ok(PushedMany { in_force: done - failed.len(), failed, took: started.elapsed() })
}
