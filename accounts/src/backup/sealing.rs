//! Who can open a backup: whoever has a passphrase, or one of some age keys. Secrets come from files, never as arguments.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use age::stream::StreamWriter;
use age::x25519;

use crate::files::{FileError, read_secret};

/// Why a backup cannot be sealed or opened with what was given.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("key file")]
    File(#[source] FileError),
    #[error("{0} holds no passphrase: write one into its first line")]
    NoPassphrase(String),
    #[error("{path} holds no age key: write a file as `age-keygen` makes it, with a line AGE-SECRET-KEY-1…")]
    NoKey { path: String },
    #[error("recipient {recipient:?} is none: write an age public key, age1…")]
    Recipient { recipient: String },
    #[error("a backup is sealed for somebody: give at least one recipient, or a passphrase file")]
    Nobody,
    #[error("seal the backup")]
    Seal(#[source] io::Error),
    #[error("seal the backup for its recipients")]
    Recipients(#[source] age::EncryptError),
}

/// For whom a backup is sealed.
#[derive(Debug, Clone)]
pub enum Seal {
    PassphraseFile(PathBuf),
    /// age public keys.
    Recipients(Vec<String>),
    /// For nobody: whoever has the file can read it.
    Open,
}

/// What a backup is opened with.
#[derive(Debug, Clone)]
pub enum Opening {
    /// Nothing: it is not sealed.
    Open,
    PassphraseFile(PathBuf),
    /// A file with age secret keys.
    IdentityFile(PathBuf),
}

fn read_passphrase(path: &Path) -> Result<SecretString, SealError> {
    let text = zeroize::Zeroizing::new(read_secret(path).map_err(SealError::File)?);
    match text.lines().next().map(str::trim_end) {
        None | Some("") => Err(SealError::NoPassphrase(path.display().to_string())),
        Some(line) => Ok(SecretString::from(line.to_owned())),
    }
}

impl Seal {
    /// Everything that is written to what this returns arrives sealed in `output`.
    ///
    /// # Errors
    /// When there is nobody to seal it for, or a key file cannot be used.
    pub(super) fn wrap<W: Write>(&self, output: W) -> Result<Sealing<W>, SealError> {
        let encryptor = match self {
            Self::Open => return Ok(Sealing::Open(output)),
            Self::PassphraseFile(path) => age::Encryptor::with_user_passphrase(read_passphrase(path)?),
            Self::Recipients(texts) => {
                let parse = |text: &String| {
                    text.parse::<x25519::Recipient>().map_err(|_| SealError::Recipient { recipient: text.clone() })
                };
                let recipients = texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
                if recipients.is_empty() {
                    return Err(SealError::Nobody);
                }
                let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
                age::Encryptor::with_recipients(recipients).map_err(SealError::Recipients)?
            }
        };
        encryptor.wrap_output(output).map(Sealing::Sealed).map_err(SealError::Seal)
    }
}

/// What writes through a seal, or through none.
pub(super) enum Sealing<W: Write> {
    Sealed(StreamWriter<W>),
    Open(W),
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Sealed(sealed) => sealed.write(bytes),
            Self::Open(open) => open.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Sealed(sealed) => sealed.flush(),
            Self::Open(open) => open.flush(),
        }
    }
}

impl<W: Write> Sealing<W> {
    /// Ends what is sealed; without it nothing of the end can be read.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Sealed(sealed) => sealed.finish(),
            Self::Open(open) => Ok(open),
        }
    }
}

impl Opening {
    /// # Errors
    /// When the file cannot be read, others can read it too, or it holds no key.
    pub(super) fn identities(&self) -> Result<Vec<Box<dyn age::Identity>>, SealError> {
        match self {
            Self::Open => Ok(vec![]),
            Self::PassphraseFile(path) => Ok(vec![Box::new(age::scrypt::Identity::new(read_passphrase(path)?))]),
            Self::IdentityFile(path) => {
                let text = zeroize::Zeroizing::new(read_secret(path).map_err(SealError::File)?);
                let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
                let no_key = || SealError::NoKey { path: path.display().to_string() };
                let keys = keys.map(|line| line.parse::<x25519::Identity>().map_err(|_| no_key()));
                let keys = keys.collect::<Result<Vec<_>, _>>()?;
                if keys.is_empty() {
                    return Err(no_key());
                }
                Ok(keys.into_iter().map(|key| Box::new(key) as Box<dyn age::Identity>).collect())
            }
        }
    }

    /// Where the key is.
    pub(super) fn file(&self) -> Option<&Path> {
        match self {
            Self::PassphraseFile(path) | Self::IdentityFile(path) => Some(path),
            Self::Open => None,
        }
    }
}
