//! Clients that may say anything in one account, one on each server of the hub, and ask through whichever they want.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bulkhead_testkit::{LIMIT, RawClient, TestDeployment};
use serde_json::Value;

static INBOXES: AtomicU64 = AtomicU64::new(1);

/// One client on each server of the hub.
pub(crate) struct Everywhere {
    clients: Vec<RawClient>,
}

impl Everywhere {
    /// In CORE this makes the hub forget what linked leaves subscribed, so such a deployment is dropped and not stopped.
    pub(crate) async fn connect(deployment: &TestDeployment, account: &str) -> anyhow::Result<Self> {
        let identity = deployment.unrestricted_identity(account).await?;
        let mut clients = Vec::new();
        for endpoint in deployment.hub_servers() {
            let client = RawClient::connect(&endpoint, &identity).await;
            let client = client.with_context(|| format!("connect to {account} at {}", endpoint.addr))?;
            client.subscribe("_INBOX_everywhere.>").await?;
            client.flush().await?;
            clients.push(client);
        }
        Ok(Self { clients })
    }

    /// Sends every question at once, in turn through each server, and returns the answers in the order of the questions.
    pub(crate) async fn ask_all(&self, questions: &[(String, Vec<u8>)]) -> anyhow::Result<Vec<Value>> {
        let mut asked = Vec::new();
        for (index, (subject, body)) in questions.iter().enumerate() {
            let client = &self.clients[index % self.clients.len()];
            let inbox = format!("_INBOX_everywhere.{}", INBOXES.fetch_add(1, Ordering::SeqCst));
            client.publish(subject, Some(&inbox), None, body).await?;
            asked.push((client, inbox));
        }
        let mut answers = Vec::new();
        for (client, inbox) in asked {
            let answer = client.wait_for(LIMIT, |message| message.subject == inbox).await?;
            answers.push(serde_json::from_slice(&answer.body).context("read an answer")?);
        }
        Ok(answers)
    }
}

/// JetStream's own number for what went wrong; 0 when nothing did.
pub(crate) fn error_code(answer: &Value) -> u64 {
    answer["error"]["err_code"].as_u64().unwrap_or(0)
}
