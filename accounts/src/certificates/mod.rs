//! The three unrelated roots, the intermediates of tenants, and the certificates of section 5 of the design.
//!
//! *client* (tenant and platform intermediates, clientAuth only), *server* (what clients and leaves trust), *route*
//! (hub to hub). A leaf's own listener is none of them: it is self-signed and only its site's pollers trust it (ADR 3).
//! A file of an authority holds every certificate that is trusted now; the key beside it says which of them signs.

mod authority;
mod book;
mod error;
mod facts;
mod forget;
mod issue;
mod make;
mod renew;
mod revocation;
mod rotation;
mod rotation_plan;
mod steps;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use self::authority::{Authority, AuthorityState, TrustedCertificate};
pub use self::book::{IssuedCertificate, IssuedRecord};
pub use self::error::CertificateError;
pub use self::facts::{CertificateFacts, InspectError, inspect, inspect_all};
pub(crate) use self::make::key_hash;
pub use self::renew::needs_renewal;
pub use self::revocation::{Reason, Revocable, RevokedRecord};
pub use self::rotation::{Objections, Rotation, RotationStep};
pub use self::steps::Change;
pub use bulkhead_identity::{
    AuthorityName, AuthorityNameError, ClientIdentity, IdentityError, TrustDomain, TrustDomainError, read_identity,
};

/// A PEM certificate chain and its key on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl CertificateFiles {
    /// `<folder>/<name>.crt` and `<folder>/<name>.key`.
    #[must_use]
    pub fn named(folder: &Path, name: &str) -> Self {
        Self { cert_file: folder.join(format!("{name}.crt")), key_file: folder.join(format!("{name}.key")) }
    }
}
