//! Plans: versioned files from which a tenant's whole account is rendered. Nothing in them is unlimited.
//!
//! Version 1 of each is compiled in; an operator's own versions are files in `<home>/plans`. A tenant is pinned to one
//! version, so that a new one changes nobody until it is applied.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use bulkhead_store::Quota;

use crate::files::{FileError, read_text, write_public};

const COMPILED: [(PlanName, &str); 3] = [
    (PlanName::Free, include_str!("../plans/free.toml")),
    (PlanName::Pro, include_str!("../plans/pro.toml")),
    (PlanName::Enterprise, include_str!("../plans/enterprise.toml")),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanName {
    Free,
    Pro,
    Enterprise,
}

/// Why there is no such plan, or it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("there is no plan {0:?}: choose free, pro or enterprise, or a version of one such as pro@2")]
    Unknown(String),
    #[error("there is no version {} of plan {}: `bulkhead plan list` shows those that there are", .0.version, .0.name)]
    NoVersion(PlanRef),
    #[error("plan file")]
    File(#[source] FileError),
    #[error("plan file {path} is not valid")]
    Parse { path: String, source: toml::de::Error },
    #[error("plan file {path}: {problem}")]
    Value { path: String, problem: String },
    #[error("{} is there already, with other contents: a change is a new version, here {}", .known, .next)]
    Taken { known: PlanRef, next: u32 },
    #[error("list plans")]
    List(#[source] std::io::Error),
}

impl PlanName {
    pub const ALL: [Self; 3] = [Self::Free, Self::Pro, Self::Enterprise];

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
        let known = Self::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or_else(|| PlanError::Unknown(text.chars().take(60).collect()))
    }
}

/// One version of a plan: `pro@2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PlanRef {
    pub name: PlanName,
    pub version: u32,
}

impl fmt::Display for PlanRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.name, self.version))
    }
}

impl FromStr for PlanRef {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let unknown = || PlanError::Unknown(text.chars().take(60).collect());
        let (name, version) = text.split_once('@').ok_or_else(unknown)?;
        let version = version.parse().ok().filter(|&version| version > 0).ok_or_else(unknown)?;
        Ok(Self { name: name.parse()?, version })
    }
}

impl TryFrom<String> for PlanRef {
    type Error = PlanError;

    fn try_from(text: String) -> Result<Self, PlanError> {
        text.parse()
    }
}

impl From<PlanRef> for String {
    fn from(plan: PlanRef) -> Self {
        plan.to_string()
    }
}

/// A plan as an operator names it: `pro` is its newest version, `pro@2` that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanChoice {
    Newest(PlanName),
    Version(PlanRef),
}

impl FromStr for PlanChoice {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        if text.contains('@') { text.parse().map(Self::Version) } else { text.parse().map(Self::Newest) }
    }
}

impl fmt::Display for PlanChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest(name) => name.fmt(f),
            Self::Version(plan) => plan.fmt(f),
        }
    }
}

/// What a tenant may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub name: PlanName,
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
    /// Of checks; version 1 of the same plan where a file of an earlier release says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Quota>,
}

type Number = (&'static str, fn(&Plan) -> u32, RangeInclusive<u32>);

/// What a number of a plan may be: something, and never without end.
const NUMBERS: [Number; 10] = [
    ("connections", |plan| plan.connections, 1..=100_000),
    ("leaf_links", |plan| plan.leaf_links, 1..=10_000),
    ("subscriptions", |plan| plan.subscriptions, 10..=1_000_000),
    ("payload_bytes", |plan| plan.payload_bytes, 65_536..=1_048_576),
    ("retention_days", |plan| plan.retention_days, 1..=3_660),
    ("checks.checks", |plan| plan.quota().checks, 0..=100_000),
    ("checks.runs_per_minute", |plan| plan.quota().runs_per_minute, 0..=6_000_000),
    ("checks.interval_s_least", |plan| plan.quota().interval_s_least, 1..=86_400),
    ("checks.vantages", |plan| plan.quota().vantages, 1..=1_000),
    ("checks.on_demand_per_minute", |plan| plan.quota().on_demand_per_minute, 0..=100_000),
];

impl Plan {
    /// Version 1, as this release has it.
    ///
    /// # Panics
    /// When a compiled-in plan file is not a plan; a test reads all of them.
    #[must_use]
    pub fn of(name: PlanName) -> Self {
        let text = COMPILED.iter().find(|(known, _)| *known == name).map_or("", |(_, text)| text);
        Self::parse(text, name.as_str()).expect("compiled-in plan files are plans")
    }

    /// `path` is what errors name.
    ///
    /// # Errors
    /// When the text is no plan, or a number of it is out of its range.
    pub fn parse(text: &str, path: &str) -> Result<Self, PlanError> {
        let plan: Self = toml::from_str(text).map_err(|source| PlanError::Parse { path: path.to_owned(), source })?;
        let wrong = |problem| Err(PlanError::Value { path: path.to_owned(), problem });
        for (name, number_of, range) in NUMBERS {
            let number = number_of(&plan);
            if !range.contains(&number) {
                let (least, most) = range.into_inner();
                return wrong(format!("{name} is {number}: write a number from {least} to {most}"));
            }
        }
        if plan.version == 0 { wrong("version is 0: versions begin with 1".to_owned()) } else { Ok(plan) }
    }

    /// What its tenants may have of checks.
    #[must_use]
    pub fn quota(&self) -> Quota {
        let quota = |checks, runs_per_minute, interval_s_least, vantages, on_demand_per_minute| Quota {
            checks,
            runs_per_minute,
            interval_s_least,
            vantages,
            on_demand_per_minute,
        };
        self.checks.unwrap_or(match self.name {
            PlanName::Free => quota(50, 300, 30, 2, 10),
            PlanName::Pro => quota(2_000, 12_000, 5, 10, 60),
            PlanName::Enterprise => quota(50_000, 600_000, 1, 50, 600),
        })
    }

    #[must_use]
    pub fn plan_ref(&self) -> PlanRef {
        PlanRef { name: self.name, version: self.version }
    }
}

/// Every version of every plan.
#[derive(Debug, Clone)]
pub struct Plans {
    folder: PathBuf,
}

impl Plans {
    /// Of the operator's own versions in `folder`, which need not be there, and the compiled-in ones.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, plan: PlanRef) -> PathBuf {
        self.folder.join(format!("{plan}.toml"))
    }

    /// # Errors
    /// When there is no such version or its file is damaged.
    pub fn get(&self, plan: PlanRef) -> Result<Plan, PlanError> {
        let compiled = Plan::of(plan.name);
        if compiled.version == plan.version {
            return Ok(compiled);
        }
        let path = self.path(plan);
        if !path.exists() {
            return Err(PlanError::NoVersion(plan));
        }
        let found = read_plan(&path)?;
        if found.plan_ref() == plan {
            return Ok(found);
        }
        let problem = format!("it holds {}: a file is named as what it holds", found.plan_ref());
        Err(PlanError::Value { path: path.display().to_string(), problem })
    }

    /// # Errors
    /// When there is no such version or its file is damaged.
    pub fn choose(&self, choice: PlanChoice) -> Result<Plan, PlanError> {
        match choice {
            PlanChoice::Version(plan) => self.get(plan),
            PlanChoice::Newest(name) => {
                let newest = self.refs()?.into_iter().filter(|plan| plan.name == name).max();
                self.get(newest.unwrap_or_else(|| Plan::of(name).plan_ref()))
            }
        }
    }

    /// Every version, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn refs(&self) -> Result<Vec<PlanRef>, PlanError> {
        let mut refs: Vec<PlanRef> = PlanName::ALL.iter().map(|&name| Plan::of(name).plan_ref()).collect();
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(refs),
            entries => entries.map_err(PlanError::List)?,
        };
        for entry in entries {
            let name = entry.map_err(PlanError::List)?.file_name();
            let text = name.to_str().and_then(|name| name.strip_suffix(".toml"));
            refs.extend(text.and_then(|text| text.parse::<PlanRef>().ok()));
        }
        refs.sort();
        refs.dedup();
        Ok(refs)
    }

    /// Keeps a new version; the same one twice does no harm.
    ///
    /// # Errors
    /// When that version is there with other contents, or the file cannot be written.
    ///
    /// # Panics
    /// Never: a plan serializes.
    pub fn add(&self, plan: &Plan) -> Result<(), PlanError> {
        if self.is_kept(plan)? {
            return Ok(());
        }
        let text = toml::to_string(plan).expect("a plan serializes");
        write_public(&self.path(plan.plan_ref()), text.as_bytes()).map_err(PlanError::File)
    }

    /// Whether this very plan is kept already.
    ///
    /// # Errors
    /// When its version is there with other contents.
    pub fn is_kept(&self, plan: &Plan) -> Result<bool, PlanError> {
        let known = plan.plan_ref();
        match self.get(known) {
            Ok(same) if same == *plan => Ok(true),
            Ok(_) => {
                let newest = self.choose(PlanChoice::Newest(known.name))?.version;
                Err(PlanError::Taken { known, next: newest + 1 })
            }
            Err(PlanError::NoVersion(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// # Errors
/// When the file cannot be read or is no plan.
pub fn read_plan(path: &Path) -> Result<Plan, PlanError> {
    let text = read_text(path).map_err(PlanError::File)?;
    Plan::parse(&text, &path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plan_file_is_finite_and_named_as_its_plan() {
        for name in PlanName::ALL {
            let plan = Plan::of(name);
            assert_eq!(plan.name, name);
            assert_eq!(plan.name.as_str().parse::<PlanName>().unwrap(), name);
            assert_eq!(plan.plan_ref().to_string().parse::<PlanRef>().unwrap(), plan.plan_ref());
        }
        for bad in ["gold", "pro@", "pro@0", "pro@x", "@1", "pro@1@2", ""] {
            assert!(bad.parse::<PlanChoice>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_number_that_is_too_large_or_missing_is_named_with_its_rule() {
        let text = toml::to_string(&Plan::of(PlanName::Pro)).unwrap();
        for (from, to, expected) in [
            ("connections = 100", "connections = 0", "connections is 0: write a number from 1 to"),
            ("payload_bytes = 262144", "payload_bytes = 4294967295", "payload_bytes is 4294967295"),
            ("version = 1", "version = 0", "versions begin with 1"),
            ("leaf_links = 20", "leaf_link = 20", "is not valid"),
            ("leaf_links = 20", "leaf_links = -1", "is not valid"),
        ] {
            assert!(text.contains(from), "{text}");
            let error = Plan::parse(&text.replace(from, to), "pro.toml").unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("pro.toml"), "{error}");
        }
    }

    #[test]
    fn a_version_is_never_changed_and_the_newest_is_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let plans = Plans::new(folder.path().join("plans"));
        let newest = || plans.choose(PlanChoice::Newest(PlanName::Pro)).unwrap().version;
        assert_eq!(newest(), 1);
        let second = Plan { version: 2, connections: 150, ..Plan::of(PlanName::Pro) };
        plans.add(&second).unwrap();
        plans.add(&second).unwrap();
        assert_eq!(newest(), 2);
        assert_eq!(plans.get("pro@2".parse().unwrap()).unwrap(), second);
        let error = plans.add(&Plan { connections: 151, ..second }).unwrap_err().to_string();
        assert!(error.contains("here 3"), "{error}");
        assert!(plans.add(&Plan { connections: 7, ..Plan::of(PlanName::Pro) }).is_err(), "a compiled-in one changed");
        assert!(plans.get("pro@9".parse().unwrap()).unwrap_err().to_string().contains("no version 9"));
    }
}
