//! Deletes an account from the servers. They keep no memory of it: a server that was away brings it back to all others
//! (facts: accounts-and-nsc, finding 4), so deletion is asked for again until every known server was seen without it.
//!
//! The request is a token that works for ever for whoever has it (finding 7): it names one account, and is neither logged
//! nor kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bulkhead_bus::AccountKey;
use bulkhead_bus::question::ClaimsRequest;
use bulkhead_claims::{Claims, GenericBody, SignError, Signer, encode};
use bulkhead_runtime::{Backoff, Bus, now_ms};
use zeroize::Zeroizing;

use super::asking::{KnownServers, NotAsked, ServerFacts, ask, some_servers};
use super::list::list;
use super::refusal::Refusal;

/// After so long a server that was away has asked another one for what it has missed, and told what it has. The
/// resolver's `interval` in the servers' configuration, and a little.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(12);
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MOST: Duration = Duration::from_secs(1);

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum Deletion {
    #[error("delete account {account}")]
    NotAsked { account: String, source: NotAsked },
    #[error("sign the request to delete account {account}")]
    NotSigned { account: String, source: SignError },
}

/// How far the deletion is. What was there before tells whether this call did anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeletionReport {
    /// Servers that had the account and have it no more.
    pub deleted: Vec<String>,
    /// Servers that have it still, and why.
    pub refused: Vec<(String, Option<Refusal>)>,
    /// Known servers that could not be asked: they may bring it back.
    pub unasked: Vec<String>,
}

impl DeletionReport {
    /// Whether every known server was seen without the account.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.refused.is_empty() && self.unasked.is_empty()
    }
}

/// The request for exactly one account, signed by the operator.
fn request(account: &AccountKey, signer: &dyn Signer) -> Result<Zeroizing<String>, SignError> {
    let public = signer.public().to_owned();
    let body = GenericBody::delete_request(vec![account.to_string()]);
    encode(&mut Claims::new(public.clone(), public, now_ms() / 1_000, body), signer).map(Zeroizing::new)
}

type Listed = BTreeMap<ServerFacts, BTreeSet<String>>;

async fn ask_list(system: &Bus, known: &KnownServers) -> Result<Listed, NotAsked> {
    let there = some_servers(system, known.count()).await?;
    list(system, there.len()).await
}

fn holders(listed: &Listed, account: &AccountKey) -> BTreeSet<String> {
    let holds = listed.iter().filter(|(_, keys)| keys.contains(account.as_str()));
    holds.map(|(server, _)| server.name.clone()).collect()
}

/// Deletes `account` where a server has it, and looks again at all of them. May be called as often as one likes;
/// suspend the account first, because a suspension reaches servers that are away.
///
/// # Errors
/// When the connection cannot ask or the operator's key does not sign. Servers that refuse or are away are in the report.
pub async fn ensure_deleted(
    system: &Bus,
    account: &AccountKey,
    signer: &dyn Signer,
    known: &KnownServers,
) -> Result<DeletionReport, Deletion> {
    let failed = |source| Deletion::NotAsked { account: account.to_string(), source };
    let before = ask_list(system, known).await.map_err(failed)?;
    let had = holders(&before, account);
    if had.is_empty() {
        return Ok(DeletionReport { unasked: known.absent(before.keys()), ..DeletionReport::default() });
    }
    let token = request(account, signer);
    let token = token.map_err(|source| Deletion::NotSigned { account: account.to_string(), source })?;
    let body = bytes::Bytes::copy_from_slice(token.as_bytes());
    let answers = ask(system, ClaimsRequest::Delete.subject(), body, before.len()).await.map_err(failed)?;
    let refusal = |server: &str| {
        let said = answers.iter().find(|said| said.server.name == server)?;
        said.error.as_deref().map(|error| Refusal::new(server, error))
    };
    let after = ask_list(system, known).await.map_err(failed)?;
    let have = holders(&after, account);
    Ok(DeletionReport {
        deleted: had
            .difference(&have)
            .filter(|name| after.keys().any(|server| server.name == **name))
            .cloned()
            .collect(),
        refused: have.iter().map(|server| (server.clone(), refusal(server))).collect(),
        unasked: known.absent(after.keys()),
    })
}

/// Deletes and watches for `watched`, at best [`SYNC_INTERVAL`], because an answer that was under way may bring the account
/// back; deletes it again when it is. The report is of the last look, with every server that it was deleted from.
///
/// # Errors
/// As [`ensure_deleted`].
pub async fn ensure_stays_deleted(
    system: &Bus,
    account: &AccountKey,
    signer: &dyn Signer,
    known: &KnownServers,
    watched: Duration,
) -> Result<DeletionReport, Deletion> {
    let started = Instant::now();
    let mut pace = Backoff::new(LOOK_FIRST, LOOK_MOST);
    let mut deleted = BTreeSet::new();
    loop {
        let report = ensure_deleted(system, account, signer, known).await?;
        deleted.extend(report.deleted.iter().cloned());
        if started.elapsed() >= watched {
            return Ok(DeletionReport { deleted: deleted.into_iter().collect(), ..report });
        }
        pace.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_claims::{KeyKind, SigningKey, decode_json};
    use serde_json::json;

    #[test]
    fn a_request_names_one_account_and_is_signed_by_the_key_that_it_is_about() {
        let signer = SigningKey::generate(KeyKind::Operator);
        let account: AccountKey = SigningKey::generate(KeyKind::Account).public().parse().unwrap();
        let claims = decode_json(&request(&account, &signer).unwrap()).unwrap();
        assert_eq!((claims.iss.as_str(), claims.sub.as_str()), (signer.public(), signer.public()));
        assert_eq!(claims.nats["accounts"], json!([account.as_str()]));
    }
}
