//! Whether what is seen of the leases may be believed. Pure: times are arguments.
//!
//! A registry that sees nothing must not say that nobody is there, and one that sees many end at once must not say that they
//! are lost: most likely it is the way to the hub, or the hub itself, that was away (facts: dispatch A4).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bulkhead_bus::LeaseClass;

/// Of all leases, how many may expire within the time of one before none of them is believed: one in so many.
const MASS_SHARE: usize = 5;
/// And at least so many: one site of a small installation is no mass.
const MASS_LEAST: usize = 3;

bulkhead_runtime::label! {
    /// Why nothing is believed for a while.
    pub enum Doubt("doubt") {
        /// The connection to the hub was lost: leases may have ended because nobody could renew them.
        HubReturned = "hub_returned",
        /// Many leases expired at once.
        MassExpiry = "mass_expiry",
    }
}

impl Doubt {
    fn sentence(self) -> &'static str {
        match self {
            Self::HubReturned => "the hub was away a moment ago: whoever is missing may only have had no way to it",
            Self::MassExpiry => "many leases expired at once: whoever is missing may only have had no way to the hub",
        }
    }
}

/// How far to go by what is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Known,
    /// Who has a lease is there; of who has none nobody can tell.
    Doubtful(&'static str),
    /// Of nobody anything can be told.
    Blind(&'static str),
}

impl Standing {
    #[must_use]
    pub fn is_known(self) -> bool {
        self == Self::Known
    }

    #[must_use]
    pub fn because(self) -> Option<&'static str> {
        match self {
            Self::Known => None,
            Self::Doubtful(because) | Self::Blind(because) => Some(because),
        }
    }
}

/// What is known of the watch on the leases.
#[derive(Debug, Default)]
pub struct Trust {
    is_read: bool,
    was_lost: bool,
    /// Whatever was written before this has been seen.
    heard: Option<Instant>,
    doubt: Option<(Doubt, Instant)>,
    expired: VecDeque<Instant>,
}

impl Trust {
    /// How long silence is no sign of anything: the shortest time that a lease has.
    pub const SILENCE_MOST: Duration = Duration::from_secs(6);

    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        if !self.is_read {
            return Standing::Blind(match self.was_lost {
                true => "the leases cannot be read: the hub is away",
                false => "the leases are being read",
            });
        }
        if self.heard.is_none_or(|heard| now.saturating_duration_since(heard) > Self::SILENCE_MOST) {
            return Standing::Blind("the hub has said nothing of the leases for longer than one of them lasts");
        }
        match self.doubt {
            Some((doubt, until)) if now < until => Standing::Doubtful(doubt.sentence()),
            Some(_) | None => Standing::Known,
        }
    }

    /// All leases were read at `now`; `ttl` is the longest time that one of them has. What ended while nobody could reach the
    /// hub comes back within two of them, or is lost.
    pub fn note_read(&mut self, now: Instant, ttl: Duration) -> Option<Doubt> {
        self.is_read = true;
        self.heard = Some(now);
        let began = std::mem::take(&mut self.was_lost).then_some(Doubt::HubReturned);
        if let Some(doubt) = began {
            self.doubt = Some((doubt, now + 2 * ttl));
        }
        began
    }

    /// The connection was lost, or the watch has ended.
    pub fn note_loss(&mut self) {
        self.was_lost |= self.is_read;
        self.is_read = false;
    }

    /// Everything that was written before `asked` has been seen. A silence that is over is as good as a hub that is back.
    pub fn note_progress(&mut self, asked: Instant, ttl: Duration) -> Option<Doubt> {
        let was_silent = self.heard.is_some_and(|heard| asked.saturating_duration_since(heard) > Self::SILENCE_MOST);
        self.heard = self.heard.max(Some(asked));
        if !was_silent {
            return None;
        }
        self.doubt = Some((Doubt::HubReturned, asked + 2 * ttl));
        Some(Doubt::HubReturned)
    }

    /// A lease expired at `now`, and `live` are left. `Some` when that is too many, and was not so before.
    pub fn note_expiry(&mut self, now: Instant, live: usize, ttl: Duration) -> Option<Doubt> {
        self.expired.push_back(now);
        while self.expired.front().is_some_and(|at| now.saturating_duration_since(*at) > ttl) {
            self.expired.pop_front();
        }
        let expired = self.expired.len();
        if expired < MASS_LEAST || expired * MASS_SHARE <= live + expired {
            return None;
        }
        let was_doubtful = self.doubt.is_some_and(|(doubt, until)| doubt == Doubt::MassExpiry && now < until);
        self.doubt = Some((Doubt::MassExpiry, now + 2 * ttl));
        (!was_doubtful).then_some(Doubt::MassExpiry)
    }
}

/// The longest time of the leases that there are, by how many of each class.
#[must_use]
pub fn longest_ttl(fast: usize, normal: usize) -> Duration {
    match (fast, normal) {
        (1.., 0) => LeaseClass::Fast.ttl(),
        (0, _) | (_, 1..) => LeaseClass::Normal.ttl(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(15);

    fn read(now: Instant) -> Trust {
        let mut trust = Trust::default();
        assert_eq!(trust.note_read(now, TTL), None);
        trust
    }

    #[test]
    fn nothing_is_known_before_the_first_whole_reading_and_after_a_silence() {
        let now = Instant::now();
        assert!(matches!(Trust::default().standing(now), Standing::Blind(_)));
        let mut trust = read(now);
        assert_eq!(trust.standing(now + Trust::SILENCE_MOST), Standing::Known);
        let late = now + Trust::SILENCE_MOST + Duration::from_secs(1);
        assert!(matches!(trust.standing(late), Standing::Blind(_)));
        assert_eq!(trust.note_progress(late, TTL), Some(Doubt::HubReturned));
        assert!(matches!(trust.standing(late), Standing::Doubtful(_)), "who was missing may come back");
        for step in 1..=30 {
            assert_eq!(trust.note_progress(late + Duration::from_secs(step), TTL), None);
        }
        assert_eq!(trust.standing(late + 2 * TTL), Standing::Known);
    }

    #[test]
    fn a_hub_that_is_back_is_doubted_for_two_ttls() {
        let now = Instant::now();
        let mut trust = read(now);
        trust.note_loss();
        assert!(matches!(trust.standing(now), Standing::Blind(_)));
        assert_eq!(trust.note_read(now, TTL), Some(Doubt::HubReturned));
        assert!(matches!(trust.standing(now), Standing::Doubtful(_)));
        trust.note_progress(now + 2 * TTL, TTL);
        let mut fresh = read(now + 2 * TTL);
        assert_eq!(fresh.standing(now + 2 * TTL), Standing::Known, "a registry that starts doubts nothing");
        fresh.note_loss();
        fresh.note_loss();
        assert_eq!(fresh.note_read(now + 2 * TTL, TTL), Some(Doubt::HubReturned));
    }

    fn check_expiries(expired: usize, live_before: usize, apart: Duration, expected: Standing) {
        let now = Instant::now();
        let mut trust = read(now);
        let mut last = now;
        for number in 0..expired {
            last = now + apart * u32::try_from(number).unwrap();
            trust.note_expiry(last, live_before - number - 1, TTL);
        }
        trust.heard = Some(last);
        let standing = trust.standing(last);
        assert_eq!(standing.is_known(), expected.is_known(), "{expired} of {live_before}: {standing:?}");
    }

    #[test]
    fn many_at_once_are_doubted_and_a_few_are_lost() {
        let doubtful = Standing::Doubtful(Doubt::MassExpiry.sentence());
        check_expiries(21, 100, Duration::ZERO, doubtful);
        check_expiries(20, 100, Duration::ZERO, Standing::Known);
        check_expiries(10, 100, Duration::ZERO, Standing::Known);
        check_expiries(3, 3, Duration::ZERO, doubtful);
        check_expiries(2, 2, Duration::ZERO, Standing::Known);
        check_expiries(50, 100, TTL, Standing::Known);
    }

    #[test]
    fn the_longest_lease_decides_how_long_is_waited() {
        assert_eq!(longest_ttl(3, 0), LeaseClass::Fast.ttl());
        for (fast, normal) in [(0, 0), (0, 1), (3, 1)] {
            assert_eq!(longest_ttl(fast, normal), LeaseClass::Normal.ttl());
        }
    }
}
