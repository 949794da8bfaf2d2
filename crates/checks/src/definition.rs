//! Definitions as people write them, judged whole: a definition with every field wrong says so of every field.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bulkhead_bus::SiteName;
use bulkhead_bus::payload::{CheckDefinition, LABEL_BYTES_MOST, LABELS_MOST, Probe};
use serde_json::Value;

use crate::fields::{Fields, Origin, label_of};
use crate::kind::{CheckSpec, read_kind};
use crate::pace::read_pace;

/// Of a target, and of all options of one check as JSON.
const TARGET_BYTES_MOST: usize = 2_048;
const OPTIONS_BYTES_MOST: usize = 8_192;

/// Fields of a definition that are not options of its type.
const COMMON: [&str; 13] = [
    "name",
    "type",
    "target",
    "interval",
    "interval_s",
    "timeout",
    "timeout_ms",
    "retries",
    "site",
    "sites",
    "labels",
    "vantages",
    "paused",
];

/// Reads one definition.
///
/// # Errors
/// Everything that is wrong with it, one line each: the check, the field, the value, the rule and the way out.
pub fn read_definition(value: &Value) -> Result<CheckDefinition, Vec<String>> {
    read_at(value, None)
}

/// Reads definitions whose names differ.
///
/// # Errors
/// Everything that is wrong with any of them, in order.
pub fn read_definitions(values: &[Value]) -> Result<Vec<CheckDefinition>, Vec<String>> {
    let (mut read, mut problems, mut names) = (Vec::new(), Vec::new(), HashSet::new());
    for (position, value) in (1..).zip(values) {
        if let Some(name) = value.get("name").and_then(Value::as_str).filter(|name| !names.insert(*name)) {
            let label = label_of(Some(name), None);
            problems.push(format!("{label}: name {name:?} is used twice: give every check its own"));
        }
        match read_at(value, Some(position)) {
            Ok(definition) => read.push(definition),
            Err(lines) => problems.extend(lines),
        }
    }
    if problems.is_empty() { Ok(read) } else { Err(problems) }
}

fn read_at(value: &Value, position: Option<usize>) -> Result<CheckDefinition, Vec<String>> {
    let mut fields = Fields::read(Origin::Definition, value, position);
    if !value.is_object() {
        return fields.finish().map(|()| unreachable!("a value that is no table is a problem"));
    }
    let name = fields.require_text("name", "write a name that is unique in the tenant");
    let name = name.and_then(|name| fields.keep(name.parse()));
    let kind = read_kind("type", &mut fields);
    let target = fields.require_text("target", "write what is checked");
    let target = target.filter(|target| is_short(target, &mut fields));
    let pace = read_pace(&mut fields);
    let place = read_place(&mut fields);
    let is_paused = read_paused(&mut fields);
    // Without its type nobody knows what its options are.
    let spec = match kind {
        Some(kind) => CheckSpec::read(kind, target, &mut fields),
        None => {
            options_of(value).keys().for_each(|name| fields.pass_over(name));
            None
        }
    };
    let options = options_of(value);
    if serde_json::to_vec(&options).map_or(usize::MAX, |bytes| bytes.len()) > OPTIONS_BYTES_MOST {
        fields.say("options", None, format_args!("take more than {OPTIONS_BYTES_MOST} bytes as JSON: write less"));
    }
    fields.finish()?;
    let read = || {
        let (pace, place) = (pace?, place?);
        spec?;
        let probe = Probe {
            name: name?,
            kind: kind?.as_str().to_owned(),
            target: target?.to_owned(),
            interval_s: pace.interval_s,
            timeout_ms: u64::try_from(pace.timeout.as_millis()).unwrap_or(u64::MAX),
            retries: pace.retries,
            options,
        };
        let Place { sites, labels, vantages } = place;
        Some(CheckDefinition { probe, sites, labels, vantages, paused: is_paused? })
    };
    read().ok_or_else(|| vec![format!("{}: cannot be read", label_of(None, position))])
}

fn is_short(target: &str, fields: &mut Fields<'_>) -> bool {
    let is_short = target.len() <= TARGET_BYTES_MOST;
    if !is_short {
        fields.say(
            "target",
            Some(&target.into()),
            format_args!("is longer than {TARGET_BYTES_MOST} bytes: shorten it"),
        );
    }
    is_short
}

/// The options as written, flat and below `options`.
fn options_of(value: &Value) -> BTreeMap<String, Value> {
    let flat = value.as_object().into_iter().flatten();
    let flat = flat.filter(|(name, _)| !COMMON.contains(&name.as_str()) && name.as_str() != "options");
    let below = value.get("options").and_then(Value::as_object).into_iter().flatten();
    let given = flat.chain(below).filter(|(_, value)| !value.is_null());
    given.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn read_paused(fields: &mut Fields<'_>) -> Option<bool> {
    let Some(value) = fields.take("paused") else { return Some(false) };
    if value.as_bool().is_none() {
        fields.say("paused", Some(value), "is neither true nor false");
    }
    value.as_bool()
}

struct Place {
    sites: Vec<SiteName>,
    labels: BTreeMap<String, String>,
    vantages: Option<u16>,
}

/// Where a check is run.
fn read_place(fields: &mut Fields<'_>) -> Option<Place> {
    let (has_site, has_labels) = (fields.has("site") || fields.has("sites"), fields.has("labels"));
    let (listed, sites) = read_sites(fields);
    let labels = read_labels(fields);
    match (has_site, has_labels) {
        (false, false) => fields.say("sites", None, "are missing: write site, sites, or labels of pollers"),
        (true, true) => fields.say("labels", None, "are given beside sites: leave one of the two out"),
        (true, false) | (false, true) => {}
    }
    let vantages = match fields.take("vantages") {
        None => Some(None),
        Some(value) => {
            let read = value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
            let most = Some(listed).filter(|listed| *listed > 0);
            match (read, most) {
                (None, _) => fields.say("vantages", Some(value), "is not a whole number of at least 1"),
                (Some(number), Some(most)) if usize::from(number) > most => {
                    let rule =
                        format!("is more than the {most} sites that are listed: list more, or write at most {most}");
                    fields.say("vantages", Some(value), rule);
                }
                (Some(_), _) => {}
            }
            read.map(Some)
        }
    };
    Some(Place { sites: sites?, labels: labels?, vantages: vantages? })
}

/// How many are listed, and they, unless something is wrong with one.
fn read_sites(fields: &mut Fields<'_>) -> (usize, Option<Vec<SiteName>>) {
    let (one, several) = (fields.take("site"), fields.take("sites"));
    let listed: Vec<&Value> = match (one, several) {
        (None, None) => return (0, Some(Vec::new())),
        (Some(_), Some(several)) => {
            fields.say("sites", Some(several), "is given beside site: leave one out");
            return (0, None);
        }
        (Some(one), None) => vec![one],
        (None, Some(Value::Array(several))) if !several.is_empty() => several.iter().collect(),
        (None, Some(other)) => {
            fields.say("sites", Some(other), "is not a list of sites: write for example [\"oslo\", \"bergen\"]");
            return (0, None);
        }
    };
    let mut seen = BTreeSet::new();
    let count = listed.len();
    let mut sites = Vec::with_capacity(count);
    for value in listed {
        let Some(text) = value.as_str() else {
            fields.say("sites", Some(value), "is not the name of a site");
            continue;
        };
        let Some(site) = fields.keep(text.parse::<SiteName>()) else { continue };
        if seen.insert(text) {
            sites.push(site);
        } else {
            fields.say("sites", Some(value), "is listed twice: list each site once");
        }
    }
    (seen.len(), (sites.len() == count).then_some(sites))
}

fn read_labels(fields: &mut Fields<'_>) -> Option<BTreeMap<String, String>> {
    let value = match fields.take("labels") {
        None => return Some(BTreeMap::new()),
        Some(value) => value,
    };
    let Some(map) = value.as_object().filter(|map| (1..=LABELS_MOST).contains(&map.len())) else {
        let rule = format!("is not a table of 1 to {LABELS_MOST} labels: write for example {{\"zone\": \"dmz\"}}");
        fields.say("labels", Some(value), rule);
        return None;
    };
    let is_good = |text: &str| (1..=LABEL_BYTES_MOST).contains(&text.len()) && !text.chars().any(char::is_control);
    for (name, value) in map {
        if !is_good(name) || !value.as_str().is_some_and(is_good) {
            let rule = format!("is not one line of 1 to {LABEL_BYTES_MOST} bytes of text, or its name is not");
            fields.say(&format!("labels.{}", name.chars().take(60).collect::<String>()), Some(value), rule);
        }
    }
    let labels = map.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    Some(labels.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn base() -> Value {
        json!({"name": "web", "type": "http", "target": "https://h/", "interval": "30s", "site": "oslo"})
    }

    fn with(more: Value) -> Value {
        let mut value = base();
        for (name, field) in more.as_object().unwrap() {
            value[name] = field.clone();
        }
        value
    }

    fn check(value: Value, expected: &[&str]) {
        let lines = read_definition(&value).err().unwrap_or_default();
        assert_eq!(lines.len(), expected.len(), "{value}: {lines:#?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.contains(expected), "{line:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn people_write_units_and_leave_out_what_is_usual() {
        let read = read_definition(&base()).unwrap();
        assert_eq!((read.probe.interval_s, read.probe.timeout_ms, read.probe.retries), (30, 5_000, 0));
        assert_eq!(read.sites, ["oslo".parse().unwrap()]);
        let read = read_definition(&with(json!({"interval": 5}))).unwrap();
        assert_eq!((read.probe.interval_s, read.probe.timeout_ms), (5, 4_000), "the default leaves room");
        for (timeout, expected) in [(json!("3s"), 3_000), (json!("250ms"), 250), (json!(1_500), 1_500)] {
            let read = read_definition(&with(json!({"interval": "5m", "timeout": timeout}))).unwrap();
            assert_eq!((read.probe.interval_s, read.probe.timeout_ms), (300, expected));
        }
        let read = read_definition(&json!({"name": "d", "type": "dns", "target": "h.example", "interval_s": 60, "timeout_ms": 900,
            "retries": 2, "labels": {"zone": "dmz"}, "vantages": 3, "paused": true, "record": "MX", "options": {"server": "::1"}}))
        .unwrap();
        assert_eq!(read.probe.options["record"], "MX");
        assert_eq!(read.probe.options["server"], "::1");
        assert!(read.paused && read.vantages == Some(3) && read.labels["zone"] == "dmz");
        assert!(
            read_definition(&with(json!({"vantages": null, "expect_status": null}))).unwrap().probe.options.is_empty()
        );
    }

    #[test]
    fn what_was_read_reads_back_as_itself() {
        let read =
            read_definition(&with(json!({"expect_status": [200], "retries": 1, "sites": ["a", "b"], "site": null})))
                .unwrap();
        assert_eq!(read_definition(&serde_json::to_value(&read).unwrap()).unwrap(), read);
    }

    #[test]
    fn every_field_that_is_wrong_is_named_at_once() {
        let value = json!({"name": "Web!", "type": "htp", "target": 7, "interval": "soon", "timeout": 3, "retries": 9,
            "sites": ["Oslo", "a", "a"], "vantages": 0, "paused": "yes", "labels": {}, "colour": "red"});
        check(
            value,
            &[
                "check \"Web!\": check name \"Web!\" is not valid",
                "type \"htp\" is not one of icmp, tcp, http, dns (did you mean http?)",
                "target 7 is not text",
                "interval \"soon\" is not 1 to 86400 whole seconds: write a number, or text such as \"30s\"",
                "timeout 3 is not a time: a plain number is milliseconds, at least 100; write \"3s\" for seconds",
                "retries 9 is not a whole number from 0 to 5",
                "site name \"Oslo\" is not valid",
                "sites \"a\" is listed twice",
                "labels {} is not a table of 1 to 32 labels",
                "labels are given beside sites",
                "vantages 0 is not a whole number of at least 1",
                "paused \"yes\" is neither true nor false",
            ],
        );
        check(json!([]), &["check without a name: check [] is not a table"]);
        check(
            json!({}),
            &["name is missing", "type is missing", "target is missing", "interval is missing", "sites are missing"],
        );
    }

    #[test]
    fn fields_that_nobody_knows_are_named_with_the_nearest_that_is_known() {
        check(with(json!({"intervall": 3})), &["intervall 3 is not a known field: did you mean interval?"]);
        check(with(json!({"options": {"expect_statsu": [1]}})), &["did you mean expect_status?"]);
        check(with(json!({"record": "A"})), &["record \"A\" is not a known field"]);
        check(with(json!({"ca_file": "/etc/passwd"})), &["ca_file \"/etc/passwd\" is not a known field"]);
        check(with(json!({"qqq": 1})), &["leave it out, or use one of name, type,"]);
        check(with(json!({"expect_status": [200], "options": {"expect_status": [201]}})), &["expect_status"]);
    }

    #[test]
    fn a_run_with_its_retries_ends_before_the_next() {
        check(
            with(json!({"timeout": "25s"})),
            &["timeout \"25s\" is more than 80 % of the interval of 30s: write at most 24s"],
        );
        check(with(json!({"timeout": "24s"})), &[]);
        check(
            with(json!({"timeout": "10s", "retries": 2})),
            &["retries 2 of 10s each take as long as the interval of 30s"],
        );
        check(with(json!({"timeout": "9s", "retries": 2})), &[]);
        check(with(json!({"timeout_ms": 1_000, "timeout": "1s"})), &["timeout_ms 1000 is given beside timeout"]);
        check(with(json!({"interval_s": 1})), &["interval_s 1 is given beside interval"]);
    }

    #[test]
    fn no_more_vantages_than_sites() {
        check(with(json!({"vantages": 2})), &["vantages 2 is more than the 1 sites"]);
        check(with(json!({"site": null, "labels": {"zone": "a"}, "vantages": 7})), &[]);
        check(with(json!({"sites": ["a"]})), &["sites [\"a\"] is given beside site"]);
        check(with(json!({"sites": [], "site": null})), &["sites [] is not a list of sites"]);
    }

    #[test]
    fn names_are_used_once_in_a_list() {
        let lines = read_definitions(&[base(), json!({"type": "tcp"}), base()]).unwrap_err();
        assert!(lines[0].starts_with("check number 2: name is missing"), "{lines:#?}");
        assert!(lines.last().unwrap().contains("name \"web\" is used twice"), "{lines:#?}");
        assert_eq!(read_definitions(&[base()]).unwrap().len(), 1);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(
                    prop_oneof![Just("secret".to_owned()), Just("expect_status".to_owned()), any::<String>()],
                    inner,
                    0..4
                )
                .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused_with_a_reason(field in 0_usize..19, value in any_json()) {
            let names = ["name", "type", "target", "interval", "interval_s", "timeout", "timeout_ms", "retries", "site", "sites",
                "labels", "vantages", "paused", "options", "expect_status", "headers", "method", "tls_warn_days", "other"];
            let mut definition = base();
            definition[names[field]] = value;
            match read_definition(&definition) {
                Ok(read) => prop_assert_eq!(read_definition(&serde_json::to_value(&read).unwrap()), Ok(read)),
                Err(lines) => prop_assert!(!lines.is_empty()),
            }
        }
    }
}
