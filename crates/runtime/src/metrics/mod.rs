//! What a process counts and measures, and the page that shows it in the OpenMetrics text format.
//!
//! [`metrics!`](crate::metrics) declares each once, with its help. Labels come from closed sets, and every child of one is
//! made at the start, so that counting looks nothing up. An id, a slug or a name is never a label: it would tell whoever
//! reads the page about tenants, and there is no end to them.

mod histogram;
mod label;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::{counter, gauge};
use prometheus_client::registry::{Metric, Registry, Unit};

pub use histogram::{Ages, Amounts, Buckets, Durations, Histogram, age_seconds};
pub use label::{Label, LabelSet, Labelled};

/// Only ever grows; shown as `<name>_total`.
pub type Counter = counter::Counter<u64, AtomicU64>;
/// A whole number that goes up and down.
pub type Gauge = gauge::Gauge;
/// Seconds that go up and down.
pub type SecondsGauge = gauge::Gauge<f64, AtomicU64>;

/// What the page is sent as.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics that are being declared; [`metrics!`](crate::metrics) does it.
#[derive(Debug)]
pub struct Declaring(Registry);

impl Declaring {
    /// All names begin with `<prefix>_`.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self(Registry::with_prefix(prefix))
    }

    /// A name that ends in a unit says so on the page as well.
    pub fn add(&mut self, name: &str, help: &str, metric: impl Metric) {
        // The format's own library ends the help with a full stop.
        let help = help.trim().trim_end_matches('.');
        let units = [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)];
        let with_unit = units.into_iter().find_map(|(suffix, unit)| name.strip_suffix(suffix).map(|stem| (stem, unit)));
        match with_unit {
            Some((stem, unit)) => self.0.register_with_unit(stem, help, unit, metric),
            None => self.0.register(name, help, metric),
        }
    }

    #[must_use]
    pub fn page(self) -> Page {
        Page(Arc::new(Inner { registry: self.0, looks: Mutex::default() }))
    }
}

type Look = Box<dyn Fn() + Send + Sync>;

struct Inner {
    registry: Registry,
    looks: Mutex<Vec<Look>>,
}

/// What `/metrics` shows. Clones share it.
#[derive(Clone)]
pub struct Page(Arc<Inner>);

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl Page {
    /// Calls `look` before each rendering: for gauges of what can be read at once, such as the size of a pool.
    pub fn before_rendering(&self, look: impl Fn() + Send + Sync + 'static) {
        self.0.looks.lock().expect("no look panics").push(Box::new(look));
    }

    /// # Panics
    /// Never: text takes everything that is written to it.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.looks.lock().expect("no look panics").iter().for_each(|look| look());
        let mut text = String::new();
        encode(&mut text, &self.0.registry).expect("metrics are written to text");
        text
    }

    /// `name=value` of every counter, for the last line of the log; of labelled ones only what was counted.
    #[must_use]
    pub fn counters(&self) -> String {
        let text = self.to_text();
        let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
        let is_said = |(name, value): &(&str, &str)| match name.split_once('{') {
            Some((name, _)) => name.ends_with("_total") && *value != "0",
            None => name.ends_with("_total"),
        };
        samples.filter(is_said).map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }
}

/// Declares a service's metrics: one struct, whose fields' comments are the help on the page.
///
/// ```
/// bulkhead_runtime::metrics! {
///     /// What this counts.
///     pub struct Metrics("sample") {
///         /// Things done.
///         things_done: bulkhead_runtime::Counter,
///     }
/// }
/// let metrics = Metrics::default();
/// metrics.things_done.inc();
/// assert!(metrics.page.to_text().contains("sample_things_done_total 1"));
/// ```
#[macro_export]
macro_rules! metrics {
    ($(#[$about:meta])* $vis:vis struct $name:ident($prefix:literal) {
        $($(#[doc = $help:literal])+ $field:ident: $kind:ty),+ $(,)?
    }) => {
        $(#[$about])*
        #[derive(Debug)]
        $vis struct $name {
            /// What `/metrics` shows.
            pub page: $crate::Page,
            $($(#[doc = $help])+ pub $field: $kind),+
        }

        impl Default for $name {
            fn default() -> Self {
                let mut declaring = $crate::Declaring::new($prefix);
                $(
                    let $field = <$kind>::default();
                    declaring.add(stringify!($field), concat!($($help),+), $field.clone());
                )+
                Self { page: declaring.page(), $($field),+ }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_bus::Lane;
    use bulkhead_bus::payload::{CheckKind, Outcome};
    use std::time::Duration;

    metrics! {
        struct Sample("sample") {
            /// Things done.
            done: Counter,
            /// Results by how they ended,
            /// on two lines.
            results: Labelled<Outcome, Counter>,
            /// What waits.
            waiting: Labelled<(Lane, CheckKind), Gauge>,
            /// How long it takes.
            work_seconds: Labelled<Lane, Histogram<Durations>>,
            /// Room on the disk.
            free_bytes: Gauge,
        }
    }

    #[test]
    fn every_child_is_there_from_the_start_in_the_order_of_its_labels() {
        let text = Sample::default().page.to_text();
        let found: Vec<&str> = text.lines().filter(|line| line.starts_with("sample_results_total")).collect();
        let expected =
            ["ok", "fail", "error", "missed"].map(|word| format!("sample_results_total{{outcome=\"{word}\"}} 0"));
        assert_eq!(found, expected);
        assert_eq!(text.matches("\nsample_waiting{").count(), 8);
        assert!(text.contains("sample_waiting{lane=\"backfill\",kind=\"icmp\"} 0"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn comments_are_the_help_and_names_tell_the_unit() {
        let text = Sample::default().page.to_text();
        assert!(text.contains("# HELP sample_results Results by how they ended, on two lines.\n"), "{text}");
        assert!(text.contains("# UNIT sample_work_seconds seconds\n"), "{text}");
        assert!(text.contains("# UNIT sample_free_bytes bytes\n"), "{text}");
    }

    #[test]
    fn what_is_counted_is_shown_and_the_closing_line_has_counters_only() {
        let metrics = Sample::default();
        metrics.done.inc_by(3);
        metrics.results.of(Outcome::Fail).inc();
        metrics.waiting.of((Lane::Results, CheckKind::Dns)).set(-1);
        metrics.work_seconds.of(Lane::Backfill).observe(Duration::from_millis(3));
        let gauge = metrics.free_bytes.clone();
        metrics.page.before_rendering(move || {
            gauge.set(7);
        });
        let text = metrics.page.to_text();
        for line in [
            "sample_done_total 3",
            "sample_results_total{outcome=\"fail\"} 1",
            "sample_waiting{lane=\"results\",kind=\"dns\"} -1",
            "sample_work_seconds_bucket{le=\"0.005\",lane=\"backfill\"} 1",
            "sample_work_seconds_bucket{le=\"0.002\",lane=\"backfill\"} 0",
            "sample_free_bytes 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        let closing = metrics.page.counters();
        assert_eq!(closing, "sample_done_total=3 sample_results_total{outcome=\"fail\"}=1");
    }

    #[test]
    fn ages_never_are_negative() {
        assert!((age_seconds(1_000, 3_500) - 2.5).abs() < 1e-9);
        assert!(age_seconds(5_000, 1_000).abs() < 1e-9);
        assert!(age_seconds(i64::MIN, i64::MAX) > 1e9);
    }
}
