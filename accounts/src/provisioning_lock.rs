//! One at a time changes what a home provisions: `<home>/provisioning.lock` is held while something is changed, and
//! `<home>/intake/lock` while what INTAKE accounts import is.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::files::{FileError, make_folder};

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("state folder")]
    File(#[source] FileError),
    #[error("lock {path}")]
    Io { path: String, source: std::io::Error },
    #[error(
        "process {pid} is changing this platform since before {waited:?} ago: wait for it, or end it; nothing was changed"
    )]
    Held { pid: String, waited: Duration },
}

/// The right to change. Dropping it gives it back, and so does the end of the process.
#[derive(Debug)]
pub struct ProvisioningLock {
    _file: File,
}

impl ProvisioningLock {
    /// Waits for the lock for at most `limit`.
    ///
    /// # Errors
    /// When somebody else keeps it; the error names the process.
    pub fn take(home: &Path, limit: Duration) -> Result<Self, LockError> {
        make_folder(home).map_err(LockError::File)?;
        Self::take_at(&home.join("provisioning.lock"), limit)
    }

    /// As [`ProvisioningLock::take`], of the file at `path`.
    ///
    /// # Errors
    /// When somebody else keeps it; the error names the process.
    pub(crate) fn take_at(path: &Path, limit: Duration) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.display().to_string(), source };
        let file = open(path).map_err(failed)?;
        let file = match file.try_lock() {
            Ok(()) => file,
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) => wait_for(file, limit).map_err(|error| match error {
                Some(source) => failed(source),
                None => {
                    let pid = std::fs::read_to_string(path).unwrap_or_default();
                    LockError::Held { pid: pid.trim().to_owned(), waited: limit }
                }
            })?,
        };
        Self::signed(file).map_err(failed)
    }

    /// Without waiting: `None` while somebody else has it.
    ///
    /// # Errors
    /// When the file cannot be made or written.
    pub(crate) fn try_at(path: &Path) -> Result<Option<Self>, LockError> {
        let failed = |source| LockError::Io { path: path.display().to_string(), source };
        let file = open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Self::signed(file).map(Some).map_err(failed),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Only for whoever waits: who it is that holds it.
    fn signed(mut file: File) -> std::io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// The kernel wakes the waiter; one that comes too late finds nobody listening and gives the lock back. `None`: too late.
fn wait_for(file: File, limit: Duration) -> Result<File, Option<std::io::Error>> {
    let (sender, locked) = mpsc::channel();
    std::thread::spawn(move || sender.send(file.lock().map(|()| file)));
    locked.recv_timeout(limit).map_err(|_| None)?.map_err(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_and_the_other_is_told_who() {
        let home = tempfile::tempdir().unwrap();
        let held = ProvisioningLock::take(home.path(), Duration::ZERO).unwrap();
        let error = ProvisioningLock::take(home.path(), Duration::from_millis(60)).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(held);
        assert!(ProvisioningLock::try_at(&home.path().join("other")).unwrap().is_some());
        // Whoever came too late may have it for a moment, before it finds nobody listening.
        ProvisioningLock::take(home.path(), Duration::from_secs(60)).unwrap();
    }
}
