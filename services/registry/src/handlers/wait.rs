//! `watch_members`: a question that waits until there is news, for a limited time, and not too many of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bulkhead_bus::payload::{ErrorCode, MemberQuery, MemberRow, Reply, ReplyError};
use bulkhead_bus::{AccountKey, CoreSubject, Guarded};
use bulkhead_runtime::{Gauge, Responder, encoded, refused};
use tokio::time::Instant;

use super::question::rows_of;
use super::{Answering, parsed, send};

/// How long a question may wait.
const WAIT_MOST: Duration = Duration::from_secs(30);

/// Who waits. Clones share it.
#[derive(Clone)]
pub struct Waits {
    waiting: Arc<Mutex<HashMap<AccountKey, usize>>>,
    gauge: Gauge,
    most: usize,
    of_tenant_most: usize,
}

/// A place among those who wait, until it is dropped.
struct Place {
    waits: Waits,
    account: AccountKey,
}

impl Waits {
    #[must_use]
    pub fn new(gauge: Gauge, most: usize, of_tenant_most: usize) -> Self {
        Self { waiting: Arc::default(), gauge, most, of_tenant_most }
    }

    fn take(&self, account: &AccountKey) -> Option<Place> {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        let total: usize = waiting.values().sum();
        let own = waiting.get(account).copied().unwrap_or_default();
        if total >= self.most || own >= self.of_tenant_most {
            return None;
        }
        waiting.insert(account.clone(), own + 1);
        self.gauge.inc();
        Some(Place { waits: self.clone(), account: account.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.waits.waiting.lock().expect("no holder panics");
        if let Some(own) = waiting.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                waiting.remove(&self.account);
            }
        }
        self.waits.gauge.dec();
    }
}

impl Answering {
    /// Answers later, in a task of its own.
    pub(super) fn watch(&self, subject: CoreSubject, request: Responder) {
        let own = self.clone();
        tokio::spawn(async move {
            let answered = own.watched(subject, &request.body).await;
            own.metrics.questions_answered.inc();
            let answer = match answered {
                Ok(rows) => own.rows(rows),
                Err(error) => encoded::<()>(&Reply::Error(error)),
            };
            send(request, answer).await;
        });
    }

    async fn watched(&self, subject: CoreSubject, body: &[u8]) -> Result<Vec<MemberRow>, ReplyError> {
        let account = subject.account.clone();
        let guarded = self.admit(subject, parsed(body)?)?;
        let place = self.waits.take(&account);
        let _place = place.ok_or_else(|| {
            self.metrics.waits_refused.inc();
            refused(ErrorCode::Unavailable, "too many questions wait already: ask without waiting, or later")
        })?;
        self.news(&guarded).await
    }

    /// The rows once one of them is newer than what the asker has, or is another one than at first, or time is up.
    async fn news(&self, guarded: &Guarded<MemberQuery>) -> Result<Vec<MemberRow>, ReplyError> {
        let asked = guarded.body();
        let wait = asked.wait_ms.map_or(WAIT_MOST, Duration::from_millis).min(WAIT_MOST);
        let end = Instant::now() + wait;
        let mut changes = self.view.changes();
        changes.mark_unchanged();
        let first = self.meant(guarded).await?;
        // Without a revision everything is news.
        if asked.after_revision.is_none_or(|after| first.iter().any(|found| found.news > after)) {
            return Ok(rows_of(first));
        }
        let first = rows_of(first);
        loop {
            if !matches!(tokio::time::timeout_at(end, changes.changed()).await, Ok(Ok(()))) {
                return Ok(rows_of(self.meant(guarded).await?));
            }
            let rows = rows_of(self.meant(guarded).await?);
            if outlines(&rows) != outlines(&first) {
                return Ok(rows);
            }
        }
    }
}

/// What is news of a member when it changes: not that it has renewed its lease.
fn outlines(rows: &[MemberRow]) -> Vec<MemberRow> {
    let outline = |row: &MemberRow| MemberRow {
        revision: None,
        renewed_ms: None,
        clock_ahead_ms: 0,
        load: Default::default(),
        ..row.clone()
    };
    rows.iter().map(outline).collect()
}
