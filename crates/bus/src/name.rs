//! Names of tenants, sites, pollers, checks and users: one literal subject token each.
//!
//! Source: design section 5. The grammar is what keeps a name from becoming a wildcard, a second token, a path or a
//! template: `{{name()}}` is substituted by the server without escaping (facts: accounts-and-nsc, finding 9).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The rule in words, as every error message shows it.
pub(crate) const RULE: &str = "1 to 40 characters of a-z, 0-9 and '-', beginning and ending with a letter or a digit";
const MAX_LENGTH: usize = 40;
/// The forwarder of a site speaks as this name, so no poller may have it.
pub(crate) const FORWARDER: &str = "fwd";
const RESERVED_SLUGS: [&str; 6] = ["core", "sys", "auth", "sent", "ops", "platform"];

/// Why a text is not a name. Shows at most the first 60 characters of the value, escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{what} {value} is not valid: a name has {RULE}")]
    Grammar { what: &'static str, value: String },
    #[error("{what} {value} is reserved for the platform: choose another name")]
    Reserved { what: &'static str, value: String },
}

/// `value` quoted and escaped for a message, cut after 60 characters.
fn shown(value: &str) -> String {
    let head: String = value.chars().take(60).collect();
    let more = if head.len() < value.len() { ".." } else { "" };
    format!("{head:?}{more}")
}

fn check_grammar(what: &'static str, value: &str) -> Result<(), NameError> {
    let bytes = value.as_bytes();
    let is_inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let is_edge = |b: Option<&u8>| b.is_some_and(|b| is_inner(b) && *b != b'-');
    let is_valid =
        bytes.len() <= MAX_LENGTH && bytes.iter().all(is_inner) && is_edge(bytes.first()) && is_edge(bytes.last());
    if is_valid { Ok(()) } else { Err(NameError::Grammar { what, value: shown(value) }) }
}

fn is_reserved_slug(value: &str) -> bool {
    RESERVED_SLUGS.contains(&value) || value == "intake" || value.starts_with("intake-")
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $is_reserved:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(value: &str) -> Result<Self, NameError> {
                check_grammar($what, value)?;
                let is_reserved: fn(&str) -> bool = $is_reserved;
                if is_reserved(value) {
                    return Err(NameError::Reserved { what: $what, value: shown(value) });
                }
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(value: String) -> Result<Self, NameError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// What people call a tenant: `acme-corp`. Never on the wire; there the account key stands for the tenant.
    TenantSlug, "tenant slug", is_reserved_slug
);
name_type!(
    /// A place with one leaf node, unique within its tenant: `oslo`.
    SiteName, "site name", |_| false
);
name_type!(
    /// A poller, unique within its site: `p1`. The forwarder's name is taken.
    PollerName, "poller name", |name| name == FORWARDER
);
name_type!(
    /// A check, unique within its tenant: `dns-resolver`.
    CheckName, "check name", |_| false
);
name_type!(
    /// A person of a tenant or of the platform: `alice`.
    UserName, "user name", |_| false
);

/// Who has a lease at a site: one of its pollers, or its leaf link, for which the forwarder speaks as `fwd`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MemberName {
    Leaf,
    Poller(PollerName),
}

impl MemberName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Leaf => FORWARDER,
            Self::Poller(name) => name.as_str(),
        }
    }

    #[must_use]
    pub fn poller(&self) -> Option<&PollerName> {
        match self {
            Self::Leaf => None,
            Self::Poller(name) => Some(name),
        }
    }
}

impl FromStr for MemberName {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        if value == FORWARDER { Ok(Self::Leaf) } else { value.parse().map(Self::Poller) }
    }
}

impl TryFrom<String> for MemberName {
    type Error = NameError;

    fn try_from(value: String) -> Result<Self, NameError> {
        value.parse()
    }
}

impl From<MemberName> for String {
    fn from(name: MemberName) -> Self {
        name.as_str().to_owned()
    }
}

impl From<PollerName> for MemberName {
    fn from(name: PollerName) -> Self {
        Self::Poller(name)
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(value: &str, is_valid: bool) {
        assert_eq!(value.parse::<SiteName>().is_ok(), is_valid, "{value:?}");
    }

    #[test]
    fn names_are_one_literal_token() {
        for good in ["a", "7", "oslo", "p1", "a-b", "0-0", &"x".repeat(40)] {
            check(good, true);
        }
        let long = "x".repeat(300);
        let bad = [
            "",
            "-",
            "-a",
            "a-",
            "A",
            "a.b",
            "*",
            ">",
            "a b",
            " a",
            "a\r\n",
            "a\n",
            "a\0",
            "_user",
            "$sys",
            "{{name()}}",
            "../x",
            "a/b",
            "é",
            "а",  /* Cyrillic */
            "ａ", /* full width */
            "a\u{200b}",
            "x'--",
            &"x".repeat(41),
            &long,
        ];
        for value in bad {
            check(value, false);
        }
    }

    #[test]
    fn reserved_names_are_refused_where_they_mean_something() {
        for slug in ["core", "sys", "auth", "sent", "ops", "platform", "intake", "intake-1", "intake-x"] {
            assert!(matches!(slug.parse::<TenantSlug>(), Err(NameError::Reserved { .. })), "{slug}");
            assert!(slug.parse::<SiteName>().is_ok(), "{slug} is a fine site");
        }
        assert!("fwd".parse::<PollerName>().is_err());
        assert!("coreplus".parse::<TenantSlug>().is_ok());
    }

    #[test]
    fn error_names_value_and_rule_and_escapes() {
        let error = "a\r\nPUB x".parse::<SiteName>().unwrap_err().to_string();
        assert_eq!(error, format!(r#"site name "a\r\nPUB x" is not valid: a name has {RULE}"#));
        let error = "y".repeat(300).parse::<SiteName>().unwrap_err().to_string();
        assert!(error.len() < 250, "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(text in any::<String>()) {
            if let Ok(name) = text.parse::<CheckName>() {
                prop_assert_eq!(name.as_str(), text.as_str());
                let is_dangerous = text.contains(['.', '*', '>', ' ', '\r', '\n', '{', '/', '\'', '"']);
                prop_assert!(!is_dangerous);
            }
        }

        #[test]
        fn every_name_of_the_grammar_is_accepted(text in "[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?") {
            prop_assert!(text.parse::<CheckName>().is_ok());
        }
    }
}
