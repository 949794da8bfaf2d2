//! Watchers that the product never admits: one in an account hears all that is said there.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bulkhead_testkit::{Flushed, LIMIT, RawClient, RawLeaf, RawMessage, TestDeployment};

pub(crate) const ACME: &str = "acme-corp";
pub(crate) const XYZ: &str = "xyz-inc";
pub(crate) const TENANTS: [&str; 2] = ["acme-corp enterprise oslo/p1 bergen/p1", "xyz-inc free lima/p1"];

static MARKERS: AtomicU64 = AtomicU64::new(1);

/// Text that was not used before, and that no other begins with.
pub(crate) fn unique(head: &str) -> String {
    format!("{head}{:06}", MARKERS.fetch_add(1, Ordering::SeqCst))
}

/// Hears everything in one account, and may say everything there.
pub(crate) struct Watch {
    pub(crate) account: &'static str,
    pub(crate) tap: RawClient,
}

impl Watch {
    /// In CORE this changes the account's signing keys, and then the hub forgets what linked leaves subscribed: their
    /// forwarders wait for acknowledgements in vain, so such a deployment is dropped and not stopped.
    pub(crate) async fn place(deployment: &TestDeployment, account: &'static str) -> anyhow::Result<Self> {
        let tap = deployment.wiretap(account).await.with_context(|| format!("watch {account}"))?;
        Ok(Self { account, tap })
    }

    /// After it, everything that the hub delivered in this account before it has been heard; a deaf watcher fails.
    pub(crate) async fn catch_up(&self) -> anyhow::Result<()> {
        let marker = unique("marker-");
        self.tap.publish("marker", None, None, marker.as_bytes()).await?;
        let heard = self.tap.wait_for(LIMIT, |message| message.body == marker.as_bytes()).await;
        heard.with_context(|| format!("the watcher in {} is deaf", self.account)).map(drop)
    }

    /// Subjects of the messages that `is_meant`.
    pub(crate) fn heard(&self, is_meant: impl Fn(&RawMessage) -> bool) -> Vec<String> {
        subjects_of(self.tap.received(), is_meant)
    }

    /// Asks and gets the answer's JSON, with the right to ask anything.
    pub(crate) async fn ask(&self, subject: &str, body: &[u8]) -> anyhow::Result<serde_json::Value> {
        let inbox = unique("_INBOX_watch.");
        self.tap.publish(subject, Some(&inbox), None, body).await?;
        let answer = self.tap.wait_for(LIMIT, |message| message.subject == inbox).await?;
        serde_json::from_slice(&answer.body).with_context(|| format!("read the answer to {subject}"))
    }
}

/// The three accounts that are looked into.
pub(crate) struct Watchers {
    pub(crate) acme: Watch,
    pub(crate) xyz: Watch,
    pub(crate) core: Watch,
    pub(crate) acme_key: String,
    pub(crate) xyz_key: String,
}

impl Watchers {
    pub(crate) async fn place(deployment: &TestDeployment) -> anyhow::Result<Self> {
        Ok(Self {
            acme: Watch::place(deployment, ACME).await?,
            xyz: Watch::place(deployment, XYZ).await?,
            core: Watch::place(deployment, "core").await?,
            acme_key: deployment.key_of(ACME)?,
            xyz_key: deployment.key_of(XYZ)?,
        })
    }

    /// What was heard in xyz-inc and CORE of messages whose body begins with `head`.
    pub(crate) async fn leaks(&self, head: &str) -> anyhow::Result<Vec<String>> {
        let mut leaks = Vec::new();
        for watch in [&self.xyz, &self.core] {
            watch.catch_up().await?;
            leaks.extend(watch.heard(|message| begins(message, head)));
        }
        Ok(leaks)
    }
}

pub(crate) fn subjects_of(messages: Vec<RawMessage>, is_meant: impl Fn(&RawMessage) -> bool) -> Vec<String> {
    messages.into_iter().filter(is_meant).map(|message| message.subject).collect()
}

pub(crate) fn begins(message: &RawMessage, head: &str) -> bool {
    message.body.starts_with(head.as_bytes())
}

/// The hub has read everything that was sent.
pub(crate) async fn settle_client(client: &RawClient) -> anyhow::Result<()> {
    let flushed = client.flush().await?;
    anyhow::ensure!(flushed == Flushed::Answered, "{flushed:?}: {:?}", client.errors());
    Ok(())
}

/// As [`settle_client`].
pub(crate) async fn settle_leaf(leaf: &RawLeaf) -> anyhow::Result<()> {
    let flushed = leaf.flush().await?;
    anyhow::ensure!(flushed == Flushed::Answered, "{flushed:?}: {:?}", leaf.errors());
    Ok(())
}

/// A leaf that obeys nothing, with the certificate of a site's own.
pub(crate) async fn hostile_leaf(deployment: &TestDeployment, tenant: &str, site: &str) -> anyhow::Result<RawLeaf> {
    let identity = deployment.leaf_identity(tenant, site)?;
    // A name of its own: the hub takes a known name for the real leaf come back, and drops that.
    let name = unique(&format!("leaf-{tenant}-{site}.raw-"));
    let leaf = RawLeaf::connect(&deployment.hub_for_leaves(), &identity, &name).await;
    leaf.with_context(|| format!("connect as leaf of {tenant}/{site}"))
}
