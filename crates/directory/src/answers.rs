//! What the database said when it was last asked, and what a service shows of it.

use bulkhead_runtime::{Counter, Gauge, Labelled, Page, Reached, Said};
use bulkhead_store::{Store, StoreError};

bulkhead_runtime::label! {
    /// How the database failed.
    pub enum Failure("failure") {
        /// Away or too slow: what was asked is asked again.
        Transient = "transient",
        /// It cannot take what it was given, and never will.
        Refused = "refused",
        /// It refuses what is good: a right, a column or a partition is missing. What was asked is asked again.
        Misconfigured = "misconfigured",
    }
}

impl Failure {
    /// `None` when it did as it should: nothing is stored for a tenant that leaves, or whose rows are being moved.
    #[must_use]
    pub fn of(error: &StoreError) -> Option<Self> {
        if let StoreError::TenantClosed { .. } | StoreError::Moved { .. } = error {
            return None;
        }
        Some(if error.is_transient() {
            Self::Transient
        } else if error.is_the_datas_fault() {
            Self::Refused
        } else {
            Self::Misconfigured
        })
    }
}

/// What the database said the last time that anybody asked it. Clones share it.
#[derive(Clone)]
pub struct Answers {
    pub reached: Reached,
    /// Whether it has taken whatever was good lately: its rights and its schemas are what core needs.
    pub usable: Reached,
    /// Whether the last transaction that was to store something did not fail for want of the database: one that answers
    /// questions may still store nothing, behind a lock or a dead disk.
    pub writable: Reached,
    pub said: Said,
    errors: Labelled<Failure, Counter>,
}

impl Answers {
    /// Shows it on the page, by this gauge and these counters of it.
    #[must_use]
    pub fn new(page: &Page, gauge: Gauge, errors: Labelled<Failure, Counter>) -> Self {
        let (reached, usable, writable) = (Reached::default(), Reached::default(), Reached::default());
        usable.set(true);
        writable.set(true);
        let shown = reached.clone();
        page.before_rendering(move || {
            gauge.set(i64::from(shown.get()));
        });
        Self { reached, usable, writable, said: Said::default(), errors }
    }

    /// How often the database has refused what is good.
    #[must_use]
    pub fn misconfigured(&self) -> u64 {
        self.errors.of(Failure::Misconfigured).get()
    }

    /// A database that refuses something is there. One that refuses what is good stays unusable until the observer has
    /// seen that it does so no more: what it refuses is tried again more often than that.
    pub fn note<T>(&self, answered: &Result<T, StoreError>) {
        let failure = answered.as_ref().err().and_then(Failure::of);
        self.reached.set(failure != Some(Failure::Transient));
        if failure == Some(Failure::Misconfigured) {
            self.usable.set(false);
        }
        if let Some(failure) = failure {
            self.errors.of(failure).inc();
        }
    }

    /// As [`Self::note`], of a transaction that was to store something.
    pub fn note_write<T>(&self, written: &Result<T, StoreError>) {
        self.note(written);
        match written.as_ref().err().and_then(Failure::of) {
            None => self.writable.set(true),
            Some(Failure::Transient) => self.writable.set(false),
            // It was there to refuse.
            Some(Failure::Refused | Failure::Misconfigured) => {}
        }
    }
}

bulkhead_runtime::label! {
    /// What a connection to the database does.
    pub enum PoolState("state") {
        Used = "used",
        Idle = "idle",
    }
}

/// Shows the pool as it is whenever the page is rendered.
pub fn show_connections(page: &Page, connections: Labelled<PoolState, Gauge>, store: Store) {
    page.before_rendering(move || {
        let (used, idle) = store.connections();
        connections.of(PoolState::Used).set(i64::try_from(used).unwrap_or(i64::MAX));
        connections.of(PoolState::Idle).set(i64::try_from(idle).unwrap_or(i64::MAX));
    });
}
