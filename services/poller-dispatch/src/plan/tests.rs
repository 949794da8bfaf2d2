use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

const INTERVALS_S: [u64; 6] = [1, 5, 10, 30, 60, 300];

fn wanted(name: &str, target: &str, sites: &[&str]) -> Wanted {
    Wanted {
        name: name.parse().unwrap(),
        kinds: Kinds::of(CheckKind::Tcp),
        target: target.to_owned(),
        interval_s: 10,
        sites: sites.iter().map(|site| site.parse().unwrap()).collect(),
        labels: Labels::new(),
        vantages: None,
    }
}

fn member(site: &str, poller: &str, standing: Standing) -> Member {
    Member {
        site: site.parse().unwrap(),
        poller: poller.parse().unwrap(),
        weight: 1,
        kinds: CheckKind::ALL.into_iter().collect(),
        labels: Labels::new(),
        checks_most: 0,
        standing,
    }
}

/// After which `placement` is in force, and everybody has been seen.
fn after(situation: &Situation, placement: Placement) -> Situation {
    Situation { known: participants(situation), owners: placement, ..situation.clone() }
}

fn settled(situation: &Situation) -> Situation {
    after(situation, share_out(situation))
}

fn seats(placement: &Placement) -> BTreeMap<(&CheckName, &SiteName), Option<&PollerName>> {
    let each = placement.iter();
    each.flat_map(|(check, sites)| sites.iter().map(move |(site, owner)| ((check, site), owner.as_ref()))).collect()
}

fn owners(placement: &Placement) -> Vec<String> {
    let shown = seats(placement).into_iter().map(|((check, site), owner)| {
        let owner = owner.map_or("nobody", PollerName::as_str);
        format!("{check}@{site}={owner}")
    });
    shown.collect()
}

fn load_of(situation: &Situation, placement: &Placement, poller: &PollerName) -> u64 {
    let own = |check: &&Wanted| placement[&check.name].values().any(|owner| owner.as_ref() == Some(poller));
    situation.checks.iter().filter(own).map(Wanted::load).sum()
}

/// The share of checks, and of load, that has another owner than before.
#[expect(clippy::cast_precision_loss, reason = "a share")]
fn moved(situation: &Situation, before: &Placement, after: &Placement) -> (f64, f64) {
    let (before, after) = (seats(before), seats(after));
    let is_moved = |check: &&Wanted| {
        after.iter().any(|((name, site), owner)| **name == check.name && before.get(&(*name, *site)) != Some(owner))
    };
    let loads = |checks: Vec<&Wanted>| checks.iter().map(|check| check.load()).sum::<u64>() as f64;
    let changed: Vec<&Wanted> = situation.checks.iter().filter(is_moved).collect();
    let count = changed.len() as f64 / situation.checks.len() as f64;
    (count, loads(changed) / loads(situation.checks.iter().collect()))
}

/// Many checks of one site, each of a target of its own, and pollers of different weights.
fn any_site(pollers: std::ops::Range<usize>) -> impl Strategy<Value = Situation> {
    let checks = proptest::collection::vec((0_usize..INTERVALS_S.len(), any::<bool>()), 300..500);
    let weights = proptest::collection::vec(0_u32..2, pollers);
    (checks, weights, any::<u32>()).prop_map(|(checks, weights, salt)| {
        let check = |(place, (interval, is_http)): (usize, (usize, bool))| Wanted {
            interval_s: INTERVALS_S[interval],
            kinds: Kinds::of(if is_http { CheckKind::Http } else { CheckKind::Dns }),
            ..wanted(&format!("c{place}"), &format!("{salt}-{place}"), &["oslo"])
        };
        let members = weights.into_iter().enumerate().map(|(place, weight)| Member {
            weight: 1 << weight,
            ..member("oslo", &format!("p{place}"), Standing::Takes)
        });
        Situation {
            tenant: "acme".to_owned(),
            checks: checks.into_iter().enumerate().map(check).collect(),
            members: members.collect(),
            ..Situation::default()
        }
    })
}

fn weight_share(situation: &Situation, place: usize) -> f64 {
    let all: u32 = situation.members.iter().map(|member| member.weight).sum();
    f64::from(situation.members[place].weight) / f64::from(all)
}

fn assert_bounded(situation: &Situation, placement: &Placement) {
    let total: u64 = situation.checks.iter().map(Wanted::load).sum();
    let largest = situation.checks.iter().map(Wanted::load).max().unwrap();
    let live: Vec<&Member> = situation.members.iter().filter(|member| member.standing == Standing::Takes).collect();
    let weights: u32 = live.iter().map(|member| member.weight).sum();
    for member in live {
        let fair = total * u64::from(member.weight) / u64::from(weights);
        let most = (fair * 110 / 100).max(fair + largest + 1);
        let load = load_of(situation, placement, &member.poller);
        assert!(load <= most, "{} has {load}, and the most is {most}", member.poller);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_bounded_a_fixed_point_and_the_same_in_any_order(situation in any_site(1..9), turn in any::<Index>()) {
        let placement = share_out(&situation);
        assert_bounded(&situation, &placement);
        let again = after(&situation, placement.clone());
        prop_assert_eq!(&share_out(&again), &placement);
        let mut turned = situation.clone();
        turned.checks.rotate_left(turn.index(situation.checks.len()));
        turned.checks.reverse();
        turned.members.reverse();
        prop_assert_eq!(&share_out(&turned), &placement);
    }

    #[test]
    fn whoever_is_lost_gives_its_own_and_nobody_else_anything(situation in any_site(2..9), who in any::<Index>()) {
        let before = settled(&situation);
        let place = who.index(before.members.len());
        let lost = before.members[place].poller.clone();
        for standing in [Standing::Lost, Standing::Barred, Standing::HandsOver] {
            let mut next = before.clone();
            next.members[place].standing = standing;
            let placement = share_out(&next);
            assert_bounded(&next, &placement);
            for (seat, owner) in seats(&placement) {
                let was = seats(&before.owners)[&seat];
                prop_assert!(owner.is_some() && owner != Some(&lost));
                prop_assert!(was == owner || was == Some(&lost), "{seat:?} was {was:?} and is {owner:?}");
            }
            let (checks, load) = moved(&next, &before.owners, &placement);
            let most = weight_share(&situation, place) + 0.1;
            prop_assert!(checks <= most + 0.05 && load <= most + 0.02, "{checks} and {load} of {most}");
            let after = after(&next, placement.clone());
            prop_assert_eq!(share_out(&after), placement);
        }
    }

    #[test]
    fn whoever_comes_takes_no_more_than_its_share(situation in any_site(2..9)) {
        let mut before = situation.clone();
        before.members.pop();
        let before = settled(&before);
        let next = Situation { members: situation.members.clone(), ..before.clone() };
        let placement = share_out(&next);
        assert_bounded(&next, &placement);
        let place = situation.members.len() - 1;
        let (share, (checks, load)) = (weight_share(&situation, place), moved(&next, &before.owners, &placement));
        prop_assert!(checks <= share + 0.1 && load <= share + 0.1, "{checks} and {load} of {share}");
        prop_assert!(load >= share / 3.0, "whoever comes has something to do: {load} of {share}");
        let next = after(&next, placement.clone());
        prop_assert_eq!(share_out(&next), placement);
    }

    #[test]
    fn planning_again_changes_nothing_whatever_members_can(
        situation in any_site(1..7),
        able in proptest::collection::vec((1_u16..16, 0_u32..200, 0_usize..5), 6),
        owners in proptest::collection::vec(any::<Option<Index>>(), 500)
    ) {
        let standings = [Standing::Takes, Standing::Keeps, Standing::HandsOver, Standing::Lost, Standing::Barred];
        let mut odd = situation.clone();
        for (member, (kinds, checks_most, standing)) in odd.members.iter_mut().zip(able) {
            (member.kinds, member.checks_most, member.standing) = (Kinds(kinds), checks_most, standings[standing]);
        }
        let members = odd.members.clone();
        for (check, owner) in odd.checks.iter().zip(owners) {
            let owner = owner.map(|owner| members[owner.index(members.len())].poller.clone());
            odd.owners.insert(check.name.clone(), BTreeMap::from([("oslo".parse().unwrap(), owner)]));
        }
        let next = settled(&odd);
        prop_assert_eq!(&share_out(&next), &next.owners);
        for member in odd.members.iter().filter(|member| member.checks_most > 0 && member.standing == Standing::Takes) {
            let has = seats(&next.owners).into_values().filter(|owner| *owner == Some(&member.poller)).count();
            prop_assert!(has <= usize::try_from(member.checks_most).unwrap());
        }
    }
}

#[test]
fn nobody_capable_is_nobody_and_a_site_that_is_away_keeps_what_it_has() {
    let mut situation =
        Situation { checks: vec![wanted("a", "h", &["oslo"]), wanted("b", "i", &["oslo"])], ..Situation::default() };
    assert_eq!(owners(&share_out(&situation)), ["a@oslo=nobody", "b@oslo=nobody"]);
    situation.members = vec![member("oslo", "p1", Standing::Takes)];
    let mut away = settled(&situation);
    assert_eq!(owners(&away.owners), ["a@oslo=p1", "b@oslo=p1"]);
    away.members[0].standing = Standing::Lost;
    assert_eq!(share_out(&away), away.owners, "a whole site that is away");
    away.members[0].standing = Standing::Barred;
    assert_eq!(owners(&share_out(&away)), ["a@oslo=nobody", "b@oslo=nobody"]);
    away.members[0].standing = Standing::HandsOver;
    assert_eq!(share_out(&away), away.owners, "nobody to take it over");
}

#[test]
fn who_is_held_back_loses_nothing_and_what_is_new_goes_to_who_is_ready() {
    let members = vec![member("oslo", "p1", Standing::Takes), member("oslo", "p2", Standing::Takes)];
    let checks = (0..20).map(|n| wanted(&format!("c{n}"), &format!("h{n}"), &["oslo"])).collect();
    let before = settled(&Situation { checks, members, ..Situation::default() });
    let mut held = before.clone();
    held.members[0].standing = Standing::Lost;
    held.checks.push(wanted("new", "n", &["oslo"]));
    for standing in [Standing::Takes, Standing::HandsOver] {
        held.members[1].standing = standing;
        for (is_held, held_sites) in [(true, vec![]), (false, vec!["oslo"])] {
            held.is_held = is_held;
            held.held_sites = held_sites.into_iter().map(|site| site.parse().unwrap()).collect();
            let placement = share_out(&held);
            let kept: Placement = placement
                .iter()
                .filter(|(name, _)| name.as_str() != "new")
                .map(|(n, s)| (n.clone(), s.clone()))
                .collect();
            assert_eq!(kept, before.owners);
            let new = placement[&"new".parse().unwrap()].values().next().unwrap().as_ref().map(PollerName::as_str);
            assert_eq!(new, (standing == Standing::Takes).then_some("p2"));
        }
    }
    // Control: a view that is believed moves what the lost one had.
    let believed = Situation { is_held: false, held_sites: BTreeSet::new(), ..held };
    assert_ne!(share_out(&believed), before.owners);
    let nobody = Situation { members: vec![], is_held: true, ..before.clone() };
    assert_eq!(share_out(&nobody), before.owners, "nobody knows who is there");
}

#[test]
fn whoever_joins_gets_its_share_once_it_is_ready() {
    let members = vec![member("oslo", "p1", Standing::Takes), member("oslo", "p2", Standing::Keeps)];
    let checks = (0..40).map(|n| wanted(&format!("c{n}"), &format!("h{n}"), &["oslo"])).collect();
    let mut situation = settled(&Situation { checks, members, ..Situation::default() });
    let of_p2 = |placement: &Placement| owners(placement).iter().filter(|owner| owner.ends_with("=p2")).count();
    assert_eq!(of_p2(&situation.owners), 0);
    situation.members[1].standing = Standing::Takes;
    assert!((10..=20).contains(&of_p2(&share_out(&situation))));
    // One that was ready and is degraded gets nothing more, as long as another is ready.
    let mut ready = settled(&situation);
    let had = of_p2(&ready.owners);
    ready.members[1].standing = Standing::Keeps;
    ready.checks.extend((0..40).map(|n| wanted(&format!("d{n}"), &format!("i{n}"), &["oslo"])));
    assert_eq!(of_p2(&share_out(&ready)), had);
    ready.members[0].standing = Standing::Barred;
    assert_eq!(of_p2(&share_out(&ready)), 80, "nobody else can");
}

#[test]
fn all_checks_of_a_target_are_with_one_poller() {
    let members = (0..5).map(|n| member("oslo", &format!("p{n}"), Standing::Takes)).collect();
    let mut checks: Vec<Wanted> =
        (0..40).map(|n| wanted(&format!("c{n}"), &format!("h{}", n / 4), &["oslo"])).collect();
    let situation = settled(&Situation { checks: checks.clone(), members, ..Situation::default() });
    for four in checks.chunks(4) {
        let owners: BTreeSet<_> = four.iter().map(|check| &situation.owners[&check.name]).collect();
        assert_eq!(owners.len(), 1);
    }
    // One that comes later goes where the others are, and nobody but it is new.
    checks.push(wanted("late", "h3", &["oslo"]));
    let next = share_out(&Situation { checks, ..situation.clone() });
    assert_eq!(next[&"late".parse().unwrap()], next[&"c12".parse().unwrap()]);
    assert_eq!(moved(&situation, &situation.owners, &next).0, 0.0);
}

#[test]
fn kinds_of_one_target_go_apart_where_nobody_can_run_all() {
    let only = |name, kind| Member { kinds: Kinds::of(kind), ..member("oslo", name, Standing::Takes) };
    let members = vec![only("p1", CheckKind::Icmp), only("p2", CheckKind::Http)];
    let of = |name, kind| Wanted { kinds: Kinds::of(kind), ..wanted(name, "h", &["oslo"]) };
    let checks = vec![of("ping", CheckKind::Icmp), of("web", CheckKind::Http), of("name", CheckKind::Dns)];
    let placement = share_out(&Situation { checks, members, ..Situation::default() });
    assert_eq!(owners(&placement), ["name@oslo=nobody", "ping@oslo=p1", "web@oslo=p2"]);
    assert!(!CheckKind::ALL.into_iter().collect::<Kinds>().covers(Kinds::named("quic")));
}

#[test]
fn vantages_are_chosen_among_sites_that_can_and_stay_where_they_are() {
    let sites = ["bergen", "lima", "oslo", "rome"];
    let mut members: Vec<Member> = sites.iter().map(|site| member(site, "p1", Standing::Takes)).collect();
    members[0].standing = Standing::Barred;
    let checks: Vec<Wanted> =
        (0..30).map(|n| Wanted { vantages: Some(2), ..wanted(&format!("c{n}"), "h", &sites) }).collect();
    let situation = settled(&Situation { checks, members, ..Situation::default() });
    let mut used = BTreeSet::new();
    for sites in situation.owners.values() {
        assert_eq!(sites.len(), 2);
        assert!(sites.values().all(Option::is_some), "bergen has nobody: {sites:?}");
        used.extend(sites.keys().cloned());
    }
    assert_eq!(used.len(), 3);
    // Neither who comes nor a site that is away takes a vantage from another.
    let mut next = situation.clone();
    next.members[0].standing = Standing::Takes;
    next.members[2].standing = Standing::Lost;
    assert_eq!(share_out(&next), situation.owners);
    // One that has ended for good does.
    next.members[2].standing = Standing::Barred;
    let placement = share_out(&next);
    assert!(placement.values().all(|sites| sites.values().all(Option::is_some)));
    let elsewhere = after(&next, placement.clone());
    assert_eq!(share_out(&elsewhere), placement);
}

#[test]
fn labels_choose_pollers_and_the_sites_that_have_them() {
    let zone = |value: &str| Labels::from([("zone".to_owned(), value.to_owned())]);
    let at = |site, name, value| Member { labels: zone(value), ..member(site, name, Standing::Takes) };
    let members =
        vec![at("lima", "p1", "dmz"), at("oslo", "p1", "inner"), at("oslo", "p2", "dmz"), at("rome", "p1", "x")];
    let by = |name, vantages, value| Wanted { labels: zone(value), vantages, ..wanted(name, "h", &[]) };
    let checks = vec![by("both", Some(7), "dmz"), by("none", None, "moon"), by("one", None, "inner")];
    let placement = share_out(&Situation { checks, members, ..Situation::default() });
    assert_eq!(owners(&placement), ["both@lima=p1", "both@oslo=p2", "one@oslo=p1"]);
}

#[test]
fn capacities_are_powers_of_two() {
    for (capacity, weight) in [(0, 1), (1, 1), (2, 2), (3, 4), (5, 4), (6, 8), (100, 128), (700, 512), (9_999, 1_024)] {
        assert_eq!(quantised(capacity), weight, "{capacity}");
    }
}

#[test]
fn rendezvous_keeps_whom_it_chose_when_another_goes() {
    let names = ["a", "b", "c", "d", "e"];
    let chosen = rendezvous("key", &names, |name| name, 2);
    let without: Vec<&str> = names.into_iter().filter(|name| chosen.contains(&name) || *name == "a").collect();
    assert_eq!(rendezvous("key", &without, |name| name, 2), chosen);
}

#[test]
fn many_checks_on_many_pollers() {
    let members = (0..50).map(|n| member("oslo", &format!("p{n}"), Standing::Takes)).collect();
    let checks = (0..20_000).map(|n| wanted(&format!("c{n}"), &format!("h{n}"), &["oslo"])).collect();
    let situation = Situation { tenant: "acme".to_owned(), checks, members, ..Situation::default() };
    let before = settled(&situation);
    let mut next = before.clone();
    next.members[7].standing = Standing::Lost;
    let placement = share_out(&next);
    let gone = seats(&before.owners).into_values().filter(|owner| owner.is_some_and(|o| o.as_str() == "p7")).count();
    let (before, after) = (seats(&before.owners), seats(&placement));
    assert_eq!(before.iter().filter(|(seat, owner)| after[*seat] != **owner).count(), gone);
}
