//! A nats-server of the operator whose store is tested.

use std::path::Path;

use bulkhead_accounts::operator::OperatorStore;
use bulkhead_tests::operator_server::OperatorServer;

use super::tool::Nsc;

/// The token of an account, whatever nsc calls its folder.
fn token_of(accounts: &Path, key: &str) -> anyhow::Result<String> {
    for folder in std::fs::read_dir(accounts)? {
        let folder = folder?;
        let path = folder.path().join(folder.file_name()).with_extension("jwt");
        let token = std::fs::read_to_string(path)?;
        if bulkhead_claims::decode_json(token.trim())?.sub == key {
            return Ok(token);
        }
    }
    anyhow::bail!("no token of {key} in {}", accounts.display())
}

/// Starts it with the operator's and the system account's tokens as they are in the store that nsc uses.
pub(crate) async fn start(folder: &Path, store: &OperatorStore, nsc: &Nsc) -> anyhow::Result<OperatorServer> {
    let system = store.system()?.key;
    let place = nsc.data().join("stores").join(store.name());
    let operator = std::fs::read_to_string(place.join(format!("{}.jwt", store.name())))?;
    let token = token_of(&place.join("accounts"), system.as_str())?;
    OperatorServer::start(folder, &operator, (system.as_str(), &token)).await
}
