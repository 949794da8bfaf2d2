//! Who is there, as the registry says: asked for each plan, and never guessed. What it cannot tell is unknown, and nobody loses
//! anything for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_bus::payload::{MemberPage, MemberPageQuery, MemberRow, MemberState, Reply};
use bulkhead_bus::{AccountKey, CoreSubject, PollerName, ServiceVerb, SiteName, TenantId, TenantSubject};
use bulkhead_runtime::{Bus, Chain};
use bulkhead_store::{BatchKeys, Registered};

use crate::plan::{Member, Standing, quantised};
use crate::turn::{Departure, Departures};

const ASK_LIMIT: Duration = Duration::from_secs(2);
/// So many pages are more than any tenant has pollers for.
const PAGES_MOST: usize = 1_000;

/// What the registry said.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Why it is not to be believed.
    pub unknown: Option<String>,
    pub revision: i64,
    pub rows: Vec<MemberRow>,
}

fn unknown(because: impl ToString) -> View {
    View { unknown: Some(because.to_string()), ..View::default() }
}

/// Asks for all members of a tenant.
pub async fn ask_members(bus: &Bus, account: &AccountKey) -> View {
    let subject = TenantSubject::Service { verb: ServiceVerb::ListMembers };
    let subject = CoreSubject { account: account.clone(), subject }.to_string();
    let (mut view, mut after) = (View { revision: i64::MAX, ..View::default() }, None);
    for _ in 0..PAGES_MOST {
        let asked = serde_json::to_vec(&MemberPageQuery { after }).expect("a question serializes");
        let page = match bus.request(&subject, asked.into(), ASK_LIMIT).await {
            Err(error) => return unknown(Chain(&error)),
            Ok(answer) => match serde_json::from_slice::<Reply<MemberPage>>(&answer) {
                Err(error) => return unknown(format!("the registry's answer is not readable: {error}")),
                Ok(Reply::Error(error)) => return unknown(error.message),
                Ok(Reply::Rows(pages)) => match pages.into_iter().next() {
                    None => return unknown("the registry's answer is empty"),
                    Some(page) => page,
                },
            },
        };
        if !page.is_known && view.unknown.is_none() {
            view.unknown = Some(page.because.unwrap_or_else(|| "the registry cannot tell now".to_owned()));
        }
        view.revision = view.revision.min(i64::try_from(page.revision).unwrap_or(i64::MAX));
        after = page.members.last().map(|row| (row.site.clone(), row.name.clone()));
        view.rows.extend(page.members);
        if !page.has_more || after.is_none() {
            return view;
        }
    }
    unknown("the registry's answer has no end")
}

fn standing_of(row: &MemberRow) -> Standing {
    match row.state {
        MemberState::Ready => Standing::Takes,
        MemberState::Joining | MemberState::Degraded | MemberState::Unknown => Standing::Keeps,
        MemberState::Draining => Standing::HandsOver,
        MemberState::Lost => Standing::Lost,
        MemberState::Quarantined | MemberState::Gone | MemberState::Never => Standing::Barred,
    }
}

/// Members as planning sees them: pollers that are registered and active. `batch_keys` is what the database has of them.
#[must_use]
pub fn members_of(view: &View, batch_keys: &BatchKeys) -> Vec<Member> {
    let member = |row: &MemberRow| {
        let poller = row.name.poller()?.clone();
        let is_active = matches!(batch_keys.get(&(row.site.clone(), poller.clone())), Some(Registered::Key(_)));
        let info = row.info.clone().unwrap_or_default();
        Some(Member {
            site: row.site.clone(),
            poller,
            weight: quantised(info.capacity),
            kinds: info.capabilities.iter().map(|capability| capability.kind).collect(),
            labels: info.labels,
            checks_most: info.checks_most,
            standing: if is_active { standing_of(row) } else { Standing::Barred },
        })
    };
    view.rows.iter().filter_map(member).collect()
}

/// When each went who is not there.
#[must_use]
pub fn departures_of(view: &View, now_ms: i64) -> Departures {
    let departure = |row: &MemberRow| {
        let poller = row.name.poller()?.clone();
        let how = match row.state {
            MemberState::Lost => Departure::Lost { renewed_ms: row.renewed_ms.or(row.since_ms).unwrap_or(now_ms) },
            MemberState::Gone => Departure::Gone { at_ms: row.since_ms.or(row.renewed_ms).unwrap_or(now_ms) },
            MemberState::Joining
            | MemberState::Ready
            | MemberState::Degraded
            | MemberState::Draining
            | MemberState::Quarantined
            | MemberState::Never
            | MemberState::Unknown => return None,
        };
        Some(((row.site.clone(), poller), how))
    };
    view.rows.iter().filter_map(departure).collect()
}

/// What was seen of one tenant.
#[derive(Debug, Default)]
struct Seen {
    unknown_until: Option<Instant>,
    /// Sites of which nobody was there.
    away: BTreeSet<SiteName>,
    back_until: BTreeMap<SiteName, Instant>,
}

/// Whose states are not believed, and until when. What is not in memory is what the registry says now.
#[derive(Debug, Clone)]
pub struct Holds {
    hold: Duration,
    seen: Arc<Mutex<HashMap<TenantId, Seen>>>,
}

/// What is held of a tenant now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub is_all: bool,
    pub sites: BTreeSet<SiteName>,
}

impl Holds {
    #[must_use]
    pub fn new(hold: Duration) -> Self {
        Self { hold, seen: Arc::default() }
    }

    /// Takes in what the registry said, and says what is held.
    #[must_use]
    pub fn note(&self, tenant: TenantId, is_known: bool, members: &[Member], now: Instant) -> Held {
        let mut seen = self.seen.lock().expect("no holder panics");
        let seen = seen.entry(tenant).or_default();
        if !is_known {
            seen.unknown_until = Some(now + self.hold);
            return Held { is_all: true, ..Held::default() };
        }
        let (mut live, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for member in members {
            match member.standing {
                Standing::Takes | Standing::Keeps | Standing::HandsOver => live.insert(member.site.clone()),
                Standing::Lost => lost.insert(member.site.clone()),
                Standing::Barred => false,
            };
        }
        for site in live.iter().filter(|site| seen.away.contains(*site)) {
            // One poller of a site comes back after the other.
            seen.back_until.insert(site.clone(), now + self.hold);
        }
        seen.away = lost.difference(&live).cloned().collect();
        seen.back_until.retain(|_, until| *until > now);
        seen.unknown_until = seen.unknown_until.filter(|until| *until > now);
        Held { is_all: seen.unknown_until.is_some(), sites: seen.back_until.keys().cloned().collect() }
    }

    /// Tenants of which something was held that is not any more: they are to be planned again.
    #[must_use]
    pub fn ended(&self, now: Instant) -> Vec<TenantId> {
        let mut all = self.seen.lock().expect("no holder panics");
        let mut ended = Vec::new();
        for (tenant, seen) in all.iter_mut() {
            let before = (seen.unknown_until.is_some(), seen.back_until.len());
            seen.unknown_until = seen.unknown_until.filter(|until| *until > now);
            seen.back_until.retain(|_, until| *until > now);
            if before != (seen.unknown_until.is_some(), seen.back_until.len()) {
                ended.push(*tenant);
            }
        }
        ended
    }

    /// How many tenants are held as a whole.
    #[must_use]
    pub fn count(&self) -> usize {
        let all = self.seen.lock().expect("no holder panics");
        all.values().filter(|seen| seen.unknown_until.is_some()).count()
    }
}

/// One poller of a site that may run something now, for a run on demand: those that are ready first.
#[must_use]
pub fn best_ready<'a>(
    members: &'a [Member],
    site: &SiteName,
    is_able: impl Fn(&Member) -> bool,
    key: &str,
) -> Option<&'a PollerName> {
    let of = |standing: Standing| {
        let able = members.iter().filter(|member| member.site == *site && member.standing == standing);
        let able: Vec<&Member> = able.filter(|member| is_able(member)).collect();
        let chosen = crate::plan::rendezvous(key, &able, |member| member.poller.as_str(), 1);
        chosen.first().map(|member| &member.poller)
    };
    of(Standing::Takes).or_else(|| of(Standing::Keeps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn member(standing: Standing) -> Member {
        Member {
            site: "oslo".parse().unwrap(),
            poller: "p1".parse().unwrap(),
            weight: 1,
            kinds: crate::plan::Kinds::default(),
            labels: BTreeMap::new(),
            checks_most: 0,
            standing,
        }
    }

    #[test]
    fn what_was_unknown_is_held_for_a_while_after_it_is_known() {
        let (holds, tenant, began) = (Holds::new(Duration::from_secs(30)), TenantId::new(Uuid::nil()), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(!holds.note(tenant, true, &[], at(0)).is_all);
        assert!(holds.note(tenant, false, &[], at(1)).is_all);
        assert!(holds.note(tenant, true, &[], at(30)).is_all);
        assert_eq!(holds.ended(at(30)), []);
        assert_eq!(holds.ended(at(31)), [tenant]);
        assert!(!holds.note(tenant, true, &[], at(31)).is_all);
        assert_eq!(holds.ended(at(99)), []);
    }

    #[test]
    fn a_site_that_comes_back_is_held_until_all_of_it_had_time_to() {
        let (holds, tenant, began) = (Holds::new(Duration::from_secs(30)), TenantId::new(Uuid::nil()), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(holds.note(tenant, true, &[member(Standing::Takes)], at(0)), Held::default());
        assert_eq!(holds.note(tenant, true, &[member(Standing::Lost)], at(1)), Held::default());
        let back = [member(Standing::Takes), member(Standing::Lost)];
        let sites = BTreeSet::from(["oslo".parse().unwrap()]);
        assert_eq!(holds.note(tenant, true, &back, at(20)), Held { is_all: false, sites });
        assert_eq!(holds.note(tenant, true, &back, at(50)), Held::default());
    }
}
