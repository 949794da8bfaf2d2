//! Checks: what can be measured, how a definition of it is judged, and how it ends. `fail` is about the target, `error` about
//! the poller.
//!
//! A new type is one file with its `kind::CheckType`, and one variant of [`CheckSpec`]; the compiler names the arms. A check
//! never panics on what a network says, follows nothing it was not asked to, asks nobody whom the site's rules deny, and ends
//! at its timeout. Nothing here knows tenants, buses or files but those that a poller's own settings name.

mod definition;
mod dns;
mod failure;
mod fields;
mod http;
mod icmp;
mod kind;
mod local;
mod pace;
mod resolve;
mod rules;
mod target;
mod tcp;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use bulkhead_bus::payload::{CheckKind, DETAIL_BYTES_MAX, Measured, Outcome, Reason};
use bulkhead_bus::{CheckName, Grid};
use bulkhead_runtime::now_ms;
use zeroize::Zeroizing;

pub use self::definition::{read_definition, read_definitions};
pub use self::kind::CheckSpec;
pub use self::local::read_settings;
pub use self::rules::Rules;

use self::failure::Failure;

/// What is worth reading beside the outcome.
pub type Detail = BTreeMap<String, serde_json::Value>;

/// Secrets of one run, by name, in clear. They go with it.
pub type Secrets = HashMap<String, Zeroizing<String>>;

/// Of what each type understands; grows when options are added.
pub const CAPABILITY_VERSION: u16 = 1;

/// One check as it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: CheckName,
    pub grid: Grid,
    /// Of one attempt.
    pub timeout: Duration,
    /// How often a run that failed is tried again within its slot.
    pub retries: u8,
    pub spec: CheckSpec,
}

/// What all checks share: sockets, resolver, trust, and the site's rules.
pub struct Prober {
    pings: icmp::Pings,
    names: resolve::Names,
    trust: tls::TrustStores,
    rules: RwLock<Arc<Rules>>,
}

/// What one run has at hand.
pub(crate) struct Run<'a> {
    prober: &'a Prober,
    secrets: &'a Secrets,
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn note_phase(detail: &mut Detail, phase: &str, began: Instant) {
    detail.insert(phase.to_owned(), micros(began.elapsed()).into());
}

/// `detail`, unless it is larger than may travel.
fn bounded(detail: Detail) -> Detail {
    let size = serde_json::to_vec(&detail).map_or(usize::MAX, |bytes| bytes.len());
    if size <= DETAIL_BYTES_MAX { detail } else { Detail::from([("detail_bytes_dropped".to_owned(), size.into())]) }
}

impl Prober {
    /// Sockets and trust are opened when the first check needs them. What cannot be opened is said once and makes its checks
    /// end `error`.
    #[must_use]
    pub fn open(rules: Rules) -> Self {
        let rules = RwLock::new(Arc::new(rules));
        Self { pings: icmp::Pings::new(), names: resolve::Names::open(), trust: tls::TrustStores::default(), rules }
    }

    /// From the next address on that is asked, these rules hold; files with roots are read anew.
    pub fn reread(&self, rules: Rules) {
        *self.rules.write().expect("no holder panics") = Arc::new(rules);
        self.trust.forget();
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().expect("no holder panics"))
    }

    /// Whether this machine lets checks of a type run at all. Opens what they need.
    #[must_use]
    pub fn is_able(&self, kind: CheckKind) -> bool {
        match kind {
            CheckKind::Icmp => self.pings.is_able(),
            CheckKind::Tcp | CheckKind::Http | CheckKind::Dns => true,
        }
    }

    /// Runs `check` for the slot that starts at `slot_ms`: once, and again as often as it may while it fails.
    pub async fn measure(&self, check: &Check, slot_ms: i64, secrets: &Secrets) -> Measured {
        let run = Run { prober: self, secrets };
        let started_ms = now_ms();
        let mut attempts = 0_u32;
        let (outcome, reason, latency, mut detail) = loop {
            attempts += 1;
            let ended = attempt(check, &run).await;
            if ended.0 != Outcome::Fail || attempts > u32::from(check.retries) {
                break ended;
            }
        };
        if attempts > 1 {
            detail.insert("attempts".to_owned(), attempts.into());
        }
        Measured {
            check: check.name.clone(),
            kind: check.spec.kind(),
            slot_ms,
            started_ms,
            outcome,
            reason,
            latency_us: latency.map(micros),
            generation: 0,
            island: false,
            detail: bounded(detail),
        }
    }
}

async fn attempt(check: &Check, run: &Run<'_>) -> (Outcome, Option<Reason>, Option<Duration>, Detail) {
    let mut detail = Detail::new();
    // What was found before the timeout stays in the detail.
    let probed = tokio::time::timeout(check.timeout, check.spec.probe(run, &mut detail)).await;
    let (outcome, reason, latency) = match probed {
        Ok(Ok(latency)) => (Outcome::Ok, None, Some(latency)),
        Ok(Err(failure)) => (failure.outcome, Some(failure.reason), failure.latency),
        Err(_) => (Outcome::Fail, Some(Reason::Timeout), None),
    };
    (outcome, reason, latency, detail)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tokio::net::TcpListener;

    pub(crate) fn check_of(json: &str) -> Check {
        let mut problems = Vec::new();
        let mut checks = read_settings(&[serde_json::from_str(json).unwrap()], &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        checks.remove(0)
    }

    /// Runs a check of these settings once.
    pub(crate) async fn measure(json: &str) -> Measured {
        Prober::open(Rules::default()).measure(&check_of(json), 0, &Secrets::new()).await
    }

    #[test]
    fn a_detail_that_is_too_large_is_replaced_by_its_size() {
        let small = Detail::from([("a".to_owned(), 1.into())]);
        assert_eq!(bounded(small.clone()), small);
        let large = Detail::from([("a".to_owned(), "x".repeat(DETAIL_BYTES_MAX).into())]);
        assert_eq!(bounded(large)["detail_bytes_dropped"], DETAIL_BYTES_MAX + 8);
    }

    #[test]
    fn long_latencies_saturate() {
        assert_eq!(micros(Duration::from_micros(7)), 7);
        assert_eq!(micros(Duration::from_secs(86_400)), u32::MAX);
    }

    #[tokio::test]
    async fn what_failed_is_tried_again_as_often_as_it_may() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let tcp = |retries: u8| {
            format!(
                r#"{{"name":"t","kind":"tcp","target":"{target}","interval_s":10,"timeout_ms":900,"retries":{retries}}}"#
            )
        };
        assert_eq!(measure(&tcp(3)).await.detail.get("attempts"), None, "a run that is well is not repeated");
        drop(listener);
        let failed = measure(&tcp(3)).await;
        assert_eq!((failed.outcome, failed.reason), (Outcome::Fail, Some(Reason::Refused)));
        assert_eq!(failed.detail["attempts"], 4);
        assert_eq!(measure(&tcp(0)).await.detail.get("attempts"), None);
    }

    #[tokio::test]
    async fn a_denied_target_is_asked_by_no_type_of_check() {
        for (kind, target, more) in [
            ("icmp", "169.254.169.254", ""),
            ("tcp", "169.254.169.254:80", ""),
            ("tcp", "[::ffff:169.254.169.254]:80", ""),
            ("http", "http://169.254.169.254/latest/meta-data/", ""),
            ("http", "https://[fd00:ec2::254]/", ""),
            ("dns", "www.example", r#","server":"169.254.169.253""#),
        ] {
            let json = format!(
                r#"{{"name":"d","kind":"{kind}","target":"{target}","interval_s":10,"timeout_ms":900,"retries":1{more}}}"#
            );
            let result = measure(&json).await;
            let expected = (Outcome::Error, Some(Reason::NotPermitted));
            assert_eq!((result.outcome, result.reason), expected, "{kind} {target}: {:?}", result.detail);
            assert!(result.detail["denied"].as_str().unwrap().contains("254") || kind == "dns");
        }
        // The same name without the rule is asked: it is the rule that denies.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let json = format!(
            r#"{{"name":"d","kind":"tcp","target":"localhost:{}","interval_s":10,"timeout_ms":900}}"#,
            listener.local_addr().unwrap().port()
        );
        assert_eq!(measure(&json).await.outcome, Outcome::Ok);
        let own = Prober::open(Rules::denying(vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]));
        let denied = own.measure(&check_of(&json), 0, &Secrets::new()).await;
        assert_eq!((denied.outcome, denied.reason), (Outcome::Error, Some(Reason::NotPermitted)));
        assert!(denied.detail.contains_key("denied"));
    }
}
