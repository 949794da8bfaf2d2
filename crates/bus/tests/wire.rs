//! What releases have put on the wire, recorded. Readers of this release understand all of it, and what this release writes is
//! what is recorded for it: a change shows as a change of a file under `tests/wire`, which `UPDATE_WIRE=1` writes.
//!
//! A folder is never changed once its release is out; the next one gets a folder of its own.

#![expect(clippy::unwrap_used, reason = "a test of its own, helpers included")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::*;
use bulkhead_bus::{LeaseClass, MemberName, PollerName, SiteName, TenantSlug};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The folder of this release; those before it are only read.
const OWN: &str = "2-dispatch";
const RELEASES: [&str; 2] = ["1-results", OWN];

fn folder(release: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire").join(release)
}

fn site() -> SiteName {
    "oslo".parse().unwrap()
}

fn poller() -> PollerName {
    "p1".parse().unwrap()
}

fn tenant() -> TenantSlug {
    "acme-corp".parse().unwrap()
}

fn measured() -> Measured {
    Measured {
        check: "web".parse().unwrap(),
        kind: CheckKind::Http,
        slot_ms: 1_800_000_000_000,
        started_ms: 1_800_000_000_003,
        outcome: Outcome::Fail,
        reason: Some(Reason::BadStatus),
        latency_us: Some(1_234),
        generation: 7,
        island: true,
        detail: BTreeMap::from([("http_status".to_owned(), 503.into())]),
    }
}

fn probe() -> Probe {
    Probe {
        name: "web".parse().unwrap(),
        kind: "http".to_owned(),
        target: "https://example.com/".to_owned(),
        interval_s: 30,
        timeout_ms: 5_000,
        retries: 1,
        options: BTreeMap::from([("expect_status".to_owned(), json!([200]))]),
    }
}

fn info() -> MemberInfo {
    MemberInfo {
        release: "0.1.0".to_owned(),
        capabilities: vec![Capability { kind: CheckKind::Http, version: 1 }],
        labels: BTreeMap::from([("zone".to_owned(), "dmz".to_owned())]),
        capacity: 64,
        checks_most: 5_000,
        sealing_key: Some("XKEY".to_owned()),
    }
}

fn member_row() -> MemberRow {
    MemberRow {
        tenant: tenant(),
        site: site(),
        name: MemberName::Poller(poller()),
        state: MemberState::Degraded,
        since_ms: Some(1),
        reasons: vec![DegradedBecause::DiskFull],
        because: Some("held".to_owned()),
        boot: Some(2),
        revision: Some(3),
        class: LeaseClass::Fast,
        renewed_ms: Some(4),
        info: Some(info()),
        applied_generation: 7,
        load: Load { checks: 1, running: 2, waiting: 3 },
        clock_ahead_ms: -5,
    }
}

/// Reads a value as `T`, and writes it again.
fn again<T: Serialize + DeserializeOwned>(value: Value) -> Value {
    let read: T = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"));
    serde_json::to_value(read).unwrap()
}

type Again = fn(Value) -> Value;

fn written<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Every payload that another process may read, by the name of its file, with how it is read.
fn payloads() -> Vec<(&'static str, Value, Again)> {
    let batch = ResultBatch {
        version: 1,
        tenant: Some(tenant().to_string()),
        site: site(),
        poller: poller(),
        results: vec![measured()],
    };
    let assigned = AssignedCheck {
        probe: probe(),
        generation: 7,
        from_ms: 1,
        until_ms: Some(2),
        owed_from_ms: Some(0),
        secrets: BTreeMap::from([("api-token".to_owned(), "XKEY.c2VhbGVk".to_owned())]),
    };
    let ended = EndedCheck { check: "dns".parse().unwrap(), generation: 5, until_ms: 9 };
    let page =
        AssignmentPage { generation: 7, is_whole: false, checks: vec![assigned], ended: vec![ended], has_more: true };
    let renew = Renew {
        version: LEASE_VERSION,
        boot: 2,
        revision: 3,
        state: ReportedState::Degraded,
        reasons: vec![DegradedBecause::Backlog],
        applied_generation: 7,
        load: Load { checks: 1, running: 2, waiting: 3 },
        sent_ms: 4,
    };
    let register = Register {
        version: LEASE_VERSION,
        boot: 2,
        class: LeaseClass::Fast,
        info: info(),
        state: ReportedState::Joining,
        sent_ms: 4,
    };
    let deregister = Deregister { version: LEASE_VERSION, boot: 2, revision: 3, reason: "stopped".to_owned() };
    let grant = LeaseGrant { revision: 3, ttl_ms: 15_000, heartbeat_ms: 5_000, now_ms: 9, is_held: true };
    let fetch = FetchAssignment { version: 1, boot: 2, have: 6, at: Some(7), after: Some("dns".parse().unwrap()) };
    let order = RunOrder { id: uuid::Uuid::nil(), probe: probe(), left_ms: 20_000, secrets: BTreeMap::new() };
    let report = ReportRun { version: 1, id: uuid::Uuid::nil(), measured: measured() };
    let members = MemberPage {
        is_known: false,
        because: Some("blind".to_owned()),
        revision: 8,
        members: vec![member_row()],
        has_more: true,
    };
    let refused = ReplyError { code: ErrorCode::Fenced, message: "a newer start has this lease".to_owned() };
    vec![
        ("result_batch", written(&batch), again::<ResultBatch>),
        ("live_results", written(&LiveResults { version: 1, results: vec![measured()] }), again::<LiveResults>),
        (
            "query",
            written(&Query { tenant: Some(tenant().to_string()), limit: Some(5), ..Query::default() }),
            again::<Query>,
        ),
        ("register", written(&register), again::<Register>),
        ("renew", written(&renew), again::<Renew>),
        ("deregister", written(&deregister), again::<Deregister>),
        ("lease_grant", written(&Reply::Rows(vec![grant])), again::<Reply<LeaseGrant>>),
        ("lease_refused", written(&Reply::<LeaseGrant>::Error(refused)), again::<Reply<LeaseGrant>>),
        ("fetch_assignment", written(&fetch), again::<FetchAssignment>),
        ("assignment_page", written(&Reply::Rows(vec![page])), again::<Reply<AssignmentPage>>),
        ("fetch_runs", written(&FetchRuns { version: 1, boot: 2 }), again::<FetchRuns>),
        ("run_orders", written(&Reply::Rows(vec![order])), again::<Reply<RunOrder>>),
        ("report_run", written(&report), again::<ReportRun>),
        ("member_page", written(&Reply::Rows(vec![members])), again::<Reply<MemberPage>>),
        ("members", written(&Reply::Rows(vec![member_row()])), again::<Reply<MemberRow>>),
    ]
}

fn pretty(value: &Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap())
}

#[test]
fn what_this_release_writes_is_recorded() {
    let own = folder(OWN);
    let is_update = option_env!("UPDATE_WIRE").is_some();
    for (name, value, _) in payloads() {
        let path = own.join(format!("{name}.json"));
        if is_update {
            std::fs::create_dir_all(&own).unwrap();
            std::fs::write(&path, pretty(&value)).unwrap();
        }
        let recorded = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            pretty(&value),
            recorded,
            "{name}: a change of what is written; is it one that old readers understand?"
        );
    }
}

#[test]
fn everything_that_was_ever_recorded_is_read_and_nothing_of_it_is_lost() {
    let mut read = 0;
    for release in RELEASES {
        for entry in std::fs::read_dir(folder(release)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let value: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            let known = payloads().into_iter().find(|(known, _, _)| *known == name);
            let (_, _, again) = known.unwrap_or_else(|| panic!("{release}/{name} is read by nobody any more"));
            let after = again(value.clone());
            assert!(is_within(&value, &after), "{release}/{name}: {value} became {after}");
            read += 1;
        }
    }
    assert!(read >= payloads().len() + 3);
}

/// Whether everything that `old` says is said by `new`, which may say more.
fn is_within(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            old.iter().all(|(name, value)| new.get(name).is_some_and(|found| is_within(value, found)))
        }
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(one, other)| is_within(one, other))
        }
        (old, new) => old == new,
    }
}

#[test]
fn a_reader_of_the_next_release_may_be_told_more() {
    for (name, value, again) in payloads() {
        let mut more = value.clone();
        more_of(&mut more);
        // Maps of free names keep what they do not know; everything else leaves it out.
        assert!(is_within(&value, &again(more)), "{name}");
    }
}

/// A field that nobody knows in every object but those whose names are free.
fn more_of(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let is_free = |name: &str| ["detail", "options", "labels", "secrets"].contains(&name);
            for (_, inner) in fields.iter_mut().filter(|(name, _)| !is_free(name)) {
                more_of(inner);
            }
            // A reply is one of two things and not more.
            if !fields.contains_key("rows") && !fields.contains_key("error") {
                fields.insert("of_the_next_release".to_owned(), json!({"x": 1}));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(more_of),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn what_only_the_next_release_can_do_or_suffer_is_left_out() {
    let mut told = serde_json::to_value(info()).unwrap();
    told["capabilities"].as_array_mut().unwrap().push(json!({"kind": "quic", "version": 1, "limits": {"most": 3}}));
    assert_eq!(serde_json::from_value::<MemberInfo>(told).unwrap(), info());
    let mut told = serde_json::to_value(member_row()).unwrap();
    told["reasons"].as_array_mut().unwrap().insert(0, json!("too_hot"));
    assert_eq!(serde_json::from_value::<MemberRow>(told).unwrap(), member_row());
}

/// By a key that is made for this and forgotten.
fn record_signatures(path: &std::path::Path) {
    let pair = nkeys::KeyPair::new_user();
    let (sequence, body) = (Sequence { boot: 1_800_000_000_000, number: 7 }, r#"{"version":1}"#);
    let subject = "up.oslo.p1.rpc.registry.renew";
    let sign = |bytes: Vec<u8>| header::encode_signature(&pair.sign(&bytes).unwrap());
    let recorded = json!({
        "key": pair.public_key(), "sequence": sequence.to_string(), "body": body, "subject": subject,
        "batch_signature": sign(header::signed_bytes(sequence, body.as_bytes())),
        "request_signature": sign(header::signed_request_bytes(subject, sequence, body.as_bytes())),
    });
    std::fs::write(path, pretty(&recorded)).unwrap();
}

#[test]
fn what_was_signed_is_verified() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wire/signed.json");
    if option_env!("UPDATE_WIRE").is_some() && !path.exists() {
        record_signatures(&path);
    }
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let text = |name: &str| recorded[name].as_str().unwrap_or_default();
    let body = text("body").as_bytes();
    let of = |name: &str| match name {
        header::SIGNATURE => Some(text("batch_signature")),
        header::KEY => Some(text("key")),
        header::SEQUENCE => Some(text("sequence")),
        _ => None,
    };
    let attested = header::verify(of, body).unwrap().unwrap();
    assert_eq!(attested.sequence, Sequence { boot: 1_800_000_000_000, number: 7 });
    let of_request = |name: &str| if name == header::SIGNATURE { Some(text("request_signature")) } else { of(name) };
    assert!(header::verify_request(of_request, text("subject"), body).unwrap().is_some());
    assert!(header::verify_request(of, text("subject"), body).is_err(), "one signature is not the other");
}
