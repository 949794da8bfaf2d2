//! Every key that the store knows of: whose it is, and where its private half is.

use std::collections::BTreeMap;
use std::path::Path;

use bulkhead_claims::{UserBody, decode};
use serde::Serialize;

use super::nsc_layout::files_in;
use super::{OperatorError, OperatorStore};
use crate::keys::KeyPlace;

/// Whose a key is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "owner", rename_all = "snake_case")]
pub enum KeyOwner {
    OperatorIdentity,
    OperatorSigning {
        in_use: bool,
    },
    Account {
        account: String,
    },
    /// A signing key of an account, without a role when it may sign any user; a role's old one is there only while the role is being rotated.
    AccountSigning {
        account: String,
        role: String,
    },
    User {
        account: String,
        user: String,
    },
    /// A seed that nothing refers to.
    Nobody,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyRow {
    pub public: String,
    /// By its first letter: operator, account, user, curve.
    pub kind: &'static str,
    #[serde(flatten)]
    pub owner: KeyOwner,
    /// `seed file`, `command` or `absent`.
    pub place: &'static str,
    /// The seed file or program; empty when the private half is not here.
    pub at: String,
    pub referenced: bool,
}

impl KeyOwner {
    /// As people read it.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::OperatorIdentity => "operator, identity".to_owned(),
            Self::OperatorSigning { in_use: true } => "operator, signs accounts".to_owned(),
            Self::OperatorSigning { in_use: false } => "operator, standby".to_owned(),
            Self::Account { account } => account.clone(),
            Self::AccountSigning { account, role } if role.is_empty() => format!("{account}, signs any user"),
            Self::AccountSigning { account, role } => format!("{account}, role {role}"),
            Self::User { account, user } => format!("{account}, user {user}"),
            Self::Nobody => "nobody: orphan".to_owned(),
        }
    }
}

fn kind_of(public: &str) -> &'static str {
    match public.chars().next() {
        Some('O') => "operator",
        Some('A') => "account",
        Some('U') => "user",
        Some('N') => "server",
        Some('X') => "curve",
        Some(_) | None => "unknown",
    }
}

impl OperatorStore {
    /// Every key that the operator, an account or a user in the store refers to, and every seed that none does.
    ///
    /// # Errors
    /// When the table of external signers is damaged. Accounts that cannot be read refer to nothing.
    pub fn key_rows(&self) -> Result<Vec<KeyRow>, OperatorError> {
        let mut owners: BTreeMap<String, KeyOwner> = BTreeMap::new();
        owners.insert(self.claims.sub.clone(), KeyOwner::OperatorIdentity);
        let used = self.signing_key_in_use().unwrap_or_default();
        for key in &self.claims.nats.signing_keys {
            owners.insert(key.clone(), KeyOwner::OperatorSigning { in_use: *key == used });
        }
        for account in self.account_names() {
            if let Ok(Some(record)) = self.account(&account) {
                for key in &record.claims.nats.signing_keys {
                    let role = key.role().unwrap_or_default().to_owned();
                    owners.insert(key.key().to_owned(), KeyOwner::AccountSigning { account: account.clone(), role });
                }
                owners.insert(record.claims.sub, KeyOwner::Account { account: account.clone() });
            }
            for (public, user) in self.users_of(&account)? {
                owners.insert(public, KeyOwner::User { account: account.clone(), user });
            }
        }
        for public in self.keys.seeds() {
            owners.entry(public).or_insert(KeyOwner::Nobody);
        }
        owners.into_iter().map(|(public, owner)| self.key_row(public, owner)).collect()
    }

    fn key_row(&self, public: String, owner: KeyOwner) -> Result<KeyRow, OperatorError> {
        let place = match self.keys.place(&public) {
            Err(crate::keys::KeyError::NoKey(_)) => KeyPlace::Absent,
            place => place.map_err(OperatorError::Key)?,
        };
        let (place, at) = match place {
            KeyPlace::SeedFile(path) => ("seed file", path.display().to_string()),
            KeyPlace::Command(program) => ("command", program),
            KeyPlace::Absent => ("absent", String::new()),
        };
        let referenced = owner != KeyOwner::Nobody;
        Ok(KeyRow { kind: kind_of(&public), public, owner, place, at, referenced })
    }

    /// Users whose tokens another tool keeps in the store: public key and name.
    fn users_of(&self, account: &str) -> Result<Vec<(String, String)>, OperatorError> {
        let files = files_in(&self.paths.account(account)?.join("users"), "jwt");
        let read = |path: &Path| decode::<UserBody>(std::fs::read_to_string(path).ok()?.trim()).ok();
        Ok(files.iter().filter_map(|path| read(path)).map(|claims| (claims.sub, claims.name)).collect())
    }
}
