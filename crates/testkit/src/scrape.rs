//! Asks health listeners as a monitoring system does, and compares what a page shows with what its documentation says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{Exposition, Family, Kind};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Status and body of `http://127.0.0.1:<port><path>`.
///
/// # Errors
/// When nobody answers in time.
pub async fn get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    let asking = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.context("connect")?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.context("ask")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("read the answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("an answer has a status")?;
        anyhow::Ok((status, body.to_owned()))
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, asking).await;
    answer.context("no answer in time").flatten().with_context(|| format!("http://127.0.0.1:{port}{path}"))
}

/// What a page of documentation says of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Documented {
    kind: String,
    labels: BTreeSet<String>,
    unit: String,
}

/// The cells of each table row that begins with a name in backticks.
fn rows(page: &str) -> impl Iterator<Item = Vec<&str>> {
    page.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
        inner.split('|').map(str::trim).collect()
    })
}

fn words(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The name under which people query a family.
fn queried_name(family: &Family) -> String {
    match family.kind {
        Kind::Counter => format!("{}_total", family.name),
        Kind::Gauge | Kind::Histogram => family.name.clone(),
    }
}

fn label_names(family: &Family) -> BTreeSet<String> {
    let names = family.samples.iter().flat_map(|sample| sample.labels.keys());
    names.filter(|name| *name != "le").cloned().collect()
}

/// Where the tables of `page` and the metrics of `shown` that begin with `prefix` differ, in both directions. A table of
/// metrics has name, type, labels and unit as its first columns; one of labels has the label's name and its values.
#[must_use]
pub fn differences(page: &str, shown: &Exposition, prefix: &str) -> Vec<String> {
    let mut documented = BTreeMap::new();
    let mut label_values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows(page) {
        let name = row[0].trim_matches('`').to_owned();
        match row.as_slice() {
            [_, kind, labels, unit, _, ..] if name.starts_with(prefix) => {
                let entry = Documented { kind: (*kind).to_owned(), labels: words(labels), unit: (*unit).to_owned() };
                documented.insert(name, entry);
            }
            [_, values, _] => drop(label_values.insert(name, words(values))),
            _ => {}
        }
    }
    let mut problems = Vec::new();
    for family in &shown.families {
        let (name, unit) = (queried_name(family), family.unit.clone().unwrap_or_default());
        let found = Documented { kind: family.kind.as_str().to_owned(), labels: label_names(family), unit };
        match documented.remove(&name) {
            None => problems.push(format!("{name} is shown and not documented")),
            Some(said) if said != found => {
                problems.push(format!("{name} is shown as {found:?}, documented as {said:?}"))
            }
            Some(_) => {}
        }
        for (label, value) in
            family.samples.iter().flat_map(|sample| &sample.labels).filter(|(label, _)| *label != "le")
        {
            if !label_values.get(label).is_some_and(|values| values.contains(value)) {
                problems.push(format!("{name} has {label}=\"{value}\", which is in no table of labels"));
            }
        }
    }
    problems.extend(documented.keys().map(|name| format!("{name} is documented and not shown")));
    problems
}

/// The label values that `page` lists and that are on none of the pages shown.
#[must_use]
pub fn unused_label_values(page: &str, shown: &[&Exposition]) -> Vec<String> {
    let samples = || shown.iter().flat_map(|page| &page.families).flat_map(|family| &family.samples);
    let is_used =
        |label: &str, value: &str| samples().any(|sample| sample.labels.get(label).is_some_and(|v| v == value));
    let rows = rows(page).filter(|row| row.len() == 3);
    let listed = rows.flat_map(|row| {
        let label = row[0].trim_matches('`').to_owned();
        words(row[1]).into_iter().map(move |value| (label.clone(), value))
    });
    let unused = listed.filter(|(label, value)| !is_used(label, value));
    unused.map(|(label, value)| format!("{label}=\"{value}\" is documented and nowhere used")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
| Label | Values | What it tells apart |
|---|---|---|
| `lane` | `results`, `backfill` | the two ways |

| Metric | Type | Labels | Unit | Meaning | When it is bad |
|---|---|---|---|---|---|
| `a_things_total` | counter | `lane` | | things done | nothing |
| `a_took_seconds` | gauge | | seconds | how long | wait |
| `b_other` | gauge | | | of another service | |
";
    const SHOWN: &str = "\
# HELP a_things Things.
# TYPE a_things counter
a_things_total{lane=\"results\"} 3
# HELP a_took_seconds Took.
# TYPE a_took_seconds gauge
# UNIT a_took_seconds seconds
a_took_seconds 1
# EOF
";

    fn check(page: &str, shown: &str, expected: &[&str]) {
        let found = differences(page, &Exposition::parse(shown).unwrap(), "a_");
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn a_page_that_says_what_is_shown_has_no_differences() {
        check(PAGE, SHOWN, &[]);
    }

    #[test]
    fn label_values_that_nobody_uses_are_found() {
        let unused = unused_label_values(PAGE, &[&Exposition::parse(SHOWN).unwrap()]);
        assert_eq!(unused, ["lane=\"backfill\" is documented and nowhere used"]);
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        check(&PAGE.replace("`a_things_total`", "`a_thing_total`"), SHOWN, &["not documented", "not shown"]);
        check(&PAGE.replace("| counter |", "| gauge |"), SHOWN, &["documented as"]);
        check(&PAGE.replace("counter | `lane`", "counter | "), SHOWN, &["documented as"]);
        check(&PAGE.replace("| seconds |", "| |"), SHOWN, &["documented as"]);
        check(PAGE, &SHOWN.replace("results", "acme-corp"), &["lane=\"acme-corp\""]);
        check(PAGE, &SHOWN.replace("lane", "tenant"), &["documented as", "tenant=\"results\""]);
        let rest = &SHOWN[..SHOWN.find("# HELP a_took").unwrap()];
        check(PAGE, &format!("{rest}# EOF\n"), &["a_took_seconds is documented and not shown"]);
    }
}
