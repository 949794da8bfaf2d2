//! Which signed requests were seen: none is taken twice, and none of a start before the newest. Of this replica only; another may
//! still take one again, and all that requests do can be done twice.

use std::collections::HashMap;
use std::sync::Mutex;

use bulkhead_bus::header::Sequence;
use bulkhead_bus::{PollerName, SiteName, TenantId};

/// Requests of one poller may come in another order than they were sent, by at most so many.
const WINDOW: u64 = 64;

/// Starts of one poller whose requests are remembered.
const STARTS: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Seen {
    boot: u64,
    newest: u64,
    /// The lowest bit is the newest, the next the one before it.
    window: u64,
}

impl Seen {
    fn note(&mut self, number: u64) -> Arrival {
        if number > self.newest {
            let ahead = number - self.newest;
            self.window = if ahead >= WINDOW { 1 } else { self.window << ahead | 1 };
            self.newest = number;
            return Arrival::New;
        }
        let behind = self.newest - number;
        if behind >= WINDOW || self.window >> behind & 1 == 1 {
            return Arrival::Replayed;
        }
        self.window |= 1 << behind;
        Arrival::New
    }
}

/// What a sequence is to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    New,
    Replayed,
    /// Of a start that another one has come after. The registry knows whether that one has its name still.
    Outlived,
}

/// The starts of one poller, the one that has its name last.
#[derive(Debug, Default)]
struct Starts(Vec<Seen>);

impl Starts {
    fn note(&mut self, sequence: Sequence) -> Arrival {
        match self.0.last_mut() {
            Some(seen) if sequence.boot < seen.boot => Arrival::Outlived,
            Some(seen) if sequence.boot == seen.boot => seen.note(sequence.number),
            Some(_) | None => self.put_last(sequence),
        }
    }

    fn put_last(&mut self, sequence: Sequence) -> Arrival {
        let place = self.0.iter().position(|seen| seen.boot == sequence.boot);
        let mut seen = match place {
            Some(place) => self.0.remove(place),
            None => {
                self.0.push(Seen { boot: sequence.boot, newest: sequence.number, window: 1 });
                self.0.drain(..self.0.len().saturating_sub(STARTS));
                return Arrival::New;
            }
        };
        let arrival = seen.note(sequence.number);
        self.0.push(seen);
        arrival
    }
}

/// Of all pollers whose signature was good.
#[derive(Debug, Default)]
pub struct Replays {
    seen: Mutex<HashMap<(TenantId, SiteName, PollerName), Starts>>,
}

impl Replays {
    pub fn note(&self, who: (TenantId, SiteName, PollerName), sequence: Sequence) -> Arrival {
        self.seen.lock().expect("no holder panics").entry(who).or_default().note(sequence)
    }

    /// The same of a start that has its name again, because the one that came after it has ended.
    pub fn note_again(&self, who: (TenantId, SiteName, PollerName), sequence: Sequence) -> Arrival {
        self.seen.lock().expect("no holder panics").entry(who).or_default().put_last(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn each_number_is_new_once_in_whatever_order() {
        let replays = Replays::default();
        let who = (TenantId::new(Uuid::nil()), "oslo".parse().unwrap(), "p1".parse().unwrap());
        let check = |boot, number, expected| {
            assert_eq!(replays.note(who.clone(), Sequence { boot, number }), expected, "{boot}.{number}");
        };
        check(7, 3, Arrival::New);
        check(7, 3, Arrival::Replayed);
        check(7, 1, Arrival::New);
        check(7, 1, Arrival::Replayed);
        check(7, 90, Arrival::New);
        check(7, 3, Arrival::Replayed);
        check(7, 89, Arrival::New);
        check(6, 99, Arrival::Outlived);
        check(8, 1, Arrival::New);
        check(7, 91, Arrival::Outlived);
        check(8, u64::MAX, Arrival::New);
        check(8, 1, Arrival::Replayed);
        // The later one has ended: the one before it goes on where it was, and nothing that was seen of either is taken again.
        let again = |boot, number| replays.note_again(who.clone(), Sequence { boot, number });
        assert_eq!((again(7, 90), again(7, 91)), (Arrival::Replayed, Arrival::New));
        check(7, 91, Arrival::Replayed);
        check(7, 92, Arrival::New);
        check(8, u64::MAX, Arrival::Replayed);
        check(8, 2, Arrival::Replayed);
        for boot in 9..20 {
            check(boot, 1, Arrival::New);
        }
        assert_eq!(replays.seen.lock().unwrap()[&who].0.len(), STARTS);
    }
}
