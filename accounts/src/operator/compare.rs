//! What differs between two bodies, as people name it: field paths with both values.

use std::collections::BTreeSet;

use serde_json::Value;

/// Elements of these lists are told apart by these fields, not by their place.
const NAMES: [&str; 4] = ["key", "subject", "name", "account"];
const VALUE_LETTERS_MOST: usize = 60;

/// The paths at which `found` differs from `expected`, each with what is there and what should be.
#[must_use]
pub fn compare(expected: &Value, found: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    walk("", expected, found, &mut differences);
    differences
}

fn walk(path: &str, expected: &Value, found: &Value, differences: &mut Vec<String>) {
    match (expected, found) {
        (expected, found) if expected == found => {}
        (Value::Object(ours), Value::Object(theirs)) => {
            let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for name in names {
                let value = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(&path, &value(ours), &value(theirs), differences);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => walk_lists(path, ours, theirs, differences),
        // Go writes what is empty, we leave it out: both say the same.
        (expected, found) if is_nothing(expected) && is_nothing(found) => {}
        (Value::Array(ours), Value::Null) => walk_lists(path, ours, &[], differences),
        (Value::Null, Value::Array(theirs)) => walk_lists(path, &[], theirs, differences),
        (expected, found) if is_nothing(expected) => {
            differences.push(format!("{path} is {}, was not set", short(found)))
        }
        (expected, found) if is_nothing(found) => {
            differences.push(format!("{path} is not set, was {}", short(expected)))
        }
        (expected, found) => differences.push(format!("{path} is {}, was {}", short(found), short(expected))),
    }
}

fn walk_lists(path: &str, ours: &[Value], theirs: &[Value], differences: &mut Vec<String>) {
    for value in theirs {
        match ours.iter().find(|known| name_of(known) == name_of(value)) {
            Some(known) => walk(&format!("{path}[{}]", name_of(value)), known, value, differences),
            None => differences.push(format!("{path}[{}] is new", name_of(value))),
        }
    }
    let gone = ours.iter().filter(|known| !theirs.iter().any(|value| name_of(value) == name_of(known)));
    differences.extend(gone.map(|value| format!("{path}[{}] is gone", name_of(value))));
}

fn name_of(value: &Value) -> String {
    let named = NAMES.iter().find_map(|name| value.get(name)?.as_str());
    named.or_else(|| value.as_str()).map_or_else(|| short(value), str::to_owned)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_nothing),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= VALUE_LETTERS_MOST {
        return text;
    }
    format!("{}…", text.chars().take(VALUE_LETTERS_MOST).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_named_by_path_and_lists_by_what_is_in_them() {
        let check = |expected: Value, found: Value, said: &[&str]| assert_eq!(compare(&expected, &found), said);
        check(json!({"a": 1}), json!({"a": 1}), &[]);
        check(json!({"limits": {"conn": 1}}), json!({"limits": {"conn": 5}}), &["limits.conn is 5, was 1"]);
        check(json!({}), json!({"pub": {"allow": []}, "x": 0}), &[]);
        check(json!({"d": "x"}), json!({}), &["d is not set, was \"x\""]);
        check(
            json!({"signing_keys": ["A1", {"key": "A2", "template": {"subs": 1}}, "A3"]}),
            json!({"signing_keys": [{"key": "A2", "template": {"subs": 2}}, "A1", "A4"]}),
            &["signing_keys[A2].template.subs is 2, was 1", "signing_keys[A4] is new", "signing_keys[A3] is gone"],
        );
        check(json!({}), json!({"exports": [{"subject": "a"}]}), &["exports[a] is new"]);
    }
}
