//! How each fault is begun and ended.

use std::time::Duration;

use anyhow::Context;
use bulkhead_accounts::up::Child;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::Link;
use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use super::ledger::Order;
use super::plan::{Fault, Part};
use super::world::{DiskOf, Tenant, World};

/// How long everything in a leaf may take to go upstream when all is well: a batch that was in a dead forwarder's hands
/// waits for its acknowledgement wait first.
pub(super) const DRAIN_LIMIT: Duration = Duration::from_secs(150);

/// The ways to the ledgers.
pub(super) type Orders = std::collections::BTreeMap<Tenant, mpsc::Sender<Order>>;

fn child(world: &mut World, part: Part) -> anyhow::Result<&mut Child> {
    match part {
        Part::Hub(number) => Ok(world.deployment.up.hub_child(number).context("there is such a hub server")?),
        Part::Leaf(tenant) => world.leaf(tenant),
        Part::Core => Ok(&mut world.deployment.up.core),
        Part::Registry(_) | Part::Dispatch(_) => world.sharer(part),
        Part::Poller(tenant) => world.poller(tenant),
        Part::Database => Ok(&mut world.deployment.up.postgres.child),
        Part::Link(_) | Part::Ledger(_) => anyhow::bail!("{part} is no process"),
    }
}

fn disk(world: &World, part: Part) -> anyhow::Result<&Disk> {
    let of = match part {
        Part::Hub(number) => DiskOf::Hub(number),
        Part::Leaf(tenant) => DiskOf::Leaf(tenant),
        Part::Database => DiskOf::Database,
        Part::Core | Part::Registry(_) | Part::Dispatch(_) | Part::Poller(_) | Part::Link(_) | Part::Ledger(_) => {
            anyhow::bail!("{part} has no disk")
        }
    };
    world.disks.get(&of).with_context(|| format!("the disk of {part} is one of its own"))
}

fn set_link(world: &World, part: Part, link: Link) -> anyhow::Result<()> {
    let Part::Link(tenant) = part else { anyhow::bail!("{part} is no link") };
    world.links[&tenant].iter().for_each(|proxy| proxy.set(link));
    Ok(())
}

async fn order(orders: &Orders, tenant: Tenant, order: Order) -> anyhow::Result<()> {
    orders[&tenant].send(order).await.ok().context("the ledger has ended")
}

async fn start_again(world: &mut World, part: Part) -> anyhow::Result<()> {
    if part == Part::Database {
        return world.deployment.up.postgres.restart().await.context("start the database again");
    }
    if let Part::Hub(number) = part {
        return world.deployment.up.restart_hub_server(number + 1).with_context(|| format!("start {part} again"));
    }
    child(world, part)?.restart().with_context(|| format!("start {part} again"))
}

pub(super) async fn begin(world: &mut World, orders: &Orders, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Kill(part) => Ok(child(world, part)?.kill()?),
        Fault::Pause(part) => Ok(child(world, part)?.pause()?),
        Fault::Network(part, link) => set_link(world, part, link),
        Fault::FullDisk(part) => disk(world, part)?.fill(),
        Fault::ClockStep(tenant, ms) => world.clocks[&tenant].set(ms),
        Fault::Malformed(tenant, kind) => order(orders, tenant, Order::Malformed(kind)).await,
        Fault::Repeat(tenant) => order(orders, tenant, Order::Repeat).await,
        Fault::NewLeafDisk(tenant) => replace_leaf_disk(world, orders, tenant).await,
        Fault::NewHubDisk(number) => replace_hub_disk(world, number).await,
    }
}

pub(super) async fn end(world: &mut World, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Kill(part) => start_again(world, part).await,
        Fault::Pause(part) => Ok(child(world, part)?.resume()?),
        Fault::Network(part, _) => set_link(world, part, Link::Up),
        // A server that could not write stays so until it is started again: what an operator does after making room.
        Fault::FullDisk(part) => {
            disk(world, part)?.free()?;
            child(world, part)?.stop().await?;
            start_again(world, part).await
        }
        Fault::ClockStep(tenant, _) => world.clocks[&tenant].set(0),
        Fault::Malformed(..) | Fault::Repeat(_) | Fault::NewLeafDisk(_) | Fault::NewHubDisk(_) => Ok(()),
    }
}

/// Waits until nothing from before now is left at a tenant's leaf.
pub(super) async fn drain_leaf(world: &World, tenant: Tenant) -> anyhow::Result<()> {
    let since_ms = now_ms();
    let drained = eventually("everything at the leaf gone upstream", DRAIN_LIMIT, || async {
        let waiting = world.leaf_waiting(tenant).await.map_err(|error| format!("{error:#}"))?;
        if waiting.iter().all(|stream| stream.is_drained(since_ms)) { Ok(()) } else { Err(format!("{waiting:?}")) }
    });
    drained.await.with_context(|| format!("leaf of {tenant}"))
}

/// A disk that breaks takes with it what is on it, so nothing of the ledger may be on it: the ledger rests.
async fn replace_leaf_disk(world: &mut World, orders: &Orders, tenant: Tenant) -> anyhow::Result<()> {
    let (resting, rests) = oneshot::channel();
    let (_goes_on, over) = oneshot::channel();
    order(orders, tenant, Order::Rest(resting, over)).await?;
    rests.await.context("the ledger has ended")?;
    let empty = eventually("an empty leaf", DRAIN_LIMIT, || async {
        let waiting = world.leaf_waiting(tenant).await.map_err(|error| format!("{error:#}"))?;
        if waiting.iter().all(|stream| stream.messages == 0) { Ok(()) } else { Err(format!("{waiting:?}")) }
    });
    empty.await.with_context(|| format!("leaf of {tenant}"))?;
    let empty_ms = now_ms();
    let store = world.leaf_store(tenant)?;
    let leaf = world.leaf(tenant)?;
    leaf.kill()?;
    Disk::wipe(&store)?;
    leaf.restart()?;
    world.disks_replaced.insert(tenant, (empty_ms, now_ms()));
    Ok(())
}

/// The others stay up until the new one has everything, as the runbook says.
async fn replace_hub_disk(world: &mut World, number: usize) -> anyhow::Result<()> {
    let up = &mut world.deployment.up;
    up.wait_until_replicas_current().await.context("a hub server was behind before its neighbour's disk broke")?;
    let server = up.hub_servers.get_mut(number).context("there is such a hub server")?;
    let place = server.place.number;
    server.child.kill()?;
    Disk::wipe(&up.layout.hub_server(place).join("js"))?;
    Disk::wipe(&up.layout.hub_server(place).join("jwt"))?;
    up.restart_hub_server(place)?;
    up.wait_until_replicas_current().await.context("the new hub server does not catch up")?;
    Ok(())
}
