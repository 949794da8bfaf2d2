//! How two JSON bodies differ, field by field: the order of keys, imports and subjects is no difference.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// A field that differs; `None` where one side does not have it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldDifference {
    /// Such as `limits.conn` or `signing_keys[AB…].template.pub.allow[down.>]`.
    pub field: String,
    pub ours: Option<Value>,
    pub theirs: Option<Value>,
}

/// What names an entry of a list, in claims: a signing key by its key, an import by where it lands, an export by its
/// subject. Texts name themselves.
fn entry_name(entry: &Value, index: usize) -> String {
    let by_field = ["key", "local_subject", "subject"].iter().find_map(|&name| entry[name].as_str());
    let name = by_field.or_else(|| entry.as_str());
    name.map_or_else(|| index.to_string(), str::to_owned)
}

fn flatten(path: &str, value: &Value, fields: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, fields);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                let mut path = format!("{path}[{}]", entry_name(entry, index));
                // Two entries of one name are two.
                while fields.keys().any(|known| known.starts_with(&path)) {
                    path.push('\'');
                }
                flatten(&path, entry, fields);
            }
        }
        // Left out and null are the same to every reader of claims.
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            fields.insert(path.to_owned(), value.clone());
        }
    }
}

/// Every field in which `theirs` is not as `ours`.
#[must_use]
pub fn field_differences(ours: &Value, theirs: &Value) -> Vec<FieldDifference> {
    let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
    flatten("", ours, &mut left);
    flatten("", theirs, &mut right);
    let mut differences: Vec<FieldDifference> = left
        .iter()
        .filter(|(field, value)| right.get(*field) != Some(value))
        .map(|(field, value)| FieldDifference {
            field: field.clone(),
            ours: Some(value.clone()),
            theirs: right.get(field).cloned(),
        })
        .collect();
    let added = right.into_iter().filter(|(field, _)| !left.contains_key(field));
    differences.extend(added.map(|(field, value)| FieldDifference { field, ours: None, theirs: Some(value) }));
    differences.sort_by(|a, b| a.field.cmp(&b.field));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(ours: Value, theirs: Value, expected: &[&str]) {
        let found: Vec<String> = field_differences(&ours, &theirs).into_iter().map(|found| found.field).collect();
        assert_eq!(found, expected, "{ours} and {theirs}");
    }

    #[test]
    fn order_is_no_difference_and_every_changed_field_is_named() {
        let keys = |allow: &[&str]| json!([{"key": "A2", "template": {"pub": {"allow": allow}}}, "A1"]);
        check(json!({"signing_keys": keys(&["a", "b"])}), json!({"signing_keys": keys(&["b", "a"])}), &[]);
        check(json!({"k": ["A1", {"key": "A2"}]}), json!({"k": [{"key": "A2"}, "A1"]}), &[]);
        check(json!({"limits": {"conn": 1, "x": null}}), json!({"limits": {"conn": 0}}), &["limits.conn"]);
        check(
            json!({"signing_keys": keys(&["a"])}),
            json!({"signing_keys": keys(&["a", ">"])}),
            &["signing_keys[A2].template.pub.allow[>]"],
        );
        check(
            json!({"imports": [{"subject": "x", "account": "A"}]}),
            json!({}),
            &["imports[x].account", "imports[x].subject"],
        );
        check(json!({"l": ["a", "a"]}), json!({"l": ["a"]}), &["l[a]'"]);
    }

    #[test]
    fn both_values_are_shown() {
        let found = field_differences(&json!({"conn": 5}), &json!({"conn": 7, "new": true}));
        assert_eq!((&found[0].ours, &found[0].theirs), (&Some(json!(5)), &Some(json!(7))));
        assert_eq!((&found[1].ours, &found[1].theirs), (&None, &Some(json!(true))));
    }
}
