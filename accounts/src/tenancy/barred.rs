//! What gatekeepers have barred is revoked for good here, where the keys are that servers and gatekeepers believe (ADR 12).

use bulkhead_bus::AccountKey;
use bulkhead_bus::gate::BarredItem;

use super::{Links, Tenancy, TenancyError};
use crate::certificates::{AuthorityName, Reason, Revocable};
use crate::gate::{AUTH, SENT};
use crate::operator::SYSTEM;
use crate::up::PlatformError;

/// A token of the same key that is signed within so long is void too: gatekeepers say each key once a day.
const VOID_AHEAD_S: i64 = 86_400;

/// What was revoked, and of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedBarred {
    /// The tenant's account.
    pub account: String,
    /// The certificate's URI, or the key of a token.
    pub identity: String,
}

impl Tenancy {
    /// Revokes it for good: a certificate in its authority's book, which gatekeepers are told, and a token's key in its account,
    /// which servers are told. Once more tells them again. `None` for what is none of ours.
    ///
    /// # Errors
    /// When it cannot be written down, or hub or gatekeepers do not follow: then say it again.
    pub async fn revoke_barred(&self, links: &Links, what: &BarredItem) -> Result<Option<RevokedBarred>, TenancyError> {
        match what {
            BarredItem::Certificate(fingerprint) => self.revoke_shown(links, fingerprint).await,
            BarredItem::User { account, user } => self.revoke_user(links, account, user).await,
        }
    }

    async fn revoke_shown(&self, links: &Links, fingerprint: &str) -> Result<Option<RevokedBarred>, TenancyError> {
        let authority = &self.platform.authority;
        let failed = |error| TenancyError::Platform(PlatformError::Certificate(error));
        for issuer in authority.list_authorities().map_err(failed)? {
            // A certificate of the platform's that is found somewhere else is closed there: gatekeepers bar none.
            let AuthorityName::Tenant(slug) = &issuer else { continue };
            let issued = authority.list_issued(&issuer).map_err(failed)?;
            let Some(issued) = issued.into_iter().find(|issued| issued.fingerprint == fingerprint) else { continue };
            let serial = Revocable::Serial(issued.serial);
            authority.revoke_of(&issuer, &serial, Reason::KeyCompromise, self.platform.now).map_err(failed)?;
            // Of a tenant that is gone nobody comes in anyway.
            if self.platform.operator.account(slug.as_str()).map_err(TenancyError::Operator)?.is_some() {
                self.narrow(links, slug.as_str()).await?;
            }
            return Ok(Some(RevokedBarred { account: slug.to_string(), identity: issued.identity }));
        }
        Ok(None)
    }

    async fn revoke_user(
        &self,
        links: &Links,
        account: &AccountKey,
        user: &str,
    ) -> Result<Option<RevokedBarred>, TenancyError> {
        let operator = &self.platform.operator;
        // Our own services come into these by tokens.
        let may = |name: &String| ![SYSTEM, AUTH, SENT].contains(&name.as_str());
        let mut names = operator.account_names().into_iter().filter(may);
        let Some(name) = names.find(|name| operator.key_of(name).as_ref() == Some(account)) else { return Ok(None) };
        let is_void = operator.book(&name).map_err(TenancyError::Operator)?.revocations.contains_key(user);
        let record = if is_void {
            self.account_named(&name)?
        } else {
            operator.revoke_user(&name, user, self.now_s() + VOID_AHEAD_S).map_err(TenancyError::Operator)?
        };
        links.push(&record).await?;
        Ok(Some(RevokedBarred { account: name, identity: user.to_owned() }))
    }
}
