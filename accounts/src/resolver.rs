//! Pushes account tokens to every server and waits until they are in force.
//!
//! A `200` means stored, not in force (facts: accounts-and-nsc, finding 1), so each server is asked afterwards what it
//! has in memory. An account that no server has loaded yet is in force as soon as it is stored: it is loaded from there.

use std::time::Duration;

use bulkhead_runtime::{Bus, LimitReached, PublishError, eventually};
use serde::Deserialize;

use crate::operator::AccountRecord;

const UPDATE: &str = "$SYS.REQ.CLAIMS.UPDATE";
const IN_MEMORY: &str = "$SYS.REQ.SERVER.PING.ACCOUNTZ";
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
const STORED_LIMIT: Duration = Duration::from_secs(15);
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(15);

/// Why a push is not in force everywhere.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("push account {account}")]
    Send { account: String, source: PublishError },
    #[error("a server refused account {account}: {answer}")]
    Refused { account: String, answer: String },
    #[error("account {account} is not stored by every server")]
    Unanswered { account: String, source: LimitReached },
    #[error("account {account} is stored but not in force")]
    NotInForce { account: String, source: LimitReached },
}

impl PushError {
    /// Whether it may still come about: a server has not answered or does not show it yet.
    #[must_use]
    pub fn is_not_converged(&self) -> bool {
        match self {
            Self::Unanswered { .. } | Self::NotInForce { .. } => true,
            Self::Send { .. } | Self::Refused { .. } => false,
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    data: Option<AnswerData>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct AnswerData {
    #[serde(default)]
    code: i64,
    account_detail: Option<AccountDetail>,
}

#[derive(Deserialize)]
struct AccountDetail {
    #[serde(default)]
    jwt: String,
}

fn lookup_subject(account: &AccountRecord) -> String {
    format!("$SYS.REQ.ACCOUNT.{}.CLAIMS.LOOKUP", account.key)
}

/// Pushes `account` over `system`, a connection in SYS, to `servers` servers.
///
/// # Errors
/// [`PushError`] says what is missing.
pub async fn push(system: &Bus, account: &AccountRecord, servers: usize) -> Result<(), PushError> {
    let name = || account.name.clone();
    // Again and again, as pushing twice does no harm: the connection may have been on a server that has just died.
    let stored = eventually("every server storing the token", STORED_LIMIT, || async {
        match store(system, account, servers).await {
            Ok(answered) if answered < servers => Err(format!("{answered} of {servers} servers answered")),
            outcome => Ok(outcome.map(drop)),
        }
    });
    stored.await.map_err(|source| PushError::Unanswered { account: name(), source })??;
    let converged =
        eventually("every server showing the new token", CONVERGENCE_LIMIT, || is_in_force(system, account, servers));
    converged.await.map_err(|source| PushError::NotInForce { account: name(), source })
}

/// Sends the token to every server; returns how many have stored it.
async fn store(system: &Bus, account: &AccountRecord, servers: usize) -> Result<usize, PushError> {
    let name = || account.name.clone();
    let answers = system.request_all(UPDATE, account.token.clone().into_bytes().into(), servers, ANSWER_LIMIT).await;
    let answers = answers.map_err(|source| PushError::Send { account: name(), source })?;
    for answer in &answers {
        let is_stored = serde_json::from_slice::<Answer>(answer)
            .is_ok_and(|answer| answer.error.is_none() && answer.data.is_some_and(|data| data.code == 200));
        if !is_stored {
            return Err(PushError::Refused { account: name(), answer: String::from_utf8_lossy(answer).into_owned() });
        }
    }
    Ok(answers.len())
}

async fn is_in_force(system: &Bus, account: &AccountRecord, servers: usize) -> Result<(), String> {
    let question = serde_json::json!({"account": account.key.as_str()}).to_string();
    let answers = system.request_all(IN_MEMORY, question.into_bytes().into(), servers, ANSWER_LIMIT).await;
    let answers = answers.map_err(|error| error.to_string())?;
    if answers.len() < servers {
        return Err(format!("{} of {servers} servers answered", answers.len()));
    }
    for answer in answers {
        let answer: Answer = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
        match answer.data.and_then(|data| data.account_detail) {
            Some(detail) if detail.jwt == account.token => {}
            Some(_) => return Err("a server has an older token in memory".to_owned()),
            None => is_stored(system, account, servers).await?,
        }
    }
    Ok(())
}

/// For servers that have not loaded the account: what they would load. The answers do not say whose they are, so all are
/// waited for.
async fn is_stored(system: &Bus, account: &AccountRecord, servers: usize) -> Result<(), String> {
    let stored = system.request_all(&lookup_subject(account), Vec::new().into(), servers, ANSWER_LIMIT).await;
    let stored = stored.map_err(|error| error.to_string())?;
    let same = stored.iter().filter(|token| token.as_ref() == account.token.as_bytes()).count();
    if same == servers { Ok(()) } else { Err(format!("{same} of {servers} servers have the token in their store")) }
}
