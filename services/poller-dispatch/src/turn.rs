//! From a plan to rows: what ends, what begins, and when. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bulkhead_bus::payload::{CheckDefinition, Probe};
use bulkhead_bus::{CheckName, PollerName, SiteName};

use crate::plan::Placement;

/// A planned hand-over: beyond the time in which both pollers hear of it.
const HAND_OVER_MS: i64 = 3_000;
/// Where nobody runs the check until then: beyond the time in which one poller hears of it.
const BEGIN_MS: i64 = 1_000;
/// How long results that a lost poller has measured may still be on their way when it last renewed its lease.
const OWED_BEFORE_MS: i64 = 30_000;

/// One check as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    pub definition: CheckDefinition,
    pub revision: i64,
}

/// A row without an end: who runs a check at a vantage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    pub check: CheckName,
    pub site: SiteName,
    pub generation: i64,
    pub poller: Option<PollerName>,
    /// What it runs; `None` when the row is not readable.
    pub probe: Option<Probe>,
    pub revision: i64,
    pub from_ms: i64,
}

/// Why a row ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Because {
    Changed,
    Removed,
    Paused,
    Moved,
    PollerLost,
    FoundPoller,
}

impl Because {
    pub const ALL: [Self; 6] =
        [Self::Changed, Self::Removed, Self::Paused, Self::Moved, Self::PollerLost, Self::FoundPoller];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Paused => "paused",
            Self::Moved => "moved",
            Self::PollerLost => "poller_lost",
            Self::FoundPoller => "found_poller",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub check: CheckName,
    pub site: SiteName,
    pub generation: i64,
    pub until_ms: i64,
    pub because: Because,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    pub check: CheckName,
    pub site: SiteName,
    pub poller: Option<PollerName>,
    pub probe: Probe,
    pub revision: i64,
    pub from_ms: i64,
    pub owed_from_ms: Option<i64>,
}

/// What changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    pub ended: Vec<Ended>,
    pub begun: Vec<Begun>,
    /// Whose assignment changes.
    pub concerned: BTreeSet<(SiteName, PollerName)>,
}

impl Turn {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.begun.is_empty()
    }
}

/// How somebody went who does not run anything any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// It stopped reporting; last heard of then.
    Lost { renewed_ms: i64 },
    /// It said that it ends, then.
    Gone { at_ms: i64 },
}

pub type Departures = HashMap<(SiteName, PollerName), Departure>;

/// What a turn is made of.
pub struct Making<'a> {
    pub configured: &'a BTreeMap<CheckName, Configured>,
    pub open: &'a [Open],
    pub placement: &'a Placement,
    pub departures: &'a Departures,
    pub now_ms: i64,
}

/// When one ends and the next begins.
struct Border {
    at_ms: i64,
    owed_from_ms: Option<i64>,
    because: Because,
}

/// What has to change so that `placement` is in force.
#[must_use]
pub fn turn(making: &Making<'_>) -> Turn {
    let mut turn = Turn::default();
    let mut open: BTreeMap<(&CheckName, &SiteName), &Open> =
        making.open.iter().map(|row| ((&row.check, &row.site), row)).collect();
    let seats = making.placement.iter().flat_map(|(check, sites)| sites.iter().map(move |seat| (check, seat)));
    for (check, (site, poller)) in seats {
        let Some(configured) = making.configured.get(check) else { continue };
        let begun = |border: &Border| Begun {
            check: check.clone(),
            site: site.clone(),
            poller: poller.clone(),
            probe: configured.definition.probe.clone(),
            revision: configured.revision,
            from_ms: border.at_ms,
            owed_from_ms: border.owed_from_ms,
        };
        match open.remove(&(check, site)) {
            None => {
                let border =
                    Border { at_ms: making.now_ms + BEGIN_MS, owed_from_ms: None, because: Because::FoundPoller };
                turn.note(site, poller.as_ref());
                turn.begun.push(begun(&border));
            }
            Some(row) => {
                let is_same = row.revision == configured.revision
                    && row.probe.as_ref() == Some(&configured.definition.probe)
                    && row.poller == *poller;
                if is_same {
                    continue;
                }
                let border = making.border(row, poller.as_ref());
                turn.note(site, poller.as_ref());
                turn.begun.push(begun(&border));
                turn.end(row, &border);
            }
        }
    }
    for row in open.into_values() {
        let border = making.end_of(row);
        turn.end(row, &border);
    }
    turn
}

impl Turn {
    fn note(&mut self, site: &SiteName, poller: Option<&PollerName>) {
        self.concerned.extend(poller.map(|poller| (site.clone(), poller.clone())));
    }

    fn end(&mut self, row: &Open, border: &Border) {
        self.note(&row.site, row.poller.as_ref());
        self.ended.push(Ended {
            check: row.check.clone(),
            site: row.site.clone(),
            generation: row.generation,
            until_ms: border.at_ms,
            because: border.because,
        });
    }
}

impl Making<'_> {
    /// Between a row and the one that takes its place.
    fn border(&self, row: &Open, next: Option<&PollerName>) -> Border {
        // A row that has not begun yet keeps the place of its beginning: whoever is before it runs until then.
        let at = |later_ms: i64| (self.now_ms + later_ms).max(row.from_ms);
        let Some(owner) = &row.poller else {
            let because = if next.is_some() { Because::FoundPoller } else { Because::Changed };
            return Border { at_ms: at(BEGIN_MS), owed_from_ms: None, because };
        };
        if next == Some(owner) {
            return Border { at_ms: at(HAND_OVER_MS), owed_from_ms: None, because: Because::Changed };
        }
        match self.departures.get(&(row.site.clone(), owner.clone())) {
            Some(Departure::Lost { renewed_ms }) => Border {
                at_ms: at(BEGIN_MS),
                owed_from_ms: Some((renewed_ms - OWED_BEFORE_MS).max(row.from_ms)),
                because: Because::PollerLost,
            },
            Some(Departure::Gone { at_ms }) => {
                Border { at_ms: at(BEGIN_MS), owed_from_ms: Some((*at_ms).max(row.from_ms)), because: Because::Moved }
            }
            None => Border { at_ms: at(HAND_OVER_MS), owed_from_ms: None, because: Because::Moved },
        }
    }

    /// Of a row that nothing takes the place of.
    fn end_of(&self, row: &Open) -> Border {
        let because = match self.configured.get(&row.check) {
            None => Because::Removed,
            Some(configured) if configured.definition.paused => Because::Paused,
            Some(configured) if configured.revision != row.revision => Because::Changed,
            Some(_) => Because::Moved,
        };
        Border { at_ms: self.now_ms.max(row.from_ms), owed_from_ms: None, because }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: i64 = 1_000_000;

    fn configured(name: &str, revision: i64) -> Configured {
        let value = json!({"name": name, "type": "tcp", "target": "h:1", "interval_s": 10, "timeout_ms": 900, "sites": ["oslo"]});
        Configured { definition: serde_json::from_value(value).unwrap(), revision }
    }

    fn open(poller: Option<&str>, from_ms: i64) -> Open {
        let probe = Some(configured("web", 1).definition.probe);
        let (check, site) = ("web".parse().unwrap(), "oslo".parse().unwrap());
        Open {
            check,
            site,
            generation: 4,
            poller: poller.map(|name| name.parse().unwrap()),
            probe,
            revision: 1,
            from_ms,
        }
    }

    fn made(
        now: Option<Configured>,
        row: Option<Open>,
        next: Option<Option<&str>>,
        departure: Option<Departure>,
    ) -> Turn {
        let configured = now.into_iter().map(|now| ("web".parse().unwrap(), now)).collect();
        let seat =
            |next: Option<&str>| BTreeMap::from([("oslo".parse().unwrap(), next.map(|name| name.parse().unwrap()))]);
        let placement = next.map(|next| ("web".parse().unwrap(), seat(next))).into_iter().collect();
        let departures =
            departure.map(|how| (("oslo".parse().unwrap(), "p1".parse().unwrap()), how)).into_iter().collect();
        let open: Vec<Open> = row.into_iter().collect();
        turn(&Making {
            configured: &configured,
            open: &open,
            placement: &placement,
            departures: &departures,
            now_ms: NOW,
        })
    }

    /// What ends and what begins, by their times from now.
    type Expected = (Option<(Because, i64)>, Option<(i64, Option<i64>)>);

    fn check(turn: &Turn, expected: Expected, concerned: usize) {
        let ended = turn.ended.first().map(|row| (row.because, row.until_ms - NOW));
        let begun = turn.begun.first().map(|row| (row.from_ms - NOW, row.owed_from_ms.map(|ms| ms - NOW)));
        assert_eq!(((ended, begun), turn.concerned.len()), (expected, concerned), "{turn:?}");
    }

    #[test]
    fn what_is_as_it_should_be_stays() {
        assert!(made(Some(configured("web", 1)), Some(open(Some("p1"), 0)), Some(Some("p1")), None).is_empty());
        assert!(made(Some(configured("web", 1)), Some(open(None, 0)), Some(None), None).is_empty());
    }

    #[test]
    fn hand_overs_leave_no_slot_to_nobody_and_none_to_two() {
        let (web, p1, p2) = (|| Some(configured("web", 1)), || Some(open(Some("p1"), 0)), Some(Some("p2")));
        let lost = Some(Departure::Lost { renewed_ms: NOW - 15_000 });
        let gone = Some(Departure::Gone { at_ms: NOW - 700 });
        check(&made(web(), None, p2, None), (None, Some((1_000, None))), 1);
        check(&made(web(), p1(), p2, None), (Some((Because::Moved, 3_000)), Some((3_000, None))), 2);
        check(&made(web(), p1(), p2, lost), (Some((Because::PollerLost, 1_000)), Some((1_000, Some(-45_000)))), 2);
        check(&made(web(), p1(), p2, gone), (Some((Because::Moved, 1_000)), Some((1_000, Some(-700)))), 2);
        let none = Some(open(None, 0));
        check(&made(web(), none, p2, None), (Some((Because::FoundPoller, 1_000)), Some((1_000, None))), 1);
        check(&made(web(), p1(), Some(None), None), (Some((Because::Moved, 3_000)), Some((3_000, None))), 1);
        let changed = Some(configured("web", 2));
        check(&made(changed, p1(), Some(Some("p1")), None), (Some((Because::Changed, 3_000)), Some((3_000, None))), 1);
    }

    #[test]
    fn a_row_that_has_not_begun_yet_ends_where_it_would_have_begun() {
        let row = Some(open(Some("p1"), NOW + 2_500));
        let lost = Some(Departure::Lost { renewed_ms: NOW - 15_000 });
        let turn = made(Some(configured("web", 1)), row.clone(), Some(Some("p2")), lost);
        check(&turn, (Some((Because::PollerLost, 2_500)), Some((2_500, Some(2_500)))), 2);
        check(&made(None, row, None, None), (Some((Because::Removed, 2_500)), None), 1);
    }

    #[test]
    fn what_is_not_wanted_ends_at_once() {
        let p1 = || Some(open(Some("p1"), 0));
        check(&made(None, p1(), None, None), (Some((Because::Removed, 0)), None), 1);
        let mut paused = configured("web", 2);
        paused.definition.paused = true;
        check(&made(Some(paused), p1(), None, None), (Some((Because::Paused, 0)), None), 1);
        check(&made(Some(configured("web", 2)), p1(), None, None), (Some((Because::Changed, 0)), None), 1);
        check(&made(Some(configured("web", 1)), p1(), None, None), (Some((Because::Moved, 0)), None), 1);
    }

    #[test]
    fn one_that_was_removed_and_added_again_is_another() {
        let mut row = open(Some("p1"), 0);
        row.probe.as_mut().unwrap().target = "other:2".to_owned();
        let turn = made(Some(configured("web", 1)), Some(row), Some(Some("p1")), None);
        check(&turn, (Some((Because::Changed, 3_000)), Some((3_000, None))), 1);
    }
}
