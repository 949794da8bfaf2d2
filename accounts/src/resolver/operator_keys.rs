//! Whether the servers can do without one of the operator's signing keys, or with it: asked before it is used or dropped.

use std::collections::BTreeSet;

use bulkhead_bus::question::ServerQuestion;
use bulkhead_claims::decode_json;
use bulkhead_runtime::Bus;

use super::asking::{KnownServers, NotAsked, Said, ask};
use super::list::on_disk;

fn trusts(said: &Said, key: &str) -> bool {
    let operators = said.data["trusted_operators_claim"].as_array().map(Vec::as_slice).unwrap_or_default();
    operators.iter().any(|operator| {
        let keys = operator["nats"]["signing_keys"].as_array().map(Vec::as_slice).unwrap_or_default();
        operator["sub"] == key || keys.iter().any(|known| known == key)
    })
}

/// The known servers that do not say that they trust `key`: they were started with an earlier operator token, or are away.
///
/// # Errors
/// When the connection cannot ask.
pub async fn servers_without_key(system: &Bus, key: &str, known: &KnownServers) -> Result<Vec<String>, NotAsked> {
    let answers = ask(system, ServerQuestion::Settings.subject(), "{}", known.count()).await?;
    let trusting: Vec<_> = answers.into_iter().filter(|said| trusts(said, key)).map(|said| said.server).collect();
    Ok(known.absent(&trusting))
}

/// Which of `accounts` some server still holds a token of that `key` has signed.
///
/// # Errors
/// When the connection cannot ask.
pub async fn accounts_signed_by(
    system: &Bus,
    accounts: &[String],
    key: &str,
    known: &KnownServers,
) -> Result<BTreeSet<String>, NotAsked> {
    let held = on_disk(system, accounts, known.count()).await?;
    let is_by = |token: &String| decode_json(token).is_ok_and(|claims| claims.iss == key);
    Ok(held.into_iter().filter(|(_, tokens)| tokens.keys().any(is_by)).map(|(account, _)| account).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolver::ServerFacts;
    use serde_json::json;

    #[test]
    fn a_server_trusts_the_keys_of_the_token_that_it_was_started_with() {
        let server = ServerFacts { name: "hub-1".to_owned(), id: String::new(), version: String::new() };
        let operator = json!({"sub": "OID", "nats": {"signing_keys": ["OA", "OB"]}});
        let said = Said { server, data: json!({"trusted_operators_claim": [operator]}), error: None };
        for (key, expected) in [("OID", true), ("OB", true), ("OC", false)] {
            assert_eq!(trusts(&said, key), expected, "{key}");
        }
        assert!(!trusts(&Said { data: json!({}), ..said }, "OA"));
    }
}
