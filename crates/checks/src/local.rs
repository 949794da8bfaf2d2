//! Checks of a poller's own settings: every one is looked at, and every problem names the check, the value and the rule.

use std::collections::HashSet;
use std::time::Duration;

use bulkhead_bus::Grid;
use bulkhead_bus::payload::Probe;
use serde_json::Value;

use crate::Check;
use crate::fields::{Fields, Origin};
use crate::kind::{CheckSpec, read_kind};
use crate::pace::read_own_pace;

const CHECKS_MOST: usize = 5_000;

fn read_check(mut fields: Fields<'_>, kind_field: &'static str) -> Result<Check, Vec<String>> {
    let name = fields.require_text("name", "write a name that is unique in the tenant");
    let name = name.and_then(|name| fields.keep(name.parse()));
    let kind = read_kind(kind_field, &mut fields);
    let target = fields.require_text("target", "write what is checked");
    let pace = read_own_pace(&mut fields);
    let spec = kind.and_then(|kind| CheckSpec::read(kind, target, &mut fields));
    let label = fields.label().to_owned();
    fields.finish()?;
    let read = || {
        let (name, pace) = (name?, pace?);
        let grid = Grid::new(&name, Duration::from_secs(pace.interval_s));
        Some(Check { name, grid, timeout: pace.timeout, retries: pace.retries, spec: spec? })
    };
    read().ok_or_else(|| vec![format!("{label}: cannot be read")])
}

/// The checks among `values`; what is wrong with the others goes to `lines`.
pub fn read_settings(values: &[Value], lines: &mut Vec<String>) -> Vec<Check> {
    if values.len() > CHECKS_MOST {
        lines.push(format!("  checks: {} are more than {CHECKS_MOST}: use another poller for the rest", values.len()));
    }
    let mut names = HashSet::new();
    let mut checks: Vec<Check> = Vec::new();
    for (position, value) in (1..).zip(values.iter().take(CHECKS_MOST)) {
        let fields = Fields::read(Origin::Settings, value, Some(position));
        // What is no table is one problem, not one for each field.
        let read =
            if value.is_object() { read_check(fields, "kind") } else { Err(fields.finish().err().unwrap_or_default()) };
        match read {
            Ok(check) if names.insert(check.name.clone()) => checks.push(check),
            Ok(check) => lines
                .push(format!("  check {:?}: the name is used twice: give every check its own", check.name.as_str())),
            Err(problems) => lines.extend(problems.into_iter().map(|problem| format!("  {problem}"))),
        }
    }
    checks
}

impl CheckSpec {
    /// What a poller runs of a probe that was judged elsewhere, perhaps by another release: options that are not known here
    /// are passed over.
    ///
    /// # Errors
    /// When this release cannot run it, with everything that is in the way.
    pub fn of_probe(probe: &Probe) -> Result<Check, Vec<String>> {
        let value = serde_json::to_value(probe).map_err(|error| vec![error.to_string()])?;
        read_check(Fields::read(Origin::Wire, &value, None), "type")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::payload::CheckKind;
    use serde_json::json;

    fn problems_of(value: Value) -> Vec<String> {
        let mut lines = Vec::new();
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value]);
        read_settings(&values, &mut lines);
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
        http["method"] = json!("HEAD");
        http["headers"] = json!({"accept": "text/plain"});
        let mut dns = common("dns", "_sip._tcp.example");
        dns["record"] = json!("SRV");
        dns["server"] = json!("::1");
        let mut retried = common("tcp", "[::1]:22");
        retried["retries"] = json!(2);
        retried["timeout_ms"] = json!(3_333);
        let all = json!([common("icmp", "::1"), retried, http, dns]);
        check(all.clone(), &[]);
        assert_eq!(read_settings(all.as_array().unwrap(), &mut Vec::new()).len(), 4);
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
        check(plain("web", "h:1", -1, 1), &["check \"web\": interval_s -1 is not between", "timeout_ms 1"]);
        check(json!([plain("web", "h:1", 10, 1), plain("web", "h:2", 10, 1)]), &["the name is used twice"]);
        check(
            json!({"name":"x","kind":"snmp"}),
            &["kind \"snmp\" is not one of", "target is missing", "interval_s is missing", "timeout_ms is missing"],
        );
        check(json!({"kind":"tcp","target":"h:1","interval_s":9,"timeout_ms":1}), &["check number 1: name is missing"]);
        check(json!("nonsense"), &["check number 1: "]);
        check(
            json!({"name":"x","kind":"icmp","target":"h","interval_s":9,"timeout_ms":1,"tagret":1}),
            &["tagret 1 is not a known field: did you mean target?"],
        );
    }

    #[test]
    fn problems_of_http_and_dns_are_all_told_at_once() {
        let http = json!({"name":"w","kind":"http","target":"www.example","interval_s":10,"timeout_ms":1,
            "expect_status":[99,200,600],"tls_warn_days":9_999,"ca_file":"no-such.pem","method":"POST",
            "headers":{"connection":"x","a b":"c","x":"a\nb","y":{"secret":"A"},"z":7}});
        check(
            http,
            &[
                "is not a URL",
                "expect_status 99",
                "expect_status 600",
                "tls_warn_days 9999",
                "method \"POST\" is not one of GET, HEAD",
                "headers \"a b\"",
                "headers \"connection\" is set by the check itself",
                "headers \"x\"",
                "headers \"y\" secret \"A\" is not a name",
                "headers \"z\" 7 is neither text nor",
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

    #[test]
    fn a_probe_that_was_judged_elsewhere_is_run_and_one_of_a_type_that_is_not_known_is_not() {
        let probe = |kind: &str, options: Value| {
            serde_json::from_value::<Probe>(
                json!({"name":"x","type":kind,"target":"http://h/","interval_s":10,"timeout_ms":9_000,
                "options":options}),
            )
            .unwrap()
        };
        let check = CheckSpec::of_probe(&probe("http", json!({"method":"HEAD","of_a_later_release":1}))).unwrap();
        assert_eq!((check.spec.kind(), check.timeout), (CheckKind::Http, Duration::from_secs(9)));
        assert_eq!(check.grid, Grid::new(&"x".parse().unwrap(), Duration::from_secs(10)));
        let lines = CheckSpec::of_probe(&probe("quic", json!({}))).unwrap_err();
        assert!(lines[0].contains("type \"quic\" is not one of"), "{lines:?}");
        let lines = CheckSpec::of_probe(&probe("http", json!({"ca_file":"/etc/shadow"}))).err();
        assert_eq!(lines, None, "files of this machine are not named over the bus");
    }
}
