//! Which of two rows for the same slot is kept (design section 5): a real result beats `missed`, a higher generation
//! beats a lower, an island result only fills an empty slot. The database applies the same rule to what it has.

use bulkhead_bus::payload::{Measured, Outcome};

/// One row for the database: what was measured, by whom, and whether that is proved.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub measured: Measured,
    pub vantage: String,
    pub poller: String,
    pub attested: bool,
}

impl Candidate {
    fn key(&self) -> (&str, i64, &str) {
        (self.measured.check.as_str(), self.measured.slot_ms, &self.vantage)
    }
}

fn is_missed(row: &Measured) -> bool {
    row.outcome == Outcome::Missed
}

/// Whether `new` takes the place of `old`.
#[must_use]
pub fn beats(new: &Measured, old: &Measured) -> bool {
    if new.island {
        return false;
    }
    match (is_missed(new), is_missed(old)) {
        (false, true) => true,
        (true, false) => false,
        (true, true) | (false, false) => new.generation > old.generation,
    }
}

/// One row for each slot of a check at a vantage: one statement cannot touch a row twice. In the order of the key, so
/// that two writers lock rows in one order. Of two that do not beat each other the first is kept.
#[must_use]
pub fn merged(mut rows: Vec<Candidate>) -> Vec<Candidate> {
    // Stable: of one slot's rows the first stays first.
    rows.sort_by(|one, other| one.key().cmp(&other.key()));
    rows.dedup_by(|later, kept| {
        let is_same = later.key() == kept.key();
        if is_same && beats(&later.measured, &kept.measured) {
            std::mem::swap(later, kept);
        }
        is_same
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::CheckKind;
    use proptest::prelude::*;

    pub(crate) fn row(outcome: Outcome, generation: i64, island: bool) -> Measured {
        Measured {
            check: "web".parse().unwrap(),
            kind: CheckKind::Tcp,
            slot_ms: 1_000,
            started_ms: 1_001,
            outcome,
            reason: None,
            latency_us: None,
            generation,
            island,
            detail: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_rule_of_the_slot() {
        use Outcome::{Fail, Missed, Ok};
        let check = |new: Measured, old: Measured, expected| assert_eq!(beats(&new, &old), expected, "{new:?} {old:?}");
        check(row(Ok, 0, false), row(Missed, 9, false), true);
        check(row(Missed, 9, false), row(Ok, 0, false), false);
        check(row(Fail, 2, false), row(Ok, 1, false), true);
        check(row(Fail, 1, false), row(Ok, 1, false), false);
        check(row(Ok, 9, true), row(Missed, 0, false), false);
        check(row(Missed, 2, false), row(Missed, 1, false), true);
    }

    #[test]
    fn merging_keeps_one_row_a_slot_and_vantage() {
        let candidate = |measured, vantage: &str| Candidate {
            measured,
            vantage: vantage.to_owned(),
            poller: "p1".to_owned(),
            attested: true,
        };
        let rows = vec![
            candidate(row(Outcome::Missed, 0, false), "oslo"),
            candidate(row(Outcome::Ok, 0, false), "oslo"),
            candidate(row(Outcome::Ok, 0, false), "bergen"),
            candidate(row(Outcome::Fail, 0, false), "oslo"),
        ];
        let rows = merged(rows);
        let kept: Vec<(&str, Outcome)> = rows.iter().map(|row| (&*row.vantage, row.measured.outcome)).collect();
        assert_eq!(kept, [("bergen", Outcome::Ok), ("oslo", Outcome::Ok)]);
    }

    fn any_row() -> impl Strategy<Value = Measured> {
        let outcomes = prop_oneof![Just(Outcome::Ok), Just(Outcome::Fail), Just(Outcome::Error), Just(Outcome::Missed)];
        (outcomes, 0_i64..3, any::<bool>()).prop_map(|(outcome, generation, island)| row(outcome, generation, island))
    }

    proptest! {
        #[test]
        fn no_row_beats_itself_and_no_two_beat_each_other(a in any_row(), b in any_row()) {
            prop_assert!(!beats(&a, &a.clone()));
            prop_assert!(!(beats(&a, &b) && beats(&b, &a)));
        }

        #[test]
        fn merging_is_taking_them_one_after_the_other(rows in proptest::collection::vec(any_row(), 1..8)) {
            let last = rows.iter().skip(1).fold(&rows[0], |old, new| if beats(new, old) { new } else { old });
            let candidates = rows.iter().map(|measured| Candidate {
                measured: measured.clone(),
                vantage: "oslo".to_owned(),
                poller: "p1".to_owned(),
                attested: true,
            });
            let kept = merged(candidates.collect());
            prop_assert_eq!(kept.len(), 1);
            prop_assert_eq!(&kept[0].measured, last);
            // Whatever comes again changes nothing.
            prop_assert!(!rows.iter().any(|row| beats(row, &kept[0].measured)));
        }
    }
}
