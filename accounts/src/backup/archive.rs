//! The file of a backup: a tar archive in pieces, sealed with age. It begins with a head and ends with the manifest.
//!
//! It is written to a temporary file and gets its name when it is whole and on the disk. Content passes through in pieces
//! and is never held in memory or written in the clear. Reading ends with an error unless everything is as the manifest says.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::manifest::{Contents, PartState, head_of};
use super::sealing::{Opening, Seal, SealError, Sealing};

/// How every file begins that age has sealed.
const SEALED: &[u8] = b"age-encryption.org/";
const HEAD: &str = "head.json";
const MANIFEST: &str = "manifest.json";
const MANIFEST_SUM: &str = "manifest.sha256";
const PIECE_BYTES: usize = 1 << 20;
/// Head and manifest are read into memory.
const TEXT_BYTES_MOST: u64 = 64 << 20;

/// Why a backup was not written or cannot be used. No file is left of one that was not written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("seal")]
    Seal(#[source] SealError),
    #[error("write backup {path}")]
    Write { path: String, source: io::Error },
    #[error("{0} is there already: a backup replaces nothing; choose another name")]
    Exists(String),
    #[error("read backup {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} is not a backup of a {of}")]
    Foreign { path: String, of: &'static str },
    #[error("{path} is sealed: give the key or the passphrase that it was made for (--identity or --passphrase-file)")]
    Sealed { path: String },
    #[error(
        "backup {path} is not sealed for the key in {key}: open it with the key or passphrase that it was made for"
    )]
    WrongKey { path: String, key: String },
    #[error(
        "backup {path} has format {format}, made by release {release}: this release reads formats up to {known}; use that \
         release or a newer one"
    )]
    Newer { path: String, format: u64, known: u32, release: String },
    #[error("backup {path} is damaged or cut short: use another one; nothing was taken from it")]
    Damaged { path: String, source: io::Error },
    #[error("backup {path} is not what its manifest says: {what}; use another one")]
    Different { path: String, what: String },
    #[error("use {part} of the backup")]
    Use { part: String, source: io::Error },
}

impl ArchiveError {
    /// Whether what was given is at fault: a file or a key.
    #[must_use]
    pub fn is_input(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Use { .. } => false,
            Self::Seal(_)
            | Self::Exists(_)
            | Self::Read { .. }
            | Self::Foreign { .. }
            | Self::Sealed { .. }
            | Self::WrongKey { .. }
            | Self::Newer { .. }
            | Self::Damaged { .. }
            | Self::Different { .. } => true,
        }
    }
}

/// A part as it is read, piece by piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    Begin { mode: u32 },
    Piece(&'a [u8]),
    End,
}

/// A part under way, and what it adds up to.
struct Sum {
    name: String,
    bytes: u64,
    hash: Sha256,
}

impl Sum {
    fn new(name: String) -> Self {
        Self { name, bytes: 0, hash: Sha256::new() }
    }

    fn add(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hash.update(piece);
    }

    fn state(self) -> PartState {
        let sha256 = HEXLOWER.encode(&self.hash.finalize());
        PartState { name: self.name, bytes: self.bytes, sha256 }
    }
}

/// Removes the file unless it was finished.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // What went wrong before is the error that matters.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A backup that is being written.
pub struct ArchiveWriter<M> {
    path: PathBuf,
    temporary: Temporary,
    tar: tar::Builder<Sealing<BufWriter<File>>>,
    parts: Vec<PartState>,
    open: Option<OpenPart>,
    contents: PhantomData<fn() -> M>,
}

/// A part that is being written.
struct OpenPart {
    mode: u32,
    held: Vec<u8>,
    sum: Sum,
    pieces: usize,
}

impl<M: Contents> ArchiveWriter<M> {
    /// Begins a backup that will be at `path`.
    ///
    /// # Errors
    /// When something is there already, a key cannot be used or the file cannot be made.
    pub fn create(path: &Path, seal: &Seal) -> Result<Self, ArchiveError> {
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(ArchiveError::Exists(path.display().to_string()));
        }
        let failed = |source| ArchiveError::Write { path: path.display().to_string(), source };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let part = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(failed)?;
        let temporary = Temporary(Some(part));
        let sealed = seal.wrap(BufWriter::new(file)).map_err(ArchiveError::Seal)?;
        let (path, tar) = (path.to_owned(), tar::Builder::new(sealed));
        let mut writer = Self { path, temporary, tar, parts: vec![], open: None, contents: PhantomData };
        let head = head_of::<M>().to_string();
        writer.append(HEAD, 0o600, head.as_bytes()).map_err(|source| writer.failed(source))?;
        Ok(writer)
    }

    fn append(&mut self, name: &str, mode: u32, piece: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(piece.len() as u64);
        header.set_mode(mode);
        self.tar.append_data(&mut header, name, piece)
    }

    fn failed(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Write { path: self.path.display().to_string(), source }
    }

    /// Begins a part; what is written goes into it until [`Self::end`].
    pub fn begin(&mut self, name: &str, mode: u32) {
        self.open = Some(OpenPart { mode, held: Vec::new(), sum: Sum::new(name.to_owned()), pieces: 0 });
    }

    /// # Errors
    /// When the disk does not take it.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Err(io::Error::other("no part was begun")) };
        open.held.extend_from_slice(bytes);
        if open.held.len() >= PIECE_BYTES { self.pass_on() } else { Ok(()) }
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let piece = std::mem::take(&mut open.held);
        open.sum.add(&piece);
        open.pieces += 1;
        self.append(&open.sum.name, open.mode, &piece)?;
        self.open = Some(open);
        Ok(())
    }

    /// Ends the part that was begun.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn end(&mut self) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| !open.held.is_empty() || open.pieces == 0) {
            self.pass_on()?;
        }
        self.parts.extend(self.open.take().map(|open| open.sum.state()));
        Ok(())
    }

    /// Writes a part that is in memory.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn add(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.begin(name, mode);
        let written = self.write(bytes).and_then(|()| self.end());
        written.map_err(|source| self.failed(source))
    }

    /// Writes the manifest with all parts, waits until everything is on the disk and gives the file its name.
    ///
    /// # Errors
    /// When the disk does not take it; then no file is left.
    pub fn finish(mut self, mut manifest: M) -> Result<M, ArchiveError> {
        manifest.set_parts(std::mem::take(&mut self.parts));
        let text = serde_json::json!(manifest).to_string();
        self.append(MANIFEST, 0o600, text.as_bytes()).map_err(|source| self.failed(source))?;
        if M::IS_SUMMED {
            let sum = HEXLOWER.encode(&Sha256::digest(&text));
            self.append(MANIFEST_SUM, 0o600, sum.as_bytes()).map_err(|source| self.failed(source))?;
        }
        let Self { path, mut temporary, tar, .. } = self;
        let failed = |source| ArchiveError::Write { path: path.display().to_string(), source };
        let sealed = tar.into_inner().map_err(failed)?;
        let buffered = sealed.finish().map_err(failed)?;
        let file = buffered.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        if let Some(part) = &temporary.0 {
            std::fs::rename(part, &path).map_err(failed)?;
        }
        temporary.0 = None;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(manifest)
    }
}

/// A backup that was opened: its key fits, and nothing was looked at yet.
pub struct ArchiveReader<M> {
    path: String,
    tar: tar::Archive<Box<dyn Read + Send>>,
    contents: PhantomData<fn() -> M>,
}

impl<M: Contents> ArchiveReader<M> {
    /// # Errors
    /// When it is not a backup, or not for this key.
    pub fn open(file: &Path, opening: &Opening) -> Result<Self, ArchiveError> {
        let path = file.display().to_string();
        let identities = opening.identities().map_err(ArchiveError::Seal)?;
        let read_error = |source| ArchiveError::Read { path: path.clone(), source };
        let mut input = BufReader::new(File::open(file).map_err(read_error)?);
        let Some(key) = opening.file() else {
            if input.fill_buf().map_err(read_error)?.starts_with(SEALED) {
                return Err(ArchiveError::Sealed { path });
            }
            return Ok(Self { path, tar: tar::Archive::new(Box::new(input)), contents: PhantomData });
        };
        let key = || key.display().to_string();
        let explain = |error: age::DecryptError| {
            use age::DecryptError as E;
            let path = path.clone();
            match error {
                E::NoMatchingKeys | E::DecryptionFailed | E::KeyDecryptionFailed | E::ExcessiveWork { .. } => {
                    ArchiveError::WrongKey { path, key: key() }
                }
                E::InvalidMac => ArchiveError::Damaged { path, source: io::Error::other(error.to_string()) },
                E::InvalidHeader | E::UnknownFormat => ArchiveError::Foreign { path, of: M::OF },
                E::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                    ArchiveError::Foreign { path, of: M::OF }
                }
                E::Io(source) => ArchiveError::Read { path, source },
                // The enum is open: what we do not know is no reason to go on.
                other => ArchiveError::Damaged { path, source: io::Error::other(other.to_string()) },
            }
        };
        let decryptor = age::Decryptor::new_buffered(input).map_err(&explain)?;
        let opened = decryptor.decrypt(identities.iter().map(|identity| &**identity)).map_err(&explain)?;
        Ok(Self { path, tar: tar::Archive::new(Box::new(opened)), contents: PhantomData })
    }

    /// Reads everything and gives each part to `take`, which must not use it for good before this returns well: only the
    /// end tells whether all is as the manifest says.
    ///
    /// # Errors
    /// When anything is missing, more, or other than the manifest says, or `take` fails.
    pub fn read(mut self, take: &mut dyn FnMut(&str, Part<'_>) -> io::Result<()>) -> Result<M, ArchiveError> {
        let path = self.path.clone();
        let damaged = |source| ArchiveError::Damaged { path: path.clone(), source };
        let different = |what: &str| ArchiveError::Different { path: path.clone(), what: what.to_owned() };
        let mut taker = Taker { take, current: None, parts: vec![], names: BTreeSet::new() };
        let mut is_first = true;
        let (mut manifest, mut awaited): (_, Option<String>) = (None, None);
        for entry in self.tar.entries().map_err(damaged)? {
            let mut entry =
                entry.map_err(|source| if is_first { unlike::<M>(&path, source) } else { damaged(source) })?;
            let name = entry.path_bytes().into_owned();
            let name = String::from_utf8(name).map_err(|_| different("a part has no readable name"))?;
            if let Some(sum) = awaited.take_if(|_| name == MANIFEST_SUM) {
                if read_text(&mut entry).map_err(damaged)? != sum.into_bytes() {
                    return Err(different("the manifest has changed"));
                }
                continue;
            }
            if manifest.is_some() {
                return Err(different("something follows the manifest"));
            }
            if std::mem::take(&mut is_first) {
                check_head::<M>(&path, &name, &mut entry)?;
                continue;
            }
            if name == MANIFEST {
                let text = read_text(&mut entry).map_err(damaged)?;
                let read: M = serde_json::from_slice(&text).map_err(|error| damaged(error.into()))?;
                awaited = M::IS_SUMMED.then(|| HEXLOWER.encode(&Sha256::digest(&text)));
                manifest = Some(read);
                continue;
            }
            let mode = entry.header().mode().map_err(damaged)?;
            taker.entry(&name, mode, &mut entry, &path)?;
        }
        let Taken { parts, is_twice } = taker.end()?;
        let manifest = manifest.ok_or_else(|| damaged(io::Error::other("it has no manifest")))?;
        if awaited.is_some() {
            return Err(damaged(io::Error::other("it has no checksum of its manifest")));
        }
        // The archive ends before the sealed text does: the rest must be there, too.
        if !is_rest_empty(&mut self.tar.into_inner()).map_err(damaged)? {
            return Err(different("something follows its end"));
        }
        if is_twice {
            return Err(different("a part is there twice"));
        }
        if parts != manifest.parts() {
            return Err(different("its parts have other names, sizes or contents"));
        }
        Ok(manifest)
    }
}

/// An archive ends with zeros.
fn is_rest_empty(rest: &mut dyn Read) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(true),
            read if buffer.iter().take(read).any(|&byte| byte != 0) => return Ok(false),
            _zeros => {}
        }
    }
}

/// What opens with our key and is no archive is somebody else's, unless it could not even be unsealed.
fn unlike<M: Contents>(path: &str, source: io::Error) -> ArchiveError {
    let path = path.to_owned();
    let is_damaged = matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof);
    if is_damaged { ArchiveError::Damaged { path, source } } else { ArchiveError::Foreign { path, of: M::OF } }
}

fn check_head<M: Contents>(path: &str, name: &str, entry: &mut dyn Read) -> Result<(), ArchiveError> {
    let path = path.to_owned();
    if name != HEAD {
        return Err(ArchiveError::Foreign { path, of: M::OF });
    }
    let text = read_text(entry).map_err(|source| ArchiveError::Damaged { path: path.clone(), source })?;
    let head: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    match head[M::HEAD].as_u64() {
        None => Err(ArchiveError::Foreign { path, of: M::OF }),
        Some(format) if format > u64::from(M::FORMAT) => {
            let release = head["release"].as_str().unwrap_or("unknown").to_owned();
            Err(ArchiveError::Newer { path, format, known: M::FORMAT, release })
        }
        Some(_) => Ok(()),
    }
}

fn read_text(entry: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    entry.take(TEXT_BYTES_MOST).read_to_end(&mut text)?;
    Ok(text)
}

struct Taken {
    parts: Vec<PartState>,
    is_twice: bool,
}

/// Puts pieces of one name together again.
struct Taker<'a> {
    take: &'a mut dyn FnMut(&str, Part<'_>) -> io::Result<()>,
    current: Option<Sum>,
    parts: Vec<PartState>,
    names: BTreeSet<String>,
}

impl Taker<'_> {
    fn give(&mut self, name: &str, part: Part<'_>) -> Result<(), ArchiveError> {
        (self.take)(name, part).map_err(|source| ArchiveError::Use { part: name.to_owned(), source })
    }

    fn end_current(&mut self) -> Result<(), ArchiveError> {
        let Some(sum) = self.current.take() else { return Ok(()) };
        self.give(&sum.name, Part::End)?;
        self.names.insert(sum.name.clone());
        self.parts.push(sum.state());
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, entry: &mut dyn Read, path: &str) -> Result<(), ArchiveError> {
        if self.current.as_ref().is_none_or(|sum| sum.name != name) {
            self.end_current()?;
            self.give(name, Part::Begin { mode })?;
            self.current = Some(Sum::new(name.to_owned()));
        }
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = entry.read(&mut buffer);
            let read = read.map_err(|source| ArchiveError::Damaged { path: path.to_owned(), source })?;
            if read == 0 {
                return Ok(());
            }
            let piece = buffer.get(..read).unwrap_or_default();
            if let Some(sum) = &mut self.current {
                sum.add(piece);
            }
            self.give(name, Part::Piece(piece))?;
        }
    }

    fn end(mut self) -> Result<Taken, ArchiveError> {
        self.end_current()?;
        let is_twice = self.names.len() != self.parts.len();
        Ok(Taken { parts: self.parts, is_twice })
    }
}

#[cfg(test)]
mod tests;
