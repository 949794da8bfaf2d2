//! What one tenant's flood costs another: from a result's being measured to its being visible in the database, for a tenant
//! that sends a little all the time, alone and beside one that sends as much as it is paced to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use bulkhead_bus::payload::{CheckKind, Measured, Outcome};
use bulkhead_runtime::{Stop, eventually, now_ms};
use bulkhead_testkit::LIMIT;
use futures_util::{StreamExt, stream};
use sqlx::PgPool;
use tokio::time::{Instant, interval};

use super::fleet::{Fleet, Station};
use super::load::{Sender, rows};

const LASTS: Duration = Duration::from_secs(20);
const VICTIM_EVERY: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_millis(4);
const CHECK: &str = "steady";
/// Batches of the attacker that are sent at once.
const VOLLEY: usize = 10;
const ATTACK_ROWS: usize = 100;
/// The slots of one of its batches take so long: twenty checks, one each 100 ms.
const BATCH_MS: i64 = 500;
const BEGIN_MS: i64 = 18 * 3_600_000;

/// Milliseconds from sending to visibility.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    pub p50_ms: i64,
    pub p99_ms: i64,
    pub results: usize,
}

/// What the attacker did, as its leaf acknowledged it.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    pub rows_per_second: f64,
    /// Batches that its leaf did not take.
    pub refused: u64,
}

/// Alone, and beside the flood.
#[derive(Debug, Clone, Copy)]
pub struct Flooded {
    pub alone: Delays,
    pub beside: Delays,
    /// Results a second.
    pub asked: f64,
    pub attack: Attack,
}

fn row(slot_ms: i64) -> anyhow::Result<Measured> {
    Ok(Measured {
        check: CHECK.parse()?,
        kind: CheckKind::Tcp,
        slot_ms,
        started_ms: slot_ms,
        outcome: Outcome::Ok,
        reason: None,
        latency_us: Some(1),
        generation: 0,
        island: false,
        detail: std::collections::BTreeMap::new(),
    })
}

async fn newest(witness: &PgPool) -> anyhow::Result<i64> {
    let sql = "select coalesce(max((extract(epoch from slot) * 1000)::int8), 0) from everywhere.check_state
               where check_name = $1";
    sqlx::query_scalar(sql).bind(CHECK).fetch_one(witness).await.context("look for the newest result")
}

/// Sends steadily and watches when each result becomes visible.
async fn steady(witness: &PgPool, station: &Station) -> anyhow::Result<Delays> {
    let sender = Sender::connect(station).await?;
    let (mut sends, mut looks) = (interval(VICTIM_EVERY), interval(LOOK_EVERY));
    let end = Instant::now() + LASTS;
    let (mut waiting, mut delays) = (std::collections::VecDeque::new(), Vec::new());
    while Instant::now() < end || (!waiting.is_empty() && Instant::now() < end + LASTS) {
        tokio::select! {
            _ = sends.tick(), if Instant::now() < end => {
                let slot_ms = now_ms();
                sender.send(vec![row(slot_ms)?]).await?;
                waiting.push_back(slot_ms);
            }
            _ = looks.tick() => {
                let newest = newest(witness).await?;
                while let Some(&slot_ms) = waiting.front().filter(|&&slot| slot <= newest) {
                    delays.push(now_ms() - slot_ms);
                    waiting.pop_front();
                }
            }
        }
    }
    anyhow::ensure!(waiting.is_empty(), "{} results did not become visible", waiting.len());
    delays.sort_unstable();
    let at = |share: usize| delays.get((delays.len() * share / 100).min(delays.len().saturating_sub(1))).copied();
    let (p50_ms, p99_ms) = at(50).zip(at(99)).context("nothing was measured")?;
    Ok(Delays { p50_ms, p99_ms, results: delays.len() })
}

/// The attacker, on a thread and a runtime of its own: what it takes from the machine is not taken from the measuring.
struct Attacker {
    stop: Stop,
    counts: Arc<Counts>,
    thread: JoinHandle<anyhow::Result<()>>,
}

#[derive(Default)]
struct Counts {
    acked: AtomicU64,
    refused: AtomicU64,
}

impl Attacker {
    /// Returns when its first volley is acknowledged.
    async fn start(station: Station, batches_per_second: u32) -> anyhow::Result<Self> {
        let (stop, counts) = (Stop::new(), Arc::new(Counts::default()));
        let (stopped, shared) = (stop.clone(), Arc::clone(&counts));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.context("make a runtime")?.block_on(async {
                tokio::spawn(flood(station, batches_per_second, shared, stopped))
                    .await
                    .context("the attacker panicked")?
            })
        });
        let attacker = Self { stop, counts, thread };
        eventually("the first volley sent", LIMIT, || async {
            if attacker.acked() > 0 { Ok(()) } else { Err("nothing is acknowledged") }
        })
        .await?;
        Ok(attacker)
    }

    fn acked(&self) -> u64 {
        self.counts.acked.load(Ordering::Relaxed)
    }

    /// What it did while `meanwhile` took its time.
    async fn beside<T>(self, meanwhile: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, Attack)> {
        let (began, before) = (Instant::now(), self.acked());
        let done = meanwhile.await;
        let (lasted, acked) = (began.elapsed(), self.acked() - before);
        self.stop.cancel();
        let ended = tokio::task::spawn_blocking(|| self.thread.join()).await.context("wait for the attacker")?;
        ended.ok().context("the attacker's thread panicked")??;
        let rows_per_second = acked as f64 * ATTACK_ROWS as f64 / lasted.as_secs_f64();
        Ok((done?, Attack { rows_per_second, refused: self.counts.refused.load(Ordering::Relaxed) }))
    }
}

/// Sends volleys of batches at the pace, or as fast as the leaf takes them.
async fn flood(station: Station, batches_per_second: u32, counts: Arc<Counts>, stop: Stop) -> anyhow::Result<()> {
    let sender = Sender::connect(&station).await?;
    let mut ticks = interval(Duration::from_secs(1) * u32::try_from(VOLLEY)? / batches_per_second.max(1));
    let begin_ms = now_ms() - BEGIN_MS;
    for volley in 0_i64.. {
        tokio::select! { _ = ticks.tick() => {} () = stop.cancelled() => break }
        // Other slots each time: a repetition would be cheaper.
        let from_ms = |number: usize| begin_ms + (volley * VOLLEY as i64 + number as i64) * BATCH_MS;
        let batches = (0..VOLLEY).map(|number| rows(ATTACK_ROWS, from_ms(number)));
        let batches = batches.collect::<anyhow::Result<Vec<_>>>()?;
        let sent = stream::iter(batches).map(|batch| sender.send(batch)).buffer_unordered(VOLLEY);
        sent.for_each(|sent| {
            let count = if sent.is_ok() { &counts.acked } else { &counts.refused };
            count.fetch_add(1, Ordering::Relaxed);
            std::future::ready(())
        })
        .await;
    }
    Ok(())
}

/// Measures a tenant alone and beside another that floods.
///
/// # Errors
/// When a deployment does not start or results do not arrive.
pub async fn run_flood(batches_per_second: u32) -> anyhow::Result<Flooded> {
    let mut fleet = Fleet::start(2, 1).await.context("start a deployment")?;
    fleet.start_forwarders()?;
    let [victim, attacker] = fleet.stations.as_slice() else { anyhow::bail!("two tenants were asked for") };
    // What starts up is not measured.
    steady(&fleet.witness, victim).await?;
    let alone = steady(&fleet.witness, victim).await?;
    let attacker = Attacker::start(attacker.clone(), batches_per_second).await?;
    let (beside, attack) = attacker.beside(steady(&fleet.witness, victim)).await?;
    fleet.deployment.stop().await?;
    Ok(Flooded { alone, beside, asked: f64::from(batches_per_second) * ATTACK_ROWS as f64, attack })
}
