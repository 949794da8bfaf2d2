//! One at a time changes what a home provisions: `<home>/provisioning.lock` is held while something is changed.

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
        let path = home.join("provisioning.lock");
        let failed = |source| LockError::Io { path: path.display().to_string(), source };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let mut file = match file.try_lock() {
            Ok(()) => file,
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) => wait_for(file, limit).map_err(|error| match error {
                Some(source) => failed(source),
                None => {
                    let pid = std::fs::read_to_string(&path).unwrap_or_default();
                    LockError::Held { pid: pid.trim().to_owned(), waited: limit }
                }
            })?,
        };
        // Only for whoever waits: who it is that holds it.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
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
        // Whoever came too late may have it for a moment, before it finds nobody listening.
        ProvisioningLock::take(home.path(), Duration::from_secs(60)).unwrap();
    }
}
