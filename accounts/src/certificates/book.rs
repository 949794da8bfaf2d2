//! The books of an authority: what it has issued and what it has revoked, one JSON object a line, written to disk before
//! the certificate or the list is.
//!
//! A line without an end was being written when the machine stopped: what it announces never came to be.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Authority;
use super::error::CertificateError;
use crate::files::make_folder;
use bulkhead_identity::AuthorityName;

/// What the caller of an issue learns; the certificate itself is in its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IssuedCertificate {
    /// Lower-case hexadecimal.
    pub serial: String,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// SHA-256, lower-case hexadecimal.
    pub fingerprint: String,
}

/// One certificate in the book of its issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedRecord {
    pub serial: String,
    pub subject: String,
    /// The URI of a client, the name of an authority, the common name of a server.
    pub identity: String,
    /// The SHA-256 of the key that signed it.
    pub issuer_key: String,
    /// The SHA-256 of the keys of the roots to which the chain in its file leads.
    pub roots: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    pub fingerprint: String,
    pub key_fingerprint: String,
}

impl IssuedRecord {
    pub(super) fn issued(&self) -> IssuedCertificate {
        IssuedCertificate {
            serial: self.serial.clone(),
            not_after: self.not_after,
            fingerprint: self.fingerprint.clone(),
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> CertificateError {
    let path = path.display().to_string();
    move |source| CertificateError::Store { action, path: path.clone(), source }
}

/// Adds a line; it is on disk when this returns.
pub(super) fn append<T: Serialize>(path: &Path, record: &T) -> Result<(), CertificateError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    make_folder(folder).map_err(CertificateError::File)?;
    let mut line = serde_json::to_string(record).map_err(|error| failed("write", path)(error.into()))?;
    line.push('\n');
    let is_new = !path.exists();
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        cut_torn_end(path, &file)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        if is_new { File::open(folder)?.sync_all() } else { Ok(()) }
    };
    write().map_err(failed("write", path))
}

fn cut_torn_end(path: &Path, file: &File) -> std::io::Result<()> {
    let mut reader = File::open(path)?;
    if reader.seek(SeekFrom::End(0))? == 0 {
        return Ok(());
    }
    // The last byte tells. A book grows with every certificate, so it is read whole only to mend it.
    let mut last = [0];
    reader.seek(SeekFrom::End(-1))?;
    reader.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(());
    }
    let bytes = std::fs::read(path)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole == bytes.len() { Ok(()) } else { file.set_len(whole as u64) }
}

/// Every whole line; no file is an empty book.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, CertificateError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| CertificateError::Unreadable {
            path: path.display().to_string(),
            why: format!("line {}: {error}", number + 1),
        })
    };
    whole.lines().enumerate().map(line).collect()
}

impl Authority {
    pub(super) fn issued_file(&self, name: &AuthorityName) -> PathBuf {
        self.folder.join("issued").join(format!("{}.jsonl", name.file_name()))
    }

    /// Everything that an authority has issued, oldest first.
    ///
    /// # Errors
    /// When its book cannot be read.
    pub fn list_issued(&self, name: &AuthorityName) -> Result<Vec<IssuedRecord>, CertificateError> {
        read(&self.issued_file(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_no_line_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("issued/x.jsonl");
        assert_eq!(read::<u32>(&path).unwrap(), Vec::<u32>::new());
        append(&path, &1).unwrap();
        append(&path, &22).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let expected: &[u32] = if cut < 2 {
                &[]
            } else if cut < 5 {
                &[1]
            } else {
                &[1, 22]
            };
            assert_eq!(read::<u32>(&path).unwrap(), expected, "cut at {cut}");
            append(&path, &333).unwrap();
            assert_eq!(read::<u32>(&path).unwrap(), [expected, &[333]].concat(), "cut at {cut}");
        }
        std::fs::write(&path, "1\nnonsense\n3\n").unwrap();
        let error = read::<u32>(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
