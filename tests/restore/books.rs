//! Which slots are stored, and which should be.

use std::collections::BTreeSet;

use anyhow::Context;
use bulkhead_bus::StreamName;
use bulkhead_testkit::TestDeployment;
use sqlx::PgPool;

/// Tenant, check, vantage and slot in unix milliseconds: what makes a result one.
pub(crate) type Slot = (String, String, String, i64);

const INTERVAL_MS: i64 = 5_000;

/// Every stored slot. A slot that is there twice is an error.
pub(crate) async fn stored(witness: &PgPool) -> anyhow::Result<BTreeSet<Slot>> {
    let sql = "select t.slug, r.check_name, r.vantage, (extract(epoch from r.slot) * 1000)::int8
               from everywhere.result r join platform.tenant t using (tenant_id)";
    let rows: Vec<Slot> = sqlx::query_as(sql).fetch_all(witness).await.context("read stored slots")?;
    let count = rows.len();
    let slots: BTreeSet<Slot> = rows.into_iter().collect();
    anyhow::ensure!(slots.len() == count, "{count} rows for {} slots", slots.len());
    Ok(slots)
}

/// Every slot of the grid from the first that is known to the last, of each check: a poller gives each exactly one result.
pub(crate) fn grid(known: &BTreeSet<Slot>) -> BTreeSet<Slot> {
    let mut all = BTreeSet::new();
    let mut from = None;
    // In order: the slots of one check follow each other.
    for slot in known {
        let (tenant, check, vantage, at) = slot;
        let before = from.replace(slot);
        let first = match before {
            Some((t, c, v, before)) if (t, c, v) == (tenant, check, vantage) => *before,
            Some(_) | None => *at,
        };
        let mut at_ms = first;
        while at_ms <= *at {
            all.insert((tenant.clone(), check.clone(), vantage.clone(), at_ms));
            at_ms += INTERVAL_MS;
        }
    }
    all
}

/// Batches that the hub holds, by its own word.
pub(crate) async fn held(deployment: &TestDeployment) -> u64 {
    let states = bulkhead_accounts::hub_state::hub_state(&deployment.up.system, deployment.up.hub_size()).await;
    states.iter().map(|state| state.messages).max().unwrap_or(0)
}

#[test]
fn the_grid_has_the_slots_that_are_missing_between_known_ones_and_no_others() {
    let slot = |check: &str, at: i64| ("acme".to_owned(), check.to_owned(), "oslo".to_owned(), at);
    let known: BTreeSet<Slot> = [slot("a", 5_000), slot("a", 20_000), slot("b", 7_000)].into();
    let missing: Vec<Slot> = grid(&known).difference(&known).cloned().collect();
    assert_eq!(missing, [slot("a", 10_000), slot("a", 15_000)]);
    assert_eq!(StreamName::HUB.len(), 2, "the hub has another stream: is it in the backup?");
}
