//! What gatekeepers have barred is revoked for good here, where the keys are that servers and gatekeepers believe (ADR 12).

use bulkhead_bus::gate::BarredItem;
use bulkhead_bus::{AccountKey, TenantSlug};

use super::{Links, Tenancy, TenancyError};
use crate::certificates::{AuthorityName, Reason, Revocable};
use crate::up::PlatformError;

/// A token of the same key that is signed within so long is void too: gatekeepers say each key once a day.
const VOID_AHEAD_S: i64 = 86_400;

/// An account of a tenant has no user by tokens: more keys than this are nobody's attack, but somebody's who fills its token.
const USERS_MOST: usize = 1_000;

/// What was revoked, and of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedBarred {
    /// The tenant's account.
    pub account: String,
    /// The certificate's URI, or the key of a token.
    pub identity: String,
    /// Nothing where all of it was revoked before.
    pub is_new: bool,
}

impl Tenancy {
    /// Revokes it for good: a certificate in its authority's book with all others of the same key, which gatekeepers are told, and
    /// a token's key in its account, which servers are told. Once more tells them again. `None` for what is no tenant's.
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
        let mut damaged = None;
        for issuer in authority.list_authorities().map_err(failed)? {
            // A certificate of the platform's that is found somewhere else is closed there: gatekeepers bar none.
            let AuthorityName::Tenant(slug) = &issuer else { continue };
            let book = match authority.list_issued(&issuer) {
                Ok(book) => book,
                // It may be in another one.
                Err(error) => {
                    damaged = Some(error);
                    continue;
                }
            };
            let Some(shown) = book.iter().find(|issued| issued.fingerprint == fingerprint) else { continue };
            let mut is_new = false;
            // Whoever has the key has what was issued for it before and after.
            for issued in book.iter().filter(|issued| issued.key_fingerprint == shown.key_fingerprint) {
                let serial = Revocable::Serial(issued.serial.clone());
                let now = self.platform.now;
                let revoked = authority.revoke_of(&issuer, &serial, Reason::KeyCompromise, now).map_err(failed)?;
                is_new |= !revoked.is_empty();
            }
            // Of a tenant that is gone nobody comes in anyway.
            if self.platform.operator.account(slug.as_str()).map_err(TenancyError::Operator)?.is_some() {
                self.narrow(links, slug.as_str()).await?;
            }
            let (account, identity) = (slug.to_string(), shown.identity.clone());
            return Ok(Some(RevokedBarred { account, identity, is_new }));
        }
        damaged.map_or(Ok(None), |error| Err(failed(error)))
    }

    async fn revoke_user(
        &self,
        links: &Links,
        account: &AccountKey,
        user: &str,
    ) -> Result<Option<RevokedBarred>, TenancyError> {
        let operator = &self.platform.operator;
        // Nobody enters a tenant's account by a token; the platform's own are not theirs to close.
        let mut names = operator.account_names().into_iter().filter(|name| name.parse::<TenantSlug>().is_ok());
        let Some(name) = names.find(|name| operator.key_of(name).as_ref() == Some(account)) else { return Ok(None) };
        let revoked = operator.book(&name).map_err(TenancyError::Operator)?.revocations;
        let is_void = revoked.get(user).is_some_and(|at| *at >= self.now_s());
        if !is_void && revoked.len() >= USERS_MOST {
            return Err(TenancyError::Invalid(format!(
                "account {name} has {} revoked keys: rotate the tenant's keys (`bulkhead tenant rotate {name}`)",
                revoked.len()
            )));
        }
        let record = if is_void {
            self.account_named(&name)?
        } else {
            operator.revoke_user(&name, user, self.now_s() + VOID_AHEAD_S).map_err(TenancyError::Operator)?
        };
        links.push(&record).await?;
        Ok(Some(RevokedBarred { account: name, identity: user.to_owned(), is_new: !is_void }))
    }
}
