//! Answering requests: many at once and not too many, only where the server made the reply subject, in one message.

use std::sync::Arc;

use anyhow::Context;
use bulkhead_bus::payload::{ErrorCode, LIST_LIMIT_MAX, Reply, ReplyError};
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::life::Stop;
use crate::listen::{Answerer, Responder};
use crate::liveness::Heart;
use crate::metrics::Counter;

/// Rows of one answer as JSON: what does not fit under the server's limit of 1 MiB would not be sent at all.
pub const ANSWER_BYTES_MAX: usize = 900 * 1024;

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
    /// Counts what is dropped because its reply subject is not the server's.
    pub unanswerable: &'a Counter,
    pub heart: &'a Heart,
    pub stop: &'a Stop,
}

impl Answerer {
    /// Hands each request to `answer`, in a task of its own, until it is to stop.
    ///
    /// # Errors
    /// Never, but for a semaphore that is closed, which nobody does.
    pub async fn serve<F>(&mut self, served: Served<'_>, answer: impl Fn(Responder) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(served.at_once));
        loop {
            let request = tokio::select! {
                request = served.heart.while_waiting(self.next()) => request,
                () = served.stop.cancelled() => return Ok(()),
            };
            if !request.is_answerable() {
                served.unanswerable.inc();
                warn!(subject = %request.subject, "request dropped: its reply subject is not the server's");
                continue;
            }
            let place =
                served.heart.while_waiting(Arc::clone(&places).acquire_owned()).await.context("take a place")?;
            let answering = answer(request);
            tokio::spawn(async move {
                answering.await;
                drop(place);
            });
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
