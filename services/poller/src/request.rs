//! Questions to the hub, signed as batches are: subject, number and body together, so that no answer can be had with what
//! somebody else wrote down. Numbers grow in the order in which questions leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_bus::TenantSubject;
use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{Reply, ReplyError};
use bulkhead_runtime::{Bus, Headers, RequestError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::key::{BatchSigner, SignError};

/// Why a question has no useful answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("the leaf is away")]
    LeafAway,
    #[error("ask")]
    Request(#[source] RequestError),
    #[error("write a question")]
    Encode(#[source] serde_json::Error),
    #[error("sign a question")]
    Sign(#[source] SignError),
    #[error("the answer is not readable")]
    Unreadable(#[source] serde_json::Error),
    #[error("{}", .0.message)]
    Said(ReplyError),
}

/// Signs the questions of one start; clones share their numbers. Questions to one service leave one after the other: whoever
/// answers takes no number that is smaller than one before.
#[derive(Clone)]
pub(crate) struct RequestSigner {
    signer: Arc<BatchSigner>,
    boot: u64,
    last: Arc<AtomicU64>,
    turn: Arc<Mutex<()>>,
}

impl RequestSigner {
    pub(crate) fn new(signer: Arc<BatchSigner>, boot: u64) -> Self {
        Self { signer, boot, last: Arc::default(), turn: Arc::default() }
    }

    /// For another service: the same numbers, and turns of its own.
    pub(crate) fn apart(&self) -> Self {
        Self { turn: Arc::default(), ..self.clone() }
    }

    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    fn sign(&self, subject: &str, body: &[u8]) -> Result<Headers, SignError> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let sequence = Sequence { boot: self.boot, number };
        let signature = self.signer.sign(&header::signed_request_bytes(subject, sequence, body))?;
        let mut headers = Headers::default();
        headers.set(header::KEY, self.signer.public_key());
        headers.set(header::SEQUENCE, &sequence.to_string());
        headers.set(header::SIGNATURE, &header::encode_signature(&signature));
        Ok(headers)
    }

    /// Asks, and waits for the rows of the answer.
    ///
    /// # Errors
    /// When nobody answers in time, or with an error.
    pub(crate) async fn ask<R: DeserializeOwned>(
        &self,
        bus: &Bus,
        subject: &TenantSubject,
        question: &impl Serialize,
        limit: Duration,
    ) -> Result<Vec<R>, AskError> {
        let body = serde_json::to_vec(question).map_err(AskError::Encode)?;
        let subject = subject.to_string();
        let _turn = self.turn.lock().await;
        // A client that is not connected keeps questions, and they would leave late.
        if !bus.is_connected() {
            return Err(AskError::LeafAway);
        }
        let headers = self.sign(&subject, &body).map_err(AskError::Sign)?;
        let answer = bus.request_with(&subject, headers, body.into(), limit).await.map_err(AskError::Request)?;
        match serde_json::from_slice(&answer).map_err(AskError::Unreadable)? {
            Reply::Rows(rows) => Ok(rows),
            Reply::Error(error) => Err(AskError::Said(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_signed_for_their_subject_and_numbers_grow_across_services() {
        let signer = RequestSigner::new(Arc::new(BatchSigner::from_key(nkeys::KeyPair::new_user())), 7);
        let other = signer.apart();
        let subject = "up.oslo.p1.rpc.registry.renew";
        for (signer, number) in [(&signer, 1), (&other, 2), (&signer, 3)] {
            let headers = signer.sign(subject, b"{}").unwrap();
            let seen = header::verify_request(|name| headers.get(name), subject, b"{}").unwrap().unwrap();
            assert_eq!(seen.sequence, Sequence { boot: 7, number });
            assert!(header::verify_request(|name| headers.get(name), "up.oslo.p2.rpc.registry.renew", b"{}").is_err());
        }
    }
}
