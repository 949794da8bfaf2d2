//! Which signed requests were seen: none is taken twice, and none of a start before the newest. Of this replica only; another may
//! still take one again, and all that requests do can be done twice.

use std::collections::HashMap;
use std::sync::Mutex;

use bulkhead_bus::header::Sequence;
use bulkhead_bus::{PollerName, SiteName, TenantId};

/// Requests of one poller may come in another order than they were sent, by at most so many.
const WINDOW: u64 = 64;

#[derive(Debug, Clone, Copy)]
struct Seen {
    boot: u64,
    newest: u64,
    /// The lowest bit is the newest, the next the one before it.
    window: u64,
}

/// What a sequence is to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    New,
    Replayed,
    /// Of a start that another one has come after.
    Outlived,
}

/// Of all pollers whose signature was good.
#[derive(Debug, Default)]
pub struct Replays {
    seen: Mutex<HashMap<(TenantId, SiteName, PollerName), Seen>>,
}

impl Replays {
    pub fn note(&self, who: (TenantId, SiteName, PollerName), sequence: Sequence) -> Arrival {
        let mut all = self.seen.lock().expect("no holder panics");
        let fresh = Seen { boot: sequence.boot, newest: sequence.number, window: 1 };
        let Some(seen) = all.get_mut(&who) else {
            all.insert(who, fresh);
            return Arrival::New;
        };
        if sequence.boot < seen.boot {
            return Arrival::Outlived;
        }
        if sequence.boot > seen.boot {
            *seen = fresh;
            return Arrival::New;
        }
        if sequence.number > seen.newest {
            let ahead = sequence.number - seen.newest;
            seen.window = if ahead >= WINDOW { 1 } else { seen.window << ahead | 1 };
            seen.newest = sequence.number;
            return Arrival::New;
        }
        let behind = seen.newest - sequence.number;
        if behind >= WINDOW || seen.window >> behind & 1 == 1 {
            return Arrival::Replayed;
        }
        seen.window |= 1 << behind;
        Arrival::New
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
    }
}
