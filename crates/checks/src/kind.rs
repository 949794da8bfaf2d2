//! The types of checks: what each has to say of itself, and the one place that lists them.

use std::time::Duration;

use bulkhead_bus::payload::CheckKind;
use serde_json::Value;

use crate::failure::Failure;
use crate::fields::{Fields, nearest, shown};
use crate::{Detail, Run, dns, http, icmp, tcp};

/// One type of check: the judging of its definitions beside the measuring, so that whoever judges says what whoever measures
/// would.
pub(crate) trait CheckType: Sized {
    /// Reads the target and the options of this type; says everything that is wrong.
    fn read(target: Option<&str>, fields: &mut Fields<'_>) -> Option<Self>;

    /// Measures once, without a limit of its own. What is worth reading goes to `detail` as it is found.
    fn probe(&self, run: &Run<'_>, detail: &mut Detail) -> impl Future<Output = Result<Duration, Failure>> + Send;

    /// Names of the secrets that a run needs.
    fn secrets(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// What is measured, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckSpec {
    Icmp(icmp::IcmpSpec),
    Tcp(tcp::TcpSpec),
    Http(http::HttpSpec),
    Dns(dns::DnsSpec),
}

/// Applies the same to whatever type it is.
macro_rules! each {
    ($value:expr, $spec:ident => $does:expr) => {
        match $value {
            CheckSpec::Icmp($spec) => $does,
            CheckSpec::Tcp($spec) => $does,
            CheckSpec::Http($spec) => $does,
            CheckSpec::Dns($spec) => $does,
        }
    };
}

impl CheckSpec {
    #[must_use]
    pub fn kind(&self) -> CheckKind {
        match self {
            Self::Icmp(_) => CheckKind::Icmp,
            Self::Tcp(_) => CheckKind::Tcp,
            Self::Http(_) => CheckKind::Http,
            Self::Dns(_) => CheckKind::Dns,
        }
    }

    pub(crate) fn read(kind: CheckKind, target: Option<&str>, fields: &mut Fields<'_>) -> Option<Self> {
        match kind {
            CheckKind::Icmp => CheckType::read(target, fields).map(Self::Icmp),
            CheckKind::Tcp => CheckType::read(target, fields).map(Self::Tcp),
            CheckKind::Http => CheckType::read(target, fields).map(Self::Http),
            CheckKind::Dns => CheckType::read(target, fields).map(Self::Dns),
        }
    }

    /// Names of the secrets that a run needs.
    #[must_use]
    pub fn secrets(&self) -> Vec<&str> {
        each!(self, spec => spec.secrets())
    }

    pub(crate) async fn probe(&self, run: &Run<'_>, detail: &mut Detail) -> Result<Duration, Failure> {
        each!(self, spec => spec.probe(run, detail).await)
    }
}

/// The type with this name; what is wrong is said of `field`.
pub(crate) fn read_kind(field: &'static str, fields: &mut Fields<'_>) -> Option<CheckKind> {
    let names = CheckKind::ALL.map(CheckKind::as_str);
    let value = fields.require(field, &format!("write one of {}", names.join(", ")))?;
    let found = value.as_str().and_then(|text| CheckKind::ALL.into_iter().find(|kind| kind.as_str() == text));
    if found.is_none() {
        let near = value.as_str().and_then(|text| nearest(text, &names));
        let near = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        fields.say(field, Some(value), format_args!("is not one of {}{near}", names.join(", ")));
    }
    found
}

/// Text, or the name of a secret that stands for it: `{"secret": "name"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Text {
    Plain(String),
    Secret(String),
}

impl Text {
    /// # Errors
    /// When it is neither; the message names the rule.
    pub(crate) fn read(value: &Value) -> Result<Self, String> {
        let rule = || format!("{} is neither text nor {{\"secret\": \"name\"}}", shown(value));
        match value {
            Value::String(text) => Ok(Self::Plain(text.clone())),
            Value::Object(map) if map.len() == 1 => {
                let name = map.get("secret").and_then(Value::as_str).ok_or_else(rule)?;
                let name: bulkhead_bus::CheckName = name.parse().map_err(|_| {
                    format!("secret {name:?} is not a name: use letters, digits and '-', as for checks")
                })?;
                Ok(Self::Secret(name.to_string()))
            }
            Value::Object(_) | Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) => Err(rule()),
        }
    }

    pub(crate) fn secret(&self) -> Option<&str> {
        match self {
            Self::Plain(_) => None,
            Self::Secret(name) => Some(name),
        }
    }
}
