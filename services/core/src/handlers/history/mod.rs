//! Questions about the past: one check by bucket, how checks did over a window, what a poller delivered. They may read many
//! rows, so that few are answered at once, each within a time, and about one tenant: the others never wait long behind them.

pub mod store;
pub mod window;

use std::sync::Arc;
use std::time::Duration;

use bulkhead_bus::payload::{ErrorCode, GapKind, GapRow, LIST_LIMIT_MAX, Query, ReplyError};
use bulkhead_bus::{CheckName, PollerName, SiteName, Tenant};
use bulkhead_runtime::{now_ms, refused};
use bulkhead_store::TenantTx;
use tokio::sync::{Semaphore, SemaphorePermit};

use self::window::{Buckets, Window};
use super::ledger::{self, Ledger};
use super::query::{Answering, Unanswered};

/// Of the store's connections others need some.
const AT_ONCE: usize = 2;
/// Whoever comes when so many are there is told to come again: they would wait longer than anybody waits for an answer.
const WAITING_MOST: usize = 8;
/// So that with the time of the statement nobody has stopped waiting for the answer.
const TURN_LIMIT: Duration = Duration::from_millis(1_500);
const LIMIT_DEFAULT: u32 = LIST_LIMIT_MAX;

/// A question about the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    Check,
    Uptime,
    Poller,
    Gaps,
}

/// Who may look back now.
#[derive(Debug, Clone)]
pub struct Turns {
    there: Arc<Semaphore>,
    looking: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { there: Arc::new(Semaphore::new(WAITING_MOST + AT_ONCE)), looking: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// Until it is dropped, one place of those who look back.
#[derive(Debug)]
struct Turn<'a> {
    _there: SemaphorePermit<'a>,
    _looking: SemaphorePermit<'a>,
}

impl Turns {
    async fn take(&self) -> Result<Turn<'_>, ReplyError> {
        let busy = || refused(ErrorCode::Unavailable, "too many look back at once: try again");
        let there = self.there.try_acquire().map_err(|_| busy())?;
        let looking = tokio::time::timeout(TURN_LIMIT, self.looking.acquire()).await;
        let looking = looking.ok().and_then(Result::ok).ok_or_else(busy)?;
        Ok(Turn { _there: there, _looking: looking })
    }
}

/// What is asked, with everything that it needs.
enum Asked<'a> {
    Check { check: &'a CheckName, buckets: Buckets },
    Uptime { window: Window },
    Poller { site: &'a SiteName, poller: &'a PollerName, buckets: Buckets },
    Gaps { window: Window },
}

impl<'a> Asked<'a> {
    fn of(past: Past, asked: &'a Query, now_ms: i64) -> Result<Self, ReplyError> {
        let invalid = |error: &dyn ToString| refused(ErrorCode::Invalid, error.to_string());
        let buckets = || Buckets::of(asked, now_ms).map_err(|error| invalid(&error));
        match past {
            Past::Check => {
                let check = asked.check.as_ref();
                let check = check.ok_or_else(|| invalid(&"no check is named: a history is of one, name it"))?;
                Ok(Self::Check { check, buckets: buckets()? })
            }
            Past::Uptime => Ok(Self::Uptime { window: Window::of(asked, now_ms).map_err(|error| invalid(&error))? }),
            Past::Gaps => Ok(Self::Gaps { window: Window::of(asked, now_ms).map_err(|error| invalid(&error))? }),
            Past::Poller => {
                let named = asked.site.as_ref().zip(asked.poller.as_ref());
                let (site, poller) =
                    named.ok_or_else(|| invalid(&"no poller is named: this is of one, name its site and itself"))?;
                Ok(Self::Poller { site, poller, buckets: buckets()? })
            }
        }
    }
}

impl Answering {
    /// The answer about the one tenant of `tenants`.
    pub(super) async fn look_back<'t>(
        &self,
        past: Past,
        mut tenants: impl Iterator<Item = &'t Tenant>,
        asked: &Query,
    ) -> Result<Vec<u8>, Unanswered> {
        let now_ms = now_ms();
        let question = Asked::of(past, asked, now_ms)?;
        let (Some(tenant), None) = (tenants.next(), tenants.next()) else {
            let problem = "more or less than one tenant is asked about: the past is of one at a time, name it";
            return Err(refused(ErrorCode::Invalid, problem).into());
        };
        let _turn = self.turns.take().await?;
        self.past(tenant, asked, &question, now_ms).await.map_err(|unanswered| match unanswered {
            Unanswered::Failed(failure) if store::is_cancelled(&failure) => {
                let problem = "this takes longer than anybody waits for it: ask for a shorter window, or for one site";
                refused(ErrorCode::Invalid, problem).into()
            }
            Unanswered::Failed(_) | Unanswered::Refused(_) => unanswered,
        })
    }

    async fn past(
        &self,
        tenant: &Tenant,
        asked: &Query,
        question: &Asked<'_>,
        now_ms: i64,
    ) -> Result<Vec<u8>, Unanswered> {
        let limit = asked.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIST_LIMIT_MAX) as usize;
        let mut tx = self.store.begin(tenant).await?;
        store::limit_time(&mut tx).await?;
        if let Some(missing) = store::find_missing(&mut tx, tenant, asked).await? {
            return Err(refused(ErrorCode::NotFound, missing).into());
        }
        match *question {
            Asked::Check { check, buckets } => {
                let of = (check, asked.site.as_ref());
                Ok(self.answer_rows(store::list_history(&mut tx, tenant, of, buckets, limit).await?))
            }
            Asked::Uptime { window } => {
                Ok(self.answer_rows(store::list_uptime(&mut tx, tenant, asked, (window, now_ms), limit).await?))
            }
            Asked::Poller { site, poller, buckets } => {
                let of = (site, poller);
                Ok(self.answer_rows(store::list_poller_history(&mut tx, tenant, of, buckets, limit).await?))
            }
            Asked::Gaps { window } => {
                let mut gaps = list_gaps(&mut tx, tenant, asked, (window, now_ms)).await?;
                // What must never be is shown first, however much else there is.
                gaps.sort_by_key(|gap| (gap.kind != GapKind::Silent, std::cmp::Reverse(gap.last_slot_ms)));
                gaps.truncate(limit);
                Ok(self.answer_rows(gaps))
            }
        }
    }
}

/// Slots without a measurement, and what became of them.
async fn list_gaps(
    tx: &mut TenantTx,
    tenant: &Tenant,
    asked: &Query,
    (window, now_ms): (Window, i64),
) -> Result<Vec<GapRow>, Unanswered> {
    let too_much = |what: String| {
        refused(ErrorCode::Invalid, format!("{what}: ask for a shorter window, for one check or for one site"))
    };
    let bounds = (window.since_ms, window.until_ms.min(now_ms));
    let spans = ledger::store::list_spans(tx, tenant, asked, bounds).await?;
    if spans.len() > ledger::store::SPANS_MOST {
        return Err(too_much(format!("more than {} times of checks are asked about", ledger::store::SPANS_MOST)).into());
    }
    let slots = spans.iter().enumerate();
    let slots: Vec<_> =
        slots.filter_map(|(number, span)| Some((number, span, span.slots(bounds.0, bounds.1)?))).collect();
    let count: i64 = slots.iter().map(|(_, _, slots)| slots.count()).sum();
    if count > ledger::SLOTS_MOST {
        return Err(too_much(format!("{count} slots are asked about, and {} is the most", ledger::SLOTS_MOST)).into());
    }
    let empty = ledger::store::list_empty(tx, tenant, &slots).await?;
    if i64::try_from(empty.len()).unwrap_or(i64::MAX) >= ledger::store::EMPTY_MOST {
        return Err(too_much(format!("{} slots or more have no measurement", ledger::store::EMPTY_MOST)).into());
    }
    let absences = ledger::store::list_absences(tx, tenant, asked, bounds).await?;
    let ledger = Ledger { spans: &spans, absences: &absences, thinned: &[], now_ms };
    let gaps = ledger.gaps(&tenant.slug, &empty);
    // It is looked for only where something is missing that nobody accounts for: no index helps.
    if gaps.iter().all(|gap| gap.kind != GapKind::Silent) {
        return Ok(gaps);
    }
    let thinned = ledger::store::list_thinned(tx, tenant, asked, bounds).await?;
    Ok(Ledger { thinned: &thinned, ..ledger }.gaps(&tenant.slug, &empty))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn few_look_back_at_once_some_wait_and_the_rest_is_told_to_come_again() {
        let turns = Turns::default();
        let mut looking = Vec::new();
        for _ in 0..AT_ONCE {
            looking.push(turns.take().await.unwrap());
        }
        let mut waiting: Vec<_> = (0..WAITING_MOST).map(|_| Box::pin(turns.take())).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let refused = turns.take().now_or_never().expect("nobody waits for this").unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        looking.pop();
        assert!(waiting.swap_remove(0).await.is_ok());
        assert!(Box::pin(turns.take()).now_or_never().is_none(), "there is a place to wait in again");
    }

    #[test]
    fn a_question_that_names_too_little_is_refused() {
        let check = |past, asked: &Query, expected: &str| match Asked::of(past, asked, 1_000_000_000_000) {
            Ok(_) => assert_eq!(expected, ""),
            Err(ReplyError { code, message }) => assert_eq!((code, message.as_str()), (ErrorCode::Invalid, expected)),
        };
        let named = Query {
            check: Some("web".parse().unwrap()),
            site: Some("oslo".parse().unwrap()),
            poller: Some("p1".parse().unwrap()),
            ..Query::default()
        };
        let unnamed = "no check is named: a history is of one, name it";
        check(Past::Check, &Query { check: None, ..named.clone() }, unnamed);
        check(Past::Check, &named, "");
        check(Past::Uptime, &Query::default(), "");
        let unnamed = "no poller is named: this is of one, name its site and itself";
        check(Past::Poller, &Query { site: None, ..named.clone() }, unnamed);
        check(Past::Poller, &Query { poller: None, ..named.clone() }, unnamed);
        check(Past::Poller, &named, "");
        let bucket = "bucket_s is 0: write 1 to 604800 seconds, or leave it out";
        check(Past::Poller, &Query { bucket_s: Some(0), ..named.clone() }, bucket);
        check(Past::Check, &Query { bucket_s: Some(0), ..named }, bucket);
    }
}
