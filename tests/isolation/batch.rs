//! Batches made by hand: any body, signed with any poller's key, sent from any site's leaf.

use std::collections::BTreeMap;

use anyhow::Context;
use bulkhead_bus::header::{self, Sequence};
use bulkhead_bus::payload::{BATCH_VERSION, CheckKind, Measured, Outcome, ResultBatch};
use bulkhead_runtime::now_ms;
use bulkhead_testkit::{LIMIT, RawLeaf, TestDeployment, header_block};
use nkeys::KeyPair;

use crate::watch::unique;

/// The results of one check, as a poller would report them. `place` is `oslo/p1`.
pub(crate) fn batch_body(tenant: Option<&str>, place: &str, check: &str) -> anyhow::Result<Vec<u8>> {
    let (site, poller) = place.split_once('/').context("a place is site/poller")?;
    let slot_ms = now_ms();
    let measured = Measured {
        check: check.parse()?,
        kind: CheckKind::Tcp,
        slot_ms,
        started_ms: slot_ms,
        outcome: Outcome::Ok,
        reason: None,
        latency_us: Some(1_000),
        generation: 0,
        island: false,
        detail: BTreeMap::new(),
    };
    let batch = ResultBatch {
        version: BATCH_VERSION,
        tenant: tenant.map(str::to_owned),
        site: site.parse()?,
        poller: poller.parse()?,
        results: vec![measured],
    };
    serde_json::to_vec(&batch).context("encode a batch")
}

/// The key that a real poller signs with. `place` is `oslo/p1`.
pub(crate) fn key_of_poller(deployment: &TestDeployment, tenant: &str, place: &str) -> anyhow::Result<KeyPair> {
    let (site, poller) = place.split_once('/').context("a place is site/poller")?;
    let folder = deployment.up.layout.poller(&tenant.parse()?, &site.parse()?, &poller.parse()?);
    let seed = std::fs::read_to_string(folder.join("batch.nk")).context("read a batch key")?;
    KeyPair::from_seed(seed.trim()).context("read a batch key")
}

/// The headers of an honest batch.
pub(crate) fn signed_headers(key: &KeyPair, body: &[u8]) -> anyhow::Result<String> {
    let sequence = Sequence { boot: 1, number: 1 };
    let signature = key.sign(&header::signed_bytes(sequence, body)).context("sign a batch")?;
    let (signature, sequence) = (header::encode_signature(&signature), sequence.to_string());
    let public = key.public_key();
    Ok(header_block(&[(header::SIGNATURE, &signature), (header::KEY, &public), (header::SEQUENCE, &sequence)]))
}

/// Sends until the hub has stored it; returns the PubAck. `leaf` must have subscribed `_INBOX_<site>.>`.
pub(crate) async fn send_batch(
    leaf: &RawLeaf,
    site: &str,
    headers: Option<&str>,
    body: &[u8],
) -> anyhow::Result<serde_json::Value> {
    let inbox = unique(&format!("_INBOX_{site}.raw."));
    leaf.lmsg_with_headers(&format!("up.{site}.fwd.results"), Some(&inbox), headers, body).await?;
    let ack = leaf.wait_for(LIMIT, |message| message.subject == inbox).await.context("wait for PubAck")?;
    let ack: serde_json::Value = serde_json::from_slice(&ack.body).context("read PubAck")?;
    anyhow::ensure!(ack["stream"] == "RESULTS" && ack["error"].is_null(), "{ack}");
    Ok(ack)
}
