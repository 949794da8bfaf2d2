//! What can be wrong with the operator's store; every message names the account or file, and the way out.

use bulkhead_bus::AccountKeyError;
use bulkhead_claims::{DecodeError, SignError};

use crate::files::FileError;
use crate::keys::KeyError;

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
    NoRole(String, String),
    #[error("there is no account {0} in the operator store")]
    NoAccount(String),
    #[error("account {name} has a key that is none")]
    AccountKey { name: String, source: AccountKeyError },
    #[error("{0:?} cannot name an account: it would lead out of the store's folder")]
    Name(String),
    #[error(
        "account {account} was changed by another tool, and nothing is overwritten ({}): see `bulkhead nsc check`; `bulkhead nsc import --accept {account}` takes that change, `bulkhead nsc restore {account}` takes it back", shown(.differences)
    )]
    ForeignEdit { account: String, differences: Vec<String> },
    #[error(
        "account {0} was made by another tool and is not rendered by us: `bulkhead nsc import --adopt {0}` hands it over"
    )]
    Unmanaged(String),
    #[error(
        "book {path} of the operator store is not readable: restore it, or remove it to have it derived from the account's token"
    )]
    Book { path: String, source: serde_json::Error },
    #[error("operator store {path} is in use by {holder}: wait until it has finished")]
    InUse { path: String, holder: String },
    #[error("lock {path} of the operator store cannot be taken")]
    Lock { path: String, source: std::io::Error },
    #[error("{folder} holds the stores of several operators ({}): only one can be ours", .names.join(", "))]
    Several { folder: String, names: Vec<String> },
    #[error("role {role} of {account} is being rotated already: finish that first (its old key is {previous})")]
    Rotating { account: String, role: String, previous: String },
    #[error("role {1} of {0} is not being rotated: there is no old key to remove")]
    NotRotating(String, String),
    #[error("{0:?} is not the public key of a user, and not \"*\" for all of them")]
    NoUser(String),
    #[error("{0} is not a signing key of the operator: `bulkhead operator show` lists them")]
    NotSigning(String),
    #[error("{0:?} is not the public key of an operator")]
    NoOperatorKey(String),
    #[error("{key} still signs {} of {count} accounts ({}): `bulkhead operator rotate-key resign` signs them with the key in use", .accounts.len(), some(.accounts))]
    StillSigns { key: String, accounts: Vec<String>, count: usize },
    #[error("{0} is the key that signs: `bulkhead operator rotate-key use` chooses another one first")]
    InUseKey(String),
    #[error("{0} is the last signing key but one: add another first, so that a standby is always there")]
    NoStandby(String),
    #[error("the operator has no key that may sign accounts: `bulkhead operator rotate-key add` adds one")]
    NoSigner,
    #[error("the system account cannot be removed: servers are told its key by the operator's token")]
    System,
    #[error("account folder {path} cannot be moved aside")]
    Move { path: String, source: std::io::Error },
}

fn shown(differences: &[String]) -> String {
    match differences {
        [] => "the same content, signed anew".to_owned(),
        differences => some(differences),
    }
}

/// The first few of a list that may be long.
pub(crate) fn some(items: &[String]) -> String {
    const SHOWN: usize = 8;
    let first = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if items.len() > SHOWN { format!("{first}; and {} more", items.len() - SHOWN) } else { first }
}

pub(super) fn not_signed(error: SignError) -> OperatorError {
    OperatorError::Key(KeyError::Sign(error))
}
