//! The folder of a deployment: one deployment at a time, and a fresh start removes only what a deployment has made.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::deployment::DeploymentError;
use super::layout::Layout;
use super::postgres::{database_folder, open_to_stand_in};
use crate::files::make_folder;

/// Takes the folder for this process; dropping the file gives it back.
pub(super) fn lock(layout: &Layout) -> Result<File, DeploymentError> {
    let is_new = !layout.home().exists();
    make_folder(layout.home()).map_err(DeploymentError::File)?;
    if is_new {
        open_to_stand_in(layout.home());
    }
    let path = layout.lock_file();
    let failed = |source| DeploymentError::Lock { path: path.display().to_string(), source };
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(failed)?;
            let home = layout.home().display().to_string();
            return Err(DeploymentError::InUse { home, pid: pid.trim().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// Removes what earlier starts have made, but for the lock that we hold and the tools that were fetched.
pub(super) fn empty(layout: &Layout) -> Result<(), DeploymentError> {
    // Only what a deployment makes, by name: the folder may be one that holds other things.
    layout.made().iter().try_for_each(|path| remove(path))?;
    remove(&database_folder(layout.home()))
}

/// Removes a file or a folder that may not be there.
pub(super) fn remove(path: &Path) -> Result<(), DeploymentError> {
    let removed = match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    removed.map_err(|source| DeploymentError::Fresh { path: path.display().to_string(), source })
}
