//! What servers hold: which accounts each has on disk and in memory, and the tokens themselves, by account key.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_bus::question::ClaimsRequest;
use bulkhead_runtime::Bus;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::asking::{NotAsked, ServerFacts, ask};
use super::held::look_up;
use super::standing::ask_memory;

const UNDER_WAY_MOST: usize = 64;

/// One account as the servers' disks have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeldAccounts {
    /// Which servers list it.
    pub servers: BTreeSet<String>,
    /// Each token that a disk holds, and how many servers hold it: answers do not say whose they are.
    pub tokens: BTreeMap<String, usize>,
}

/// The keys of the accounts that each of the servers that answer has on disk; expired ones are left out by them.
///
/// # Errors
/// When the connection cannot ask.
pub async fn list(system: &Bus, expected: usize) -> Result<BTreeMap<ServerFacts, BTreeSet<String>>, NotAsked> {
    let answers = ask(system, ClaimsRequest::List.subject(), bytes::Bytes::new(), expected).await?;
    let keys = |data: &serde_json::Value| -> BTreeSet<String> {
        let entries = data.as_array().map(Vec::as_slice).unwrap_or_default();
        entries.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect()
    };
    Ok(answers.into_iter().map(|said| (said.server, keys(&said.data))).collect())
}

/// Every account on the servers' disks, by its key: two accounts of one name are two.
///
/// # Errors
/// When the connection cannot ask.
pub async fn pull(system: &Bus, expected: usize) -> Result<BTreeMap<String, HeldAccounts>, NotAsked> {
    let listed = list(system, expected).await?;
    let answering = listed.len();
    let mut held: BTreeMap<String, HeldAccounts> = BTreeMap::new();
    for (server, keys) in listed {
        for key in keys {
            held.entry(key).or_default().servers.insert(server.name.clone());
        }
    }
    let keys: Vec<String> = held.keys().cloned().collect();
    for (key, tokens) in on_disk(system, &keys, answering).await? {
        held.entry(key).or_default().tokens = tokens;
    }
    Ok(held)
}

/// The tokens that the disks of `answering` servers hold of each account, and how many hold it; several are asked about at
/// once.
///
/// # Errors
/// When the connection cannot ask.
pub async fn on_disk(
    system: &Bus,
    accounts: &[String],
    answering: usize,
) -> Result<BTreeMap<String, BTreeMap<String, usize>>, NotAsked> {
    let ask = |key: &String| {
        let key = key.clone();
        async move { look_up(system, &key, answering).await.map(|disks| (key, disks)) }
    };
    let mut answers = stream::iter(accounts).map(ask).buffer_unordered(UNDER_WAY_MOST);
    let mut held = BTreeMap::new();
    while let Some((key, disks)) = answers.try_next().await? {
        let mut tokens: BTreeMap<String, usize> = BTreeMap::new();
        for token in disks.into_iter().flatten() {
            *tokens.entry(token).or_default() += 1;
        }
        held.insert(key, tokens);
    }
    Ok(held)
}

/// The same of the memories of `answering` servers, by server; `None` where an account is not loaded.
///
/// # Errors
/// When the connection cannot ask.
pub async fn in_memories(
    system: &Bus,
    accounts: &[String],
    answering: usize,
) -> Result<BTreeMap<String, BTreeMap<String, Option<String>>>, NotAsked> {
    let ask = |key: &String| {
        let key = key.clone();
        async move { in_memory(system, &key, answering).await.map(|memories| (key, memories)) }
    };
    stream::iter(accounts).map(ask).buffer_unordered(UNDER_WAY_MOST).try_collect().await
}

/// The token of `account` in each server's memory; `None` where it is not loaded.
///
/// # Errors
/// When the connection cannot ask.
pub async fn in_memory(
    system: &Bus,
    account: &str,
    expected: usize,
) -> Result<BTreeMap<String, Option<String>>, NotAsked> {
    let answers = ask_memory(system, account, expected).await?;
    let token = |data: &serde_json::Value| data["account_detail"]["jwt"].as_str().map(str::to_owned);
    Ok(answers.into_iter().map(|said| (said.server.name.clone(), token(&said.data))).collect())
}
