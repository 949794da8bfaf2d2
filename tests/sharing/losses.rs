//! Who runs what is lost, and is taken over: pollers, the services, the hub. At the end the ledger has a result or a reason for
//! every slot.

use anyhow::Context;
use bulkhead_bus::payload::GapKind;
use bulkhead_runtime::{eventually, now_ms};
use bulkhead_testkit::{LIMIT, TestDeployment};
use bulkhead_tests::shared_checks::SETTLED_LIMIT;

use crate::world::{LINES, World};

const CHECKS: usize = 24;

impl World {
    fn poller(&mut self, site: &str, name: &str) -> anyhow::Result<&mut bulkhead_accounts::up::Child> {
        let mut pollers = self.deployment.up.pollers.iter_mut();
        let found = pollers.find(|(place, poller, _)| place.site.as_str() == site && poller.as_str() == name);
        found.map(|(_, _, child)| child).context("the poller runs")
    }

    async fn wait_for_owners(&self, site: &str, is_wanted: impl Fn(&[(&str, usize)]) -> bool) -> anyhow::Result<()> {
        eventually("checks are shared out so", LIMIT, || async {
            let owners = self.owners(site).await.map_err(|error| format!("{error:#}"))?;
            let shown: Vec<(&str, usize)> = owners.iter().map(|(name, count)| (name.as_str(), *count)).collect();
            if is_wanted(&shown) { Ok(()) } else { Err(format!("{owners:?}")) }
        })
        .await
        .map_err(Into::into)
    }

    async fn generation(&self) -> anyhow::Result<i64> {
        let sql = "select generation from tenant_acme_corp.dispatch_state";
        Ok(sqlx::query_scalar(sql).fetch_one(&self.witness).await?)
    }

    /// Slots of which more than one row counts, which the key of results rules out, and batches that came twice and were stored
    /// once.
    async fn doubles(&self) -> anyhow::Result<i64> {
        let sql = "select count(*) from (select 1 from tenant_acme_corp.result where check_name ~ '^c[0-9]+$'
                   group by check_name, slot, vantage having count(*) > 1) d";
        Ok(sqlx::query_scalar(sql).fetch_one(&self.witness).await?)
    }
}

fn are_shared(owners: &[(&str, usize)]) -> bool {
    owners.len() == 2 && owners.iter().all(|(name, count)| *name != "nobody" && *count >= CHECKS / 6)
}

#[tokio::test]
async fn a_lost_poller_is_taken_over_and_no_slot_is_without_a_result_or_a_reason() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    world.add_checks(CHECKS, &["oslo", "bergen"]).await?;
    world.wait_for_slots(CHECKS, &["oslo", "bergen"], world.began_ms).await?;
    world.wait_for_owners("oslo", are_shared).await?;

    // A poller that is killed: the other one of its site takes over, and nobody else is moved.
    let elsewhere = world.owners("bergen").await?;
    world.poller("oslo", "p1")?.kill()?;
    world.wait_for_owners("oslo", |owners| owners == [("p2", CHECKS)]).await?;
    world.wait_for_states("acme-corp", &[("oslo", "p1")], "lost").await?;
    let taken_over = now_ms();
    world.wait_for_slots(CHECKS, &["oslo"], taken_over).await?;
    assert_eq!(world.owners("bergen").await?, elsewhere);

    // It comes back, and gets its share again, handed over from one slot to the next.
    world.poller("oslo", "p1")?.restart()?;
    world.wait_for_owners("oslo", are_shared).await?;
    world.wait_for_slots(CHECKS, &["oslo"], now_ms() + 4_000).await?;

    // The only poller of a site: nobody can take over, it keeps its checks, and has them at once when it is back.
    world.poller("bergen", "p1")?.kill()?;
    world.wait_for_states("acme-corp", &[("bergen", "p1")], "lost").await?;
    assert_eq!(world.owners("bergen").await?, elsewhere);
    world.poller("bergen", "p1")?.restart()?;
    world.wait_for_states("acme-corp", &[("bergen", "p1")], "ready").await?;
    let back = now_ms();
    world.wait_for_slots(CHECKS, &["bergen"], back).await?;

    let end = now_ms();
    let gaps = world.settled_gaps(end).await?;
    anyhow::ensure!(!gaps.is_empty(), "killed pollers have missed slots");
    anyhow::ensure!(gaps.iter().all(|gap| gap.kind == GapKind::Missed), "{gaps:?}");
    assert_eq!(world.doubles().await?, 0);
    // Control: rows that are taken away are found missing.
    let taken = "delete from tenant_acme_corp.result where vantage = 'oslo' and check_name = (
                     select check_name from tenant_acme_corp.assignment where vantage = 'oslo'
                     group by check_name having bool_and(poller = 'p2') limit 1)
                 and slot between 'epoch'::timestamptz + ($1 - 5000) * interval '1 millisecond'
                              and 'epoch'::timestamptz + $1 * interval '1 millisecond'";
    let taken = sqlx::query(taken).bind(end).execute(&world.witness).await?;
    anyhow::ensure!(taken.rows_affected() > 2, "one of p2's checks has rows");
    eventually("what is missing is silent once it can be no other thing", SETTLED_LIMIT, || async {
        let asked = world.operator().expect(2, &["check", "gaps", "--tenant", "acme-corp", "--hours", "1"]).await;
        let (rows, said) = asked.map_err(|error| format!("{error:#}"))?;
        let is_seen = rows.iter().any(|row| row["kind"] == "silent") && said.contains("neither a result nor a reason");
        if is_seen { Ok(()) } else { Err(said) }
    })
    .await?;
    world.deployment.stop().await
}

#[tokio::test]
async fn a_poller_that_is_stopped_hands_over_every_slot() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    world.add_checks(CHECKS, &["oslo"]).await?;
    world.wait_for_slots(CHECKS, &["oslo"], world.began_ms).await?;
    world.wait_for_owners("oslo", are_shared).await?;
    let settled = now_ms() + 4_000;
    world.wait_for_slots(CHECKS, &["oslo"], settled).await?;
    world.poller("oslo", "p2")?.stop().await?;
    world.wait_for_owners("oslo", |owners| owners == [("p1", CHECKS)]).await?;
    world.wait_for_states("acme-corp", &[("oslo", "p2")], "gone").await?;
    let taken_over = now_ms() + 4_000;
    world.wait_for_slots(CHECKS, &["oslo"], taken_over).await?;
    let mut gaps = world.settled_gaps(taken_over).await?;
    gaps.retain(|gap| gap.last_slot_ms >= settled);
    anyhow::ensure!(gaps.is_empty(), "none is lost: {gaps:?}");
    assert_eq!(world.doubles().await?, 0, "and none is there twice");
    world.deployment.stop().await
}

/// What is killed one after the other while checks run; then everything is as before.
async fn kill_the_platform(mut world: World) -> anyhow::Result<()> {
    world.add_checks(CHECKS, &["oslo", "bergen"]).await?;
    world.wait_for_slots(CHECKS, &["oslo", "bergen"], world.began_ms).await?;
    world.wait_for_owners("oslo", are_shared).await?;
    let (owners, generation) = (world.owners("oslo").await?, world.generation().await?);
    for round in 0..2 {
        for number in 0..world.deployment.up.sharers.len() {
            world.deployment.up.sharers[number].tended.child.kill()?;
        }
        world.wait_for_slots(CHECKS, &["oslo", "bergen"], now_ms()).await.context("nobody shares out")?;
        world.deployment.up.hub().kill()?;
        for number in 0..world.deployment.up.sharers.len() {
            world.deployment.up.sharers[number].tended.child.restart()?;
        }
        if world.deployment.up.hub_servers.len() == 1 {
            world.deployment.up.hub().restart()?;
        }
        let all = [("oslo", "p1"), ("oslo", "p2"), ("bergen", "p1")];
        world.wait_for_states("acme-corp", &all, "ready").await.with_context(|| format!("round {round}"))?;
        world.wait_for_slots(CHECKS, &["oslo", "bergen"], now_ms()).await?;
        if world.deployment.up.hub_servers.len() > 1 {
            world.deployment.up.hub().restart()?;
            world.deployment.up.wait_until_replicas_current().await?;
        }
        assert_eq!(world.owners("oslo").await?, owners, "round {round}: nobody was moved");
        assert_eq!(world.generation().await?, generation, "round {round}: nothing was planned anew");
    }
    let gaps = world.settled_gaps(now_ms()).await?;
    anyhow::ensure!(gaps.iter().all(|gap| gap.kind == GapKind::Missed), "{gaps:?}");
    assert_eq!(world.doubles().await?, 0);
    world.deployment.stop().await
}

#[tokio::test]
async fn services_and_hub_are_killed_and_nothing_moves() -> anyhow::Result<()> {
    kill_the_platform(World::start().await?).await
}

#[tokio::test]
async fn on_a_hub_of_three_a_server_is_killed_with_all_services() -> anyhow::Result<()> {
    kill_the_platform(World::of(TestDeployment::start_cluster(&LINES).await?).await?).await
}
