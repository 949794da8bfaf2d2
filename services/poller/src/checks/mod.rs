//! Checks: what can be measured and how it ends. `fail` is about the target, `error` about this poller.
//!
//! A new kind is one variant of [`CheckSpec`], one file here and one arm in each match. A check never panics on what a
//! network says, follows nothing it was not asked to, and ends at its timeout.

mod dns;
mod failure;
mod http;
mod icmp;
mod resolve;
mod settings;
mod target;
mod tcp;
mod tls;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bulkhead_bus::CheckName;
use bulkhead_bus::payload::{CheckKind, DETAIL_BYTES_MAX, Measured, Outcome, Reason};
use bulkhead_runtime::now_ms;

pub(crate) use self::failure::Failure;
pub(crate) use self::settings::parse_checks;
use bulkhead_bus::Grid;

/// What is worth reading beside the outcome.
pub(crate) type Detail = BTreeMap<String, serde_json::Value>;

/// What is measured, and where.
#[derive(Debug, Clone)]
pub(crate) enum CheckSpec {
    Icmp(icmp::IcmpSpec),
    Tcp(tcp::TcpSpec),
    Http(http::HttpSpec),
    Dns(dns::DnsSpec),
}

impl CheckSpec {
    #[must_use]
    pub(crate) fn kind(&self) -> CheckKind {
        match self {
            Self::Icmp(_) => CheckKind::Icmp,
            Self::Tcp(_) => CheckKind::Tcp,
            Self::Http(_) => CheckKind::Http,
            Self::Dns(_) => CheckKind::Dns,
        }
    }
}

/// One check of the settings.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    pub(crate) name: CheckName,
    pub(crate) grid: Grid,
    pub(crate) timeout: Duration,
    pub(crate) spec: CheckSpec,
}

/// What all checks share: sockets, resolver, trust.
pub(crate) struct Prober {
    pings: icmp::Pings,
    names: resolve::Names,
    trust: tls::TrustStores,
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
    /// Opens what checks of these kinds share. What cannot be opened is said once and makes its checks end `error`.
    pub(crate) fn open(checks: &[Check]) -> Self {
        let has_icmp = checks.iter().any(|check| matches!(check.spec, CheckSpec::Icmp(_)));
        Self {
            pings: if has_icmp { icmp::Pings::open() } else { icmp::Pings::none() },
            names: resolve::Names::open(),
            trust: tls::TrustStores::open(checks.iter().filter_map(|check| match &check.spec {
                CheckSpec::Http(spec) => spec.trust(),
                CheckSpec::Icmp(_) | CheckSpec::Tcp(_) | CheckSpec::Dns(_) => None,
            })),
        }
    }

    /// Runs `check` once, for the slot that starts at `slot_ms`.
    pub(crate) async fn measure(&self, check: &Check, slot_ms: i64) -> Measured {
        let started_ms = now_ms();
        let mut detail = Detail::new();
        // What was found before the timeout stays in the detail.
        let probed = tokio::time::timeout(check.timeout, self.probe(&check.spec, &mut detail)).await;
        let (outcome, reason, latency) = match probed {
            Ok(Ok(latency)) => (Outcome::Ok, None, Some(latency)),
            Ok(Err(failure)) => (failure.outcome, Some(failure.reason), failure.latency),
            Err(_) => (Outcome::Fail, Some(Reason::Timeout), None),
        };
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

    async fn probe(&self, spec: &CheckSpec, detail: &mut Detail) -> Result<Duration, Failure> {
        match spec {
            CheckSpec::Icmp(spec) => icmp::probe(spec, self, detail).await,
            CheckSpec::Tcp(spec) => tcp::probe(spec, self, detail).await,
            CheckSpec::Http(spec) => http::probe(spec, self, detail).await,
            CheckSpec::Dns(spec) => dns::probe(spec, detail).await,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn check_of(json: &str) -> Check {
        let mut problems = Vec::new();
        let mut checks = parse_checks(&[serde_json::from_str(json).unwrap()], &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        checks.remove(0)
    }

    pub(crate) fn prober() -> Prober {
        Prober { pings: icmp::Pings::none(), names: resolve::Names::open(), trust: tls::TrustStores::open([]) }
    }

    /// Runs a check of these settings once.
    pub(crate) async fn measure(json: &str) -> Measured {
        let check = check_of(json);
        Prober::open(std::slice::from_ref(&check)).measure(&check, 0).await
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
}
