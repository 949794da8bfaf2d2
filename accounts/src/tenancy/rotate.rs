//! Rotation of a role's signing key with overlap: a new key signs from now on, clients move to it as they are issued anew,
//! and the old key goes when nobody uses it. Nobody outside the role is disconnected.

use std::fmt;
use std::time::Duration;

use bulkhead_bus::{AccountKey, PollerName, Role, SiteName, TenantSlug, UserName};
use serde::Serialize;
use serde_json::json;

use super::{Act, Issued, Links, Preview, SiteRecord, Standing, Tenancy, TenancyError};
use crate::operator::OperatorError;
use crate::resolver::{DrainError, wait_until_drained};
use crate::up::OPS;

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

/// Somebody who is locked out when a key goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "lacks")]
pub enum Dependent {
    /// What it has was signed by the key, and it was issued nothing since.
    NewFile { who: String, command: String },
    /// It was issued a new file, and is not connected by it: the file may not have arrived.
    Arrival { who: String },
}

impl fmt::Display for Dependent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewFile { who, command } => write!(f, "{who} has no other file (`{command}`)"),
            Self::Arrival { who } => write!(f, "{who} has a new file and is not connected by it"),
        }
    }
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
    pub fn keys_of(&self, account: &str, role: Role) -> Result<Vec<String>, TenancyError> {
        match self.platform.operator.book(account) {
            Ok(book) => Ok(book.keys_of(role).collect()),
            Err(OperatorError::NoAccount(_)) => Ok(vec![]),
            Err(error) => Err(TenancyError::Operator(error)),
        }
    }

    /// Who would be locked out if the previous key of a role went now, connected or not.
    ///
    /// # Errors
    /// When a record is damaged, or the servers cannot be asked.
    pub async fn dependents(&self, links: &Links, account: &str, role: Role) -> Result<Vec<Dependent>, TenancyError> {
        let keys = self.keys_of(account, role)?;
        let [current, previous] = keys.as_slice() else { return Ok(vec![]) };
        let now = self.now_s();
        let person = |name: &str, command: String| Dependent::NewFile { who: format!("person {name}"), command };
        if account == OPS {
            let people = self.platform_people()?.people;
            let holds = people.iter().filter(|(_, one)| one.standing == Standing::Active);
            let holds = holds.filter(|(_, one)| one.issued.depends_on(previous, now));
            return Ok(holds
                .map(|(name, _)| person(name.as_str(), format!("bulkhead operator user add {name} --to DIR")))
                .collect());
        }
        let Ok(slug) = account.parse::<TenantSlug>() else { return Ok(vec![]) };
        let Some(record) = self.records.find(&slug).map_err(TenancyError::Record)? else { return Ok(vec![]) };
        if role != Role::Leaf {
            let holds = record.people.iter().filter(|(_, one)| one.standing == Standing::Active);
            let holds = holds.filter(|(_, one)| one.role.role() == role && one.issued.depends_on(previous, now));
            let anew =
                |name: &UserName| format!("bulkhead tenant user add {slug} {name} --role {} --to DIR", role.name());
            return Ok(holds.map(|(name, _)| person(name.as_str(), anew(name))).collect());
        }
        let key = record.account.as_ref().map_or("", AccountKey::as_str);
        let open = links.connections(key).await?;
        let is_there = |leaf: &Issued| open.iter().any(|one| one.user == leaf.user_key && one.issuer_key == *current);
        let site = |(site, held): (&SiteName, &SiteRecord)| {
            let who = format!("site {slug}/{site}");
            if held.leaf.depends_on(previous, now) {
                let poller = held.pollers.keys().next().map_or("POLLER", PollerName::as_str);
                let command = format!("bulkhead poller add {slug}/{site}/{poller} --to DIR");
                return Some(Dependent::NewFile { who, command });
            }
            let had_other = held.earlier_leaves.iter().any(|leaf| leaf.depends_on(previous, now));
            (had_other && !is_there(&held.leaf)).then_some(Dependent::Arrival { who })
        };
        Ok(record.sites.iter().filter_map(site).collect())
    }

    /// What taking a role's old key out would do: whom it disconnects, and who is locked out though away.
    ///
    /// # Errors
    /// When there is no such account, or the servers cannot be asked.
    pub async fn preview_finish(
        &self,
        links: &Links,
        account: &str,
        role: Role,
    ) -> Result<(Preview, Vec<Dependent>), TenancyError> {
        let known = self.platform.operator.account(account).map_err(TenancyError::Operator)?;
        let no_account = || TenancyError::Operator(OperatorError::NoAccount(account.to_owned()));
        let known = known.ok_or_else(no_account)?;
        let mut wanted = known.claims.nats.clone();
        if let [_, previous] = self.keys_of(account, role)?.as_slice() {
            wanted.signing_keys.retain(|key| key.key() != previous);
        }
        let preview = self.preview_body(links, &known, &wanted).await?;
        Ok((preview, self.dependents(links, account, role).await?))
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
    /// When the role is not being rotated, or somebody still uses the key or has nothing else, and is not to be locked out.
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
            let dependents = self.dependents(links, account, role).await?;
            if !dependents.is_empty() {
                return Err(TenancyError::LockedOut { role: role.name(), dependents });
            }
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
