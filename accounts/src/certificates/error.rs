//! Why certificates were not made, read, revoked or replaced.

use time::OffsetDateTime;

use super::book::IssuedRecord;
use crate::files::FileError;
use bulkhead_identity::AuthorityName;
use bulkhead_identity::IdentityError;

/// Why a certificate was not made, or an authority not changed.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("certificate files")]
    File(#[source] FileError),
    #[error("{path} is damaged: restore it from a backup, or start anew with `bulkhead up --fresh`")]
    Damaged { path: String, source: rcgen::Error },
    #[error("{path} is gone: restore it from a backup, or start anew with `bulkhead up --fresh`")]
    Missing { path: String },
    #[error("make certificate for {subject}")]
    Make { subject: String, source: rcgen::Error },
    #[error("{path} is damaged ({why}): restore it from a backup")]
    Unreadable { path: String, why: String },
    #[error("no certificate in {cert_file} belongs to the key {key_file}: restore both from one backup")]
    Mismatch { cert_file: String, key_file: String },
    #[error("{action} {path}")]
    Store { action: &'static str, path: String, source: std::io::Error },
    #[error("authority {name} ended on {}: rotate it with `bulkhead ca rotate {name}`", until.date())]
    Ended { name: AuthorityName, until: OffsetDateTime },
    #[error("certificate for {subject}")]
    Identity { subject: String, source: IdentityError },
    #[error("there is no authority {name}: `bulkhead ca list` shows those that there are")]
    NoAuthority { name: AuthorityName },
    #[error("{path} was not issued by {name} as it is now: issue a new certificate instead of renewing")]
    NotOurs { path: String, name: AuthorityName },
    #[error("{path} (serial {serial}) is revoked: issue a new certificate instead of renewing")]
    Revoked { path: String, serial: String },
    #[error("no certificate with {what} was ever issued: `bulkhead ca show <authority>` lists them")]
    NeverIssued { what: String },
    #[error("{name} is not being rotated: begin with `bulkhead ca rotate {name}`")]
    NotRotating { name: AuthorityName },
    #[error("the rotation of {name} is at the step {step}: go on with `bulkhead ca rotate {name} --{step}`")]
    OtherStep { name: AuthorityName, step: &'static str },
    #[error(
        "{} certificates would be refused everywhere, such as {}: issue them anew or revoke them, or use --force",
        by.len(), by.first().map_or("", |record| record.identity.as_str())
    )]
    Blocked { by: Vec<IssuedRecord> },
}
