//! NATS JWT v2 claims: operator, account, user. Written and read field by field, unknown fields kept.
//!
//! Source: facts, accounts-and-nsc section 2. Zero is omitted and omitted is zero, unlimited is -1, so limits are always
//! written out. `jti` hashes the whole body, because servers compare it when they synchronise.

mod account;
mod key;
mod signer;
mod token;
mod user;

pub use account::{
    AccountBody, AccountLimits, Export, ExportKind, Import, PermissionSet, PermissionTemplate, ResponseType, Scope,
    ScopedKey,
};
pub use key::{KeyKind, SeedError, SigningKey};
pub use signer::{SignError, Signer};
pub use token::{Claims, DecodeError, OperatorBody, decode, encode};
pub use user::{UserBody, credentials_text};
