//! What a poller measured. Durable in a [`ResultBatch`], for display in [`LiveResults`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::guard::{Claim, Claimed};
use crate::{CheckName, PollerName, SiteName};

pub const BATCH_VERSION: u16 = 1;
/// A batch with more is refused whole.
pub const RESULTS_PER_BATCH_MAX: usize = 1_000;
/// Of one result's `detail`, as JSON.
pub const DETAIL_BYTES_MAX: usize = 2_048;

/// What kind of check measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    Icmp,
    Tcp,
    Http,
    Dns,
}

impl CheckKind {
    pub const ALL: [Self; 4] = [Self::Icmp, Self::Tcp, Self::Http, Self::Dns];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Dns => "dns",
        }
    }
}

/// How a slot of a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The target answered as it should.
    Ok,
    /// The target did not.
    Fail,
    /// The poller could not measure: this says nothing about the target.
    Error,
    /// The slot passed without a measurement.
    Missed,
}

impl Outcome {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Error => "error",
            Self::Missed => "missed",
        }
    }
}

/// Why a slot did not end `ok`. A closed set: it is a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Timeout,
    Refused,
    Unreachable,
    NameNotFound,
    NameServerFailed,
    TlsFailed,
    CertificateInvalid,
    CertificateExpiring,
    BadAnswer,
    BadStatus,
    Closed,
    NotPermitted,
    Overrun,
    /// Whoever had it was lost, and nobody else could know.
    OwnerLost,
    /// The check needs a secret that this poller has not been given.
    SecretMissing,
    Internal,
}

impl Reason {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NameNotFound => "name_not_found",
            Self::NameServerFailed => "name_server_failed",
            Self::TlsFailed => "tls_failed",
            Self::CertificateInvalid => "certificate_invalid",
            Self::CertificateExpiring => "certificate_expiring",
            Self::BadAnswer => "bad_answer",
            Self::BadStatus => "bad_status",
            Self::Closed => "closed",
            Self::NotPermitted => "not_permitted",
            Self::Overrun => "overrun",
            Self::OwnerLost => "owner_lost",
            Self::SecretMissing => "secret_missing",
            Self::Internal => "internal",
        }
    }
}

/// One slot of one check, as measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub check: CheckName,
    pub kind: CheckKind,
    /// The start of the slot on the check's grid, unix milliseconds.
    pub slot_ms: i64,
    /// When the measurement began, by the poller's clock, unix milliseconds.
    pub started_ms: i64,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Microseconds; absent where nothing answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u32>,
    /// The assignment generation under which the poller ran the check; 0 for checks of its own settings.
    #[serde(default)]
    pub generation: i64,
    /// Measured without a valid lease: only fills an empty slot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub island: bool,
    /// What is worth reading beside the outcome, such as `http_status` or `tls_not_after_ms`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, Value>,
}

/// Results of one poller, signed as these bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultBatch {
    pub version: u16,
    /// The tenant that the sender believes to be; a mismatch with the subject is a violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    pub site: SiteName,
    pub poller: PollerName,
    pub results: Vec<Measured>,
}

impl Claim for ResultBatch {
    fn claimed(&self) -> Claimed<'_> {
        Claimed { tenant: self.tenant.as_deref(), site: Some(&self.site), poller: Some(&self.poller) }
    }
}

/// The newest results of one poller, for display.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveResults {
    pub version: u16,
    pub results: Vec<Measured>,
}

impl Claim for LiveResults {
    fn claimed(&self) -> Claimed<'_> {
        Claimed::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn readers_ignore_unknown_fields_and_default_the_optional() {
        let text = r#"{"version":1,"site":"oslo","poller":"p1","new":1,"results":[
            {"check":"web","kind":"http","slot_ms":1,"started_ms":2,"outcome":"ok","also":"new"}]}"#;
        let batch: ResultBatch = serde_json::from_str(text).unwrap();
        assert_eq!(batch.results[0].generation, 0);
        assert!(!batch.results[0].island);
    }

    #[test]
    fn a_bad_name_inside_a_batch_refuses_the_batch() {
        for bad in ["a.b", "*", ">", "a b", "fwd"] {
            let text = format!(r#"{{"version":1,"site":"oslo","poller":"{bad}","results":[]}}"#);
            assert!(serde_json::from_str::<ResultBatch>(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_in_tables_are_the_names_on_the_wire() {
        let wire = |value: Value| value.as_str().map(str::to_owned).unwrap();
        for reason in [
            Reason::Timeout,
            Reason::NameNotFound,
            Reason::CertificateExpiring,
            Reason::Overrun,
            Reason::OwnerLost,
            Reason::SecretMissing,
        ] {
            assert_eq!(wire(serde_json::to_value(reason).unwrap()), reason.as_str());
        }
        for outcome in [Outcome::Ok, Outcome::Fail, Outcome::Error, Outcome::Missed] {
            assert_eq!(wire(serde_json::to_value(outcome).unwrap()), outcome.as_str());
        }
    }

    proptest! {
        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<ResultBatch>(&bytes);
        }
    }
}
