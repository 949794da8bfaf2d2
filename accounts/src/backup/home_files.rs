//! Which files of a home belong into a backup, and how they come back: everything that cannot be made again, and nothing
//! that only one run of the platform knows.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use super::archive::{ArchiveError, ArchiveWriter};
use super::manifest::Manifest;
use crate::files::make_folder;

pub(super) const PREFIX: &str = "home/";
/// A file of a home larger than this is none that we have made.
const FILE_BYTES_MOST: u64 = 64 << 20;

/// Why the files of a home cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum HomeFilesError {
    #[error("read {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} has {bytes} bytes: no file of a platform is that large; move it away")]
    Large { path: String, bytes: u64 },
    #[error("name {0:?} is not readable text: rename it")]
    Name(PathBuf),
    #[error("add to the backup")]
    Archive(#[source] ArchiveError),
}

/// What a home has at its top that is not saved: what belongs to one run, the database's files, which are dumped,
/// programs, and what is a site's own. A poller's key goes with its count of starts: one without the other would
/// number two batches alike.
const NOT_SAVED: [&str; 8] =
    ["lock", "logs", "postgres", "provisioning.lock", "restore.unfinished", "run", "sites", "tools"];

/// Whether what is at `path` in the home is saved.
fn is_saved(path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        [first, ..] if NOT_SAVED.contains(first) => false,
        // What was withdrawn since would be good again: tokens of before a restore are worthless.
        ["secrets", "enrolment.key"] => false,
        // The hub's streams are saved by themselves; its accounts come from the operator store, never from a server.
        [first, second, ..] if first.starts_with("hub") && matches!(*second, "js" | "jwt") => false,
        [.., last] => !(last.starts_with('.') && last.ends_with(".new")),
        [] => true,
    }
}

/// Adds every file of `home` that is saved.
///
/// # Errors
/// When one cannot be read, or the disk does not take it.
pub(super) fn add_home(home: &Path, archive: &mut ArchiveWriter<Manifest>) -> Result<(), HomeFilesError> {
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let full = home.join(&folder);
        let failed = |source| HomeFilesError::Read { path: full.display().to_string(), source };
        let mut entries = fs::read_dir(&full).map_err(failed)?.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = folder.join(entry.file_name());
            let kind = entry.file_type().map_err(failed)?;
            if !is_saved(&path) {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                add_file(home, &path, archive)?;
            }
        }
    }
    Ok(())
}

fn add_file(home: &Path, path: &Path, archive: &mut ArchiveWriter<Manifest>) -> Result<(), HomeFilesError> {
    let full = home.join(path);
    let failed = |source| HomeFilesError::Read { path: full.display().to_string(), source };
    let about = fs::metadata(&full).map_err(failed)?;
    if about.len() > FILE_BYTES_MOST {
        return Err(HomeFilesError::Large { path: full.display().to_string(), bytes: about.len() });
    }
    let name = path.to_str().ok_or_else(|| HomeFilesError::Name(path.to_owned()))?;
    let bytes = zeroize::Zeroizing::new(fs::read(&full).map_err(failed)?);
    let mode = about.permissions().mode() & 0o777;
    archive.add(&format!("{PREFIX}{name}"), mode, &bytes).map_err(HomeFilesError::Archive)
}

/// Where a part of a backup goes below `folder`. Whoever knows a public key can seal a backup for it, so a name may be
/// hostile.
fn place(folder: &Path, name: &str) -> io::Result<PathBuf> {
    let path = Path::new(name);
    let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || name.contains('\0') || !is_inside {
        return Err(io::Error::other(format!("name {name:?} leads out of the folder")));
    }
    Ok(folder.join(path))
}

/// A file that is being written back.
pub(super) fn create_file(folder: &Path, name: &str, mode: u32) -> io::Result<File> {
    let path = place(folder, name)?;
    make_folder(path.parent().unwrap_or(folder)).map_err(io::Error::other)?;
    // Never through a link, and never over something that is there. Others may read at most.
    OpenOptions::new().write(true).create_new(true).mode(mode & 0o755).open(path)
}

pub(super) fn finish_file(mut file: File) -> io::Result<()> {
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_again_is_saved_and_what_belongs_to_one_run_is_not() {
        let saved = [
            "ports.json",
            "hub.json",
            "platform.toml",
            "tenants/acme-corp.json",
            "journal/1.json",
            "nsc/keys/keys/A/AB/x.nk",
            "nsc/books/acme-corp.json",
            "pki/server/root.key",
            "secrets/postgres-core.password",
            "hub/hub.conf",
        ];
        let left = [
            "lock",
            "provisioning.lock",
            "run/hub.pid",
            "logs/hub.log",
            "postgres/data/PG_VERSION",
            "tools/nats-server",
            "hub/js/x",
            "hub-2/jwt/A.jwt",
            "sites/acme-corp/oslo/pollers/p1/batch.nk",
            "secrets/.postgres-core.url.12.new",
        ];
        for path in saved {
            assert!(is_saved(Path::new(path)), "{path}");
        }
        for path in left {
            assert!(!is_saved(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_name_that_leads_out_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for bad in ["", "../x", "/etc/x", "a/../../x", "a\0b", "./x"] {
            assert!(place(folder.path(), bad).is_err(), "{bad:?}");
        }
        assert!(place(folder.path(), "a/b").is_ok());
        create_file(folder.path(), "a/b", 0o600).unwrap();
        assert!(create_file(folder.path(), "a/b", 0o600).is_err(), "something that is there was replaced");
        std::os::unix::fs::symlink("/tmp", folder.path().join("link")).unwrap();
        assert!(create_file(folder.path(), "link", 0o600).is_err(), "a link was followed");
    }
}
