use super::*;
use proptest::prelude::*;

fn name(text: &str) -> CheckName {
    text.parse().unwrap()
}

fn grid(text: &str, interval_s: u64) -> Grid {
    Grid::new(&name(text), Duration::from_secs(interval_s))
}

fn term(grid: Grid, from_ms: i64, job: usize) -> Term<usize> {
    Term { grid, from_ms, until_ms: None, owed_from_ms: None, job }
}

/// A scheduler of one check every 10 s whose slots start at multiples of 10 s.
fn ten_seconds(now_ms: i64) -> Scheduler<usize> {
    let mut scheduler = Scheduler::new(now_ms);
    scheduler.put(&name("web"), term(Grid::with_phase(0, 10_000), now_ms, 0));
    scheduler
}

fn starts(slots: &[Slot<usize>]) -> Vec<i64> {
    slots.iter().map(|slot| slot.start_ms).collect()
}

fn missed(due: &Due<usize>) -> Vec<(i64, MissedBecause)> {
    due.missed.iter().map(|(slot, because)| (slot.start_ms, *because)).collect()
}

/// Hands out and ends every run at once.
fn advance(scheduler: &mut Scheduler<usize>, now_ms: i64) -> Due<usize> {
    let due = scheduler.advance(now_ms);
    for slot in &due.runs {
        scheduler.finish(&name("web"), slot);
    }
    due
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
    let first = scheduler.advance(10_000);
    assert_eq!(starts(&first.runs), [10_000]);
    let due = scheduler.advance(20_001);
    assert_eq!(missed(&due), [(20_000, MissedBecause::StillRunning)]);
    assert!(due.runs.is_empty());
    scheduler.finish(&name("web"), &first.runs[0]);
    assert_eq!(starts(&scheduler.advance(30_000).runs), [30_000]);
}

#[test]
fn slots_that_were_slept_through_are_missed_and_the_current_one_runs() {
    let mut scheduler = ten_seconds(1);
    let due = scheduler.advance(35_000);
    assert_eq!(missed(&due), [(10_000, MissedBecause::Asleep), (20_000, MissedBecause::Asleep)]);
    assert_eq!((starts(&due.runs), due.uncounted), (vec![30_000], 0));
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
    assert_eq!(starts(&advance(&mut scheduler, 20_000).runs), [20_000]);
    let due = advance(&mut scheduler, 5_000);
    assert_eq!((due.runs.len(), due.stepped_back_ms), (0, Some(15_000)));
    let due = advance(&mut scheduler, 20_500);
    assert_eq!((due.runs.len(), due.missed.len(), due.stepped_back_ms), (0, 0, None));
    assert_eq!(starts(&advance(&mut scheduler, 30_000).runs), [30_000]);
}

#[test]
fn a_time_that_was_wrong_by_more_than_a_minute_is_not_waited_for() {
    let mut scheduler = ten_seconds(1);
    scheduler.put(&name("daily"), term(Grid::with_phase(0, 86_400_000), 1, 1));
    assert_eq!(starts(&advance(&mut scheduler, 10_000).runs), [10_000]);
    assert_eq!(starts(&advance(&mut scheduler, 3_600_000).runs), [3_600_000]);
    // Back in two steps, each of which would have been waited for.
    assert_eq!(advance(&mut scheduler, 3_560_000).runs, []);
    assert_eq!(starts(&advance(&mut scheduler, 3_520_000).runs), [3_520_000]);
    assert_eq!(starts(&advance(&mut scheduler, 20_001).runs), [20_000]);
    assert_eq!(starts(&advance(&mut scheduler, 30_000).runs), [30_000]);
    assert_eq!(advance(&mut scheduler, 86_400_000).runs.len(), 2, "the daily one has its own time still");
}

#[test]
fn what_passed_while_the_clock_was_far_ahead_is_said_to_be_missed() {
    let mut scheduler = ten_seconds(1);
    assert_eq!(starts(&advance(&mut scheduler, 10_000).runs), [10_000]);
    advance(&mut scheduler, 3_600_000);
    advance(&mut scheduler, 3_630_000);
    let due = advance(&mut scheduler, 40_500);
    assert_eq!(missed(&due), [(20_000, MissedBecause::Asleep), (30_000, MissedBecause::Asleep)]);
    assert_eq!(starts(&due.runs), [40_000]);
    assert_eq!(starts(&advance(&mut scheduler, 50_000).runs), [50_000]);
}

#[test]
fn a_process_that_slept_says_nothing_twice_when_the_clock_goes_back_later() {
    let mut scheduler = ten_seconds(1);
    advance(&mut scheduler, 10_000);
    assert_eq!(advance(&mut scheduler, 200_000).missed.len(), 18);
    for slot_ms in (210_000..=1_000_000).step_by(10_000) {
        assert_eq!(starts(&advance(&mut scheduler, slot_ms).runs), [slot_ms]);
    }
    let due = advance(&mut scheduler, 930_000);
    assert_eq!((missed(&due), starts(&due.runs)), (vec![], vec![930_000]));
}

#[test]
fn the_pause_ends_at_the_next_slot_and_is_bounded() {
    let scheduler = ten_seconds(1);
    assert_eq!(scheduler.pause(9_900), Duration::from_millis(100));
    assert_eq!(scheduler.pause(10_500), Duration::ZERO);
    assert_eq!(scheduler.pause(1), LOOK_AGAIN);
    assert_eq!(Scheduler::<usize>::new(0).pause(0), LOOK_AGAIN);
}

#[test]
fn a_hand_over_goes_by_the_beginning_of_slots() {
    let mut scheduler = ten_seconds(1);
    scheduler.end(&name("web"), 30_000);
    assert_eq!(starts(&advance(&mut scheduler, 20_500).runs), [20_000]);
    // Late, but the slot is still this one's: its successor begins with the next.
    scheduler.put(&name("web"), term(Grid::with_phase(0, 10_000), 40_000, 1));
    let due = advance(&mut scheduler, 39_999);
    assert_eq!((starts(&due.runs), missed(&due)), (vec![], vec![]));
    let due = advance(&mut scheduler, 40_001);
    assert_eq!((starts(&due.runs), due.runs[0].job), (vec![40_000], 1));
}

#[test]
fn the_last_slot_of_a_term_is_run_late_or_missed_but_never_lost() {
    for (now_ms, runs, gone) in [(29_999, vec![20_000], vec![10_000]), (30_000, vec![], vec![10_000, 20_000])] {
        let mut scheduler = ten_seconds(1);
        scheduler.end(&name("web"), 25_000);
        let due = advance(&mut scheduler, now_ms);
        assert_eq!(starts(&due.runs), runs);
        assert_eq!(missed(&due), gone.into_iter().map(|slot| (slot, MissedBecause::Asleep)).collect::<Vec<_>>());
        assert!(advance(&mut scheduler, 90_000).runs.is_empty());
    }
}

#[test]
fn what_may_have_been_lost_with_another_is_owed_and_what_was_run_here_is_not() {
    let owed = |from_ms| Term { owed_from_ms: Some(12_000), ..term(Grid::with_phase(0, 10_000), from_ms, 7) };
    let mut scheduler = Scheduler::new(1);
    scheduler.put(&name("web"), owed(45_000));
    let due = advance(&mut scheduler, 47_000);
    let lost = MissedBecause::OwnerLost;
    assert_eq!(missed(&due), [(20_000, lost), (30_000, lost), (40_000, lost)]);
    assert_eq!(starts(&due.runs), Vec::<i64>::new(), "the slot that goes on began before it was this one's");
    assert_eq!(starts(&advance(&mut scheduler, 50_000).runs), [50_000]);
    let mut scheduler = ten_seconds(1);
    assert_eq!(starts(&advance(&mut scheduler, 31_000).runs), [30_000]);
    scheduler.put(&name("web"), owed(45_000));
    let due = advance(&mut scheduler, 47_000);
    assert_eq!((starts(&due.runs), missed(&due)), (vec![40_000], vec![]), "it was this one's all along");
}

#[test]
fn an_edited_check_begins_while_the_run_before_the_edit_goes_on() {
    let mut scheduler = ten_seconds(1);
    let before = scheduler.advance(10_000);
    scheduler.put(&name("web"), term(Grid::with_phase(0, 5_000), 12_000, 1));
    let due = scheduler.advance(15_000);
    assert_eq!((starts(&due.runs), due.runs[0].job), (vec![15_000], 1));
    scheduler.finish(&name("web"), &before.runs[0]);
    assert_eq!(missed(&scheduler.advance(20_000)), [(20_000, MissedBecause::StillRunning)]);
}

proptest! {
    #[test]
    fn one_slot_starts_in_every_interval(text in "[a-z0-9]{1,12}", interval_s in 1_u64..86_400, now in 0_i64..4_000_000_000_000) {
        let grid = grid(&text, interval_s);
        let interval_ms = i64::try_from(interval_s).unwrap() * 1_000;
        let slot = grid.slot_from(now);
        prop_assert!(slot >= now && slot < now + interval_ms);
        prop_assert_eq!(grid.slot_at(slot), slot);
        prop_assert_eq!(grid.slot_at(slot + interval_ms - 1), slot);
        prop_assert_eq!(grid.slot_from(slot + 1), slot + interval_ms);
    }

    #[test]
    fn whoever_takes_over_goes_on_with_the_same_slots(text in "[a-z0-9]{1,12}", interval_s in 1_u64..300, moved in 1_i64..2_000_000) {
        let grid = grid(&text, interval_s);
        let start = 1_800_000_000_000;
        let begun = |now_ms| {
            let mut scheduler = Scheduler::new(now_ms);
            scheduler.put(&name("web"), term(grid, now_ms, 0));
            scheduler
        };
        let (mut first, mut second) = (begun(start), begun(start + moved));
        let end = start + moved + 600_000;
        let _ = advance(&mut first, start + moved - 1);
        prop_assert_eq!(starts(&first.advance(end).runs), starts(&second.advance(end).runs));
    }

    #[test]
    fn no_slot_is_handed_out_twice_and_none_is_lost(steps in proptest::collection::vec(-30_000_i64..60_000, 1..60), finishes in any::<bool>()) {
        let grid = Grid::with_phase(1_234, 10_000);
        let mut now = 1_800_000_000_000;
        let mut scheduler = Scheduler::new(now);
        scheduler.put(&name("web"), term(grid, now, 0));
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
                for slot in &due.runs {
                    scheduler.finish(&name("web"), slot);
                }
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

    /// Checks are put, replaced with other cadences, and ended at random times, in time, late, and for the future.
    #[test]
    fn changes_hand_no_slot_out_twice_and_lose_none(
        steps in proptest::collection::vec((0_i64..25_000, 0_u8..4, -8_000_i64..8_000, 0_usize..3), 1..60)
    ) {
        let grids = [(0, 10_000), (0, 5_000), (1_700, 7_000)].map(|(phase, interval)| Grid::with_phase(phase, interval));
        let mut now = 1_800_000_000_000;
        let mut scheduler = Scheduler::new(now);
        // What is wanted: until when which grid holds, in order. `None` is nothing.
        let mut wanted: Vec<(i64, Option<usize>)> = vec![(i64::MIN, None)];
        let mut handed: Vec<(i64, usize)> = Vec::new();
        for (step, act, ahead, chosen) in steps {
            now += step;
            let at = now + ahead;
            match act {
                0 => {
                    scheduler.end(&name("web"), at);
                    wanted.retain(|(from, _)| *from < at);
                    wanted.push((at, None));
                }
                1 => {
                    let known = handed.last().map_or(i64::MIN, |(slot, _)| slot + 1);
                    scheduler.put(&name("web"), term(grids[chosen], at, chosen));
                    wanted.retain(|(from, _)| *from < at);
                    // What was handed out in between was another's, whose it was then.
                    wanted.push((at, None));
                    wanted.push((at.max(known), Some(chosen)));
                }
                _ => {}
            }
            let due = advance(&mut scheduler, now);
            prop_assert_eq!(due.uncounted, 0);
            let mut both: Vec<(i64, usize)> = due.runs.iter().map(|slot| (slot.start_ms, slot.job)).collect();
            both.extend(due.missed.iter().map(|(slot, _)| (slot.start_ms, slot.job)));
            both.sort_unstable();
            handed.extend(both);
        }
        let mut expected = Vec::new();
        for (index, (from, chosen)) in wanted.iter().enumerate() {
            let until = wanted.get(index + 1).map_or(i64::MAX, |(until, _)| *until).min(now + 1);
            let Some(chosen) = chosen else { continue };
            let mut slot = grids[*chosen].slot_from(*from);
            while slot < until {
                expected.push((slot, *chosen));
                slot += grids[*chosen].interval_ms();
            }
        }
        // A change that comes after its time cannot take back what was handed out.
        let late: Vec<_> = handed.iter().filter(|slot| !expected.contains(slot)).collect();
        let lost: Vec<_> = expected.iter().filter(|slot| !handed.contains(slot)).collect();
        prop_assert_eq!(lost, Vec::<&(i64, usize)>::new());
        let mut slots: Vec<i64> = handed.iter().map(|(slot, _)| *slot).collect();
        let count = slots.len();
        slots.dedup();
        prop_assert_eq!(slots.len(), count, "twice");
        prop_assert!(slots.is_sorted());
        for (slot, _) in late {
            prop_assert!(wanted.iter().any(|(from, _)| from <= slot), "{slot}");
        }
    }
}
