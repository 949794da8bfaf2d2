//! Makes a home from a backup: files, database, streams. The backup is read to its end before anything is written, and
//! what is made is checked against it before it counts.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use bulkhead_bus::StreamName;
use bulkhead_runtime::{Bus, SnapshotError};
use bulkhead_store::StoreError;
use bulkhead_store::backup::{RowCounts, count_rows};

use super::archive::{ArchiveError, ArchiveReader, Part};
use super::database::{Address, DatabaseError, restore_dump};
use super::home_files::{PREFIX, create_file, finish_file};
use super::manifest::Manifest;
use super::read_manifest;
use super::sealing::Opening;
use super::take::{AccessError, DATABASE_PART, StreamAccess, stream_part};
use crate::files::{FileError, make_folder};
use crate::up::{
    DeploymentError, Options, Programs, Rebuild, RebuiltDatabase, RebuiltHub, Tools, database_folder,
    unfinished_restore,
};

/// Programs that were fetched for the new home are none of its content.
const TOOLS: &str = "tools";

/// What to restore, and with what.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    pub file: PathBuf,
    pub opening: Opening,
    /// A folder that is empty or not there.
    pub home: PathBuf,
    pub tools: Tools,
    pub programs: Programs,
}

/// Why nothing was restored. What had been made of the new home is removed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("backup")]
    Archive(#[source] ArchiveError),
    #[error("{0} is not empty: a platform is restored into a folder that is empty or not there")]
    NotEmpty(String),
    #[error("new home {path}")]
    Home { path: String, source: io::Error },
    #[error("folder for the restored parts")]
    File(#[source] FileError),
    #[error("start what is restored")]
    Start(#[source] Box<DeploymentError>),
    #[error("database")]
    Database(#[source] DatabaseError),
    #[error("roles of tenants with a schema of their own")]
    Roles(#[source] StoreError),
    #[error("count the restored rows")]
    Count(#[source] StoreError),
    #[error("way to the restored hub's streams")]
    Access(#[source] AccessError),
    #[error("streams of the hub")]
    Streams(#[source] SnapshotError),
    #[error("open {part} of the backup")]
    Open { part: String, source: io::Error },
    #[error("the backup knows no stream {0}")]
    NoStream(&'static str),
    #[error("{what}: the backup has {expected}, restored were {found}")]
    Different { what: String, expected: i64, found: i64 },
}

impl RestoreError {
    pub(super) fn start(error: DeploymentError) -> Self {
        Self::Start(Box::new(error))
    }
}

/// A home under construction: it goes unless it is finished.
pub(super) struct Construction {
    home: PathBuf,
    is_finished: bool,
}

impl Construction {
    /// # Errors
    /// When the folder holds anything but a restore that was cut short.
    pub(super) fn begin(home: &Path) -> Result<Self, RestoreError> {
        let failed = |source| RestoreError::Home { path: home.display().to_string(), source };
        if unfinished_restore(home).exists() {
            remove_home(home).map_err(failed)?;
        }
        let is_empty = match fs::read_dir(home) {
            Ok(entries) => entries.flatten().all(|entry| entry.file_name() == TOOLS),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(failed(error)),
        };
        if !is_empty {
            return Err(RestoreError::NotEmpty(home.display().to_string()));
        }
        Ok(Self { home: home.to_owned(), is_finished: false })
    }

    /// What the servers said on the way stays in `logs`.
    fn finish(mut self) -> io::Result<()> {
        for folder in [self.home.join("run"), unfinished_restore(&self.home)] {
            // The mark goes last: until then it is a home that nobody starts.
            fs::remove_dir_all(folder)?;
        }
        File::open(&self.home)?.sync_all()?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Construction {
    fn drop(&mut self) {
        if !self.is_finished {
            // What went wrong before is the error that matters; the mark keeps what is left from being started.
            let _ = remove_home(&self.home);
        }
    }
}

/// The database may be outside of the home, and the mark of an unfinished one goes last.
fn remove_home(home: &Path) -> io::Result<()> {
    let remove = |path: &Path| match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    remove(&database_folder(home))?;
    let Ok(entries) = fs::read_dir(home) else { return Ok(()) };
    let mark = unfinished_restore(home);
    for entry in entries {
        let path = entry?.path();
        if path != mark && !path.ends_with(TOOLS) {
            remove(&path)?;
        }
    }
    remove(&mark)?;
    if home.join(TOOLS).exists() { Ok(()) } else { fs::remove_dir(home) }
}

/// Restores a backup into a new home, which `bulkhead up` runs afterwards on the ports that it had.
///
/// # Errors
/// [`RestoreError`]; then there is no new home.
pub async fn restore(options: &RestoreOptions, announce: &dyn Fn(&str)) -> Result<Manifest, RestoreError> {
    let construction = Construction::begin(&options.home)?;
    let (manifest, database) = rebuild_database(options, announce).await?;
    check_rows(&manifest, &counted(&database).await?)?;
    let hub = rebuild_hub(database, &manifest, announce).await?;
    announce("ending what was started to restore");
    hub.stop().await.map_err(RestoreError::start)?;
    let home = options.home.display().to_string();
    construction.finish().map_err(|source| RestoreError::Home { path: home, source })?;
    Ok(manifest)
}

/// Verifies the backup, writes its files and fills a new database from it.
pub(super) async fn rebuild_database(
    options: &RestoreOptions,
    announce: &dyn Fn(&str),
) -> Result<(Manifest, RebuiltDatabase), RestoreError> {
    announce("verifying the backup");
    let manifest = read_manifest(&options.file, &options.opening).map_err(RestoreError::Archive)?;
    let rebuild = Rebuild::begin(up_options(options)).map_err(RestoreError::start)?;
    announce("writing keys, accounts, certificates and settings");
    let manifest = extract(options, &manifest)?;
    announce("restoring the database");
    let database = rebuild.start_database().await.map_err(RestoreError::start)?;
    let address = Address::parse(&database.database_url()).map_err(RestoreError::Database)?;
    let folder = unfinished_restore(&options.home);
    let programs = options.tools.postgres.path.parent().unwrap_or(Path::new("/")).to_owned();
    let tables = manifest.rows.keys().map(String::as_str);
    let made = bulkhead_store::backup::make_tenant_roles(&database.database_url(), tables).await;
    made.map_err(RestoreError::Roles)?;
    let restored = restore_dump(&programs, &folder, &address, &folder.join(DATABASE_PART)).await;
    restored.map_err(RestoreError::Database)?;
    Ok((manifest, database))
}

/// Starts the hub with the restored accounts and fills its streams.
pub(super) async fn rebuild_hub(
    database: RebuiltDatabase,
    manifest: &Manifest,
    announce: &dyn Fn(&str),
) -> Result<RebuiltHub, RestoreError> {
    announce("starting the hub with the restored accounts");
    let hub = database.start_hub(manifest.hub_servers).await.map_err(RestoreError::start)?;
    announce("restoring the hub's streams");
    let access = StreamAccess::open(&hub.layout, &hub.platform).await.map_err(RestoreError::Access)?;
    for stream in StreamName::HUB {
        let found = restore_stream(&access.bus, stream, manifest, hub.layout.home()).await?;
        let expected = stream_state(manifest, stream)?.messages;
        different(format!("batches in stream {}", stream.as_str()), signed(expected), signed(found))?;
    }
    Ok(hub)
}

fn stream_state(manifest: &Manifest, stream: StreamName) -> Result<&super::StreamState, RestoreError> {
    let state = manifest.streams.iter().find(|state| state.name == stream.as_str());
    state.ok_or(RestoreError::NoStream(stream.as_str()))
}

async fn restore_stream(bus: &Bus, stream: StreamName, manifest: &Manifest, home: &Path) -> Result<u64, RestoreError> {
    let part = stream_part(stream);
    let file = File::open(unfinished_restore(home).join(&part));
    let file = file.map_err(|source| RestoreError::Open { part, source })?;
    let state = stream_state(manifest, stream)?;
    let restored = bus.restore_stream(stream, &state.snapshot, &mut BufReader::new(file)).await;
    restored.map_err(RestoreError::Streams)
}

fn up_options(options: &RestoreOptions) -> Options {
    Options {
        home: options.home.clone(),
        fresh: false,
        hub_servers: None,
        tools: options.tools.clone(),
        programs: options.programs.clone(),
        tenants: vec![],
        targets: vec![],
        leaf_urls: std::collections::BTreeMap::new(),
    }
}

/// Files of the home go where they were; streams and database beside the mark, until they are where they belong.
fn extract(options: &RestoreOptions, verified: &Manifest) -> Result<Manifest, RestoreError> {
    let mark = unfinished_restore(&options.home);
    make_folder(&mark).map_err(RestoreError::File)?;
    let mut open: Option<File> = None;
    let reader = ArchiveReader::open(&options.file, &options.opening).map_err(RestoreError::Archive)?;
    let read = reader.read(&mut |name, part| {
        match part {
            Part::Begin { mode } => {
                open = Some(match name.strip_prefix(PREFIX) {
                    Some(name) => create_file(&options.home, name, mode)?,
                    None => create_file(&mark, name, 0o600)?,
                });
            }
            Part::Piece(piece) => {
                if let Some(file) = &mut open {
                    file.write_all(piece)?;
                }
            }
            Part::End => open.take().map_or(Ok(()), finish_file)?,
        }
        Ok(())
    });
    let manifest = read.map_err(RestoreError::Archive)?;
    if manifest == *verified {
        return Ok(manifest);
    }
    let what = "it has changed since it was verified".to_owned();
    let path = options.file.display().to_string();
    Err(RestoreError::Archive(ArchiveError::Different { path, what }))
}

pub(super) async fn counted(database: &RebuiltDatabase) -> Result<RowCounts, RestoreError> {
    count_rows(&database.database_url()).await.map_err(RestoreError::Count)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn different(what: String, expected: i64, found: i64) -> Result<(), RestoreError> {
    if expected == found { Ok(()) } else { Err(RestoreError::Different { what, expected, found }) }
}

/// Every table and every tenant has as many rows as when the backup was taken.
fn check_rows(manifest: &Manifest, found: &RowCounts) -> Result<(), RestoreError> {
    for (what, expected, found) in compared_rows(manifest, found) {
        different(what, expected, found)?;
    }
    Ok(())
}

/// What is counted, how many there were and how many there are.
pub(super) fn compared_rows(manifest: &Manifest, found: &RowCounts) -> Vec<(String, i64, i64)> {
    let count = |rows: &std::collections::BTreeMap<String, i64>, name: &String| rows.get(name).copied().unwrap_or(0);
    let mut tables: Vec<&String> = manifest.rows.keys().chain(found.tables.keys()).collect();
    tables.sort_unstable();
    tables.dedup();
    let tables = tables
        .into_iter()
        .map(|table| (format!("rows of {table}"), count(&manifest.rows, table), count(&found.tables, table)));
    let tenants = manifest.results.keys();
    let tenants = tenants.map(|tenant| {
        (format!("results of {tenant}"), count(&manifest.results, tenant), count(&found.results, tenant))
    });
    tables.chain(tenants).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_with_anything_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), b"x").unwrap();
        let error = Construction::begin(folder.path()).err().unwrap();
        assert!(matches!(error, RestoreError::NotEmpty(_)), "{error:?}");
        assert!(folder.path().join("precious").exists());
    }

    #[test]
    fn what_was_not_finished_goes_and_what_was_cut_short_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let fill = || {
            fs::create_dir_all(unfinished_restore(&home)).unwrap();
            fs::create_dir_all(home.join("nsc/keys")).unwrap();
            fs::write(home.join("ports.json"), b"{}").unwrap();
        };
        let construction = Construction::begin(&home).unwrap();
        fill();
        drop(construction);
        assert!(!home.exists());
        // As a kill would leave it.
        fill();
        let construction = Construction::begin(&home).unwrap();
        assert!(!home.exists(), "half of it is still there");
        fill();
        fs::create_dir_all(home.join("run")).unwrap();
        fs::create_dir_all(home.join("logs")).unwrap();
        construction.finish().unwrap();
        assert!(home.join("ports.json").exists() && home.join("logs").exists());
        assert!(!home.join("run").exists() && !unfinished_restore(&home).exists());
    }
}
