//! Batches: results become bytes once, are signed as these bytes, and never change again, however often they are sent.

use std::sync::Arc;

use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{BATCH_VERSION, Measured, ResultBatch};
use bulkhead_bus::{MAX_BATCH_BYTES, PollerName, SiteName, TenantSlug};
use bulkhead_runtime::Headers;
use bytes::Bytes;

use crate::key::{BatchSigner, SignError};

/// Room for the three headers of a batch with their framing; they take about 280 bytes.
const HEADER_BYTES: usize = 512;
/// What the body of a batch may hold.
const BODY_BYTES_MOST: usize = MAX_BATCH_BYTES.unsigned_abs() as usize - HEADER_BYTES;

/// Why results did not become a batch: our own broken promise, nothing that input can cause.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("encode a batch")]
    Encode(#[source] serde_json::Error),
    #[error("sign a batch")]
    Sign(#[source] SignError),
}

/// Whose results these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) tenant: TenantSlug,
    pub(crate) site: SiteName,
    pub(crate) poller: PollerName,
}

/// A batch as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct SignedBatch {
    pub(crate) headers: Headers,
    pub(crate) body: Bytes,
    pub(crate) sequence: Sequence,
    pub(crate) results: usize,
}

/// Makes batches of one start of one poller; their numbers grow by one.
pub(crate) struct BatchBuilder {
    identity: Identity,
    signer: Arc<BatchSigner>,
    results_most: usize,
    next: Sequence,
}

/// How many of the first results fit into `room` bytes, at most `most` and at least one.
pub(crate) fn count_fitting(sizes: &[usize], room: usize, most: usize) -> usize {
    let mut used = 0;
    let fitting = sizes.iter().take(most).take_while(|size| {
        // The comma between two results.
        used += **size + 1;
        used <= room
    });
    fitting.count().max(1).min(sizes.len())
}

/// The size of each result as JSON.
pub(crate) fn measure_sizes(results: &[Measured]) -> Result<Vec<usize>, serde_json::Error> {
    results.iter().map(|result| serde_json::to_vec(result).map(|bytes| bytes.len())).collect()
}

impl BatchBuilder {
    pub(crate) fn new(identity: Identity, signer: Arc<BatchSigner>, results_most: usize, boot: u64) -> Self {
        Self { identity, signer, results_most, next: Sequence { boot, number: 1 } }
    }

    /// All of `results`, in order, in as many batches as they need.
    ///
    /// # Errors
    /// When results cannot be encoded or signed, which settings and payload types rule out.
    pub(crate) fn build(&mut self, mut results: Vec<Measured>) -> Result<Vec<SignedBatch>, BatchError> {
        let sizes = measure_sizes(&results).map_err(BatchError::Encode)?;
        let envelope = serde_json::to_vec(&self.envelope(Vec::new())).map_err(BatchError::Encode)?.len();
        let room = BODY_BYTES_MOST.saturating_sub(envelope);
        let mut batches = Vec::new();
        let mut sizes = sizes.as_slice();
        while !results.is_empty() {
            let fitting = count_fitting(sizes, room, self.results_most);
            let rest = results.split_off(fitting);
            sizes = &sizes[fitting..];
            batches.push(self.sign(std::mem::replace(&mut results, rest))?);
        }
        Ok(batches)
    }

    fn envelope(&self, results: Vec<Measured>) -> ResultBatch {
        ResultBatch {
            version: BATCH_VERSION,
            tenant: Some(self.identity.tenant.as_str().to_owned()),
            site: self.identity.site.clone(),
            poller: self.identity.poller.clone(),
            results,
        }
    }

    fn sign(&mut self, results: Vec<Measured>) -> Result<SignedBatch, BatchError> {
        let count = results.len();
        let body = serde_json::to_vec(&self.envelope(results)).map_err(BatchError::Encode)?;
        let sequence = self.next;
        let signature = self.signer.sign(&header::signed_bytes(sequence, &body)).map_err(BatchError::Sign)?;
        self.next.number += 1;
        let mut headers = Headers::default();
        headers.set(header::KEY, self.signer.public_key());
        headers.set(header::SEQUENCE, &sequence.to_string());
        headers.set(header::SIGNATURE, &header::encode_signature(&signature));
        Ok(SignedBatch { headers, body: body.into(), sequence, results: count })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bulkhead_bus::payload::{CheckKind, Outcome};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    pub(crate) fn measured(check: &str, slot_ms: i64) -> Measured {
        Measured {
            check: check.parse().unwrap(),
            kind: CheckKind::Tcp,
            slot_ms,
            started_ms: slot_ms,
            outcome: Outcome::Ok,
            reason: None,
            latency_us: Some(1),
            generation: 0,
            island: false,
            detail: BTreeMap::new(),
        }
    }

    fn identity() -> Identity {
        Identity { tenant: "acme-corp".parse().unwrap(), site: "oslo".parse().unwrap(), poller: "p1".parse().unwrap() }
    }

    fn builder(results_most: usize) -> BatchBuilder {
        BatchBuilder::new(identity(), Arc::new(BatchSigner::from_key(nkeys::KeyPair::new_user())), results_most, 77)
    }

    fn large(slot_ms: i64, bytes: usize) -> Measured {
        let mut result = measured("web", slot_ms);
        result.detail.insert("text".to_owned(), "x".repeat(bytes).into());
        result
    }

    /// As the server counts a message: the header block with its framing, and the body.
    fn wire_bytes(batch: &SignedBatch) -> usize {
        "NATS/1.0\r\n\r\n".len() + batch.headers.to_text().len() + 2 * 3 + batch.body.len()
    }

    #[test]
    fn a_batch_verifies_and_its_numbers_grow() {
        let mut builder = builder(2);
        let batches = builder.build((0..5).map(|slot| measured("web", slot)).collect()).unwrap();
        let numbers: Vec<u64> = batches.iter().map(|batch| batch.sequence.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(builder.build(vec![measured("web", 9)]).unwrap()[0].sequence.number, 4);
        for batch in &batches {
            let attested = header::verify(|name| batch.headers.get(name), &batch.body).unwrap().unwrap();
            assert_eq!(attested.key.as_str(), builder.signer.public_key());
            assert_eq!(attested.sequence, batch.sequence);
            let forged: Vec<u8> = batch.body.iter().map(|byte| byte ^ 1).collect();
            assert!(header::verify(|name| batch.headers.get(name), &forged).is_err());
        }
        let body: ResultBatch = serde_json::from_slice(&batches[0].body).unwrap();
        assert_eq!((body.version, body.tenant.as_deref()), (1, Some("acme-corp")));
    }

    #[test]
    fn a_result_that_fits_nowhere_travels_alone() {
        let batches = builder(100).build(vec![measured("web", 1), large(2, 70_000), measured("web", 3)]).unwrap();
        assert_eq!(batches.iter().map(|batch| batch.results).collect::<Vec<_>>(), [1, 1, 1]);
    }

    proptest! {
        // Signing hundreds of kilobytes without optimisation is slow.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn every_batch_stays_within_the_limit_and_nothing_is_lost(sizes in proptest::collection::vec(0_usize..2_048, 0..200), most in 1_usize..150) {
            let results: Vec<Measured> = sizes.iter().zip(0..).map(|(size, slot)| large(slot, *size)).collect();
            let batches = builder(most).build(results.clone()).unwrap();
            let mut seen = Vec::new();
            for batch in &batches {
                prop_assert!(wire_bytes(batch) < MAX_BATCH_BYTES.unsigned_abs() as usize);
                let body: ResultBatch = serde_json::from_slice(&batch.body).unwrap();
                prop_assert!(body.results.len() <= most && body.results.len() == batch.results);
                seen.extend(body.results);
            }
            prop_assert_eq!(seen, results);
        }
    }
}
