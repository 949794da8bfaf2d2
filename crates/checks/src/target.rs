//! Where a check goes: a host, an endpoint or a URL, as a type, with the grammar in every message.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

const NAME_RULE: &str = "an IP address, or labels of up to 63 letters, digits, '-' and '_' joined by dots";
const NAME_BYTES_MOST: usize = 253;
const LABEL_BYTES_MOST: usize = 63;

/// Why a text is not a target. Shows at most the first 80 characters, escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("target {0} is not a host: write {NAME_RULE}")]
    Host(String),
    #[error("target {0} is not host:port: write for example 192.0.2.1:22, [2001:db8::1]:22 or www.example:22")]
    Endpoint(String),
    #[error("target {0} is not a URL that can be checked: write http://host[:port]/path or https://host[:port]/path")]
    Url(String),
    /// It is not shown: it may hold a password.
    #[error(
        "target has a user or a password in its URL: leave it out, and name a secret in headers, such as authorization"
    )]
    UserInUrl,
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

/// Whom a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Address(IpAddr),
    /// A domain name that has to be looked up.
    Name(String),
}

fn is_domain_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MOST).contains(&label.len())
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits is a mistyped address, such as 192.0.2.256.
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= NAME_BYTES_MOST && text.split('.').all(is_label) && !is_number(last)
}

impl FromStr for Host {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        if is_domain_name(text) { Ok(Self::Name(text.to_owned())) } else { Err(TargetError::Host(shown(text))) }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

impl FromStr for Endpoint {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let parsed = || {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok().filter(|port| *port != 0)?;
            let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let host = match bracketed {
                Some(inner) => Host::Address(IpAddr::V6(inner.parse().ok()?)),
                None if host.contains(':') => return None,
                None => host.parse().ok()?,
            };
            Some(Self { host, port })
        };
        parsed().ok_or_else(|| TargetError::Endpoint(shown(text)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// A URL as a check asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) scheme: Scheme,
    pub(crate) endpoint: Endpoint,
    /// As the `Host` header says it.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
}

impl FromStr for Url {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        if rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@')) {
            return Err(TargetError::UserInUrl);
        }
        let parsed = || {
            let uri: hyper::Uri = text.parse().ok()?;
            let (scheme, default_port) = match uri.scheme_str()? {
                "http" => (Scheme::Http, 80),
                "https" => (Scheme::Https, 443),
                _ => return None,
            };
            let authority = uri.authority()?.as_str();
            if text.contains('#') {
                return None;
            }
            let has_port = authority.len() > uri.host()?.len();
            let endpoint = if has_port { authority.to_owned() } else { format!("{authority}:{default_port}") };
            Some(Self {
                scheme,
                endpoint: endpoint.parse().ok()?,
                authority: authority.to_owned(),
                path: uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str).to_owned(),
            })
        };
        parsed().ok_or_else(|| TargetError::Url(shown(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_are_addresses_or_domain_names() {
        for good in ["127.0.0.1", "::1", "localhost", "www.example", "www.example.", "_dmarc.a-b.example", "1.example"]
        {
            assert!(good.parse::<Host>().is_ok(), "{good}");
        }
        let long = format!("{}.example", "x".repeat(64));
        for bad in ["", ".", "a..b", "-a", "a-", "a b", "a\r\n", "192.0.2.256", "192.0.2", "é.example", "a/b", &long] {
            assert!(bad.parse::<Host>().is_err(), "{bad:?}");
        }
        assert!(format!("{}a", "a.".repeat(127)).parse::<Host>().is_err());
    }

    #[test]
    fn endpoints_need_a_host_and_a_port() {
        let good = "[::1]:53".parse::<Endpoint>().unwrap();
        assert_eq!((good.host.to_string(), good.port), ("::1".to_owned(), 53));
        assert!("localhost:22".parse::<Endpoint>().is_ok());
        for bad in [
            "",
            "localhost",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "::1:53",
            "[127.0.0.1]:1",
            ":22",
            "tcp://a:1",
        ] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn urls_are_http_without_secrets() {
        let url: Url = "https://www.example/health?a=1".parse().unwrap();
        assert_eq!((url.endpoint.port, url.path.as_str(), url.authority.as_str()), (443, "/health?a=1", "www.example"));
        let url: Url = "http://[::1]:8080".parse().unwrap();
        assert_eq!((url.endpoint.port, url.path.as_str(), url.authority.as_str()), (8080, "/", "[::1]:8080"));
        for bad in [
            "",
            "www.example",
            "/health",
            "ftp://a/",
            "https://",
            "http://u:p@a/",
            "http://a:0/",
            "http://a b/",
            "http://a/#x",
            "http://a\r\nX: y/",
        ] {
            assert!(bad.parse::<Url>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = (text.parse::<Host>(), text.parse::<Endpoint>(), text.parse::<Url>());
        }

        #[test]
        fn endpoints_round_trip(host in "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", port in 1_u16..) {
            let endpoint: Endpoint = format!("{host}:{port}").parse().unwrap();
            prop_assert_eq!(endpoint, Endpoint { host: Host::Name(host), port });
        }
    }
}
