//! `tenants.yaml`: which tenants there should be, and the steps from what there is to that. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bulkhead_bus::TenantSlug;
use serde::{Deserialize, Serialize};

use super::{TenantRecord, TenantStage};
use crate::plan::{PlanChoice, PlanRef};

/// Why a file does not say what there should be.
#[derive(Debug, thiserror::Error)]
pub enum WantedError {
    #[error("{path} is not valid")]
    Parse { path: String, source: serde_yaml_ng::Error },
    #[error("{path}: tenant {slug} is there twice: leave one out")]
    Twice { path: String, slug: TenantSlug },
    #[error("{path}: plan of tenant {slug}")]
    Plan { path: String, slug: TenantSlug, source: Box<crate::plan::PlanError> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tenants: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    slug: TenantSlug,
    #[serde(default)]
    name: Option<String>,
    plan: String,
    #[serde(default)]
    suspended: bool,
}

/// A tenant as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedTenant {
    /// `None` leaves the name as it is.
    pub name: Option<String>,
    pub plan: PlanChoice,
    pub is_suspended: bool,
}

/// All tenants that there should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedTenants(pub BTreeMap<TenantSlug, WantedTenant>);

impl WantedTenants {
    /// Reads YAML; `path` is what errors name.
    ///
    /// # Errors
    /// When it is no such file, or names a tenant twice.
    pub fn parse(text: &str, path: &str) -> Result<Self, WantedError> {
        let file: File =
            serde_yaml_ng::from_str(text).map_err(|source| WantedError::Parse { path: path.to_owned(), source })?;
        let mut wanted = BTreeMap::new();
        for entry in file.tenants {
            let slug = entry.slug;
            let failed =
                |source| WantedError::Plan { path: path.to_owned(), slug: slug.clone(), source: Box::new(source) };
            let plan = entry.plan.parse().map_err(failed)?;
            let tenant = WantedTenant { name: entry.name, plan, is_suspended: entry.suspended };
            if wanted.insert(slug.clone(), tenant).is_some() {
                return Err(WantedError::Twice { path: path.to_owned(), slug });
            }
        }
        Ok(Self(wanted))
    }
}

/// One step towards what should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Step {
    /// Also completes an onboarding that was cut short.
    Add {
        tenant: TenantSlug,
        plan: PlanRef,
    },
    Restore {
        tenant: TenantSlug,
    },
    Change {
        tenant: TenantSlug,
        plan: Option<PlanRef>,
        name: Option<String>,
    },
    Suspend {
        tenant: TenantSlug,
    },
    Resume {
        tenant: TenantSlug,
    },
    /// With `--prune`: taken off the servers and kept; never purged.
    Offboard {
        tenant: TenantSlug,
    },
}

impl Step {
    #[must_use]
    pub fn tenant(&self) -> &TenantSlug {
        match self {
            Self::Add { tenant, .. }
            | Self::Restore { tenant }
            | Self::Change { tenant, .. }
            | Self::Suspend { tenant }
            | Self::Resume { tenant }
            | Self::Offboard { tenant } => tenant,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add { tenant, plan } => write!(f, "add {tenant} with plan {plan}"),
            Self::Restore { tenant } => write!(f, "restore {tenant}"),
            Self::Change { tenant, plan, name } => {
                write!(f, "change {tenant}")?;
                if let Some(plan) = plan {
                    write!(f, ", plan {plan}")?;
                }
                if let Some(name) = name {
                    write!(f, ", name {name:?}")?;
                }
                Ok(())
            }
            Self::Suspend { tenant } => write!(f, "suspend {tenant}"),
            Self::Resume { tenant } => write!(f, "resume {tenant}"),
            Self::Offboard { tenant } => write!(f, "offboard {tenant}"),
        }
    }
}

/// Whether tenants that the file does not name are offboarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    Keep,
    Offboard,
}

/// The steps from `records` to `wanted`. `resolve` gives the version that a choice of a plan is now.
///
/// # Errors
/// What `resolve` says.
pub fn steps<E>(
    wanted: &WantedTenants,
    records: &[TenantRecord],
    prune: Prune,
    resolve: impl Fn(PlanChoice) -> Result<PlanRef, E>,
) -> Result<Vec<Step>, E> {
    let mut steps = Vec::new();
    for (slug, tenant) in &wanted.0 {
        let known = records.iter().find(|record| record.slug == *slug);
        let own = || slug.clone();
        // A tenant that is on the plan already stays on its version: a new version is applied by `plan apply`.
        let plan = match (tenant.plan, known) {
            (PlanChoice::Newest(name), Some(record)) if record.plan.name == name => record.plan,
            (choice, _) => resolve(choice)?,
        };
        let stage = known.map(|record| record.stage);
        match stage {
            None | Some(TenantStage::Adding) => steps.push(Step::Add { tenant: own(), plan }),
            Some(TenantStage::Offboarded) => steps.push(Step::Restore { tenant: own() }),
            Some(TenantStage::Active | TenantStage::Suspended) => {}
        }
        let name = tenant.name.clone().filter(|name| known.map(|record| &record.display_name) != Some(name));
        let new_plan = known.filter(|record| record.plan != plan && record.stage != TenantStage::Adding).map(|_| plan);
        if name.is_some() || new_plan.is_some() {
            steps.push(Step::Change { tenant: own(), plan: new_plan, name });
        }
        match (stage == Some(TenantStage::Suspended), tenant.is_suspended) {
            (false, true) => steps.push(Step::Suspend { tenant: own() }),
            (true, false) => steps.push(Step::Resume { tenant: own() }),
            (true, true) | (false, false) => {}
        }
    }
    if prune == Prune::Offboard {
        let named: BTreeSet<&TenantSlug> = wanted.0.keys().collect();
        let is_extra =
            |record: &&TenantRecord| !named.contains(&record.slug) && record.stage != TenantStage::Offboarded;
        let extra = records.iter().filter(is_extra);
        steps.extend(extra.map(|record| Step::Offboard { tenant: record.slug.clone() }));
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PlanName;
    use uuid::Uuid;

    const FILE: &str = "
tenants:
  - slug: acme-corp
    name: Acme Corp
    plan: pro
  - slug: xyz-inc
    plan: free@1
    suspended: true
";

    fn record(slug: &str, plan: &str, stage: TenantStage) -> TenantRecord {
        let record = TenantRecord::new(slug.parse().unwrap(), Uuid::nil(), plan.parse().unwrap(), 7);
        TenantRecord { stage, ..record }
    }

    fn told(records: &[TenantRecord], prune: Prune) -> Vec<String> {
        let wanted = WantedTenants::parse(FILE, "tenants.yaml").unwrap();
        let resolve = |choice: PlanChoice| -> Result<PlanRef, ()> {
            Ok(match choice {
                PlanChoice::Newest(name) => PlanRef { name, version: if name == PlanName::Pro { 2 } else { 1 } },
                PlanChoice::Version(plan) => plan,
            })
        };
        steps(&wanted, records, prune, resolve).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_state_leads_to_what_should_be() {
        assert_eq!(
            told(&[], Prune::Offboard),
            [
                "add acme-corp with plan pro@2",
                "change acme-corp, name \"Acme Corp\"",
                "add xyz-inc with plan free@1",
                "suspend xyz-inc"
            ]
        );
        let acme =
            TenantRecord { display_name: "Acme Corp".to_owned(), ..record("acme-corp", "pro@1", TenantStage::Active) };
        let xyz = record("xyz-inc", "free@1", TenantStage::Suspended);
        let old = record("old", "free@1", TenantStage::Active);
        assert_eq!(told(&[acme.clone(), xyz.clone()], Prune::Offboard), [""; 0], "nothing is left to do");
        assert_eq!(told(&[acme.clone(), xyz, old.clone()], Prune::Keep), [""; 0]);
        let gone = record("gone", "free@1", TenantStage::Offboarded);
        let xyz = record("xyz-inc", "enterprise@1", TenantStage::Offboarded);
        let acme = TenantRecord { stage: TenantStage::Suspended, ..acme };
        assert_eq!(
            told(&[acme, xyz, old, gone], Prune::Offboard),
            ["resume acme-corp", "restore xyz-inc", "change xyz-inc, plan free@1", "suspend xyz-inc", "offboard old"]
        );
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_with_the_place() {
        for (text, expected) in [
            ("tenants: 3", "tenants.yaml is not valid"),
            ("tenants:\n  - slug: a\n    plan: gold", "plan of tenant a"),
            ("tenants:\n  - slug: a.b\n    plan: free", "tenants.yaml is not valid"),
            ("tenants:\n  - slug: a\n    plan: free\n    plans: free", "tenants.yaml is not valid"),
            ("tenants:\n  - slug: a\n    plan: free\n  - slug: a\n    plan: pro", "tenant a is there twice"),
        ] {
            let error = WantedTenants::parse(text, "tenants.yaml").unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
