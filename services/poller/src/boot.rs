//! The boot number: greater at every start, whatever the clock does, so that a sequence is never used twice.
//!
//! Kept in the state folder, which one process holds at a time; the lock goes with the process, however it ends.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::keep::is_full;

const BOOT_FILE: &str = "boot";
const LOCK_FILE: &str = "lock";

/// Why there is no boot number.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("{what} {path}")]
    Io { what: &'static str, path: String, source: std::io::Error },
    #[error("state folder {0} is in use by another poller: give each its own state_dir")]
    InUse(String),
    #[error("{path} holds {value:?}, which is not a boot number: restore it, or delete it and enrol a new batch key")]
    Corrupt { path: String, value: String },
}

/// A start of this poller. Holds the state folder until it is dropped.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) number: u64,
    _lock: File,
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BootError {
    let path = path.display().to_string();
    move |source| BootError::Io { what, path, source }
}

fn lock_folder(folder: &Path) -> Result<File, BootError> {
    std::fs::create_dir_all(folder).map_err(io_error("make state folder", folder))?;
    let path = folder.join(LOCK_FILE);
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.map_err(io_error("open lock file", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BootError::InUse(folder.display().to_string())),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
    }
}

fn read_last(path: &Path) -> Result<Option<u64>, BootError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read boot number", path)(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    // Starting over from the clock could repeat sequences, so an unreadable number stops the start.
    text.trim()
        .parse()
        .map(Some)
        .map_err(|_| BootError::Corrupt { path: path.display().to_string(), value: text.chars().take(40).collect() })
}

/// Writes over what is there, which takes no more room as long as it is as long.
fn write_over(path: &Path, number: u64) -> std::io::Result<()> {
    let line = format!("{number}\n");
    if std::fs::metadata(path)?.len() != line.len() as u64 {
        return Err(std::io::ErrorKind::StorageFull.into());
    }
    let mut file = File::options().write(true).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

fn write_number(folder: &Path, number: u64) -> Result<(), BootError> {
    let path: PathBuf = folder.join("boot.new");
    let write = || {
        let mut file = File::create(&path)?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        std::fs::rename(&path, folder.join(BOOT_FILE))?;
        // The rename itself must survive a power cut.
        File::open(folder)?.sync_all()
    };
    write()
        .or_else(|error| match is_full(&error) {
            true => {
                warn!("no room in {}: going on, and what is assigned meanwhile is not kept", folder.display());
                write_over(&folder.join(BOOT_FILE), number).map_err(|_| error)
            }
            false => Err(error),
        })
        .map_err(io_error("write boot number", &path))
}

/// The number after `last`, close to the clock where that is possible.
fn next_number(last: Option<u64>, now_ms: i64) -> u64 {
    let now = u64::try_from(now_ms).unwrap_or(0);
    last.map_or(now, |last| now.max(last.saturating_add(1)))
}

impl Boot {
    /// # Errors
    /// When the folder cannot be used, another process holds it, or the number in it is not readable.
    pub(crate) fn begin(folder: &Path, now_ms: i64) -> Result<Self, BootError> {
        let lock = lock_folder(folder)?;
        let number = next_number(read_last(&folder.join(BOOT_FILE))?, now_ms);
        write_number(folder, number)?;
        Ok(Self { number, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_grows_even_when_the_clock_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        for (now_ms, expected) in [(1_000, 1_000), (5_000, 5_000), (3_000, 5_001), (-7, 5_002), (6_000, 6_000)] {
            assert_eq!(Boot::begin(&state, now_ms).unwrap().number, expected);
        }
    }

    #[test]
    fn without_room_the_number_takes_the_place_of_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(BOOT_FILE);
        assert!(write_over(&path, 1_800_000_000_000).is_err(), "there is no last");
        write_number(folder.path(), 1_800_000_000_000).unwrap();
        write_over(&path, 1_800_000_000_001).unwrap();
        assert_eq!(read_last(&path).unwrap(), Some(1_800_000_000_001));
        assert!(write_over(&path, 99).is_err(), "another length is not written over it");
        assert_eq!(read_last(&path).unwrap(), Some(1_800_000_000_001));
    }

    #[test]
    fn one_process_holds_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Boot::begin(folder.path(), 1).unwrap();
        assert!(matches!(Boot::begin(folder.path(), 1), Err(BootError::InUse(_))));
        drop(first);
        assert_eq!(Boot::begin(folder.path(), 1).unwrap().number, 2);
    }

    #[test]
    fn an_unreadable_number_stops_the_start_and_is_named() {
        for bad in ["", "x", "-1", "99999999999999999999999", "1 2"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(BOOT_FILE), bad).unwrap();
            let error = Boot::begin(folder.path(), 1).unwrap_err().to_string();
            assert!(error.contains("not a boot number") && error.contains("boot"), "{error}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(Boot::begin(file.path(), 1), Err(BootError::Io { .. })));
    }
}
