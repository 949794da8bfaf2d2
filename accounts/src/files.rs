//! Files that are there whole or not at all: temporary file, fsync, rename. Secrets are 0600 in folders of 0700.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a file cannot be read or written; names the file.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}{way_out}")]
pub struct FileError {
    action: &'static str,
    path: String,
    way_out: &'static str,
    source: std::io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> FileError {
    let path = path.display().to_string();
    move |source| FileError { action, path: path.clone(), way_out: "", source }
}

/// How the name of a file ends that is not in its place yet, after that of its writer's process.
const TEMPORARY: &str = ".new";
const RESTORE: &str = ": restore it from a backup, or start anew with `bulkhead up --fresh`";

/// Makes a folder and its parents, for its owner only.
///
/// # Errors
/// When it cannot be made.
pub fn make_folder(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make folder", path))
}

/// # Errors
/// When it cannot be read.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(failed("read", path))
}

/// Reads a file that a deployment has made and cannot make again.
///
/// # Errors
/// When it cannot be read; the message says what to do.
pub fn read_state(path: &Path) -> Result<String, FileError> {
    read_text(path).map_err(|error| FileError { way_out: RESTORE, ..error })
}

/// Reads a secret of a deployment.
///
/// # Errors
/// When it cannot be read, or others can read it too.
pub fn read_secret(path: &Path) -> Result<String, FileError> {
    let text = read_state(path)?;
    let mode = std::fs::metadata(path).map_err(failed("read", path))?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(text);
    }
    let source = std::io::Error::other(format!("others can read it (mode {mode:03o})"));
    Err(FileError { way_out: ": run chmod 600 on it", ..failed("use secret", path)(source) })
}

/// # Errors
/// When it cannot be written whole; then the old file is still there.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, 0o600)
}

/// # Errors
/// When it cannot be written whole; then the old file is still there.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, 0o644)
}

/// Of a bare name, the folder that we are in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let folder = folder_of(path);
    Staged::write(folder, path, bytes, mode)?.put()
}

/// Removes a file or folder, and what writers of it have left that were killed; that there is nothing is no error.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_whole(path: &Path) -> Result<(), FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begins = format!(".{name}.");
    let siblings = std::fs::read_dir(folder_of(path)).into_iter().flatten().flatten();
    let is_leftover = |entry: &std::fs::DirEntry| {
        let found = entry.file_name();
        let middle = found.to_str().and_then(|found| found.strip_prefix(&begins)?.strip_suffix(TEMPORARY));
        middle.is_some_and(|pid| pid.parse::<u32>().is_ok())
    };
    let leftovers = siblings.filter(is_leftover).map(|entry| entry.path());
    for path in leftovers.chain([path.to_owned()]) {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// A file that is written and synced, and not in its place yet. Taking its place needs no more room on the disk.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Writes a secret in `folder`, which is on the file system of `path`.
    ///
    /// # Errors
    /// When it cannot be written whole; then nothing of it is left.
    pub fn secret(folder: &Path, path: &Path, bytes: &[u8]) -> Result<Self, FileError> {
        Self::write(folder, path, bytes, 0o600)
    }

    fn write(folder: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<Self, FileError> {
        make_folder(folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}{TEMPORARY}", std::process::id()));
        let staged = Self { temporary, path: path.to_owned() };
        let write = || -> std::io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staged.temporary)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(failed("write", path))?;
        Ok(staged)
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When it cannot be put there; then the old file is still there.
    pub fn put(self) -> Result<(), FileError> {
        let folder = folder_of(&self.path);
        make_folder(folder)?;
        let put = || -> std::io::Result<()> {
            std::fs::rename(&self.temporary, &self.path)?;
            File::open(folder)?.sync_all()
        };
        put().map_err(failed("write", &self.path))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // In its place already, or not wanted any more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_takes_what_killed_writers_have_left_of_it_along() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acme.json");
        let stays = [".acme.json.1x.new", ".acme.json.new", ".acme-corp.json.7.new", "acme.json.old"];
        for name in stays.iter().chain(&[".acme.json.71.new"]) {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        write_secret(&path, b"x").unwrap();
        for _ in 0..2 {
            remove_whole(&path).unwrap();
        }
        let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<String> = left.map(|name| name.into_string().unwrap()).collect();
        left.sort();
        let mut expected = stays.map(str::to_owned);
        expected.sort();
        assert_eq!(left, expected);
    }
}
