//! A change of an authority as steps on disk, each whole or not at all.
//!
//! Steps are planned from what is on disk and then taken in order. A run that was cut off plans what is left.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};

use super::book::append;
use super::error::CertificateError;
use super::facts::{bundle_pem, read_bundle, read_pem, unreadable};
use crate::files::{make_folder, write_public, write_secret};

/// One step. Shown, it says what happens to which file, never what is in it.
#[derive(Clone)]
pub struct Change(pub(super) Step);

#[derive(Clone)]
pub(super) enum Step {
    Write { path: PathBuf, text: String },
    WriteSecret { path: PathBuf, text: String },
    Append { path: PathBuf, record: serde_json::Value },
    Move { from: PathBuf, to: PathBuf },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Step::Write { path, .. } => write!(f, "write {}", path.display()),
            Step::WriteSecret { path, .. } => write!(f, "write key {}", path.display()),
            Step::Append { path, .. } => write!(f, "add a line to {}", path.display()),
            Step::Move { from, to } => write!(f, "move {} to {}", from.display(), to.display()),
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Change {
    pub(super) fn apply(&self) -> Result<(), CertificateError> {
        match &self.0 {
            Step::Write { path, text } => write_public(path, text.as_bytes()).map_err(CertificateError::File),
            Step::WriteSecret { path, text } => write_secret(path, text.as_bytes()).map_err(CertificateError::File),
            Step::Append { path, record } => append(path, record),
            Step::Move { from, to } => rename_whole(from, to),
        }
    }
}

/// Renames, and returns when that is on disk.
pub(super) fn rename_whole(from: &Path, to: &Path) -> Result<(), CertificateError> {
    let folder = to.parent().unwrap_or(Path::new("."));
    make_folder(folder).map_err(CertificateError::File)?;
    let renamed = std::fs::rename(from, to).and_then(|()| File::open(folder)?.sync_all());
    renamed.map_err(|source| CertificateError::Store { action: "rename", path: from.display().to_string(), source })
}

/// Steps that are being planned; reading sees what the steps so far will have written.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) changes: Vec<Change>,
}

impl Draft {
    pub(super) fn add(&mut self, step: Step) {
        self.changes.push(Change(step));
    }

    pub(super) fn append<T: Serialize>(&mut self, path: PathBuf, record: &T) -> Result<(), CertificateError> {
        let record = serde_json::to_value(record).map_err(|error| CertificateError::Unreadable {
            path: path.display().to_string(),
            why: error.to_string(),
        })?;
        self.add(Step::Append { path, record });
        Ok(())
    }

    fn written(&self, wanted: &Path) -> Option<&str> {
        self.changes.iter().rev().find_map(|change| match &change.0 {
            Step::Write { path, text } | Step::WriteSecret { path, text } if path == wanted => Some(text.as_str()),
            Step::Write { .. } | Step::WriteSecret { .. } | Step::Append { .. } | Step::Move { .. } => None,
        })
    }

    pub(super) fn bundle(&self, path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
        match self.written(path) {
            Some(text) => read_pem(text).map_err(unreadable(path)),
            None => read_bundle(path),
        }
    }

    /// Only when that changes anything.
    pub(super) fn write_bundle(
        &mut self,
        path: &Path,
        certificates: &[CertificateDer<'_>],
    ) -> Result<(), CertificateError> {
        if self.bundle(path)? != certificates {
            self.add(Step::Write { path: path.to_owned(), text: bundle_pem(certificates) });
        }
        Ok(())
    }

    /// Only when that changes anything.
    pub(super) fn write_key(&mut self, path: &Path, text: &str) {
        let is_there = match self.written(path) {
            Some(written) => written == text,
            None => std::fs::read_to_string(path).is_ok_and(|found| found == text),
        };
        if !is_there {
            self.add(Step::WriteSecret { path: path.to_owned(), text: text.to_owned() });
        }
    }
}
