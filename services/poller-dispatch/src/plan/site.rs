//! Who runs what at one site.

use std::collections::{BTreeMap, HashMap};

use bulkhead_bus::{PollerName, SiteName};

use super::rendezvous::{hash_parts, score, score_above};
use super::{BOUND_PERCENT, Kinds, Labels, Member, Situation, Standing, Wanted};

/// Each round takes load from whoever is over the bound, so that there is an end; this is far beyond it.
const ROUNDS_MOST: usize = 64;

/// All checks of one target that the same members can run: they move together.
struct Bundle<'a> {
    checks: Vec<&'a Wanted>,
    hash: u64,
    load: u64,
    /// What running it needs, as a place in the list of needs.
    need: usize,
    owner: Option<usize>,
}

/// One who is there, or whom something is assigned to.
struct Node<'a> {
    name: &'a PollerName,
    member: Option<&'a Member>,
    hash: u64,
    standing: Standing,
    is_new: bool,
    /// Whether it has a share of its own. Whoever joins has none until it is ready.
    has_share: bool,
    fair: u64,
    bound: u64,
    load: u64,
    checks: usize,
}

impl Node<'_> {
    fn weight(&self) -> u32 {
        self.member.map_or(1, |member| member.weight)
    }

    fn has_room(&self, checks: usize) -> bool {
        let most = self.member.map_or(0, |member| member.checks_most);
        most == 0 || self.checks + checks <= usize::try_from(most).unwrap_or(usize::MAX)
    }

    /// Whether it takes part in the sharing.
    fn is_sharing(&self) -> bool {
        match self.standing {
            Standing::Takes | Standing::Keeps => true,
            Standing::HandsOver | Standing::Lost | Standing::Barred => false,
        }
    }
}

struct Site<'a> {
    nodes: Vec<Node<'a>>,
    bundles: Vec<Bundle<'a>>,
    /// Of each need: which nodes can.
    able: Vec<Vec<bool>>,
    is_held: bool,
}

/// Each check of the site with whoever is to run it.
pub(super) fn share_out_site<'a>(
    situation: &'a Situation,
    site: &'a SiteName,
    checks: &[&'a Wanted],
) -> Vec<(&'a Wanted, Option<PollerName>)> {
    let mut sharing = Site::of(situation, site, checks);
    sharing.keep();
    sharing.place();
    if !sharing.is_held {
        sharing.give_to_new();
        for _ in 0..ROUNDS_MOST {
            let has_moved = sharing.relieve();
            if !sharing.place() && !has_moved {
                break;
            }
        }
    }
    let Site { nodes, bundles, .. } = sharing;
    let named = bundles.into_iter().flat_map(|bundle| {
        let owner = bundle.owner.map(|owner| nodes[owner].name.clone());
        bundle.checks.into_iter().map(move |check| (check, owner.clone()))
    });
    named.collect()
}

fn nodes_of<'a>(situation: &'a Situation, site: &'a SiteName, checks: &[&'a Wanted]) -> Vec<Node<'a>> {
    let mut found: BTreeMap<&PollerName, Option<&Member>> = BTreeMap::new();
    let owners = checks.iter().filter_map(|check| situation.owners.get(&check.name)?.get(site)?.as_ref());
    found.extend(owners.map(|owner| (owner, None)));
    let members = situation.members.iter().filter(|member| member.site == *site);
    found.extend(members.map(|member| (&member.poller, Some(member))));
    let is_known = |name: &PollerName| situation.known.contains(&(site.clone(), name.clone()));
    let node = |(name, member): (&'a PollerName, Option<&'a Member>)| {
        let standing = member.map_or(Standing::Barred, |member| member.standing);
        Node {
            name,
            member,
            hash: hash_parts([name.as_str()]),
            standing,
            is_new: standing == Standing::Takes && !is_known(name),
            has_share: standing == Standing::Takes || standing == Standing::Keeps && is_known(name),
            fair: 0,
            bound: 0,
            load: 0,
            checks: 0,
        }
    };
    found.into_iter().map(node).collect()
}

impl<'a> Site<'a> {
    fn of(situation: &'a Situation, site: &'a SiteName, checks: &[&'a Wanted]) -> Self {
        let nodes = nodes_of(situation, site, checks);
        let is_held = situation.is_held || situation.held_sites.contains(site);
        let mut sharing = Self { nodes, bundles: Vec::new(), able: Vec::new(), is_held };
        sharing.bundle(situation, site, checks);
        sharing.bound();
        sharing
    }

    fn bundle(&mut self, situation: &'a Situation, site: &'a SiteName, checks: &[&'a Wanted]) {
        let mut together: BTreeMap<(&str, &Labels), Vec<&Wanted>> = BTreeMap::new();
        for check in checks {
            together.entry((&check.target, &check.labels)).or_default().push(check);
        }
        let mut needs: HashMap<(Kinds, &Labels), usize> = HashMap::new();
        let place: HashMap<&PollerName, usize> =
            self.nodes.iter().enumerate().map(|(place, node)| (node.name, place)).collect();
        let owner_of = |check: &Wanted| place.get(situation.owners.get(&check.name)?.get(site)?.as_ref()?).copied();
        for ((target, labels), mut checks) in together {
            checks.sort_by(|one, other| one.name.cmp(&other.name));
            let all = checks.iter().fold(Kinds::default(), |all, check| all.and(check.kinds));
            // Where nobody can run all of a target's checks, each kind goes where it can.
            let parts: Vec<(Kinds, Vec<&Wanted>)> = if self.can_anybody(all, labels) {
                vec![(all, checks)]
            } else {
                let mut kinds: BTreeMap<Kinds, Vec<&Wanted>> = BTreeMap::new();
                checks.into_iter().for_each(|check| kinds.entry(check.kinds).or_default().push(check));
                kinds.into_iter().collect()
            };
            for (kinds, checks) in parts {
                let need = *needs.entry((kinds, labels)).or_insert_with(|| {
                    let can = |node: &Node<'_>| node.member.is_some_and(|member| member.is_able(kinds, labels));
                    self.able.push(self.nodes.iter().map(can).collect());
                    self.able.len() - 1
                });
                let texts = labels.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
                let hash = hash_parts([situation.tenant.as_str(), site.as_str(), target].into_iter().chain(texts));
                let load = checks.iter().map(|check| check.load()).sum();
                let owner = main_owner(checks.iter().filter_map(|check| Some((owner_of(check)?, check.load()))));
                self.bundles.push(Bundle { checks, hash, load, need, owner });
            }
        }
    }

    fn can_anybody(&self, kinds: Kinds, labels: &Labels) -> bool {
        let members = self.nodes.iter().filter_map(|node| node.member);
        members.filter(|member| member.standing != Standing::Barred).any(|member| member.is_able(kinds, labels))
    }

    /// What is fair to each, and the most that it gets: a bundle beyond what is fair always finds a place.
    fn bound(&mut self) {
        let is_sharing: Vec<bool> = self.nodes.iter().map(Node::is_sharing).collect();
        let can_run = |bundle: &&Bundle<'_>| self.able[bundle.need].iter().zip(&is_sharing).any(|(a, b)| *a && *b);
        let (mut total, mut largest) = (0_u128, 0);
        for bundle in self.bundles.iter().filter(can_run) {
            total += u128::from(bundle.load);
            largest = largest.max(bundle.load);
        }
        let sharing = self.nodes.iter().filter(|node| node.has_share);
        let weights = sharing.map(|node| u128::from(node.weight())).sum::<u128>().max(1);
        for node in self.nodes.iter_mut().filter(|node| node.has_share) {
            let narrow = |load: u128| u64::try_from(load).unwrap_or(u64::MAX);
            let fair = total * u128::from(node.weight()) / weights;
            node.fair = narrow(fair);
            // Rounded up, so that the fair shares of all hold everything.
            node.bound = narrow(fair * BOUND_PERCENT / 100).max(narrow(fair).saturating_add(largest + 1));
        }
    }

    fn score(&self, bundle: &Bundle<'_>, node: usize) -> f64 {
        score(bundle.hash, self.nodes[node].hash, self.nodes[node].weight())
    }

    fn is_able(&self, bundle: usize, node: usize) -> bool {
        self.able[self.bundles[bundle].need][node]
    }

    fn set_owner(&mut self, bundle: usize, owner: Option<usize>) {
        let (load, checks) = (self.bundles[bundle].load, self.bundles[bundle].checks.len());
        if let Some(before) = self.bundles[bundle].owner {
            self.nodes[before].load -= load;
            self.nodes[before].checks -= checks;
        }
        if let Some(after) = owner {
            self.nodes[after].load += load;
            self.nodes[after].checks += checks;
        }
        self.bundles[bundle].owner = owner;
    }

    /// Takes from owners what they cannot keep. A site of which nobody is there keeps what it has.
    fn keep(&mut self) {
        let is_away = !self.nodes.iter().any(|node| node.standing.is_live());
        for bundle in 0..self.bundles.len() {
            // It was counted for nobody yet.
            let Some(owner) = self.bundles[bundle].owner.take() else { continue };
            let has_room = self.nodes[owner].has_room(self.bundles[bundle].checks.len());
            let stays = self.is_held
                || match self.nodes[owner].standing {
                    Standing::Takes | Standing::Keeps => self.is_able(bundle, owner) && has_room,
                    Standing::HandsOver => self.is_able(bundle, owner),
                    Standing::Lost => is_away,
                    Standing::Barred => false,
                };
            if stays {
                self.set_owner(bundle, Some(owner));
            }
        }
    }

    /// Gives everything that nobody has, or that is to be handed over, to whoever wants it most, within the bound; says
    /// whether anything was given.
    fn place(&mut self) -> bool {
        let mut has_given = false;
        for bundle in 0..self.bundles.len() {
            let is_free = match self.bundles[bundle].owner {
                None => true,
                Some(owner) => !self.is_held && self.nodes[owner].standing == Standing::HandsOver,
            };
            if is_free && let Some(owner) = self.taker(bundle).or_else(|| self.least_loaded(bundle)) {
                has_given = true;
                self.set_owner(bundle, Some(owner));
            }
        }
        has_given
    }

    fn best(&self, bundle: usize, may: impl Fn(&Node<'a>) -> bool) -> Option<usize> {
        let (hash, able) = (self.bundles[bundle].hash, &self.able[self.bundles[bundle].need]);
        let mut best = None;
        for (place, node) in self.nodes.iter().enumerate().filter(|(place, node)| able[*place] && may(node)) {
            let least = best.map_or(0.0, |(score, _)| score);
            best = score_above(least, hash, node.hash, node.weight()).map(|score| (score, place)).or(best);
        }
        best.map(|(_, place)| place)
    }

    /// One who is ready, and has room within the bound.
    fn taker(&self, bundle: usize) -> Option<usize> {
        let (load, checks) = (self.bundles[bundle].load, self.bundles[bundle].checks.len());
        self.best(bundle, |node| {
            node.standing == Standing::Takes && node.load + load <= node.bound && node.has_room(checks)
        })
    }

    /// Where the bound cannot be kept.
    fn least_loaded(&self, bundle: usize) -> Option<usize> {
        let own = &self.bundles[bundle];
        let least = |standing| {
            let may = (0..self.nodes.len()).filter(|node| {
                let is_willing = self.nodes[*node].standing == standing;
                is_willing && self.is_able(bundle, *node) && self.nodes[*node].has_room(own.checks.len())
            });
            let share =
                |node: usize, other: usize| u128::from(self.nodes[node].load) * u128::from(self.nodes[other].weight());
            may.min_by(|one, other| share(*one, *other).cmp(&share(*other, *one)).then(one.cmp(other)))
        };
        least(Standing::Takes).or_else(|| least(Standing::Keeps))
    }

    /// Whoever is new gets what it wants most of all, up to what is fair.
    fn give_to_new(&mut self) {
        if !self.nodes.iter().any(|node| node.is_new) {
            return;
        }
        for bundle in 0..self.bundles.len() {
            let Some(owner) = self.bundles[bundle].owner.filter(|owner| self.nodes[*owner].is_sharing()) else {
                continue;
            };
            if self.nodes[owner].is_new {
                continue;
            }
            let Some(best) = self.best(bundle, Node::is_sharing) else { continue };
            let (load, checks) = (self.bundles[bundle].load, self.bundles[bundle].checks.len());
            let new = &self.nodes[best];
            if new.is_new && new.load + load <= new.fair && new.has_room(checks) {
                self.set_owner(bundle, Some(best));
            }
        }
    }

    /// Takes from whoever has more than the bound what others have room for, what it wants least first.
    fn relieve(&mut self) -> bool {
        let mut has_moved = false;
        for node in 0..self.nodes.len() {
            if !self.nodes[node].is_sharing() || self.nodes[node].load <= self.nodes[node].bound {
                continue;
            }
            let own = (0..self.bundles.len()).filter(|bundle| self.bundles[*bundle].owner == Some(node));
            let mut own: Vec<(f64, usize)> =
                own.map(|bundle| (self.score(&self.bundles[bundle], node), bundle)).collect();
            own.sort_by(|(one, a), (other, b)| one.total_cmp(other).then(a.cmp(b)));
            for (_, bundle) in own {
                if self.nodes[node].load <= self.nodes[node].bound {
                    break;
                }
                if let Some(taker) = self.taker(bundle) {
                    self.set_owner(bundle, Some(taker));
                    has_moved = true;
                }
            }
        }
        has_moved
    }
}

/// Who has most of a bundle.
fn main_owner(owners: impl Iterator<Item = (usize, u64)>) -> Option<usize> {
    let mut loads: BTreeMap<usize, u64> = BTreeMap::new();
    owners.for_each(|(owner, load)| *loads.entry(owner).or_default() += load);
    loads.into_iter().max_by_key(|(owner, load)| (*load, std::cmp::Reverse(*owner))).map(|(owner, _)| owner)
}
