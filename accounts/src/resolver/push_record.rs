//! The push of an account as the store has it, to however many servers run, whatever they hold.

use bulkhead_runtime::{Bus, eventually};

use super::asking::{KnownServers, servers as servers_there};
use super::held::Base;
use super::push::{Order, Patience, PushError, push_order};
use crate::operator::AccountRecord;

/// Pushes `account` over `system`, a connection in SYS, to `servers` servers, over whatever they hold.
///
/// # Errors
/// [`PushError`] says what is missing.
pub async fn push(system: &Bus, account: &AccountRecord, servers: usize) -> Result<(), PushError> {
    let patience = Patience::default();
    let limit = patience.limit();
    let there = eventually("the servers of the hub", limit, || async {
        match servers_there(system, servers).await {
            Ok(there) if there.len() >= servers => Ok(there),
            Ok(there) => Err(there.len()),
            Err(_) => Err(0),
        }
    });
    let too_few = |answered: &str| PushError::TooFew {
        account: account.name.clone(),
        expected: servers,
        answered: answered.parse().unwrap_or(0),
    };
    let there = there.await.map_err(|reached| too_few(&reached.last))?;
    let known = KnownServers::named(there.into_iter().map(|server| server.name));
    let order = Order { name: &account.name, account: &account.key, token: &account.token, base: Base::Anything };
    push_order(system, &order, &known, patience).await.map(drop)
}
