//! When each check runs, while checks come, change and go. Pure: the time is an argument, and nothing here sleeps.
//!
//! A slot starts at `phase + n * interval` of the wall clock (`bulkhead_bus::Grid`), and the phase follows from the check's
//! name alone, so that any poller that takes a check over goes on in the same cadence. A check has terms, one after the
//! other: what is run, from when, and until when. Each slot of a term is handed out exactly once, and no slot of a name twice.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use bulkhead_bus::{CheckName, Grid};

/// Missed slots of one check that are reported one by one after a gap; older ones are only counted.
pub(crate) const MISSED_MOST: i64 = 100;
/// The clock is looked at again after at most this long, so that a step is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A clock that goes back by less is ordinary slewing.
const STEP_WORTH_SAYING_MS: i64 = 1_000;
/// A clock that is back by no more than this is waited for. Beyond it the time before was the wrong one, and waiting for it
/// would leave the site unwatched: slots are handed out again from the present on.
const WAIT_MOST_MS: i64 = 60_000;
/// How long it is remembered which slots of a check that has ended were handed out: it may come back.
const REMEMBERED_MS: i64 = 3_600_000;
/// So many are remembered whatever their age.
const REMEMBERED_LEAST: usize = 100;

/// Why a slot passed without a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissedBecause {
    /// The check's run for an earlier slot still goes on.
    StillRunning,
    /// The process was stopped or the clock jumped.
    Asleep,
    /// Whoever had the check before may have been lost with it.
    OwnerLost,
}

/// What is run of a check, and for which of its slots.
#[derive(Debug, Clone)]
pub(crate) struct Term<T> {
    pub(crate) grid: Grid,
    /// Slots that begin at or after it are run.
    pub(crate) from_ms: i64,
    /// Slots that begin at or after it are not this term's any more.
    pub(crate) until_ms: Option<i64>,
    /// Slots from here to `from_ms` are missed, and said to be.
    pub(crate) owed_from_ms: Option<i64>,
    pub(crate) job: T,
}

/// Which term a run belongs to; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct TermNumber(u64);

/// One slot, and what is run in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot<T> {
    pub(crate) start_ms: i64,
    pub(crate) job: T,
    term: TermNumber,
}

/// What has come due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due<T> {
    pub(crate) runs: Vec<Slot<T>>,
    pub(crate) missed: Vec<(Slot<T>, MissedBecause)>,
    /// Missed slots beyond [`MISSED_MOST`], which get no result of their own.
    pub(crate) uncounted: u64,
    /// By how much the clock went back since the last look.
    pub(crate) stepped_back_ms: Option<i64>,
}

impl<T> Default for Due<T> {
    fn default() -> Self {
        Self { runs: Vec::new(), missed: Vec::new(), uncounted: 0, stepped_back_ms: None }
    }
}

#[derive(Debug)]
struct Entry<T> {
    term: Term<T>,
    number: TermNumber,
    is_running: bool,
}

impl<T> Entry<T> {
    fn until_ms(&self) -> i64 {
        self.term.until_ms.unwrap_or(i64::MAX)
    }

    /// Its first slot that starts at `cursor_ms` or later; `None` when it has no more.
    fn next_ms(&self, cursor_ms: i64) -> Option<i64> {
        let begin_ms = self.term.owed_from_ms.unwrap_or(self.term.from_ms).min(self.term.from_ms);
        let slot_ms = self.term.grid.slot_from(begin_ms.max(cursor_ms));
        (slot_ms < self.until_ms()).then_some(slot_ms)
    }
}

/// The terms of one check.
#[derive(Debug)]
struct Lane<T> {
    terms: VecDeque<Entry<T>>,
    /// Slots that start before it have been handed out.
    cursor_ms: i64,
    /// Which of the times in the queue is this lane's; others were left behind by a change.
    awaited_ms: Option<i64>,
}

impl<T: Clone> Lane<T> {
    /// When something is next due; terms that have no more slots go.
    fn next_ms(&mut self) -> Option<i64> {
        while let Some(first) = self.terms.front() {
            if let Some(next_ms) = first.next_ms(self.cursor_ms) {
                return Some(next_ms);
            }
            self.terms.pop_front();
        }
        None
    }

    /// Hands out what is due of the first term, whose next slot is `first_ms`.
    fn hand_out(&mut self, first_ms: i64, now_ms: i64, due: &mut Due<T>) {
        let Some(entry) = self.terms.front_mut() else { return };
        let grid = entry.term.grid;
        let last_ms = grid.slot_at(now_ms.min(entry.until_ms().saturating_sub(1)));
        let is_current = last_ms == grid.slot_at(now_ms) && last_ms >= entry.term.from_ms;
        let slot = |start_ms| Slot { start_ms, job: entry.term.job.clone(), term: entry.number };
        let because = if entry.is_running { MissedBecause::StillRunning } else { MissedBecause::Asleep };
        let interval_ms = grid.interval_ms();
        let passed = (last_ms - first_ms) / interval_ms + i64::from(!is_current);
        let end_ms = if is_current { last_ms } else { last_ms.saturating_add(interval_ms) };
        due.uncounted += (passed - MISSED_MOST).max(0).unsigned_abs();
        for back in (1..=passed.min(MISSED_MOST)).rev() {
            let start_ms = end_ms - back * interval_ms;
            let because = if start_ms < entry.term.from_ms { MissedBecause::OwnerLost } else { because };
            due.missed.push((slot(start_ms), because));
        }
        match (is_current, entry.is_running) {
            (true, true) => due.missed.push((slot(last_ms), MissedBecause::StillRunning)),
            (true, false) => {
                due.runs.push(slot(last_ms));
                entry.is_running = true;
            }
            (false, _) => {}
        }
        self.cursor_ms = last_ms.saturating_add(1);
    }
}

/// Hands out slots. A clock that goes back a little makes it wait: a slot that was handed out does not come again, but for
/// those of a time that turned out to be wrong by more than [`WAIT_MOST_MS`].
#[derive(Debug)]
pub(crate) struct Scheduler<T> {
    lanes: HashMap<CheckName, Lane<T>>,
    /// When lanes are next to be looked at.
    next: BinaryHeap<Reverse<(i64, CheckName)>>,
    numbers: u64,
    last_look_ms: i64,
    /// The latest time that was seen and not given up.
    furthest_ms: i64,
    leap: Option<Leap>,
}

/// The clock went ahead by so much that going back to what it was is not waited for.
#[derive(Debug)]
struct Leap {
    from_ms: i64,
    /// For how long it has gone on since.
    lasted_ms: i64,
}

impl Leap {
    /// Whether the time is again about what it would be without it.
    fn is_undone_at(&self, now_ms: i64) -> bool {
        now_ms.saturating_sub(self.from_ms).saturating_sub(self.lasted_ms).saturating_abs() <= WAIT_MOST_MS
    }
}

impl<T: Clone> Scheduler<T> {
    pub(crate) fn new(now_ms: i64) -> Self {
        Self {
            lanes: HashMap::new(),
            next: BinaryHeap::new(),
            numbers: 0,
            last_look_ms: now_ms,
            furthest_ms: now_ms,
            leap: None,
        }
    }

    /// From its first slot on the check is run as `term` says; whatever was to be run then is not, and goes on until then.
    /// Slots that were handed out do not come again.
    pub(crate) fn put(&mut self, name: &CheckName, term: Term<T>) {
        self.forget_ended();
        self.numbers += 1;
        let lane = self.lanes.entry(name.clone());
        let lane = lane.or_insert_with(|| Lane { terms: VecDeque::new(), cursor_ms: i64::MIN, awaited_ms: None });
        lane.terms.retain(|entry| entry.term.from_ms < term.from_ms);
        for entry in &mut lane.terms {
            entry.term.until_ms = Some(entry.until_ms().min(term.from_ms));
        }
        lane.terms.push_back(Entry { term, number: TermNumber(self.numbers), is_running: false });
        self.look_later(name);
    }

    /// The check is not run any more from `until_ms` on.
    pub(crate) fn end(&mut self, name: &CheckName, until_ms: i64) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        lane.terms.retain(|entry| entry.term.from_ms < until_ms);
        for entry in &mut lane.terms {
            entry.term.until_ms = Some(entry.until_ms().min(until_ms));
        }
        self.look_later(name);
    }

    fn look_later(&mut self, name: &CheckName) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        let next_ms = lane.next_ms();
        if let Some(next_ms) = next_ms.filter(|_| next_ms != lane.awaited_ms) {
            self.next.push(Reverse((next_ms, name.clone())));
        }
        lane.awaited_ms = next_ms;
    }

    fn forget_ended(&mut self) {
        if self.lanes.len() <= 2 * self.next.len() + REMEMBERED_LEAST {
            return;
        }
        let old_ms = self.furthest_ms.saturating_sub(REMEMBERED_MS);
        self.lanes.retain(|_, lane| !lane.terms.is_empty() || lane.cursor_ms > old_ms);
    }

    /// Everything that has come due by `now_ms`. A check that is handed out runs until [`Self::finish`].
    pub(crate) fn advance(&mut self, now_ms: i64) -> Due<T> {
        let back_ms = self.last_look_ms.saturating_sub(now_ms);
        let stepped_back_ms = (back_ms >= STEP_WORTH_SAYING_MS).then_some(back_ms);
        let mut due = Due { stepped_back_ms, ..Due::default() };
        self.note_leap(now_ms);
        self.last_look_ms = now_ms;
        self.furthest_ms = self.furthest_ms.max(now_ms);
        if self.furthest_ms.saturating_sub(now_ms) > WAIT_MOST_MS {
            self.begin_again(now_ms);
        }
        while let Some(Reverse((at_ms, _))) = self.next.peek()
            && *at_ms <= now_ms
            && let Some(Reverse((at_ms, name))) = self.next.pop()
        {
            let Some(lane) = self.lanes.get_mut(&name).filter(|lane| lane.awaited_ms == Some(at_ms)) else { continue };
            while let Some(first_ms) = lane.next_ms().filter(|next_ms| *next_ms <= now_ms) {
                lane.hand_out(first_ms, now_ms, &mut due);
            }
            lane.awaited_ms = None;
            self.look_later(&name);
        }
        due
    }

    fn note_leap(&mut self, now_ms: i64) {
        let ahead_ms = now_ms.saturating_sub(self.last_look_ms).max(0);
        if ahead_ms > WAIT_MOST_MS {
            self.leap = Some(Leap { from_ms: self.last_look_ms, lasted_ms: 0 });
        } else if let Some(leap) = &mut self.leap {
            leap.lasted_ms = leap.lasted_ms.saturating_add(ahead_ms);
        }
    }

    /// Takes back the slots of a time that never was, and with them those that passed meanwhile: they were not handed out.
    fn begin_again(&mut self, now_ms: i64) {
        self.furthest_ms = now_ms;
        let undone = self.leap.take_if(|leap| leap.is_undone_at(now_ms));
        let cursor_ms = undone.map_or(now_ms, |leap| now_ms.min(leap.from_ms.saturating_add(1)));
        let names: Vec<CheckName> = self.lanes.keys().cloned().collect();
        for name in names {
            if let Some(lane) = self.lanes.get_mut(&name) {
                lane.cursor_ms = lane.cursor_ms.min(cursor_ms);
            }
            self.look_later(&name);
        }
    }

    /// The run of `slot` has ended.
    pub(crate) fn finish(&mut self, name: &CheckName, slot: &Slot<T>) {
        let terms = self.lanes.get_mut(name).into_iter().flat_map(|lane| lane.terms.iter_mut());
        for entry in terms.filter(|entry| entry.number == slot.term) {
            entry.is_running = false;
        }
    }

    /// How long to wait before the next [`Self::advance`].
    pub(crate) fn pause(&self, now_ms: i64) -> Duration {
        let Some(Reverse((next_ms, _))) = self.next.peek() else { return LOOK_AGAIN };
        let wait_ms = next_ms.saturating_sub(now_ms).max(0).unsigned_abs();
        Duration::from_millis(wait_ms).min(LOOK_AGAIN)
    }
}

#[cfg(test)]
mod tests;
