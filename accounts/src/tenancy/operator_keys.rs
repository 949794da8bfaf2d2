//! Rotation of the keys that sign accounts, with the servers asked before a step that they would not survive.

use super::{Links, Tenancy, TenancyError};
use crate::operator::OperatorError;
use crate::resolver::{accounts_signed_by, servers_without_key};

impl Tenancy {
    /// Refuses when a server would not take what this key signs.
    ///
    /// # Errors
    /// [`TenancyError::UnknownKey`] names the servers.
    pub async fn check_trusted(&self, links: &Links, key: &str) -> Result<(), TenancyError> {
        let servers =
            servers_without_key(links.system().await?, key, &links.known).await.map_err(TenancyError::NotAsked)?;
        if servers.is_empty() { Ok(()) } else { Err(TenancyError::UnknownKey { key: key.to_owned(), servers }) }
    }

    /// Refuses when a server holds an account that this key has signed, or is away and may hold one.
    ///
    /// # Errors
    /// [`TenancyError::KeyHeld`] names the accounts, [`TenancyError::ServersAway`] the servers.
    pub async fn check_unused(&self, links: &Links, key: &str) -> Result<(), TenancyError> {
        let there = crate::resolver::servers(links.system().await?, links.known.count())
            .await
            .map_err(TenancyError::NotAsked)?;
        let away = links.known.absent(&there);
        if !away.is_empty() {
            return Err(TenancyError::ServersAway(away));
        }
        let operator = &self.platform.operator;
        let mut names = std::collections::BTreeMap::new();
        for name in operator.account_names() {
            let account = operator.account(&name).map_err(TenancyError::Operator)?;
            let account = account.ok_or_else(|| TenancyError::Operator(OperatorError::NoAccount(name.clone())))?;
            names.insert(account.key.to_string(), name);
        }
        let keys: Vec<String> = names.keys().cloned().collect();
        let held = accounts_signed_by(links.system().await?, &keys, key, &links.known)
            .await
            .map_err(TenancyError::NotAsked)?;
        let accounts: Vec<String> = held.iter().filter_map(|key| names.get(key).cloned()).collect();
        if accounts.is_empty() { Ok(()) } else { Err(TenancyError::KeyHeld { key: key.to_owned(), accounts }) }
    }
}
