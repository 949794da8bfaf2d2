//! Proves that an account is in force by being one of its users, at each server of the hub.

use std::time::Duration;

use bulkhead_runtime::{Bus, BusSettings, Chain, eventually};

use super::asking::{ANSWER_LIMIT, KnownServers};
use super::connections::{ConnectionFacts, connections};

const ADMITTED_LIMIT: Duration = Duration::from_secs(10);

/// What one address of the hub did with the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// It let the user in, and says as whom.
    Admitted(Box<ConnectionFacts>),
    /// It let the user in, into another account than was expected.
    Astray(Box<ConnectionFacts>),
    /// It let the user in and says nothing of the connection.
    Unseen,
    /// It did not, or is not there.
    Refused(String),
}

/// All that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeOutcome {
    /// By address, in the order in which they were given.
    pub by_url: Vec<(String, ProbeResult)>,
    /// Known servers that no address led to with success.
    pub unproved: Vec<String>,
}

impl ProbeOutcome {
    /// Whether every known server has let the user into its account.
    #[must_use]
    pub fn is_proved(&self) -> bool {
        self.unproved.is_empty() && !self.by_url.iter().any(|(_, result)| matches!(result, ProbeResult::Astray(_)))
    }
}

async fn knock(system: &Bus, user: &BusSettings, account: &str, url: &str, expected: usize) -> ProbeResult {
    let settings = BusSettings { urls: vec![url.to_owned()], ..user.clone() };
    // A name of its own, by which the servers tell us about it.
    let name = format!("probe {}", uuid::Uuid::new_v4());
    // The gatekeepers hear of an account in a moment, and of a new key of the operator within seconds.
    let bus = match Bus::connect_admitted(&settings, &name, ADMITTED_LIMIT).await {
        Ok(bus) => bus,
        Err(error) => return ProbeResult::Refused(Chain(&error).to_string()),
    };
    if let Err(error) = bus.flush().await {
        return ProbeResult::Refused(format!("{error:#}"));
    }
    let by_name = |all: Vec<ConnectionFacts>| all.into_iter().find(|one| one.name == name);
    let seen = eventually("the probe among the connections", ANSWER_LIMIT, || async {
        let all = connections(system, Some(account), expected).await.map_err(|error| error.to_string())?;
        by_name(all).ok_or_else(|| "not there".to_owned())
    });
    if let Ok(found) = seen.await {
        return ProbeResult::Admitted(Box::new(found));
    }
    let elsewhere = connections(system, None, expected).await.ok().and_then(by_name);
    elsewhere.map_or(ProbeResult::Unseen, |found| ProbeResult::Astray(Box::new(found)))
}

/// Connects as `user`, a user of `account`, to each of its addresses, and asks over `system` what the servers make of it.
pub async fn probe(system: &Bus, user: &BusSettings, account: &str, known: &KnownServers) -> ProbeOutcome {
    let mut by_url = Vec::new();
    for url in &user.urls {
        by_url.push((url.clone(), knock(system, user, account, url, known.count()).await));
    }
    let admitted = by_url.iter().filter_map(|(_, result)| match result {
        ProbeResult::Admitted(found) => Some(&found.server),
        ProbeResult::Astray(_) | ProbeResult::Unseen | ProbeResult::Refused(_) => None,
    });
    let unproved = known.absent(admitted);
    ProbeOutcome { by_url, unproved }
}
