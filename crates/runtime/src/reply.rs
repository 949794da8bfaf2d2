//! Answering requests: many at once and not too many, accounts in turn, only where the server made the reply subject, in one message.

use std::collections::HashMap;

use bulkhead_bus::CoreSubject;
use bulkhead_bus::payload::{ErrorCode, LIST_LIMIT_MAX, Reply, ReplyError};
use serde::Serialize;
use tokio::task::{Id, JoinSet};
use tracing::warn;

use crate::chain::Chain;

use crate::life::Stop;
use crate::line::Line;
use crate::listen::{Answerer, Responder};
use crate::liveness::Heart;
use crate::metrics::Counter;

/// Rows of one answer as JSON: what does not fit under the server's limit of 1 MiB would not be sent at all.
pub const ANSWER_BYTES_MAX: usize = 900 * 1024;

/// Of one account, so much waits; ten thousand pollers that all ask at once fit in.
const WAITING_BYTES_MOST: usize = 16 << 20;
/// What a request takes beside its body.
const REQUEST_BYTES: usize = 512;

#[must_use]
pub fn refused(code: ErrorCode, message: impl ToString) -> ReplyError {
    ReplyError { code, message: message.to_string() }
}

/// # Panics
/// Never: a reply serializes.
#[must_use]
pub fn encoded<T: Serialize>(reply: &Reply<T>) -> Vec<u8> {
    serde_json::to_vec(reply).expect("a reply serializes")
}

/// How many of the first rows fit into one answer.
///
/// # Panics
/// Never: a row serializes.
#[must_use]
pub fn fitting<T: Serialize>(rows: &[T]) -> usize {
    let mut bytes = 0;
    let fits = rows.iter().take(LIST_LIMIT_MAX as usize).take_while(|row| {
        bytes += serde_json::to_vec(row).expect("a row serializes").len() + 1;
        bytes <= ANSWER_BYTES_MAX
    });
    fits.count()
}

/// How requests are served.
pub struct Served<'a> {
    /// Answered at the same time, at most.
    pub at_once: usize,
    /// And of one account: the others find a place, whatever it asks.
    pub of_one: usize,
    /// Counts what is dropped because its reply subject is not the server's.
    pub unanswerable: &'a Counter,
    pub heart: &'a Heart,
    pub stop: &'a Stop,
}

/// Requests that wait, and those that are answered.
struct Places<'a> {
    served: Served<'a>,
    line: Line<Responder>,
    answering: JoinSet<()>,
    askers: HashMap<Id, String>,
}

impl Places<'_> {
    async fn add(&mut self, request: Responder) {
        if !request.is_answerable() {
            self.served.unanswerable.inc();
            warn!(subject = %request.subject, "request dropped: its reply subject is not the server's");
            return;
        }
        // Whoever answers says what is wrong with a subject without an account.
        let asker = CoreSubject::account_of(&request.subject).map_or_else(|_| String::new(), |key| key.to_string());
        let bytes = request.body.len().saturating_add(REQUEST_BYTES);
        let Err(request) = self.line.add(&asker, request, bytes) else { return };
        warn!(subject = %request.subject, "request refused: too much of this account waits");
        let problem = refused(ErrorCode::Unavailable, "too many requests of this account wait: try again");
        if let Err(error) = request.answer(encoded::<()>(&Reply::Error(problem)).into()).await {
            warn!(error = %Chain(&error), "answer not sent");
        }
    }

    fn begin<F>(&mut self, answer: &impl Fn(Responder) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while self.answering.len() < self.served.at_once
            && let Some((asker, request)) = self.line.take()
        {
            let task = self.answering.spawn(answer(request));
            self.askers.insert(task.id(), asker);
        }
    }

    fn end(&mut self, task: Id) {
        if let Some(asker) = self.askers.remove(&task) {
            self.line.done(&asker);
        }
    }
}

impl Answerer {
    /// Hands each request to `answer`, in a task of its own, until it is to stop. What is being answered then goes on.
    ///
    /// # Errors
    /// Never.
    pub async fn serve<F>(&mut self, served: Served<'_>, answer: impl Fn(Responder) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (heart, stop) = (served.heart, served.stop);
        let line = Line::new(served.of_one, WAITING_BYTES_MOST);
        let mut places = Places { served, line, answering: JoinSet::new(), askers: HashMap::new() };
        loop {
            tokio::select! {
                request = heart.while_waiting(self.next()) => places.add(request).await,
                Some(ended) = places.answering.join_next_with_id() => match ended {
                    Ok((task, ())) => places.end(task),
                    // It has said why.
                    Err(panicked) => places.end(panicked.id()),
                },
                () = stop.cancelled() => {
                    places.answering.detach_all();
                    return Ok(());
                }
            }
            places.begin(&answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_fits_into_one_message() {
        let rows_max = LIST_LIMIT_MAX as usize;
        let check = |rows: Vec<String>, expected: usize| assert_eq!(fitting(&rows), expected);
        check(vec![], 0);
        check(vec!["x".to_owned(); rows_max + 5], rows_max);
        check(vec!["x".repeat(100 * 1024); 20], 8);
        check(vec!["x".repeat(ANSWER_BYTES_MAX)], 0);
        let rows = vec!["x".repeat(2_000); rows_max];
        let answer = encoded(&Reply::Rows(rows[..fitting(&rows)].to_vec()));
        assert!(answer.len() < 1 << 20, "{}", answer.len());
    }
}
