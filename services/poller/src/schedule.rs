//! The slot grid: when each check runs. Pure: the time is an argument, and nothing here sleeps.
//!
//! A slot starts at `phase + n * interval` of the wall clock, and the phase follows from the check's name alone, so
//! that any poller that takes a check over goes on in the same cadence. Each slot is handed out exactly once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bulkhead_bus::Grid;

/// Missed slots of one check that are reported one by one after a gap; older ones are only counted.
pub(crate) const MISSED_MOST: i64 = 100;
/// The clock is looked at again after at most this long, so that a step is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A clock that goes back by less is ordinary slewing.
const STEP_WORTH_SAYING_MS: i64 = 1_000;
/// A clock that is back by no more than this is waited for. Beyond it the time before was the wrong one, and waiting for it
/// would leave the site unwatched: slots are handed out again from the present on.
const WAIT_MOST_MS: i64 = 60_000;

/// Why a slot passed without a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissedBecause {
    /// The check's run for an earlier slot still goes on.
    StillRunning,
    /// The process was stopped or the clock jumped.
    Asleep,
}

/// A slot of the check with this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) start_ms: i64,
    pub(crate) check: usize,
}

/// What has come due.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) runs: Vec<Slot>,
    pub(crate) missed: Vec<(Slot, MissedBecause)>,
    /// Missed slots beyond [`MISSED_MOST`], which get no result of their own.
    pub(crate) uncounted: u64,
    /// By how much the clock went back since the last look.
    pub(crate) stepped_back_ms: Option<i64>,
}

/// Hands out slots. A clock that goes back a little makes it wait: a slot that was handed out does not come again, but for
/// those of a time that turned out to be wrong by more than [`WAIT_MOST_MS`].
#[derive(Debug)]
pub(crate) struct Scheduler {
    grids: Vec<Grid>,
    is_running: Vec<bool>,
    next: BinaryHeap<Reverse<Slot>>,
    last_look_ms: i64,
    /// The latest time that was seen and not given up.
    furthest_ms: i64,
}

impl Scheduler {
    /// Starts with the first whole slot: the one that `now_ms` is in belongs to whoever ran before.
    pub(crate) fn new(grids: Vec<Grid>, now_ms: i64) -> Self {
        let slots = grids.iter().enumerate();
        let next = slots.map(|(check, grid)| Reverse(Slot { start_ms: grid.slot_from(now_ms), check })).collect();
        Self { is_running: vec![false; grids.len()], grids, next, last_look_ms: now_ms, furthest_ms: now_ms }
    }

    /// Everything that has come due by `now_ms`. A check that is handed out runs until [`Self::finish`].
    pub(crate) fn advance(&mut self, now_ms: i64) -> Due {
        let mut due = Due::default();
        let back_ms = self.last_look_ms.saturating_sub(now_ms);
        due.stepped_back_ms = (back_ms >= STEP_WORTH_SAYING_MS).then_some(back_ms);
        self.last_look_ms = now_ms;
        self.furthest_ms = self.furthest_ms.max(now_ms);
        if self.furthest_ms.saturating_sub(now_ms) > WAIT_MOST_MS {
            self.begin_again(now_ms);
        }
        while let Some(Reverse(slot)) = self.next.peek().copied()
            && slot.start_ms <= now_ms
        {
            self.next.pop();
            let grid = self.grids[slot.check];
            let current_ms = grid.slot_at(now_ms);
            self.miss_until(slot, current_ms, &mut due);
            let current = Slot { start_ms: current_ms, check: slot.check };
            if std::mem::replace(&mut self.is_running[slot.check], true) {
                due.missed.push((current, MissedBecause::StillRunning));
            } else {
                due.runs.push(current);
            }
            let start_ms = current_ms.saturating_add(grid.interval_ms());
            self.next.push(Reverse(Slot { start_ms, check: slot.check }));
        }
        due
    }

    /// Takes back the slots of a time that never was.
    fn begin_again(&mut self, now_ms: i64) {
        self.furthest_ms = now_ms;
        let slots = std::mem::take(&mut self.next).into_iter();
        let soonest = |Reverse(slot): Reverse<Slot>| {
            let start_ms = slot.start_ms.min(self.grids[slot.check].slot_from(now_ms));
            Reverse(Slot { start_ms, check: slot.check })
        };
        self.next = slots.map(soonest).collect();
    }

    /// The slots from `first` to before `current_ms`, all of which passed while nobody looked.
    fn miss_until(&self, first: Slot, current_ms: i64, due: &mut Due) {
        let interval_ms = self.grids[first.check].interval_ms();
        let passed = (current_ms - first.start_ms) / interval_ms;
        let because = if self.is_running[first.check] { MissedBecause::StillRunning } else { MissedBecause::Asleep };
        due.uncounted += (passed - MISSED_MOST).max(0).unsigned_abs();
        for back in (1..=passed.min(MISSED_MOST)).rev() {
            due.missed.push((Slot { start_ms: current_ms - back * interval_ms, check: first.check }, because));
        }
    }

    pub(crate) fn finish(&mut self, check: usize) {
        self.is_running[check] = false;
    }

    /// How long to wait before the next [`Self::advance`].
    pub(crate) fn pause(&self, now_ms: i64) -> Duration {
        let Some(Reverse(slot)) = self.next.peek() else { return LOOK_AGAIN };
        let wait_ms = slot.start_ms.saturating_sub(now_ms).max(0).unsigned_abs();
        Duration::from_millis(wait_ms).min(LOOK_AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grid(name: &str, interval_s: u64) -> Grid {
        Grid::new(&name.parse().unwrap(), Duration::from_secs(interval_s))
    }

    /// A scheduler of one check every 10 s whose slots start at multiples of 10 s.
    fn ten_seconds(now_ms: i64) -> Scheduler {
        Scheduler::new(vec![Grid::with_phase(0, 10_000)], now_ms)
    }

    fn starts(slots: &[Slot]) -> Vec<i64> {
        slots.iter().map(|slot| slot.start_ms).collect()
    }

    #[test]
    fn phases_spread_over_the_interval() {
        let mut buckets = [0_u32; 100];
        for check in 0..10_000 {
            let bucket = grid(&format!("check-{check}"), 10).phase_ms() / 100;
            buckets[usize::try_from(bucket).unwrap()] += 1;
        }
        assert!(buckets.iter().all(|count| (50..=150).contains(count)), "{buckets:?}");
    }

    #[test]
    fn a_slot_that_comes_while_the_check_runs_is_missed() {
        let mut scheduler = ten_seconds(1);
        assert_eq!(starts(&scheduler.advance(10_000).runs), [10_000]);
        let due = scheduler.advance(20_001);
        assert_eq!(due.missed, [(Slot { start_ms: 20_000, check: 0 }, MissedBecause::StillRunning)]);
        assert!(due.runs.is_empty());
        scheduler.finish(0);
        assert_eq!(starts(&scheduler.advance(30_000).runs), [30_000]);
    }

    #[test]
    fn slots_that_were_slept_through_are_missed_and_the_current_one_runs() {
        let mut scheduler = ten_seconds(1);
        let due = scheduler.advance(35_000);
        let missed: Vec<Slot> = due.missed.iter().map(|(slot, _)| *slot).collect();
        assert_eq!((starts(&missed), starts(&due.runs)), (vec![10_000, 20_000], vec![30_000]));
        assert!(due.missed.iter().all(|(_, because)| *because == MissedBecause::Asleep));
        assert_eq!(due.uncounted, 0);
    }

    #[test]
    fn a_long_gap_reports_the_most_recent_slots_and_counts_the_rest() {
        let mut scheduler = ten_seconds(1);
        let due = scheduler.advance(10_000 * 1_000_000);
        assert_eq!(due.missed.len(), 100);
        assert_eq!(due.missed[99].0.start_ms, 10_000 * 999_999);
        assert_eq!(due.uncounted, 1_000_000 - 1 - 100);
        assert_eq!(starts(&due.runs), [10_000 * 1_000_000]);
    }

    #[test]
    fn a_clock_that_steps_back_repeats_nothing_and_says_so_once() {
        let mut scheduler = ten_seconds(1);
        assert_eq!(starts(&scheduler.advance(20_000).runs), [20_000]);
        scheduler.finish(0);
        let due = scheduler.advance(5_000);
        assert_eq!((due.runs.len(), due.stepped_back_ms), (0, Some(15_000)));
        let due = scheduler.advance(20_500);
        assert_eq!((due.runs.len(), due.missed.len(), due.stepped_back_ms), (0, 0, None));
        assert_eq!(starts(&scheduler.advance(30_000).runs), [30_000]);
    }

    #[test]
    fn a_time_that_was_wrong_by_more_than_a_minute_is_not_waited_for() {
        let daily = Grid::with_phase(0, 86_400_000);
        let mut scheduler = Scheduler::new(vec![Grid::with_phase(0, 10_000), daily], 1);
        assert_eq!(starts(&scheduler.advance(10_000).runs), [10_000]);
        scheduler.finish(0);
        let ahead = scheduler.advance(3_600_000);
        assert_eq!(starts(&ahead.runs), [3_600_000]);
        scheduler.finish(0);
        // Back in two steps, each of which would have been waited for.
        assert_eq!(scheduler.advance(3_560_000).runs, []);
        assert_eq!(starts(&scheduler.advance(3_520_000).runs), [3_520_000]);
        scheduler.finish(0);
        assert!(scheduler.advance(20_001).runs.is_empty());
        assert_eq!(starts(&scheduler.advance(30_000).runs), [30_000]);
        scheduler.finish(0);
        assert_eq!(starts(&scheduler.advance(86_400_000).runs).len(), 2, "the daily one has its own time still");
    }

    #[test]
    fn the_pause_ends_at_the_next_slot_and_is_bounded() {
        let scheduler = ten_seconds(1);
        assert_eq!(scheduler.pause(9_900), Duration::from_millis(100));
        assert_eq!(scheduler.pause(10_500), Duration::ZERO);
        assert_eq!(scheduler.pause(1), LOOK_AGAIN);
        assert_eq!(Scheduler::new(vec![], 0).pause(0), LOOK_AGAIN);
    }

    proptest! {
        #[test]
        fn one_slot_starts_in_every_interval(name in "[a-z0-9]{1,12}", interval_s in 1_u64..86_400, now in 0_i64..4_000_000_000_000) {
            let grid = grid(&name, interval_s);
            let interval_ms = i64::try_from(interval_s).unwrap() * 1_000;
            let slot = grid.slot_from(now);
            prop_assert!(slot >= now && slot < now + interval_ms);
            prop_assert_eq!(grid.slot_at(slot), slot);
            prop_assert_eq!(grid.slot_at(slot + interval_ms - 1), slot);
            prop_assert_eq!(grid.slot_from(slot + 1), slot + interval_ms);
        }

        #[test]
        fn whoever_takes_over_goes_on_with_the_same_slots(name in "[a-z0-9]{1,12}", interval_s in 1_u64..300, moved in 1_i64..2_000_000) {
            let grid = grid(&name, interval_s);
            let start = 1_800_000_000_000;
            let mut first = Scheduler::new(vec![grid], start);
            let mut second = Scheduler::new(vec![grid], start + moved);
            let end = start + moved + 600_000;
            let _ = first.advance(start + moved - 1);
            first.finish(0);
            prop_assert_eq!(first.advance(end).runs, second.advance(end).runs);
        }

        #[test]
        fn no_slot_is_handed_out_twice_and_none_is_lost(steps in proptest::collection::vec(-30_000_i64..60_000, 1..60), finishes in any::<bool>()) {
            let grid = Grid::with_phase(1_234, 10_000);
            let mut now = 1_800_000_000_000;
            let mut scheduler = Scheduler::new(vec![grid], now);
            let (begin, mut last) = (now, now);
            let mut seen = Vec::new();
            for step in steps {
                // Further back, and slots are handed out again: the next test.
                now = (now + step).max(last - WAIT_MOST_MS);
                last = last.max(now);
                let due = scheduler.advance(now);
                prop_assert_eq!(due.uncounted, 0);
                seen.extend(due.missed.iter().map(|(slot, _)| slot.start_ms));
                seen.extend(starts(&due.runs));
                if finishes {
                    scheduler.finish(0);
                }
            }
            let mut expected = Vec::new();
            let mut slot = grid.slot_from(begin);
            while slot <= last {
                expected.push(slot);
                slot += 10_000;
            }
            prop_assert_eq!(seen, expected);
        }
    }
}
