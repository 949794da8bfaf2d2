//! Everybody with a lease, or of whom something is known, as the two buckets tell it. Pure: it takes entries in and says what
//! became of whom.

use std::collections::{BTreeMap, HashMap, HashSet};

use bulkhead_bus::payload::{MemberRow, MemberState, ReportedState};
use bulkhead_bus::{AccountKey, LeaseClass, MemberKey, MemberName, SiteName, TenantSlug};
use bulkhead_runtime::{BucketEntry, ValueEnd};

use crate::document::{HeldDoc, InfoDoc, LeaseDoc, LostDoc, decode};
use crate::trust::{Standing, longest_ttl};

/// What became of a member, for its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub key: MemberKey,
    pub what: What,
    /// Of what tells of it: replicas that see the same write the same.
    pub revision: u64,
    pub at_ms: i64,
    pub boot: Option<u64>,
    pub state: Option<ReportedState>,
    pub reason: Option<String>,
}

/// The kinds of events, as the database spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Joined,
    RenewedState,
    Fenced,
    Gone,
    Lost,
    Quarantined,
    Released,
}

impl What {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::RenewedState => "renewed_state",
            Self::Fenced => "fenced",
            Self::Gone => "gone",
            Self::Lost => "lost",
            Self::Quarantined => "quarantined",
            Self::Released => "released",
        }
    }
}

/// What an entry has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether whoever goes by members has to look again.
    pub is_news: bool,
    pub events: Vec<Event>,
}

/// One member.
#[derive(Debug, Clone, Default)]
pub struct Member {
    pub lease: Option<LeaseDoc>,
    /// Of the lease, or of the word that it ended; 0 when there was none.
    pub lease_revision: u64,
    /// When the server said that the lease expired.
    pub expired_ms: Option<i64>,
    pub info: Option<InfoDoc>,
    pub info_revision: u64,
    /// Of the lease when there was last news of it; a renewal is none.
    pub news_revision: u64,
}

/// Whether entries tell what is new, or what has been there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    First,
    News,
}

type OfTenant = BTreeMap<(SiteName, MemberName), Member>;

/// Everybody.
#[derive(Debug, Default)]
pub struct Members {
    accounts: HashMap<AccountKey, OfTenant>,
    live_fast: usize,
    live_normal: usize,
}

impl Member {
    fn live(&self) -> Option<&LeaseDoc> {
        self.lease.as_ref().filter(|lease| lease.is_live())
    }

    #[must_use]
    pub fn held(&self) -> Option<&HeldDoc> {
        self.info.as_ref().and_then(|info| info.held.as_ref())
    }

    fn has_reported(&self) -> bool {
        self.lease.is_some() || self.info.as_ref().is_some_and(|info| info.info.is_some())
    }

    /// When and after which renewal it was lost; the server's word says when, and a lease lasts from its renewal.
    #[must_use]
    pub fn lost(&self) -> Option<LostDoc> {
        if self.lease.is_some() {
            return None;
        }
        let info = self.info.as_ref()?;
        info.lost.or_else(|| {
            let ttl_ms = i64::try_from(info.class.ttl().as_millis()).unwrap_or(i64::MAX);
            self.expired_ms.map(|at_ms| LostDoc { at_ms, renewed_ms: at_ms - ttl_ms })
        })
    }

    /// State, since when, and why.
    #[must_use]
    pub fn state(&self, standing: Standing) -> (MemberState, Option<i64>, Option<String>) {
        if let Standing::Blind(because) = standing {
            return (MemberState::Unknown, None, Some(because.to_owned()));
        }
        if let Some(held) = self.held() {
            return (MemberState::Quarantined, Some(held.since_ms), Some(held.sentence()));
        }
        match &self.lease {
            Some(LeaseDoc { ended: Some(reason), since_ms, .. }) => {
                (MemberState::Gone, Some(*since_ms), Some(reason.clone()))
            }
            Some(lease) => (reported(lease.state), Some(lease.since_ms), None),
            None if !self.has_reported() => (MemberState::Never, None, None),
            None => match standing {
                Standing::Doubtful(because) | Standing::Blind(because) => {
                    (MemberState::Unknown, None, Some(because.to_owned()))
                }
                Standing::Known => (MemberState::Lost, self.lost().map(|lost| lost.at_ms), None),
            },
        }
    }

    #[must_use]
    pub fn row(&self, tenant: &TenantSlug, (site, name): (&SiteName, &MemberName), standing: Standing) -> MemberRow {
        let (state, since_ms, because) = self.state(standing);
        let (lease, info) = (self.lease.as_ref(), self.info.as_ref());
        let renewed_ms = lease.map(|lease| lease.renewed_ms).or(self.lost().map(|lost| lost.renewed_ms));
        let class = lease.map(|lease| lease.class).or(info.map(|info| info.class)).unwrap_or_default();
        MemberRow {
            tenant: tenant.clone(),
            site: site.clone(),
            name: name.clone(),
            state,
            since_ms,
            reasons: lease.map(|lease| lease.reasons.clone()).unwrap_or_default(),
            because,
            boot: lease.map(|lease| lease.boot).or(info.map(|info| info.boot).filter(|boot| *boot > 0)),
            revision: (self.lease_revision > 0).then_some(self.lease_revision),
            class,
            renewed_ms,
            info: info.and_then(|info| info.info.clone()),
            applied_generation: lease.map_or(0, |lease| lease.applied_generation),
            load: lease.map(|lease| lease.load).unwrap_or_default(),
            clock_ahead_ms: lease.map_or(0, |lease| lease.clock_ahead_ms),
        }
    }
}

fn reported(state: ReportedState) -> MemberState {
    match state {
        ReportedState::Joining => MemberState::Joining,
        ReportedState::Ready => MemberState::Ready,
        ReportedState::Degraded => MemberState::Degraded,
        ReportedState::Draining => MemberState::Draining,
    }
}

impl Members {
    #[must_use]
    pub fn of(&self, account: &AccountKey) -> Option<&OfTenant> {
        self.accounts.get(account)
    }

    #[must_use]
    pub fn get(&self, key: &MemberKey) -> Option<&Member> {
        self.accounts.get(&key.account)?.get(&(key.site.clone(), key.name.clone()))
    }

    /// Those of whom anything is known, in no order.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountKey> {
        self.accounts.keys()
    }

    /// Everybody, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.accounts.values().flat_map(BTreeMap::values)
    }

    #[must_use]
    pub fn live(&self) -> usize {
        self.live_fast + self.live_normal
    }

    #[must_use]
    pub fn longest_ttl(&self) -> std::time::Duration {
        longest_ttl(self.live_fast, self.live_normal)
    }

    fn count(&mut self, class: LeaseClass) -> &mut usize {
        match class {
            LeaseClass::Fast => &mut self.live_fast,
            LeaseClass::Normal => &mut self.live_normal,
        }
    }

    fn entry(&mut self, key: &MemberKey) -> &mut Member {
        self.accounts.entry(key.account.clone()).or_default().entry((key.site.clone(), key.name.clone())).or_default()
    }

    /// What was read is all that there is: of who is not in it no lease and nothing static is kept any more.
    pub fn forget_others(&mut self, leases: &HashSet<MemberKey>, infos: &HashSet<MemberKey>) {
        let accounts = std::mem::take(self).accounts;
        for (account, of_tenant) in accounts {
            for ((site, name), mut member) in of_tenant {
                let key = MemberKey { account: account.clone(), site, name };
                if !leases.contains(&key) {
                    (member.lease, member.lease_revision, member.expired_ms) = (None, 0, None);
                }
                if !infos.contains(&key) {
                    (member.info, member.info_revision) = (None, 0);
                }
                if let Some(class) = member.live().map(|lease| lease.class) {
                    *self.count(class) += 1;
                }
                if member.lease_revision > 0 || member.info_revision > 0 {
                    *self.entry(&key) = member;
                }
            }
        }
    }

    /// Takes in what the bucket of leases says. What is older than what is known changes nothing.
    pub fn take_lease(&mut self, key: &MemberKey, entry: &BucketEntry, reading: Reading) -> Change {
        let member = self.entry(key);
        if entry.revision <= member.lease_revision {
            return Change::default();
        }
        let new: Option<LeaseDoc> = entry.value.as_deref().and_then(decode);
        let old = std::mem::replace(&mut member.lease, new.clone());
        member.lease_revision = entry.revision;
        member.expired_ms = (entry.end == Some(ValueEnd::Expired)).then_some(entry.at_ms);
        let old_live = old.as_ref().filter(|lease| lease.is_live());
        let new_live = new.as_ref().filter(|lease| lease.is_live());
        let classes = (old_live.map(|lease| lease.class), new_live.map(|lease| lease.class));
        if classes.0 != classes.1 {
            if let Some(class) = classes.0 {
                *self.count(class) -= 1;
            }
            if let Some(class) = classes.1 {
                *self.count(class) += 1;
            }
        }
        let change = lease_change(key, entry, (old.as_ref(), new.as_ref()), reading);
        if change.is_news {
            self.entry(key).news_revision = entry.revision;
        }
        change
    }

    /// Takes in what the bucket of static information says.
    pub fn take_info(&mut self, key: &MemberKey, entry: &BucketEntry, reading: Reading) -> Change {
        let member = self.entry(key);
        if entry.revision <= member.info_revision {
            return Change::default();
        }
        let new: Option<InfoDoc> = entry.value.as_deref().and_then(decode);
        let old = std::mem::replace(&mut member.info, new);
        member.info_revision = entry.revision;
        let held = |info: Option<&InfoDoc>| info.and_then(|info| info.held.clone());
        let (was, is) = (held(old.as_ref()), held(member.info.as_ref()));
        let said = |info: Option<&InfoDoc>| info.and_then(|info| info.info.clone());
        let mut change =
            Change { is_news: was != is || said(old.as_ref()) != said(member.info.as_ref()), events: vec![] };
        let event = |what, reason| Event {
            key: key.clone(),
            what,
            revision: entry.revision,
            at_ms: entry.at_ms,
            boot: None,
            state: None,
            reason,
        };
        match (was, is) {
            (None, Some(held)) => change.events.push(event(What::Quarantined, Some(held.sentence()))),
            (Some(_), None) if reading == Reading::News => change.events.push(event(What::Released, None)),
            (Some(_), Some(_)) | (Some(_), None) | (None, None) => {}
        }
        change
    }
}

/// What became of a member whose lease was `old` and is `new`.
fn lease_change(
    key: &MemberKey,
    entry: &BucketEntry,
    (old, new): (Option<&LeaseDoc>, Option<&LeaseDoc>),
    reading: Reading,
) -> Change {
    let event = |what, of: Option<&LeaseDoc>, reason: Option<String>| Event {
        key: key.clone(),
        what,
        revision: entry.revision,
        at_ms: entry.at_ms,
        boot: of.map(|lease| lease.boot),
        state: of.map(|lease| lease.state),
        reason,
    };
    let old_live = old.filter(|lease| lease.is_live());
    let events = match (old_live, new) {
        (_, Some(LeaseDoc { ended: Some(reason), .. })) => match old_live.is_some() || reading == Reading::First {
            true => vec![event(What::Gone, new, Some(reason.clone()))],
            false => vec![],
        },
        // A lease that was there before has been told of by whoever saw it come.
        (None, Some(_)) if reading == Reading::First => vec![],
        (None, Some(_)) => vec![event(What::Joined, new, None)],
        (Some(was), Some(is)) if was.boot != is.boot => {
            let taken = "a later start of it has taken its place".to_owned();
            vec![event(What::Fenced, old_live, Some(taken)), event(What::Joined, new, None)]
        }
        (Some(was), Some(is)) if was.state != is.state => vec![event(What::RenewedState, new, None)],
        (Some(_), Some(_)) => vec![],
        (_, None) => match entry.end {
            Some(ValueEnd::Expired) => vec![event(What::Lost, old, None)],
            Some(ValueEnd::Removed) | None => vec![],
        },
    };
    let is_there = |lease: Option<&LeaseDoc>| lease.filter(|lease| lease.is_live()).map(|lease| lease.class);
    Change { is_news: !events.is_empty() || is_there(old) != is_there(new), events }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
