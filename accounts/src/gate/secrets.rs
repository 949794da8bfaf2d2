//! What gatekeepers and provisioning share: the key that questions and signing keys are sealed for, the key that seals
//! them, and the token that servers take whoever shows none for.

use std::path::{Path, PathBuf};

use bulkhead_bus::Role;
use bulkhead_claims::{Claims, SealingKey, UserBody, decode};

use super::{GateError, SENT};
use crate::files::{read_secret, read_state, write_public, write_secret};
use crate::nats_config::CalloutConfig;
use crate::operator::{AccountRecord, OperatorStore, UserRequest};
use crate::up::Layout;

/// It opens nothing, and servers read it at their start: it lives as long as SENT's key.
const SENTINEL_YEARS: i64 = 20;
const YEAR_S: i64 = 365 * 86_400;

/// Where they are in a home.
#[derive(Debug, Clone)]
pub struct GateSecrets {
    folder: PathBuf,
}

fn read_sealing_key(path: &Path) -> Result<SealingKey, GateError> {
    let seed = zeroize::Zeroizing::new(read_secret(path).map_err(GateError::File)?);
    SealingKey::from_seed(&seed).map_err(|source| GateError::Seed { path: path.display().to_string(), source })
}

fn ensure_sealing_key(path: &Path) -> Result<SealingKey, GateError> {
    if path.exists() {
        return read_sealing_key(path);
    }
    let key = SealingKey::generate();
    let seed = key.seed().map_err(GateError::Seal)?;
    write_secret(path, seed.as_bytes()).map_err(GateError::File)?;
    Ok(key)
}

impl GateSecrets {
    #[must_use]
    pub fn new(layout: &Layout) -> Self {
        Self { folder: layout.secrets() }
    }

    /// The seed of the gatekeepers' X25519 key.
    #[must_use]
    pub fn xkey_file(&self) -> PathBuf {
        self.folder.join("gatekeeper.xk")
    }

    fn sender_file(&self) -> PathBuf {
        self.folder.join("gate-sender.xk")
    }

    /// The sentinel's token, which opens nothing.
    #[must_use]
    pub fn sentinel_file(&self) -> PathBuf {
        self.folder.join("sentinel.jwt")
    }

    /// The gatekeepers' X25519 key. It is never made anew: servers would seal for a key that no gatekeeper has.
    ///
    /// # Errors
    /// When the file is missing, is open to others, or holds something else.
    pub fn xkey(&self) -> Result<SealingKey, GateError> {
        read_sealing_key(&self.xkey_file())
    }

    /// The gatekeepers' X25519 key of a platform; `sent` is SENT as it is, if it is there, whose key it has to be.
    ///
    /// # Errors
    /// When SENT names another key, or as [`GateSecrets::xkey`].
    pub fn ensure_xkey(&self, sent: Option<&AccountRecord>) -> Result<SealingKey, GateError> {
        let named = sent.map(|sent| sent.claims.nats.authorization.xkey.as_str()).filter(|named| !named.is_empty());
        let Some(named) = named else { return ensure_sealing_key(&self.xkey_file()) };
        let key = self.xkey()?;
        if key.public() == named {
            return Ok(key);
        }
        let (path, found) = (self.xkey_file().display().to_string(), key.public().to_owned());
        Err(GateError::OtherKey { path, found, named: named.to_owned() })
    }

    /// The key by which provisioning seals; made when it is missing.
    ///
    /// # Errors
    /// When the file is open to others, holds something else, or cannot be written.
    pub fn sender(&self) -> Result<SealingKey, GateError> {
        ensure_sealing_key(&self.sender_file())
    }

    /// What servers are configured with. The sentinel's token stays the same as long as SENT's key signs it.
    ///
    /// # Errors
    /// When AUTH or SENT is not there, or its key is not.
    pub fn callout(
        &self,
        operator: &OperatorStore,
        (auth, sent): (&AccountRecord, &AccountRecord),
        now_s: i64,
    ) -> Result<CalloutConfig, GateError> {
        let pinned = vec![auth.key.to_string(), sent.key.to_string()];
        let path = self.sentinel_file();
        if path.exists() {
            let token = read_state(&path).map_err(GateError::File)?;
            let read: Result<Claims<UserBody>, _> = decode(&token);
            let is_fit = read.is_ok_and(|user| {
                let is_signed = sent.role_key(Role::Sentinel) == Some(user.iss.as_str());
                is_signed
                    && user.nats.issuer_account == sent.key.as_str()
                    && user.exp.is_none_or(|end| end > now_s + YEAR_S)
            });
            if is_fit {
                return Ok(CalloutConfig { pinned, sentinel_token: token });
            }
        }
        let (role, expires) = (Role::Sentinel, now_s + SENTINEL_YEARS * YEAR_S);
        let user = UserRequest { account: SENT, role, name: "sentinel", site: None, expires };
        let issued = operator.issue_user(&user, now_s).map_err(GateError::Operator)?;
        write_public(&path, issued.token.as_bytes()).map_err(GateError::File)?;
        Ok(CalloutConfig { pinned, sentinel_token: issued.token })
    }
}
