//! What core counts. Names are `core_<field>_total`; labels come later, from closed sets only.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters since the start of this process.
        #[derive(Debug, Default)]
        pub struct Metrics { $($(#[$doc])* pub $name: AtomicU64),+ }

        impl Metrics {
            /// `name=value` of every counter, for the log.
            #[must_use]
            pub fn to_text(&self) -> String {
                [$((stringify!($name), self.$name.load(Ordering::Relaxed))),+]
                    .map(|(name, value)| format!("core_{name}_total={value}"))
                    .join(" ")
            }
        }
    };
}

counters! {
    /// Batches taken from a stream, redeliveries included.
    batches_received,
    /// Rows stored for the first time.
    results_committed,
    /// Rows that took the place of a worse one.
    results_replaced,
    /// Rows that were there already.
    results_duplicate,
    /// Messages or rows dead-lettered.
    dead_letters,
    /// Dead letters that were only counted, because the tenant has its fill of them.
    dead_letters_not_kept,
    /// Deliveries put back because the database was away or the account not known yet.
    deliveries_retried,
    /// How often a consumer was made anew because a message was stranded in its stream.
    stranded_freed,
    /// Messages and queries that the guard refused.
    guard_refusals,
    /// Queries answered.
    queries_answered,
    /// Answers that had more rows than one message holds.
    answers_cut,
    /// Requests whose reply subject was not made by the server.
    requests_unanswerable,
    /// Live messages shown.
    live_received,
    /// Live messages dropped: unreadable, refused, or beyond a tenant's limit.
    live_dropped,
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
