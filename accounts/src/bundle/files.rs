//! The files of a bundle in memory, and how they become a folder or an archive: whole, private and with checksums.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::files::{FileError, make_folder, write_public, write_secret};

const SUMS: &str = "SHA256SUMS";
/// Where the programs of a site store what they have.
const STATE: &str = "state";
/// By which an earlier bundle is known.
const MANIFEST: &str = "MANIFEST.json";

/// Why a bundle was not collected or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleFilesError {
    #[error("{action} {path}")]
    Io { action: &'static str, path: String, source: std::io::Error },
    #[error("{0} is not a bundle: only a bundle or an empty folder is replaced, so name another folder")]
    NotABundle(String),
    #[error("write a file of the bundle")]
    File(#[source] FileError),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BundleFilesError {
    let path = path.display().to_string();
    move |source| BundleFilesError::Io { action, path, source }
}

/// One file; its path is relative to the bundle.
pub struct BundleFile {
    pub path: PathBuf,
    pub bytes: Zeroizing<Vec<u8>>,
    pub is_secret: bool,
}

/// The files of a bundle, sorted by path.
pub struct BundleFiles {
    name: String,
    made: OffsetDateTime,
    files: Vec<BundleFile>,
}

fn read_below(root: &Path, folder: &Path, files: &mut Vec<BundleFile>) -> Result<(), BundleFilesError> {
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        let data = std::fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        if data.is_dir() {
            read_below(root, &path, files)?;
        } else {
            let bytes = Zeroizing::new(std::fs::read(&path).map_err(failed("read", &path))?);
            let is_secret = data.permissions().mode() & 0o077 == 0;
            files.push(BundleFile { path: path.strip_prefix(root).unwrap_or(&path).to_owned(), bytes, is_secret });
        }
    }
    Ok(())
}

impl BundleFiles {
    /// Reads every file below `root` and adds their checksums.
    pub(super) fn collect(root: &Path, name: &str, made: OffsetDateTime) -> Result<Self, BundleFilesError> {
        let mut files = Vec::new();
        read_below(root, root, &mut files)?;
        files.sort_by(|one, other| one.path.cmp(&other.path));
        let mut sums = String::new();
        for file in &files {
            let digest = HEXLOWER.encode(&Sha256::digest(file.bytes.as_slice()));
            let _ = writeln!(sums, "{digest}  {}", file.path.display());
        }
        let sums = Zeroizing::new(sums.into_bytes());
        files.push(BundleFile { path: SUMS.into(), bytes: sums, is_secret: false });
        Ok(Self { name: name.to_owned(), made, files })
    }

    /// What the bundle is called: its folder in the archive.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn files(&self) -> &[BundleFile] {
        &self.files
    }

    /// Writes the bundle as `folder`: all of it or nothing. An earlier bundle there is replaced whole.
    ///
    /// # Errors
    /// When something else is there, or it cannot be written; then what was there still is.
    pub fn write_folder(&self, folder: &Path) -> Result<(), BundleFilesError> {
        let folder = std::path::absolute(folder).map_err(failed("find", folder))?;
        check_replaceable(&folder)?;
        let parent = folder.parent().unwrap_or(Path::new("/"));
        make_folder(parent).map_err(BundleFilesError::File)?;
        let private = std::fs::Permissions::from_mode(0o700);
        let staged = tempfile::Builder::new().prefix(".bundle-").permissions(private).tempdir_in(parent);
        let staged = staged.map_err(failed("make a folder in", parent))?;
        for file in &self.files {
            let path = staged.path().join(&file.path);
            let write = if file.is_secret { write_secret } else { write_public };
            write(&path, &file.bytes).map_err(BundleFilesError::File)?;
        }
        put_folder(staged, &folder)
    }

    /// Writes the bundle as a `.tar.gz` for its owner only; returns its SHA-256, which the site's administrator compares.
    /// The same bundle makes the same bytes.
    ///
    /// # Errors
    /// When it cannot be written; then what was there still is.
    pub fn write_archive(&self, path: &Path) -> Result<String, BundleFilesError> {
        let path = std::path::absolute(path).map_err(failed("find", path))?;
        let bytes = Zeroizing::new(self.archive().map_err(failed("pack", &path))?);
        write_secret(&path, &bytes).map_err(BundleFilesError::File)?;
        Ok(HEXLOWER.encode(&Sha256::digest(bytes.as_slice())))
    }

    fn archive(&self) -> std::io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
        let root = Path::new(&self.name);
        let below = self.files.iter().flat_map(|file| file.path.ancestors().skip(1));
        let folders: std::collections::BTreeSet<&Path> = below.collect();
        for folder in folders {
            let mut header = self.header(tar::EntryType::Directory, 0o700, 0);
            archive.append_data(&mut header, root.join(folder), std::io::empty())?;
        }
        for file in &self.files {
            let mode = if file.is_secret { 0o600 } else { 0o644 };
            let mut header = self.header(tar::EntryType::Regular, mode, file.bytes.len() as u64);
            archive.append_data(&mut header, root.join(&file.path), file.bytes.as_slice())?;
        }
        let mut packed = archive.into_inner()?;
        packed.flush()?;
        packed.finish()
    }

    fn header(&self, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(u64::try_from(self.made.unix_timestamp()).unwrap_or(0));
        header
    }
}

/// Whether a bundle may be written as `folder`.
///
/// # Errors
/// When something else is there, or it cannot be listed.
pub(super) fn check_replaceable(folder: &Path) -> Result<(), BundleFilesError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("list", folder))?,
    };
    if entries.count() == 0 || folder.join(MANIFEST).is_file() {
        return Ok(());
    }
    Err(BundleFilesError::NotABundle(folder.display().to_string()))
}

/// Puts `staged` in the place of `folder`; what was there goes with the temporary name.
fn put_folder(staged: tempfile::TempDir, folder: &Path) -> Result<(), BundleFilesError> {
    if folder.exists() {
        // What the programs have stored there is results that nobody else has yet, and the count of a poller's starts.
        let (old_state, new_state) = (folder.join(STATE), staged.path().join(STATE));
        let has_state = std::fs::symlink_metadata(&old_state).is_ok();
        if has_state {
            std::fs::rename(&old_state, &new_state).map_err(failed("carry over", &old_state))?;
        }
        let swapped = renameat_with(CWD, staged.path(), CWD, folder, RenameFlags::EXCHANGE);
        if let Err(error) = swapped {
            if has_state {
                std::fs::rename(&new_state, &old_state).map_err(failed("put back", &old_state))?;
            }
            return Err(failed("replace", folder)(error.into()));
        }
        return staged.close().map_err(failed("remove what was replaced by", folder));
    }
    std::fs::rename(staged.path(), folder).map_err(failed("put in place", folder))?;
    // Nothing is left under the temporary name.
    drop(staged.keep());
    let parent = folder.parent().unwrap_or(Path::new("/"));
    std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("write", parent))
}
