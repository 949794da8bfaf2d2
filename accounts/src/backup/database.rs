//! The database as PostgreSQL's own programs dump and restore it. Passwords go by a file, never as arguments.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::files::{FileError, write_secret};

const READ_BYTES: usize = 1 << 20;
/// Of what a program says before it fails, so much is shown.
const SAID_BYTES_MOST: u64 = 4_096;

/// Why the database was not dumped or restored.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("database address has another form than postgres://user:password@host:port/database")]
    Address,
    #[error("password file")]
    File(#[source] FileError),
    #[error("run {program}: it belongs beside the server's programs; install PostgreSQL's client programs")]
    Run { program: String, source: io::Error },
    #[error("{program} failed ({status}): {said}")]
    Failed { program: &'static str, status: String, said: String },
    #[error("write the dump")]
    Write(#[source] io::Error),
    #[error("read what {program} writes")]
    Read { program: &'static str, source: io::Error },
}

/// A database address, with its password apart.
#[derive(Clone)]
pub(super) struct Address {
    whole: String,
    user: String,
    password: String,
    host: String,
    database: String,
    query: String,
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'%' => {
                let pair = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?
            }
            other => other,
        };
        bytes.push(decoded);
    }
    String::from_utf8(bytes).ok()
}

impl Address {
    /// # Errors
    /// When it has another form; the error does not show it.
    pub(super) fn parse(url: &str) -> Result<Self, DatabaseError> {
        Self::read(url).ok_or(DatabaseError::Address)
    }

    fn read(url: &str) -> Option<Self> {
        let (_, rest) = url.split_once("://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (login, place) = rest.rsplit_once('@')?;
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, database) = place.split_once('/')?;
        Some(Self {
            whole: url.to_owned(),
            user: user.to_owned(),
            password: percent_decoded(password)?,
            host: host.to_owned(),
            database: database.to_owned(),
            query: query.to_owned(),
        })
    }

    /// The same server and database, entered as somebody else.
    pub(super) fn entered_as(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@{}/{}", self.host, self.database)
    }

    /// With the password: for connecting ourselves.
    pub(super) fn url(&self) -> &str {
        &self.whole
    }

    /// Without the password.
    fn open(&self) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query) };
        format!("postgres://{}@{}/{}{query}", self.user, self.host, self.database)
    }
}

/// Removes the password file at the end.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn write(folder: &Path, address: &Address) -> Result<Self, DatabaseError> {
        let path = folder.join(format!(".pgpass.{}.new", std::process::id()));
        let password = address.password.replace('\\', "\\\\").replace(':', "\\:");
        write_secret(&path, format!("*:*:*:*:{password}\n").as_bytes()).map_err(DatabaseError::File)?;
        Ok(Self(path))
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        // A second attempt overwrites it.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn command(programs: &Path, name: &str, password: &PasswordFile) -> Command {
    let beside = programs.join(name);
    let mut command = Command::new(if beside.is_file() { beside } else { PathBuf::from(name) });
    command.env("PGPASSFILE", &password.0).env_remove("PGPASSWORD").env("PGCONNECT_TIMEOUT", "10");
    command.arg("--no-password").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a program and gives what it writes to `write`.
async fn run(
    mut command: Command,
    program: &'static str,
    write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), DatabaseError> {
    let started = command.spawn();
    let mut child = started.map_err(|source| DatabaseError::Run { program: program.to_owned(), source })?;
    let (mut written, said) = (child.stdout.take(), child.stderr.take());
    let listen = tokio::spawn(async move {
        let mut text = Vec::new();
        if let Some(mut said) = said {
            // What it says is for the error only.
            let _ = (&mut said).take(SAID_BYTES_MOST).read_to_end(&mut text).await;
            let _ = tokio::io::copy(&mut said, &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let mut buffer = vec![0; READ_BYTES];
    while let Some(output) = &mut written {
        let read = output.read(&mut buffer).await;
        let read = read.map_err(|source| DatabaseError::Read { program, source })?;
        if read == 0 {
            break;
        }
        write(buffer.get(..read).unwrap_or_default()).map_err(DatabaseError::Write)?;
    }
    let status = child.wait().await;
    let status = status.map_err(|source| DatabaseError::Run { program: program.to_owned(), source })?;
    let said = listen.await.unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    Err(DatabaseError::Failed { program, status: status.to_string(), said })
}

/// Dumps the database as it was at the moment `snapshot`. `folder` takes the password file meanwhile.
///
/// # Errors
/// When `pg_dump` is not there or fails, or `write` does.
pub(super) async fn dump(
    programs: &Path,
    folder: &Path,
    address: &Address,
    snapshot: &str,
    write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), DatabaseError> {
    let password = PasswordFile::write(folder, address)?;
    let mut command = command(programs, "pg_dump", &password);
    // What the preparation of a database makes as superuser is there before a dump is restored.
    let args =
        ["--format=custom", "--compress=6", "--exclude-schema", "provisioning", "--snapshot", snapshot, "--dbname"];
    command.args(args).arg(address.open());
    run(command, "pg_dump", write).await
}

/// Restores a dump into an empty database, all of it or nothing.
///
/// # Errors
/// When `pg_restore` is not there or fails.
pub(super) async fn restore_dump(
    programs: &Path,
    folder: &Path,
    address: &Address,
    dump: &Path,
) -> Result<(), DatabaseError> {
    let password = PasswordFile::write(folder, address)?;
    let mut command = command(programs, "pg_restore", &password);
    command.args(["--single-transaction", "--exit-on-error", "--dbname"]).arg(address.open()).arg(dump);
    run(command, "pg_restore", &mut |bytes| io::sink().write_all(bytes)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart_and_its_password_is_in_no_argument() {
        let address = Address::parse("postgres://someone:s%3Ac%40t@db.example:5433/bulkhead?sslmode=require").unwrap();
        assert_eq!(address.password, "s:c@t");
        assert_eq!(address.open(), "postgres://someone@db.example:5433/bulkhead?sslmode=require");
        assert_eq!(address.entered_as("a", "b"), "postgres://a:b@db.example:5433/bulkhead");
        for bad in ["", "postgres://", "db.example/bulkhead", "postgres://u:%zz@h/d", "postgres://u:p@h"] {
            assert!(Address::parse(bad).is_err(), "{bad:?}");
        }
    }
}
