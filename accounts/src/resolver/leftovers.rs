//! JetStream data of an account. A deleted account's streams stay on the disks, out of everybody's reach, until the
//! account is there again: they are looked for before.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::question::ServerQuestion;
use bulkhead_runtime::Bus;
use serde::Serialize;
use serde_json::{Value, json};

use super::asking::{NotAsked, ask};

/// A stream that an account still has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StreamLeftover {
    pub stream: String,
    pub messages: u64,
    pub bytes: u64,
    /// Servers with a copy.
    pub servers: BTreeSet<String>,
}

/// The streams of `account` on the servers that answer, with what the fullest copy holds.
///
/// # Errors
/// When the connection cannot ask.
pub async fn account_streams(system: &Bus, account: &str, expected: usize) -> Result<Vec<StreamLeftover>, NotAsked> {
    let question = json!({"account": account, "accounts": true, "streams": true}).to_string();
    let answers = ask(system, ServerQuestion::JetStream.subject(), question, expected).await?;
    let mut found: BTreeMap<String, StreamLeftover> = BTreeMap::new();
    for said in &answers {
        let accounts = said.data["account_details"].as_array().map(Vec::as_slice).unwrap_or_default();
        let own = accounts.iter().filter(|detail| detail["id"] == account || detail["name"] == account);
        for stream in own.filter_map(|detail| detail["stream_detail"].as_array()).flatten() {
            add(&mut found, stream, &said.server.name);
        }
    }
    Ok(found.into_values().collect())
}

fn add(found: &mut BTreeMap<String, StreamLeftover>, stream: &Value, server: &str) {
    let Some(name) = stream["name"].as_str() else { return };
    let leftover = found.entry(name.to_owned()).or_default();
    name.clone_into(&mut leftover.stream);
    let state = |field: &str| stream["state"][field].as_u64().unwrap_or_default();
    leftover.messages = leftover.messages.max(state("messages"));
    leftover.bytes = leftover.bytes.max(state("bytes"));
    leftover.servers.insert(server.to_owned());
}
