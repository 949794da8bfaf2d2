//! The site's folder on this machine: who may be in it, and writing files so that each is whole or as before.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bulkhead_bus::PollerName;
use bulkhead_identity::Enrolee;
use serde::Deserialize;

pub(super) const MANIFEST: &str = "MANIFEST.json";
/// Which site an enrolment is under way for.
const UNDER_WAY: &str = ".enrolling";
/// How files under way begin.
const TEMPORARY: &str = ".enrolling-";
pub(super) const SECRET: u32 = 0o600;
pub(crate) const PUBLIC: u32 = 0o644;

#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    #[error("{action} {path}")]
    Io { action: &'static str, path: String, source: std::io::Error },
    #[error("{path} is the folder of {found}, and the token is for {wanted}: name another one with --to")]
    OtherSite { path: String, found: String, wanted: String },
    #[error("{0} holds something else: name a new or empty folder with --to")]
    Taken(String),
    #[error("{0} does not say which site it is for: put it back, or name another folder with --to")]
    Unreadable(String),
}

impl FolderError {
    pub(super) fn is_invalid(&self) -> bool {
        match self {
            Self::Io { .. } => false,
            Self::OtherSite { .. } | Self::Taken(_) | Self::Unreadable(_) => true,
        }
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.display().to_string();
    move |source| FolderError::Io { action, path, source }
}

/// Writes a file whole, so that it is there after a power cut.
///
/// # Errors
/// When it cannot be written; then what was there still is.
pub(crate) fn put_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FolderError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let permissions = std::fs::Permissions::from_mode(mode);
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).permissions(permissions).tempfile_in(parent)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(parent)?.sync_all()
    };
    write().map_err(failed("write", path))
}

/// A folder that is this site's.
pub(crate) struct SiteFolder {
    pub(super) path: PathBuf,
    own: PollerName,
}

#[derive(Deserialize)]
struct Manifest {
    tenant: String,
    site: String,
}

/// Makes the folder, or takes up one of the same site.
///
/// # Errors
/// When it is another site's, holds something else, or cannot be used.
pub(super) fn open(to: &Path, enrolee: &Enrolee) -> Result<SiteFolder, FolderError> {
    let path = std::path::absolute(to).map_err(failed("find", to))?;
    let wanted = format!("{}/{}", enrolee.tenant, enrolee.site);
    // Those above it are not this site's alone.
    let above = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(above).map_err(failed("make folder", above))?;
    let folder = SiteFolder { path, own: enrolee.poller.clone() };
    folder.make("")?;
    folder.sweep("")?;
    let found = folder.site()?;
    match found {
        Some(found) if found == wanted => {}
        Some(found) => return Err(FolderError::OtherSite { path: folder.path.display().to_string(), found, wanted }),
        None => {
            let mut entries = std::fs::read_dir(&folder.path).map_err(failed("list", &folder.path))?;
            if entries.next().is_some() {
                return Err(FolderError::Taken(folder.path.display().to_string()));
            }
            folder.put(UNDER_WAY, format!("{wanted}\n").as_bytes(), PUBLIC)?;
        }
    }
    Ok(folder)
}

impl SiteFolder {
    /// The folder that a poller's settings name.
    pub(crate) fn at(path: &Path, own: &PollerName) -> Result<Self, FolderError> {
        let path = std::path::absolute(path).map_err(failed("find", path))?;
        Ok(Self { path, own: own.clone() })
    }

    /// Whose folder it is; `None` when nobody's.
    fn site(&self) -> Result<Option<String>, FolderError> {
        let manifest = self.path.join(MANIFEST);
        if manifest.exists() {
            let text = std::fs::read_to_string(&manifest).map_err(failed("read", &manifest))?;
            let unreadable = || FolderError::Unreadable(manifest.display().to_string());
            let manifest: Manifest = serde_json::from_str(&text).map_err(|_| unreadable())?;
            return Ok(Some(format!("{}/{}", manifest.tenant, manifest.site)));
        }
        let mark = self.path.join(UNDER_WAY);
        match std::fs::read_to_string(&mark) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &mark)(error)),
        }
    }

    /// The pollers that have their keys here already.
    pub(super) fn pollers_beside(&self) -> Vec<PollerName> {
        let entries = std::fs::read_dir(self.path.join("pollers")).into_iter().flatten().flatten();
        let with_key = entries.filter(|entry| entry.path().join("batch.nk").exists());
        let mut names: Vec<PollerName> =
            with_key.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect();
        names.retain(|name| *name != self.own);
        names.sort();
        names
    }

    /// Removes what a power cut has left of files under way.
    fn sweep(&self, relative: &str) -> Result<(), FolderError> {
        let folder = self.path.join(relative);
        for entry in std::fs::read_dir(&folder).map_err(failed("list", &folder))? {
            let path = entry.map_err(failed("list", &folder))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY)) {
                std::fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Puts a file in the place of another one, if it is there.
    pub(super) fn take_over(&self, from: &str, to: &str) -> Result<(), FolderError> {
        let (from, to) = (self.path.join(from), self.path.join(to));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("put in place", &to)(error)),
            _ => Ok(()),
        }
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, relative: &str) -> Result<(), FolderError> {
        let path = self.path.join(relative);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// A folder within it, for its owner only.
    pub(super) fn make(&self, relative: &str) -> Result<(), FolderError> {
        let path = if relative.is_empty() { self.path.clone() } else { self.path.join(relative) };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed("make folder", &path))
    }

    /// Writes a file whole, so that it is there after a power cut.
    pub(crate) fn put(&self, relative: &str, bytes: &[u8], mode: u32) -> Result<(), FolderError> {
        put_whole(&self.path.join(relative), bytes, mode)
    }

    /// The enrolment is done.
    pub(super) fn finish(&self) -> Result<(), FolderError> {
        self.remove(UNDER_WAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enrolee(text: &str) -> Enrolee {
        Enrolee::parse(text).unwrap()
    }

    #[test]
    fn a_folder_is_one_sites_and_nobody_elses() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("a/site");
        let folder = open(&to, &enrolee("acme-corp/oslo/p1")).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&to), mode(&home.path().join("a")) & 0o055), (0o700, 0o055), "others may pass above it");
        assert!(open(&to, &enrolee("acme-corp/oslo/p2")).is_ok(), "cut short, and another poller of the same site");
        let error = open(&to, &enrolee("acme-corp/rome/p1")).map(drop).unwrap_err().to_string();
        assert!(error.contains("acme-corp/oslo") && error.contains("acme-corp/rome"), "{error}");
        folder.put(MANIFEST, br#"{"tenant":"acme-corp","site":"oslo"}"#, PUBLIC).unwrap();
        folder.finish().unwrap();
        folder.finish().unwrap();
        assert!(open(&to, &enrolee("acme-corp/oslo/p1")).is_ok());
        assert!(open(&to, &enrolee("xyz-inc/oslo/p1")).is_err());
        folder.put(MANIFEST, b"{", PUBLIC).unwrap();
        assert!(matches!(open(&to, &enrolee("acme-corp/oslo/p1")), Err(FolderError::Unreadable(_))));
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(".enrolling-x1"), "of a power cut").unwrap();
        assert!(open(home.path(), &enrolee("acme-corp/oslo/p1")).is_ok());
        std::fs::remove_file(home.path().join(UNDER_WAY)).unwrap();
        std::fs::write(home.path().join("passwd"), "x").unwrap();
        let error = open(home.path(), &enrolee("acme-corp/oslo/p1")).map(drop).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("--to"), "{error}");
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn pollers_beside_it_are_those_with_a_key() {
        let home = tempfile::tempdir().unwrap();
        let folder = open(home.path(), &enrolee("acme-corp/oslo/p1")).unwrap();
        for name in ["p1", "p2", "p3", "Not-A-Name"] {
            folder.make(&format!("pollers/{name}")).unwrap();
        }
        for name in ["p1", "p3", "Not-A-Name"] {
            folder.put(&format!("pollers/{name}/batch.nk"), b"x", SECRET).unwrap();
        }
        assert_eq!(folder.pollers_beside(), ["p3".parse().unwrap()]);
    }
}
