//! Checks as settings: every one is looked at, and every problem names the check, the value and the rule.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_bus::CheckName;
use bulkhead_runtime::Chain;
use serde::Deserialize;
use serde_json::Value;

use super::dns::{DnsSpec, NameServer};
use super::http::{ExpectedStatus, HttpSpec};
use super::icmp::IcmpSpec;
use super::tcp::TcpSpec;
use super::tls::{Trust, check_trust};
use super::{Check, CheckSpec};
use bulkhead_bus::Grid;

const CHECKS_MOST: usize = 5_000;
const INTERVAL_S: std::ops::RangeInclusive<u64> = 1..=86_400;
const STATUS: std::ops::RangeInclusive<u16> = 100..=599;
const WARN_DAYS_MOST: u16 = 3_650;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlain {
    name: String,
    target: String,
    interval_s: u64,
    timeout_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    name: String,
    target: String,
    interval_s: u64,
    timeout_ms: u64,
    expect_status: Option<Vec<u16>>,
    tls_warn_days: Option<u16>,
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDns {
    name: String,
    target: String,
    interval_s: u64,
    timeout_ms: u64,
    #[serde(default = "default_record")]
    record: String,
    server: Option<String>,
}

fn default_record() -> String {
    "A".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum RawCheck {
    Icmp(RawPlain),
    Tcp(RawPlain),
    Http(RawHttp),
    Dns(RawDns),
}

/// What is wrong with one check.
struct Problems<'a> {
    label: String,
    lines: &'a mut Vec<String>,
}

impl Problems<'_> {
    fn add(&mut self, what: impl Display) {
        self.lines.push(format!("  {}: {what}", self.label));
    }

    fn keep<T, E: Display>(&mut self, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.add(error)).ok()
    }
}

fn parse_http(raw: &RawHttp, problems: &mut Problems<'_>) -> Option<HttpSpec> {
    let url = problems.keep(raw.target.parse());
    let expect_status = match &raw.expect_status {
        None => ExpectedStatus::AnySuccess,
        Some(listed) => {
            let (first, last) = (STATUS.start(), STATUS.end());
            for status in listed.iter().filter(|status| !STATUS.contains(status)) {
                problems.add(format!("expect_status {status} is not an HTTP status: write {first} to {last}"));
            }
            if listed.is_empty() {
                problems.add("expect_status [] allows no answer: list at least one status, or leave it out");
            }
            ExpectedStatus::OneOf(BTreeSet::from_iter(listed.iter().copied()))
        }
    };
    if let Some(days) = raw.tls_warn_days.filter(|days| *days > WARN_DAYS_MOST) {
        problems.add(format!("tls_warn_days {days} is more than {WARN_DAYS_MOST}"));
    }
    let trust = raw.ca_file.clone().map_or(Trust::System, Trust::File);
    if let Err(error) = check_trust(&trust) {
        problems.add(Chain(&error));
    }
    Some(HttpSpec { url: url?, expect_status, tls_warn_days: raw.tls_warn_days, trust })
}

fn parse_dns(raw: &RawDns, problems: &mut Problems<'_>) -> Option<DnsSpec> {
    let record = problems.keep(raw.record.parse());
    let server = raw.server.as_ref().map_or(Ok(NameServer::System), |server| server.parse());
    let server = problems.keep(server);
    problems.keep(DnsSpec::new(&raw.target, record?, server?))
}

fn parse_pace(
    name: Option<CheckName>,
    pace: (u64, u64),
    problems: &mut Problems<'_>,
) -> Option<(CheckName, Grid, Duration)> {
    let (interval_s, timeout_ms) = pace;
    if !INTERVAL_S.contains(&interval_s) {
        let (first, last) = (INTERVAL_S.start(), INTERVAL_S.end());
        problems.add(format!("interval_s {interval_s} is not between {first} and {last}"));
    }
    let interval = Duration::from_secs(interval_s);
    let timeout = Duration::from_millis(timeout_ms);
    if timeout.is_zero() || timeout >= interval {
        problems.add(format!(
            "timeout_ms {timeout_ms} is not above 0 and below the interval of {interval_s} s: a run must end before \
             the next begins"
        ));
    }
    let name = name?;
    let grid = Grid::new(&name, interval);
    Some((name, grid, timeout))
}

fn parse_check(value: &Value, problems: &mut Problems<'_>) -> Option<Check> {
    let raw = RawCheck::deserialize(value).map_err(|error| problems.add(error)).ok()?;
    let (name, pace, spec) = match &raw {
        RawCheck::Icmp(raw) => {
            let spec = problems.keep(raw.target.parse()).map(|target| CheckSpec::Icmp(IcmpSpec { target }));
            (&raw.name, (raw.interval_s, raw.timeout_ms), spec)
        }
        RawCheck::Tcp(raw) => {
            let spec = problems.keep(raw.target.parse()).map(|target| CheckSpec::Tcp(TcpSpec { target }));
            (&raw.name, (raw.interval_s, raw.timeout_ms), spec)
        }
        RawCheck::Http(raw) => {
            let spec = parse_http(raw, problems).map(CheckSpec::Http);
            (&raw.name, (raw.interval_s, raw.timeout_ms), spec)
        }
        RawCheck::Dns(raw) => {
            let spec = parse_dns(raw, problems).map(CheckSpec::Dns);
            (&raw.name, (raw.interval_s, raw.timeout_ms), spec)
        }
    };
    let name = problems.keep(name.parse());
    let (name, grid, timeout) = parse_pace(name, pace, problems)?;
    Some(Check { name, grid, timeout, spec: spec? })
}

/// How messages call the check at `position`, counted from 1.
fn label_of(position: usize, value: &Value) -> String {
    match value.get("name").and_then(Value::as_str) {
        Some(name) => format!("check {:?}", name.chars().take(60).collect::<String>()),
        None => format!("check number {position}"),
    }
}

/// The checks among `values`; what is wrong with the others goes to `lines`.
pub(crate) fn parse_checks(values: &[Value], lines: &mut Vec<String>) -> Vec<Check> {
    if values.len() > CHECKS_MOST {
        lines.push(format!("  checks: {} are more than {CHECKS_MOST}: use another poller for the rest", values.len()));
    }
    let mut names = HashSet::new();
    let mut checks = Vec::new();
    for (position, value) in (1..).zip(values.iter().take(CHECKS_MOST)) {
        let mut problems = Problems { label: label_of(position, value), lines };
        let Some(check) = parse_check(value, &mut problems) else { continue };
        if !names.insert(check.name.clone()) {
            problems.add("the name is used twice: give every check its own");
        }
        checks.push(check);
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems_of(value: Value) -> Vec<String> {
        let mut lines = Vec::new();
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value]);
        parse_checks(&values, &mut lines);
        lines
    }

    fn check(value: Value, expected: &[&str]) {
        let lines = problems_of(value.clone());
        assert_eq!(lines.len(), expected.len(), "{value}: {lines:#?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.contains(expected), "{line:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn every_kind_with_every_setting_is_accepted() {
        let common = |kind: &str, target: &str| json!({"name":kind,"kind":kind,"target":target,"interval_s":10,"timeout_ms":9_999});
        let mut http = common("http", "https://www.example/health");
        http["expect_status"] = json!([200, 204]);
        http["tls_warn_days"] = json!(14);
        let mut dns = common("dns", "_sip._tcp.example");
        dns["record"] = json!("SRV");
        dns["server"] = json!("::1");
        let all = json!([common("icmp", "::1"), common("tcp", "[::1]:22"), http, dns]);
        check(all.clone(), &[]);
        assert_eq!(parse_checks(all.as_array().unwrap(), &mut Vec::new()).len(), 4);
    }

    #[test]
    fn problems_name_the_check_the_value_and_the_rule() {
        let plain = |name: &str, target: &str, interval: i64, timeout: i64| json!({"name":name,"kind":"tcp","target":target,"interval_s":interval,"timeout_ms":timeout});
        check(plain("a.b", "h:1", 10, 1), &["check \"a.b\": check name \"a.b\" is not valid"]);
        check(plain("web", "h", 10, 1), &["check \"web\": target \"h\" is not host:port"]);
        check(plain("web", "h:1", 0, 1), &["interval_s 0 is not between 1 and 86400", "timeout_ms 1 is not above 0"]);
        check(plain("web", "h:1", 86_401, 1), &["interval_s 86401"]);
        check(plain("web", "h:1", 10, 10_000), &["timeout_ms 10000 is not above 0 and below the interval of 10 s"]);
        check(plain("web", "h:1", 10, 0), &["timeout_ms 0"]);
        check(plain("web", "h:1", -1, 1), &["check \"web\": invalid value: integer `-1`"]);
        check(json!([plain("web", "h:1", 10, 1), plain("web", "h:2", 10, 1)]), &["the name is used twice"]);
        check(json!({"name":"x","kind":"snmp"}), &["unknown variant `snmp`"]);
        check(json!({"kind":"tcp"}), &["check number 1: missing field `name`"]);
        check(json!("nonsense"), &["check number 1: "]);
        check(
            json!({"name":"x","kind":"icmp","target":"h","interval_s":9,"timeout_ms":1,"tagret":1}),
            &["unknown field `tagret`"],
        );
    }

    #[test]
    fn problems_of_http_and_dns_are_all_told_at_once() {
        let http = json!({"name":"w","kind":"http","target":"www.example","interval_s":10,"timeout_ms":1,
            "expect_status":[99,200,600],"tls_warn_days":9_999,"ca_file":"no-such.pem"});
        check(
            http,
            &[
                "is not a URL",
                "expect_status 99",
                "expect_status 600",
                "tls_warn_days 9999",
                "read ca_file no-such.pem",
            ],
        );
        check(
            json!({"name":"w","kind":"http","target":"http://a/","interval_s":10,"timeout_ms":1,"expect_status":[]}),
            &["expect_status []"],
        );
        let dns = json!({"name":"d","kind":"dns","target":"a","record":"ANY","server":"ns.example","interval_s":10,"timeout_ms":1});
        check(dns, &["record \"ANY\" is not one of", "server \"ns.example\" is not an address"]);
        let dns = json!({"name":"d","kind":"dns","target":"a..b","interval_s":10,"timeout_ms":1});
        check(dns, &["target \"a..b\" is not a domain name"]);
    }

    #[test]
    fn more_checks_than_allowed_are_refused() {
        let one =
            |n: usize| json!({"name":format!("c{n}"),"kind":"icmp","target":"::1","interval_s":10,"timeout_ms":1});
        check(Value::Array((0..5_000).map(one).collect()), &[]);
        check(Value::Array((0..5_001).map(one).collect()), &["5001 are more than 5000"]);
    }
}
