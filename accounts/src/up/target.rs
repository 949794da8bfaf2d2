//! What is watched: `--target` as the user writes it, and the things that `up` watches by itself.

use std::fmt;
use std::str::FromStr;

use bulkhead_bus::CheckName;
use serde::{Deserialize, Serialize};

/// A check in a poller's settings file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckSetting {
    pub name: CheckName,
    pub kind: &'static str,
    pub target: String,
    pub interval_s: u32,
    pub timeout_ms: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

/// Something to watch, from a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    Tcp { address: String },
    Http { url: String },
    Icmp { host: String },
    Dns { name: String },
}

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "target {0:?} is not valid: write tcp://host:port, http://host/path, https://host/path, icmp://host or dns://name"
)]
pub struct TargetError(String);

/// Labels of letters, digits, `-` and `_`, an IPv4 address, or an IPv6 address with or without brackets.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let is_name = text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label);
    bare.parse::<std::net::Ipv6Addr>().is_ok() || is_name
}

/// `host:port`; an IPv6 host in brackets.
fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_bracketed = host.starts_with('[') || !host.contains(':');
    is_bracketed && is_host(host) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let wrong = || TargetError(text.chars().take(100).collect());
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let is_clean = !rest.is_empty() && rest.len() <= 500 && rest.chars().all(|c| c.is_ascii_graphic() && c != '"');
        if !is_clean {
            return Err(wrong());
        }
        let host = |rest: &str| is_host(rest).then(|| rest.to_owned()).ok_or_else(wrong);
        match scheme {
            "tcp" => {
                if is_address(rest) {
                    Ok(Self::Tcp { address: rest.to_owned() })
                } else {
                    Err(wrong())
                }
            }
            "http" | "https" => {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let is_good = is_host(authority) || is_address(authority);
                if is_good { Ok(Self::Http { url: text.to_owned() }) } else { Err(wrong()) }
            }
            "icmp" => Ok(Self::Icmp { host: host(rest)? }),
            "dns" => Ok(Self::Dns { name: host(rest)? }),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address } => write!(f, "tcp://{address}"),
            Self::Http { url } => f.write_str(url),
            Self::Icmp { host } => write!(f, "icmp://{host}"),
            Self::Dns { name } => write!(f, "dns://{name}"),
        }
    }
}

const INTERVAL_S: u32 = 5;
const TIMEOUT_MS: u32 = 3_000;

impl Target {
    /// The check that watches this, under `name`.
    #[must_use]
    pub fn check(&self, name: CheckName) -> CheckSetting {
        let (kind, target, record) = match self {
            Self::Tcp { address } => ("tcp", address.clone(), None),
            Self::Http { url } => ("http", url.clone(), None),
            Self::Icmp { host } => ("icmp", host.clone(), None),
            Self::Dns { name } => ("dns", name.clone(), Some("A")),
        };
        CheckSetting { name, kind, target, interval_s: INTERVAL_S, timeout_ms: TIMEOUT_MS, record, server: None }
    }

    /// A check name made of the target, different from all of `taken`.
    fn check_name(&self, taken: &[CheckSetting]) -> CheckName {
        let text = self.to_string().to_ascii_lowercase().replace("://", "-");
        let mut name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        name.truncate(34);
        let name = name.trim_matches('-');
        let numbered = |number: usize| if number == 1 { name.to_owned() } else { format!("{name}-{number}") };
        let mut names = (1_usize..).map(numbered).filter_map(|name| name.parse::<CheckName>().ok());
        names
            .find(|name| !taken.iter().any(|check| check.name == *name))
            .expect("a name made of letters, digits and a number is a name")
    }
}

/// `own` first, then what the user wants watched.
#[must_use]
pub(crate) fn checks(own: Vec<CheckSetting>, targets: &[Target]) -> Vec<CheckSetting> {
    let mut checks = own;
    for target in targets {
        let name = target.check_name(&checks);
        checks.push(target.check(name));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_targets_become_checks_with_distinct_names() {
        let targets: Vec<Target> =
            ["tcp://127.0.0.1:22", "tcp://127.0.0.1:22", "https://example.test/x?y=1", "icmp://::1"]
                .iter()
                .map(|text| text.parse().unwrap())
                .collect();
        let checks = checks(vec![], &targets);
        let names: Vec<&str> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names, ["tcp-127-0-0-1-22", "tcp-127-0-0-1-22-2", "https-example-test-x-y-1", "icmp---1"]);
        assert_eq!((checks[2].kind, checks[2].target.as_str()), ("http", "https://example.test/x?y=1"));
    }

    #[test]
    fn bad_targets_are_named_with_the_rule() {
        let bad = [
            "",
            "127.0.0.1:22",
            "tcp://",
            "tcp://host",
            "tcp://host:0",
            "tcp://host:99999",
            "tcp://:22",
            "ftp://host",
            "http://",
            "http:///x",
            "icmp://a/b",
            "tcp://a b:1",
            "tcp://a\"\nb:1",
            "dns://user@host",
        ];
        for text in bad {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("tcp://host:port"), "{text:?}: {error}");
        }
    }
}
