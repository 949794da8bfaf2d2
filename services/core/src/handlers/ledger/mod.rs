//! The ledger of slots: which there should have been, by who was to run what, and what became of those without a measurement.
//! Pure. A slot that nobody accounts for is silent, and that is what must never be.

pub mod store;

use bulkhead_bus::payload::{GapKind, GapRow, Reason};
use bulkhead_bus::{CheckName, Grid, MemberName, PollerName, SiteName, TenantSlug};

/// Slots that one question may be about.
pub const SLOTS_MOST: i64 = 2_000_000;
/// A slot that is no older may still come: the time of a run, a batch, a link and a transaction, several times over.
const SETTLE_MS: i64 = 60_000;
/// Before the registry misses a poller, it has run nothing for this long at most (a lease and what waited in its memory).
const UNNOTICED_MS: i64 = 60_000;
/// From when it is there again to its first slot.
const START_MS: i64 = 15_000;
/// Of results that give way while many wait.
const MINUTE_MS: i64 = 60_000;
/// Whoever was cut off and is there again has so long to deliver what it has.
const DELIVER_MS: i64 = 3_600_000;

/// A time in which somebody was to run a check at a vantage; nobody when there is no poller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub check: CheckName,
    pub site: SiteName,
    pub poller: Option<PollerName>,
    pub interval_ms: i64,
    pub from_ms: i64,
    /// `None` is still so.
    pub until_ms: Option<i64>,
    pub has_lost_its_poller: bool,
}

/// The slots of a span within a window, as the database counts them up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    pub first_ms: i64,
    pub last_ms: i64,
    pub interval_ms: i64,
}

impl Slots {
    #[must_use]
    pub fn count(&self) -> i64 {
        (self.last_ms - self.first_ms) / self.interval_ms + 1
    }
}

impl Span {
    /// `None` when none of its slots begins in `[since_ms, until_ms)`.
    #[must_use]
    pub fn slots(&self, since_ms: i64, until_ms: i64) -> Option<Slots> {
        let interval = std::time::Duration::from_millis(self.interval_ms.unsigned_abs());
        let grid = Grid::new(&self.check, interval);
        let first_ms = grid.slot_from(self.from_ms.max(since_ms));
        let last_ms = grid.slot_at(self.until_ms.unwrap_or(until_ms).min(until_ms) - 1);
        (first_ms <= last_ms).then(|| Slots { first_ms, last_ms, interval_ms: grid.interval_ms() })
    }
}

/// A time in which a poller was not there, as the registry has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    pub site: SiteName,
    pub name: MemberName,
    pub from_ms: i64,
    /// `None` is not there yet.
    pub until_ms: Option<i64>,
    /// The process that came back is the one that was away: it was cut off, went on, and has its results.
    pub is_same_process: bool,
}

/// A slot without a measurement: of which span, and what was said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmptySlot {
    pub span: usize,
    pub slot_ms: i64,
    /// A result that says `missed`, with its reason.
    pub missed: Option<Option<Reason>>,
}

/// A result that says that others of its minute, which ended alike, gave way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thinned {
    pub check: CheckName,
    pub site: SiteName,
    pub slot_ms: i64,
}

/// Everything that a slot is judged by.
#[derive(Debug)]
pub struct Ledger<'a> {
    pub spans: &'a [Span],
    pub absences: &'a [Absence],
    pub thinned: &'a [Thinned],
    pub now_ms: i64,
}

impl Ledger<'_> {
    fn judge(&self, empty: &EmptySlot) -> (GapKind, Option<Reason>) {
        let span = &self.spans[empty.span];
        if let Some(reason) = empty.missed {
            return (GapKind::Missed, reason);
        }
        if self.is_thinned(span, empty.slot_ms) {
            return (GapKind::Thinned, None);
        }
        if span.poller.is_none() {
            return (GapKind::NoPoller, None);
        }
        if empty.slot_ms + span.interval_ms + SETTLE_MS > self.now_ms {
            return (GapKind::Pending, None);
        }
        let is_last =
            span.has_lost_its_poller && span.until_ms.is_some_and(|until_ms| empty.slot_ms >= until_ms - UNNOTICED_MS);
        match self.absence(span, empty.slot_ms) {
            Some(Absence { until_ms: None, .. }) => (GapKind::Pending, None),
            Some(Absence { until_ms: Some(until_ms), is_same_process: true, .. })
                if *until_ms + DELIVER_MS > self.now_ms =>
            {
                (GapKind::Pending, None)
            }
            Some(Absence { is_same_process: true, .. }) => (GapKind::Silent, None),
            Some(Absence { is_same_process: false, .. }) => (GapKind::Missed, Some(Reason::OwnerLost)),
            None if is_last => (GapKind::Missed, Some(Reason::OwnerLost)),
            None => (GapKind::Silent, None),
        }
    }

    fn is_thinned(&self, span: &Span, slot_ms: i64) -> bool {
        let covers = |kept: &Thinned| {
            kept.check == span.check
                && kept.site == span.site
                && kept.slot_ms > slot_ms
                && kept.slot_ms.div_euclid(MINUTE_MS) == slot_ms.div_euclid(MINUTE_MS)
        };
        self.thinned.iter().any(covers)
    }

    /// When its poller was not there, or hardly so.
    fn absence(&self, span: &Span, slot_ms: i64) -> Option<&Absence> {
        let is_its = |absence: &&Absence| {
            absence.site == span.site
                && absence.name.poller() == span.poller.as_ref()
                && slot_ms >= absence.from_ms - UNNOTICED_MS
                && absence.until_ms.is_none_or(|until_ms| slot_ms < until_ms + START_MS)
        };
        self.absences.iter().find(is_its)
    }

    /// Slots in a row that are alike as one row each; `empty` is in the order of spans and slots.
    #[must_use]
    pub fn gaps(&self, tenant: &TenantSlug, empty: &[EmptySlot]) -> Vec<GapRow> {
        let mut gaps: Vec<(usize, GapRow)> = Vec::new();
        for slot in empty {
            let (span, (kind, reason)) = (&self.spans[slot.span], self.judge(slot));
            match gaps.last_mut() {
                Some((of, gap))
                    if *of == slot.span
                        && (gap.kind, gap.reason) == (kind, reason)
                        && gap.last_slot_ms + span.interval_ms == slot.slot_ms =>
                {
                    gap.last_slot_ms = slot.slot_ms;
                    gap.slots += 1;
                }
                Some(_) | None => gaps.push((
                    slot.span,
                    GapRow {
                        tenant: tenant.clone(),
                        site: span.site.clone(),
                        check: span.check.clone(),
                        kind,
                        reason,
                        poller: span.poller.clone(),
                        first_slot_ms: slot.slot_ms,
                        last_slot_ms: slot.slot_ms,
                        slots: 1,
                    },
                )),
            }
        }
        gaps.into_iter().map(|(_, gap)| gap).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn span(poller: Option<&str>) -> Span {
        Span {
            check: "web".parse().unwrap(),
            site: "oslo".parse().unwrap(),
            poller: poller.map(|name| name.parse().unwrap()),
            interval_ms: 10_000,
            from_ms: NOW - 7_200_000,
            until_ms: None,
            has_lost_its_poller: false,
        }
    }

    fn absence(from_ms: i64, until_ms: Option<i64>, is_same_process: bool) -> Absence {
        Absence { site: "oslo".parse().unwrap(), name: "p1".parse().unwrap(), from_ms, until_ms, is_same_process }
    }

    fn judged(
        span: &Span,
        absences: &[Absence],
        slot_ms: i64,
        missed: Option<Option<Reason>>,
    ) -> (GapKind, Option<Reason>) {
        let ledger = Ledger { spans: std::slice::from_ref(span), absences, thinned: &[], now_ms: NOW };
        ledger.judge(&EmptySlot { span: 0, slot_ms, missed })
    }

    #[test]
    fn what_nobody_accounts_for_is_silent_and_nothing_else_is() {
        let old = NOW - 3_600_000;
        let own = span(Some("p1"));
        assert_eq!(judged(&own, &[], old, None), (GapKind::Silent, None));
        assert_eq!(judged(&own, &[], NOW - 30_000, None), (GapKind::Pending, None), "it may still come");
        let said = Some(Some(Reason::Overrun));
        assert_eq!(judged(&own, &[], old, said), (GapKind::Missed, Some(Reason::Overrun)));
        assert_eq!(judged(&span(None), &[], old, None), (GapKind::NoPoller, None));
    }

    #[test]
    fn what_gave_way_is_said_by_the_last_of_its_minute() {
        let own = span(Some("p1"));
        let minute = (NOW - 3_600_000).div_euclid(MINUTE_MS) * MINUTE_MS;
        let kept = [Thinned { check: own.check.clone(), site: own.site.clone(), slot_ms: minute + 50_000 }];
        let ledger = Ledger { spans: std::slice::from_ref(&own), absences: &[], thinned: &kept, now_ms: NOW };
        let kind = |slot_ms| ledger.judge(&EmptySlot { span: 0, slot_ms, missed: None }).0;
        assert_eq!([kind(minute), kind(minute + 40_000)], [GapKind::Thinned; 2]);
        assert_eq!([kind(minute - 1), kind(minute + 51_000)], [GapKind::Silent; 2]);
    }

    #[test]
    fn a_poller_that_was_away_is_the_reason_and_one_that_was_cut_off_may_still_deliver() {
        let own = span(Some("p1"));
        let at = NOW - 5_400_000;
        let died = [absence(at, Some(at + 300_000), false)];
        let lost = (GapKind::Missed, Some(Reason::OwnerLost));
        for inside in [at - 59_000, at, at + 299_000, at + 310_000] {
            assert_eq!(judged(&own, &died, inside, None), lost, "{}", inside - at);
        }
        for outside in [at - 61_000, at + 316_000] {
            assert_eq!(judged(&own, &died, outside, None), (GapKind::Silent, None), "{}", outside - at);
        }
        assert_eq!(judged(&own, &[absence(at, None, false)], at + 1_000_000, None), (GapKind::Pending, None));
        let cut_off = |until_ms| [absence(at, Some(until_ms), true)];
        assert_eq!(judged(&own, &cut_off(NOW - 60_000), at + 1_000, None), (GapKind::Pending, None));
        assert_eq!(judged(&own, &cut_off(NOW - 3_700_000), at + 1_000, None), (GapKind::Silent, None));
        let other = span(Some("p2"));
        assert_eq!(judged(&other, &died, at, None), (GapKind::Silent, None), "somebody else was away");
    }

    #[test]
    fn the_last_slots_of_whoever_was_lost_are_its_loss() {
        let until_ms = NOW - 3_600_000;
        let ended = Span { until_ms: Some(until_ms), has_lost_its_poller: true, ..span(Some("p1")) };
        let lost = (GapKind::Missed, Some(Reason::OwnerLost));
        assert_eq!(judged(&ended, &[], until_ms - 30_000, None), lost);
        assert_eq!(judged(&ended, &[], until_ms - 90_000, None), (GapKind::Silent, None));
        let moved = Span { has_lost_its_poller: false, ..ended };
        assert_eq!(
            judged(&moved, &[], until_ms - 30_000, None),
            (GapKind::Silent, None),
            "a planned move loses nothing"
        );
    }

    #[test]
    fn slots_of_a_span_are_those_of_the_grid_within_both() {
        let own = Span { from_ms: NOW + 1, until_ms: Some(NOW + 50_001), ..span(Some("p1")) };
        let slots = own.slots(NOW - 100_000, NOW + 1_000_000).unwrap();
        assert_eq!(slots.count(), 5);
        assert!(slots.first_ms > NOW && slots.last_ms <= NOW + 50_000);
        assert_eq!(own.slots(NOW - 100_000, NOW), None);
        let next = Span { from_ms: NOW + 50_001, until_ms: None, ..own.clone() };
        let after = next.slots(NOW, NOW + 100_000).unwrap();
        assert_eq!(after.first_ms, slots.last_ms + 10_000, "no slot is in none of two spans that follow, or in both");
    }

    #[test]
    fn slots_in_a_row_that_are_alike_are_one_gap() {
        let spans = [span(Some("p1")), span(None)];
        let ledger = Ledger { spans: &spans, absences: &[], thinned: &[], now_ms: NOW };
        let first = NOW - 3_600_000;
        let empty = |span, number: i64, missed| EmptySlot { span, slot_ms: first + number * 10_000, missed };
        let said = Some(Some(Reason::Overrun));
        let rows = [
            empty(0, 0, None),
            empty(0, 1, None),
            empty(0, 2, said),
            empty(0, 3, None),
            empty(0, 5, None),
            empty(1, 6, None),
        ];
        let gaps = ledger.gaps(&"acme-corp".parse().unwrap(), &rows);
        let told: Vec<(GapKind, u64)> = gaps.iter().map(|gap| (gap.kind, gap.slots)).collect();
        let silent = GapKind::Silent;
        assert_eq!(told, [(silent, 2), (GapKind::Missed, 1), (silent, 1), (silent, 1), (GapKind::NoPoller, 1)]);
        assert_eq!((gaps[0].first_slot_ms, gaps[0].last_slot_ms), (first, first + 10_000));
    }
}
