//! Takes a backup of a running platform. The order is what makes it one set: first the streams, then the database
//! (docs/adr/0011-backup-order.md).

use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_bus::{Role, StreamName};
use bulkhead_runtime::{Bus, SnapshotError, StreamSnapshot, now_ms};
use bulkhead_store::backup::{HeldSnapshot, RowCounts};
use bulkhead_store::{StoreError, UrlError, read_database_url};
use time::OffsetDateTime;

use super::archive::{ArchiveError, ArchiveWriter};
use super::database::{Address, DatabaseError, dump};
use super::home_files::{HomeFilesError, add_home};
use super::manifest::{AccountState, Manifest, StreamState};
use super::sealing::Seal;
use crate::certificates::Authority;
use crate::files::{FileError, read_secret};
use crate::hub_size::HubSize;
use crate::operator::{OperatorError, OperatorStore};
use crate::provisioning_lock::{LockError, ProvisioningLock};
use crate::tenancy::{PlatformSettings, SettingsError};
use crate::up::{CORE, DeploymentError, Layout, POSTGRES_SUPERUSER, Platform, PlatformError, hub_size};

pub(super) const DATABASE_PART: &str = "database";

/// What to save, and for whom.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    pub home: PathBuf,
    pub to: PathBuf,
    pub seal: Seal,
    /// A file with the address of the database as a superuser; `None`: that of this home.
    pub database_url_file: Option<PathBuf>,
    /// Where `pg_dump` is.
    pub postgres_programs: PathBuf,
    /// How long to wait for somebody else who is changing the platform.
    pub lock_limit: Duration,
}

/// Why there is no backup. No file is left, and nothing of the platform has changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("provisioning")]
    Lock(#[source] LockError),
    #[error("there is no platform in {0}: start one with `bulkhead up`, or name its folder with --home")]
    NoPlatform(String),
    #[error("operator store")]
    Operator(#[source] Box<OperatorError>),
    #[error("hub of this home")]
    Hub(#[source] Box<DeploymentError>),
    #[error("settings of the platform")]
    Settings(#[source] SettingsError),
    #[error("way to the hub's streams")]
    Access(#[source] AccessError),
    #[error("streams of the hub")]
    Streams(#[source] SnapshotError),
    #[error("address of the database")]
    Url(#[source] UrlError),
    #[error("password of the database")]
    Password(#[source] FileError),
    #[error("database")]
    Database(#[source] DatabaseError),
    #[error("moment of the database")]
    Moment(#[source] StoreError),
    #[error("files of the home")]
    Files(#[source] HomeFilesError),
    #[error("backup file")]
    Archive(#[source] ArchiveError),
    #[error("write {part}")]
    Part { part: &'static str, source: std::io::Error },
}

impl BackupError {
    fn hub(error: DeploymentError) -> Self {
        Self::Hub(Box::new(error))
    }

    fn operator(error: OperatorError) -> Self {
        Self::Operator(Box::new(error))
    }
}

/// Takes a backup. Provisioning waits meanwhile; results flow on.
///
/// # Errors
/// [`BackupError`]; then no file is left.
pub async fn take_backup(options: &BackupOptions, announce: &dyn Fn(&str)) -> Result<Manifest, BackupError> {
    let layout = Layout::new(options.home.clone());
    if !layout.operator().exists() {
        return Err(BackupError::NoPlatform(layout.home().display().to_string()));
    }
    // Held to the end: accounts, rows and files have to be of one state.
    let _lock = ProvisioningLock::take(layout.home(), options.lock_limit).map_err(BackupError::Lock)?;
    let hub_servers = hub_size(&layout).map_err(BackupError::hub)?;
    let platform = open_platform(&layout)?;
    let address = database_address(&layout, options)?;
    let access = StreamAccess::open(&layout, &platform).await.map_err(BackupError::Access)?;
    let mut archive = ArchiveWriter::create(&options.to, &options.seal).map_err(BackupError::Archive)?;
    let taken_ms = now_ms();
    announce("saving the hub's streams");
    let streams = add_streams(&access.bus, &mut archive).await?;
    drop(access);
    announce("saving the database");
    let counts = add_database(options, &layout, &address, &mut archive).await?;
    announce("saving keys, accounts, certificates and settings");
    add_home(layout.home(), &mut archive).map_err(BackupError::Files)?;
    let manifest = manifest_of(&platform.operator, taken_ms, hub_servers, streams, counts)?;
    archive.finish(manifest).map_err(BackupError::Archive)
}

fn manifest_of(
    operator: &OperatorStore,
    taken_ms: i64,
    hub_servers: HubSize,
    streams: Vec<StreamState>,
    counts: RowCounts,
) -> Result<Manifest, BackupError> {
    let mut accounts = Vec::new();
    for name in operator.account_names() {
        let account = operator.account(&name).map_err(BackupError::operator)?;
        accounts.extend(account.map(|account| AccountState { name, key: account.key.to_string() }));
    }
    Ok(Manifest {
        taken_ms,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        hub_servers,
        accounts,
        streams,
        rows: counts.tables,
        results: counts.results,
        parts: vec![],
    })
}

fn open_platform(layout: &Layout) -> Result<Platform, BackupError> {
    let no_platform = || BackupError::NoPlatform(layout.home().display().to_string());
    let operator = OperatorStore::read(layout.operator()).map_err(BackupError::operator)?.ok_or_else(no_platform)?;
    let settings = PlatformSettings::read(layout).map_err(BackupError::Settings)?;
    let domain = PlatformSettings::trust_domain(layout).map_err(BackupError::Settings)?;
    let authority = Authority::new(layout.authority(), domain);
    let now = OffsetDateTime::now_utc();
    Ok(Platform { layout: layout.clone(), operator, authority, hub_urls: settings.hub_urls, now })
}

/// A connection that may read and restore the hub's streams. Its credentials go when it does: they open everything that
/// waits in them.
pub(super) struct StreamAccess {
    pub(super) bus: Bus,
    _issued: Issued,
}

struct Issued(PathBuf);

impl Drop for Issued {
    fn drop(&mut self) {
        // What is left is written anew by the next backup, and removed then.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl StreamAccess {
    /// # Errors
    /// When the account has no such role, or the hub cannot be reached.
    pub(super) async fn open(layout: &Layout, platform: &Platform) -> Result<Self, AccessError> {
        let issued = Issued(layout.provisioning().join("backup"));
        let bus = platform.connect_service(CORE, Role::Backup, "backup", &issued.0).await;
        let bus = bus.map_err(AccessError::Connect)?;
        Ok(Self { bus, _issued: issued })
    }
}

/// Why the hub's streams cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("connect to the hub: a backup is taken of a running platform")]
    Connect(#[source] PlatformError),
}

fn database_address(layout: &Layout, options: &BackupOptions) -> Result<Address, BackupError> {
    if let Some(file) = &options.database_url_file {
        let url = read_database_url(file).map_err(BackupError::Url)?;
        return Address::parse(&url).map_err(BackupError::Database);
    }
    let url = read_database_url(&layout.secrets().join("postgres-core.url")).map_err(BackupError::Url)?;
    let core = Address::parse(&url).map_err(BackupError::Database)?;
    let password = layout.secrets().join("postgres-superuser.password");
    let password = read_secret(&password).map_err(BackupError::Password)?;
    Address::parse(&core.entered_as(POSTGRES_SUPERUSER, &password)).map_err(BackupError::Database)
}

/// The part that a stream is in.
pub(super) fn stream_part(stream: StreamName) -> String {
    format!("streams/{}", stream.as_str())
}

async fn add_streams(bus: &Bus, archive: &mut ArchiveWriter<Manifest>) -> Result<Vec<StreamState>, BackupError> {
    let mut states = Vec::new();
    for stream in StreamName::HUB {
        archive.begin(&stream_part(stream), 0o600);
        let taken = bus.snapshot_stream(stream, &mut |piece| archive.write(piece)).await;
        let snapshot: StreamSnapshot = taken.map_err(BackupError::Streams)?;
        archive.end().map_err(|source| BackupError::Part { part: stream.as_str(), source })?;
        states.push(StreamState { name: stream.as_str().to_owned(), messages: snapshot.messages(), snapshot });
    }
    Ok(states)
}

async fn add_database(
    options: &BackupOptions,
    layout: &Layout,
    address: &Address,
    archive: &mut ArchiveWriter<Manifest>,
) -> Result<RowCounts, BackupError> {
    let held = HeldSnapshot::hold(address.url()).await.map_err(BackupError::Moment)?;
    archive.begin(DATABASE_PART, 0o600);
    let (programs, folder): (&Path, _) = (&options.postgres_programs, layout.secrets());
    let dumped = dump(programs, &folder, address, &held.id, &mut |piece| archive.write(piece)).await;
    dumped.map_err(BackupError::Database)?;
    archive.end().map_err(|source| BackupError::Part { part: DATABASE_PART, source })?;
    let counts = held.counts.clone();
    held.release().await.map_err(BackupError::Moment)?;
    Ok(counts)
}
