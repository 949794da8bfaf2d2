//! Which of two rows for the same slot is kept (design section 5): a real result beats `missed`, a higher generation
//! beats a lower, an island result only fills an empty slot. The database applies the same rule to what it has.

use std::collections::HashMap;

use bulkhead_bus::payload::{Measured, Outcome};

/// One row for the database: what was measured, by whom, and whether that is proved.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub measured: Measured,
    pub vantage: String,
    pub poller: String,
    pub attested: bool,
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

/// One row for each slot of a check at a vantage: one statement cannot touch a row twice.
#[must_use]
pub fn merged(rows: Vec<Candidate>) -> Vec<Candidate> {
    let mut places: HashMap<(String, i64, String), usize> = HashMap::new();
    let mut kept: Vec<Candidate> = Vec::with_capacity(rows.len());
    for row in rows {
        let key = (row.measured.check.to_string(), row.measured.slot_ms, row.vantage.clone());
        match places.get(&key) {
            Some(&place) if beats(&row.measured, &kept[place].measured) => kept[place] = row,
            Some(_) => {}
            None => {
                places.insert(key, kept.len());
                kept.push(row);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::CheckKind;

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
        let outcomes: Vec<Outcome> = merged(rows).iter().map(|row| row.measured.outcome).collect();
        assert_eq!(outcomes, [Outcome::Ok, Outcome::Ok]);
    }
}
