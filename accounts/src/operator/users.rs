//! Users that are admitted by credentials, signed by the account's scoped key for their role and never by an identity.

use bulkhead_bus::{Role, SiteName};
use bulkhead_claims::{Claims, KeyKind, SigningKey, UserBody, credentials_text, encode};
use zeroize::Zeroizing;

use super::{OperatorError, OperatorStore, not_signed};

/// A user to be admitted by credentials.
#[derive(Debug, Clone)]
pub struct UserRequest<'a> {
    pub account: &'a str,
    pub role: Role,
    pub name: &'a str,
    /// Fills `{{tag(site)}}` in the role's template.
    pub site: Option<&'a SiteName>,
    /// Unix seconds.
    pub expires: i64,
}

/// A user that was issued, with what it takes to revoke it later.
pub struct IssuedUser {
    /// The credentials file.
    pub text: Zeroizing<String>,
    /// The token that is in it.
    pub token: String,
    pub public: String,
    /// The public signing key that vouches for it.
    pub signed_by: String,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub expires: i64,
}

impl OperatorStore {
    /// Issues a new user, signed by the account's scoped key for the role: the new one while that is being rotated.
    ///
    /// # Errors
    /// When the account or its role does not exist, or nobody can sign with the role's key.
    pub fn issue_user(&self, user: &UserRequest<'_>, now: i64) -> Result<IssuedUser, OperatorError> {
        let account = self.account(user.account)?;
        let account = account.ok_or_else(|| OperatorError::NoAccount(user.account.to_owned()))?;
        let no_role = || OperatorError::NoRole(user.account.to_owned(), user.role.name().to_owned());
        let signer = account.role_key(user.role).ok_or_else(no_role)?;
        let signer = self.keys.signer(signer, KeyKind::Account).map_err(OperatorError::Key)?;
        let key = SigningKey::generate(KeyKind::User);
        let tags = user.site.map(|site| format!("site:{site}")).into_iter().collect();
        let body = UserBody::scoped(account.key.to_string(), tags);
        let mut claims = Claims::new(key.public().to_owned(), user.name.to_owned(), now, body);
        claims.exp = Some(user.expires);
        let token = encode(&mut claims, signer.as_ref()).map_err(not_signed)?;
        let text = Zeroizing::new(credentials_text(&token, &key).map_err(not_signed)?);
        let signed_by = signer.public().to_owned();
        Ok(IssuedUser { text, token, public: key.public().to_owned(), signed_by, iat: now, expires: user.expires })
    }
}
