//! Distributions of durations, ages and amounts, each over buckets of its own.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric, histogram};

/// Where the buckets of a histogram end.
pub trait Buckets: fmt::Debug + Send + Sync + 'static {
    const ENDS: &'static [f64];
}

/// How long something took: from a millisecond to beyond every limit there is.
#[derive(Debug)]
pub enum Durations {}

/// How old something is: from a hundredth of a second to a week of outage.
#[derive(Debug)]
pub enum Ages {}

/// How many of something there are together.
#[derive(Debug)]
pub enum Amounts {}

impl Buckets for Durations {
    const ENDS: &'static [f64] =
        &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
}

impl Buckets for Ages {
    const ENDS: &'static [f64] = &[
        0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 86_400.0,
        604_800.0,
    ];
}

impl Buckets for Amounts {
    const ENDS: &'static [f64] = &[1.0, 10.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0];
}

/// A distribution over the buckets of `B`. Clones share it.
#[derive(Debug)]
pub struct Histogram<B>(histogram::Histogram, PhantomData<B>);

impl<B> Clone for Histogram<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<B: Buckets> Default for Histogram<B> {
    fn default() -> Self {
        Self(histogram::Histogram::new(B::ENDS.iter().copied()), PhantomData)
    }
}

impl Histogram<Durations> {
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

impl Histogram<Ages> {
    /// The age now of what is from `then_ms`; what a clock places in the future is new.
    pub fn observe_since(&self, then_ms: i64, now_ms: i64) {
        self.0.observe(age_seconds(then_ms, now_ms));
    }
}

impl Histogram<Amounts> {
    pub fn observe(&self, amount: usize) {
        self.0.observe(f64::from(u32::try_from(amount).unwrap_or(u32::MAX)));
    }
}

impl<B> TypedMetric for Histogram<B> {
    const TYPE: MetricType = MetricType::Histogram;
}

impl<B> EncodeMetric for Histogram<B> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Seconds from `then_ms` to `now_ms`, never less than none.
#[must_use]
pub fn age_seconds(then_ms: i64, now_ms: i64) -> f64 {
    Duration::from_millis(now_ms.saturating_sub(then_ms).max(0).unsigned_abs()).as_secs_f64()
}
