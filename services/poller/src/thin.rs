//! Which results give way while many wait: of one check, one outcome and one minute the first, the slowest and the last stay.
//! The first of another outcome always does. Pure: positions in a queue come in, and what to do with a result goes out.

use std::collections::HashMap;

use bulkhead_bus::CheckName;
use bulkhead_bus::payload::{Measured, Outcome, Reason};

const MINUTE_MS: i64 = 60_000;
/// In the detail of the last one: how many of its minute are not there.
pub(crate) const THINNED: &str = "thinned";

/// A position in the queue that stays the same while others leave at its front.
pub(crate) type Place = u64;

/// Results of one check in one minute that ended the same way.
#[derive(Debug, Clone, Copy)]
struct Group {
    minute: i64,
    ending: (Outcome, Option<Reason>),
    first: Place,
    /// Between the others.
    slowest: Option<(Place, u32)>,
    last: Option<Place>,
    thinned: u32,
}

/// What becomes of a new result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It waits behind all others.
    Append,
    /// It takes the place of the last one so far, which goes.
    Replace { last: Place, thinned: u32 },
    /// It takes the place of the last one, and that one the place of the slowest, which goes.
    Shift { slowest: Place, last: Place, thinned: u32 },
}

/// What waits of each check, as far as results give way.
#[derive(Debug, Default)]
pub(crate) struct Thinning(HashMap<CheckName, Group>);

impl Thinning {
    /// Where there is room nothing gives way, and nothing has to be known.
    pub(crate) fn end(&mut self) {
        self.0.clear();
    }

    /// What becomes of `new`; appended it would be at `next`. What is before `front` has left. `latency_of` looks at a place.
    pub(crate) fn judge(
        &mut self,
        new: &Measured,
        (front, next): (Place, Place),
        latency_of: impl Fn(Place) -> u32,
    ) -> Fate {
        let (minute, ending) = (new.slot_ms.div_euclid(MINUTE_MS), (new.outcome, new.reason));
        let fresh = Group { minute, ending, first: next, slowest: None, last: None, thinned: 0 };
        let group = self.0.entry(new.check.clone()).or_insert(fresh);
        if group.first < front || (group.minute, group.ending) != (minute, ending) {
            *group = fresh;
        }
        match (group.slowest, group.last) {
            _ if group.first == next => Fate::Append,
            (None, None) => {
                group.last = Some(next);
                Fate::Append
            }
            // The last one becomes the slowest so far: it stays where it is.
            (None, Some(last)) => {
                (group.slowest, group.last) = (Some((last, latency_of(last))), Some(next));
                Fate::Append
            }
            (Some((slowest, most)), Some(last)) => {
                group.thinned += 1;
                let (latency, thinned) = (latency_of(last), group.thinned);
                if latency <= most {
                    return Fate::Replace { last, thinned };
                }
                group.slowest = Some((slowest, latency));
                Fate::Shift { slowest, last, thinned }
            }
            (Some(_), None) => Fate::Append,
        }
    }
}
