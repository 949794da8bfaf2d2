//! Rotation of a role's signing key with overlap: a new key signs for whoever comes from now on, those who are in by the old
//! one are closed and come back by the new one, and then the old key goes. Nobody needs a new file, and nobody outside the
//! role is disconnected.

use std::time::Duration;

use bulkhead_bus::{Role, TenantSlug};
use serde::Serialize;
use serde_json::json;

use super::{Act, Links, Preview, Tenancy, TenancyError};
use crate::gate::{AUTH, SENT};
use crate::operator::{OperatorError, SYSTEM};
use crate::resolver::{DrainError, Draining, drain};

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

    /// Public signing keys of a role, the present one first; none where there is no such account or role.
    ///
    /// # Errors
    /// When the operator store is damaged.
    fn keys_of(&self, account: &str, role: Role) -> Result<Vec<String>, TenancyError> {
        match self.platform.operator.book(account) {
            Ok(book) => Ok(book.keys_of(role).collect()),
            Err(OperatorError::NoAccount(_)) => Ok(vec![]),
            Err(error) => Err(TenancyError::Operator(error)),
        }
    }

    /// What taking a role's old key out would do, and whom it disconnects.
    ///
    /// # Errors
    /// When there is no such account, or the servers cannot be asked.
    pub async fn preview_finish(&self, links: &Links, account: &str, role: Role) -> Result<Preview, TenancyError> {
        let known = self.account_named(account)?;
        let mut wanted = known.claims.nats.clone();
        if let [_, previous] = self.keys_of(account, role)?.as_slice() {
            wanted.signing_keys.retain(|key| key.key() != previous);
        }
        self.preview_body(links, &known, &wanted).await
    }

    /// Gives a role a new key; the old one stays until the rotation is finished.
    ///
    /// # Errors
    /// When it is being rotated already, or a server does not follow.
    pub async fn rotate_role(&self, links: &Links, account: &str, role: Role) -> Result<(), TenancyError> {
        if account == SENT {
            return Err(TenancyError::Invalid(
                "what the sentinel's key signs is in every server's configuration, and opens nothing: it is not rotated"
                    .to_owned(),
            ));
        }
        self.check_seals(account)?;
        let act = self.begin(Act::RotateRole, &format!("{account}/{}", role.name()), json!({"phase": "new key"}))?;
        let signed = self.platform.operator.rotate_role(account, role, self.now_s()).map_err(TenancyError::Operator)?;
        self.put_in_force(links, &signed).await?;
        act.finish(json!({"phase": "new key"}), self.now_s()).map_err(TenancyError::Journal)
    }

    /// Puts what a rotation has begun in force once more, should that have been cut short.
    ///
    /// # Errors
    /// When a server does not follow.
    pub async fn complete_rotation(&self, links: &Links, account: &str) -> Result<(), TenancyError> {
        let account = self.account_named(account)?;
        self.put_in_force(links, &account).await
    }

    /// Takes a role's old key out.
    ///
    /// # Errors
    /// When the role is not being rotated, or somebody uses the key for longer than may be waited.
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
            // By credentials somebody would come back by the same key.
            let how = if account == SYSTEM || account == AUTH { Draining::Wait } else { Draining::Close };
            let drained = drain(links.system().await?, watched, links.known.count(), (how, limit), progress).await;
            drained.map_err(|error: DrainError| TenancyError::NotDrained { role: role.name(), source: error })?;
        }
        let act =
            self.begin(Act::RotateRole, &format!("{account}/{}", role.name()), json!({"phase": "old key out"}))?;
        let signed = self.platform.operator.finish_role_rotation(account, role, self.now_s());
        let signed = signed.map_err(TenancyError::Operator)?;
        self.put_in_force(links, &signed).await?;
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
