//! Who has a lease: the buckets that only the registry writes, and how long a lease lasts (design section 6; facts: dispatch
//! A4). What is static and what is renewed are kept apart, so that no renewal can take anything of the other away.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AccountKey, MemberName, SiteName};

/// What is known of a member whether it is there or not.
pub const INFO_BUCKET: &str = "REG_INFO";
/// What a member renews; the server removes what is not renewed in time, and says so.
pub const LEASE_BUCKET: &str = "REG_LEASE";
pub const BUCKETS: [&str; 2] = [INFO_BUCKET, LEASE_BUCKET];

/// A member's key in both buckets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberKey {
    pub account: AccountKey,
    pub site: SiteName,
    pub name: MemberName,
}

impl MemberKey {
    /// `None` when the text is no member's key.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut tokens = text.split('.');
        let key = Self {
            account: tokens.next()?.parse().ok()?,
            site: tokens.next()?.parse().ok()?,
            name: tokens.next()?.parse().ok()?,
        };
        tokens.next().is_none().then_some(key)
    }
}

impl fmt::Display for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.account, self.site, self.name)
    }
}

/// How soon a member that is gone is missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseClass {
    #[default]
    Normal,
    Fast,
}

impl LeaseClass {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Fast => "fast",
        }
    }

    /// From one renewal to the next, before chance moves it by up to a fifth.
    #[must_use]
    pub fn heartbeat(self) -> Duration {
        match self {
            Self::Normal => Duration::from_secs(5),
            Self::Fast => Duration::from_secs(2),
        }
    }

    /// Whole seconds: the server counts no shorter ones.
    #[must_use]
    pub fn ttl(self) -> Duration {
        match self {
            Self::Normal => Duration::from_secs(15),
            Self::Fast => Duration::from_secs(6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_nothing_else_is_one() {
        let account: AccountKey = nkeys::KeyPair::new_account().public_key().parse().unwrap();
        for name in ["p1", "fwd"] {
            let key =
                MemberKey { account: account.clone(), site: "oslo".parse().unwrap(), name: name.parse().unwrap() };
            assert_eq!(MemberKey::parse(&key.to_string()), Some(key));
        }
        for text in
            ["", "a.oslo.p1", &format!("{account}.oslo"), &format!("{account}.oslo.p1.x"), &format!("{account}.*.p1")]
        {
            assert_eq!(MemberKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn two_renewals_may_be_lost_before_a_lease_ends() {
        for class in [LeaseClass::Normal, LeaseClass::Fast] {
            assert!(class.ttl() >= class.heartbeat().mul_f64(1.2) * 2, "{class:?}");
        }
    }
}
