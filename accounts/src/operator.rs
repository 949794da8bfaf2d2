//! The operator and its accounts on disk, laid out as nsc does (facts: accounts-and-nsc section 1).
//!
//! Accounts are rendered whole. A token is signed anew only when its body changed, and then its `iat` grows by at least
//! a second, because servers synchronise by it. The operator's identity key signs nothing but the operator itself.

use std::path::PathBuf;

use bulkhead_bus::{AccountKey, AccountKeyError, Role, SiteName};
use serde_json::json;

use crate::files::{FileError, read_state, write_secret};
use crate::keys::{KeyError, KeyStore};
use crate::render::{RoleKey, system_account};
use bulkhead_claims::{
    AccountBody, Claims, DecodeError, KeyKind, OperatorBody, ScopedKey, SignError, SigningKey, UserBody,
    credentials_text, decode, encode,
};

const OPERATOR: &str = "bulkhead";
/// The system account's name.
pub const SYSTEM: &str = "sys";

/// What went wrong with the store; names the account or file.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("operator store")]
    File(#[source] FileError),
    #[error("operator keys")]
    Key(#[source] KeyError),
    #[error("token of {name} in the operator store is not readable: restore {path} or start anew")]
    Token { name: String, path: String, source: DecodeError },
    #[error("account {0} has no signing key for role {1}")]
    NoRole(String, &'static str),
    #[error("there is no account {0} in the operator store")]
    NoAccount(String),
    #[error("account {name} has a key that is none")]
    AccountKey { name: String, source: AccountKeyError },
}

/// One account: its token as last signed, and what is in it.
#[derive(Debug, Clone)]
pub struct AccountRecord {
    pub name: String,
    pub key: AccountKey,
    pub token: String,
    pub claims: Claims<AccountBody>,
}

impl AccountRecord {
    /// The public signing key of a role.
    #[must_use]
    pub fn role_key(&self, role: Role) -> Option<&str> {
        let is_role = |key: &&ScopedKey| key.role() == Some(role.name());
        self.claims.nats.signing_keys.iter().find(is_role).map(ScopedKey::key)
    }
}

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

/// The operator's store.
#[derive(Debug)]
pub struct OperatorStore {
    folder: PathBuf,
    keys: KeyStore,
    pub token: String,
    claims: Claims<OperatorBody>,
}

impl OperatorStore {
    /// Opens the store in `folder`, or makes an operator with two signing keys and its system account.
    ///
    /// # Errors
    /// When the store is damaged or cannot be written. `now` is unix seconds.
    pub fn open(folder: PathBuf, now: i64) -> Result<Self, OperatorError> {
        match Self::read(folder.clone())? {
            Some(store) => Ok(store),
            None => Self::create(folder.clone(), KeyStore::new(folder.join("keys")), now),
        }
    }

    /// Opens the store in `folder` as it is; `None` when there is none.
    ///
    /// # Errors
    /// When the store is damaged.
    pub fn read(folder: PathBuf) -> Result<Option<Self>, OperatorError> {
        let path = folder.join("stores").join(OPERATOR).join(format!("{OPERATOR}.jwt"));
        if !path.exists() {
            return Ok(None);
        }
        let token = read_state(&path).map_err(OperatorError::File)?;
        let damaged =
            |source| OperatorError::Token { name: OPERATOR.to_owned(), path: path.display().to_string(), source };
        let claims = decode::<OperatorBody>(&token).map_err(damaged)?;
        let keys = KeyStore::new(folder.join("keys"));
        Ok(Some(Self { folder, keys, token, claims }))
    }

    /// The names of all accounts, the system's among them.
    #[must_use]
    pub fn account_names(&self) -> Vec<String> {
        let folder = self.folder.join("stores").join(OPERATOR).join("accounts");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn create(folder: PathBuf, keys: KeyStore, now: i64) -> Result<Self, OperatorError> {
        let generate = |kind| keys.generate(kind).map_err(OperatorError::Key);
        let identity = generate(KeyKind::Operator)?;
        // An active and a standby key: servers cannot learn a new one without a restart (finding 8).
        let signing = [generate(KeyKind::Operator)?, generate(KeyKind::Operator)?];
        let system = generate(KeyKind::Account)?;
        let body = OperatorBody::new(
            signing.iter().map(|key: &SigningKey| key.public().to_owned()).collect(),
            system.public().to_owned(),
        );
        let mut claims = Claims::new(identity.public().to_owned(), OPERATOR.to_owned(), now, body);
        let token = encode(&mut claims, &identity).map_err(not_signed)?;
        let store = Self { folder, keys, token, claims };
        let roles = [(Role::SystemOperator, generate_role(&store.keys)?)];
        let role_keys = roles.map(|(role, key)| RoleKey { role, public: key.public().to_owned() });
        store.sign_account(SYSTEM, system.public().to_owned(), now, system_account(&role_keys))?;
        let folder = store.folder.join("stores").join(OPERATOR);
        let about = json!({"managed": false, "name": OPERATOR, "kind": "operator", "version": "1"});
        write_secret(&folder.join(".nsc"), about.to_string().as_bytes()).map_err(OperatorError::File)?;
        // The operator's own token comes last: until it is there, the next open starts over.
        let path = folder.join(format!("{OPERATOR}.jwt"));
        write_secret(&path, store.token.as_bytes()).map_err(OperatorError::File)?;
        Ok(store)
    }

    /// Renders the system account anew, so that a newer release has the rights that it needs.
    ///
    /// # Errors
    /// When the store is damaged or incomplete, or cannot be written.
    pub fn ensure_system(&self, now: i64) -> Result<AccountRecord, OperatorError> {
        // One that is gone cannot be made anew: the operator's token names it by its key.
        self.system()?;
        self.ensure_account(SYSTEM, &[Role::SystemOperator], now, |_, keys| system_account(keys))
    }

    /// # Errors
    /// When the system account is damaged or gone.
    pub fn system(&self) -> Result<AccountRecord, OperatorError> {
        self.account(SYSTEM)?.ok_or_else(|| OperatorError::NoAccount(SYSTEM.to_owned()))
    }

    fn account_path(&self, name: &str) -> PathBuf {
        self.folder.join("stores").join(OPERATOR).join("accounts").join(name).join(format!("{name}.jwt"))
    }

    /// # Errors
    /// When the account's token is damaged.
    pub fn account(&self, name: &str) -> Result<Option<AccountRecord>, OperatorError> {
        let path = self.account_path(name);
        if !path.exists() {
            return Ok(None);
        }
        let token = read_state(&path).map_err(OperatorError::File)?;
        let damaged = |source| OperatorError::Token { name: name.to_owned(), path: path.display().to_string(), source };
        let claims = decode::<AccountBody>(&token).map_err(damaged)?;
        if !self.claims.nats.signing_keys.contains(&claims.iss) {
            return Err(damaged(DecodeError::Issuer(claims.iss)));
        }
        let key = claims.sub.parse();
        let key = key.map_err(|source| OperatorError::AccountKey { name: name.to_owned(), source })?;
        Ok(Some(AccountRecord { name: name.to_owned(), key, token, claims }))
    }

    /// Makes an account, or renders it anew with the keys that it has. `render` gets the account's own key.
    ///
    /// # Errors
    /// When the store is damaged or cannot be written.
    pub fn ensure_account(
        &self,
        name: &str,
        roles: &[Role],
        now: i64,
        render: impl FnOnce(&str, &[RoleKey]) -> AccountBody,
    ) -> Result<AccountRecord, OperatorError> {
        let existing = self.account(name)?;
        let own = match &existing {
            Some(record) => record.key.to_string(),
            None => self.keys.generate(KeyKind::Account).map_err(OperatorError::Key)?.public().to_owned(),
        };
        let mut role_keys = Vec::new();
        for &role in roles {
            let known = existing.as_ref().and_then(|record| record.role_key(role)).map(str::to_owned);
            let public = match known {
                Some(public) => public,
                None => generate_role(&self.keys)?.public().to_owned(),
            };
            role_keys.push(RoleKey { role, public });
        }
        let body = render(&own, &role_keys);
        let last = existing.as_ref().map_or(0, |record| record.claims.iat);
        match existing {
            Some(record) if record.claims.nats == body => Ok(record),
            Some(_) | None => self.sign_account(name, own, now.max(last + 1), body),
        }
    }

    fn sign_account(
        &self,
        name: &str,
        own: String,
        iat: i64,
        body: AccountBody,
    ) -> Result<AccountRecord, OperatorError> {
        let signer = self.claims.nats.signing_keys.first().map_or("", String::as_str);
        let signer = self.keys.read(signer, KeyKind::Operator).map_err(OperatorError::Key)?;
        let key = own.parse();
        let key = key.map_err(|source| OperatorError::AccountKey { name: name.to_owned(), source })?;
        let mut claims = Claims::new(own, name.to_owned(), iat, body);
        let token = encode(&mut claims, &signer).map_err(not_signed)?;
        write_secret(&self.account_path(name), token.as_bytes()).map_err(OperatorError::File)?;
        Ok(AccountRecord { name: name.to_owned(), key, token, claims })
    }

    /// The text of a credentials file for a new user, signed by the account's scoped key for the role.
    ///
    /// # Errors
    /// When the account or its role does not exist.
    pub fn issue_user(&self, user: &UserRequest<'_>, now: i64) -> Result<String, OperatorError> {
        let account = self.account(user.account)?;
        let account = account.ok_or_else(|| OperatorError::NoAccount(user.account.to_owned()))?;
        let no_role = || OperatorError::NoRole(user.account.to_owned(), user.role.name());
        let signer = account.role_key(user.role).ok_or_else(no_role)?;
        let signer = self.keys.read(signer, KeyKind::Account).map_err(OperatorError::Key)?;
        let key = SigningKey::generate(KeyKind::User);
        let tags = user.site.map(|site| format!("site:{site}")).into_iter().collect();
        let body = UserBody::scoped(account.key.to_string(), tags);
        let mut claims = Claims::new(key.public().to_owned(), user.name.to_owned(), now, body);
        claims.exp = Some(user.expires);
        let token = encode(&mut claims, &signer).map_err(not_signed)?;
        credentials_text(&token, &key).map_err(not_signed)
    }

    /// Signs an account's body as it is given, bypassing the renderer: for tests that weaken a deployment on purpose.
    ///
    /// # Errors
    /// When there is no such account or the store cannot be written.
    pub fn sign_body(&self, name: &str, body: AccountBody, now: i64) -> Result<AccountRecord, OperatorError> {
        let record = self.account(name)?.ok_or_else(|| OperatorError::NoAccount(name.to_owned()))?;
        self.sign_account(name, record.key.to_string(), now.max(record.claims.iat + 1), body)
    }

    #[must_use]
    pub fn keys(&self) -> &KeyStore {
        &self.keys
    }
}

fn not_signed(error: SignError) -> OperatorError {
    OperatorError::Key(KeyError::Sign(error))
}

fn generate_role(keys: &KeyStore) -> Result<SigningKey, OperatorError> {
    keys.generate(KeyKind::Account).map_err(OperatorError::Key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, PlanName};
    use crate::render::tenant_account;

    fn tenant(store: &OperatorStore, plan: PlanName, now: i64) -> AccountRecord {
        let render = |own: &str, keys: &[RoleKey]| tenant_account(&Plan::of(plan), own, "ACORE", keys);
        store.ensure_account("acme-corp", &Role::TENANT, now, render).unwrap()
    }

    #[test]
    fn a_token_is_signed_anew_only_when_the_body_changes_and_then_it_is_newer() {
        let folder = tempfile::tempdir().unwrap();
        let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
        let first = tenant(&store, PlanName::Free, 1_000);
        let reopened = OperatorStore::open(folder.path().to_owned(), 2_000).unwrap();
        assert_eq!(reopened.token, store.token);
        assert_eq!(tenant(&reopened, PlanName::Free, 2_000).token, first.token);
        let changed = tenant(&reopened, PlanName::Pro, 1_000);
        assert_eq!(changed.claims.iat, 1_001, "the clock stood still, the token is newer all the same");
        assert_eq!(changed.role_key_all(), first.role_key_all());
        assert_eq!(changed.key, first.key);
    }

    impl AccountRecord {
        fn role_key_all(&self) -> Vec<String> {
            Role::TENANT.iter().filter_map(|&role| self.role_key(role).map(str::to_owned)).collect()
        }
    }

    #[test]
    fn the_system_account_of_an_earlier_release_is_renewed_with_its_key_and_a_lost_one_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
        let known = store.system().unwrap();
        let mut less = known.claims.nats.clone();
        less.limits.conn = 1;
        store.sign_body(SYSTEM, less, 1_000).unwrap();
        let renewed = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap().ensure_system(1_000).unwrap();
        assert_eq!((renewed.claims.nats, renewed.key), (known.claims.nats, known.key));
        assert_eq!(renewed.claims.iat, 1_002, "servers take only what is newer");
        std::fs::remove_file(store.account_path(SYSTEM)).unwrap();
        let opened = OperatorStore::open(folder.path().to_owned(), 1_000);
        assert!(opened.and_then(|store| store.ensure_system(1_000)).is_err());
    }

    #[test]
    fn users_are_signed_by_the_scoped_key_of_their_role_and_never_by_an_identity() {
        let folder = tempfile::tempdir().unwrap();
        let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
        let account = tenant(&store, PlanName::Free, 1_000);
        let site = "oslo".parse().unwrap();
        let user =
            UserRequest { account: "acme-corp", role: Role::Leaf, name: "leaf", site: Some(&site), expires: 2_000 };
        let text = store.issue_user(&user, 1_000).unwrap();
        let token = text.lines().nth(1).unwrap();
        let claims = decode::<UserBody>(token).unwrap();
        assert_eq!(Some(claims.iss.as_str()), account.role_key(Role::Leaf));
        assert_ne!(claims.iss, account.key.as_str());
        assert_eq!((claims.nats.tags.to_vec(), claims.exp), (vec!["site:oslo".to_owned()], Some(2_000)));
        assert_eq!(claims.nats.issuer_account, account.key.as_str());
    }

    #[test]
    fn a_damaged_or_foreign_token_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = OperatorStore::open(folder.path().to_owned(), 1_000).unwrap();
        tenant(&store, PlanName::Free, 1_000);
        let path = store.account_path("acme-corp");
        let token = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &token[..token.len() / 2]).unwrap();
        assert!(store.account("acme-corp").unwrap_err().to_string().contains("acme-corp"));
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = OperatorStore::open(elsewhere.path().to_owned(), 1_000).unwrap();
        std::fs::write(&path, tenant(&foreign, PlanName::Free, 1_000).token).unwrap();
        assert!(store.account("acme-corp").is_err(), "another operator's account");
    }
}
