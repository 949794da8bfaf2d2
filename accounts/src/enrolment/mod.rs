//! Enrolment: a device makes its own keys and comes for certificates with a token that is good once (ADR 13).
//!
//! Reading order: what a token is, what became of each, what a device asks for, why it gets nothing, and the desk, the
//! process that answers devices. What changes in a tenant is in `tenancy::enrol`.

mod barred;
mod book;
mod desk;
mod refusal;
mod request;
mod token;

pub use book::{TokenBook, TokenRecord, TokenState};
pub use desk::{Desk, DeskError};
pub use refusal::{Refusal, Refused};
pub use request::{BadRequest, CheckedKeys, check_keys, check_renewal};
pub use token::{BadToken, TokenSigner};

use crate::files::FileError;

/// Why tokens cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error("files of enrolment")]
    File(#[source] FileError),
    #[error("{path} holds no key that signs tokens: restore it from a backup, or delete it; open tokens are void then")]
    Key { path: String, source: rcgen::Error },
    #[error("sign a token")]
    Sign(#[source] jsonwebtoken::errors::Error),
    #[error("{path} is damaged: restore it from a backup, or delete it; its token is refused then")]
    Damaged { path: String, source: serde_json::Error },
    #[error("list tokens")]
    List(#[source] std::io::Error),
}
