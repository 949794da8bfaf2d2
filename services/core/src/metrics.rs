//! What core counts and measures. docs/metrics.md says what to do about each; a test compares the two.

use bulkhead_runtime::Counter;

bulkhead_runtime::metrics! {
    /// Since the start of this process.
    pub struct Metrics("core") {
        /// Batches taken from a stream, redeliveries included.
        batches_received: Counter,
        /// Rows stored for the first time.
        results_committed: Counter,
        /// Rows that took the place of a worse one.
        results_replaced: Counter,
        /// Rows that were there already.
        results_duplicate: Counter,
        /// Messages or rows dead-lettered.
        dead_letters: Counter,
        /// Dead letters that were only counted, because the tenant has its fill of them.
        dead_letters_not_kept: Counter,
        /// Deliveries put back because the database was away or the account not known yet.
        deliveries_retried: Counter,
        /// Messages and queries that the guard refused.
        guard_refusals: Counter,
        /// Queries answered.
        queries_answered: Counter,
        /// Answers that had more rows than one message holds.
        answers_cut: Counter,
        /// Requests whose reply subject was not made by the server.
        requests_unanswerable: Counter,
        /// Live messages shown.
        live_received: Counter,
        /// Live messages dropped: unreadable, refused, or beyond a tenant's limit.
        live_dropped: Counter,
    }
}

/// Adds to a counter.
pub fn add(counter: &Counter, count: u64) {
    counter.inc_by(count);
}
