//! At which sites each check is run.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bulkhead_bus::SiteName;

use super::rendezvous::hash_parts;
use super::{Kinds, Labels, Member, Situation, Standing, Wanted};

/// What the members of each site are to checks of one kind and these labels.
#[derive(Default)]
struct Ability<'a> {
    /// Somebody there can run them now.
    live: BTreeSet<&'a SiteName>,
    /// Somebody there could, were it not lost.
    at_all: BTreeSet<&'a SiteName>,
}

struct Sites<'a> {
    situation: &'a Situation,
    members: BTreeMap<&'a SiteName, Vec<&'a Member>>,
    abilities: HashMap<(Kinds, &'a Labels), Ability<'a>>,
}

/// The checks of each site.
pub(super) fn seats(situation: &Situation) -> BTreeMap<&SiteName, Vec<&Wanted>> {
    let mut members: BTreeMap<&SiteName, Vec<&Member>> = BTreeMap::new();
    for member in &situation.members {
        members.entry(&member.site).or_default().push(member);
    }
    let mut sites = Sites { situation, members, abilities: HashMap::new() };
    let mut seats: BTreeMap<&SiteName, Vec<&Wanted>> = BTreeMap::new();
    for check in &situation.checks {
        for site in sites.vantages(check) {
            seats.entry(site).or_default().push(check);
        }
    }
    seats
}

impl<'a> Sites<'a> {
    fn ability(&mut self, check: &'a Wanted) -> &Ability<'a> {
        let members = &self.members;
        self.abilities.entry((check.kinds, &check.labels)).or_insert_with(|| {
            let mut ability = Ability::default();
            for member in members.values().flatten().filter(|member| member.is_able(check.kinds, &check.labels)) {
                if member.standing != Standing::Barred {
                    ability.at_all.insert(&member.site);
                }
                if member.standing.is_live() {
                    ability.live.insert(&member.site);
                }
            }
            ability
        })
    }

    /// Where it is now stays where it can; then come sites with somebody who can run it.
    fn vantages(&mut self, check: &'a Wanted) -> Vec<&'a SiteName> {
        let situation = self.situation;
        let now = situation.owners.get(&check.name);
        let is_believed = |site: &SiteName| !situation.is_held && !situation.held_sites.contains(site);
        let is_awaited = |site: &SiteName, members: &[&Member]| {
            let Some(Some(owner)) = now.and_then(|now| now.get(site)) else { return false };
            let is_lost = |member: &&&Member| member.poller == *owner && member.standing == Standing::Lost;
            !is_believed(site) || members.iter().find(is_lost).is_some()
        };
        let awaited: BTreeSet<&SiteName> = now
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|site| is_awaited(site, self.members.get(site).map_or(&[], Vec::as_slice)))
            .collect();
        let ability = self.ability(check);
        let (mut candidates, count): (Vec<&SiteName>, usize) = if check.sites.is_empty() {
            let places: BTreeSet<&SiteName> = ability.at_all.union(&awaited).copied().collect();
            (places.into_iter().collect(), usize::from(check.vantages.unwrap_or(1)))
        } else {
            (check.sites.iter().collect(), check.vantages.map_or(check.sites.len(), usize::from))
        };
        if count >= candidates.len() {
            return candidates;
        }
        let key = |site: &SiteName| hash_parts([&situation.tenant, check.name.as_str(), site.as_str()]);
        candidates.sort_by_cached_key(|site| {
            let (is_now, is_live) = (now.is_some_and(|now| now.contains_key(*site)), ability.live.contains(site));
            let rank = match (is_now, is_live || awaited.contains(site)) {
                (true, true) => 0,
                (false, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
            };
            (rank, std::cmp::Reverse(key(site)), (*site).clone())
        });
        candidates.truncate(count);
        candidates
    }
}
