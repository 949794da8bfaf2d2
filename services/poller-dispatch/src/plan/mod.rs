//! Who shall run what: from checks, members and who has what now to who shall have what. Pure, and the same for the same
//! question in whatever order it is put, so that a process that has lost its memory decides as the one before.
//!
//! Weighted rendezvous hashing with bounded load over bundles, which are all checks of one target at one site. Sticky: what
//! stays within the bound stays where it is, and planning again changes nothing.

mod rendezvous;
mod site;
#[cfg(test)]
mod tests;
mod vantage;

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::payload::{CheckDefinition, CheckKind};
use bulkhead_bus::{CheckName, PollerName, SiteName};

pub use self::rendezvous::{quantised, rendezvous};

/// Nobody gets more than this share of a hundredth of what is fair, where that can be kept.
const BOUND_PERCENT: u128 = 110;

/// What a member may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Ready for more.
    Takes,
    /// It keeps what it has, and gets more only where nobody else can.
    Keeps,
    /// It wants to hand over what it has; nobody to take it, it keeps it.
    HandsOver,
    /// It stopped reporting.
    Lost,
    /// Ended, held by a person, or not one of the tenant's any more.
    Barred,
}

impl Standing {
    fn is_live(self) -> bool {
        match self {
            Self::Takes | Self::Keeps | Self::HandsOver => true,
            Self::Lost | Self::Barred => false,
        }
    }
}

/// Kinds of checks, as a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kinds(u16);

impl Kinds {
    /// Of a kind that this release does not know, which nobody can run.
    const FOREIGN: Self = Self(1 << 15);

    #[must_use]
    pub fn of(kind: CheckKind) -> Self {
        let place = CheckKind::ALL.iter().position(|known| *known == kind).unwrap_or(0);
        Self(1 << place)
    }

    /// As a definition spells it.
    #[must_use]
    pub fn named(kind: &str) -> Self {
        CheckKind::ALL.into_iter().find(|known| known.as_str() == kind).map_or(Self::FOREIGN, Self::of)
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl FromIterator<CheckKind> for Kinds {
    fn from_iter<I: IntoIterator<Item = CheckKind>>(kinds: I) -> Self {
        kinds.into_iter().map(Self::of).fold(Self::default(), Self::and)
    }
}

pub type Labels = BTreeMap<String, String>;

/// Somebody who runs checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub site: SiteName,
    pub poller: PollerName,
    /// See [`quantised`].
    pub weight: u32,
    pub kinds: Kinds,
    pub labels: Labels,
    /// Checks at most; 0 is no limit.
    pub checks_most: u32,
    pub standing: Standing,
}

impl Member {
    #[must_use]
    pub fn is_able(&self, kinds: Kinds, labels: &Labels) -> bool {
        self.kinds.covers(kinds) && labels.iter().all(|(name, value)| self.labels.get(name) == Some(value))
    }
}

/// A check that is to be run, as far as planning goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: CheckName,
    pub kinds: Kinds,
    pub target: String,
    pub interval_s: u64,
    pub sites: Vec<SiteName>,
    pub labels: Labels,
    pub vantages: Option<u16>,
}

impl Wanted {
    #[must_use]
    pub fn of(definition: &CheckDefinition) -> Self {
        let probe = &definition.probe;
        Self {
            name: probe.name.clone(),
            kinds: Kinds::named(&probe.kind),
            target: probe.target.clone(),
            interval_s: probe.interval_s,
            sites: definition.sites.clone(),
            labels: definition.labels.clone(),
            vantages: definition.vantages,
        }
    }

    /// Millionths of a run a second; an exchange of messages costs one, and a page with its handshakes two.
    fn load(&self) -> u64 {
        let cost = if self.kinds == Kinds::of(CheckKind::Http) { 2_000_000 } else { 1_000_000 };
        (cost / self.interval_s.max(1)).max(1)
    }
}

/// Who runs each check at each of its vantages; nobody where nobody can.
pub type Placement = BTreeMap<CheckName, BTreeMap<SiteName, Option<PollerName>>>;

/// Everything that a plan depends on.
#[derive(Debug, Clone, Default)]
pub struct Situation {
    /// Hashed with everything, so that tenants differ.
    pub tenant: String,
    pub checks: Vec<Wanted>,
    pub members: Vec<Member>,
    pub owners: Placement,
    /// Who took part in the plan before; whoever did not is new, and takes its share from the others.
    pub known: BTreeSet<(SiteName, PollerName)>,
    /// Whether the states of members are not to be believed: then nobody loses anything.
    pub is_held: bool,
    /// The same of single sites: they have come back just now, one poller after the other.
    pub held_sites: BTreeSet<SiteName>,
}

/// Shares all checks out.
#[must_use]
pub fn share_out(situation: &Situation) -> Placement {
    let mut placement = Placement::new();
    let seats = vantage::seats(situation);
    for (site, checks) in &seats {
        for (check, poller) in site::share_out_site(situation, site, checks) {
            placement.entry(check.name.clone()).or_default().insert((*site).clone(), poller);
        }
    }
    placement
}

/// Who takes part in a plan: who has been ready, and is still there. Whoever only joins is new when it is ready.
#[must_use]
pub fn participants(situation: &Situation) -> BTreeSet<(SiteName, PollerName)> {
    let live = situation.members.iter().filter(|member| member.standing.is_live());
    let named = live.map(|member| (member.standing, (member.site.clone(), member.poller.clone())));
    let taking = named.filter(|(standing, name)| *standing == Standing::Takes || situation.known.contains(name));
    let mut known: BTreeSet<_> = taking.map(|(_, name)| name).collect();
    let is_held = |site: &SiteName| situation.is_held || situation.held_sites.contains(site);
    known.extend(situation.known.iter().filter(|(site, _)| is_held(site)).cloned());
    known
}
