//! NATS JWT v2 claims, written and read field by field, unknown fields kept, and their validation.
//!
//! Source: facts, accounts-and-nsc section 2. Zero is omitted and omitted is zero, unlimited is -1, so limits are always
//! said. `jti` hashes the whole body, because servers compare it when they synchronise.

mod account;
mod activation;
mod any;
mod authorization;
mod body;
mod credentials;
mod generic;
mod key;
mod omit;
mod once;
mod operator;
mod sealing;
mod signer;
mod subject;
mod tags;
mod token;
mod user;
pub mod validate;

pub use account::{
    AccountBody, AccountLimits, ClusterTraffic, DefaultPermissions, EVERYONE, Export, ExportKind,
    ExternalAuthorization, Import, JetStreamLimits, MessageTrace, PermissionSet, PermissionTemplate,
    ResponsePermission, ResponseType, Revocations, Sampling, Scope, ScopeKind, ScopedKey, ServiceLatency, Targets,
    TimeRange, UNLIMITED, WeightedMapping,
};
pub use activation::ActivationBody;
pub use any::{AnyClaims, decode_any, encode_any};
pub use authorization::{
    AuthorizationRequestBody, AuthorizationResponseBody, ClientInfo, ClientTls, ConnectOptions, ServerId,
};
pub use body::{Body, ClaimKind};
pub use credentials::{Credentials, CredentialsError, credentials_text, parse_credentials};
pub use generic::GenericBody;
pub use key::{KeyKind, SeedError, SigningKey};
pub use operator::OperatorBody;
pub use sealing::{SealingError, SealingKey, seal_secret};
pub use signer::{SignError, Signer};
pub use tags::Tags;
pub use token::{Claims, DecodeError, decode, decode_json, encode, next_iat};
pub use user::UserBody;
