//! Files of the state folder: whole or as before, private where they are secret.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// Why a file of the state folder cannot be used. Never shows what is in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error("read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("write {path}")]
    Write { path: String, source: std::io::Error },
    #[error("{path} has mode {mode:04o}, so others can read it: run chmod 600 {path}")]
    Open { path: String, mode: u32 },
    #[error("{path} holds no sealing key: restore it, or delete it and have secrets sealed anew")]
    NoKey { path: String },
}

impl KeepError {
    /// Whether there is no room for it.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if is_full(source))
    }
}

/// Whether a file system has no room.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Puts a file that only its owner can read in the place of what is there, whole, also when the power goes.
///
/// # Errors
/// When it cannot be written; what was there is there still.
pub(crate) fn put_private(path: &Path, bytes: &[u8]) -> Result<(), KeepError> {
    let write = || {
        let new = path.with_extension("new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        // The rename itself must survive a power cut.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|source| KeepError::Write { path: path.display().to_string(), source })
}

/// What is in a file that only its owner can read; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or can be by others.
pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, KeepError> {
    let shown = || path.display().to_string();
    let failed = |source| KeepError::Read { path: shown(), source };
    let found = match std::fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeepError::Open { path: shown(), mode });
    }
    std::fs::read_to_string(path).map(|text| Some(Zeroizing::new(text))).map_err(failed)
}
