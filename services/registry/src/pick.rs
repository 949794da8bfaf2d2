//! Chooses some of those that a query finds. Pure, and the same everywhere: whoever asks the same of the same gets the same.

use std::collections::BTreeMap;

use bulkhead_bus::payload::{MemberQuery, MemberRow, MemberState, Pick};
use sha2::{Digest, Sha256};

/// The label that every member has.
const SITE: &str = "site";

/// Whether a query that is meant for everybody is meant for this one. Who is unknown may be in any state.
#[must_use]
pub fn is_meant(query: &MemberQuery, row: &MemberRow) -> bool {
    let labels = row.info.as_ref().map(|info| &info.labels);
    let capabilities = row.info.as_ref().map(|info| info.capabilities.as_slice()).unwrap_or_default();
    let has_label = |(name, value): (&String, &String)| labels.and_then(|labels| labels.get(name)) == Some(value);
    query.site.as_ref().is_none_or(|site| *site == row.site)
        && query.name.as_ref().is_none_or(|name| *name == row.name)
        && query.labels.iter().all(has_label)
        && query.capabilities.iter().all(|kind| capabilities.iter().any(|capability| capability.kind == *kind))
        && (query.states.is_empty() || row.state == MemberState::Unknown || query.states.contains(&row.state))
}

fn taken(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Of the rows, in the order of their names, those that are picked. A leaf link, which runs nothing, is only among all.
#[must_use]
pub fn pick(mut rows: Vec<MemberRow>, pick: &Pick) -> Vec<MemberRow> {
    rows.retain(|row| *pick == Pick::All || row.name.poller().is_some());
    match pick {
        Pick::All => rows,
        Pick::First(count) => {
            rows.truncate(taken(*count));
            rows
        }
        Pick::Rendezvous { key, count } => {
            rows.sort_by_cached_key(|row| std::cmp::Reverse(score(key, row)));
            rows.truncate(taken(*count));
            rows
        }
        Pick::Spread { label, count } => spread(rows, label, taken(*count)),
    }
}

fn score(key: &str, row: &MemberRow) -> [u8; 32] {
    Sha256::digest(format!("{key}\n{}\n{}/{}", row.tenant, row.site, row.name)).into()
}

/// One of each value of the label in turn, until there are enough; who has no such label is none.
fn spread(rows: Vec<MemberRow>, label: &str, count: usize) -> Vec<MemberRow> {
    let value_of = |row: &MemberRow| match label {
        SITE => Some(row.site.to_string()),
        label => row.info.as_ref().and_then(|info| info.labels.get(label).cloned()),
    };
    let mut groups: BTreeMap<String, Vec<MemberRow>> = BTreeMap::new();
    for row in rows {
        if let Some(value) = value_of(&row) {
            groups.entry(value).or_default().push(row);
        }
    }
    let mut groups: Vec<_> = groups.into_values().map(Vec::into_iter).collect();
    let mut picked = Vec::new();
    while picked.len() < count {
        let before = picked.len();
        picked.extend(groups.iter_mut().filter_map(Iterator::next).take(count - before));
        if picked.len() == before {
            break;
        }
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::{Capability, CheckKind, MemberInfo};

    fn row(place: &str, region: Option<&str>) -> MemberRow {
        let (site, name) = place.split_once('/').unwrap();
        let labels = region.map(|region| ("region".to_owned(), region.to_owned()));
        let info = MemberInfo {
            labels: labels.into_iter().collect(),
            capabilities: vec![Capability { kind: CheckKind::Tcp, version: 1 }],
            ..MemberInfo::default()
        };
        MemberRow {
            tenant: "acme-corp".parse().unwrap(),
            site: site.parse().unwrap(),
            name: name.parse().unwrap(),
            state: MemberState::Ready,
            since_ms: None,
            reasons: vec![],
            because: None,
            boot: None,
            revision: None,
            class: Default::default(),
            renewed_ms: None,
            info: Some(info),
            applied_generation: 0,
            load: Default::default(),
            clock_ahead_ms: 0,
        }
    }

    fn rows() -> Vec<MemberRow> {
        vec![
            row("bergen/p1", Some("west")),
            row("oslo/p1", Some("east")),
            row("oslo/p2", Some("east")),
            row("oslo/p3", Some("east")),
            row("rome/p1", None),
        ]
    }

    fn names(rows: &[MemberRow]) -> Vec<String> {
        rows.iter().map(|row| format!("{}/{}", row.site, row.name)).collect()
    }

    #[test]
    fn picks_are_what_they_say() {
        let check = |how: Pick, expected: &[&str]| assert_eq!(names(&pick(rows(), &how)), expected, "{how:?}");
        check(Pick::All, &["bergen/p1", "oslo/p1", "oslo/p2", "oslo/p3", "rome/p1"]);
        check(Pick::First(2), &["bergen/p1", "oslo/p1"]);
        check(Pick::First(0), &[]);
        let spread = |label: &str, count| Pick::Spread { label: label.to_owned(), count };
        check(spread("site", 3), &["bergen/p1", "oslo/p1", "rome/p1"]);
        check(spread("site", 4), &["bergen/p1", "oslo/p1", "rome/p1", "oslo/p2"]);
        check(spread("region", 9), &["oslo/p1", "bergen/p1", "oslo/p2", "oslo/p3"]);
        check(spread("no-such", 1), &[]);
    }

    #[test]
    fn rendezvous_stays_where_it_is_while_others_come_and_go() {
        let of = |rows: Vec<MemberRow>, key: &str, count| {
            names(&pick(rows, &Pick::Rendezvous { key: key.to_owned(), count }))
        };
        let mut firsts = std::collections::BTreeSet::new();
        for key in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
            let all = of(rows(), key, 5);
            firsts.insert(all[0].clone());
            assert_eq!(of(rows(), key, 2), all[..2]);
            for gone in 1..5 {
                let left = rows().into_iter().filter(|row| names(std::slice::from_ref(row))[0] != all[gone]);
                assert_eq!(of(left.collect(), key, 1), all[..1], "only who loses its place is replaced");
            }
        }
        assert!(firsts.len() > 2, "{firsts:?}");
    }

    #[test]
    fn a_query_excludes_by_what_it_names_and_never_who_is_unknown_by_its_state() {
        let check = |query: MemberQuery, row: &MemberRow, expected: bool| {
            assert_eq!(is_meant(&query, row), expected, "{query:?}");
        };
        let p1 = row("oslo/p1", Some("east"));
        let labels = |value: &str| [("region".to_owned(), value.to_owned())].into();
        check(MemberQuery::default(), &p1, true);
        check(MemberQuery { site: Some("oslo".parse().unwrap()), ..Default::default() }, &p1, true);
        check(MemberQuery { site: Some("rome".parse().unwrap()), ..Default::default() }, &p1, false);
        check(MemberQuery { name: Some("fwd".parse().unwrap()), ..Default::default() }, &p1, false);
        check(MemberQuery { labels: labels("east"), ..Default::default() }, &p1, true);
        check(MemberQuery { labels: labels("west"), ..Default::default() }, &p1, false);
        check(MemberQuery { capabilities: vec![CheckKind::Tcp], ..Default::default() }, &p1, true);
        check(MemberQuery { capabilities: vec![CheckKind::Icmp], ..Default::default() }, &p1, false);
        let ready = MemberQuery { states: vec![MemberState::Ready], ..Default::default() };
        check(ready.clone(), &p1, true);
        check(ready.clone(), &MemberRow { state: MemberState::Lost, ..p1.clone() }, false);
        check(ready, &MemberRow { state: MemberState::Unknown, ..p1 }, true);
    }
}
