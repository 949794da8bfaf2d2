//! What one tenant sends, written down before it is sent: a second poller of the site that never forgets.
//!
//! It does what the real one does (sign once, send the same bytes until the leaf has them) and keeps a record of every
//! row, so that the database can be held against it, row by row.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::bundle::{self, Part};
use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{BATCH_VERSION, CheckKind, Measured, Outcome, ResultBatch};
use bulkhead_bus::{EdgeSubject, Lane, PollerName, SiteName, TenantSubject};
use bulkhead_runtime::{Backoff, Bus, BusSettings, Headers, Stop, now_ms};
use bytes::Bytes;
use nkeys::KeyPair;
use tokio::sync::{mpsc, oneshot};

use super::plan::Malformed;
use super::world::{LEDGER, Tenant};

pub(super) const CHECKS: u32 = 4;
const ROWS_PER_BATCH: usize = 10;
const SEND_EVERY: Duration = Duration::from_millis(100);
const STORE_LIMIT: Duration = Duration::from_secs(5);
/// An hour ahead: far beyond what core takes.
const FUTURE_MS: i64 = 3_600_000;

/// A check and its slot.
pub(super) type Slot = (String, i64);

/// A row as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) outcome: String,
    pub(super) latency_us: i64,
    pub(super) is_acked: bool,
}

/// A message or row that must end as a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExpectedLetter {
    pub(super) reason: &'static str,
    /// What the letter's payload contains, and no other's.
    pub(super) mark: String,
}

/// Everything that was sent in one run.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) rows: BTreeMap<Slot, Sent>,
    pub(super) letters: Vec<ExpectedLetter>,
    /// Batches that the leaf acknowledged, repetitions included.
    pub(super) acked_batches: u64,
    /// Rows in batches that were sent again on purpose.
    pub(super) repeated_rows: u64,
    pub(super) attempts: u64,
}

/// What a ledger is asked for besides its steady flow.
pub(super) enum Order {
    Malformed(Malformed),
    Repeat,
    /// Acknowledged when nothing is on its way any more; the flow goes on when the other end is dropped or used.
    Rest(oneshot::Sender<()>, oneshot::Receiver<()>),
}

/// How a ledger reaches its leaf, and as whom.
pub(super) struct Place {
    pub(super) tenant: Tenant,
    pub(super) site: SiteName,
    pub(super) poller: PollerName,
    pub(super) leaf: BusSettings,
    /// As the site's forwarder.
    pub(super) forwarder: BusSettings,
    pub(super) key: KeyPair,
}

/// The writing end.
pub(super) struct Ledger {
    place: Place,
    boot: u64,
    next: u64,
    last_slot_ms: i64,
    record: Arc<Mutex<Record>>,
}

struct Batch {
    headers: Headers,
    body: Bytes,
    slots: Vec<Slot>,
}

/// The number in a sent row's latency says which row it is, so that a mixed-up row is seen.
fn latency_of(slot_ms: i64, check: u32) -> u32 {
    let low = u32::try_from(slot_ms.rem_euclid(1_000_000)).unwrap_or(0);
    low * CHECKS + check
}

impl Ledger {
    pub(super) fn new(place: Place) -> Self {
        let boot = u64::try_from(now_ms()).unwrap_or(0);
        Self { place, boot, next: 1, last_slot_ms: 0, record: Arc::default() }
    }

    pub(super) fn record(&self) -> Arc<Mutex<Record>> {
        Arc::clone(&self.record)
    }

    /// Sends until `stop`, and then until the last batch is acknowledged.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: Stop) -> anyhow::Result<()> {
        let bus = tokio::select! {
            bus = connect(&self.place.leaf) => bus,
            () = stop.cancelled() => anyhow::bail!("the ledger was never connected"),
        };
        let mut ticks = tokio::time::interval(SEND_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                order = orders.recv() => match order {
                    Some(Order::Malformed(kind)) => self.send_malformed(&bus, kind).await?,
                    Some(Order::Repeat) => {
                        let batch = self.honest_batch()?;
                        let again = u64::try_from(batch.slots.len()).unwrap_or(0) * 9;
                        for _ in 0..10 {
                            self.send(&bus, &batch).await;
                        }
                        self.lock().repeated_rows += again;
                    }
                    Some(Order::Rest(resting, over)) => {
                        let _ = resting.send(());
                        let _ = over.await;
                    }
                    None => return Ok(()),
                },
                _ = ticks.tick() => {
                    let batch = self.honest_batch()?;
                    self.send(&bus, &batch).await;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder panics")
    }

    fn rows(&mut self) -> Vec<Measured> {
        let mut rows = Vec::new();
        while rows.len() < ROWS_PER_BATCH {
            self.last_slot_ms = now_ms().max(self.last_slot_ms + 1);
            let number = u32::try_from(rows.len()).unwrap_or(0) % CHECKS;
            rows.push(self.row(number, self.last_slot_ms));
        }
        rows
    }

    fn row(&self, number: u32, slot_ms: i64) -> Measured {
        let outcome = if slot_ms % 3 == 0 { Outcome::Fail } else { Outcome::Ok };
        Measured {
            check: check_name(self.place.tenant, number).parse().expect("a ledger's check name is one"),
            kind: CheckKind::Tcp,
            slot_ms,
            started_ms: slot_ms,
            outcome,
            reason: None,
            latency_us: Some(latency_of(slot_ms, number)),
            generation: 0,
            island: false,
            detail: BTreeMap::new(),
        }
    }

    fn envelope(&self, results: Vec<Measured>) -> ResultBatch {
        ResultBatch {
            version: BATCH_VERSION,
            tenant: Some(self.place.tenant.slug().to_owned()),
            site: self.place.site.clone(),
            poller: self.place.poller.clone(),
            results,
        }
    }

    fn sign(&mut self, body: &[u8]) -> anyhow::Result<Headers> {
        let sequence = Sequence { boot: self.boot, number: self.next };
        self.next += 1;
        let signature = self.place.key.sign(&header::signed_bytes(sequence, body)).context("sign a batch")?;
        let mut headers = Headers::default();
        headers.set(header::KEY, &self.place.key.public_key());
        headers.set(header::SEQUENCE, &sequence.to_string());
        headers.set(header::SIGNATURE, &header::encode_signature(&signature));
        Ok(headers)
    }

    fn batch_of(&mut self, rows: Vec<Measured>) -> anyhow::Result<Batch> {
        let slots: Vec<Slot> = rows.iter().map(|row| (row.check.to_string(), row.slot_ms)).collect();
        for row in &rows {
            let sent = Sent {
                outcome: row.outcome.as_str().to_owned(),
                latency_us: row.latency_us.map_or(0, i64::from),
                is_acked: false,
            };
            self.lock().rows.insert((row.check.to_string(), row.slot_ms), sent);
        }
        let body = serde_json::to_vec(&self.envelope(rows)).context("encode a batch")?;
        Ok(Batch { headers: self.sign(&body)?, body: body.into(), slots })
    }

    fn honest_batch(&mut self) -> anyhow::Result<Batch> {
        let rows = self.rows();
        self.batch_of(rows)
    }

    async fn send(&self, bus: &Bus, batch: &Batch) {
        let subject = EdgeSubject { lane: Lane::Results, poller: self.place.poller.clone() }.to_string();
        self.send_to(&subject, bus, batch).await;
    }

    /// The same bytes until a stream has them.
    async fn send_to(&self, subject: &str, bus: &Bus, batch: &Batch) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            self.lock().attempts += 1;
            if bus.is_connected()
                && bus.store(subject, batch.headers.clone(), batch.body.clone(), STORE_LIMIT).await.is_ok()
            {
                break;
            }
            backoff.pause().await;
        }
        let mut record = self.lock();
        record.acked_batches += 1;
        for slot in &batch.slots {
            if let Some(sent) = record.rows.get_mut(slot) {
                sent.is_acked = true;
            }
        }
    }

    async fn send_malformed(&mut self, bus: &Bus, kind: Malformed) -> anyhow::Result<()> {
        let mut rows = self.rows();
        // None of the rows of a batch that is refused whole may ever be stored, so none is in the record.
        let mark = format!("\"slot_ms\":{}", rows[0].slot_ms);
        let batch = match kind {
            Malformed::FutureRow => {
                let ahead = self.row(0, self.last_slot_ms + FUTURE_MS);
                let mark = format!("\"slot_ms\":{}", ahead.slot_ms);
                self.lock().letters.push(ExpectedLetter { reason: kind.reason(), mark });
                let mut batch = self.batch_of(rows.clone())?;
                rows.insert(1, ahead);
                let body = serde_json::to_vec(&self.envelope(rows)).context("encode a batch")?;
                batch.headers = self.sign(&body)?;
                batch.body = body.into();
                self.send(bus, &batch).await;
                return Ok(());
            }
            Malformed::NotJson => {
                let body = format!("{{\"poller\":\"{LEDGER}\",\"results\":[{{{mark}").into_bytes();
                Batch { headers: self.sign(&body)?, body: body.into(), slots: vec![] }
            }
            Malformed::UnknownVersion => self.unrecorded(ResultBatch { version: 99, ..self.envelope(rows) })?,
            Malformed::ForeignTenant => {
                let other = Some(self.place.tenant.other().slug().to_owned());
                self.unrecorded(ResultBatch { tenant: other, ..self.envelope(rows) })?
            }
            Malformed::BadSignature => {
                let honest = self.unrecorded(self.envelope(rows))?;
                Batch { headers: self.sign(b"something else")?, ..honest }
            }
            Malformed::CutBundle => self.cut_bundle(rows)?,
            Malformed::CutBundleUpstream => {
                self.lock().letters.push(ExpectedLetter { reason: kind.reason(), mark });
                let batch = self.cut_bundle(rows)?;
                let forwarder = connect(&self.place.forwarder).await;
                let upstream = TenantSubject::Forwarded { site: self.place.site.clone(), lane: Lane::Results };
                self.send_to(&upstream.to_string(), &forwarder, &batch).await;
                return Ok(());
            }
        };
        self.lock().letters.push(ExpectedLetter { reason: kind.reason(), mark });
        self.send(bus, &batch).await;
        Ok(())
    }

    /// Honest batches that travel together, the last one cut off: none of them may be stored.
    fn cut_bundle(&mut self, rows: Vec<Measured>) -> anyhow::Result<Batch> {
        let more = self.rows();
        let batches = [self.unrecorded(self.envelope(rows))?, self.unrecorded(self.envelope(more))?];
        let texts = batches.each_ref().map(|batch| batch.headers.to_text());
        let parts = batches.iter().zip(&texts).map(|(batch, headers)| Part { headers, body: &batch.body });
        let mut body = bundle::encode(&parts.collect::<Vec<_>>());
        body.truncate(body.len() - batches[1].body.len() / 2);
        let mut headers = Headers::default();
        headers.set(bundle::HEADER, bundle::VERSION);
        Ok(Batch { headers, body: bundle::pack(&body).into(), slots: vec![] })
    }

    fn unrecorded(&mut self, batch: ResultBatch) -> anyhow::Result<Batch> {
        let body = serde_json::to_vec(&batch).context("encode a batch")?;
        Ok(Batch { headers: self.sign(&body)?, body: body.into(), slots: vec![] })
    }
}

/// Once the leaf is there.
async fn connect(settings: &BusSettings) -> Bus {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        match Bus::connect(settings, "ledger").await {
            Ok(bus) => return bus,
            Err(_) => backoff.pause().await,
        }
    }
}

/// The name of a ledger's check: it says whose it is, so that a row under another tenant is seen.
pub(super) fn check_name(tenant: Tenant, number: u32) -> String {
    format!("ledger-{}-{number}", tenant.slug())
}
