//! Backups of a platform: its keys, accounts, certificates, secrets and settings, its database and the hub's streams, as one
//! set that fits together (docs/adr/0011-backup-order.md). The same file holds the rows of one tenant (`tenancy::rows`).
//!
//! A backup is sealed before it touches the disk, verified to its last byte before anything of it is used, and never
//! connects to what it was taken from.

mod archive;
mod database;
mod home_files;
mod manifest;
mod rehearse;
mod restore;
mod sealing;
mod take;

pub use archive::{ArchiveError, ArchiveReader, ArchiveWriter, Part};
pub use database::DatabaseError;
pub use home_files::HomeFilesError;
pub use manifest::{AccountState, Contents, FORMAT, Manifest, PartState, StreamState, TENANT_FORMAT, TenantManifest};
pub use rehearse::{Check, Report, rehearse};
pub use restore::{RestoreError, RestoreOptions, restore};
pub use sealing::{Opening, Seal, SealError};
pub use take::{AccessError, BackupError, BackupOptions, take_backup};

/// Opens a backup, reads it to its end and says what is in it. Nothing is written.
///
/// # Errors
/// When it is not a whole backup, or not for this key.
pub fn read_manifest<M: Contents>(file: &std::path::Path, opening: &Opening) -> Result<M, ArchiveError> {
    ArchiveReader::open(file, opening)?.read(&mut |_, _| Ok(()))
}
