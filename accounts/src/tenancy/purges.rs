//! Who was purged, by the evidence that the operator has signed.

use bulkhead_claims::{Claims, decode_json};
use serde_json::Value;

use crate::operator::OperatorStore;
use crate::up::Layout;

/// A tenant that was destroyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    pub tenant: String,
    pub account: String,
}

/// Every purge of a home; what nobody of the operator's keys has signed says nothing.
#[must_use]
pub fn purges(layout: &Layout) -> Vec<Purge> {
    let Ok(Some(operator)) = OperatorStore::read(layout.operator()) else { return vec![] };
    // A key that was rotated out has signed what was ended before; its seed stays here.
    let (signers, seeds) = (&operator.claims().nats.signing_keys, operator.keys().seeds());
    let entries = std::fs::read_dir(layout.evidence()).into_iter().flatten().flatten();
    let evidence = entries.filter_map(|entry| decode_json(&std::fs::read_to_string(entry.path()).ok()?).ok());
    let purge = |claims: Claims<Value>| {
        let is_ours = signers.contains(&claims.iss) || seeds.contains(&claims.iss);
        let told = &claims.nats["offboarding"];
        let tenant = told["tenant"].as_str().filter(|_| is_ours && told["is_purged"] == true)?.to_owned();
        Some(Purge { tenant, account: claims.sub })
    };
    evidence.filter_map(purge).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use bulkhead_claims::{GenericBody, KeyKind, Signer, SigningKey, encode};
    use serde_json::{Map, json};

    use super::*;

    /// Writes evidence about a tenant, as whoever signs it would.
    pub(crate) fn write_evidence(layout: &Layout, tenant: &str, is_purged: bool, signer: &dyn Signer) {
        let account = SigningKey::generate(KeyKind::Account).public().to_owned();
        let told = json!({"tenant": tenant, "is_purged": is_purged});
        let body = GenericBody { data: Map::from_iter([("offboarding".to_owned(), told)]) };
        let token = encode(&mut Claims::new(account, tenant.to_owned(), 7, body), signer).unwrap();
        std::fs::create_dir_all(layout.evidence()).unwrap();
        std::fs::write(layout.evidence().join(format!("{tenant}.jwt")), token).unwrap();
    }

    #[test]
    fn only_a_purge_that_the_operator_has_signed_counts() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        let operator = OperatorStore::open(layout.operator(), 1_000).unwrap();
        write_evidence(&layout, "acme-corp", true, operator.signer().unwrap().as_ref());
        write_evidence(&layout, "north", false, operator.signer().unwrap().as_ref());
        write_evidence(&layout, "forged", true, &SigningKey::generate(KeyKind::Operator));
        std::fs::write(layout.evidence().join("rubbish.jwt"), "x").unwrap();
        let found: Vec<String> = purges(&layout).into_iter().map(|purge| purge.tenant).collect();
        assert_eq!(found, ["acme-corp"]);
    }
}
