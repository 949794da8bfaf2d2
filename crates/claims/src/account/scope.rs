//! Signing keys of an account: plain ones sign anything, scoped ones give each user the same rights.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::permission::PermissionTemplate;
use crate::omit::unknown_members;

/// A signing key that can only sign users of one role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub kind: ScopeKind,
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub role: String,
    #[serde(default)]
    pub template: PermissionTemplate,
    #[serde(default)]
    pub description: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

/// There is one kind; another one means rights that we do not understand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScopeKind {
    #[default]
    #[serde(rename = "user_scope")]
    User,
}

/// An entry of `signing_keys`: scoped, or a plain key that may sign anything. We issue scoped ones only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ScopedKey {
    Scoped(Box<Scope>),
    Plain(String),
}

impl ScopedKey {
    #[must_use]
    pub fn new(key: String, role: &str, template: PermissionTemplate) -> Self {
        Self::Scoped(Box::new(Scope {
            kind: ScopeKind::User,
            key,
            role: role.to_owned(),
            template,
            description: String::new(),
            unknown: Map::new(),
        }))
    }

    #[must_use]
    pub fn role(&self) -> Option<&str> {
        self.scope().map(|scope| scope.role.as_str())
    }

    #[must_use]
    pub fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Scoped(scope) => Some(scope),
            Self::Plain(_) => None,
        }
    }

    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Scoped(scope) => &scope.key,
            Self::Plain(key) => key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_scoped_keys_are_told_apart() {
        let keys: Vec<ScopedKey> = serde_json::from_value(serde_json::json!([
            "APLAIN",
            "ASCOPED",
            {"kind": "user_scope", "key": "ASCOPED", "role": "leaf", "new": 1,
             "template": {"pub": {"allow": ["x"]}, "subs": -1, "data": -1, "payload": -1}}
        ]))
        .unwrap();
        assert_eq!(keys.iter().map(ScopedKey::role).collect::<Vec<_>>(), [None, None, Some("leaf")]);
        assert_eq!(serde_json::to_value(&keys).unwrap()[2]["new"], 1);
        let body = crate::AccountBody { signing_keys: keys, ..Default::default() };
        assert_eq!(body.signing_key("ASCOPED").and_then(ScopedKey::role), Some("leaf"));
        let other = serde_json::json!([{"kind": "other_scope", "key": "A", "role": "x", "template": {}}]);
        assert!(serde_json::from_value::<Vec<ScopedKey>>(other).is_err());
    }
}
