//! Fills the leaves' streams with signed batches, and measures that as the raw JetStream publish of the run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{BATCH_VERSION, CheckKind, Measured, Outcome, ResultBatch};
use bulkhead_bus::{EdgeSubject, Lane};
use bulkhead_runtime::{Bus, Headers, now_ms};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::fleet::Station;

const CHECKS: usize = 20;
/// So close that a cell's slots stay within an hour.
const SLOT_MS: i64 = 100;
const STORE_LIMIT: Duration = Duration::from_secs(30);
/// Publications of one station on their way at the same time.
const WINDOW: usize = 64;

/// Rows of one station: `rows` of them, in slots close together from `from_ms` on.
pub(super) fn rows(number: usize, from_ms: i64) -> anyhow::Result<Vec<Measured>> {
    let row = |index: usize| -> anyhow::Result<Measured> {
        let slot_ms = from_ms + i64::try_from(index / CHECKS)? * SLOT_MS;
        Ok(Measured {
            check: format!("check-{}", index % CHECKS).parse()?,
            kind: CheckKind::Tcp,
            slot_ms,
            started_ms: slot_ms + 3,
            outcome: if index.is_multiple_of(97) { Outcome::Fail } else { Outcome::Ok },
            reason: None,
            latency_us: Some(u32::try_from(index % 50_000)?),
            generation: 0,
            island: false,
            detail: BTreeMap::new(),
        })
    };
    (0..number).map(row).collect()
}

fn signed(station: &Station, number: u64, results: Vec<Measured>) -> anyhow::Result<(Headers, Bytes)> {
    let batch = ResultBatch {
        version: BATCH_VERSION,
        tenant: Some(station.tenant.to_string()),
        site: station.site.clone(),
        poller: station.poller.clone(),
        results,
    };
    let body = serde_json::to_vec(&batch).context("encode a batch")?;
    let sequence = Sequence { boot: u64::try_from(now_ms()).unwrap_or(0), number };
    let key = station.key()?;
    let signature = key.sign(&header::signed_bytes(sequence, &body)).context("sign a batch")?;
    let mut headers = Headers::default();
    headers.set(header::KEY, &key.public_key());
    headers.set(header::SEQUENCE, &sequence.to_string());
    headers.set(header::SIGNATURE, &header::encode_signature(&signature));
    Ok((headers, body.into()))
}

/// Sends one batch after the other, each acknowledged by the leaf.
pub(super) struct Sender {
    station: Station,
    bus: Bus,
    next: std::sync::atomic::AtomicU64,
}

impl Sender {
    pub(super) async fn connect(station: &Station) -> anyhow::Result<Self> {
        let bus = Bus::connect(&station.leaf, "bench").await.context("connect to a leaf")?;
        Ok(Self { station: station.clone(), bus, next: 1.into() })
    }

    pub(super) async fn send(&self, results: Vec<Measured>) -> anyhow::Result<()> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (headers, body) = signed(&self.station, number, results)?;
        let subject = EdgeSubject { lane: Lane::Results, poller: self.station.poller.clone() }.to_string();
        self.bus.store(&subject, headers, body, STORE_LIMIT).await.context("send to a leaf").map(|_| ())
    }
}

async fn fill(station: &Station, batches: Vec<(Headers, Bytes)>) -> anyhow::Result<()> {
    let bus = Bus::connect(&station.leaf, "bench").await.context("connect to a leaf")?;
    let subject = EdgeSubject { lane: Lane::Results, poller: station.poller.clone() }.to_string();
    let stored = stream::iter(batches).map(|(headers, body)| {
        let (bus, subject) = (bus.clone(), subject.clone());
        async move { bus.store(&subject, headers, body, STORE_LIMIT).await.context("fill a leaf").map(|_| ()) }
    });
    stored.buffer_unordered(WINDOW).try_collect::<()>().await
}

/// What was loaded, and how long publishing alone took.
pub struct Loaded {
    pub rows: usize,
    pub batches: usize,
    pub body_bytes: usize,
    pub took: Duration,
}

/// Signs first, so that only publishing is measured; then fills all leaves at the same time.
///
/// # Errors
/// When a leaf does not take a batch.
pub async fn fill_all(stations: &[Station], rows_each: usize, batch: usize, from_ms: i64) -> anyhow::Result<Loaded> {
    let mut prepared = Vec::new();
    let (mut total, mut batches, mut body_bytes) = (0, 0, 0);
    for station in stations {
        let rows = rows(rows_each, from_ms)?;
        let mut signed_batches = Vec::new();
        for (number, results) in (1..).zip(rows.chunks(batch)) {
            total += results.len();
            let signed = signed(station, number, results.to_vec())?;
            body_bytes += signed.1.len();
            signed_batches.push(signed);
        }
        batches += signed_batches.len();
        prepared.push((station, signed_batches));
    }
    let began = Instant::now();
    let fillings = prepared.into_iter().map(|(station, batches)| fill(station, batches));
    stream::iter(fillings).buffer_unordered(stations.len().max(1)).try_collect::<()>().await?;
    Ok(Loaded { rows: total, batches, body_bytes, took: began.elapsed() })
}
