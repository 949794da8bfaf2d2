//! Pushes many accounts, some at a time, and proves each. What is in force everywhere is not sent again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bulkhead_runtime::Bus;
use futures_util::{StreamExt, stream};

use super::asking::{KnownServers, NotAsked, ServerFacts, some_servers};
use super::push::{Checked, Order, Patience, PushError};

/// Accounts that are under way at once. The system account may have 1,000 subscriptions, and each needs one at a time.
const UNDER_WAY_MOST: usize = 64;

/// What became of many pushes.
#[derive(Debug)]
pub struct PushedMany {
    /// How many are in force on every known server.
    pub in_force: usize,
    /// How many of those were so before, and were not sent.
    pub unchanged: usize,
    /// The others, by name.
    pub failed: BTreeMap<String, PushError>,
    pub took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sent,
    Unchanged,
}

async fn push_present(
    system: &Bus,
    order: &Order<'_>,
    known: &KnownServers,
    alive: &[ServerFacts],
    limit: Duration,
) -> Result<Outcome, PushError> {
    let checked = Checked::new(order)?;
    let disks = checked.look_at_disks(system, known, alive.len()).await?;
    if checked.is_in_force(system, known, &disks).await? {
        return Ok(Outcome::Unchanged);
    }
    checked.check_base(system, disks).await?;
    checked.push(system, known, alive.to_vec(), Patience::Present(limit)).await.map(|_| Outcome::Sent)
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
    let alive = some_servers(system, known.count()).await?;
    let alive = alive.as_slice();
    let mut pushes = stream::iter(orders)
        .map(|order| async move { (order.name, push_present(system, order, known, alive, limit).await) })
        .buffer_unordered(UNDER_WAY_MOST);
    let mut pushed = PushedMany { in_force: 0, unchanged: 0, failed: BTreeMap::new(), took: Duration::ZERO };
    while let Some((name, outcome)) = pushes.next().await {
        match outcome {
            Ok(outcome) => {
                pushed.in_force += 1;
                pushed.unchanged += usize::from(outcome == Outcome::Unchanged);
            }
            Err(error) => drop(pushed.failed.insert(name.to_owned(), error)),
        }
        progress(pushed.in_force + pushed.failed.len());
    }
    pushed.took = started.elapsed();
    Ok(pushed)
}
