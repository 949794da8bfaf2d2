//! One changer of the store at a time, on this machine. Readers need no lock: every file is replaced whole.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::error::OperatorError;
use crate::files::make_folder;

/// A change takes milliseconds, an external signer seconds, re-signing ten thousand accounts a minute.
const WAIT_LIMIT: Duration = Duration::from_secs(30);

/// Held while the store is changed; dropping it gives it back.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: File,
}

impl StoreLock {
    pub(super) fn take(folder: &Path) -> Result<Self, OperatorError> {
        Self::take_within(folder, WAIT_LIMIT)
    }

    fn take_within(folder: &Path, limit: Duration) -> Result<Self, OperatorError> {
        make_folder(folder).map_err(OperatorError::File)?;
        let path = folder.join("lock");
        let failed = |source| OperatorError::Lock { path: path.display().to_string(), source };
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open().map_err(failed)?;
        if file.try_lock().is_ok() {
            return Ok(Self::held(file));
        }
        let (sender, locked) = mpsc::channel();
        // The kernel wakes the waiter; one that comes too late finds nobody listening and gives the lock back.
        std::thread::spawn(move || sender.send(file.lock().map(|()| file)));
        match locked.recv_timeout(limit) {
            Ok(file) => Ok(Self::held(file.map_err(failed)?)),
            Err(_) => Err(OperatorError::InUse { path: folder.display().to_string(), holder: holder(&path) }),
        }
    }

    fn held(mut file: File) -> Self {
        let pid = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        };
        // It only serves the message of whoever waits in vain; on a full disk there is none.
        let _ = pid(&mut file);
        Self { file }
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // A number that stays would name a process that has long ended.
        let _ = self.file.set_len(0);
    }
}

fn holder(path: &Path) -> String {
    match std::fs::read_to_string(path) {
        Ok(pid) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        Ok(_) | Err(_) => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_changer_waits_and_then_names_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = StoreLock::take(folder.path()).unwrap();
        let error = StoreLock::take_within(folder.path(), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        drop(StoreLock::take(folder.path()).unwrap());
        assert_eq!(std::fs::read_to_string(folder.path().join("lock")).unwrap(), "");
    }
}
