//! What an account gives to others and takes from them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::revocation::Revocations;
use crate::omit::{empty_is_none, is_none_or_zero, is_zero, unknown_members, zero_is_none};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportKind {
    #[default]
    Stream,
    Service,
}

impl ExportKind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Service => "service",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResponseType {
    Singleton,
    Stream,
    Chunked,
}

/// How often a service's latency is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sampling {
    /// When a request's headers ask for it.
    #[default]
    Headers,
    Percent(i64),
}

impl Serialize for Sampling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Headers => serializer.serialize_str("headers"),
            Self::Percent(percent) => serializer.serialize_i64(*percent),
        }
    }
}

impl<'de> Deserialize<'de> for Sampling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Percent(i64),
            Word(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Percent(0) => Ok(Self::Headers),
            Either::Percent(percent) => Ok(Self::Percent(percent)),
            Either::Word(word) if word.eq_ignore_ascii_case("headers") => Ok(Self::Headers),
            Either::Word(word) => {
                let rule = "sampling is \"headers\" or a percentage from 1 to 100";
                Err(serde::de::Error::custom(format!("{word:?} is no sampling: {rule}")))
            }
        }
    }
}

/// Where measurements of a service's latency go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceLatency {
    pub sampling: Sampling,
    pub results: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    #[serde(rename = "type")]
    pub kind: ExportKind,
    /// Importers need an activation token.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub token_req: bool,
    /// Of activation tokens, by the importing account's key.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revocations: Revocations,
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub response_type: Option<ResponseType>,
    /// In nanoseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub response_threshold: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_latency: Option<ServiceLatency>,
    /// Which token must be the importing account's key; the server refuses every other import.
    #[serde(default, deserialize_with = "zero_is_none", skip_serializing_if = "is_none_or_zero")]
    pub account_token_position: Option<u32>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advertise: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub allow_trace: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub info_url: String,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// As the exporter calls it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub account: String,
    /// An activation token of the exporter.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// Deprecated in favour of `local_subject`; only read, never written by us.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub to: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub local_subject: String,
    #[serde(rename = "type")]
    pub kind: ExportKind,
    /// The exporter learns who asked, for its latency measurements.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub share: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub allow_trace: bool,
    #[serde(flatten, deserialize_with = "unknown_members")]
    pub unknown: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_word_is_no_word() {
        let read = |word: &str| {
            let json = serde_json::json!({"type": "service", "response_type": word});
            serde_json::from_value::<Export>(json).map(|export| export.response_type)
        };
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("Chunked").unwrap(), Some(ResponseType::Chunked));
        assert!(read("other").is_err());
    }
}
