//! Plans: versioned files from which a tenant's whole account is rendered. Nothing in them is unlimited.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

const FREE: &str = include_str!("../plans/free.toml");
const PRO: &str = include_str!("../plans/pro.toml");
const ENTERPRISE: &str = include_str!("../plans/enterprise.toml");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanName {
    Free,
    Pro,
    Enterprise,
}

/// Why a text is not a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no plan {0:?}: choose free, pro or enterprise")]
pub struct PlanError(String);

impl PlanName {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pro => "pro",
            Self::Enterprise => "enterprise",
        }
    }
}

impl fmt::Display for PlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PlanName {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        match text {
            "free" => Ok(Self::Free),
            "pro" => Ok(Self::Pro),
            "enterprise" => Ok(Self::Enterprise),
            other => Err(PlanError(other.chars().take(60).collect())),
        }
    }
}

/// What a tenant may use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub name: String,
    pub version: u32,
    /// Clients and people of the tenant that may be connected at once, leaf links not counted.
    pub connections: u32,
    pub leaf_links: u32,
    /// Per connection: the server does not count for the whole account (facts: topology-proved section 7).
    pub subscriptions: u32,
    pub payload_bytes: u32,
    pub retention_days: u32,
    /// Whether batches without a signature are stored, marked as not attested.
    pub allows_unsigned: bool,
}

impl Plan {
    /// # Panics
    /// When a compiled-in plan file is not a plan; a test reads all of them.
    #[must_use]
    pub fn of(name: PlanName) -> Self {
        let text = match name {
            PlanName::Free => FREE,
            PlanName::Pro => PRO,
            PlanName::Enterprise => ENTERPRISE,
        };
        toml::from_str(text).expect("compiled-in plan files are plans")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_file_is_finite_and_named_as_its_plan() {
        for name in [PlanName::Free, PlanName::Pro, PlanName::Enterprise] {
            let plan = Plan::of(name);
            assert_eq!(plan.name, name.as_str());
            assert_eq!(plan.name.parse(), Ok(name));
            assert!(plan.connections > 0 && plan.leaf_links > 0 && plan.retention_days > 0);
        }
        assert!("gold".parse::<PlanName>().is_err());
    }
}
