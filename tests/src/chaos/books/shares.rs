//! Every slot of what dispatch shares out ended as one result, or has a reason: `bulkhead check gaps` is held to its promise, and
//! to the rows.
//!
//! `missed` with a reason and `thinned` are accounts. `pending` must pass. `no_poller` is none here: at each site one is there, or
//! is back soon, and a site that is away keeps what it has. `silent` is one only of what was on a leaf's disk that was replaced.

use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::payload::{GapKind, GapRow, Reason};
use bulkhead_bus::{CheckName, Grid, PollerName};

use super::{Books, Evidence};
use crate::chaos::world::World;
use crate::shared_checks::settled_gaps;

/// From when a slot begins until its result is at the leaf: what it waits for others of its batch, and as much again and more.
const ON_THE_WAY_MS: i64 = 5_000;

/// How many slots of a check have a measurement, and how many rows are too many.
const ROWS: &str = "
select check_name, count(distinct slot) filter (where outcome <> 'missed'), count(*) - count(distinct slot)
from everywhere.result r join platform.tenant t using (tenant_id)
where t.slug = $1 and check_name = any($2)
  and slot >= to_timestamp($3::float8 / 1000) and slot < to_timestamp($4::float8 / 1000)
group by check_name";

impl Evidence {
    fn period_ms(&self) -> (i64, i64) {
        (self.before.since_ms, self.until_ms)
    }

    /// The leaf had acknowledged it, and its disk was replaced before anybody else had it.
    fn is_lost_with_a_disk(&self, gap: &GapRow) -> bool {
        self.disk_replaced_ms.is_some_and(|(empty_ms, back_ms)| {
            gap.first_slot_ms >= empty_ms - ON_THE_WAY_MS && gap.last_slot_ms <= back_ms
        })
    }

    fn is_accounted_for(&self, gap: &GapRow) -> bool {
        match gap.kind {
            GapKind::Missed => gap.reason.is_some(),
            GapKind::Thinned => true,
            GapKind::Silent => self.is_lost_with_a_disk(gap),
            GapKind::Pending | GapKind::NoPoller => false,
        }
    }
}

fn shown(gap: &GapRow) -> String {
    let (kind, reason) = (gap.kind.as_str(), gap.reason.map(Reason::as_str));
    let poller = gap.poller.as_ref().map(PollerName::as_str);
    format!("{kind} {} of {poller:?} from {} to {}: {reason:?}", gap.check, gap.first_slot_ms, gap.last_slot_ms)
}

fn slots_due(check: &str, interval_s: u64, (since_ms, until_ms): (i64, i64)) -> anyhow::Result<u64> {
    let grid = Grid::new(&check.parse::<CheckName>()?, Duration::from_secs(interval_s));
    let due = (grid.slot_at(until_ms - 1) - grid.slot_from(since_ms)) / grid.interval_ms() + 1;
    Ok(u64::try_from(due).unwrap_or(0))
}

async fn hold_rows(world: &World, evidence: &Evidence, gaps: &[GapRow], books: &mut Books) -> anyhow::Result<()> {
    let (own, period) = (&evidence.own, evidence.period_ms());
    let query = sqlx::query_as(ROWS).bind(evidence.tenant.slug()).bind(own.shared.names());
    let rows: Vec<(String, i64, i64)> = query
        .bind(period.0 as f64)
        .bind(period.1 as f64)
        .fetch_all(&world.witness)
        .await
        .context("count slots that are shared out")?;
    let (mut uneven, mut doubled) = (Vec::new(), Vec::new());
    for check in own.shared.names() {
        let found = rows.iter().find(|(name, ..)| *name == check);
        let (measured, doubles) = found.map_or((0, 0), |(_, measured, doubles)| (*measured, *doubles));
        let empty: u64 = gaps.iter().filter(|gap| gap.check.as_str() == check).map(|gap| gap.slots).sum();
        let due = slots_due(&check, own.shared.interval_s, period)?;
        if u64::try_from(measured).unwrap_or(0) + empty != due {
            uneven.push(format!("{check}: {measured} measured and {empty} in gaps of {due}"));
        }
        if doubles != 0 {
            doubled.push(format!("{check}: {doubles}"));
        }
        books.shared_slots += due;
    }
    books.note("measurements and gaps of a shared check are not its slots", &uneven);
    books.note("slots of a shared check are there twice", &doubled);
    Ok(())
}

pub(super) async fn hold(world: &World, evidence: &Evidence, books: &mut Books) -> anyhow::Result<()> {
    let gaps = match settled_gaps(world.operator(), evidence.tenant.slug(), evidence.period_ms()).await {
        Ok(gaps) => gaps,
        Err(error) => {
            books.problems.push(format!("it is not told what became of shared checks: {error}"));
            return Ok(());
        }
    };
    books.shared_gaps = gaps.iter().map(|gap| gap.slots).sum();
    let open = gaps.iter().filter(|gap| !evidence.is_accounted_for(gap));
    let open: Vec<String> = open.map(shown).collect();
    books.note("slots of shared checks are not accounted for", &open);
    hold_rows(world, evidence, &gaps, books).await
}
