//! What a user may publish and subscribe, in claims and in templates.

use bulkhead_bus::Permissions;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::limits::UNLIMITED;
use crate::omit::{is_zero, unknown_members};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PermissionSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

impl PermissionSet {
    #[must_use]
    pub fn nothing() -> Self {
        Self { deny: vec![">".to_owned()], ..Self::default() }
    }

    /// An empty list must be a denial: without one the account's default permissions would apply.
    fn only(allow: Vec<String>) -> Self {
        if allow.is_empty() { Self::nothing() } else { Self { allow, ..Self::default() } }
    }
}

/// Leave to answer what was asked, on any reply subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResponsePermission {
    pub max: i64,
    /// In nanoseconds.
    pub ttl: i64,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// Permissions for users that bring none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DefaultPermissions {
    #[serde(rename = "pub")]
    pub publish: PermissionSet,
    #[serde(rename = "sub")]
    pub subscribe: PermissionSet,
    #[serde(rename = "resp", skip_serializing_if = "Option::is_none")]
    pub respond: Option<ResponsePermission>,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// Times of day between which a user may be connected, as `HH:MM:SS`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeRange {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub start: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub end: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// What a scoped key gives to each user that it signs. A limit that is not said is unlimited here, unlike elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PermissionTemplate {
    #[serde(rename = "pub")]
    pub publish: PermissionSet,
    #[serde(rename = "sub")]
    pub subscribe: PermissionSet,
    #[serde(rename = "resp", skip_serializing_if = "Option::is_none")]
    pub respond: Option<ResponsePermission>,
    /// Networks that a user may come from.
    #[serde(deserialize_with = "list_or_text", skip_serializing_if = "Vec::is_empty")]
    pub src: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<TimeRange>,
    /// The time zone of `times`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub times_location: String,
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub bearer_token: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub proxy_required: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_connection_types: Vec<String>,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

impl Default for PermissionTemplate {
    fn default() -> Self {
        Self {
            publish: PermissionSet::default(),
            subscribe: PermissionSet::default(),
            respond: None,
            src: vec![],
            times: vec![],
            times_location: String::new(),
            subs: UNLIMITED,
            data: UNLIMITED,
            payload: UNLIMITED,
            bearer_token: false,
            proxy_required: false,
            allowed_connection_types: vec![],
            unknown: Map::new(),
        }
    }
}

impl PermissionTemplate {
    #[must_use]
    pub fn new(permissions: Permissions, connection_types: &[&str]) -> Self {
        Self {
            publish: PermissionSet::only(permissions.publish),
            subscribe: PermissionSet::only(permissions.subscribe),
            allowed_connection_types: connection_types.iter().map(|&kind| kind.to_owned()).collect(),
            ..Self::default()
        }
    }
}

/// Networks were once one text with commas.
pub(crate) fn list_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::List(list) => list,
        Either::Text(text) => {
            let mut list: Vec<String> = Vec::new();
            for part in text.split(',').map(|part| part.trim().to_lowercase()) {
                if !part.is_empty() && !list.contains(&part) {
                    list.push(part);
                }
            }
            list
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_permissions_become_a_denial() {
        let template = PermissionTemplate::new(Permissions::default(), &[]);
        let json = serde_json::to_value(&template).unwrap();
        assert_eq!(json["pub"], serde_json::json!({"deny": [">"]}));
        assert_eq!(json["sub"], serde_json::json!({"deny": [">"]}));
    }

    #[test]
    fn a_limit_that_a_template_does_not_say_is_unlimited() {
        let template: PermissionTemplate =
            serde_json::from_str(r#"{"payload": 0, "src": "10.0.0.0/8, ::1/128"}"#).unwrap();
        assert_eq!((template.subs, template.data, template.payload), (UNLIMITED, UNLIMITED, 0));
        assert_eq!(template.src, ["10.0.0.0/8", "::1/128"]);
    }
}
