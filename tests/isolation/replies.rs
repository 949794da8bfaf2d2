//! Answers sent where the asker likes: the server says them in the asker's own account, or nobody says them.
//!
//! One subject is left as it is: of `$JS.ACK` the hub makes no reply subject of its own, so its PubAck is said in CORE.
//! What must hold is that no answer acknowledges anything.

use bulkhead_testkit::{LIMIT, RawClient, RawLeaf, TestDeployment, header_block};
use serde_json::json;

use crate::subjects::FORGED_ACK;
use crate::watch::{ACME, TENANTS, Watch, Watchers, hostile_leaf, settle_client, unique};

/// Where an answer must not go.
fn hostile_replies(xyz_key: &str) -> Vec<String> {
    let fixed = [
        "_INBOX_oslo.fwd.x",
        "_INBOX_bergen.fwd.x",
        "_INBOX_lima.fwd.x",
        "_INBOX_core-stream.x",
        "down.oslo.p1.reflected",
        "down.lima.p1.reflected",
        "$JS.API.STREAM.PURGE.RESULTS",
        "$JS.API.CONSUMER.DELETE.RESULTS.core",
        "$SYS.REQ.CLAIMS.UPDATE",
        "_R_.attack.1",
        FORGED_ACK,
    ];
    let prefixed = ["down.lima.p1.reflected", "up.lima.fwd.results", "live.lima.p1.reflected"];
    let prefixed = prefixed.map(|rest| format!("t.{xyz_key}.{rest}"));
    fixed.map(str::to_owned).into_iter().chain(prefixed).collect()
}

/// An answer of core, or a PubAck of the hub: what is said to a reply subject.
fn is_answer(body: &[u8]) -> bool {
    [&b"{\"rows\""[..], b"{\"error\"", b"{\"stream\""].iter().any(|head| body.starts_with(head))
}

/// A person asks core; returns the replies on which the answer was said in acme-corp.
async fn ask_with_replies(deployment: &TestDeployment, watchers: &Watchers) -> anyhow::Result<Vec<String>> {
    let identity = deployment.person_identity("acme-corp-admin")?;
    let mut landed = Vec::new();
    for reply in hostile_replies(&watchers.xyz_key) {
        let person = RawClient::connect(&deployment.hub(), &identity).await?;
        person.publish("up._user.admin.rpc.core.show_status", Some(&reply), None, b"{}").await?;
        settle_client(&person).await?;
        let is_refused = !person.errors().is_empty();
        if is_refused || reply.starts_with("$SYS.") {
            continue;
        }
        let is_it = |message: &bulkhead_testkit::RawMessage| message.subject == reply && is_answer(&message.body);
        watchers.acme.tap.wait_for(LIMIT, is_it).await?;
        landed.push(reply);
    }
    Ok(landed)
}

/// A leaf sends batches; its PubAcks go to the same places. The last one's comes back, and so did all before it.
async fn send_with_replies(leaf: &RawLeaf, watchers: &Watchers) -> anyhow::Result<()> {
    leaf.subscribe("_INBOX_oslo.>").await?;
    let last = unique("_INBOX_oslo.raw.");
    for reply in hostile_replies(&watchers.xyz_key).iter().chain([&last]) {
        leaf.lmsg("up.oslo.fwd.results", Some(reply), unique("reflected-").as_bytes()).await?;
    }
    leaf.wait_for(LIMIT, |message| message.subject == last).await.map(drop)
}

/// A stream of the watcher's own in CORE with one message that is delivered and not acknowledged: where to acknowledge.
async fn deliver_one(core: &Watch) -> anyhow::Result<String> {
    let stream = json!({"name": "PROBE", "subjects": ["probe.one"], "storage": "file", "retention": "workqueue",
        "max_bytes": 1 << 20, "num_replicas": 1});
    let consumer = json!({"stream_name": "PROBE", "config": {"name": "probe", "durable_name": "probe",
        "ack_policy": "explicit", "max_ack_pending": 10}});
    for (subject, body) in [("STREAM.CREATE.PROBE", stream), ("CONSUMER.CREATE.PROBE.probe", consumer)] {
        let made = core.ask(&format!("$JS.API.{subject}"), body.to_string().as_bytes()).await?;
        anyhow::ensure!(made["error"].is_null(), "{made}");
    }
    core.ask("probe.one", b"one").await?;
    core.tap.publish("$JS.API.CONSUMER.MSG.NEXT.PROBE.probe", Some(&unique("_INBOX_watch.")), None, b"1").await?;
    let is_delivery = |reply: &Option<String>| reply.as_ref().is_some_and(|reply| reply.starts_with("$JS.ACK.PROBE."));
    let delivery = core.tap.wait_for(LIMIT, |message| is_delivery(&message.reply)).await?;
    Ok(delivery.reply.unwrap_or_default())
}

/// How many deliveries are not acknowledged, after all that was said about this one has been taken in.
async fn pending(core: &Watch, ack: &str) -> anyhow::Result<Option<i64>> {
    // "In progress", with a reply: the consumer takes acknowledgements in order and answers this one.
    let inbox = unique("_INBOX_watch.");
    core.tap.publish(ack, Some(&inbox), None, b"+WPI").await?;
    core.tap.wait_for(LIMIT, |message| message.subject == inbox).await?;
    let info = core.ask("$JS.API.CONSUMER.INFO.PROBE.probe", b"").await?;
    Ok(info["num_ack_pending"].as_i64())
}

/// Answers that go to a real message's acknowledgement leave it as it is.
async fn acknowledge_by_replies(deployment: &TestDeployment, leaf: &RawLeaf, core: &Watch) -> anyhow::Result<()> {
    let ack = deliver_one(core).await?;
    assert_eq!(pending(core, &ack).await?, Some(1));
    let person = deployment.person_identity("acme-corp-admin")?;
    let person = RawClient::connect(&deployment.hub(), &person).await?;
    person.publish("up._user.admin.rpc.core.show_status", Some(&ack), None, b"{}").await?;
    settle_client(&person).await?;
    // Of a message in a batch of many, the hub acknowledges with an empty body, which is what acknowledges a delivery.
    let in_batch = header_block(&[("Nats-Batch-Id", "attack"), ("Nats-Batch-Sequence", "1")]);
    for headers in [None, Some(in_batch.as_str())] {
        let body = unique("reflected-");
        leaf.lmsg_with_headers("up.oslo.fwd.results", Some(&ack), headers, body.as_bytes()).await?;
        let last = unique("_INBOX_oslo.raw.");
        leaf.lmsg("up.oslo.fwd.results", Some(&last), unique("reflected-").as_bytes()).await?;
        leaf.wait_for(LIMIT, |message| message.subject == last).await?;
        assert_eq!(pending(core, &ack).await?, Some(1), "{headers:?}");
    }
    // Control: who has the right does acknowledge there.
    core.tap.publish(&ack, None, None, b"+ACK").await?;
    assert_eq!(pending(core, &ack).await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn an_answer_is_said_in_the_askers_account_and_acknowledges_nothing() -> anyhow::Result<()> {
    let deployment = TestDeployment::start_with(&TENANTS, &[]).await?;
    let watchers = Watchers::place(&deployment).await?;
    let landed = ask_with_replies(&deployment, &watchers).await?;
    let prefixed = format!("t.{}.down.lima.p1.reflected", watchers.xyz_key);
    for reply in ["_INBOX_bergen.fwd.x", "down.lima.p1.reflected", &prefixed] {
        assert!(landed.iter().any(|known| known == reply), "{reply} was not tried: {landed:?}");
    }
    let leaf = hostile_leaf(&deployment, ACME, "oslo").await?;
    send_with_replies(&leaf, &watchers).await?;

    let replies = hostile_replies(&watchers.xyz_key);
    for watch in [&watchers.xyz, &watchers.core] {
        watch.catch_up().await?;
        let heard = watch.heard(|message| replies.contains(&message.subject) && is_answer(&message.body));
        let others: Vec<&String> = heard.iter().filter(|subject| *subject != FORGED_ACK).collect();
        assert_eq!(others, Vec::<&String>::new(), "in {}", watch.account);
    }
    acknowledge_by_replies(&deployment, &leaf, &watchers.core).await?;

    // Control: an answer that is said in xyz-inc is seen there.
    watchers.xyz.tap.publish(&replies[0], None, None, b"{\"rows\":[]}").await?;
    watchers.xyz.catch_up().await?;
    let heard = watchers.xyz.heard(|message| replies.contains(&message.subject) && is_answer(&message.body));
    assert_eq!(heard, replies[..1]);
    Ok(())
}
