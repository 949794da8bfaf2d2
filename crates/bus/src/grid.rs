//! The slot grid: when each check runs, whoever runs it. Pure: the time is an argument.
//!
//! A slot starts at `phase + n * interval` of the wall clock, and the phase follows from the check's name alone, so that any
//! poller that takes a check over goes on in the same cadence, and anybody can tell which slots there should be.

use std::time::Duration;

use crate::CheckName;

/// FNV-1a, written out because a phase must be the same in every process, version and build.
fn hash_name(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where the slots of one check start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    phase_ms: i64,
    interval_ms: i64,
}

impl Grid {
    /// `interval` is at least a millisecond; settings allow no shorter one than a second.
    #[must_use]
    pub fn new(name: &CheckName, interval: Duration) -> Self {
        let interval_ms = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX).max(1);
        let phase = hash_name(name.as_str()) % interval_ms.unsigned_abs();
        Self { phase_ms: i64::try_from(phase).unwrap_or(0), interval_ms }
    }

    /// One whose slots start at `phase_ms` and every `interval_ms` after it, wherever these come from.
    #[must_use]
    pub fn with_phase(phase_ms: i64, interval_ms: i64) -> Self {
        Self { phase_ms, interval_ms: interval_ms.max(1) }
    }

    #[must_use]
    pub fn phase_ms(self) -> i64 {
        self.phase_ms
    }

    #[must_use]
    pub fn interval_ms(self) -> i64 {
        self.interval_ms
    }

    /// The start of the slot that `now_ms` is in.
    #[must_use]
    pub fn slot_at(self, now_ms: i64) -> i64 {
        now_ms.saturating_sub(now_ms.saturating_sub(self.phase_ms).rem_euclid(self.interval_ms))
    }

    /// The first slot that starts at `now_ms` or later.
    #[must_use]
    pub fn slot_from(self, now_ms: i64) -> i64 {
        let slot = self.slot_at(now_ms);
        if slot == now_ms { slot } else { slot.saturating_add(self.interval_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_of_a_name_never_changes() {
        // Values of the published FNV-1a test vectors: a changed hash would move every check of every tenant.
        assert_eq!(hash_name(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash_name("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash_name("foobar"), 0x8594_4171_f739_67e8);
    }
}
