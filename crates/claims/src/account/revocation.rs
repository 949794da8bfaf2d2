//! Who is not admitted any more although the token is valid.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// Stands for every key.
pub const EVERYONE: &str = "*";

/// Public keys with the unix second up to which their tokens are revoked, that second included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revocations(BTreeMap<String, i64>);

impl Revocations {
    /// Revokes what was issued until `at`. A later revocation stays.
    pub fn revoke(&mut self, key: &str, at: i64) {
        let until = self.0.entry(key.to_owned()).or_insert(at);
        *until = at.max(*until);
    }

    /// Forgets the revocation of `key`; says whether there was one.
    pub fn clear(&mut self, key: &str) -> bool {
        self.0.remove(key).is_some()
    }

    #[must_use]
    pub fn is_revoked(&self, key: &str, iat: i64) -> bool {
        [EVERYONE, key].iter().any(|&name| self.0.get(name).is_some_and(|&until| until >= iat))
    }

    /// Drops entries that the one for everybody covers; says which.
    pub fn compact(&mut self) -> Vec<(String, i64)> {
        let Some(&all) = self.0.get(EVERYONE) else { return vec![] };
        let is_covered = |key: &String, until: &mut i64| key != EVERYONE && *until <= all;
        self.0.extract_if(.., is_covered).collect()
    }
}

impl Deref for Revocations {
    type Target = BTreeMap<String, i64>;

    fn deref(&self) -> &BTreeMap<String, i64> {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revocation_covers_its_own_second_and_never_goes_back() {
        let mut list = Revocations::default();
        list.revoke("U1", 10);
        list.revoke("U1", 5);
        assert!(list.is_revoked("U1", 10) && !list.is_revoked("U1", 11) && !list.is_revoked("U2", 1));
        list.revoke("U2", 30);
        list.revoke(EVERYONE, 20);
        assert!(list.is_revoked("U3", 20) && !list.is_revoked("U3", 21));
        assert_eq!(list.compact(), [("U1".to_owned(), 10)]);
        assert_eq!(list.keys().collect::<Vec<_>>(), ["*", "U2"]);
        assert!(list.clear("U2") && !list.clear("U2"));
    }
}
