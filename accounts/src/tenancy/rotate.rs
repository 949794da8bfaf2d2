//! Rotation of a role's signing key with overlap: a new key signs from now on, clients move to it as they are issued anew,
//! and the old key goes when nobody uses it. Nobody outside the role is disconnected.

use std::time::Duration;

use bulkhead_bus::{Role, TenantSlug};
use serde::Serialize;
use serde_json::json;

use super::{Act, Links, Tenancy, TenancyError};
use crate::resolver::{DrainError, wait_until_drained};

/// The state of one role's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleState {
    pub account: String,
    pub role: String,
    pub key: String,
    /// Unix seconds.
    pub since: i64,
    /// The key that goes, while the role is being rotated.
    pub previous: Option<String>,
    /// Connections by the present key, and by the previous one; `None` when nobody was asked.
    pub connections: Option<(usize, usize)>,
}

/// Whether to take out a key that somebody still uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenUsed {
    Wait(Duration),
    Disconnect,
}

impl Tenancy {
    /// Every role of an account.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn roles(&self, links: Option<&Links>, account: &str) -> Result<Vec<RoleState>, TenancyError> {
        let book = self.platform.operator.book(account).map_err(TenancyError::Operator)?;
        let open = match links {
            Some(links) => Some(links.connections(&book.key).await?),
            None => None,
        };
        let used = |key: &str| open.as_ref().map(|open| open.iter().filter(|one| one.issuer_key == key).count());
        let state = |(role, keys): (&String, &crate::operator::RoleKeys)| {
            let previous = keys.previous.as_ref().map(|key| key.public.clone());
            let old = previous.as_deref().and_then(&used).unwrap_or(0);
            RoleState {
                account: account.to_owned(),
                role: role.clone(),
                key: keys.current.public.clone(),
                since: keys.current.since,
                connections: used(&keys.current.public).map(|now| (now, old)),
                previous,
            }
        };
        Ok(book.roles.iter().map(state).collect())
    }

    /// Gives a role a new key; the old one stays until the rotation is finished.
    ///
    /// # Errors
    /// When it is being rotated already, or a server does not follow.
    pub async fn rotate_role(&self, links: &Links, account: &str, role: Role) -> Result<(), TenancyError> {
        let act = self.begin(Act::RotateRole, &format!("{account}/{}", role.name()), json!({"phase": "new key"}))?;
        let signed = self.platform.operator.rotate_role(account, role, self.now_s()).map_err(TenancyError::Operator)?;
        links.push(&signed).await?;
        act.finish(json!({"phase": "new key"}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// Takes a role's old key out.
    ///
    /// # Errors
    /// When the role is not being rotated, or somebody still uses the key and is not to be disconnected.
    pub async fn finish_rotation(
        &self,
        links: &Links,
        (account, role): (&str, Role),
        when_used: WhenUsed,
        progress: &dyn Fn(usize),
    ) -> Result<(), TenancyError> {
        let states = self.roles(None, account).await?;
        let state = states.into_iter().find(|state| state.role == role.name());
        let previous = state.and_then(|state| state.previous);
        let book = self.platform.operator.book(account).map_err(TenancyError::Operator)?;
        if let (WhenUsed::Wait(limit), Some(previous)) = (when_used, &previous) {
            let watched = (book.key.as_str(), previous.as_str());
            let drained = wait_until_drained(&links.system, watched, links.known.count(), limit, progress).await;
            drained.map_err(|error: DrainError| TenancyError::NotDrained { role: role.name(), source: error })?;
        }
        let act =
            self.begin(Act::RotateRole, &format!("{account}/{}", role.name()), json!({"phase": "old key out"}))?;
        let signed = self.platform.operator.finish_role_rotation(account, role, self.now_s());
        links.push(&signed.map_err(TenancyError::Operator)?).await?;
        act.finish(json!({"phase": "old key out"}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// The name in the operator store of a tenant's account.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub fn account_of(&self, slug: &TenantSlug) -> Result<String, TenancyError> {
        self.records.get(slug).map(|record| record.slug.to_string()).map_err(TenancyError::Record)
    }
}
