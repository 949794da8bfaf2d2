//! Results that wait for the leaf: in memory, in order, bounded. When it is half full those that say nothing new give way, and
//! when it is full the oldest are dropped; both are counted.
//!
//! It survives an absent leaf, not a killed process: what must survive that is in the leaf's stream.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bulkhead_bus::payload::Measured;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::metrics::{Metrics, count, level};
use crate::thin::{Fate, Place, THINNED, Thinning};

/// A full spool says so at most this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Measured>,
    /// The place of the first that waits.
    front: Place,
    thinning: Thinning,
    is_closed: bool,
    unsaid: usize,
    said: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
    most: usize,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }
}

/// The end that measurements go into. Dropping it closes the spool.
#[derive(Debug)]
pub(crate) struct SpoolWriter(Arc<Shared>);

/// The end that batches are made from.
#[derive(Debug)]
pub(crate) struct SpoolReader(Arc<Shared>);

/// A spool of at most `most` results.
pub(crate) fn open_spool(most: usize, metrics: Arc<Metrics>) -> (SpoolWriter, SpoolReader) {
    metrics.spool_limit_results.set(level(most));
    let queue = Queue {
        waiting: VecDeque::new(),
        front: 0,
        thinning: Thinning::default(),
        is_closed: false,
        unsaid: 0,
        said: None,
    };
    let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Notify::new(), most, metrics });
    (SpoolWriter(Arc::clone(&shared)), SpoolReader(shared))
}

impl Queue {
    fn at(&mut self, place: Place) -> Option<&mut Measured> {
        let index = usize::try_from(place.checked_sub(self.front)?).ok()?;
        self.waiting.get_mut(index)
    }

    /// Puts a result where it belongs; says whether another gave way.
    fn put(&mut self, measured: Measured, most: usize) -> bool {
        if self.waiting.len() <= most / 2 {
            self.thinning.end();
            self.waiting.push_back(measured);
            return false;
        }
        let next = self.front + self.waiting.len() as Place;
        let (front, waiting) = (self.front, &self.waiting);
        let latency_of = |place: Place| {
            let index = usize::try_from(place.saturating_sub(front)).unwrap_or(usize::MAX);
            waiting.get(index).and_then(|result| result.latency_us).unwrap_or(0)
        };
        let (slowest, last, thinned) = match self.thinning.judge(&measured, (front, next), latency_of) {
            Fate::Append => {
                self.waiting.push_back(measured);
                return false;
            }
            Fate::Replace { last, thinned } => (None, last, thinned),
            Fate::Shift { slowest, last, thinned } => (Some(slowest), last, thinned),
        };
        let Some(before) = self.at(last) else { return false };
        let mut before = std::mem::replace(before, measured);
        if let Some(kept) = self.at(last) {
            kept.detail.insert(THINNED.to_owned(), thinned.into());
        }
        before.detail.remove(THINNED);
        if let Some(kept) = slowest.and_then(|slowest| self.at(slowest)) {
            *kept = before;
        }
        true
    }
}

impl SpoolWriter {
    pub(crate) fn push(&self, measured: Measured) {
        let mut queue = self.0.queue();
        if queue.put(measured, self.0.most) {
            count(&self.0.metrics.spool_thinned, 1);
        }
        if queue.waiting.len() > self.0.most {
            queue.waiting.pop_front();
            queue.front += 1;
            queue.unsaid += 1;
            count(&self.0.metrics.spool_dropped, 1);
        }
        self.0.metrics.spool_results.set(level(queue.waiting.len()));
        drop(queue);
        self.0.changed.notify_one();
    }

    /// Logs what was dropped since the last time, when there is something and it is time.
    pub(crate) fn report_dropped(&self, now: Instant) {
        let mut queue = self.0.queue();
        let is_time = queue.said.is_none_or(|said| now.duration_since(said) >= SAY_EVERY);
        if queue.unsaid == 0 || !is_time {
            return;
        }
        let dropped = std::mem::take(&mut queue.unsaid);
        queue.said = Some(now);
        drop(queue);
        warn!(dropped, spool.results_most = self.0.most, "spool is full: {dropped} oldest results dropped");
    }
}

impl Drop for SpoolWriter {
    fn drop(&mut self) {
        // A lock poisoned by a panic elsewhere must not abort the process while it unwinds.
        if let Ok(mut queue) = self.0.queue.lock() {
            queue.is_closed = true;
        }
        self.0.changed.notify_one();
    }
}

impl SpoolReader {
    /// Waits for a result, then up to `linger` for `most` of them. `None` when the spool is closed and empty.
    pub(crate) async fn take(&self, most: usize, linger: Duration) -> Option<Vec<Measured>> {
        let mut until: Option<Instant> = None;
        loop {
            {
                let mut queue = self.0.queue();
                let waiting = queue.waiting.len();
                let is_over = until.is_some_and(|until| Instant::now() >= until);
                if waiting == 0 && queue.is_closed {
                    return None;
                }
                if waiting >= most || (waiting > 0 && (queue.is_closed || is_over)) {
                    let taken: Vec<Measured> = queue.waiting.drain(..waiting.min(most)).collect();
                    queue.front += taken.len() as Place;
                    self.0.metrics.spool_results.set(level(queue.waiting.len()));
                    return Some(taken);
                }
                if waiting > 0 && until.is_none() {
                    until = Some(Instant::now() + linger);
                }
            }
            match until {
                // Passing the limit is normal: then the batch is smaller than it could be.
                Some(until) => drop(tokio::time::timeout_at(until, self.0.changed.notified()).await),
                None => self.0.changed.notified().await,
            }
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.0.queue().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tests::measured;
    use bulkhead_bus::payload::{Outcome, Reason};
    use proptest::prelude::*;

    fn slots(results: &[Measured]) -> Vec<i64> {
        results.iter().map(|result| result.slot_ms).collect()
    }

    #[tokio::test]
    async fn a_full_spool_drops_the_oldest_and_counts_them() {
        let metrics = Arc::new(Metrics::default());
        let (writer, reader) = open_spool(3, Arc::clone(&metrics));
        for slot_ms in 0..10 {
            writer.push(measured(&format!("web-{slot_ms}"), slot_ms));
            assert!(reader.waiting() <= 3);
        }
        let taken = reader.take(10, Duration::ZERO).await.unwrap();
        assert_eq!(slots(&taken), [7, 8, 9]);
        assert_eq!(metrics.spool_dropped.get(), 7);
        assert_eq!((metrics.spool_results.get(), metrics.spool_limit_results.get()), (0, 3));
        writer.push(measured("web", 10));
        assert_eq!(metrics.spool_results.get(), 1);
        writer.report_dropped(Instant::now());
        assert_eq!(writer.0.queue().unsaid, 0);
    }

    #[tokio::test]
    async fn a_half_full_spool_keeps_what_is_worth_knowing() {
        let metrics = Arc::new(Metrics::default());
        let (writer, reader) = open_spool(40, Arc::clone(&metrics));
        for slot_ms in 0..21 {
            writer.push(measured("old", slot_ms));
        }
        let push = |second: i64, latency_us: u32, outcome: Outcome| {
            let reason = (outcome == Outcome::Fail).then_some(Reason::Timeout);
            let latency_us = Some(latency_us);
            writer.push(Measured { latency_us, outcome, reason, ..measured("web", second * 1_000) });
        };
        // Of the first minute the first, the slowest and the last stay; the failure and what follows it are news.
        for (second, latency_us) in [(0, 5), (1, 7), (2, 9), (3, 8), (4, 6), (5, 99), (6, 1), (7, 2)] {
            push(second, latency_us, Outcome::Ok);
        }
        push(8, 0, Outcome::Fail);
        for second in 9..14 {
            push(second, 3, Outcome::Ok);
        }
        push(60, 4, Outcome::Ok);
        let taken = reader.take(100, Duration::ZERO).await.unwrap();
        let web: Vec<&Measured> = taken.iter().filter(|result| result.check.as_str() == "web").collect();
        let seen: Vec<(i64, Option<u64>)> = web
            .iter()
            .map(|result| (result.slot_ms / 1_000, result.detail.get(THINNED).and_then(|n| n.as_u64())))
            .collect();
        let thinned = [(0, None), (5, None), (7, Some(5)), (8, None), (9, None), (10, None), (13, Some(2)), (60, None)];
        assert_eq!(seen, thinned);
        assert_eq!(metrics.spool_thinned.get(), 7);
        assert_eq!(taken.len() - web.len(), 21, "what waited before is not touched");
        // Where there is room again nothing gives way.
        for second in 100..110 {
            push(second, 1, Outcome::Ok);
        }
        assert_eq!(reader.waiting(), 10);
    }

    #[tokio::test]
    async fn a_full_batch_does_not_wait_and_order_is_kept() {
        let (writer, reader) = open_spool(100, Arc::default());
        for slot_ms in 0..5 {
            writer.push(measured("web", slot_ms));
        }
        let hour = Duration::from_secs(3_600);
        assert_eq!(slots(&reader.take(3, hour).await.unwrap()), [0, 1, 2]);
        drop(writer);
        assert_eq!(slots(&reader.take(3, hour).await.unwrap()), [3, 4], "a closed spool is flushed at once");
        assert!(reader.take(3, hour).await.is_none());
    }

    #[tokio::test]
    async fn a_lone_result_leaves_after_the_linger() {
        let (writer, reader) = open_spool(100, Arc::default());
        let began = Instant::now();
        let taking = tokio::spawn(async move { reader.take(3, Duration::from_millis(60)).await });
        writer.push(measured("web", 1));
        assert_eq!(slots(&taking.await.unwrap().unwrap()), [1]);
        assert!(began.elapsed() >= Duration::from_millis(60));
        drop(writer);
    }

    proptest! {
        #[test]
        fn what_changed_is_never_thinned(endings in proptest::collection::vec((0_u8..3, 0_u32..50, 1_i64..30_000), 1..400)) {
            let (writer, reader) = open_spool(1_000, Arc::default());
            for slot_ms in 0..501 {
                writer.push(measured("old", slot_ms));
            }
            let (mut slot_ms, mut pushed) = (0, Vec::new());
            for (ending, latency_us, step) in endings {
                slot_ms += step;
                let outcome = [Outcome::Ok, Outcome::Fail, Outcome::Missed][usize::from(ending)];
                let result = Measured { outcome, latency_us: Some(latency_us), ..measured("web", slot_ms) };
                pushed.push(result.clone());
                writer.push(result);
            }
            let kept: Vec<Measured> = {
                let queue = writer.0.queue();
                queue.waiting.iter().filter(|result| result.check.as_str() == "web").cloned().collect()
            };
            let news = |results: &[Measured]| {
                let mut seen: Vec<(i64, Outcome)> = results.iter().map(|result| (result.slot_ms, result.outcome)).collect();
                seen.dedup_by_key(|(_, outcome)| *outcome);
                seen
            };
            prop_assert_eq!(news(&kept), news(&pushed));
            prop_assert!(kept.is_sorted_by_key(|result| result.slot_ms));
            let slowest = |results: &[Measured]| results.iter().filter_map(|result| result.latency_us).max();
            prop_assert_eq!(slowest(&kept), slowest(&pushed));
            let thinned: u64 = kept.iter().filter_map(|result| result.detail.get(THINNED)?.as_u64()).sum();
            prop_assert_eq!(u64::try_from(pushed.len() - kept.len()).unwrap(), thinned);
            drop(reader);
        }
    }
}
